"""Evaluation on actors: equal to one process episode by episode, whatever their number and
whichever of them die."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import kill_one, tiny
from making import dataset_of

import bigdm_ray
from bigdm_ray.distributed.evaluation import evaluate_on_actors
from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed
from bigdm_ray.evaluate import main
from bigdm_ray.training.evaluation import PlannedTask, Score, evaluate_in_parts, join_scores
from bigdm_ray.training.loaded import load
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder

pytestmark = pytest.mark.ray

TIMES = ("act_p50_ms", "act_p99_ms")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    train_local(tiny("--budget.env-steps 600 --evaluations.every 100000"), folder)
    return folder


def report(folder: Path, *flags: str) -> dict[str, Any]:
    """The report of 11 episodes in parts of at most 3, without what a clock decides."""
    assert door(main, [str(folder), "--episodes", "11", "--rows", "3", *flags]) == 0
    return {
        name: value
        for name, value in json.loads((folder / "evaluation.json").read_text()).items()
        if name not in TIMES
    }


def test_any_number_of_actors_scores_as_one_process_does(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = report(trained)
    assert local["episodes"] == 11 and len(set(local["returns"])) > 3
    assert report(trained, "--actors", "2") == local
    flags = ("--mode", "mean", "--seed", "5")
    other = report(trained, *flags)
    capsys.readouterr()
    assert (
        other == report(trained, *flags, "--actors", "9") and other["returns"] != local["returns"]
    )
    assert "note: there are 4 parts of at most 3 episodes" in capsys.readouterr().err


def test_plans_on_actors_are_those_of_one_process(tmp_path: Path) -> None:
    dataset_of(tmp_path / "data", "toy-vector", 20)
    small = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.heads 2 --algorithm.bins 12"
        " --algorithm.window 3 --algorithm.context 2"
    )
    flags = (
        f"{small} --algorithm.horizon 2 --algorithm.beams 3 --algorithm.k-act 0"
        " --budget.learner-steps 2 --evaluations.final-episodes 1"
    )
    train_local(bigdm_ray.configure("tt", str(tmp_path / "data"), flags.split()), tmp_path / "run")
    local = report(tmp_path / "run")
    assert local["mode"] == "plan" and local["episodes"] == 11 and len(set(local["returns"])) > 3
    assert report(tmp_path / "run", "--actors", "2") == local


def test_the_parts_of_actors_that_die_are_played_again(trained: Path) -> None:
    loaded, ended, killed = load(trained), [], []
    weights = Weights.load(RunFolder(trained).weights("last"))
    task, parts = loaded.run.task, [3] * 6
    plans = {task: PlannedTask(loaded.command, parts)}
    heard: dict[int, Score] = {}

    def kill_some(task: str, number: int, score: Score) -> None:
        ended.append(number)
        heard[number] = score
        if len(ended) in (1, 4):
            killed.append(kill_one("EvaluatorActor"))

    whole = evaluate_in_parts(
        loaded.policy(), loaded.task, loaded.command, [3] * 6, loaded.run.seed, "evaluate"
    )
    evaluate_on_actors(loaded.run, weights, plans, "evaluate", 2, "local", kill_some)
    again = [heard[number] for number in range(6)]
    assert killed == [True, True] and sorted(ended) == [*range(6)]
    assert [value for part in again for value in part.returns] == whole.returns.tolist()
    assert [len(part.returns) for part in again] == [3] * 6


def test_a_part_that_never_ends_is_waited_for_as_long_as_patience_is(trained: Path) -> None:
    loaded = load(trained)
    weights = Weights.load(RunFolder(trained).weights("last"))
    machines = dataclasses.replace(loaded.run.machines, patience=1e-4)
    run = dataclasses.replace(loaded.run, machines=machines)
    told = r"waited .* minutes for 2 of 2 parts to be played; free in the cluster: .*\(--actors\)"
    with pytest.raises(RunFailed, match=told):
        plans = {run.task: PlannedTask(loaded.command, [1, 1])}
        evaluate_on_actors(run, weights, plans, "evaluate", 2, "local", print)


def test_ctrl_c_leaves_the_parts_that_have_ended(trained: Path) -> None:
    heard = []

    def stop(task: str, number: int, score: Score) -> None:
        heard.append(score)
        raise KeyboardInterrupt

    loaded = load(trained)
    weights = Weights.load(RunFolder(trained).weights("last"))
    plans = {loaded.run.task: PlannedTask(loaded.command, [3] * 6)}
    evaluate_on_actors(loaded.run, weights, plans, "evaluate", 2, "local", stop)
    (part,) = heard
    assert len(join_scores([part], loaded.command, stopped=True).returns) == 3


def test_environments_that_all_fail_are_told_in_one_sentence(trained: Path, tmp_path: Path) -> None:
    settings = json.loads((trained / "run.json").read_text()) | {"task": "toy-nan"}
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    name = "last.safetensors"
    os.link(trained / "weights" / name, tmp_path / "run" / "weights" / name)
    with pytest.raises(
        RunFailed, match="no evaluation episode of toy-nan could be played to its end"
    ):
        main([str(tmp_path / "run"), "--episodes", "2", "--rows", "1", "--actors", "2"])


def test_many_tasks_share_the_actors_and_score_as_one_process_does(tmp_path: Path) -> None:
    tasks = ("toy-vector", "toy-continuous", "toy-mixed")
    folders = [str(dataset_of(tmp_path / task, task, 12).folder) for task in tasks]
    flags = "--hidden 8 --batch-size 8 --learner-steps 1 --evaluations.final-episodes 1"
    train_local(bigdm_ray.configure("bc", flags=flags.split(), tasks=folders), tmp_path / "run")

    def reports(*more: str) -> dict[str, Any]:
        told = report(tmp_path / "run", *more)
        for one in told["tasks"].values():
            for name in TIMES:
                del one[name]
        return told

    local = reports()
    assert reports("--actors", "2") == local and list(local["tasks"]) == [*tasks]
    assert not local["partial"] and not (tmp_path / "run" / "evaluation").exists()
