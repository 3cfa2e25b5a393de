"""RotatingStore: a dataset larger than memory, drawn from some whole shards at a time.

A draw that touches as many memory maps as it has rows is slow, warm or cold. So `slots` shards lie
in memory as one array a leaf; after each turn of `turn` draws the one that has been there longest
gives its place to the next of a fixed shuffled order. Within a turn draws are those of an in-memory
store of these shards; over `turn` times the number of shards every step has had its time. Shards
are often sorted, by an agent's progress, say, and a few of them are no sample of all: so a turn is
short enough for the draws of the whole training to go round several times. Which shards are in
memory follows from the number of the draw alone, so that a resumed run and every learner rank draw
the same. Costs one shard's copy a turn, and keeps at most `slots` shards of memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bigdm_ray.replay.gather import Arrays, gather, sidecar
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View, Windows

LONGEST = 500
"""Draws of a turn, where there are enough of them; then copying the shards costs next to
nothing."""
SHORTEST = 20
ROUNDS = 4
"""How often a training goes through all shards, where its turns need not be shorter than the
shortest for it."""


def turn_of(draws: int, shards: int) -> int:
    """How many draws a turn has, if so many are drawn in all."""
    return max(SHORTEST, min(LONGEST, draws // (ROUNDS * shards)))


class RotatingStore(Store):
    """See the module. To read only; the folder must not change while it is open."""

    def __init__(self, folder: Path, flat_bytes: int, turn: int = LONGEST) -> None:
        super().__init__(folder, flat_bytes=0, write=False)
        self._limit = flat_bytes
        self._at_once = 0  # a shard is checked when it is first copied into memory
        self._turn = turn
        self._held: list[int] = []  # slot -> shard number, -1 for none
        self._observations: Arrays = {}  # [slots * the most rows of a shard, ...]
        self._actions: Arrays = {}
        self._rewards = np.zeros(0, np.float32)
        self._columns: Arrays = {}
        self._held_leaves: Arrays = {}  # [slots * the most episodes of a shard, ...]
        self._most = 0  # episodes of a slot
        self._per_slot = 0  # steps of a slot
        self._seen = 0  # observations of a slot
        self._order: dict[View, np.ndarray] = {}
        self._eligible: dict[View, np.ndarray] = {}
        self._resident: tuple[View, tuple[int, ...], np.ndarray] | None = None

    def _prepare(self) -> None:
        """Make room for as many of the largest shards as the limit holds, at least one."""
        shards = [self._shards[name] for name in self._names]
        # shard number -> its first position
        self._first = np.searchsorted(self._where[:, 0], np.arange(len(shards) + 1))
        self._number_of = self._where[:, 0]  # position -> shard number
        largest = max(shard.nbytes for shard in shards)
        slots = int(min(len(shards), max(1, self._limit // max(1, largest))))
        self._per_slot = max(int(shard.offsets[-1]) for shard in shards)
        self._seen = max(int(shard.offsets[-1]) + len(shard.serials) for shard in shards)
        self._most = max(len(shard.serials) for shard in shards)
        like = shards[0]
        once = set(like.held).intersection(*(shard.held for shard in shards))
        self._held_leaves = {
            path: np.zeros((slots * self._most, *v.shape[1:]), v.dtype)
            for path, v in like.held.items()
            if path in once
        }
        self._observations = {
            path: np.zeros((slots * self._seen, *v.shape[1:]), v.dtype)
            for path, v in (like.observations | like.held).items()
            if path not in once
        }
        self._actions = {
            path: np.zeros((slots * self._per_slot, *v.shape[1:]), v.dtype)
            for path, v in like.actions.items()
        }
        self._rewards = np.zeros(slots * self._per_slot, np.float32)
        self._slot = np.full(len(shards), -1)  # shard number -> slot
        self._held = [-1] * slots

    def _rows(
        self, view: View, rng: np.random.Generator, size: int, turn: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self._held:
            self._prepare()
        among = self._turned(view, turn)
        if view.among:
            return self._drawn_among(view.among, among, rng, size)
        rows, steps = replace(view, best=1.0, above=None).rows(self.table.take(among), rng, size)
        return among[rows], steps

    def _turned(self, view: View, turn: int) -> np.ndarray:
        """Have the shards of this turn in memory; the positions of their episodes that the view may
        draw."""
        order = self._shuffled(view)
        slots = len(self._held)
        now = turn // self._turn
        wanted = {
            i % slots: int(order[i % len(order)]) for i in range(now, now + min(slots, len(order)))
        }
        for slot, number in wanted.items():
            if self._held[slot] != number:
                self._load(slot, number)
        resident = tuple(sorted(wanted.values()))
        if self._resident is None or self._resident[0] != view or self._resident[1] != resident:
            positions = np.concatenate(
                [np.arange(self._first[n], self._first[n + 1]) for n in resident]
            )
            self._resident = (view, resident, positions[self._eligible[view][positions]])
        return self._resident[2]

    def _shuffled(self, view: View) -> np.ndarray:
        """The shards that hold anything for this view, in the order of their turns."""
        if view not in self._order:
            if len(self._order) > 16:
                self._order, self._eligible = {}, {}
            mask = np.zeros(len(self.table), bool)
            mask[view.eligible_episodes(self.table)] = True
            holding = np.unique(self._number_of[mask])
            if not len(holding):
                raise ValueError(
                    "no episode may be drawn: the store is empty, or none passes the view's `best`"
                    " and `above`"
                )
            self._eligible[view] = mask
            self._order[view] = np.random.default_rng(len(self._shards)).permutation(holding)
        return self._order[view]

    def _load(self, slot: int, number: int) -> None:
        shard = self._used(number)
        for other in range(len(self._held)):  # a shard has one place
            if self._held[other] == number:
                self._held[other] = -1
        if self._held[slot] >= 0:
            self._slot[self._held[slot]] = -1
        steps, seen = int(shard.offsets[-1]), int(shard.offsets[-1]) + len(shard.serials)
        for path, values in self._held_leaves.items():
            begin = slot * self._most
            values[begin : begin + len(shard.serials)] = shard.held[path]
        spread = {
            path: np.repeat(values, np.diff(shard.offsets) + 1, axis=0)
            for path, values in shard.held.items()
            if path not in self._held_leaves
        }
        for path, values in (shard.observations | spread).items():
            self._observations[path][slot * self._seen : slot * self._seen + seen] = values
        for path, values in shard.actions.items():
            self._actions[path][slot * self._per_slot : slot * self._per_slot + steps] = values
        self._rewards[slot * self._per_slot : slot * self._per_slot + steps] = shard.rewards
        self._held[slot], self._slot[number] = number, slot
        for name in self._columns:
            self._fill(name, slot)

    def _fill(self, name: str, slot: int) -> None:
        number = self._held[slot]
        if number >= 0:
            values = sidecar(self._shards[self._names[number]], name)
            self._columns[name][slot * self._per_slot : slot * self._per_slot + len(values)] = (
                values
            )

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = np.zeros(len(self._rewards), np.float32)
            for slot in range(len(self._held)):
                self._fill(name, slot)
        return self._columns[name]

    def _drawn_among(
        self, name: str, among: np.ndarray, rng: np.random.Generator, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the steps in memory at which an annotation is above 0, each alike."""
        noted = self._annotations[name]
        key = f"{name}@{self._resident and self._resident[1]}"
        if key not in self._among:
            runs = np.split(among, np.flatnonzero(np.diff(among) != 1) + 1)
            spans = [(int(self._starts[run[0]]), int(self.table.ends[run[-1]])) for run in runs]
            self._among = {
                key: np.concatenate(
                    [start + np.flatnonzero(noted[start:end] > 0) for start, end in spans]
                )
            }
        if not len(self._among[key]):
            raise ValueError(
                f"no step may be drawn: the annotation {name!r} is above 0 nowhere in the shards of"
                " this turn"
            )
        steps = self._among[key][rng.integers(0, len(self._among[key]), size)]
        positions = np.searchsorted(self.table.ends, steps, side="right")
        return positions, steps - self._starts[positions]

    def _fetch(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        number, row, _, offset = self._places(positions).T
        slot = self._slot[number]
        start, seen = slot * self._per_slot + offset, slot * self._seen + offset + row
        return gather(
            view,
            timesteps,
            self._observations,
            self._held_leaves,
            self._actions,
            self._rewards,
            self._column,
            start[:, None],
            seen[:, None],
            (slot * self._most + row)[:, None],
        )
