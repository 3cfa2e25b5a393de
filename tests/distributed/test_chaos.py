"""kill -9 of any process of a run: the budget is done, the checkpoint valid, no acknowledged
episode lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY, descendants, episodes_on_disk, kill_one, tiny
from loopback import kill_all, start_ray

import bigdm_ray
from bigdm_ray.distributed.executor import RayExecutor
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.replay import Store, Table
from bigdm_ray.replay.living import LivingEpisodes
from bigdm_ray.replay.store import Receipt
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import Run
from bigdm_ray.training.learner import LearnerProgress

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Killer:
    """Kills a process of a kind some moments after some of the answers that the driver gets."""

    def __init__(self, kind: str, moments: list[tuple[int, float]]) -> None:
        """`moments`: from which answer on, by number, and so many seconds after it."""
        self.kind, self.moments, self.answers = kind, moments, 0

    def answered(self) -> None:
        """The driver was answered."""
        self.answers += 1
        if self.moments and self.answers >= self.moments[0][0]:
            time.sleep(self.moments[0][1])  # others go on with the calls that are in flight
            if kill_one(self.kind):
                del self.moments[0]


def check(run: Run, folder: Path, acknowledged: Table) -> None:
    """The store holds exactly what the rule keeps of all acknowledged episodes; the newest
    checkpoint can be read."""
    ids = list(map(tuple, acknowledged.ids.tolist()))
    assert len(ids) == len(set(ids)), "an episode was acknowledged twice"
    living = LivingEpisodes(run.algorithm.retention())
    living.learn(acknowledged)
    expected = living.table
    store = Store(folder / "store", run.algorithm.retention()).open()
    assert store.problems == []
    np.testing.assert_array_equal(store.table.ids, expected.ids)
    np.testing.assert_array_equal(store.table.returns, expected.returns)
    assert (
        checkpoint.last_checkpoint(folder / "checkpoints", {"algorithm": "udrl", "task": run.task})
        is not None
    )


@pytest.mark.parametrize("kind", ["RolloutActor", "ReplayActor", "LearnerActor"])
def test_a_killed_actor_costs_nothing_that_was_acknowledged(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(kind, [(2, 0.0), (6, 0.004), (10, 0.02)])
    receipts: list[Receipt] = []
    stored, learned = RayExecutor.note_stored, RayExecutor.note_update

    def noted(self: RayExecutor, task: str, receipt: Receipt) -> None:
        receipts.append(receipt)
        stored(self, task, receipt)
        if kind != "LearnerActor":  # rounds that waited while one was made anew come in one receipt
            for _ in np.unique(receipt.added.ids[:, :2], axis=0):
                killer.answered()

    def taken(self: RayExecutor, progress: LearnerProgress, weights_ref: Any) -> None:
        learned(self, progress, weights_ref)
        if kind == "LearnerActor":
            killer.answered()

    monkeypatch.setattr(RayExecutor, "note_stored", noted)
    monkeypatch.setattr(RayExecutor, "note_update", taken)
    # who plays waits for who learns, so that the budget is not spent while one is made anew
    flags = "--budget.env-steps 4000 --machines.max-staleness 10"
    run = tiny(f"{flags} --saves.every 1000 --evaluations.every 2000")
    summary = train_on_ray(run, tmp_path / "run")
    assert killer.moments == [], f"not all were killed in {killer.answers} answers"
    assert summary["env_steps"] >= 4000
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    acknowledged = Table.concatenate(receipt.added for receipt in receipts)
    assert summary["episodes"] == len(acknowledged)
    check(run, tmp_path / "run", acknowledged)


def struck(command: list[str], folder: Path, saves: int) -> Table:
    """Run a driver and kill -9 it right at an `add`, once there are so many checkpoints; the
    episodes that were on disk."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900

    def waiting() -> bool:
        assert process.poll() is None, "the run ended before it could be killed"
        return time.monotonic() < deadline

    while len(checkpoint.complete_checkpoints(folder / "checkpoints")) < saves and waiting():
        time.sleep(0.05)
    there = set((folder / "store").glob("*.arrow"))
    while not set((folder / "store").glob("*.arrow")) - there and waiting():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(checkpoint.complete_checkpoints(folder / "checkpoints")) >= saves
    return episodes_on_disk(folder / "store")


