"""Machines of a cluster on loopback are lost while a run goes on: what it costs, as JSON.

python -m tests.benchmarks.cluster_chaos                          all three, about 10 minutes
python -m tests.benchmarks.cluster_chaos rollout --kills 10       or `learner`, or `head`

Four machines and more, of which the driver's alone has the run's folder (see
`tests/distributed/loopback.py`; it needs rights for mount namespaces, else all see it).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "distributed"))

from helpers import TINY, episodes_on_disk
from loopback import Machines, namespaces

import bigdm_ray
from bigdm_ray.distributed.executor import RayExecutor
from bigdm_ray.distributed.loop import Driver, train_on_ray
from bigdm_ray.replay import Table
from bigdm_ray.replay.store import Receipt
from bigdm_ray.training.learner import LearnerProgress

FLAGS = f"{TINY} --algorithm.replay-size 1000000 --algorithm.episodes-per-iteration 8"
FLAGS += " --evaluations.every 100000000 --device cpu"


class Seen:
    """What the driver of this process has been told, and when."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self.learned: list[float] = []
        self.spent = self.drained = 0.0
        stored, learned, drain = RayExecutor.note_stored, RayExecutor.note_update, Driver._drain

        def note_stored(executor: RayExecutor, task: str, receipt: Receipt) -> None:
            self.receipts.append(receipt)
            stored(executor, task, receipt)

        def note_learned(executor: RayExecutor, progress: LearnerProgress, ref: Any) -> None:
            if progress.steps:
                self.learned.append(time.monotonic())
            learned(executor, progress, ref)

        def note_drain(driver: Driver) -> None:
            self.spent = time.monotonic()
            drain(driver)
            self.drained = time.monotonic()

        RayExecutor.note_stored, RayExecutor.note_update = note_stored, note_learned
        Driver._drain = note_drain

    def wait(self, receipts: int) -> bool:
        """Wait for so many more receipts; False where the budget is spent first."""
        until = len(self.receipts) + receipts
        while len(self.receipts) < until and not self.spent:
            time.sleep(0.05)
        return not self.spent


def same_once(receipts: list[Receipt], folder: Path) -> dict[str, Any]:
    """Whether each acknowledged episode is on disk, once."""
    told = [tuple(one) for one in Table.concatenate(r.added for r in receipts).ids.tolist()]
    there = [tuple(one) for one in episodes_on_disk(folder / "store").ids.tolist()]
    return {
        "acknowledged": len(told),
        "on disk": len(there),
        "lost": len(set(told) - set(there)),
        "twice": len(told) - len(set(told)) + len(there) - len(set(there)),
    }


def rollout(machines: Machines, folder: Path, kills: int, budget: int) -> dict[str, Any]:
    """Rollout machines are lost at random moments; the last two are never replaced."""
    for name in ("r0", "r1", "r2"):
        machines.start(name, "rollout", 1)
    flags = f"{FLAGS} --actors 3 --address {machines.address} --budget.env-steps {budget}"
    run = bigdm_ray.configure("udrl", "toy-vector", flags.split())
    seen, chance, done = Seen(), random.Random(1), []

    alive = ["r0", "r1", "r2"]

    def replace(name: str) -> None:
        machines.start(name, "rollout", 1)
        alive.append(name)

    def strike() -> None:
        helpers = []
        for number in range(kills):
            if not seen.wait(chance.randint(10, 40)):
                break
            time.sleep(chance.random())
            while not alive and not seen.spent:
                time.sleep(0.1)
            if seen.spent:
                break
            name = alive.pop(chance.randrange(len(alive)))
            machines.kill(name)
            done.append(name)
            if number < kills - 2:
                helpers.append(threading.Thread(target=replace, args=(f"n{number}",)))
                helpers[-1].start()
        for helper in helpers:
            helper.join()

    striker = threading.Thread(target=strike)
    striker.start()
    summary = train_on_ray(run, folder)
    ended = time.monotonic()
    striker.join()
    return {
        "kills": len(done),
        "never replaced": max(0, len(done) - (kills - 2)),
        "env_steps of budget": [summary["env_steps"], budget],
        "s from the budget's end to that of storing and learning": round(
            seen.drained - seen.spent, 1
        ),
        "s to the run's end, final evaluation included": round(ended - seen.spent, 1),
        "deaths": summary["deaths"],
    } | same_once(seen.receipts, folder)


