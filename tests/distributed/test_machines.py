"""Several machines: nothing but the driver's needs the run's folder, and one may be lost for
good."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from loopback import Machines
from making import dataset_of

import bigdm_ray
from bigdm_ray.distributed.executor import RayExecutor
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.replay import Table
from bigdm_ray.replay.store import Receipt
from bigdm_ray.training.config import Run
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights

pytestmark = [pytest.mark.ray(own=True), pytest.mark.slow]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The driver's machine has room for one rollout actor, another one for a learner."""
    made = Machines(tmp_path_factory.getbasetemp())
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    try:
        made.start("head", "rollout", 1)
        made.start("learner", "learner", 1)
        yield made
    finally:
        made.close()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def same_weights(one: Path, two: Path) -> None:
    first, second = (Weights.load(path / "weights" / "last.safetensors") for path in (one, two))
    assert first.version == second.version
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(values, second.arrays[name], err_msg=name)


def test_a_learner_that_does_not_see_the_folder_equals_one_process_bit_for_bit(
    machines: Machines, tmp_path: Path
) -> None:
    """Through several saves and compactions; its cache is bounded, then gone."""
    flags = "--budget.env-steps 3000 --saves.every 600 --saves.report-every 300"
    flags += " --evaluations.every 100000 --algorithm.replay-size 20"
    cached: list[set[str]] = []

    def look(report: dict[str, float]) -> None:
        found = machines.folder.glob("learner/bigdm-ray-*/r/store/*.arrow")
        cached.append({path.name for path in found})

    train_local(tiny(flags), tmp_path / "local")
    away = f"{flags} --machines.lock-step true --address {machines.address}"
    train_on_ray(tiny(away), tmp_path / "ray", listeners=[look])
    same_weights(tmp_path / "local", tmp_path / "ray")
    names = sorted(set().union(*cached))
    assert len(names) > 8, "episodes came by the learner's own cache"
    assert max(map(len, cached)) < len(names), "what nothing lives in has left the cache"
    assert machines.left_behind("learner") == []


def test_a_machine_that_is_lost_for_good_does_not_keep_a_run_from_its_end(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for its rollout actor elsewhere; the other one plays its rounds."""
    machines.start("lost", "rollout", 1)
    flags = "--budget.env-steps 4000 --saves.every 1000 --evaluations.every 100000 --actors 2"
    run = tiny(f"{flags} --address {machines.address}")
    receipts: list[Receipt] = []
    stored = RayExecutor.note_stored

    def noted(self: RayExecutor, task: str, receipt: Receipt) -> None:
        receipts.append(receipt)
        stored(self, task, receipt)
        if len(receipts) == 4:
            machines.kill("lost")

    monkeypatch.setattr(RayExecutor, "note_stored", noted)
    summary = train_on_ray(run, tmp_path / "run")
    assert summary["env_steps"] >= 4000
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    ids = Table.concatenate(receipt.added for receipt in receipts).ids
    assert summary["episodes"] == len(ids) == len({tuple(one) for one in ids.tolist()})
    assert sum(summary["deaths"]["rollout"].values()) >= 1
    assert [cause for cause in summary["deaths"]["machine"] if cause.endswith("is gone")]


def test_too_little_room_is_one_sentence(machines: Machines, tmp_path: Path) -> None:
    flags = f"--learners 3 --machines.patience 0.1 --address {machines.address}"
    told = r"minutes for a machine for \d of 3 learner.*of 2 CPUs.*--machines.patience"
    with pytest.raises(RunFailed, match=told) as error:
        train_on_ray(tiny(flags), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("token", "told"), [("", "without the token of the cluster"), ("f" * 64, "is not that of")]
)
def test_a_missing_or_wrong_token_is_one_sentence_that_names_the_cluster(
    token: str, told: str, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(UserError, match=f"--address '{machines.address}' .*{told}") as error:
        train_on_ray(tiny(f"--address {machines.address}"), tmp_path / "run")
    assert "\n" not in str(error.value)


SMALL = "--algorithm.batch-size 16 --algorithm.hidden 16,16"
SMALL += " --evaluations.final-episodes 2 --evaluations.every 100000"


def cloning(data: Path, flags: str) -> Run:
    return bigdm_ray.configure("bc", str(data), [*SMALL.split(), *flags.split()])


@pytest.mark.long
def test_ranks_on_two_machines_go_on_from_one_checkpoint_of_a_dataset_that_one_of_them_sees(
    machines: Machines, tmp_path: Path
) -> None:
    """Two ranks that stood at different steps trained wrongly without a word."""
    machines.start("second", "learner", 1)
    data = dataset_of(tmp_path / "toys").folder
    one = "--budget.learner-steps 20 --saves.every 20"
    two = f"--learners 2 --address {machines.address}"
    train_local(cloning(data, one), tmp_path / "local")
    train_on_ray(cloning(data, f"{one} {two}"), tmp_path / "ray")
    more = "--budget.learner-steps 40 --saves.every 20"
    train_local(cloning(data, more), tmp_path / "local", resume=True)
    train_on_ray(cloning(data, f"{more} {two}"), tmp_path / "ray", resume=True)
    first, second = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("local", "ray")
    )
    assert first.version == second.version == (0, 40)
    for name, values in first.arrays.items():
        np.testing.assert_allclose(values, second.arrays[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert machines.left_behind("learner") == machines.left_behind("second") == []
    machines.kill("second")
