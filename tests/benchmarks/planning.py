"""CPU-seconds of a planned action, with random weights of the reference's size (4 layers, 4 heads, width 128, 100 bins).

    python -m tests.benchmarks.planning                       both bodies, one environment and sixteen
    python -m tests.benchmarks.planning --bodies halfcheetah --environments 1 --repeats 5

HalfCheetah: 17 + 6 numbers, 5 transitions ahead, 32 beams of 2 expansions. Hopper: 11 + 3, 15 ahead, 128 of 2. The context is full, as it is from the
fifth step of an episode on. Actions are filtered as in the official repository (cdf 0.6). One thread.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time

import numpy as np

from tests.benchmarks.common import header

BODIES = {"halfcheetah": (17, 6, 5, 32), "hopper": (11, 3, 15, 128)}
PUBLISHED = {"halfcheetah": (17.5, 5.5, 0.6), "hopper": (89.9, 33.9, 8.0)}
"""CPU-seconds an action that are known of the original code and of its cached fork, on another machine; and what is to be reached."""


class Body:
    """A planner with random weights, and some situations to plan in."""

    def __init__(self, name: str, environments: int) -> None:
        import torch

        from bigdm_ray.models.trajectory import TrajectoryTransformer
        from bigdm_ray.planning.beam import Planner, Search
        from bigdm_ray.tokens.bins import Bins

        seen, acted, horizon, beams = BODIES[name]
        dims = seen + acted + 2
        torch.manual_seed(0)
        net = TrajectoryTransformer([0] * dims, 100, 10, 128, 4, 4).eval().requires_grad_(False)
        self._planner = Planner(net, Bins([0] * dims), seen, acted, Search(horizon, beams, 2, k_act=0, cdf_act=0.6))
        self._past = torch.randint(0, 100, (environments, 4, dims))
        self._state = torch.randint(0, 100, (environments, seen))
        self._chance = np.random.default_rng(0)

    def plan(self) -> None:
        """Plan an action for each environment."""
        numbers = self._planner.numbers(self._chance.random((len(self._state), 2), np.float32))
        self._planner.plan(self._past, self._state, numbers)


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bodies", nargs="+", default=list(BODIES), choices=list(BODIES))
    parser.add_argument("--environments", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time goes, for one plan")
    given = parser.parse_args()
    header()
    for name in given.bodies:
        original, fork, target = PUBLISHED[name]
        for environments in given.environments:
            body = Body(name, environments)
            body.plan()
            cpu, wall = [], []
            for _ in range(given.repeats):
                cpu_began, wall_began = time.process_time(), time.perf_counter()
                body.plan()
                cpu.append((time.process_time() - cpu_began) / environments)
                wall.append((time.perf_counter() - wall_began) / environments)
            print(
                f"{name:<12} {environments:>3} environments {statistics.median(cpu):>7.3f} CPU-s an action {statistics.median(wall):>7.3f} s wall   "
                f"(to reach {target}; published, not measured here: original {original}, cached fork {fork})",
                flush=True,
            )
            if given.profile:
                with cProfile.Profile(time.process_time) as profile:
                    body.plan()
                pstats.Stats(profile).sort_stats("tottime").print_stats(16)


if __name__ == "__main__":
    main()
