"""Learner steps of `bc` with the paper's network against d3rlpy's BC on the same episodes, data path included.

    python -m tests.benchmarks.cloning                                   ours alone
    python -m tests.benchmarks.cloning --peer PEER/bin/python            both; PEER is a virtual environment with d3rlpy 2.8.1

Both: three layers of 256, batches of 64, Adam, one thread, 250,000 steps of made-up Hopper-sized episodes in memory. They take
turns, so that what else runs on the machine troubles both alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.benchmarks.common import Peer, d3rlpy, header, made_up

STEPS, REPEATS, EPISODES, LENGTH = 2_000, 5, 250, 1_000

PEER = d3rlpy(
    """
encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[256, 256, 256])
scaler = d3rlpy.preprocessing.StandardObservationScaler()
bc = d3rlpy.algos.BCConfig(batch_size=64, learning_rate=1e-3, encoder_factory=encoder, observation_scaler=scaler).create()
bc.build_with_dataset(data)
bc.config.observation_scaler.fit_with_transition_picker(data.episodes, data.transition_picker)
""",
    "bc.update(data.sample_transition_batch(64))",
)


class Ours:
    """The learner on a dataset, as `python -m bigdm_ray.run bc DATASET --local` trains it."""

    def __init__(self, folder: Path) -> None:
        from bigdm_ray.algorithms.bc import Bc
        from bigdm_ray.envs import find_task
        from bigdm_ray.training.learner import Learner

        self._store = made_up(folder, EPISODES, LENGTH)
        self._learner = Learner(Bc(), {"hopper": find_task("hopper").signature()}, 1)

    def update(self, steps: int) -> tuple[float, float]:
        """CPU and wall seconds."""
        cpu, wall = time.process_time(), time.perf_counter()
        self._learner.update({"hopper": self._store}, steps)
        return time.process_time() - cpu, time.perf_counter() - wall


def told(name: str, spent: list[tuple[float, float]]) -> float:
    """Print the medians; learner steps per CPU-second."""
    cpu, wall = (statistics.median(STEPS / pair[i] for pair in spent) for i in (0, 1))
    print(f"{name:<24} {cpu:>8,.0f} learner steps per CPU-second   {wall:>8,.0f} per wall second")
    return cpu


def main() -> None:
    """Take turns, print medians and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", help="a Python that has d3rlpy")
    peer_python = parser.parse_args().peer
    header()
    peer = Peer(peer_python, PEER, EPISODES=EPISODES, LENGTH=LENGTH) if peer_python else None
    with tempfile.TemporaryDirectory() as folder:
        ours, mine, theirs = Ours(Path(folder)), [], []
        for repeat in range(REPEATS + 1):  # the first is for warming up
            spent = ours.update(STEPS)
            if peer is not None:
                other = peer.turn(STEPS)
                theirs += [other] if repeat else []
            mine += [spent] if repeat else []
    rate = told("bc, ours", mine)
    if peer is not None:
        peer.close()
        print(f"ratio {rate / told(f'd3rlpy {peer.version}', theirs):.2f}")


if __name__ == "__main__":
    main()
