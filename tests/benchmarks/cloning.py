"""Learner steps of `bc` with the paper's network against d3rlpy's BC on the same episodes, data
path included.

    python -m tests.benchmarks.cloning                          ours alone
    python -m tests.benchmarks.cloning --peer PEER/bin/python   both; PEER is a virtual environment
                                                                with d3rlpy 2.8.1

Both: three layers of 256, batches of 64, Adam, one thread, 250,000 steps of made-up Hopper-sized
episodes in memory. They take turns, so that what else runs on the machine troubles both alike.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.common import Peer, d3rlpy, header, in_turns, made_up

STEPS, REPEATS, EPISODES, LENGTH = 2_000, 5, 250, 1_000

PEER = d3rlpy(
    """
encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[256, 256, 256])
scaler = d3rlpy.preprocessing.StandardObservationScaler()
bc = d3rlpy.algos.BCConfig(
    batch_size=64, learning_rate=1e-3, encoder_factory=encoder, observation_scaler=scaler
).create()
bc.build_with_dataset(data)
bc.config.observation_scaler.fit_with_transition_picker(data.episodes, data.transition_picker)
""",
    "bc.update(data.sample_transition_batch(64))",
)


def ours(folder: Path) -> Callable[[], None]:
    """A learner step as `python -m bigdm_ray.run bc DATASET --local` takes it."""
    from bigdm_ray.algorithms.bc import Bc
    from bigdm_ray.envs import find_task
    from bigdm_ray.training.learner import Learner

    store = made_up(folder, EPISODES, LENGTH)
    learner = Learner(Bc(), {"hopper": find_task("hopper").signature()}, 1)
    return lambda: learner.update({"hopper": store}, 1)


def main() -> None:
    """Take turns, print medians and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", help="a Python that has d3rlpy")
    python = parser.parse_args().peer
    header()
    peer = Peer(python, PEER, EPISODES=EPISODES, LENGTH=LENGTH) if python else None
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], object] | Peer] = {"bc, ours": ours(Path(folder))}
        spent = in_turns(sides | ({"d3rlpy": peer} if peer else {}), REPEATS, STEPS)
    for name, took in spent.items():
        cpu, wall = (STEPS / seconds for seconds in took.medians)
        label = f"{name} {peer.version}" if peer and name == "d3rlpy" else name
        print(
            f"{label:<24} {cpu:>8,.0f} learner steps per CPU-second   {wall:>8,.0f} per wall second"
        )
    if peer:
        print(f"ratio {spent['d3rlpy'].medians[0] / spent['bc, ours'].medians[0]:.2f}")


if __name__ == "__main__":
    main()
