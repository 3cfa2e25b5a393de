"""The ring on Ray: equal to one process in lock-step, whole in asynchronous mode, and the same with
two learners."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import episodes_on_disk, tiny
from making import dataset_of

import bigdm_ray
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.replay import Store
from bigdm_ray.replay.episode import FOREIGN
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights

pytestmark = pytest.mark.ray

LOCK_STEP = (
    "--budget.env-steps 3000 --saves.every 1000 --saves.report-every 500 --evaluations.every 1200"
    " --rollouts.groups 2"
)


def numbers(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(("_per_s", "wall_s", "_ms"))}
        for line in lines
    ]


def test_lock_step_on_ray_equals_one_process_bit_for_bit(tmp_path: Path) -> None:
    run = tiny(LOCK_STEP)
    train_local(run, tmp_path / "local")
    train_on_ray(tiny(f"{LOCK_STEP} --actors 2 --machines.lock-step true"), tmp_path / "ray")
    local, ray = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("local", "ray")
    )
    assert local.version == ray.version
    for name, values in local.arrays.items():
        np.testing.assert_array_equal(values, ray.arrays[name], err_msg=name)
    assert numbers(tmp_path / "local") == numbers(tmp_path / "ray")
    tables = [
        Store(tmp_path / name / "store", run.algorithm.retention()).open().table
        for name in ("local", "ray")
    ]
    np.testing.assert_array_equal(tables[0].ids, tables[1].ids)
    np.testing.assert_array_equal(tables[0].returns, tables[1].returns)


def test_fine_tuning_on_ray_equals_one_process_bit_for_bit_and_runs_beside_its_learner(
    tmp_path: Path,
) -> None:
    dataset_of(tmp_path / "data", "toy-continuous", 20)
    small = (
        "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 4 --algorithm.batch-size 16"
        " --evaluations.final-episodes 2 --evaluations.episodes 2"
    )
    train_local(
        bigdm_ray.configure(
            "dt", str(tmp_path / "data"), [*small.split(), "--budget.learner-steps", "5"]
        ),
        tmp_path / "offline",
    )
    flags = (
        f"--from {tmp_path / 'offline'} --budget.env-steps 150 --saves.every 60"
        " --algorithm.updates-per-episode 2 --algorithm.episodes-per-iteration 2"
    )
    train_local(bigdm_ray.configure("dt", "toy-continuous", flags.split()), tmp_path / "local")
    train_on_ray(
        bigdm_ray.configure(
            "dt", "toy-continuous", [*flags.split(), "--machines.lock-step", "true"]
        ),
        tmp_path / "ray",
    )
    local, ray = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("local", "ray")
    )
    assert local.version == ray.version
    for name, values in local.arrays.items():
        np.testing.assert_array_equal(values, ray.arrays[name], err_msg=name)
    summary = train_on_ray(
        bigdm_ray.configure("dt", "toy-continuous", flags.split()), tmp_path / "side"
    )
    assert summary["env_steps"] >= 150 and summary["learner_steps"] == 5 + 2 * summary["episodes"]
    assert sum(episodes_on_disk(tmp_path / "side" / "store").ids[:, 1] == FOREIGN) == 20


@pytest.mark.slow
def test_two_learner_ranks_equal_one_to_rounding(tmp_path: Path) -> None:
    flags = "--budget.env-steps 1500 --evaluations.every 100000"
    train_local(tiny(flags), tmp_path / "1")  # to which lock-step with one rank is equal
    train_on_ray(tiny(f"{flags} --machines.lock-step true --learners 2"), tmp_path / "2")
    one, two = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("1", "2")
    )
    assert one.version == two.version and one.version[1] > 20
    for name, values in one.arrays.items():
        np.testing.assert_allclose(values, two.arrays[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_asynchronous_run_does_its_whole_budget_and_reports_staleness(tmp_path: Path) -> None:
    run = tiny(
        "--budget.env-steps 4000 --saves.every 1500 --saves.report-every 500 --evaluations.every"
        " 1500 --actors 2"
    )
    summary = train_on_ray(run, tmp_path / "run")
    assert summary["env_steps"] >= 4000
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert any("evaluation/return_mean" in line for line in lines)
    assert all(line["play/staleness"] >= 0 for line in lines if "play/staleness" in line)
    store = Store(tmp_path / "run" / "store", run.algorithm.retention()).open()
    versions = {store.episode(i).version for i in range(len(store.table))}
    assert len(versions) > 1, "every episode carries the version of the weights that played it"
    assert max(step for _, step in versions) <= summary["learner_steps"]


def test_a_store_that_cannot_be_written_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    store = tmp_path / "run" / "store"

    def break_store(report: dict[str, float]) -> None:
        if store.is_dir():
            store.rename(store.with_name("moved"))
            store.write_text("in the way")

    with pytest.raises(
        RunFailed,
        match=(
            r"cannot write .* may be written|the learner cannot read what the replay actor has"
            r" stored"
        ),
    ) as told:
        train_on_ray(
            tiny("--budget.env-steps 100000 --saves.report-every 500"),
            tmp_path / "run",
            listeners=[break_store],
        )
    assert "\n" not in str(told.value)


def test_environments_that_all_fail_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="paid a reward of nan"):
        train_on_ray(tiny("--budget.env-steps 100000", task="toy-nan"), tmp_path / "run")


def test_discarded_warm_up_episodes_do_not_stop_a_run_and_a_finished_one_counts_each_round_once(
    tmp_path: Path,
) -> None:
    run = tiny("--budget.env-steps 1500 --saves.every 400", task="toy-broken")
    first = train_on_ray(run, tmp_path / "run")
    assert first["episodes_discarded"] > 0 and first["env_steps"] >= 1500
    again = train_on_ray(run, tmp_path / "run", resume=True)
    assert again["env_steps"] == first["env_steps"]
    assert again["episodes"] == first["episodes"]
    assert again["incarnation"] == first["incarnation"] + 1
    with pytest.raises(UserError, match="began as asynchronous"):
        train_local(run, tmp_path / "run", resume=True)
