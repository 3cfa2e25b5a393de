"""Runs of several tasks through Ray: in lock-step as in one process, with two learners as with one;
side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import bigdm_ray
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.training.config import Run
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights

pytestmark = pytest.mark.ray

TOYS = ("toy-vector", "toy-continuous", "toy-mixed")
FLAGS = (
    "--hidden 16,16 --batch-size 16 --algorithm.warm-up-episodes 4 --algorithm.replay-size 12 "
    "--algorithm.episodes-per-iteration 4 --algorithm.channels 4 --algorithm.n-updates-per-iter 5 "
    "--evaluations.episodes 2 --evaluations.final-episodes 2 --rollouts.environments 2 "
    "--evaluations.every 300 --saves.every 200 --env-steps 500 --weights 3,1,1"
)


def run_of(flags: str, tasks: tuple[str, ...] = TOYS) -> Run:
    return bigdm_ray.configure("udrl", flags=f"{FLAGS} {flags}".split(), tasks=tasks)


def test_lock_step_equals_one_process_bit_for_bit_and_two_learners_equal_one_to_rounding(
    tmp_path: Path,
) -> None:
    run = run_of("--machines.lock-step true")
    two = dataclasses.replace(run, machines=dataclasses.replace(run.machines, learners=2))
    summaries = [
        train_local(run, tmp_path / "local"),
        train_on_ray(run, tmp_path / "ray"),
        train_on_ray(two, tmp_path / "two"),
    ]
    local, ray, ranks = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors").arrays
        for name in ("local", "ray", "two")
    )
    for told in summaries:
        assert told["cpu_s"] > told["learn_cpu_s"] > 0, "of all processes, and of learning alone"
    for task in TOYS:
        a, b, _ = (summary["tasks"][task]["return_mean"] for summary in summaries)
        assert a == b
    for name, values in local.items():
        np.testing.assert_array_equal(values, ray[name], err_msg=name)
        np.testing.assert_allclose(values, ranks[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_side_by_side_a_task_that_fails_ends_alone_and_a_resume_goes_on(tmp_path: Path) -> None:
    run = run_of("", ("toy-vector", "toy-nan", "toy-continuous"))
    summary = train_on_ray(run, tmp_path / "run")
    assert list(summary["tasks"]) == ["toy-vector", "toy-continuous"]
    assert any("toy-nan" in problem for problem in summary["problems"])
    longer = dataclasses.replace(run, budget=dataclasses.replace(run.budget, env_steps=800))
    more = train_on_ray(longer, tmp_path / "run", resume=True)
    assert more["env_steps"] >= 800 and more["episodes"] > summary["episodes"]
    assert more["learner_steps"] > summary["learner_steps"]
