"""Environment steps per CPU-second of whole episodes, LunarLander with the behaviour function:
python -m tests.benchmarks.rollout"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

import bigdm_ray
from bigdm_ray.envs import find_task
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout_worker import RolloutWorker
from tests.benchmarks.common import header, row


def playing(episodes: int, environments: int) -> Callable[[], float]:
    """A round of `episodes` in `environments` rows, as the rollout actors play it."""
    flags = [
        "--rollouts.environments",
        str(environments),
        "--algorithm.episodes-per-iteration",
        str(episodes),
    ]
    run = bigdm_ray.configure("udrl", "lunarlander", flags)
    worker = RolloutWorker(run)
    torch.default_generator.manual_seed(0)
    model = run.algorithm.build({"lunarlander": find_task("lunarlander").signature()})
    weights = Weights.of(model, (0, 0))
    rounds = itertools.count()
    commands = {
        "desired_return": np.full(episodes, 200, np.float32),
        "desired_horizon": np.full(episodes, 300, np.float32),
    }
    era, name = (0, 0, 0), run.tasks[0].name
    return lambda: float(
        worker.play(name, weights, next(rounds), 0, era, commands, episodes).env_steps
    )


def bare(rows: int, steps: int = 500) -> Callable[[], float]:
    """EnvPool alone with random actions: the ceiling."""
    import envpool

    env = envpool.make("LunarLander-v3", "gymnasium", num_envs=rows, seed=0, num_threads=1)
    env.reset()
    chance = np.random.default_rng(0)

    def work() -> float:
        for _ in range(steps):
            env.step(chance.integers(0, 4, rows).astype(np.int32))
        return float(rows * steps)

    return work


def beside(episodes: int, environments: int, repeats: int = 9) -> None:
    """Whole episodes and bare EnvPool with as many rows in turns: rates, median of the ratios."""
    sides = (bare(environments), playing(episodes, environments))
    rates = np.zeros((repeats, 2, 2))  # turn, side, of CPU and wall
    for repeat in range(-1, repeats):
        for side, work in enumerate(sides):
            cpu, wall = time.process_time(), time.perf_counter()
            steps = work()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if repeat >= 0:
                rates[repeat, side] = steps / spent[0], steps / spent[1]
    alone, played = (tuple(np.median(rates[:, side], 0)) for side in (0, 1))
    row(f"bare EnvPool, {environments} rows, random actions, no policy", "steps", alone)
    row(f"whole episodes, {episodes} in {environments} rows, 128x128 network", "steps", played)
    cpu, wall = np.median(rates[:, 1] / rates[:, 0], 0)
    print(f"{'':<64} {cpu:>12.2f} of bare EnvPool's, CPU   {wall:>12.2f} wall")


if __name__ == "__main__":
    header()
    for episodes, environments in ((20, 20), (64, 32), (128, 64)):
        beside(episodes, environments)
