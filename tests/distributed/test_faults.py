"""What the error of a call says: of a dead actor, of an object that is lost, or of the program."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import descendants, kill_one, tiny

import bigdm_ray
from bigdm_ray.distributed import learners as groups
from bigdm_ray.distributed.actors import ActorSlot, CallFault, classify_fault
from bigdm_ray.distributed.executor import RayExecutor
from bigdm_ray.distributed.learners import LearnerActor
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.replay.store import Receipt
from bigdm_ray.training.learner import LearnerProgress
from bigdm_ray.training.params import Weights

# isort: split
import ray  # after bigdm_ray.distributed, which sets what Ray reads when it is imported
from ray import exceptions

pytestmark = pytest.mark.ray


def wrapped(cause: Exception) -> BaseException:
    """As `ray.get` raises what a call has raised."""
    return exceptions.RayTaskError("add", "traceback", cause).as_instanceof_cause()


def test_a_fault_of_a_machine_is_told_from_an_error_of_the_program() -> None:
    lost = exceptions.ObjectLostError("ff" * 14, None, "")
    told = {
        CallFault.DEATH: [
            exceptions.ActorDiedError(),
            exceptions.ActorUnavailableError("gone", None),
            exceptions.OutOfMemoryError("the node is full"),
        ],
        CallFault.RESULT: [lost, exceptions.OwnerDiedError("ff" * 14, None, "")],
        CallFault.ARGUMENT: [
            wrapped(lost),
            wrapped(exceptions.ObjectReconstructionFailedError("ff" * 14, None, "", "")),
            wrapped(exceptions.ReferenceCountingAssertionError("ff" * 14, None, "")),
            wrapped(exceptions.ActorDiedError()),
        ],
        None: [
            wrapped(RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
            wrapped(MemoryError()),
            RuntimeError("no answer of a call"),
        ],
    }
    for expected, errors in told.items():
        assert [classify_fault(error) for error in errors] == [expected] * len(errors)


@ray.remote
class Doomed:
    def promise(self) -> None:
        """Is killed before it can answer."""
        time.sleep(600)


def lost_object() -> Any:
    """A reference to what nobody has any more."""
    doomed: Any = Doomed
    actor = doomed.remote()
    reference = actor.promise.remote()
    ray.kill(actor)
    return reference


@pytest.mark.parametrize("lock_step", ["true", "false"])
def test_a_lost_object_is_not_its_callees_death(
    lock_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First episodes on their way to the replay actor, then weights on theirs to a worker."""
    calls: list[tuple[int, int]] = []
    executor: list[RayExecutor] = []
    receipts: list[Receipt] = []
    submit, stored = RayExecutor.submit, RayExecutor.note_stored

    def losing(
        self: RayExecutor, task: str, round: int, group: int, *others: Any
    ) -> tuple[ActorSlot, int, list[Any]]:
        calls.append((round, group))
        executor[:] = [self]
        if len(calls) == 12:
            self._weights_ref = lost_object()
        slot, generation, (data, summary) = submit(self, task, round, group, *others)
        return slot, generation, [lost_object() if len(calls) == 5 else data, summary]

    def noted(self: RayExecutor, task: str, receipt: Receipt) -> None:
        receipts.append(receipt)
        stored(self, task, receipt)

    monkeypatch.setattr(RayExecutor, "submit", losing)
    monkeypatch.setattr(RayExecutor, "note_stored", noted)
    flags = "--budget.env-steps 1500 --saves.every 100000 --evaluations.every 100000"
    run = tiny(f"{flags} --actors 2 --machines.lock-step {lock_step}")
    summary = train_on_ray(run, tmp_path / "run")
    (used,) = executor
    slots = [used.replay, *used.workers]
    assert [slot.generation for slot in slots] == [0] * len(slots)
    assert used.learners.generation == 0
    assert calls.count(calls[4]) >= 2, "the lost round is played again, and may lack weights then"
    assert calls.count(calls[11]) >= 2, "so is the one that had no weights"
    ids = [tuple(id) for receipt in receipts for id in receipt.added.ids.tolist()]
    assert len(ids) == summary["episodes"] == len(set(ids)), "each episode is stored once"
    assert {id[:2] for id in ids} == set(calls)
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])


