import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from making import episode, played

from bigdm_ray.cards import histogram, plot
from bigdm_ray.data import data_parser, main, recording_request
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.writer import Writer
from bigdm_ray.replay import Store
from bigdm_ray.replay.shard import Shard, encode
from bigdm_ray.run import main as run
from bigdm_ray.training.config import configure
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder

SHARDS = 3
EACH = 2


@pytest.fixture
def run_folder(tmp_path):
    """Three shards of two episodes each in the store of what looks like a run folder."""
    store = Store(tmp_path / "run" / "store")
    for round in range(SHARDS):
        store.add([episode((round, 0, number), length=50) for number in range(EACH)])
    return tmp_path / "run"


@pytest.fixture
def shards(run_folder):
    return sorted((run_folder / "store").glob("*.arrow"))


def verify(folder, capsys):
    code = door(main, ["verify", str(folder)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def one_error(capsys, *words):
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    for word in words:
        assert word in said.err


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_store_is_0_and_is_left_as_it_is(run_folder, shards, capsys):
    before = [path.read_bytes() for path in shards]
    for folder in (run_folder, run_folder / "store"):
        code, lines, error = verify(folder, capsys)
        assert (code, error) == (0, "")
        assert lines == [f"{run_folder / 'store'}: 3 sound shards with 6 episodes, 0 set aside"]
    assert [path.read_bytes() for path in shards] == before
    assert sorted((run_folder / "store").iterdir()) == shards


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip, "checksum of its body"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole Arrow file"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(b"ARROW1" + b"x" * 1000 + b"ARROW1"), ""),
    ],
    ids=["a flipped bit", "a cut end", "an empty file", "rubbish"],
)
def test_a_damaged_shard_is_set_aside_and_named_and_the_code_is_1(
    run_folder, shards, capsys, damage, why
):
    damage(shards[1])
    code, lines, error = verify(run_folder, capsys)
    assert (code, error) == (1, "")
    assert len(lines) == 2
    assert str(shards[1]) in lines[0] and why in lines[0]
    assert lines[1].endswith("2 sound shards with 4 episodes, 1 set aside")
    aside = shards[1].with_name(f"{shards[1].name}.corrupt")
    assert sorted((run_folder / "store").iterdir()) == sorted([shards[0], aside, shards[2]])
    assert len(Store(run_folder / "store").open().table) == 4
    code, lines, _ = verify(run_folder, capsys)
    assert code == 0 and len(lines) == 1, "what was set aside is not a shard any more"


def test_every_damaged_shard_has_its_line(run_folder, shards, capsys):
    for path in shards[:2]:
        flip(path)
    code, lines, _ = verify(run_folder, capsys)
    assert code == 1
    assert [path.name in line for path, line in zip(shards[:2], lines, strict=False)] == [
        True,
        True,
    ]
    assert lines[2].endswith("1 sound shard with 2 episodes, 2 set aside")


def test_nothing_to_verify_is_2(run_folder, shards, capsys, tmp_path):
    assert door(main, ["verify", str(tmp_path / "nowhere")]) == 2
    one_error(capsys, "nowhere", "no folder")
    assert door(main, ["verify", str(shards[0])]) == 2
    one_error(capsys, shards[0].name, "no folder")
    (tmp_path / "empty").mkdir()
    assert door(main, ["verify", str(tmp_path / "empty")]) == 2
    one_error(capsys, "empty", "holds no shards")


def test_a_store_whose_shards_are_all_set_aside_says_so(run_folder, shards, capsys):
    for path in shards:
        flip(path)
    assert verify(run_folder, capsys)[0] == 1
    assert door(main, ["verify", str(run_folder)]) == 2
    one_error(capsys, "holds no shards", "3 were set aside")


