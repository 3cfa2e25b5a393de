"""Runs on datasets: resumed they equal the uninterrupted one; what does not fit is told in one
sentence."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from making import dataset_of

from bigdm_ray import stopping
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError
from bigdm_ray.replay.rotating import RotatingStore, turn_of
from bigdm_ray.run import default_folder, main, train
from bigdm_ray.training.checkpoint import complete_checkpoints, read
from bigdm_ray.training.config import (
    configure,
    premature_warning,
    read_run,
    resumed_run,
    still_rising,
)
from bigdm_ray.training.loop import LocalExecutor, train_local
from bigdm_ray.training.params import Weights
from bigdm_ray.training.start import dataset_stores, rotation_note

SMALL = (
    "--algorithm.hidden 16,16 --algorithm.batch-size 16 --evaluations.episodes 3"
    " --evaluations.final-episodes 3"
)
FLAGS = SMALL + " --evaluations.every 40 --saves.every 30 --saves.report-every 10"
COUNTED_BEFORE = " --evaluations.every 5000 --saves.every 5000 --saves.report-every 250"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data") / "toys")


def run_of(dataset, algorithm="bc", steps=100, flags=FLAGS):
    return configure(
        algorithm, str(dataset.folder), [*flags.split(), "--budget.learner-steps", str(steps)]
    )


def test_the_dataset_travels_into_run_json_and_the_summary(dataset, tmp_path):
    run = run_of(dataset)
    summary = train_local(run, tmp_path / "run")
    assert summary["learner_steps"] == 100 and summary["env_steps"] == 0
    for said in (
        json.loads((tmp_path / "run" / "run.json").read_text())["dataset"],
        summary["dataset"],
    ):
        assert (
            said["sha256"] == dataset.sha256
            and said["source"] == "made for a test"
            and said["versions"] == {"toys": "1"}
        )
        assert said["return_mean"] == dataset.return_mean
    assert read_run(tmp_path / "run") == run
    assert default_folder(run).name == "bc-toys-1"
    steps = [
        json.loads(line)["time/learner_steps"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {40, 80} <= set(steps) and steps == sorted(steps)


@pytest.mark.parametrize(
    "algorithm",
    ["bc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("awr", "rwr", "bail"))],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(algorithm, dataset, tmp_path):
    more = {
        "awr": " --algorithm.critic-updates 7 --algorithm.actor-updates 16",
        "bail": " --algorithm.envelope-steps 25",
        "rwr": " --algorithm.n-updates-per-iter 40",
    }.get(algorithm, "")
    run = run_of(dataset, algorithm, flags=FLAGS + more)
    train_local(run, tmp_path / "whole")

    class Killed(Exception):
        pass

    def strike(report):
        if report["time/learner_steps"] >= 50:
            raise Killed

    with pytest.raises(Killed):
        train_local(run, tmp_path / "cut", listeners=[strike])
    train_local(run, tmp_path / "cut", resume=True)
    whole, cut = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("whole", "cut")
    )
    assert whole.version == cut.version
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(values, cut.arrays[name], err_msg=name)


@pytest.mark.parametrize(("verb", "step"), [("learn", 17), ("learn", 60), ("score", 40)])
def test_a_run_that_is_told_to_stop_saves_and_resumes_bit_for_bit(
    verb, step, dataset, tmp_path, monkeypatch
):
    """Between two reports, where everything is due, and within an evaluation, which is made
    again."""
    run = run_of(dataset)
    train_local(run, tmp_path / "whole")
    do, told = getattr(LocalExecutor, verb), list[bool]()

    def doing(executor, *arguments):
        if not told and executor.learner.step + (arguments[0] if verb == "learn" else 0) >= step:
            told.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return do(executor, *arguments)

    monkeypatch.setattr(LocalExecutor, verb, doing)
    with pytest.raises(KeyboardInterrupt), stopping.heed_signals():
        train_local(run, tmp_path / "cut")
    at = -(-step // 10) * 10  # learner steps are taken ten at a time, up to the next report
    assert (
        read(
            complete_checkpoints(tmp_path / "cut" / "checkpoints")[-1], run.identity
        ).counters.learner_step
        == at
    )
    assert Weights.load(tmp_path / "cut" / "weights" / "last.safetensors").version == (0, at)
    train_local(run, tmp_path / "cut", resume=True)
    for name in ("last", "best"):
        one, two = (
            Weights.load(tmp_path / folder / "weights" / f"{name}.safetensors")
            for folder in ("whole", "cut")
        )
        assert one.version == two.version
        for leaf, values in one.arrays.items():
            np.testing.assert_array_equal(values, two.arrays[leaf], err_msg=leaf)
    reports = [
        [
            {k: v for k, v in json.loads(line).items() if not k.endswith(("_per_s", "_s", "_ms"))}
            for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in ("whole", "cut")
    ]
    assert reports[0] == reports[1]


def test_udrl_learns_from_a_dataset_too(dataset, tmp_path):
    summary = train_local(run_of(dataset, "udrl"), tmp_path / "run")
    assert summary["learner_steps"] == 100 and set(summary["command"]) == {
        "desired_return",
        "desired_horizon",
    }


def test_another_dataset_in_its_place_is_refused(dataset, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    run = configure("bc", str(folder), FLAGS.split())
    shutil.rmtree(folder)
    other = dataset_of(folder, count=20, seed=9)
    assert other.sha256 != dataset.sha256
    with pytest.raises(UserError, match="holds another dataset than this run began with"):
        train_local(run, tmp_path / "run")


def test_the_same_dataset_may_lie_elsewhere_at_a_resume(dataset, tmp_path):
    train_local(run_of(dataset, steps=40), tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(dataset.folder, moved)
    run = configure("bc", str(moved), [*FLAGS.split(), "--budget.learner-steps", "60"])
    assert train_local(run, tmp_path / "run", resume=True)["learner_steps"] == 60


COUNTED = ("evaluations.every", "saves.every", "saves.report_every")


def counted(run):
    return [
        getattr(getattr(run, owner), name) for owner, name in (path.split(".") for path in COUNTED)
    ]


def test_scores_saves_and_reports_are_shares_of_the_budget_that_the_run_has(dataset, tmp_path):
    assert counted(configure("bc", str(dataset.folder))) == [5_000, 5_000, 250]
    assert counted(configure("bc", str(dataset.folder), ["--budget.learner-steps", "300"])) == [
        60,
        60,
        3,
    ]
    assert counted(configure("bc", str(dataset.folder), ["--budget.learner-steps", "none"])) == [
        5_000,
        5_000,
        250,
    ]
    assert counted(
        configure(
            "bc", str(dataset.folder), ["--budget.learner-steps", "300", "--saves.every", "7"]
        )
    ) == [60, 7, 3]
    rooms = dataset_of(tmp_path / "rooms", "four-rooms", 5)
    assert counted(configure("tt", str(rooms.folder)))[1:] == [800, 40], "the preset's budget"
    begun = tmp_path / "run.json"
    begun.write_text(
        json.dumps(
            configure("bc", str(dataset.folder), ["--budget.learner-steps", "300"]).to_json()
        )
    )
    assert counted(
        configure(
            "bc", str(dataset.folder), ["--config", str(begun), "--budget.learner-steps", "500"]
        )
    ) == [60, 60, 3]


def test_a_short_run_leaves_checkpoints_and_metrics_on_its_way(dataset, tmp_path):
    class Killed(Exception):
        pass

    def strike(report):
        if report["time/learner_steps"] >= 70:
            raise Killed

    with pytest.raises(Killed):
        train_local(run_of(dataset, flags=SMALL), tmp_path / "run", listeners=[strike])
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")] and len(
        (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ) >= 70


def test_bfloat16_decides_what_is_learned_and_a_resume_keeps_it(dataset, tmp_path):
    network = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 4 --algorithm.target-return"
        " 1 --algorithm.warm-up-steps 1"
    )
    flags, last = f"{network} --evaluations.final-episodes 2", {}
    for precision in ("float32", "bf16"):
        train_local(
            run_of(dataset, "dt", 10, f"{flags} --machines.precision {precision}"),
            tmp_path / precision,
        )
        last[precision] = Weights.load(tmp_path / precision / "weights" / "last.safetensors").arrays
    assert any(
        not np.array_equal(values, last["bf16"][name]) for name, values in last["float32"].items()
    )
    with pytest.raises(
        UserError, match=r'holds another run \(machines.precision is "bf16", here "float32"\)'
    ):
        train_local(run_of(dataset, "dt", 10, flags), tmp_path / "bf16", resume=True)


@pytest.mark.parametrize("began", [COUNTED_BEFORE, ""])
def test_a_resume_with_more_budget_scores_saves_and_reports_as_the_run_began(
    began, dataset, tmp_path
):
    """Those that are named, and those of a run that began when they did not follow from the
    budget."""
    train(run_of(dataset, steps=40, flags=SMALL + began), tmp_path / "run", local=True)
    assert (
        train(run_of(dataset, steps=60, flags=SMALL), tmp_path / "run", resume=True, local=True)[
            "learner_steps"
        ]
        == 60
    )
    with pytest.raises(UserError, match="holds another run"):
        train(
            run_of(dataset, steps=80, flags=SMALL + " --saves.every 3"),
            tmp_path / "run",
            resume=True,
            local=True,
        )


def test_a_setting_that_is_typed_is_asked_for_though_it_equals_the_default(dataset, tmp_path):
    """Of 60 steps a save every 12 is the default; the run began with one every 8."""
    folder = tmp_path / "run"
    train(run_of(dataset, steps=40, flags=SMALL), folder, local=True)
    typed = json.loads((folder / "run.json").read_text())["typed"]
    assert "algorithm.hidden" in typed and "budget.learner_steps" in typed
    assert not {"saves.every", "seed"} & {*typed}
    run = run_of(dataset, steps=60, flags=SMALL + " --saves.every 12")
    assert run == run_of(dataset, steps=60, flags=SMALL), "it is the default"
    with pytest.raises(UserError, match=r"saves\.every is 8, here 12"):
        train(run, folder, resume=True, local=True)
    config = f" --config {folder / 'run.json'} --saves.every 8 --seed 1"
    begun = resumed_run(run_of(dataset, steps=60, flags=SMALL + config), folder)
    assert (begun.saves.every, begun.evaluations.every) == (8, 8)
    assert {"saves.every", "seed", *typed} == {*begun.typed}
    old = json.loads((folder / "run.json").read_text())
    del old["typed"]
    (folder / "run.json").write_text(json.dumps(old))
    assert resumed_run(run, folder).saves.every == 8, "an old folder leaves a guess"
    assert read_run(folder).typed is None


@pytest.mark.parametrize(
    ("algorithm", "target", "told"),
    [
        ("bc", "toy-vector", "bc learns from a dataset, but toy-vector is a task to play"),
        ("bc", "nowhere/at-all", "is not a dataset"),
        ("bc", "lunarlandr", "unknown task 'lunarlandr'"),
        ("bc", "no-such-set", "nor is there a folder no-such-set with a dataset"),
    ],
)
def test_what_cannot_be_learnt_from_is_told(algorithm, target, told):
    with pytest.raises(UserError, match=told):
        configure(algorithm, target)


def test_missing_episodes_are_told(dataset, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    run = configure("bc", str(folder), FLAGS.split())
    for shard in folder.glob("*.arrow"):
        shard.unlink()
    with pytest.raises(UserError, match="is damaged: it holds 0 episodes where its card says"):
        train_local(run, tmp_path / "run")


SHORT = [
    ("bail", [], 12_500, "--algorithm.envelope-steps", ""),
    ("bail", ["--algorithm.envelope-steps", "30"], 30, "--algorithm.envelope-steps", ""),
    ("awr", [], 200, "--algorithm.critic-updates", ""),
    (
        "brac",
        ["--algorithm.warm-start", "5"],
        50_005,
        "--algorithm.clone-steps and --algorithm.warm-start",
        "a clone of the data",
    ),
    ("bear", [], 20_000, "--algorithm.warm-start", "an imitation of the data"),
    ("cql", [], 40_000, "--algorithm.clone-steps", "a clone of the data"),
]


@pytest.mark.parametrize(("algorithm", "more", "steps", "lower", "policy"), SHORT)
def test_a_budget_that_ends_before_the_policy_learns_is_told(
    algorithm, more, steps, lower, policy, dataset
):
    """Refused where the policy would be untrained, a note where it would be something less."""
    flags = [*more, "--budget.learner-steps"]
    assert (
        premature_warning(configure(algorithm, str(dataset.folder), [*flags, str(steps + 1)]))
        is None
    )
    assert premature_warning(configure(algorithm, str(dataset.folder))) is None, (
        "the default budget is enough"
    )
    if policy:
        note = premature_warning(configure(algorithm, str(dataset.folder), [*flags, str(steps)]))
        assert (
            f"is {steps}, but the policy of {algorithm} learns from its critics only after learner"
            f" step {steps}: it will be {policy};" in note
        )
        assert note.endswith(f"give more, or lower {lower}")
    else:
        with pytest.raises(
            UserError,
            match=(
                f"is {steps}, but the policy of {algorithm} learns only after learner step {steps};"
                f" give more, or lower {lower}$"
            ),
        ):
            configure(algorithm, str(dataset.folder), [*flags, str(steps)])


def test_progressive_bail_has_no_budget_to_pass(dataset):
    run = configure(
        "bail",
        str(dataset.folder),
        ["--algorithm.progressive", "true", "--budget.learner-steps", "10"],
    )
    assert premature_warning(run) is None


RISING = [
    ("dt", ""),
    ("dt", "--algorithm.cosine-steps 400"),
    ("tt", "--algorithm.decay-steps 1000"),
    ("tt", "--algorithm.decay-steps 0"),
]


@pytest.mark.parametrize(("algorithm", "more"), RISING)
def test_a_learning_rate_that_rises_for_most_of_the_budget_is_told(algorithm, more, dataset):
    def note(budget: int, warm_up: int) -> str | None:
        flags = [
            *more.split(),
            "--budget.learner-steps",
            str(budget),
            "--algorithm.warm-up-steps",
            str(warm_up),
        ]
        return still_rising(configure(algorithm, str(dataset.folder), flags))

    assert note(100, 50) is None
    told = note(100, 200)
    assert (
        told is not None
        and "is 100, but" in told
        and "ends at 50% of --algorithm.learning-rate" in told
    )
    assert note(100, 60) is not None
    assert still_rising(configure("bc", str(dataset.folder))) is None
    assert still_rising(configure("dt", "hopper")) is None, "online there is no such budget"


def test_a_dataset_that_does_not_fit_into_memory_is_told(dataset):
    assert rotation_note(configure("bc", str(dataset.folder))) is None
    assert rotation_note(configure("dt", "hopper")) is None
    told = rotation_note(configure("bc", str(dataset.folder), ["--saves.flat-mib", "0"]))
    assert told is not None and "--saves.flat-mib is 0" in told and "in turns" in told


def test_turns_are_paced_by_the_budget(dataset):
    run = configure(
        "bc", str(dataset.folder), ["--saves.flat-mib", "0", "--budget.learner-steps", "200"]
    )
    (store,) = dataset_stores(run).values()
    assert isinstance(store, RotatingStore) and store._turn == turn_of(200, len(dataset.shards()))
    (store,) = dataset_stores(configure("bc", str(dataset.folder))).values()
    assert not isinstance(store, RotatingStore)


def test_the_door_refuses_or_notes_a_budget_that_ends_too_early(dataset, tmp_path, capsys):
    assert (
        door(
            main,
            [
                "bail",
                str(dataset.folder),
                "--local",
                "--budget.learner-steps",
                "100",
                "--folder",
                str(tmp_path / "bail"),
            ],
        )
        == 2
    )
    assert (
        "lower --algorithm.envelope-steps" in capsys.readouterr().err
        and not (tmp_path / "bail").exists()
    )
    folder = dataset_of(tmp_path / "toys", "toy-continuous", 20).folder
    tiny = (
        "--budget.learner-steps 4 --algorithm.hidden 8 --algorithm.batch-size 8"
        " --evaluations.episodes 2 --evaluations.final-episodes 2"
    )
    assert (
        door(
            main,
            ["brac", str(folder), "--local", "--folder", str(tmp_path / "brac"), *tiny.split()],
        )
        == 0
    )
    assert (
        "note: --budget.learner-steps is 4, but the policy of brac learns from its critics only"
        " after learner step 70000" in capsys.readouterr().err
    )


def test_a_dataset_that_does_not_fit_its_task_any_more_is_told(tmp_path):
    found = dataset_of(tmp_path / "toys")
    run = run_of(found)
    card = json.loads((found.folder / "dataset.json").read_text())
    card["signature"]["observations"][""] |= {"shape": [5], "low": None, "high": None}
    (found.folder / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(
        UserError,
        match=(
            r"toys does not fit its task .* as it is now: its observations are tensor \[5\] where"
        ),
    ):
        train_local(run, tmp_path / "run")
