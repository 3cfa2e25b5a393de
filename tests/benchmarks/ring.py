"""The Ray loop against one process: python -m tests.benchmarks.ring [--minutes 1] [--actors 1]
[FLAGS OF THE RAY RUN]

Environment and learner steps per wall second, from the first learner step to the last report,
LunarLander with the default preset, one learner, one torch thread each. Both runs start from the
same seed and have the same time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import bigdm_ray
from bigdm_ray.training.metrics import Report
from tests.benchmarks.common import header


def rates(minutes: float, local: bool, more: list[str], folder: Path) -> tuple[float, float]:
    """(environment steps, learner steps) per wall second."""
    flags = (
        f"--budget.minutes {minutes} --evaluations.every 100000000 --evaluations.final-episodes 1"
    )
    flags += " --saves.every 100000000 --saves.report-every 2000"
    run = bigdm_ray.configure("udrl", "lunarlander", [*flags.split(), *more])
    seen: list[tuple[float, float, float]] = []

    def note(report: Report) -> None:
        if report["time/learner_steps"] > 0 and "time/wall_s" in report:
            seen.append(
                (time.perf_counter(), report["time/env_steps"], report["time/learner_steps"])
            )

    bigdm_ray.train(run, folder, note, local=local)
    # the last report is of the end of the run
    (began, env, learner), (ended, more_env, more_learner) = (
        seen[0],
        seen[-2],
    )
    return (more_env - env) / (ended - began), (more_learner - learner) / (ended - began)


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--actors", type=int, default=1)
    asked, more = parser.parse_known_args()
    header()
    with tempfile.TemporaryDirectory() as folder:
        ray = rates(
            asked.minutes, False, ["--actors", str(asked.actors), *more], Path(folder) / "ray"
        )
        local = rates(asked.minutes, True, [], Path(folder) / "local")
    for name, (env, learner) in (
        ("one process", local),
        (f"Ray, {asked.actors} actor(s) + 1 learner", ray),
    ):
        print(
            f"{name:<28} {env:>10,.0f} environment steps/s   {learner:>8,.1f} learner steps/s  "
            " (wall)"
        )
    print(
        f"ratio: {ray[0] / local[0]:.2f} environment steps, {ray[1] / local[1]:.2f} learner steps"
    )


if __name__ == "__main__":
    main()
