"""Anonymous memory of a run over 1,000 iterations.

    python -m tests.benchmarks.memory            one process
    python -m tests.benchmarks.memory --ray      the default: driver, rollout actor, replay, learner, evaluator, and Ray's own processes

Touching a map raises the resident set by the file's size and costs nothing, so RssAnon is what is judged.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import bigdm_ray
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.metrics import Report
from tests.benchmarks.common import header

ITERATIONS = 1000
FLAGS = "--algorithm.n-updates-per-iter 4 --algorithm.batch-size 64 --algorithm.replay-size 300 --saves.every 20000 --saves.report-every 1000"


def anonymous_mib(process: int | str = "self") -> float:
    """RssAnon of a process; 0 of one that is gone."""
    try:
        line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) / 1024


def descendants(root: int) -> dict[int, str]:
    """The processes below one, itself included, and what they call themselves."""
    children = collections.defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
        except OSError:
            continue
    found, waiting = {}, [root]
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        found[process] = words.partition(".")[0] if words.startswith("ray::") else "driver" if process == root else "Ray's own"
    return found


def told(points: np.ndarray, unit: str) -> None:
    """Print points `[n, 2]` of (when, MiB) at five moments, and the slope over the second half."""
    last = points[-1, 0]
    half = points[points[:, 0] >= last / 2]
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) * last
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        when, mib = points[np.argmin(np.abs(points[:, 0] - share * last))]
        print(f"  {unit} {when:>7.0f}: {mib:8.1f} MiB")
    print(f"  slope over the second half: {slope:+.2f} MiB in {last:,.0f} {unit}s")


def in_one_process(folder: Path) -> None:
    """Train on CartPole with few updates an iteration, and note the memory at each report."""
    run = bigdm_ray.configure("udrl", "cartpole", [*FLAGS.split(), "--budget.learner-steps", str(4 * ITERATIONS)])
    seen: list[tuple[float, float]] = []

    def note(report: Report) -> None:
        seen.append((report["time/learner_steps"] / 4, anonymous_mib()))

    train_local(run, folder, listeners=[note])
    told(np.array(seen), "iteration")


def through_ray(folder: Path) -> None:
    """The same run through Ray; a sample of all its processes each second, together and by name."""
    words = [sys.executable, "-m", "bigdm_ray.run", "udrl", "cartpole", "--quiet", *FLAGS.split(), "--budget.learner-steps", str(4 * ITERATIONS)]
    driver = subprocess.Popen([*words, "--folder", str(folder)])
    seen: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    began = time.monotonic()
    while driver.poll() is None:
        by_name: dict[str, float] = collections.defaultdict(float)
        for process, name in descendants(driver.pid).items():
            by_name[name] += anonymous_mib(process)
        for name, mib in {**by_name, "together": sum(by_name.values())}.items():
            seen[name].append((time.monotonic() - began, mib))
        time.sleep(1.0)
    assert driver.returncode == 0
    for name, points in seen.items():
        if len(points) > 10:
            print(name)
            told(np.array(points), "second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    header()
    with tempfile.TemporaryDirectory() as kept:
        (through_ray if given.ray else in_one_process)(Path(kept) / "run")