def test_a_shard_that_cannot_be_renamed_is_one_sentence(run_folder, shards, capsys):
    flip(shards[0])
    shards[0].with_name(f"{shards[0].name}.corrupt").mkdir()  # nothing can be renamed onto a folder
    assert door(main, ["verify", str(run_folder)]) == 1
    one_error(capsys, "cannot set aside", shards[0].name)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["verfy", "x"], "'verify'"),
        (["verify"], "FOLDER"),
        (["verify", ".", "--fix"], "'--fix'"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(capsys, arguments, word):
    assert door(main, arguments) == 2
    one_error(capsys, word)


def test_a_moved_store_is_still_sound(run_folder, capsys, tmp_path):
    shutil.move(run_folder / "store", tmp_path / "elsewhere")
    code, lines, _ = verify(tmp_path / "elsewhere", capsys)
    assert code == 0 and lines == [
        f"{tmp_path / 'elsewhere'}: 3 sound shards with 6 episodes, 0 set aside"
    ]


# --- datasets


def made(folder, task="toy-vector", count=12, seed=1):
    """A dataset of random episodes."""
    writer = Writer(folder, {}, task, find_task(task).signature())
    writer.add(played(task, count, seed).episodes)
    return writer.finish(folder.name, "a test", {"environment": "made up"})


@pytest.fixture
def dataset(tmp_path):
    return made(tmp_path / "set")


def call(capsys, *arguments):
    """Exit code, lines on standard output, text on standard error."""
    code = door(main, [str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_export_and_import_lead_back(dataset, capsys, tmp_path):
    for to in ("minari", "parquet", "steps"):
        code, lines, error = call(
            capsys, "export", dataset.folder, "--to", to, "--folder", tmp_path / to
        )
        assert (code, error, lines) == (
            0,
            "",
            [f"{tmp_path / to}: 12 episodes of {dataset.folder} as {to}"],
        )
        code, lines, error = call(
            capsys, "import", tmp_path / to, "--folder", tmp_path / f"{to}-back"
        )
        assert (code, error) == (0, "") and lines[0] == f"dataset {tmp_path / f'{to}-back'}"
        assert lines[-1].split() == ["sha256", dataset.sha256]


def test_merge_joins_datasets_and_numbers_their_stages(dataset, capsys, tmp_path):
    made(tmp_path / "other", count=5, seed=2)
    code, _, _ = call(
        capsys, "merge", dataset.folder, tmp_path / "other", "--folder", tmp_path / "both"
    )
    assert code == 0 and Dataset.open(tmp_path / "both").behaviours() == {
        "random stage 0": 12,
        "random stage 1": 5,
    }
    assert call(capsys, "merge", tmp_path / "nowhere", "--folder", tmp_path / "x")[0] == 2
    code, _, _ = call(
        capsys,
        "merge",
        dataset.folder,
        tmp_path / "other",
        "--steps",
        "20",
        "--folder",
        tmp_path / "few",
    )
    assert code == 0 and 40 <= Dataset.open(tmp_path / "few").steps < 64


def test_merge_takes_recordings_of_ones_own_environment(capsys, tmp_path, monkeypatch):
    (tmp_path / "ones_own.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import"
        " CartPoleEnv\ngymnasium.register('Own-v0', CartPoleEnv, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ones_own", raising=False)
    for name in ("a", "b"):
        assert (
            call(
                capsys,
                "record",
                "--random",
                "ones_own:Own-v0",
                "--episodes",
                "2",
                "--folder",
                tmp_path / name,
            )[0]
            == 0
        )
    code, _, told = call(
        capsys, "merge", tmp_path / "a", tmp_path / "b", "--folder", tmp_path / "both"
    )
    assert code == 2 and "name the task with --task TASK" in told
    code, _, _ = call(
        capsys,
        "merge",
        tmp_path / "a",
        tmp_path / "b",
        "--task",
        "ones_own:Own-v0",
        "--folder",
        tmp_path / "both",
    )
    assert code == 0 and Dataset.open(tmp_path / "both").episodes == 4


def test_list_has_a_line_for_each_dataset(dataset, capsys, tmp_path, monkeypatch):
    made(tmp_path / "datasets" / "deep", "toy-continuous", 3)
    (tmp_path / "datasets" / "broken").mkdir()
    (tmp_path / "datasets" / "broken" / "dataset.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    code, lines, error = call(capsys, "list")
    assert code == 0 and len(lines) == 3 and error.count("\n") == 1 and "broken" in error
    assert lines[0].split() == ["dataset", "task", "episodes", "steps", "return", "mean", "std"]
    assert lines[1].split()[:3] == ["datasets/deep", "toy-continuous", "3"] and lines[2].split()[
        :3
    ] == ["set", "toy-vector", "12"]
    assert call(capsys, "list", dataset.folder)[1][1].split()[:3] == [
        str(dataset.folder),
        "toy-vector",
        "12",
    ]
    (tmp_path / "empty").mkdir()
    assert call(capsys, "list", "empty") == (0, ["no datasets in empty"], "")
    assert call(capsys, "list", "nowhere")[0] == 2


def test_show_tells_the_distribution(dataset, capsys):
    code, lines, error = call(capsys, "show", dataset.folder)
    assert (code, error) == (0, "")
    text = "\n".join(lines)
    returns, lengths, terminated = dataset.returns()
    for words in (
        "task              toy-vector",
        f"return mean       {returns.mean():,.2f}",
        f"normalised score  {find_task('toy-vector').normalized_score(returns.mean()):.1f}",
        f"ends              {terminated.sum()} terminated, {12 - terminated.sum()} truncated",
        f"length            {lengths.mean():,.1f} on average, {lengths.min()} to {lengths.max()}",
        "who acted         random: 12 episodes",
        "versions          environment made up",
    ):
        assert words in text, words
    counts = [int(line.split()[-1]) for line in lines[lines.index("returns, episodes") + 1 :]]
    assert sum(counts) == 12
    assert not (dataset.folder / "returns.png").exists()


def test_show_draws_a_plot(dataset, capsys):
    code, lines, _ = call(capsys, "show", dataset.folder, "--plot")
    assert code == 0 and lines[-1] == f"plot: {dataset.folder / 'returns.png'}"
    assert (dataset.folder / "returns.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert call(capsys, "verify", dataset.folder)[0] == 0, "the picture is no part of the dataset"


def test_a_histogram_counts_all_and_scales_to_the_fullest():
    lines = histogram(np.array([0.0] * 30 + [9.9] * 3 + [10.0]))
    assert len(lines) == 20 and [int(line.split()[-1]) for line in lines] == [30] + [0] * 18 + [4]
    assert lines[0].count("#") == 50 and lines[-1].count("#") == 7 and lines[1].count("#") == 0
    assert histogram(np.full(3, 7.0)) == [f"  7.0  {'#' * 50} 3"]


def labels_of(lines):
    return [
        line.partition("#")[0].strip() if "#" in line else line.rpartition(" ")[0].strip()
        for line in lines
    ]


def test_labels_tell_bins_apart_however_small_the_returns():
    """Of a task that pays 1 for success and else nothing; and of returns that lie close
    together."""
    labels = labels_of(histogram(np.array([0.0] * 97 + [1.0] * 3)))
    assert labels[:2] == ["0.00 to 0.05", "0.05 to 0.10"] and labels[-1] == "0.95 to 1.00"
    for low, high in ((0.0, 1e-3), (5000.0, 5000.01), (-0.3, 0.7), (0.0, 1e6)):
        labels = labels_of(histogram(np.array([low, high])))
        assert len({edge for label in labels for edge in label.split(" to ")}) == 21, labels
    assert labels[1] == "50,000.0 to 100,000.0", "large ones stay short"
    assert labels_of(histogram(np.full(3, 0.03))) == ["0.030"] and labels_of(
        histogram(np.zeros(3))
    ) == ["0.0"]


def test_returns_that_differ_by_rounding_only_are_one_bin(tmp_path, dataset):
    returns = np.array([100.0, np.nextafter(100.0, 200.0)])
    assert labels_of(histogram(returns)) == ["100.0"]
    plot(dataset, returns, np.array([3, 3]), tmp_path / "returns.png")
    assert (tmp_path / "returns.png").is_file()


def test_list_tells_small_returns_apart(capsys, tmp_path):
    few = made(tmp_path / "few", "key-to-door", 40)
    mean = call(capsys, "list", few.folder)[1][1].split()[-2]
    assert mean == f"{few.return_mean:.2f}"


def test_verify_compares_the_content_with_the_card(dataset, capsys):
    folder = dataset.folder
    assert call(capsys, "verify", folder) == (
        0,
        [f"{folder}: 1 sound shard with 12 episodes, 0 set aside"],
        "",
    )
    card = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    code, lines, _ = call(capsys, "verify", folder)
    assert (
        code == 1
        and len(lines) == 2
        and "content hash 000000" in lines[0]
        and dataset.sha256 in lines[0]
    )
    (folder / "dataset.json").write_text(json.dumps(card | {"episodes": 13}))
    code, lines, _ = call(capsys, "verify", folder)
    assert code == 1 and "says 13 episodes where 12 are sound" in lines[0]
    for name, value in {
        "steps": 1,
        "return_mean": 1e9,
        "return_std": 0.25,
        "return_min": -7.0,
        "return_max": 1e3,
    }.items():
        (folder / "dataset.json").write_text(json.dumps(card | {name: value}))
        code, lines, _ = call(capsys, "verify", folder)
        assert (
            code == 1
            and f"says {name} {value:g} where it is {card[name]:g}" in lines[0]
            and len(lines) == 2
        )
    (folder / "dataset.json").write_text(json.dumps(card | {"task": "cartpole"}))
    code, lines, _ = call(capsys, "verify", folder)
    assert code == 1 and "says the task cartpole, but its observations are" in lines[0]


def test_verify_of_a_dataset_with_a_damaged_shard(dataset, capsys):
    (shard,) = dataset.shards()
    flip(shard)
    code, lines, _ = call(capsys, "verify", dataset.folder)
    assert (
        code == 1 and "set aside" in lines[0] and "says 12 episodes where 0 are sound" in lines[1]
    )
    assert (
        call(
            capsys,
            "export",
            dataset.folder,
            "--to",
            "parquet",
            "--folder",
            dataset.folder.parent / "out",
        )[0]
        == 2
    )
    assert sorted(path.name for path in dataset.folder.parent.iterdir()) == ["set"]


def test_a_shard_swapped_for_another_sound_one_is_found(dataset, capsys, tmp_path):
    other = made(tmp_path / "other", seed=5)
    shutil.copy(other.shards()[0], dataset.shards()[0])
    code, lines, _ = call(capsys, "verify", dataset.folder)
    assert code == 1 and "content hash" in lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run with continuous actions."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    flags = (
        "--local --quiet --budget.env-steps 250 --algorithm.warm-up-episodes 10"
        " --algorithm.episodes-per-iteration 5 --algorithm.n-updates-per-iter 2"
    )
    few = (
        "--evaluations.every 1000 --evaluations.episodes 2 --evaluations.final-episodes 2"
        " --algorithm.hidden 8,8"
    )
    assert (
        run(["udrl", "toy-continuous", *flags.split(), *few.split(), "--folder", str(folder)]) == 0
    )
    return folder


def test_record_plays_a_run(trained, capsys, tmp_path):
    code, _, error = call(
        capsys,
        "record",
        trained,
        "--folder",
        tmp_path / "plain",
        "--episodes",
        "6",
        "--seed",
        "3",
        "--desired-return",
        "5",
    )
    assert (code, error) == (0, "")
    plain = Dataset.open(tmp_path / "plain")
    assert (
        plain.episodes == 6
        and "seed 3" in plain.source
        and str(trained) in plain.source
        and "desired return 5" in plain.source
    )
    assert set(plain.behaviours()) == {"udrl-last sample"}
    assert (
        next(plain.stream()).command["desired_return"] == 5.0
        and next(plain.stream()).version[1] > 0
    )
    noise = [
        "--action-noise",
        "0.2",
        "--epsilon",
        "0.1",
        "--mode",
        "mean",
        "--weights",
        "best",
        "--steps",
        "100",
    ]
    code, _, _ = call(capsys, "record", trained, "--folder", tmp_path / "noisy", *noise)
    noisy = Dataset.open(tmp_path / "noisy")
    assert (
        code == 0
        and set(noisy.behaviours()) == {"udrl-best mean sigma 0.2 eps 0.1"}
        and noisy.steps >= 100
    )
    assert len({e.actions[""].tobytes() for e in noisy.stream()}) == noisy.episodes


def test_record_plays_every_milestone_from_the_oldest_on(capsys, tmp_path):
    run_folder = tmp_path / "run"
    flags = (
        "--quiet --algorithm.hidden 8 --budget.learner-steps 6 --saves.every 2 --saves.milestones"
        " true --evaluations.every 100 "
    )
    flags += "--evaluations.final-episodes 1"
    dataset = made(tmp_path / "from", "toy-vector")
    assert (
        run(["bc", str(dataset.folder), "--local", *flags.split(), "--folder", str(run_folder)])
        == 0
    )
    names = [f"step-{step:012d}" for step in (2, 4, 6)]
    assert RunFolder(run_folder).milestones() == names
    weights = [
        Weights.load(RunFolder(run_folder).weights(name)).arrays for name in (*names, "last")
    ]
    # a file's metadata have no order
    contents = [
        b"".join(values.tobytes() for _, values in sorted(arrays.items())) for arrays in weights
    ]
    assert len(set(contents)) == 3 and contents[2] == contents[3]
    code, _, error = call(
        capsys,
        "record",
        run_folder,
        "--folder",
        tmp_path / "set",
        "--weights",
        "milestones",
        "--episodes",
        "11",
        "--epsilon",
        "0.1",
    )
    assert (code, error) == (0, "")
    grown = Dataset.open(tmp_path / "set")
    shares = {
        f"bc-{name} sample eps 0.1 stage {stage}": share
        for stage, (name, share) in enumerate(zip(names, (3, 4, 4), strict=True))
    }
    assert grown.behaviours() == shares and "3 milestones of the run" in grown.source
    assert [e.version[1] for e in grown.stream()] == [2] * 3 + [4] * 4 + [6] * 4
    assert len({e.seed for e in grown.stream()}) == 3
    assert (
        call(
            capsys,
            "record",
            run_folder,
            "--folder",
            tmp_path / "steps",
            "--weights",
            "milestones",
            "--steps",
            "90",
        )[0]
        == 0
    )
    lengths = [
        [e.length for e in Dataset.open(tmp_path / "steps").stream() if e.version[1] == step]
        for step in (2, 4, 6)
    ]
    assert all(sum(one) >= 30 > sum(one[:-1]) for one in lengths)
    code, _, error = call(
        capsys,
        "record",
        run_folder,
        "--folder",
        tmp_path / "few",
        "--weights",
        "milestones",
        "--episodes",
        "2",
    )
    assert code == 2 and "each of the 3 milestones" in error


def test_a_recording_goes_on_with_the_same_weights_and_noise_only(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")

    def made_of(*flags):
        given = data_parser().parse(
            ["record", str(tmp_path / "run"), "--folder", "x", "--episodes", "5", *flags]
        )
        return recording_request(given, "last", 5, None, 1).made_of

    before = made_of("--epsilon", "0.1")
    assert made_of("--epsilon", "0.1") == before != made_of("--epsilon", "0.10000001"), (
        "a source tells six digits only"
    )
    os.utime(tmp_path / "run" / "weights" / "last.safetensors", ns=(1, 1))
    assert made_of("--epsilon", "0.1") != before


def test_a_run_without_milestones_says_how_to_keep_them(trained, capsys, tmp_path):
    code, _, error = call(
        capsys,
        "record",
        trained,
        "--folder",
        tmp_path / "set",
        "--weights",
        "milestones",
        "--episodes",
        "5",
    )
    assert code == 2 and "train it with --saves.milestones true" in error


def test_record_says_that_gymnasium_plays(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    assert (
        door(
            main,
            [
                "record",
                "--random",
                "cartpole",
                "--episodes",
                "2",
                "--folder",
                str(tmp_path / "slow"),
                "--quiet",
            ],
        )
        == 0
    )
    assert "note: gymnasium's environments play cartpole, slowly" in capsys.readouterr().err
    assert Dataset.open(tmp_path / "slow").episodes == 2


def test_record_plays_at_random(capsys, tmp_path):
    code, _, _ = call(
        capsys, "record", "--random", "toy-mixed", "--folder", tmp_path / "set", "--episodes", "5"
    )
    assert code == 0 and Dataset.open(tmp_path / "set").behaviours() == {"random": 5}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("record --folder x --episodes 5", "either the folder of a run, or --random TASK"),
        (
            "record somewhere --random cartpole --folder x --episodes 5",
            "either the folder of a run, or --random TASK",
        ),
        ("record --random toy-vector --folder x", "either --episodes N or --steps N"),
        (
            "record --random toy-vector --folder x --episodes 5 --steps 5",
            "either --episodes N or --steps N",
        ),
        (
            "record --random toy-vector --folder x --episodes 5 --epsilon 0.1",
            "--epsilon has no meaning for a random policy",
        ),
        *(
            (
                f"record --random toy-vector --folder x --episodes 5 {flag}",
                f"{flag.split()[0]} has no meaning for a random policy; leave it out",
            )
            for flag in (
                "--action-noise 0",
                "--epsilon 0",
                "--desired-return 0",
                "--desired-horizon 0",
                "--weights last",
                "--weights milestones",
                "--mode mean",
                "--mode own",
            )
        ),
        ("record --random toy-vectr --folder x --episodes 5", "'toy-vector'"),
        ("record nowhere --folder x --episodes 5", "there is no run in nowhere"),
        ("record nowhere --folder x --episodes 0", "0 is not at least 1"),
        ("record nowhere --folder x --episodes 5 --epsilon 1.5", "1.5 does not lie from 0 to 1"),
        (
            "record nowhere --folder x --episodes 5 --action-noise -1",
            "-1.0 is not a finite number from 0 up",
        ),
        ("record nowhere --folder x --episodes 5 --action-noise nan", "nan is not a finite number"),
        ("record nowhere --folder x --episodes 5 --seed -1", "-1 is not an integer from 0"),
        ("import nowhere.parquet --folder x", "nowhere.parquet is no file"),
        ("import nowhere.parquet", "--folder"),
        ("import a.parquet --folder x --steps none", "--steps"),
        ("export nowhere --to parquet --folder x", "nowhere is not a dataset"),
        ("show nowhere", "nowhere is not a dataset"),
        ("show", "DATASET"),
    ],
)
def test_wrong_commands_are_one_sentence(capsys, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert door(main, arguments.split()) == 2
    one_error(capsys, word)
    assert list(tmp_path.iterdir()) == []


def test_every_command_explains_itself(capsys):
    for command in ("import", "merge", "export", "record", "list", "show", "verify"):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0 and f"data {command}" in capsys.readouterr().out


def test_looking_at_datasets_needs_no_torch(dataset, tmp_path):
    """`list`, `show`, `import` and `export` begin quickly."""
    code = (
        f"import sys; from bigdm_ray.data import main\nmain(['show', {str(dataset.folder)!r}]);"
        f" main(['export', {str(dataset.folder)!r}, '--to', 'parquet', '--folder',"
        " 'out'])\nmain(['import', 'out', '--folder', 'back'])\nprint('held',"
        " sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'minari',"
        " 'h5py'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "held []", done.stdout
    assert done.stderr == "", "no bar where there is no terminal"


# --- shards against the signature


@pytest.mark.parametrize(
    ("what", "change", "told"),
    [
        ("observations", lambda v: v[:, :2], "its observations are float32 [2] where float32 [3]"),
        ("observations", lambda v: v.astype(np.float64), "are float64 [3] where float32 [3]"),
        ("actions", lambda v: v + np.int32(7), "its actions have a "),
        ("actions", lambda v: v - np.int32(7), " where 0 to 2 are expected"),
    ],
)
@pytest.mark.parametrize("of_a_run", [False, True])
def test_verify_holds_every_shard_against_the_signature(
    of_a_run, what, change, told, tmp_path, capsys
):
    folder = made(tmp_path / "set", "toy-vector", 3).folder
    (shard,) = folder.glob("*.arrow")
    if of_a_run:
        (folder / "dataset.json").unlink()
        folder = folder.rename(tmp_path / "store")
        (tmp_path / "run.json").write_text(json.dumps(configure("udrl", "toy-vector").to_json()))
        shard = folder / shard.name
        assert call(capsys, "verify", tmp_path)[0] == 0
    opened = Shard.open(shard)
    arrays = [getattr(opened.episode(row), what) for row in range(3)]
    episodes = [
        dataclasses.replace(
            opened.episode(row), **{what: {path: change(v) for path, v in arrays[row].items()}}
        )
        for row in range(3)
    ]
    shard.write_bytes(encode(episodes))
    code, lines, _ = call(capsys, "verify", tmp_path if of_a_run else folder)
    assert code == 1 and lines[0].startswith(f"shard {shard}: ") and told in lines[0]
    assert "1 sound shard with 3 episodes, 0 set aside" in lines[-1]
    assert shard.is_file(), "it is named, not set aside"


def test_verify_names_leaves_that_are_missing(tmp_path, capsys):
    dataset = made(tmp_path / "set", "toy-mixed", 2)
    (shard,) = dataset.shards()
    opened = Shard.open(shard)
    episodes = [opened.episode(row) for row in range(2)]
    for one in episodes:
        del one.observations["eye"]
    shard.write_bytes(encode(episodes))
    code, lines, _ = call(capsys, "verify", dataset.folder)
    assert code == 1 and "its field 'observations/eye' is missing" in lines[0]
