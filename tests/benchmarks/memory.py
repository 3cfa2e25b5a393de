"""Anonymous memory of a run over 1,000 iterations, one process: python -m tests.benchmarks.memory

Touching a map raises the resident set by the file's size and costs nothing, so RssAnon is what is
judged.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import bigdm_ray
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.metrics import Report
from tests.benchmarks.common import header

ITERATIONS = 1000


def anonymous_mib() -> float:
    """RssAnon of this process."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    """Train on CartPole with few updates an iteration; print the memory and its slope."""
    header()
    flags = (
        "--algorithm.n-updates-per-iter 4 --algorithm.batch-size 64 --algorithm.replay-size 300"
        " --saves.every 20000 --saves.report-every 1000"
    )
    run = bigdm_ray.configure(
        "udrl", "cartpole", [*flags.split(), "--budget.learner-steps", str(4 * ITERATIONS)]
    )
    seen: list[tuple[float, float]] = []

    def note(report: Report) -> None:
        seen.append((report["time/learner_steps"] / 4, anonymous_mib()))

    with tempfile.TemporaryDirectory() as folder:
        train_local(run, Path(folder) / "run", listeners=[note])
    points = np.array(seen)
    half = points[points[:, 0] >= ITERATIONS / 2]
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) * 1000
    for iteration in (100, 250, 500, 750, ITERATIONS):
        print(
            f"iteration {iteration:>5}:"
            f" {points[np.argmin(np.abs(points[:, 0] - iteration)), 1]:8.1f} MiB"
        )
    print(f"slope over the second half: {slope:+.2f} MiB per 1,000 iterations")


if __name__ == "__main__":
    main()
