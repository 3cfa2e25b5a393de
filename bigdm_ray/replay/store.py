"""Store: an ordered set of shards on disk, the table of its living episodes, and drawing from them.

`add` answers once file and folder are synced: from then on an episode lives under the retention
rule whatever dies. It gives each new episode a serial, which is kept in the shard: what is newer,
and what came since a checkpoint, goes by it. The rule is a pure function of the episodes' serials,
returns and merits, so it is never stored: opening a folder replays it. What fits into `flat_bytes`
is also kept as one flat array a leaf, from which draws are fastest; the rest is drawn from the
memory maps. Every byte of a shard is checked once: when it is opened, or, once half of this
machine's memory has been read so, when it is first drawn from. Episodes of other processes' shards
are taken in with `adopt`, which reads files and writes none. No call costs more than what it is
about, however many episodes live, but for opening, compacting and annotating.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.gather import FlatCache, gather, sidecar, step_arrays
from bigdm_ray.replay.maps import FLAT, MappedArrays, MappedLeaf
from bigdm_ray.replay.shard import Shard, ShardRef
from bigdm_ray.replay.shard_folder import PREFIX, SHARD_BYTES, Arrays, ShardFolder
from bigdm_ray.replay.source import ShardSource
from bigdm_ray.replay.table import Receipt, Retention, Table
from bigdm_ray.replay.verify import VerifyResult, verify
from bigdm_ray.replay.windows import View, Windows

__all__ = [
    "PREFIX",
    "SHARD_BYTES",
    "Receipt",
    "Retention",
    "ShardRef",
    "Store",
    "Table",
    "VerifyResult",
    "verify",
]


class Store(ShardFolder):
    """See the module.

    One writer a folder; any number of readers, which `adopt` the shards the writer names.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention | None = None,
        flat_bytes: int = 256 << 20,
        write: bool = True,
        source: ShardSource | None = None,
    ) -> None:
        """`source` is what a reader opens shards through: the folder, unless told."""
        self._flat = FlatCache(flat_bytes)
        self._unflat = 0  # living episodes that are not in it
        self._maps: MappedArrays | None = None  # made at the first draw from maps
        self._annotations: dict[str, np.ndarray] = {}
        self._among: dict[str, np.ndarray] = {}  # annotation -> the steps at which it is above 0
        self._starts = np.zeros(0, np.int64)  # where an episode's steps begin in the annotations
        at_once = max(flat_bytes, shards.memory_bytes() // 2)
        super().__init__(folder, retention, at_once, write, source)

    def open(
        self, names: Iterable[ShardRef | str] | None = None, leave: Iterable[str] = ()
    ) -> Store:
        """See ShardFolder."""
        super().open(names, leave)
        return self

    # --- what comes and goes

    def _came_and_went(self, fresh: int, alive: np.ndarray, gone: Arrays) -> None:
        if len(alive) or len(gone["serials"]) != fresh:
            self._annotations, self._among = {}, {}
        flat = gone["place"][:, 2]
        if len(flat):
            self._flat.drop(flat[flat >= 0])
        self._unflat += fresh - int((flat < 0).sum())
        where = self._living.column("place")
        for row in alive.tolist():
            number, of_shard = int(where[row, 0]), int(where[row, 1])
            if self._names[number] not in self._unread:
                start = self._flat.add(self._at(number, of_shard), self._moved)
                where[row, 2] = start
                self._unflat -= start >= 0

    def _opened(self, number: int) -> None:
        if self._maps is not None:
            _put(self._maps, number + 1, self._shards[self._names[number]])

    def _closed(self, number: int) -> None:
        if self._maps is not None:
            self._maps.drop(number + 1)

    def _moved(self, old: np.ndarray, new: np.ndarray) -> None:
        """The flat arrays were packed anew: episodes that began at `old` begin at `new` (both
        ascending)."""
        if self._maps is not None:
            self._maps.drop(FLAT)  # the arrays of before are not kept
        where = self._living.column("place")
        rows = self._living.rows(np.arange(len(self._living)))
        rows = rows[where[rows, 2] >= 0]
        where[rows, 2] = new[np.searchsorted(old, where[rows, 2])]

    # --- reading

    def draw(
        self,
        view: View,
        rng: np.random.Generator,
        size: int,
        rank: int = 0,
        world: int = 1,
        turn: int = 0,
    ) -> Windows:
        """`size` windows; rank r of w draws the same rows as every other and fetches only its share
        of them.

        `turn` counts draws: a store that draws from some of its shards at a time knows from it
        which.
        """
        positions, steps = self._rows(view, rng, size, turn)
        lengths = self.table.lengths[positions]
        reached = view.goal_steps(steps, lengths, rng)
        shown = view.prompt_rows(self.table, rng, positions) if view.prompts else None
        if world > 1:
            share = slice(rank * size // world, (rank + 1) * size // world)
            positions, steps, lengths = positions[share], steps[share], lengths[share]
            reached = reached[share]
            if shown is not None:
                mine = (shown[0] >= share.start) & (shown[0] < share.stop)
                shown = (shown[0][mine] - share.start, shown[1][mine], shown[2][mine])
        timesteps, mask = view.span(steps, lengths)
        if view.hindsight:
            mask &= timesteps < reached[:, None]
        windows = self._fetch(view, positions, timesteps)
        noted = {
            name: self._annotations[name].take(self._starts[positions][:, None] + timesteps)
            for name in view.annotations
        }
        if not mask.all():
            empty = ~mask
            for values in (*step_arrays(windows), *noted.values()):
                values[empty] = 0
            timesteps = np.where(mask, timesteps, 0)
        ends = (
            mask & self._terminated(positions)[:, None] & (timesteps == lengths[:, None] - 1)
            if view.terminals
            else None
        )
        goals = {}
        if view.hindsight:
            after = self._fetch(
                View(stack=view.stack, next_observation=True), positions, reached[:, None] - 1
            ).next_observations
            goals = {path: values[:, 0] for path, values in after.items()}
        return Windows(
            windows.observations,
            windows.actions,
            windows.rewards,
            mask,
            timesteps,
            windows.columns,
            windows.next_observations,
            noted,
            ends,
            goals,
            *(self._prompts(view, *shown) if shown is not None else ()),
        )

    def _prompts(
        self, view: View, prompted: np.ndarray, positions: np.ndarray, steps: np.ndarray
    ) -> tuple[Windows, np.ndarray]:
        """The prompts that `View.prompt_rows` has chosen."""
        plain = View(view.prompt_length, stack=view.stack)
        timesteps, mask = plain.span(steps, self.table.lengths[positions])
        windows = self._fetch(plain, positions, timesteps)
        for values in step_arrays(windows):
            values[~mask] = 0
        return dataclasses.replace(
            windows, mask=mask, timesteps=np.where(mask, timesteps, 0)
        ), prompted

    def _terminated(self, positions: np.ndarray) -> np.ndarray:
        ended: np.ndarray = self._living.column("terminated")[self._living.rows(positions)]
        return ended

    def _rows(
        self, view: View, rng: np.random.Generator, size: int, turn: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The episodes (positions in the table) and steps that are drawn."""
        return (
            self._rows_among(view.among, rng, size)
            if view.among
            else view.rows(self.table, rng, size)
        )

    def _rows_among(
        self, name: str, rng: np.random.Generator, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._among:
            self._among[name] = np.flatnonzero(self._annotations[name] > 0)
        if not len(self._among[name]):
            raise ValueError(f"no step may be drawn: the annotation {name!r} is above 0 nowhere")
        steps = self._among[name][rng.integers(0, len(self._among[name]), size)]
        positions = np.searchsorted(self.table.ends, steps, side="right")
        return positions, steps - self._starts[positions]

    def annotate(self, columns: dict[str, np.ndarray]) -> None:
        """Columns `[steps]` of the living episodes, one after the other as the table has them, for
        views that name them.

        They hold until an episode comes or goes (`has_annotations`).
        """
        steps = int(self.table.lengths.sum())
        for name, values in columns.items():
            if values.shape != (steps,):
                raise ValueError(
                    f"the annotation {name!r} has shape {values.shape}, but ({steps},) is expected"
                )
        self._annotations, self._among = columns, {}
        self._starts = self.table.ends - self.table.lengths

    def has_annotations(self, view: View) -> bool:
        """Whether every annotation that a view names is there and holds."""
        named = {*view.annotations, *([view.among] if view.among else [])}
        return named <= self._annotations.keys()

    def _fetch(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        fetch = self._fetch_mixed if self._unflat else self._fetch_flat
        return fetch(view, positions, timesteps)

    def _fetch_flat(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        flat = self._flat
        start = self._living.column("place")[self._living.rows(positions), 2][:, None]
        return gather(
            view,
            timesteps,
            flat.observations,
            flat.held,
            flat.actions,
            flat.rewards,
            flat.column,
            start,
            start,
            flat.rows(start) if flat.held else start,
        )

    def _fetch_mixed(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        """Rows from the flat arrays and from as many maps as the batch touches, in one pass."""
        maps, flat = self._mapped(), self._flat
        shard, row, slot, begin = self._places(positions).T
        there = slot >= 0
        numbers = np.where(there, FLAT, shard + 1)
        if self._unread:
            for number in np.unique(shard).tolist():
                self._used(number)
        episodes = np.where(there, flat.rows(slot), row) if flat.held else row
        start, seen = np.where(there, slot, begin), np.where(there, slot, begin + row)

        def leaves(kind: str) -> dict[str, MappedLeaf]:
            return {
                leaf.removeprefix(kind): maps.of(leaf, numbers, episodes)
                for leaf in maps.leaves(kind)
            }

        def column(name: str) -> MappedLeaf:
            for number in maps.missing_numbers(f"columns/{name}", numbers):
                one = self._shards[self._names[number - 1]]
                maps.put(number, {f"columns/{name}": sidecar(one, name)})
            return maps.of(f"columns/{name}", numbers, episodes)

        if there.any():
            maps.put(FLAT, {f"columns/{name}": flat.column(name) for name in view.columns})
        return gather(
            view,
            timesteps,
            leaves("observations/"),
            {},
            leaves("actions/"),
            maps.of("rewards", numbers, episodes),
            column,
            start[:, None],
            seen[:, None],
            seen[:, None],
        )

    def _mapped(self) -> MappedArrays:
        """The maps of all shards, and the flat arrays as they are now."""
        if self._maps is None:
            self._maps = MappedArrays()
            for number in self._numbers.values():
                self._opened(number)
        if self._unflat < len(self._living):
            _put(self._maps, FLAT, self._flat)
        return self._maps


def _put(maps: MappedArrays, number: int, held: Shard | FlatCache) -> None:
    """Have the leaves of a shard, or of the flat arrays, known under a number."""
    for kind, arrays, still in (
        ("observations/", held.observations, False),
        ("observations/", held.held, True),
        ("actions/", held.actions, False),
    ):
        maps.put(number, {f"{kind}{path}": values for path, values in arrays.items()}, still)
    maps.put(number, {"rewards": held.rewards})