def learner(machines: Machines, folder: Path, budget: int) -> dict[str, Any]:
    """The learner's machine is lost and replaced after some seconds."""
    machines.start("r0", "rollout", 1)
    flags = f"{FLAGS} --actors 1 --saves.every 500 --address {machines.address}"
    run = bigdm_ray.configure(
        "udrl", "toy-vector", [*flags.split(), "--budget.env-steps", str(budget)]
    )
    seen, times = Seen(), dict[str, float]()

    def strike() -> None:
        while len(seen.learned) < 20 and not seen.spent:
            time.sleep(0.05)
        machines.kill("learner")
        times["killed"] = time.monotonic()
        time.sleep(4)
        machines.start("again", "learner", 1)
        times["up"] = time.monotonic()

    striker = threading.Thread(target=strike)
    striker.start()
    summary = train_on_ray(run, folder)
    striker.join()
    after = [at for at in seen.learned if at > times["killed"] + 2]
    return {
        "s from kill to the replacement up": round(times["up"] - times["killed"], 1),
        "s from there to the next learner step": round(after[0] - times["up"], 1),
        "env_steps of budget": [summary["env_steps"], budget],
        "deaths": summary["deaths"],
    } | same_once(seen.receipts, folder)


def head(machines: Machines, folder: Path, budget: int) -> dict[str, Any]:
    """The driver's machine and with it the cluster are lost; all start again with --resume."""
    machines.start("r0", "rollout", 1)
    command = [sys.executable, "-m", "bigdm_ray.run", "udrl", "toy-vector", *FLAGS.split()]
    command += ["--address", machines.address, "--folder", str(folder), "--saves.every", "2000"]
    command += ["--budget.env-steps", str(budget), "--quiet"]
    driver = subprocess.Popen(command)
    while len(list((folder / "store").glob("*.arrow"))) < 30:
        assert driver.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    for name in ("head", "r0", "learner"):
        machines.kill(name)
    driver.wait()
    before = {tuple(one) for one in episodes_on_disk(folder / "store").ids.tolist()}
    machines.start("head", "head", 0)
    machines.start("learner2", "learner", 1)
    machines.start("r2", "rollout", 1)
    there, began = set((folder / "store").glob("*.arrow")), time.monotonic()
    driver = subprocess.Popen([*command, "--resume"])
    while not set((folder / "store").glob("*.arrow")) - there:
        assert driver.poll() is None, "the run ended before it stored anything"
        time.sleep(0.05)
    went_on = time.monotonic() - began
    code = driver.wait()
    after = [tuple(one) for one in episodes_on_disk(folder / "store").ids.tolist()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "exit code": code,
        "s from --resume to the next stored episode": round(went_on, 1),
        "acknowledged before": len(before),
        "lost": len(before - set(after)),
        "twice": len(after) - len(set(after)),
        "episodes counted and on disk": [summary["episodes"], len(after)],
        "env_steps of budget": [summary["env_steps"], budget],
    }


def main() -> None:
    """The command."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("which", nargs="*", default=["rollout", "learner", "head"])
    asked.add_argument("--kills", type=int, default=10)
    asked.add_argument("--budget", type=int, default=0, help="environment steps")
    given = asked.parse_args()
    told: dict[str, Any] = {"folders are private": namespaces()}
    for which in given.which:
        with tempfile.TemporaryDirectory() as scratch:
            machines = Machines(Path(scratch))
            os.environ.update(machines.environment)
            before = os.getloadavg()[0]
            began = time.monotonic()
            try:
                machines.start("head", "head", 0)
                machines.start("learner", "learner", 1)
                folder = Path(scratch) / "run"
                if which == "rollout":
                    figures = rollout(machines, folder, given.kills, given.budget or 60_000)
                elif which == "learner":
                    figures = learner(machines, folder, given.budget or 6_000)
                else:
                    figures = head(machines, folder, given.budget or 8_000)
            finally:
                machines.close()
            load = [round(before, 1), round(os.getloadavg()[0], 1)]
            told[which] = figures | {"load": load, "wall_s": round(time.monotonic() - began)}
            print(json.dumps({which: told[which]}, indent=1), file=sys.stderr, flush=True)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
