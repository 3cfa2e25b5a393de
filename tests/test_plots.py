import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer

from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.pictures.base import PUBLISHED, SweepFlags, output_path
from bigdm_ray.pictures.beams import draw_beams, map_elements
from bigdm_ray.pictures.curves import draw_curves, lines_of, read_curve
from bigdm_ray.pictures.obedience import default_returns, draw_obedience, play_sweep
from bigdm_ray.pictures.prediction import deviations
from bigdm_ray.plots import main
from bigdm_ray.tokens.bins import Elements
from bigdm_ray.training.acting import command_of
from bigdm_ray.training.config import configure
from bigdm_ray.training.evaluation import bootstrap_interval, constant, play
from bigdm_ray.training.loaded import load
from bigdm_ray.training.loop import train_local

FLAGS = (
    "--seed 3 --budget.env-steps 1500 --algorithm.hidden 32 --algorithm.batch-size 64"
    " --algorithm.n-updates-per-iter 30 --algorithm.learning-rate 0.02 --algorithm.return-scale 0.1"
    " --algorithm.horizon-scale 0.1 --algorithm.warm-up-episodes 20 --algorithm.last-few 10"
    " --evaluations.every 500 --evaluations.episodes 5 --evaluations.final-episodes 5"
)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "run"
    train_local(configure("udrl", "toy-vector", FLAGS.split()), folder)
    return folder


