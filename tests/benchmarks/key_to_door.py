"""What random trajectories of Key-to-Door tell by plain counting: python -m
tests.benchmarks.key_to_door

In each view, the action that was taken most often in the episodes that succeeded is played: cloning
of successes, without any network, memory or training error. What it lacks is what so many
trajectories cannot tell, unless something is known about views that are alike.
"""

from __future__ import annotations

import numpy as np

from bigdm_ray.envs.keydoor import LENGTH, MOVES, TASKS, KeyToDoorRows
from tests.benchmarks.common import header

SETS = {1_000: 20, 10_000: 10, 200_000: 1}
"""Trajectories, and how many sets of so many."""
EPISODES = 2_000


def play(
    n: int, seed: int, counts: dict[bytes, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views `[LENGTH, n]` as bytes, actions `[LENGTH, n]` (-1 after the end) and success `[n]`: of
    the likeliest actions, at random where nothing is known."""
    rng = np.random.default_rng(seed)
    rows = KeyToDoorRows(n, seed, TASKS["key-to-door"].signature())
    seen = rows.reset(np.arange(n)).observations[""]
    alive, success = np.arange(n), np.zeros(n, bool)
    views, actions = np.full((LENGTH, n), b"", "S10"), np.full((LENGTH, n), -1)
    for t in range(LENGTH):
        if not len(alive):
            break
        packed = np.packbits(seen.astype(bool), axis=1).view("S10").ravel()
        action = rng.integers(len(MOVES), size=len(alive))
        if counts is not None:
            names, which = np.unique(packed, return_inverse=True)
            known = np.array(
                [int(counts[name].argmax()) if name in counts else -1 for name in names]
            )[which]
            action = np.where(known < 0, action, known)
        views[t, alive], actions[t, alive] = packed, action
        step = rows.step(alive, {"": action})
        success[alive] = step.rewards > 0
        living = ~step.terminated
        alive, seen = alive[living], step.observations[""][living]
    return views, actions, success


def counted(n: int, seed: int) -> dict[bytes, np.ndarray]:
    """How often each action was taken in each view, in the successes among n random trajectories;
    ties are broken by chance."""
    views, actions, success = play(n, seed, None)
    names, which = np.unique(views[:, success], return_inverse=True)
    taken = actions[:, success].ravel()
    table = np.random.default_rng(seed).random((len(names), len(MOVES))) * 0.5
    np.add.at(table, (which.ravel()[taken >= 0], taken[taken >= 0]), 1)
    return dict(zip(names.tolist(), table, strict=True))


def main() -> None:
    """Print the success rate for each number of trajectories."""
    header()
    for n, sets in SETS.items():
        rates = [
            100 * play(EPISODES, 10_000_000 + seed, counted(n, 1_000_000 * (seed + 1)))[2].mean()
            for seed in range(sets)
        ]
        print(
            f"{n:>7,} trajectories ({sets} sets): {np.mean(rates):5.1f} % ± {np.std(rates):.1f}"
            f" ({min(rates):.1f} to {max(rates):.1f})"
        )


if __name__ == "__main__":
    main()
