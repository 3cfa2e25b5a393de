"""Episode: one whole episode as arrays, the thing that travels round the ring."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class EpisodeId(NamedTuple):
    """What makes an episode one of its kind: the round and group that played it, and its place
    among them.

    Episodes of other origins carry (client, FOREIGN, sequence number), so that ids of both kinds
    never meet. When it came is told by the serial that a store gives it, not by its id.
    """

    round: int
    group: int
    number: int

    def __str__(self) -> str:
        return f"{self.round}.{self.group}.{self.number}"


FOREIGN = -1
"""The `group` of episodes that were not played by a round of this run."""


@dataclass(frozen=True)
class Episode:
    """One whole episode of T steps; arrays only, never changed after it is made.

    The last observation is seen, not acted on, so observations have T + 1 steps. One that holds for
    the whole episode (`Leaf.per`) has as many rows, which are one in memory and on disk
    (`broadcast_held`). `terminated` is False where a time limit ended the episode. `version` is
    (incarnation, learner step) of the weights that played it; `source` says which agent did; `seed`
    is that of the vector environment that it was played in. `merit` is what its worker says of it
    beyond its return, where it says anything: of a rollout, the mean return of the episodes that
    were played along with it by the same weights, an estimate of what those weights return.
    """

    observations: dict[str, np.ndarray]  # leaf path -> [T+1, ...]
    actions: dict[str, np.ndarray]  # leaf path -> [T, ...]
    rewards: np.ndarray  # [T] float32
    terminated: bool
    id: EpisodeId
    task: str
    command: dict[str, float] = field(default_factory=dict)
    version: tuple[int, int] = (0, 0)
    source: str = ""
    seed: int = 0
    merit: float = 0.0

    @property
    def length(self) -> int:
        """T, the number of actions."""
        return len(self.rewards)

    @property
    def total_return(self) -> float:
        """The undiscounted sum of rewards, added up in float64."""
        return float(self.rewards.sum(dtype=np.float64))

    def problem(self) -> str | None:
        """One clause that says why this episode must not be stored, or None where it is sound."""
        steps = self.length
        if steps == 0:
            return "it has no steps"
        if not np.isfinite(self.rewards).all():
            return f"its reward at step {int(np.argmin(np.isfinite(self.rewards)))} is not finite"
        for kind, leaves, rows in (
            ("observation", self.observations, steps + 1),
            ("action", self.actions, steps),
        ):
            for path, values in leaves.items():
                name = f"{kind} {path!r}" if path else kind
                if len(values) != rows:
                    return f"its {name} has {len(values)} rows where {rows} belong to {steps} steps"
                told = values[:1] if is_held(values) else values
                if told.dtype.kind == "f" and not np.isfinite(told).all():
                    bad = np.argmin(np.isfinite(told).reshape(len(told), -1).all(1))
                    return f"its {name} at step {int(bad)} is not finite"
        return None


def broadcast_held(value: np.ndarray, steps: int) -> np.ndarray:
    """An observation that holds for a whole episode as `[steps, ...]`, without a copy;
    read-only."""
    return np.broadcast_to(value, (steps, *value.shape))


def is_held(values: np.ndarray) -> bool:
    """Whether the rows of a leaf are one row in memory, as `broadcast_held` makes them."""
    return len(values) > 1 and values.size > 0 and values.strides[0] == 0


def hold_leaves(
    observations: dict[str, np.ndarray], once: Collection[str]
) -> dict[str, np.ndarray]:
    """Observations of an episode, the leaves held that are `once` an episode, and are so in
    truth."""
    return {
        path: broadcast_held(v[0], len(v)) if path in once and (v == v[0]).all() else v
        for path, v in observations.items()
    }


def bytes_of(episode: Episode) -> int:
    """Bytes of an episode's arrays; what holds for all of it counts once."""
    leaves = (episode.rewards, *episode.observations.values(), *episode.actions.values())
    return sum(v.nbytes // len(v) if is_held(v) else v.nbytes for v in leaves)


@functools.lru_cache(maxsize=4096)
def source_number(source: str) -> int:
    """The integer of an agent that played: the same in every process, and for every store."""
    return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest()) >> 1
