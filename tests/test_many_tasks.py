"""Scores of many tasks: the statistics, an evaluation that goes on where it stopped, its choice of
tasks, and what is left out of means."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from making import dataset_of

import bigdm_ray
from bigdm_ray import plots, table, task_scores
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.envs.jat import jat_returns
from bigdm_ray.errors import RunFailed
from bigdm_ray.evaluate import main
from bigdm_ray.run import uncounted_sentence
from bigdm_ray.tables.suites import (
    SAMPLES,
    TaskScores,
    aggregate,
    interquartile_mean,
    middle_means,
    score_tasks,
    summarise,
)
from bigdm_ray.task_scores import describe_tasks, summarise_reports
from bigdm_ray.training.evaluation import gap_problem
from bigdm_ray.training.loop import train_local

TOYS = ("toy-vector", "toy-continuous", "toy-mixed")
REFERENCES = {"toy-continuous": [1.0, 4.0], "toy-mixed": [3.0, 3.2]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three tasks: the second has its references of its dataset, the third no gap."""
    home = tmp_path_factory.mktemp("many")
    for task in TOYS:
        dataset_of(home / task, task, 12)
        card = home / task / "dataset.json"
        told = json.loads(card.read_text()) | {"reference_returns": REFERENCES.get(task)}
        card.write_text(json.dumps(told))
    flags = "--hidden 8 --batch-size 8 --algorithm.channels 4 --learner-steps 2"
    flags += " --evaluations.episodes 1 --evaluations.final-episodes 1"
    folders = [str(home / task) for task in TOYS]
    train_local(bigdm_ray.configure("bc", flags=flags.split(), tasks=folders), home / "run")
    return home / "run"


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def scored(folder, *flags, code=0):
    """The report of 5 episodes in parts of at most 3, without what a clock decides."""
    assert door(main, [str(folder), "--episodes", "5", "--rows", "3", *flags]) == code
    report = json.loads((folder / "evaluation.json").read_text())
    for one in report["tasks"].values():
        for name in [name for name in one if name.endswith("_ms")]:
            del one[name]
    return report


def of(suite, *scores):
    return TaskScores(suite, np.array(scores, np.float64))


def test_the_middle_half_is_that_of_sorting_and_cutting():
    chance = np.random.default_rng(1)
    rows = chance.normal(size=(3, 40))
    middle = np.sort(rows, 1)[:, 10:30].mean(1)
    np.testing.assert_allclose(middle_means(rows, np.ones(40)), middle)
    np.testing.assert_allclose(interquartile_mean(rows[0]), middle[0])
    # a task of twice the episodes weighs as much as the other: each of them counts half
    once, twice = np.array([0.0, 10, 20, 30]), np.array([5.0, 15, 25, 35])
    even = middle_means(np.concatenate([once, twice])[None], np.ones(8))
    doubled = np.concatenate([once, twice, twice])[None]
    weights = np.array([1.0] * 4 + [0.5] * 8)
    np.testing.assert_allclose(middle_means(doubled, weights), even)


def test_episodes_are_resampled_within_their_task():
    """Where the episodes of each task are alike no interval has a width, however far tasks lie
    apart; mixed over tasks it would have."""
    apart = [of("a", 0.0, 0.0, 0.0), of("a", 100.0, 100.0), of("a", 80.0)]
    told = aggregate(apart)
    assert told["mean"] == 60.0 and told["mean_interval"] == [60.0, 60.0]
    assert told["iqm_interval"] == [told["iqm"]] * 2
    assert told["reached"] == {"25": 2, "50": 2, "75": 2, "90": 1}
    wide = aggregate([of("a", 0.0, 100.0), of("a", 0.0, 100.0)])
    low, high = wide["mean_interval"]
    assert low < 20 and high > 80 and wide["mean"] == 50.0 and SAMPLES >= 1000


def test_suites_count_once_in_the_mean_over_suites():
    tasks = {"a1": of("a", 10.0), "a2": of("a", 30.0), "a3": of("a", 50.0), "b1": of("b", 90.0)}
    told = summarise(tasks)
    assert told["suite_mean"] == 60.0 and told["all"]["mean"] == 45.0
    assert told["suites"]["a"]["reached"]["50"] == 1 and told["all"]["reached"]["50"] == 2
    assert summarise({})["all"] is None


@pytest.mark.parametrize(
    ("references", "counts"),
    [
        ((40.3, 42.8), False),
        ((23.1, 20.4), False),
        ((-1200.0, -150.0), True),
        ((0.0, 0.9), True),
        ((-200.0, -185.0), False),
        ((-5.0, 5.0), True),
        (None, False),
    ],
)
def test_a_score_counts_where_the_expert_is_well_above_random(references, counts):
    assert (gap_problem(references) is None) == counts
    report = {"task": {"returns": [references[1] if references else 1.0]}}
    found, left_out = score_tasks(report, lambda _: references, lambda _: "suite")
    assert (list(found), list(left_out)) == ((["task"], []) if counts else ([], ["task"]))
    if counts:
        assert found["task"].mean == pytest.approx(100.0)


