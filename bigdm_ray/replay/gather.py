"""From rows to windows: the flat arrays, derived columns and their sidecars, and gathering by fancy indexing."""

from __future__ import annotations

import contextlib
import io
import itertools
import uuid
import zlib
from collections.abc import Callable

import numpy as np

from bigdm_ray.replay.contents import MALFORMED
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.files import sweep, temporary
from bigdm_ray.replay.shard import Shard
from bigdm_ray.replay.windows import View, Windows, merge_stack, stacked_steps

Arrays = dict[str, np.ndarray]


class Flat:
    """Episodes one after another in one array a leaf, for the fastest draws. Forgets what the store no longer keeps.

    Each takes T + 1 slots, so that observations and actions share one index. Arrays double as they fill, up to the
    byte limit; packed anew when garbage fills them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.observations: Arrays = {}
        self.actions: Arrays = {}
        self.rewards = np.zeros(0, np.float32)
        self._derived: Arrays = {}
        self._spans: np.ndarray = np.zeros(
            (16, 2), np.int64
        )  # start and slots, doubled as it fills
        self._living = 0  # rows of it that count: the living episodes, ascending by start
        self._end = 0
        self._slot_bytes = 0

    @property
    def _starts(self) -> np.ndarray:
        return self._spans[: self._living, 0]

    @property
    def _slots(self) -> np.ndarray:
        return self._spans[: self._living, 1]

    def add(self, episode: Episode, moved: Callable[[np.ndarray, np.ndarray], None]) -> int:
        """Copy an episode in; where it begins, or -1 where the limit leaves no room. `moved` hears of repacking."""
        if not self._slot_bytes:
            self._slot_bytes = 4 + sum(
                v.nbytes // len(v)
                for v in (*episode.observations.values(), *episode.actions.values())
            )
        slots = episode.length + 1
        if self._end + slots > len(self.rewards):
            room = self.limit // self._slot_bytes
            wanted = int(self._slots.sum()) + slots
            if wanted > room:
                return -1
            self._pack(min(room, max(2 * wanted, 1024)), episode, moved)
        start = self._end
        self._end += slots
        for path, values in episode.observations.items():
            self.observations[path][start : self._end] = values
        for path, values in episode.actions.items():
            self.actions[path][start : self._end - 1] = values
        self.rewards[start : self._end - 1] = episode.rewards
        for name, column in self._derived.items():
            column[start : self._end - 1] = derive(name, episode.rewards)
        if self._living == len(self._spans):
            self._spans = np.concatenate([self._spans, np.zeros_like(self._spans)])
        self._spans[self._living] = start, slots
        self._living += 1
        return start

    def keep(self, starts: np.ndarray) -> None:
        """Only episodes that begin at these slots still live."""
        alive = np.flatnonzero(np.isin(self._starts, starts))
        self._spans[: len(alive)] = self._spans[alive]
        self._living = len(alive)

    def _pack(
        self, capacity: int, like: Episode, moved: Callable[[np.ndarray, np.ndarray], None]
    ) -> None:
        index = (
            np.concatenate(
                [np.arange(s, s + n) for s, n in zip(self._starts, self._slots, strict=True)]
            )
            if len(self._starts)
            else np.zeros(0, np.int64)
        )

        def packed(old: np.ndarray | None, sample: np.ndarray) -> np.ndarray:
            new = np.zeros((capacity, *sample.shape[1:]), sample.dtype)
            if old is not None and len(index):
                np.take(old, index, axis=0, out=new[: len(index)])
            return new

        self.observations = {
            path: packed(self.observations.get(path), v) for path, v in like.observations.items()
        }
        self.actions = {path: packed(self.actions.get(path), v) for path, v in like.actions.items()}
        self.rewards = packed(self.rewards, like.rewards)
        self._derived = {name: packed(v, like.rewards) for name, v in self._derived.items()}
        old, self._end = self._starts.copy(), len(index)
        self._spans[: self._living, 0] = np.cumsum(self._slots) - self._slots
        moved(old, self._starts)

    def column(self, name: str) -> np.ndarray:
        """A derived column in the flat order, made at its first use and kept up to date from then on."""
        if name not in self._derived:
            made = np.zeros(len(self.rewards), np.float32)
            for start, slots in zip(self._starts, self._slots, strict=True):
                made[start : start + slots - 1] = derive(
                    name, self.rewards[start : start + slots - 1]
                )
            self._derived[name] = made
        return self._derived[name]


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
    hidden = temporary(path.with_name(f"{path.name}.{uuid.uuid4().hex}"))
    try:
        sweep(path.parent)
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


def gather(
    view: View,
    timesteps: np.ndarray,
    observations: Arrays,
    actions: Arrays,
    rewards: np.ndarray,
    column: Callable[[str], np.ndarray],
    start: np.ndarray,
    seen_start: np.ndarray,
) -> Windows:
    """Windows by fancy indexing: step t of a row lies at `start + t`, its observation at `seen_start + t`."""
    at = start + timesteps

    def seen(steps: np.ndarray) -> Arrays:
        return {
            path: _observed(view, leaf, seen_start, steps) for path, leaf in observations.items()
        }

    return Windows(
        seen(timesteps),
        {path: leaf.take(at, axis=0) for path, leaf in actions.items()},
        rewards.take(at),
        np.ones(timesteps.shape, bool),
        timesteps,
        {name: column(name).take(at) for name in view.columns},
        seen(timesteps + 1) if view.next_observation else {},
    )


def _observed(view: View, leaf: np.ndarray, start: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    if view.stack == 1 or leaf.ndim != 4 or leaf.dtype != np.uint8:  # images alone are stacked
        taken: np.ndarray = leaf.take(start + timesteps, axis=0)
        return taken
    frames = start[..., None] + stacked_steps(timesteps, view.stack)
    return merge_stack(leaf.take(frames, axis=0))


def leaves_of(windows: Windows) -> list[np.ndarray]:
    """Every array of windows that has a row for each step."""
    groups = (windows.observations, windows.actions, windows.columns, windows.next_observations)
    return [*itertools.chain.from_iterable(group.values() for group in groups), windows.rewards]


def joined(size: int, parts: list[tuple[np.ndarray, Windows]]) -> Windows:
    """Windows whose rows come in parts, each with its places in the whole."""
    order = np.empty(size, np.int64)
    order[np.concatenate([here for here, _ in parts])] = np.arange(size)

    def join(values: list[np.ndarray]) -> np.ndarray:
        joined: np.ndarray = np.concatenate(values)[order]
        return joined

    def join_all(name: str) -> Arrays:
        keys = getattr(parts[0][1], name)
        return {key: join([getattr(part, name)[key] for _, part in parts]) for key in keys}

    return Windows(
        join_all("observations"),
        join_all("actions"),
        join([part.rewards for _, part in parts]),
        join([part.mask for _, part in parts]),
        join([part.timesteps for _, part in parts]),
        join_all("columns"),
        join_all("next_observations"),
    )


def bytes_of(episode: Episode) -> int:
    """Bytes of an episode's arrays."""
    return episode.rewards.nbytes + sum(
        v.nbytes for v in (*episode.observations.values(), *episode.actions.values())
    )