BOTH = (0, 2)


@pytest.mark.parametrize(
    ("lock_step", "saves"),
    [
        ("true", (2,)),
        ("false", BOTH),
        pytest.param("true", BOTH, marks=pytest.mark.long),
    ],
)
def test_a_killed_driver_resumes_without_losing_an_episode(
    lock_step: str, saves: tuple[int, ...], tmp_path: Path
) -> None:
    """Killed once there are so many checkpoints; resumed at once, while its actors may still
    live."""
    folder = tmp_path / "run"
    budget = 12_000
    flags = f"--budget.env-steps {budget} --saves.every 1500 --evaluations.every 6000"
    flags += f" --machines.lock-step {lock_step}"
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
    on_disk = []
    for count in saves:
        on_disk.append(struck(command, folder, count))
        if not count:
            assert len(on_disk[0]) and checkpoint.complete_checkpoints(folder / "checkpoints") == []
        command += [] if "--resume" in command else ["--resume"]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if "Ray could not be started" not in done.stderr:  # on a machine that others load
            break
    assert done.returncode == 0, done.stderr
    run = tiny(flags)
    summary = json.loads((folder / "summary.json").read_text())
    assert budget <= summary["env_steps"] < budget + 3_000, (
        "the budget is spent once, whatever was played before the kills"
    )
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    store = Store(folder / "store", run.algorithm.retention()).open()
    assert store.problems == []
    ids = set(map(tuple, store.table.ids.tolist()))
    assert len(ids) == len(store.table)
    worst = store.table.returns.min()
    for before in on_disk:
        lost = [
            row
            for row, value in zip(before.ids.tolist(), before.returns, strict=True)
            if value > worst and tuple(row) not in ids
        ]
        assert lost == []
    saved = checkpoint.last_checkpoint(
        folder / "checkpoints", {"algorithm": "udrl", "task": run.task}
    )
    assert saved is not None and saved.counters.env_steps == summary["env_steps"]
    assert {tuple(id) for id in saved.living[""]} == ids
    loaded = bigdm_ray.load(folder)
    assert loaded.version == (summary["incarnation"], summary["learner_steps"])
    assert summary["incarnation"] == (0 if lock_step == "true" else len(saves))


@contextlib.contextmanager
def node(*flags: str) -> Iterator[subprocess.Popen[str]]:
    """A node of a Ray cluster, started as its user would, and killed with all below it at the
    end."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *flags]
    command += ["--node-ip-address", "127.0.0.1", "--num-cpus", "4", "--disable-usage-stats"]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    process = start_ray(command, os.environ)
    try:
        yield process
    finally:
        kill_all(process)


@pytest.mark.ray(own=True)
@pytest.mark.long
def test_a_lost_node_costs_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with a rollout actor goes, and whatever it held of shards on their way."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_health_check_period_ms", "200")
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    where = tempfile.mkdtemp(dir="/tmp")  # what is longer does not fit into the names of sockets
    head = ("--head", "--port", address.split(":")[1], "--temp-dir", where)
    flags = "--budget.env-steps 4000 --saves.every 1000 --evaluations.every 2000 --actors 2"
    run = tiny(f"{flags} --address {address}")
    receipts: list[Receipt] = []
    stored = RayExecutor.note_stored
    workers: list[int] = []
    with node(*head, "--include-dashboard", "false"), node("--address", address) as second:

        def noted(self: RayExecutor, task: str, receipt: Receipt) -> None:
            receipts.append(receipt)
            stored(self, task, receipt)
            if len(receipts) == 4:
                below = descendants(second.pid)
                workers.extend(p for p in below if below[p].startswith("ray::RolloutActor"))
                for pid in (*below, second.pid):
                    os.kill(pid, signal.SIGKILL)

        monkeypatch.setattr(RayExecutor, "note_stored", noted)
        summary = train_on_ray(run, tmp_path / "run")
    shutil.rmtree(where)
    assert workers, "no rollout actor was on the node that was lost"
    assert summary["env_steps"] >= 4000
    assert summary["learner_steps"] == run.algorithm.owed(summary["env_steps"], summary["episodes"])
    acknowledged = Table.concatenate(receipt.added for receipt in receipts)
    assert summary["episodes"] == len(acknowledged)
    check(run, tmp_path / "run", acknowledged)