def test_many_tasks_are_told_by_suite_and_those_without_a_gap_are_named(folder, capsys):
    report = scored(folder)
    told = capsys.readouterr()
    assert list(report["left_out"]) == ["toy-mixed"] and report["all"]["tasks"] == 2
    own = report["tasks"]["toy-continuous"]
    assert own["normalized_score"] == pytest.approx(100 * (own["return_mean"] - 1) / 3)
    means = [report["tasks"][name]["normalized_score"] for name in TOYS[:2]]
    assert report["normalized_score"] == pytest.approx(np.mean(means))
    assert report["suites"]["toys"]["mean"] == report["suite_mean"]
    reached = sum(score >= 50 for score in means)
    assert f"{reached} of 2 tasks at >= 50 % of the expert" in told.out
    left = "left out of means and counts: toy-mixed (the expert has 3.2 where a random policy has 3"
    assert left in told.out and told.err.startswith("playing 15 episodes of 3 tasks")
    assert [line.split()[0] for line in told.out.splitlines()[1:4]] == [*TOYS]


class Counted:
    """Notes which tasks are played, and presses Ctrl-C before one of them."""

    def __init__(self, monkeypatch, stop_before=None):
        self.played, self.stop_before, plain = [], stop_before, task_scores.play_here

        def play(plan):
            if plan.loaded.run.task == self.stop_before:
                raise KeyboardInterrupt
            self.played.append(plan.loaded.run.task)
            return plain(plan)

        monkeypatch.setattr(task_scores, "play_here", play)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(folder, capsys, monkeypatch):
    whole = scored(folder)
    assert not (folder / "evaluation").exists(), "all tasks are scored"
    counted = Counted(monkeypatch, "toy-mixed")
    part = scored(folder, code=130)
    assert part["partial"] and list(part["tasks"]) == [*TOYS[:2]] and part["tasks_asked"] == 3
    counted.played.clear()
    counted.stop_before = None
    capsys.readouterr()
    assert scored(folder) == whole and counted.played == ["toy-mixed"]
    assert "2 of 3 tasks are finished already" in capsys.readouterr().err
    assert not (folder / "evaluation").exists()


def test_what_decides_returns_decides_what_is_kept(folder, monkeypatch):
    counted = Counted(monkeypatch)

    def again(*flags):
        counted.played.clear()
        scored(folder, "--tasks", "toy-vector,toys/toy-c*", *flags)
        return counted.played

    assert again() == [*TOYS[:2]], "by its short name, and by a pattern of its full one"
    assert again() == [] and (folder / "evaluation").is_dir(), "one task is not scored yet"
    assert again("--seed", "5") == [*TOYS[:2]] and again("--seed", "5") == []
    assert again("--seed", "5", "--mode", "mean") == [*TOYS[:2]]
    for file in (folder / "evaluation").glob("*toy-vector.json"):
        file.write_text(file.read_text()[:-9])
    assert again("--seed", "5", "--mode", "mean") == ["toy-vector"], "a torn file is none"
    weights = folder / "weights" / "last.safetensors"
    weights.write_bytes((folder / "weights" / "best.safetensors").read_bytes())
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert again("--seed", "5", "--mode", "mean") == [*TOYS[:2]]