def made_up(folder, points, seed=1, task="lunarlander", flags=()):
    """A run folder with these (steps, mean) evaluations, each mean's interval being +- 5."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps(configure("udrl", task, ["--seed", str(seed), *flags]).to_json())
    )
    reports = [{"time/env_steps": 10.0, "train/loss": 1.0}]
    for steps, mean in points:
        reports.append(
            {
                "time/env_steps": float(steps),
                "evaluation/return_mean": mean,
                "evaluation/return_low": mean - 5,
                "evaluation/return_high": mean + 5,
            }
        )
        reports.append({"time/env_steps": float(steps) + 1, "train/loss": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    return folder


def studied(folder, points, seed=1, algorithm="bc", name="lander-mixed", sha256="a" * 64):
    """A run folder on a dataset with these (learner step, mean) evaluations, in this order."""
    folder.mkdir(parents=True)
    run = {
        **configure("udrl", "lunarlander", ["--seed", str(seed)]).to_json(),
        "algorithm": {"name": algorithm},
        "dataset": {
            "folder": "gone",
            "name": name,
            "sha256": sha256,
            "source": "made up",
            "episodes": 3,
            "steps": 30,
            "return_mean": 1.0,
        },
    }
    (folder / "run.json").write_text(json.dumps(run))
    reports = [
        {
            "time/env_steps": 0.0,
            "time/learner_steps": float(step),
            "evaluation/return_mean": mean,
            "evaluation/return_low": mean - 5,
            "evaluation/return_high": mean + 5,
        }
        for step, mean in points
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    return folder


def ended(folder, steps, mean):
    """The folder of a run that ended: this final score, +- 1, at these steps of both clocks."""
    score = {"return_mean": mean, "return_low": mean - 1, "return_high": mean + 1}
    (folder / "summary.json").write_text(json.dumps({**steps, **score}))
    return folder


def panels(*folders):
    """The lines by (task, what the clock counts)."""
    return lines_of([read_curve(folder) for folder in folders])


def lines(*folders):
    """The lines of runs that play, by task."""
    return {task: here for (task, clock), here in panels(*folders).items() if clock == "env_steps"}


def one_error(capsys, *words):
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1, said
    for word in words:
        assert word in said.err


# --- learning curves


def test_one_seed_carries_the_interval_of_its_episodes(tmp_path):
    (line,) = lines(made_up(tmp_path / "a", [(1000, -50.0), (2000, 10.0)]))["lunarlander"]
    assert line.steps.tolist() == [1000, 2000]
    assert (
        line.mean.tolist() == [-50, 10]
        and line.low.tolist() == [-55, 5]
        and line.high.tolist() == [-45, 15]
    )
    assert line.label == "udrl, preset default, seed 1"


def test_seeds_are_put_on_common_steps_and_averaged(tmp_path):
    """Lines a + b * steps stay lines, so the mean at any step is known exactly."""
    slopes = {1: (0.0, 1e-2), 2: (30.0, 2e-2), 3: (-60.0, 3e-2)}
    steps = {1: [1000, 2000, 3000, 4000], 2: [1300, 2100, 3700], 3: [900, 4500]}
    folders = [
        made_up(tmp_path / str(s), [(x, a + b * x) for x in steps[s]], s)
        for s, (a, b) in slopes.items()
    ]
    (line,) = lines(*folders)["lunarlander"]
    np.testing.assert_allclose(line.steps, np.linspace(1300, 3700, 4))
    values = np.array([[a + b * x for x in line.steps] for a, b in slopes.values()])
    np.testing.assert_allclose(line.mean, values.mean(0))
    low, high = bootstrap_interval(values)
    np.testing.assert_allclose([line.low, line.high], [low, high])
    assert (line.low < line.mean).all() and (line.mean < line.high).all()
    assert line.label.endswith("3 seeds")


def test_only_runs_that_differ_in_their_seed_alone_are_one_line(tmp_path):
    points = [(1000, 1.0), (2000, 2.0)]
    folders = [
        made_up(tmp_path / "a", points, 1),
        made_up(tmp_path / "b", points, 2),
        made_up(tmp_path / "c", points, 1, flags=["--algorithm.learning-rate", "0.0005"]),
        made_up(tmp_path / "d", points, 1, flags=["--preset", "paper"]),
        made_up(tmp_path / "e", points, 1, task="takecover"),
        made_up(tmp_path / "f", points, 3, flags=["--evaluations.mode", "mean"]),
        made_up(tmp_path / "g", points, 4, flags=["--budget.env-steps", "5000"]),
    ]
    found = lines(*folders)
    assert list(found) == ["lunarlander", "takecover"]
    assert [[curve.run.seed for curve in line.curves] for line in found["lunarlander"]] == [
        [1, 2, 4],
        [1],
        [1],
        [3],
    ]
    labels = [line.label for line in found["lunarlander"]]
    assert labels[0].endswith("3 seeds") and "learning_rate 0.001" in labels[0]
    assert "learning_rate 0.0005" in labels[1] and "hidden" not in labels[1]
    assert labels[2] == "udrl, preset paper, seed 1"
    assert "mode mean" in labels[3]


def test_seeds_without_common_steps_are_refused_and_almost_common_ones_are_not(tmp_path):
    early, late = (
        made_up(tmp_path / "a", [(1000, 1.0)], 1),
        made_up(tmp_path / "b", [(1050, 3.0)], 2),
    )
    (line,) = lines(early, late)["lunarlander"]
    assert line.steps.tolist() == [1000] and line.mean.tolist() == [2]
    with pytest.raises(UserError, match="draw them apart"):
        lines(early, made_up(tmp_path / "c", [(9000, 3.0), (9500, 3.0)], 2))


def test_the_papers_points_are_drawn_as_far_as_the_run_went(tmp_path):
    figure = draw_curves(
        panels(
            made_up(tmp_path / "a", [(1e6, 0.0), (3e6, 80.0)]),
            made_up(tmp_path / "b", [(1e6, 0.0), (3e6, 8.0)], task="toy-vector"),
        )
    )
    lander, toy = figure.axes
    published = {line.get_label(): line for line in lander.lines}[
        "UDRL, Srivastava et al. 2019 (digitised)"
    ]
    assert published.get_xydata().tolist() == [[1e6, 1.5], [2e6, 50.0], [3e6, 77.0]]
    assert published.get_linestyle() == "None"
    assert [line.get_label() for line in toy.lines] == ["udrl, preset default, seed 1"]
    assert (lander.get_title(), toy.get_title()) == ("lunarlander", "toy-vector")


def test_some_published_numbers():
    assert [value for _, value in PUBLISHED["lunarlander-sparse"].curve] == [39, 91, 116, 143, 162]
    assert (
        dict(PUBLISHED["lunarlander"].curve)[10e6] == 141
        and dict(PUBLISHED["takecover"].curve)[10e6] == 546
    )
    assert dict(PUBLISHED["lunarlander"].obedience)[300] == 200


def test_the_door_writes_the_picture_and_its_numbers(tmp_path, capsys):
    a, b = (
        made_up(tmp_path / "a", [(1000, 1.0), (2000, 3.0)], 1),
        made_up(tmp_path / "b", [(1000, 3.0), (2000, 5.0)], 2),
    )
    assert door(main, [str(a), str(b), str(a)]) == 0
    assert (a / "plots" / "learning_curve.png").read_bytes().startswith(PNG)
    (line,) = json.loads((a / "plots" / "learning_curve.json").read_text())["tasks"]["lunarlander"]
    assert line["env_steps"] == [1000, 2000] and line["return_mean"] == [2, 4]
    assert line["seeds"] == [1, 2] and line["folders"] == [str(a), str(b)]
    assert not (b / "plots").exists()
    assert "2 seeds: 4.0 (3.0 to 5.0) at 2,000 environment steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "file"),
    [
        ("here", "here/learning_curve.png"),
        ("deep/er/mine.png", "deep/er/mine.png"),
        ("mine.svg", "mine.svg"),
        ("v1.2", "v1.2/learning_curve.png"),
    ],
)
def test_out_is_a_file_or_a_folder(tmp_path, out, file):
    folder = made_up(tmp_path / "a", [(1000, 1.0)])
    (tmp_path / "v1.2").mkdir()
    assert door(main, [str(folder), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / file).stat().st_size > 5000
    assert (tmp_path / file).with_suffix(".json").is_file()
    assert not (folder / "plots").exists()


def test_out_with_another_ending_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.jpgg"):
        output_path(tmp_path / "a.jpgg", tmp_path, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        output_path(tmp_path / "file" / "below", tmp_path, "x")


def test_a_line_that_is_still_being_written_is_left_out(tmp_path, capsys):
    folder = made_up(tmp_path / "a", [(1000, 1.0), (2000, 2.0)])
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"time/env_steps": 3000.0, "evaluation/ret')
    assert read_curve(folder).steps.tolist() == [1000, 2000]
    metrics.write_text("{" + whole)
    assert door(main, [str(folder)]) == 2
    one_error(capsys, "line 1 of", "is not JSON")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("garbage", "line 1 of"),
        ("\0\udcff\n", "is not JSON"),
        ('{"a": 1}\n[3]\n', "line 2 of"),
        ("3\n", "is not a report (3)"),
        ("{}\n\n", "line 2 of"),
    ],
)
def test_damage_of_the_metrics_is_named(content, told, tmp_path, capsys):
    folder = made_up(tmp_path / "a", [])
    (folder / "metrics.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    assert door(main, [str(folder)]) == 2
    one_error(capsys, told, "metrics.jsonl is not")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluation/return_mean", "12"),
        ("evaluation/return_low", None),
        ("evaluation/return_high", float("nan")),
        ("time/env_steps", True),
        ("time/env_steps", "x" * 100_000),
        ("time/env_steps", [[]]),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])
def test_a_number_that_is_none_is_named(file, name, value, tmp_path, capsys):
    folder = made_up(tmp_path / "a", [(1000, 1.0)])
    ended(folder, {"env_steps": 2000}, 1.0)
    name = name if file == "metrics.jsonl" else name.partition("/")[2]
    lines = (folder / file).read_text().splitlines() if file == "metrics.jsonl" else []
    last = lines[1] if lines else (folder / file).read_text()
    told = json.dumps(json.loads(last) | {name: value})
    (folder / file).write_text("\n".join([*lines, told]) + "\n")
    assert door(main, [str(folder)]) == 2
    one_error(capsys, f"{file} holds no score of this project", name, "a number is expected")


EVALUATIONS = [(100, 268.0), (200, 435.0), (300, 487.4), (400, 366.0), (500, 296.0)]


def test_a_run_on_a_dataset_goes_by_its_learner_steps(tmp_path, capsys):
    """Its environment steps are all 0; sorted by them and then by return, the best came last."""
    folder = ended(
        studied(tmp_path / "a", EVALUATIONS), {"env_steps": 0, "learner_steps": 550}, 328.5
    )
    (line,) = panels(folder)[("lunarlander", "learner_steps")]
    assert line.steps.tolist() == [100, 200, 300, 400, 500, 550]
    assert line.mean.tolist() == [268, 435, 487.4, 366, 296, 328.5]
    assert (line.low[-1], line.high[-1]) == (327.5, 329.5)
    (axes,) = draw_curves(panels(folder)).axes
    assert axes.get_xlabel() == "learner steps"
    assert [drawn.get_xydata().tolist() for drawn in axes.lines] == [
        np.stack([line.steps, line.mean], 1).tolist()
    ], "one line, and no published point, which is of environment steps"
    assert door(main, [str(folder)]) == 0
    said = capsys.readouterr().out
    assert "bc on lander-mixed, preset default, seed 1: 328.5 (327.5 to 329.5)" in said
    assert said.rstrip().endswith("at 550 learner steps")
    (told,) = json.loads((folder / "plots" / "learning_curve.json").read_text())["tasks"][
        "lunarlander"
    ]
    assert told["learner_steps"][-1] == 550 and "env_steps" not in told


def test_points_go_by_the_clock_in_whatever_order_they_were_written(tmp_path):
    """Answers of an asynchronous run may come late; returns say nothing of the order."""
    points = [(3000, 1.0), (1000, 9.0), (2000, 5.0)]
    (line,) = lines(made_up(tmp_path / "a", points))["lunarlander"]
    assert line.steps.tolist() == [1000, 2000, 3000] and line.mean.tolist() == [9, 5, 1]
    curve = read_curve(studied(tmp_path / "b", points))
    assert curve.steps.tolist() == [1000, 2000, 3000] and curve.mean.tolist() == [9, 5, 1]


def test_a_final_evaluation_at_the_step_of_another_takes_its_place(tmp_path):
    steps = {"env_steps": 2000, "learner_steps": 500}
    played = ended(made_up(tmp_path / "a", [(1000, 1.0), (2000, 2.0)]), steps, 4.0)
    assert read_curve(played).steps.tolist() == [1000, 2000]
    assert read_curve(played).mean.tolist() == [1, 4]
    assert read_curve(ended(studied(tmp_path / "b", EVALUATIONS), steps, 4.0)).mean[-1] == 4


def test_runs_of_two_clocks_share_no_panel_and_other_data_is_another_line(tmp_path):
    found = panels(
        made_up(tmp_path / "a", [(1e6, 1.0)]),
        studied(tmp_path / "b", EVALUATIONS, 1),
        studied(tmp_path / "c", EVALUATIONS, 2),
        studied(tmp_path / "d", EVALUATIONS, 3, name="lander-expert"),
        studied(tmp_path / "e", EVALUATIONS, 4, sha256="b" * 64),
    )
    assert [(key, len(here)) for key, here in found.items()] == [
        (("lunarlander", "env_steps"), 1),
        (("lunarlander", "learner_steps"), 3),
    ]
    assert [line.label for line in found[("lunarlander", "learner_steps")]] == [
        "bc on lander-mixed, preset default, data aaaaaaaa, 2 seeds",
        "bc on lander-expert, preset default, seed 3",
        "bc on lander-mixed, preset default, data bbbbbbbb, seed 4",
    ]
    labels = [axes.get_xlabel() for axes in draw_curves(found).axes]
    assert labels == ["environment steps", "learner steps"]


def test_a_run_too_short_for_an_evaluation_is_the_point_of_its_final_score(tmp_path, capsys):
    short = ended(made_up(tmp_path / "short", []), {"env_steps": 1500, "learner_steps": 9}, 7.0)
    assert door(main, [str(short)]) == 0
    assert (
        "udrl, preset default, seed 1: 7.0 (6.0 to 8.0) at 1,500 environment steps"
        in capsys.readouterr().out
    )
    assert (short / "plots" / "learning_curve.png").read_bytes().startswith(PNG)
    for damage in ('{"env_steps": 1500}', '{"env_steps": 1500, "return_mean": "seven"}'):
        (short / "summary.json").write_text(damage)
        assert door(main, [str(short)]) == 2
        one_error(capsys, "summary.json holds no score")


def test_runs_without_an_evaluation(tmp_path, capsys):
    young, old = made_up(tmp_path / "young", []), made_up(tmp_path / "old", [(1000, 1.0)])
    assert door(main, [str(young)]) == 2
    one_error(capsys, "none of these runs has been evaluated")
    (young / "metrics.jsonl").unlink()
    assert door(main, [str(young), str(old)]) == 0
    assert f"note: {young} has not been evaluated yet" in capsys.readouterr().err
    assert (young / "plots" / "learning_curve.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["there is no run in nowhere"]),
        ([], ["FOLDER"]),
        (["nowhere", "--obedience"], ["there is no run in nowhere"]),
        (["nowhere", "--returns", "1,2"], ["--returns belongs to other pictures", "--obedience"]),
        (["nowhere", "--obedience", "--returns", "1,x"], ["--returns is 'x'", "a number"]),
        (["nowhere", "--obedience", "--returns", "1,nan"], ["--returns is nan", "finite"]),
        (["nowhere", "--obedience", "--episodes", "0"], ["--episodes is 0"]),
        (["nowhere", "--obediense"], ["'--obediense'", "'--obedience'"]),
    ],
)
def test_a_users_mistake_is_one_sentence(capsys, arguments, words):
    assert door(main, arguments) == 2
    one_error(capsys, *words)


def drawn_and_reported(folder, out, task):
    """The only line that is drawn of a run, and what its metrics and its summary say."""
    assert door(main, [str(folder), "--out", str(out)]) == 0
    (line,) = json.loads((out / "learning_curve.json").read_text())["tasks"][task]
    reports = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = [report for report in reports if "evaluation/return_mean" in report]
    return line, scored, json.loads((folder / "summary.json").read_text())


def test_a_real_run_that_plays_has_a_curve(trained, tmp_path):
    line, scored, summary = drawn_and_reported(trained, tmp_path, "toy-vector")
    points = {report["time/env_steps"]: report["evaluation/return_mean"] for report in scored}
    points[summary["env_steps"]] = summary["return_mean"]
    assert len(points) >= 3 and line["env_steps"] == sorted(points)
    assert line["return_mean"] == [points[steps] for steps in sorted(points)]


def test_a_real_run_on_a_dataset_has_a_curve(tmp_path, capsys):
    from making import dataset_of

    dataset_of(tmp_path / "data", "toy-vector", 20)
    flags = "--algorithm.hidden 16 --budget.learner-steps 25 --evaluations.every 10"
    flags += " --evaluations.episodes 3 --evaluations.final-episodes 3"
    train_local(configure("bc", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    line, scored, summary = drawn_and_reported(tmp_path / "run", tmp_path, "toy-vector")
    assert line["learner_steps"] == [10, 20, 25] and len(scored) == 2
    assert line["return_mean"] == [
        *(report["evaluation/return_mean"] for report in scored),
        summary["return_mean"],
    ]
    assert f"{summary['return_mean']:,.1f}" in capsys.readouterr().out


# --- obedience


def test_a_sweep_asks_each_return_of_its_own_episodes(trained):
    loaded = load(trained)
    found = play_sweep(loaded, SweepFlags(returns=(9.0, -2.0, 5.0), episodes=6))
    asked = [-2.0, 5.0, 9.0]
    assert [p["desired_return"] for p in found["points"]] == asked
    commands = [command_of(loaded, value) for value in asked]
    columns = {
        name: np.concatenate([constant(command, 6)[name] for command in commands])
        for name in commands[0]
    }
    expected = play(loaded.policy("sample"), loaded.task, columns, 18, 3, "obedience", 0)
    for k, p in enumerate(found["points"]):
        assert p["returns"] == [
            episode.total_return for episode in expected.episodes[6 * k : 6 * k + 6]
        ]
        assert p["return_mean"] == pytest.approx(np.mean(p["returns"])) and p[
            "return_std"
        ] == pytest.approx(np.std(p["returns"]))
        assert p["desired_horizon"] == loaded.command["desired_horizon"]


def test_a_trained_policy_obeys(trained):
    low, high = play_sweep(load(trained), SweepFlags(returns=(2.0, 9.0), episodes=40))["points"]
    assert high["return_mean"] > low["return_mean"] + 1


def test_discarded_episodes_belong_to_no_return(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    settings = json.loads((folder / "run.json").read_text()) | {"task": "toy-broken"}
    (folder / "run.json").write_text(json.dumps(settings))
    found = play_sweep(load(folder), SweepFlags(returns=(1.0, 2.0), episodes=20))
    counts = [p["return_episodes"] for p in found["points"]]
    assert all(0 < count < 20 for count in counts)


def test_the_obedience_picture(trained, tmp_path, capsys):
    assert (
        door(
            main,
            [
                str(trained),
                "--obedience",
                "--returns",
                "-1,4,8",
                "--episodes",
                "5",
                "--out",
                str(tmp_path),
            ],
        )
        == 0
    )
    assert (tmp_path / "obedience.png").read_bytes().startswith(PNG)
    (found,) = json.loads((tmp_path / "obedience.json").read_text())["sweeps"]
    assert [p["desired_return"] for p in found["points"]] == [-1, 4, 8]
    assert f"asked 8.0, obtained {found['points'][2]['return_mean']:.1f}" in capsys.readouterr().out
    (axes,) = draw_obedience([found]).axes
    (bars,) = [drawn for drawn in axes.containers if isinstance(drawn, ErrorbarContainer)]
    assert bars.lines[0].get_ydata().tolist() == [p["return_mean"] for p in found["points"]]
    diagonal = next(line for line in axes.lines if line.get_label() == "obtained = asked")
    assert diagonal.get_xydata().tolist() == [[-1, -1], [8, 8]]


def test_default_returns_go_from_low_to_high(trained, tmp_path):
    loaded = load(trained)
    returns = default_returns(loaded)
    assert (returns[0], returns[-1], len(returns)) == (3.3, 12.0, 9) and list(returns) == sorted(
        returns
    )
    assert len(play_sweep(loaded, SweepFlags(episodes=1))["points"]) == 9


def test_default_returns_of_another_task_come_from_its_metrics(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    loaded = dataclasses.replace(
        load(folder), tasks={"toy-vector": find_task("gymnasium:CartPole-v1")}
    )
    (folder / "metrics.jsonl").write_text(
        '{"play/return_mean": 20.0}\n{"play/return_mean": 60.0}\n{"evaluation/return_max": 180.0}\n'
    )
    assert default_returns(loaded) == tuple(np.linspace(20, 180, 9))
    (folder / "metrics.jsonl").write_text('{"play/return_mean": 20.0}\n')
    with pytest.raises(UserError, match="give --returns"):
        default_returns(loaded)


def test_the_papers_tasks_are_asked_what_the_paper_asked():
    loaded = types.SimpleNamespace(task=find_task("lunarlander"))
    assert set(dict(PUBLISHED["lunarlander"].obedience)) <= set(default_returns(loaded))


# --- attention


def test_the_attention_picture(tmp_path, capsys):
    from making import dataset_of

    dataset_of(tmp_path / "data", "toy-continuous", 20)
    flags = (
        "--algorithm.width 16 --algorithm.layers 2 --algorithm.context 5 --budget.learner-steps 3"
        " --evaluations.episodes 1 --evaluations.final-episodes 1"
    )
    train_local(configure("dt", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    assert (
        main(
            [
                str(tmp_path / "run"),
                "--attention",
                "--episodes",
                "3",
                "--out",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    (here,) = json.loads((tmp_path / "a.json").read_text())["looks"]
    shares = np.array(here["attention"])
    assert shares.shape == (5, 5) and len(here["rewards"]) == 5
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    assert (shares[np.triu_indices(5, 1)] == 0).all() and (shares[np.tril_indices(5)] > 0).all()
    assert (
        main(
            [
                str(tmp_path / "run"),
                "--obedience",
                "--returns",
                "1,5",
                "--episodes",
                "2",
                "--out",
                str(tmp_path / "o.png"),
            ]
        )
        == 0
    )
    (one,) = json.loads((tmp_path / "o.json").read_text())["sweeps"]
    returns = Dataset.open(tmp_path / "data").store().table.returns
    assert one["data_best"] == returns.max()
    assert (
        main(
            [
                str(tmp_path / "run"),
                "--obedience",
                "--episodes",
                "1",
                "--out",
                str(tmp_path / "d.png"),
            ]
        )
        == 0
    )
    (one,) = json.loads((tmp_path / "d.json").read_text())["sweeps"]
    asked = [point["desired_return"] for point in one["points"]]
    # of three figures
    np.testing.assert_allclose([asked[0], asked[-1]], [returns.min(), returns.max()], rtol=0.01)
    with pytest.raises(UserError, match="asked for one return, but --returns has 2"):
        main([str(tmp_path / "run"), "--attention", "--returns", "0,1"])


def looked(tmp_path, flags):
    """The numbers of the picture of what a small `dt`, trained with these flags, looks at."""
    from making import dataset_of

    dataset_of(tmp_path / "data", "toy-continuous", 5)
    flags += (
        " --algorithm.width 16 --algorithm.layers 1 --algorithm.context 5 --budget.learner-steps 3"
        " --evaluations.final-episodes 1"
    )
    train_local(configure("dt", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    assert (
        main(
            [
                str(tmp_path / "run"),
                "--attention",
                "--episodes",
                "2",
                "--out",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )
    (here,) = json.loads((tmp_path / "a.json").read_text())["looks"]
    return here


def test_attention_goes_as_far_back_as_the_policy_looks(tmp_path):
    here = looked(tmp_path, "--algorithm.acting-context 2 --algorithm.frame-stack 2")
    assert np.array(here["attention"]).shape == (2, 2) and here["predicted"] == []


def test_attention_of_a_critic_shows_what_it_predicts(tmp_path):
    here = looked(tmp_path, "--algorithm.critic true")
    assert len(here["predicted"]) == 5 and np.isfinite(here["predicted"]).all()
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_only_a_transformer_has_attention(trained, capsys):
    assert door(main, [str(trained), "--attention"]) == 2
    one_error(capsys, "no attention", "a dt run is expected")
    assert door(main, [str(trained), "--attention", "--obedience"]) == 2
    one_error(capsys, "two pictures")


# --- prediction


def stretches_of(store, starts, path):
    """How far the states of each stretch are from the one that it began at: `[starts, 100, d]`."""
    seen = [
        store.episode(position).observations[path][begin : begin + 101]
        for position, begin in starts
    ]
    return np.array([states[1:] - states[0] for states in seen])


def test_deviations_are_those_of_all_rows_however_they_come_in_parts():
    rows = 1e4 + np.random.default_rng(0).normal(size=(300, 3)) * [1.0, 1e-2, 0.0]
    parts = torch.from_numpy(rows).split([1, 199, 100])
    np.testing.assert_allclose(deviations(parts), rows.std(0), rtol=1e-6, atol=1e-12)
    assert deviations(parts)[2] == 0


@pytest.mark.slow
def test_the_prediction_picture(tmp_path, capsys):
    from making import dataset_of

    dataset_of(tmp_path / "data", "four-rooms", 20)
    flags = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.heads 2 --algorithm.window 3"
        " --algorithm.context 2 --budget.learner-steps 3 "
    )
    flags += (
        "--algorithm.bins 12 --algorithm.goal last --algorithm.goal-steps 0 --evaluations.mode mean"
        " --evaluations.episodes 1 --evaluations.final-episodes 1"
    )
    train_local(configure("tt", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    assert (
        main(
            [
                str(tmp_path / "run"),
                "--prediction",
                "--episodes",
                "3",
                "--one-step",
                "100",
                "--out",
                str(tmp_path / "p.png"),
            ]
        )
        == 0
    )
    assert (tmp_path / "p.png").read_bytes().startswith(PNG) and "after 1 and 100 steps" in (
        said := capsys.readouterr().out
    )
    assert "one-step model" in said and "nothing moves" in said
    (here,) = json.loads((tmp_path / "p.json").read_text())["predictions"]
    store = Dataset.open(tmp_path / "data").store()
    position, begin = here["starts"][0]
    seen = store.episode(position).observations["position"]
    assert len(here["starts"]) == 3 and here["elements"] == [0, 1], (
        "the goal is no part of the state"
    )
    np.testing.assert_array_equal(np.array(here["real"]).T, seen[begin + 1 : begin + 101])
    assert np.shape(here["predicted"]) == (2, 100) and np.shape(here["one_step_predicted"]) == (
        2,
        100,
    )
    assert (
        np.shape(here["error"])
        == np.shape(here["one_step_error"])
        == np.shape(here["still"])
        == (100,)
    )
    apart, spread = (
        stretches_of(store, here["starts"], "position"),
        np.concatenate([store.episode(i).observations["position"] for i in range(20)]).std(0),
    )
    np.testing.assert_allclose(
        here["still"], np.sqrt(((apart / spread) ** 2).mean((0, 2))), rtol=1e-4
    )
    assert here["one_step_error"][0] < 0.5 * here["still"][0], (
        "it has learned to add a displacement to a position"
    )
    assert (
        main(
            [
                str(tmp_path / "run"),
                "--prediction",
                "--episodes",
                "3",
                "--one-step",
                "0",
                "--out",
                str(tmp_path / "q.png"),
            ]
        )
        == 0
    )
    (without,) = json.loads((tmp_path / "q.json").read_text())["predictions"]
    assert (
        without["one_step_error"] is None
        and without["error"] == here["error"]
        and "one-step" not in capsys.readouterr().out
    )
    shutil.rmtree(tmp_path / "data")
    assert door(main, [str(tmp_path / "run"), "--prediction"]) == 2
    one_error(capsys, "does not lie at")


def test_only_a_model_of_trajectories_predicts(trained, capsys):
    assert door(main, [str(trained), "--prediction"]) == 2
    one_error(capsys, "predicts no states", "a tt run is expected")


# --- beams


def planner_of_rooms(tmp_path, goal):
    """A folder `run` of a model of four rooms that has learned next to nothing."""
    from making import dataset_of

    dataset_of(tmp_path / "data", "four-rooms", 8)
    flags = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.heads 2 --algorithm.window 3"
        " --algorithm.context 2 --budget.learner-steps 2 --algorithm.bins 12 "
    )
    flags += (
        f"{goal} --algorithm.objective reward --algorithm.horizon 4 --algorithm.beams 6"
        " --evaluations.mode mean --evaluations.final-episodes 1"
    )
    train_local(configure("tt", str(tmp_path / "data"), flags.split()), tmp_path / "run")


@pytest.mark.slow
def test_the_beams_picture(tmp_path, capsys):
    planner_of_rooms(tmp_path, "--algorithm.goal later")
    assert (
        main([str(tmp_path / "run"), "--beams", "--seed", "5", "--out", str(tmp_path / "b.png")])
        == 0
    )
    assert (tmp_path / "b.png").read_bytes().startswith(
        PNG
    ) and "6 beams" in capsys.readouterr().out
    (here,) = json.loads((tmp_path / "b.json").read_text())["fans"]
    path = np.array(here["path"])
    assert [plan["step"] for plan in here["plans"]] == [k * (len(path) - 1) // 3 for k in range(3)]
    for plan in here["plans"]:
        states = np.array(plan["states"], np.float64)
        assert states.shape == (6, 4, 2) and plan["scores"] == sorted(plan["scores"], reverse=True)
        assert (np.abs(states[:, 0] - path[plan["step"]]) <= 1 / 12 + 1e-6).all(), (
            "every beam begins at the state, to half a bin"
        )
    labels = {
        "reward": "rewards and value",
        "likelihood": "log-probability, nats",
        "goal": "discount to the power of the steps to the goal",
    }
    for objective, label in labels.items():
        bars = [
            axes
            for axes in draw_beams([here | {"objective": objective}]).axes
            if not axes.get_title()
        ]
        assert [axes.get_ylabel() for axes in bars] == [label] * 3
    panels = [axes for axes in draw_beams([here]).axes if axes.get_title()]
    assert len(panels) == 3 and all(len(panel.lines) == 7 + 4 for panel in panels), (
        "seven lines of the map; episode, plan, state and goal"
    )
    assert len(panels[0].collections[0].get_segments()) == 6
    assert door(main, [str(tmp_path / "run"), "--beams", "--axes", "0,2"]) == 2
    one_error(capsys, "--axes is 0,2", "elements 0 to 1")
    assert door(main, [str(tmp_path / "run"), "--prediction", "--axes", "1,0"]) == 2
    one_error(capsys, "--axes belongs to other pictures", "--beams")


@pytest.mark.slow
def test_beams_of_a_model_that_is_told_no_goal_are_drawn_where_the_point_is(tmp_path, capsys):
    """Its state begins with the leaf `goal`, which stays where it is, and has the position
    behind."""
    planner_of_rooms(tmp_path, "--algorithm.goal none --algorithm.goal-steps 0")
    loaded = load(tmp_path / "run")
    (episode,) = play(loaded.policy("sample"), loaded.task, {}, 1, 5, "beams", 0).episodes
    found = []
    for flags in ([], ["--axes", "2,3"], ["--axes", "0,1"], ["--axes", "3,2"]):
        assert (
            main(
                [
                    str(tmp_path / "run"),
                    "--beams",
                    "--seed",
                    "5",
                    "--out",
                    str(tmp_path / "b.png"),
                    *flags,
                ]
            )
            == 0
        )
        found += json.loads((tmp_path / "b.json").read_text())["fans"]
    here, same, goal, turned = found
    assert here == same and here["axes"] == [2, 3] and here["goal"] is None
    np.testing.assert_array_equal(here["path"], episode.observations["position"])
    np.testing.assert_array_equal(goal["path"], episode.observations["goal"])
    np.testing.assert_array_equal(turned["path"], episode.observations["position"][:, ::-1])
    for plan in here["plans"]:
        starts = np.array(plan["states"], np.float64)[:, 0]
        assert (
            np.abs(starts - episode.observations["position"][plan["step"]]) <= 1 / 12 + 1e-6
        ).all(), "every beam begins at the point, to half a bin"
    for numbers, walls in ((here, 7), (goal, 0), (turned, 0)):
        panels = [axes for axes in draw_beams([numbers]).axes if axes.get_title()]
        assert len(panels) == 3 and all(len(panel.lines) == walls + 3 for panel in panels), (
            "episode, plan and state beside the walls"
        )


def test_a_map_is_of_the_leaf_that_the_task_says():
    rooms, plain = find_task("four-rooms"), find_task("cartpole")
    leaves = rooms.signature().observations
    assert map_elements(rooms, Elements(leaves)) == [2, 3] and map_elements(
        rooms, Elements({"position": leaves["position"]})
    ) == [0, 1]
    assert map_elements(rooms, Elements({"goal": leaves["goal"]})) == [], "a state without the leaf"
    assert map_elements(rooms, Elements(leaves, first=3)) == [], "a state with half of it"
    assert map_elements(plain, Elements(plain.signature().observations)) == []


def test_only_a_search_has_beams(trained, capsys):
    assert door(main, [str(trained), "--beams"]) == 2
    one_error(capsys, "searches no beams", "a tt run is expected")
