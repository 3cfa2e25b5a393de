"""From rows to windows: the flat arrays, derived columns and their sidecars, and gathering."""

from __future__ import annotations

import contextlib
import io
import itertools
import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from bigdm_ray.replay.contents import MALFORMED
from bigdm_ray.replay.episode import Episode, is_held
from bigdm_ray.replay.files import remove_leftovers, temporary_path
from bigdm_ray.replay.shard import Shard
from bigdm_ray.replay.windows import View, Windows, merge_stack, stacked_steps

Arrays = dict[str, np.ndarray]


class FlatCache:
    """Episodes one after another in one array a leaf, for the fastest draws.

    Forgets what the store no longer keeps.

    Each takes T + 1 slots, so that observations and actions share one index. Arrays double as they
    fill, up to the byte limit; packed anew when garbage fills them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.observations: Arrays = {}
        self.held: Arrays = {}  # a row each time that an episode was added
        self.actions: Arrays = {}
        self.rewards = np.zeros(0, np.float32)
        self._derived: Arrays = {}
        self._spans = np.zeros((16, 2), np.int64)  # start and slots, doubled as it fills
        self._alive = np.zeros(16, bool)
        self._count = 0  # rows of both that count, ascending by start
        self._living_slots = 0
        self._end = 0
        self._slot_bytes = 0

    def add(self, episode: Episode, moved: Callable[[np.ndarray, np.ndarray], None]) -> int:
        """Copy an episode in; where it begins, or -1 where the limit leaves no room.

        `moved` hears of repacking.
        """
        slots = episode.length + 1
        if not self._slot_bytes:
            leaves = (*episode.observations.values(), *episode.actions.values())
            self._slot_bytes = 4 + sum(v.nbytes // len(v) for v in leaves if not is_held(v))
        if any(not _same(episode.observations[path]) for path in self.held):
            return -1
        if self._end + slots > len(self.rewards):
            room = self.limit // self._slot_bytes
            wanted = self._living_slots + slots
            if wanted > room:
                return -1
            self._pack(min(room, max(2 * wanted, 1024)), episode, moved)
        if self._count == len(self._spans):
            self._spans = np.concatenate([self._spans, np.zeros_like(self._spans)])
            self._alive = np.concatenate([self._alive, np.zeros_like(self._alive)])
            self.held = {p: np.concatenate([v, np.zeros_like(v)]) for p, v in self.held.items()}
        start = self._end
        self._end += slots
        for path, values in episode.observations.items():
            if path in self.held:
                self.held[path][self._count] = values[0]
            else:
                self.observations[path][start : self._end] = values
        for path, values in episode.actions.items():
            self.actions[path][start : self._end - 1] = values
        self.rewards[start : self._end - 1] = episode.rewards
        for name, column in self._derived.items():
            column[start : self._end - 1] = derive(name, episode.rewards)
        self._spans[self._count] = start, slots
        self._alive[self._count] = True
        self._count, self._living_slots = self._count + 1, self._living_slots + slots
        return start

    def drop(self, starts: np.ndarray) -> None:
        """Episodes that begin at these slots live no more."""
        rows = self.rows(starts)
        self._alive[rows] = False
        self._living_slots -= int(self._spans[rows, 1].sum())

    def rows(self, starts: np.ndarray) -> np.ndarray:
        """The rows of `held` of episodes that begin at these slots."""
        return np.searchsorted(self._spans[: self._count, 0], starts)

    def _pack(
        self, capacity: int, like: Episode, moved: Callable[[np.ndarray, np.ndarray], None]
    ) -> None:
        alive = np.flatnonzero(self._alive[: self._count])
        spans = self._spans[alive]
        ends = np.cumsum(spans[:, 1])
        begins = ends - spans[:, 1]
        index = np.arange(self._living_slots) + np.repeat(spans[:, 0] - begins, spans[:, 1])

        def packed(old: np.ndarray | None, sample: np.ndarray) -> np.ndarray:
            new = np.zeros((capacity, *sample.shape[1:]), sample.dtype)
            if old is not None and len(index):
                np.take(old, index, axis=0, out=new[: len(index)])
            return new

        if not self.observations and not self.held:
            once = {path: v[0] for path, v in like.observations.items() if is_held(v)}
            self.held = {
                p: np.zeros((len(self._spans), *v.shape), v.dtype) for p, v in once.items()
            }
        for values in self.held.values():
            values[: len(alive)] = values[alive]
        self.observations = {
            path: packed(self.observations.get(path), v)
            for path, v in like.observations.items()
            if path not in self.held
        }
        self.actions = {path: packed(self.actions.get(path), v) for path, v in like.actions.items()}
        self.rewards = packed(self.rewards, like.rewards)
        self._derived = {name: packed(v, like.rewards) for name, v in self._derived.items()}
        self._count, self._end = len(alive), len(index)
        self._spans[: self._count, 0], self._spans[: self._count, 1] = begins, spans[:, 1]
        self._alive[: self._count] = True
        moved(spans[:, 0], begins)

    def column(self, name: str) -> np.ndarray:
        """A derived column in the flat order, made at its first use and kept up to date from then
        on."""
        if name not in self._derived:
            made = np.zeros(len(self.rewards), np.float32)
            for start, slots in self._spans[: self._count][self._alive[: self._count]].tolist():
                made[start : start + slots - 1] = derive(
                    name, self.rewards[start : start + slots - 1]
                )
            self._derived[name] = made
        return self._derived[name]


def _same(values: np.ndarray) -> bool:
    return is_held(values) or bool((values == values[0]).all())


def derive(name: str, rewards: np.ndarray) -> np.ndarray:
    """A derived column of one episode from its rewards [T]; float32 [T], summed in float64."""
    if name == "steps_remaining":
        return np.arange(len(rewards), 0, -1, dtype=np.float32)
    if name == "episode_return":
        return np.full(len(rewards), rewards.sum(dtype=np.float64), np.float32)
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1].astype(np.float32)


def sidecar(mapped: Shard, name: str) -> np.ndarray:
    """A derived column of a whole shard, memory-mapped from a file beside it.

    The file ends in a checksum of itself and of the shard; it is made where it is missing, torn,
    decayed or of another shard. Any number of processes may make it at once; where the disk does
    not take it, the column stays in memory.
    """
    path = mapped.path.with_name(f".{mapped.path.name}.{name}.npy")
    with contextlib.suppress(*MALFORMED):
        data = path.read_bytes()
        if bytes(data[-8:]) == _checksum(data[:-8], mapped):
            loaded: np.ndarray = np.load(path, mmap_mode="r")
            if loaded.dtype == np.float32 and loaded.shape == mapped.rewards.shape:
                return loaded
    made = np.concatenate(
        [derive(name, mapped.rewards[a:b]) for a, b in itertools.pairwise(mapped.offsets)]
    )
    hidden = temporary_path(path.with_name(f"{path.name}.{uuid.uuid4().hex}"))
    try:
        remove_leftovers(path.parent)
        with hidden.open("wb") as file:
            np.save(kept := io.BytesIO(), made)
            file.write(kept.getbuffer())
            file.write(_checksum(kept.getbuffer(), mapped))
        hidden.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            hidden.unlink()
    return made


def _checksum(data: bytes | memoryview, mapped: Shard) -> bytes:
    return b"%08x" % zlib.crc32(data, mapped.crc)


class RowSource(Protocol):
    """A leaf of which rows can be had: an array, or `maps.MappedLeaf`."""

    @property
    def ndim(self) -> int:
        """Axes, that of the rows included."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""

    def take(self, indices: np.ndarray, /, axis: int) -> np.ndarray:
        """`numpy.take` along the first axis."""


