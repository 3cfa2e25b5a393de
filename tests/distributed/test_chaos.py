"""kill -9 of any process of a run: the budget is done, the checkpoint valid, no acknowledged episode lost or doubled."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, episodes_on_disk, kill_one, tiny

import bigdm_ray
from bigdm_ray.distributed.crew import RayCrew
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.replay import Store, Table
from bigdm_ray.replay.store import Receipt
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Killer(threading.Thread):
    """Kills one process of a kind every now and then until told to stop."""

    def __init__(self, kind: str, every: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.kind, self.every, self.killed = kind, every, 0
        self._random = random.Random(seed)
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every * self._random.uniform(0.5, 1.5)):
            if self.killed < 3:
                self.killed += kill_one(self.kind)


def check(run: Run, folder: Path, acknowledged: Table) -> None:
    """The store holds exactly what the rule keeps of all acknowledged episodes; the newest checkpoint can be read."""
    ids = list(map(tuple, acknowledged.ids.tolist()))
    assert len(ids) == len(set(ids)), "an episode was acknowledged twice"
    expected, _ = Table().merged(acknowledged, run.algorithm.retention())
    store = Store(folder / "store", run.algorithm.retention()).open()
    assert store.problems == []
    np.testing.assert_array_equal(store.table.ids, expected.ids)
    np.testing.assert_array_equal(store.table.returns, expected.returns)
    assert (
        checkpoint.last(folder / "checkpoints", {"algorithm": "udrl", "task": run.task}) is not None
    )


@pytest.mark.parametrize("kind", ["PlayerActor", "ReplayActor", "LearnerActor"])
def test_a_killed_actor_costs_nothing_that_was_acknowledged(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts: list[Receipt] = []
    stored = RayCrew.stored

    def noted(self: RayCrew, receipt: Receipt) -> None:
        receipts.append(receipt)
        stored(self, receipt)
        if not killer.is_alive() and not killer.over.is_set():
            killer.start()

    monkeypatch.setattr(RayCrew, "stored", noted)
    flags = "--budget.env-steps 1000000 --budget.minutes 0.8 --saves.every 8000 --evaluations.every 5000 --algorithm.n-updates-per-iter 20"
    run = tiny(flags)
    killer = Killer(kind, every=6.0, seed=3)
    summary = train_on_ray(run, tmp_path / "run")
    killer.over.set()
    killer.join()
    assert killer.killed >= 2, "nothing was killed, so nothing was tested"
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    acknowledged = Table.joined(receipt.added for receipt in receipts)
    assert summary["episodes"] == len(acknowledged)
    check(run, tmp_path / "run", acknowledged)


def struck(command: list[str], folder: Path, saves: int) -> Table:
    """Run a driver and kill -9 it right at an `add`, once there are so many checkpoints; the episodes that were on disk."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120

    def waiting() -> bool:
        assert process.poll() is None, "the run ended before it could be killed"
        return time.monotonic() < deadline

    while len(checkpoint.saved(folder / "checkpoints")) < saves and waiting():
        time.sleep(0.05)
    there = set((folder / "store").glob("*.arrow"))
    while not set((folder / "store").glob("*.arrow")) - there and waiting():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(checkpoint.saved(folder / "checkpoints")) >= saves
    return episodes_on_disk(folder / "store")


@pytest.mark.parametrize("lock_step", ["true", "false"])
def test_a_killed_driver_resumes_without_losing_an_episode(lock_step: str, tmp_path: Path) -> None:
    """Killed before its first checkpoint, and once more after its second; resumed at once, while actors of the killed driver may still live."""
    folder = tmp_path / "run"
    flags = f"--budget.env-steps 60000 --saves.every 4000 --evaluations.every 20000 --machines.lock-step {lock_step}"
    command = [
        sys.executable,
        "-m",
        "bigdm_ray.run",
        "udrl",
        "toy-vector",
        *TINY.split(),
        *flags.split(),
        "--folder",
        str(folder),
    ]
    early = struck(command, folder, saves=0)
    assert len(early) and checkpoint.saved(folder / "checkpoints") == []
    late = struck([*command, "--resume"], folder, saves=2)
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tiny(flags)
    summary = json.loads((folder / "summary.json").read_text())
    assert 60_000 <= summary["env_steps"] < 63_000, (
        "the budget is spent once, whatever was played before the kills"
    )
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    store = Store(folder / "store", run.algorithm.retention()).open()
    assert store.problems == []
    ids = set(map(tuple, store.table.ids.tolist()))
    assert len(ids) == len(store.table)
    worst = store.table.returns.min()
    for before in (early, late):
        lost = [
            row
            for row, value in zip(before.ids.tolist(), before.returns, strict=True)
            if value > worst and tuple(row) not in ids
        ]
        assert lost == []
    saved = checkpoint.last(folder / "checkpoints", {"algorithm": "udrl", "task": run.task})
    assert saved is not None and saved.counters.env_steps == summary["env_steps"]
    assert {tuple(id) for id in saved.living} == ids
    loaded = bigdm_ray.load(folder)
    assert loaded.version == (summary["incarnation"], summary["learner_steps"])
    assert summary["incarnation"] == (0 if lock_step == "true" else 2)