def test_a_task_that_cannot_be_played_is_told_and_left_out(folder, capsys, monkeypatch):
    plain = task_scores.play_here

    def play(plan):
        if plan.loaded.run.task == "toy-continuous":
            raise RunFailed("its screen is black")
        return plain(plan)

    monkeypatch.setattr(task_scores, "play_here", play)
    report = scored(folder)
    assert list(report["tasks"]) == ["toy-vector", "toy-mixed"] and not report["partial"]
    assert report["problems"] == ["its screen is black"]
    assert "note: its screen is black" in capsys.readouterr().err
    assert door(main, [str(folder), "--tasks", "toy-continuous"]) == 1
    assert capsys.readouterr().err.endswith("error: its screen is black\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks", "toy-none"], "--tasks has 'toy-none', but the run has no such task"),
        (["--mode", "plan"], "bc has no planner; its modes are sample and mean"),
        (["--desired-horizon", "3"], "takes no desired horizon; leave --desired-horizon out"),
        (["--desired-return", "3"], "--desired-return is for one task"),
    ],
)
def test_a_wrong_flag_is_one_sentence_however_many_tasks_there_are(folder, capsys, flags, words):
    assert door(main, [str(folder), *flags]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1
    assert told.out == "" and not (folder / "evaluation.json").exists()


def test_tasks_of_a_run_of_one_task_are_refused_unless_it_is_that(tmp_path, capsys):
    dataset_of(tmp_path / "data", "toy-vector", 5)
    flags = "--hidden 8 --learner-steps 1 --evaluations.episodes 1 --evaluations.final-episodes 1"
    run = bigdm_ray.configure("bc", str(tmp_path / "data"), flags.split())
    train_local(run, tmp_path / "run")
    assert door(main, [str(tmp_path / "run"), "--tasks", "cartpole"]) == 2
    assert "the run has no such task" in capsys.readouterr().err
    assert door(main, [str(tmp_path / "run"), "--tasks", "toy-*", "--episodes", "1"]) == 0


def test_counts_over_thresholds_are_a_picture(folder, tmp_path, capsys):
    assert door(plots.main, [str(folder), "--thresholds"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "holds no evaluation of several tasks; score it with" in told
    report = scored(folder)
    capsys.readouterr()
    assert door(plots.main, [str(folder), "--thresholds"]) == 0
    (run,) = json.loads((folder / "plots" / "thresholds.json").read_text())["runs"]
    scores = [report["tasks"][name]["normalized_score"] for name in TOYS[:2]]
    assert run["scores"] == {"toys": scores} and run["episodes"] == 5
    assert f"2 tasks, {sum(s >= 25 for s in scores)} at >= 25, " in capsys.readouterr().out
    other = shutil.copytree(folder, tmp_path / "other")
    (axes,) = plots.figure("thresholds", folder, other).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert [line.get_label() for line in lines] == ["run (2 tasks)", "other (2 tasks)"]
    for x, y in zip(*lines[0].get_data(), strict=True):
        assert y == sum(score >= x for score in scores)
    (other / "evaluation.json").write_text('{"suites": {}, "tasks": 3}')
    assert door(plots.main, [str(other), "--thresholds"]) == 2
    assert "is no evaluation of this project" in capsys.readouterr().err


def test_runs_of_many_tasks_are_compared_by_suite(folder, tmp_path, capsys):
    """By what `evaluate` has played, where that is of the weights as they are; else by the run's
    own final evaluation."""
    other = shutil.copytree(folder, tmp_path / "other")
    report = scored(folder)
    capsys.readouterr()
    assert door(table.main, [str(folder), str(other)]) == 0
    first, second = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert "| toy-vector, toy-continuous, toy-mixed |" in first[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in second]
    summary, suite = json.loads((other / "summary.json").read_text()), report["suites"]["toys"]
    counted = f"{suite['reached']['50']} of 2"
    times = [f"{summary[name] / 60:,.1f} min" for name in ("cpu_s", "learn_cpu_s")]
    assert rows[0][3:6] == ["toys", "over suites", ">= 50 %"]
    shown = f"{suite['mean']:.1f} [{suite['iqm']:.1f}]"
    own = [str(folder), "evaluate", "5", shown, f"{suite['mean']:.1f}", counted, *times]
    assert rows[2] == own
    means = [summary["tasks"][name]["normalized_score"] for name in TOYS[:2]]
    assert rows[3][:4] == [str(other), "its run", "1", f"{np.mean(means):.1f}"]
    assert summary["cpu_s"] > summary["learn_cpu_s"] > 0
    stale = json.loads((folder / "evaluation.json").read_text()) | {"version": [0, 1]}
    (folder / "evaluation.json").write_text(json.dumps(stale))
    assert door(table.main, [str(folder)]) == 0
    assert "| its run |" in capsys.readouterr().out
    (folder / "evaluation.json").write_text("[]")
    assert door(table.main, [str(folder)]) == 2
    assert "is no evaluation of this project" in capsys.readouterr().err


def test_scores_stand_beside_those_of_jat_where_a_task_has_its_constants(folder, capsys):
    """The same returns, normalised by JAT's random and expert; of others nothing is said."""
    task = dataclasses.replace(find_task("toy-vector"), suite="babyai", name="babyai/go-to-local")
    low, high = jat_returns("babyai/go-to-local")
    returns = [low, low, high, high]
    report = {"returns": returns, "episodes": 4, "partial": False, "normalized_score": 0.0}
    report |= {"return_mean": 0.0, "return_low": 0.0, "return_high": 0.0}
    told = summarise_reports({"a": report}, {"a": task})
    assert told["jat"]["tasks"] == {"a": pytest.approx(50.0)}
    assert told["jat"]["suites"]["babyai"]["iqm"] == pytest.approx(50.0)
    text = describe_tasks({"a": report}, {"a": task}, told)
    assert "JAT's" in text.splitlines()[0] and text.splitlines()[1].endswith(" 50.0")
    expert = 100 * (task.reference_returns[1] - low) / (high - low)
    assert f"over 1 tasks (the experts here: {expert:.1f}); JAT's own IQM 99, over 39" in text
    assert scored(folder)["jat"] is None and "JAT" not in capsys.readouterr().out
    evaluated = json.loads((folder / "evaluation.json").read_text()) | {"jat": told["jat"]}
    evaluated["jat"]["suites"]["metaworld"] = {"iqm": 12.0}
    (folder / "evaluation.json").write_text(json.dumps(evaluated))
    assert door(table.main, [str(folder)]) == 0
    head, _, own, jat = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert "| babyai, JAT's IQM | metaworld, JAT's IQM | cpu |" in head
    assert "| 50.0 | 12.0 |" in own and "| 99 | 65 of Meta-World v2 |" in jat


def test_a_run_says_which_tasks_do_not_count_and_why(folder):
    run = bigdm_ray.load(folder).run
    told = uncounted_sentence(run)
    assert told is not None and told.endswith(
        "which leaves out toy-mixed (the expert has 3.2 where a random policy has 3)"
    )
    assert uncounted_sentence(run.of("toy-mixed")) is None