def gather(
    view: View,
    timesteps: np.ndarray,
    observations: Mapping[str, RowSource],
    held: Mapping[str, RowSource],
    actions: Mapping[str, RowSource],
    rewards: RowSource,
    column: Callable[[str], RowSource],
    start: np.ndarray,
    seen_start: np.ndarray,
    number: np.ndarray,
) -> Windows:
    """Windows by fancy indexing: step t of a row lies at `start + t`, its observation at
    `seen_start + t`.

    What holds for its whole episode lies at `number`.
    """
    at = start + timesteps

    def seen(steps: np.ndarray) -> Arrays:
        out = {
            path: _observed(view, leaf, seen_start, steps) for path, leaf in observations.items()
        }
        if not held:
            return out
        still = np.zeros_like(steps)
        out |= {path: _observed(view, leaf, number, still) for path, leaf in held.items()}
        return dict(sorted(out.items()))

    return Windows(
        seen(timesteps),
        {path: leaf.take(at, axis=0) for path, leaf in actions.items()},
        rewards.take(at, axis=0),
        np.ones(timesteps.shape, bool),
        timesteps,
        {name: column(name).take(at, axis=0) for name in view.columns},
        seen(timesteps + 1) if view.next_observation else {},
    )


def _observed(view: View, leaf: RowSource, start: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    if view.stack == 1 or leaf.ndim != 4 or leaf.dtype != np.uint8:  # images alone are stacked
        return leaf.take(start + timesteps, axis=0)
    frames = start[..., None] + stacked_steps(timesteps, view.stack)
    return merge_stack(leaf.take(frames, axis=0))


def step_arrays(windows: Windows) -> list[np.ndarray]:
    """Every array of windows that has a row for each step."""
    groups = (windows.observations, windows.actions, windows.columns, windows.next_observations)
    return [*itertools.chain.from_iterable(group.values() for group in groups), windows.rewards]