@ray.remote
class Fragile:
    def setup(self, mark: Path) -> None:
        """Dies the first time."""
        if not mark.exists():
            mark.touch()
            os._exit(1)


def test_a_death_before_the_first_call_changes_no_random_stream(tmp_path: Path) -> None:
    slot = ActorSlot("rollout actor", Fragile, {}, (tmp_path / "mark",))
    slot.settle()
    assert (tmp_path / "mark").exists() and slot.generation == 0
    slot.stop()


class Wrong(LearnerActor.__ray_metadata__.modified_class):  # type: ignore[name-defined,misc]
    """Its second rank has an error in the program, at its third update."""

    calls = 0

    def _update(self, moves: Any, steps: int) -> tuple[Weights | None, LearnerProgress]:
        self.calls += 1
        if self._learner.rank == 1 and self.calls == 3:
            raise ValueError("shapes do not match")
        answer: tuple[Weights | None, LearnerProgress] = super()._update(moves, steps)
        return answer


TWO = "--learners 2 --evaluations.every 100000 --algorithm.n-updates-per-iter 20"


@pytest.mark.parametrize("lock_step", ["true", "false"])
def test_an_error_of_the_program_on_one_of_two_ranks_ends_the_run(
    lock_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(groups, "LearnerActor", ray.remote(Wrong))
    deaths: list[BaseException] = []
    monkeypatch.setattr(
        groups.LearnerGroup, "handle_death", lambda self, generation, why: deaths.append(why)
    )
    with pytest.raises(ValueError, match="shapes do not match"):
        train_on_ray(
            tiny(f"{TWO} --budget.env-steps 100000 --machines.lock-step {lock_step}"),
            tmp_path / "run",
        )
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert deaths == []


def test_a_run_outlives_one_of_two_ranks(tmp_path: Path) -> None:
    killed: list[bool] = []

    def strike(report: dict[str, float]) -> None:
        if not killed and report["time/learner_steps"] > 100:
            killed.append(kill_one("LearnerActor"))

    run = tiny(f"{TWO} --budget.env-steps 6000 --saves.every 1000 --saves.report-every 500")
    summary = train_on_ray(run, tmp_path / "run", listeners=[strike])
    assert killed == [True]
    assert summary["incarnation"] == 1
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    assert bigdm_ray.load(tmp_path / "run").version == (1, summary["learner_steps"])
    assert np.isfinite(summary["return_mean"])


@pytest.mark.parametrize("how", ["done", "wrong", "stopped"])
def test_no_actor_outlives_its_run_in_a_session_of_the_users(how: str, tmp_path: Path) -> None:
    def end(report: dict[str, float]) -> None:
        if how == "wrong":
            raise ValueError("a listener's own")
        if how == "stopped":
            raise KeyboardInterrupt

    run = tiny("--budget.env-steps 800 --saves.report-every 400 --evaluations.every 100000")
    expected = {"done": None, "wrong": ValueError, "stopped": KeyboardInterrupt}[how]
    if expected is None:
        train_on_ray(run, tmp_path / "run", listeners=[end])
    else:
        with pytest.raises(expected):
            train_on_ray(run, tmp_path / "run", listeners=[end])
    assert ray.is_initialized(), "the session is its user's"
    deadline = time.monotonic() + 120
    while (alive := working()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive == []


def working() -> list[str]:
    """The actors of this package that are alive below this process."""
    kinds = ("RolloutActor", "ReplayActor", "LearnerActor", "EvaluatorActor")
    names = descendants(os.getpid()).values()
    return [name for name in names if name.startswith(tuple(f"ray::{kind}" for kind in kinds))]
