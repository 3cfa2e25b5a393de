import contextlib
import dataclasses
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from bigdm_ray.algorithms.base import algorithms
from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed, UserError, install
from bigdm_ray.evaluate import main, report_table, score_run
from bigdm_ray.films import BOLD, FAINT, add_caption, draw_lines, film, record_video
from bigdm_ray.scoring import EvaluateFlags
from bigdm_ray.training.acting import command_of, run_as
from bigdm_ray.training.config import configure, run_from_json
from bigdm_ray.training.evaluation import evaluate, evaluate_in_parts
from bigdm_ray.training.loaded import load
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout import _Rows
from bigdm_ray.training.run_folder import write_json

FLAGS = (
    "--seed 3 --budget.env-steps 600 --algorithm.hidden 16 --algorithm.batch-size 32"
    " --algorithm.n-updates-per-iter 5 --algorithm.episodes-per-iteration 20"
    " --algorithm.warm-up-episodes 20 --evaluations.every 300 --evaluations.episodes 5"
    " --evaluations.final-episodes 5"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    train_local(configure("udrl", "toy-vector", FLAGS.split()), folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def written(folder):
    return json.loads((folder / "evaluation.json").read_text())


def one_error(capsys, *words):
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err
    return said


def test_scores_are_those_of_the_evaluation_with_the_runs_command(folder, capsys):
    assert door(main, [str(folder), "--episodes", "7"]) == 0
    report, printed = written(folder), capsys.readouterr().out
    loaded = load(folder)
    expected = evaluate(loaded.policy("sample"), loaded.task, loaded.command, 7, 3, "evaluate", 0)
    assert report["returns"] == expected.returns.tolist()
    assert report["lengths"] == expected.lengths.tolist()
    assert report["return_mean"] == pytest.approx(np.mean(expected.returns))
    assert report["command"] == Weights.load(folder / "weights" / "last.safetensors").command
    assert report["version"] == list(loaded.version) and report["weights"] == "last"
    assert report["versions"]["numpy"] == np.__version__
    assert report["device"] == "cpu" and report["rows"] == 7 and not report["partial"]
    assert 0 < report["act_p50_ms"] <= report["act_p99_ms"] and 1 <= report["acted_together"] <= 7
    assert (
        f"latency p50, p99  {report['act_p50_ms']:.3g}, {report['act_p99_ms']:.3g} ms an action"
        in printed
    )
    for name, value in (
        ("return mean", report["return_mean"]),
        ("return std", report["return_std"]),
    ):
        assert any(
            line.split() == [*name.split(), f"{value:,.2f}"] for line in printed.splitlines()
        )


def test_parts_are_rollouts_of_their_own(folder):
    """So it does not matter who plays them; what a report of several parts says is the sum of
    them."""
    loaded = load(folder)
    report = score_run(loaded, EvaluateFlags(episodes=8, rows=3))
    parts = [
        evaluate(loaded.policy("sample"), loaded.task, loaded.command, count, 3, "evaluate", number)
        for number, count in enumerate((3, 3, 2))
    ]
    assert report["returns"] == [value for part in parts for value in part.returns]
    assert report["lengths"] == [value for part in parts for value in part.lengths]
    assert report["rows"] == 3 and report["acted_together"] == pytest.approx(
        np.concatenate([part.acted for part in parts]).mean()
    )


@pytest.mark.slow
def test_a_planned_run_is_scored_with_as_many_episodes_as_its_own_evaluations(planned, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "bigdm_ray.scoring.evaluate_in_parts",
        lambda *arguments: asked.append(arguments[3]) or evaluate_in_parts(*arguments),
    )
    for flags in (
        EvaluateFlags(mode="plan"),
        EvaluateFlags(mode="mean", episodes=1),
        EvaluateFlags(mode="mean"),
    ):
        score_run(load(planned), flags)
    assert asked == [[1], [1], [50, 50]]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A Trajectory Transformer that plans, of four-rooms, whose own evaluations end with one
    episode."""
    from making import dataset_of

    home = tmp_path_factory.mktemp("planned")
    dataset_of(home / "data", "four-rooms", 5)
    flags = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.heads 2 --algorithm.window 2"
        " --algorithm.context 2 --budget.learner-steps 1 --algorithm.bins 8 "
    )
    flags += (
        "--algorithm.goal later --algorithm.objective reward --algorithm.horizon 3"
        " --algorithm.beams 2 --algorithm.stop false --evaluations.mode mean "
    )
    flags += "--evaluations.final-episodes 1"
    train_local(configure("tt", str(home / "data"), flags.split()), home / "run")
    return home / "run"


def stop_at(monkeypatch, call):
    """Ctrl-C before the step of this number of a rollout's living rows."""
    plain, calls = _Rows.step, []

    def step(self, *arguments):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(_Rows, "step", step)


def test_ctrl_c_reports_the_episodes_that_have_ended(folder, capsys, monkeypatch):
    whole = score_run(load(folder), EvaluateFlags(episodes=30, rows=10))
    steps = max(whole["lengths"][:10]) + max(whole["lengths"][10:20])
    stop_at(monkeypatch, steps)  # the last step of the second part
    assert door(main, [str(folder), "--episodes", "30", "--rows", "10", "--video"]) == 130
    report, said = written(folder), capsys.readouterr()
    assert (
        report["partial"]
        and report["episodes"] == len(report["returns"])
        and report["episodes_asked"] == 30
    )
    assert 10 < report["episodes"] < 20 and report["episodes_discarded"] == 0
    longest = max(whole["lengths"][10:20])
    ended = [whole["returns"][k] for k in range(20) if k < 10 or whole["lengths"][k] < longest]
    assert report["returns"] == ended
    assert f"{report['episodes']} of 30: stopped before" in said.out
    assert not (folder / "video.mp4").exists() and not whole["partial"]


@pytest.mark.parametrize("rows", ["2", "10"])
def test_ctrl_c_before_an_episode_has_ended_leaves_no_report(folder, capsys, monkeypatch, rows):
    stop_at(monkeypatch, 2)
    assert door(main, [str(folder), "--episodes", "10", "--rows", rows]) == 130
    assert capsys.readouterr().err.endswith("stopped\n")
    assert not (folder / "evaluation.json").exists()


def terminal(monkeypatch):
    """Standard error, as a terminal."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_terminal_shows_how_many_episodes_have_ended(folder, monkeypatch):
    stream = terminal(monkeypatch)
    score_run(load(folder), EvaluateFlags(episodes=6, rows=4))
    shown = stream.getvalue().split("\r")
    assert "0 of 6 episodes" in shown[1] and "6 of 6 episodes" in shown[-1]


# --- settings that affect acting alone


def same_but(folder, home, **settings):
    """A copy of a run that has these settings of its algorithm in its run.json."""
    copy = shutil.copytree(folder, home / "same")
    run = json.loads((copy / "run.json").read_text())
    run["algorithm"] |= settings
    (copy / "run.json").write_text(json.dumps(run))
    return copy


@pytest.mark.slow
def test_settings_that_affect_acting_alone_are_taken_as_flags(planned, tmp_path):
    """As if the run had been trained with them; the run itself keeps its own."""
    folder = shutil.copytree(planned, tmp_path / "run")
    flags = [
        "--algorithm.horizon",
        "2",
        "--algorithm.beams=3",
        "--algorithm.cdf-act",
        "0.5",
        "--algorithm.expected-rewards",
        "false",
    ]
    given = {"horizon": 2, "beams": 3, "cdf_act": 0.5, "expected_rewards": False}
    assert (
        door(
            main,
            [
                str(folder),
                "--mode",
                "plan",
                *flags,
                "--algorithm.objective",
                "likelihood",
                "--episodes",
                "2",
                "--seed",
                "4",
            ],
        )
        == 0
    )
    report = written(folder)
    assert report["acting"] == given | {"objective": "likelihood"} and report["mode"] == "plan"
    assert (
        "plan, horizon 2, beams 3, cdf act 0.5, expected rewards False, objective likelihood,"
        " seed 4" in report_table(report)
    )
    same = score_run(
        load(same_but(planned, tmp_path, **given, objective="likelihood")),
        EvaluateFlags(episodes=2, seed=4, mode="plan"),
    )
    assert (
        report["returns"] == same["returns"]
        and report["lengths"] == same["lengths"]
        and same["acting"] == {}
    )
    assert (folder / "run.json").read_text() == (planned / "run.json").read_text()


@pytest.mark.slow
def test_acting_settings_reach_search_video_and_actors(planned, tmp_path, monkeypatch):
    loaded = load(planned, acting={"horizon": 2, "beams": 3, "expansions": 4})
    search = loaded.policy("plan")._planner.search
    assert (search.horizon, search.beams, search.expansions, search.context) == (2, 3, 4, 2)
    shapes, frames = set(), []
    monkeypatch.setattr(
        "bigdm_ray.films.film", lambda path, fps: contextlib.nullcontext(frames.append)
    )
    monkeypatch.setattr(
        "bigdm_ray.films.draw_lines", lambda frame, lines: shapes.add(lines.shape) or frame
    )
    record_video(
        loaded,
        {"mode": "plan", "cached": False, "seed": 1, "command": {}},
        tmp_path / "video.mp4",
        1,
    )
    assert shapes == {(3, 2, 2)} and frames
    sent = run_from_json(run_as(loaded, "plan").to_json()).algorithm  # what actors are set up with
    assert (sent.horizon, sent.beams, sent.expansions) == (2, 3, 4)


def test_a_transformers_cache_and_context_are_acting_settings(tmp_path):
    from making import dataset_of

    flags = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 3 --budget.learner-steps 1"
        " --evaluations.final-episodes 1"
    )
    dataset_of(tmp_path / "data", "toy-vector", 5)
    train_local(configure("dt", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    report = score_run(
        load(tmp_path / "run", acting={"cached": "true", "acting_context": "2"}),
        EvaluateFlags(episodes=1),
    )
    assert report["cached"] and report["acting"] == {"cached": True, "acting_context": 2}
    assert not score_run(
        load(tmp_path / "run", acting={"cached": True}), EvaluateFlags(episodes=1, cached=False)
    )["cached"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--algorithm.horizon", "0"], ["--algorithm.horizon is 0", "at least 1"]),
        (["--algorithm.horizon", "far"], ["--algorithm.horizon is 'far'", "an integer"]),
        (
            ["--algorithm.objective", "rewards"],
            ["--algorithm.objective is 'rewards'", "did you mean 'reward'"],
        ),
        (
            ["--algorithm.context", "3"],
            ["--algorithm.context is 3", "at most --algorithm.window, which is 2"],
        ),
        (
            ["--algorithm.horizon", "1", "--algorithm.objective", "goal"],
            ["--algorithm.horizon 1 leads to none"],
        ),
        (
            ["--algorithm.width", "32"],
            [
                "--algorithm.width was settled when the run was trained",
                "--algorithm.horizon, --algorithm.beams,",
            ],
        ),
        (
            ["--algorithm.horzon", "3"],
            ["tt has no setting --algorithm.horzon", "'--algorithm.horizon'"],
        ),
        (["--algorithm.horizon"], ["--algorithm.horizon is given no value"]),
        (["--algorithm.horizon", "--video"], ["--algorithm.horizon is given no value"]),
    ],
)
def test_a_wrong_acting_setting_is_one_sentence(planned, capsys, flags, words):
    assert door(main, [str(planned), "--episodes", "1", *flags]) == 2
    assert one_error(capsys, *words).out == ""
    assert not (planned / "evaluation.json").exists()


def test_a_goal_is_not_searched_for_by_a_model_that_is_told_none(planned, tmp_path, capsys):
    run = same_but(planned, tmp_path, goal="none")
    assert door(main, [str(run), "--algorithm.objective", "goal"]) == 2
    one_error(capsys, "searches for a goal, but the model is told none")


def test_an_algorithm_without_acting_settings_says_so(folder, capsys):
    assert door(main, [str(folder), "--algorithm.hidden", "32"]) == 2
    one_error(
        capsys,
        "--algorithm.hidden was settled when the run was trained",
        "udrl has none that affect acting alone",
    )
    assert door(main, [str(folder), "--algorithm.horizon", "3"]) == 2
    one_error(capsys, "udrl has no setting --algorithm.horizon")


@pytest.mark.parametrize(
    "kind", [kind for kind in algorithms().values() if kind.acting], ids=lambda kind: kind.name
)
def test_acting_settings_are_fields_that_shape_nothing(kind):
    assert set(kind.acting) <= {field.name for field in dataclasses.fields(kind)} and not set(
        kind.acting
    ) & set(kind.fixed)


# --- seeds, commands, modes


def test_seed_and_command_decide_the_returns(folder):
    loaded = load(folder)
    own = score_run(loaded, EvaluateFlags(episodes=20))
    assert score_run(loaded, EvaluateFlags(episodes=20))["returns"] == own["returns"]
    assert score_run(loaded, EvaluateFlags(episodes=20, seed=4))["returns"] != own["returns"]
    other = score_run(
        loaded, EvaluateFlags(episodes=20, desired_return=-400.0, desired_horizon=900.0)
    )
    assert other["command"] == {"desired_return": -400.0, "desired_horizon": 900.0}
    assert other["returns"] != own["returns"]


def test_mode_defaults_to_the_runs_own(folder):
    assert score_run(load(folder), EvaluateFlags(episodes=1))["mode"] == "sample"
    settings = json.loads((folder / "run.json").read_text())
    settings["evaluations"]["mode"] = "mean"
    (folder / "run.json").write_text(json.dumps(settings))
    assert score_run(load(folder), EvaluateFlags(episodes=1))["mode"] == "mean"
    assert score_run(load(folder), EvaluateFlags(episodes=1, mode="sample"))["mode"] == "sample"


def test_best_weights_come_with_their_own_command(folder):
    best = Weights.load(folder / "weights" / "best.safetensors")
    noted = (best.command or {}) | {"desired_return": 1.25}
    dataclasses.replace(best, command=noted).save(folder / "weights" / "best.safetensors")
    assert door(main, [str(folder), "--episodes", "2", "--weights", "best"]) == 0
    report = written(folder)
    assert report["weights"] == "best"
    assert report["command"]["desired_return"] == 1.25
    assert report["version"] == list(best.version)


def test_discarded_episodes_are_counted(folder):
    settings = json.loads((folder / "run.json").read_text())
    settings["task"] = "toy-broken"
    (folder / "run.json").write_text(json.dumps(settings))
    report = score_run(load(folder), EvaluateFlags(episodes=30))
    assert 0 < report["episodes_discarded"] < 30
    assert report["episodes_discarded"] + len(report["returns"]) == 30
    assert f"{report['episodes_discarded']} more discarded" in report_table(report)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--episodes", "0"], ["--episodes is 0", "at least 1"]),
        (["--episodes", "many"], ["--episodes is 'many'", "an integer"]),
        (["--desired-return", "nan"], ["--desired-return is nan", "finite"]),
        (["--desired-return", "-inf"], ["--desired-return is -inf", "finite"]),
        (["--desired-return", "1e300"], ["--desired-return", "at most"]),
        (["--desired-horizon", "0.5"], ["--desired-horizon is 0.5", "at least 1"]),
        (["--weights", "bst"], ["'bst'", "'best'"]),
        (["--mode", "smaple"], ["'smaple'", "'sample'"]),
        (["--mode", "plan"], ["udrl has no planner"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--device", "gpu"], ["--device is 'gpu'", "auto, cpu, cuda or cuda:N"]),
        (["--device", "auto", "--actors", "2"], ["--device is 'auto'", "actors act on CPUs"]),
        (["--rows", "0"], ["--rows is 0", "at least 1"]),
        (["--actors", "0"], ["--actors is 0", "at least 1"]),
        (["--epsodes", "3"], ["'--epsodes'", "'--episodes'"]),
    ],
)
def test_a_wrong_value_is_one_sentence(folder, capsys, flags, words):
    assert door(main, [str(folder), *flags]) == 2
    assert one_error(capsys, *words).out == ""
    assert not (folder / "evaluation.json").exists()


def test_a_broken_folder_is_one_sentence(folder, capsys, tmp_path):
    assert door(main, [str(tmp_path / "nowhere")]) == 2
    one_error(capsys, "nowhere", "no run")
    assert door(main, []) == 2
    one_error(capsys, "FOLDER")
    weights = folder / "weights" / "last.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert door(main, [str(folder)]) == 2
    one_error(capsys, "last.safetensors")
    weights.unlink()
    assert door(main, [str(folder)]) == 2
    one_error(capsys, "has no last weights yet", "take --weights best")


def test_commands_are_refused_where_there_are_none(folder):
    class Plain(Udrl):
        commands = ()

    loaded = load(folder)
    plain = dataclasses.replace(
        loaded, run=dataclasses.replace(loaded.run, algorithm=Plain()), summary={}
    )
    assert command_of(plain) == {}
    with pytest.raises(UserError, match="takes no desired return; leave --desired-return out"):
        command_of(plain, 5.0)
    bare = dataclasses.replace(loaded, summary={})
    with pytest.raises(UserError, match="give --desired-horizon"):
        command_of(bare, 5.0)
    assert command_of(bare, 5.0, 9.0) == {"desired_return": 5.0, "desired_horizon": 9.0}


def test_the_horizon_follows_the_return_where_the_algorithm_says_so(folder):
    loaded = load(folder)
    equal = dataclasses.replace(
        loaded, run=dataclasses.replace(loaded.run, algorithm=Udrl(horizon_equals_return=True))
    )
    assert command_of(equal, 7.4) == {"desired_return": 7.4, "desired_horizon": 7.0}
    assert command_of(equal, -3.0)["desired_horizon"] == 1.0
    assert command_of(equal, 7.4, 3.0)["desired_horizon"] == 3.0
    assert command_of(loaded, 7.4)["desired_horizon"] == loaded.command["desired_horizon"]


def test_video_holds_a_frame_for_each_step(folder):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    assert door(main, [str(folder), "--episodes", "1", "--video"]) == 0
    with imageio.get_reader(folder / "video.mp4") as reader:
        frames, meta = reader.count_frames(), reader.get_meta_data()
    assert meta["size"] == (128, 128 + 16) and meta["fps"] == 10
    returns = written(folder)["video_returns"]
    assert len(returns) == 3 and all(0 <= value <= 12 for value in returns)
    assert 3 * 8 <= frames <= 3 * 12
    assert not list(folder.glob(".part-*"))


def test_frames_show_what_was_asked_for_and_what_came_of_it(folder, tmp_path, monkeypatch):
    shown, frames = [], []
    monkeypatch.setattr("bigdm_ray.films.add_caption", lambda f, text: shown.append(text) or f)
    monkeypatch.setattr("bigdm_ray.films.film", lambda *_: contextlib.nullcontext(frames.append))
    command = {"desired_return": 7.0, "desired_horizon": 9.0}
    report = {"mode": "sample", "cached": False, "seed": 1, "command": command}
    returns = record_video(load(folder), report, tmp_path / "video.mp4", 2)
    assert len(shown) == len(frames) and all(
        text.startswith("asked 7.0, so far ") for text in shown
    )
    assert shown[-1] == f"asked 7.0, so far {returns[1]:,.1f}"
    assert f"asked 7.0, so far {returns[0]:,.1f}" in shown
    blank = np.full((60, 90, 3), 9, np.uint8)
    out = add_caption(blank, "asked 7.0, so far 3.0")
    assert out.shape == (76, 90, 3) and (out[16:] == 9).all()
    assert (out[:16] == 0).any() and (out[:16] == 255).mean() > 0.5, "letters on a white band"


def test_lines_are_drawn_into_a_frame_the_plan_above_the_others():
    frame = np.full((20, 30, 3), 9, np.uint8)
    lines = np.array(
        [[[2, 2], [2, 9], [np.nan, np.nan]], [[2, 5], [40, 5], [40, 9]], [[np.nan, np.nan]] * 3]
    )
    out = draw_lines(frame, lines)
    assert (frame == 9).all() and out.shape == frame.shape
    assert (out[2:10, 1:4] == BOLD).all(), "three pixels wide"
    assert (out[5, 4:] == FAINT).all() and (out[5, 1:4] == BOLD).all()
    assert (out[[4, 6], 6:] == 9).all() and (out[12:] == 9).all()


@pytest.mark.slow
def test_a_video_of_plans_shows_them(planned, tmp_path, monkeypatch):
    shown, frames = {}, []
    monkeypatch.setattr(
        "bigdm_ray.films.film", lambda path, fps: contextlib.nullcontext(frames.append)
    )
    for mode in ("mean", "plan"):
        frames.clear()
        record_video(
            load(planned),
            {"mode": mode, "cached": False, "seed": 1, "command": {}},
            tmp_path / "video.mp4",
            1,
        )
        shown[mode] = [(frame == BOLD).all(-1).any() for frame in frames]
    assert len(shown["plan"]) > 5 and all(shown["plan"]) and not any(shown["mean"])


@pytest.mark.parametrize("observed", [0, 2])
@pytest.mark.slow
def test_a_plan_is_drawn_where_the_point_is_by_a_model_that_is_told_no_goal(
    observed, tmp_path, monkeypatch
):
    """Its state begins with the goal; one that sees nothing else has no plan that could be
    drawn."""
    from making import dataset_of

    dataset_of(tmp_path / "data", "four-rooms", 5)
    flags = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.heads 2 --algorithm.window 2"
        " --algorithm.context 2 --budget.learner-steps 1 --algorithm.bins 20 "
    )
    flags += (
        "--algorithm.goal none --algorithm.goal-steps 0 --algorithm.objective reward"
        " --algorithm.horizon 3 --algorithm.beams 2 --algorithm.stop false "
    )
    flags += (
        f"--algorithm.observed {observed} --evaluations.mode mean --evaluations.final-episodes 1"
    )
    train_local(configure("tt", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    frames, lines = [], []
    monkeypatch.setattr(
        "bigdm_ray.films.film", lambda path, fps: contextlib.nullcontext(frames.append)
    )
    monkeypatch.setattr("bigdm_ray.films.add_caption", lambda frame, _: frame)
    monkeypatch.setattr(
        "bigdm_ray.films.draw_lines", lambda frame, drawn: lines.append(drawn) or frame
    )
    record_video(
        load(tmp_path / "run"),
        {"mode": "plan", "cached": False, "seed": 1, "command": {}},
        tmp_path / "video.mp4",
        1,
    )
    assert len(frames) > 5 and len(lines) == (0 if observed else len(frames))
    for before, drawn in zip(frames, lines[1:], strict=False):
        rows, columns = (before == (44, 110, 190)).all(-1).nonzero()
        point = np.array([columns.mean(), rows.mean()])
        assert (np.abs(drawn[:, 0] - point) < 6 + 4).all(), (
            "a plan begins where the point was, to half a bin and what the picture's edge cuts of"
            " the point"
        )


def test_a_failed_video_leaves_no_file(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        film(tmp_path / "video.mp4", 10) as append,
    ):
        for _ in range(200):
            append(np.zeros((64, 64, 3), np.uint8))
        for _ in range(500):  # ffmpeg is a process of its own
            if list(tmp_path.iterdir()):
                break
            time.sleep(0.02)
        assert [path.name for path in tmp_path.iterdir()] == [".part-video.mp4"]
        raise RuntimeError("in the middle")
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_written_is_told(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    with (
        pytest.raises(RunFailed, match=r"cannot write .*video\.mp4: [^\n]*$"),
        film(tmp_path / "nowhere" / "video.mp4", 10) as append,
    ):
        append(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("module", ["imageio", "imageio_ffmpeg"])
def test_a_missing_video_package_is_told_before_anything_is_played(
    folder, capsys, monkeypatch, module
):
    monkeypatch.setitem(sys.modules, module, None)
    assert door(main, [str(folder), "--video"]) == 2
    one_error(capsys, module, install("video"))
    assert not (folder / "evaluation.json").exists()


def test_an_environment_without_pictures_is_a_users_mistake(folder, capsys, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    vector = importlib.import_module("bigdm_ray.envs.vector")
    monkeypatch.setattr(vector.GymnasiumRows, "frame", lambda self: np.asarray(None))
    assert door(main, [str(folder), "--episodes", "1", "--video"]) == 2
    assert "draws no pictures; leave --video out" in capsys.readouterr().err
    assert not (folder / "video.mp4").exists()
    assert len(written(folder)["returns"]) == 1 and "video_returns" not in written(folder)


def test_an_environment_that_fails_to_draw_costs_the_video_alone(folder, capsys, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    vector = importlib.import_module("bigdm_ray.envs.vector")
    monkeypatch.setattr(vector.GymnasiumRows, "frame", lambda self: 1 // 0)
    assert door(main, [str(folder), "--episodes", "1", "--video"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "error: no video of toy-vector could be made: its environment raised Zero"
    )
    assert not (folder / "video.mp4").exists() and not list(folder.glob(".part-*"))
    assert len(written(folder)["returns"]) == 1 and "video_returns" not in written(folder)


def test_a_run_that_goes_on_says_which_weights_there_are(folder, capsys):
    (folder / "weights" / "last.safetensors").unlink()
    (folder / "summary.json").unlink()
    assert door(main, [str(folder)]) == 2
    one_error(capsys, "has no last weights yet", "take --weights best")
    with pytest.raises(UserError, match="take --weights best"):
        load(folder)
    (folder / "weights" / "best.safetensors").unlink()
    assert door(main, [str(folder)]) == 2
    one_error(capsys, "has no last weights yet", "nor any others: let it go on")


def test_every_folder_is_looked_at_before_one_is_played(folder, capsys):
    pattern = str(folder.parent / "other-*")
    assert door(main, [str(folder), pattern]) == 2
    one_error(capsys, f"nothing is called {pattern}; a run folder is expected")
    assert not (folder / "evaluation.json").exists()


def test_a_return_without_a_horizon_says_within_how_many_steps(folder, capsys):
    assert door(main, [str(folder), "--episodes", "1", "--desired-return", "3"]) == 0
    own = written(folder)["command"]["desired_horizon"]
    told = f"note: the return of 3.0 is asked for within {own:,.1f} steps, the horizon of"
    assert told in capsys.readouterr().err
    asked = ["--desired-return", "3", "--desired-horizon", "9"]
    assert door(main, [str(folder), "--episodes", "1", *asked]) == 0
    assert "the horizon of" not in capsys.readouterr().err


def test_ctrl_c_while_filming_leaves_the_evaluation(folder, capsys, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    whole = score_run(load(folder), EvaluateFlags(episodes=4))
    stop_at(monkeypatch, max(whole["lengths"]) + 3)  # the third step of the video
    assert door(main, [str(folder), "--episodes", "4", "--video"]) == 130
    report, said = written(folder), capsys.readouterr()
    assert (
        report["returns"] == whole["returns"]
        and not report["partial"]
        and "video_returns" not in report
    )
    assert "evaluation: " in said.out and said.err.endswith("stopped\n")
    assert not (folder / "video.mp4").exists() and not list(folder.glob(".part-*"))


def test_a_terminal_shows_that_filming_goes_on(folder, tmp_path, monkeypatch):
    frames, stream = [], terminal(monkeypatch)
    monkeypatch.setattr(
        "bigdm_ray.films.film", lambda path, fps: contextlib.nullcontext(frames.append)
    )
    record_video(
        load(folder), score_run(load(folder), EvaluateFlags(episodes=1)), tmp_path / "video.mp4", 1
    )
    shown = stream.getvalue()
    assert (
        "video of toy-vector: 0 frames" in shown
        and f"video of toy-vector: {len(frames)} frames" in shown
    )


@pytest.mark.slow
def test_a_video_of_plans_has_no_more_episodes_than_were_asked_for(planned, tmp_path, monkeypatch):
    folder, asked = shutil.copytree(planned, tmp_path / "run"), []
    monkeypatch.setattr("bigdm_ray.evaluate.require_video", lambda: None)
    monkeypatch.setattr(
        "bigdm_ray.evaluate.record_video", lambda *arguments: asked.append(arguments[3]) or [1.5]
    )
    for mode, episodes in (("plan", "2"), ("plan", "4"), ("mean", "2")):
        assert (
            door(
                main,
                [
                    str(folder),
                    "--episodes",
                    episodes,
                    "--mode",
                    mode,
                    "--algorithm.horizon",
                    "1",
                    "--video",
                ],
            )
            == 0
        )
        assert written(folder)["video_returns"] == [1.5]
    assert asked == [2, 3, 3]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*evaluation\.json: Not a directory"):
        write_json(tmp_path / "file" / "evaluation.json", {})


def test_pygame_prints_no_banner():
    pytest.importorskip("pygame")
    code = (
        "import os, sys, bigdm_ray.envs as envs; envs.tasks()['lunarlander'].require(); assert"
        " 'pygame' in sys.modules"
    )
    fresh = {
        name: value for name, value in os.environ.items() if name != "PYGAME_HIDE_SUPPORT_PROMPT"
    }
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=fresh, capture_output=True, text=True, check=True
        ).stdout
        == ""
    )
