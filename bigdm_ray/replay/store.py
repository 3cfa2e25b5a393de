"""Store: an ordered set of shards on disk, the table of its living episodes, and drawing from them.

`add` answers once file and folder are synced: from then on an episode lives under the retention
rule whatever dies. The rule is a pure function of the episodes' ids and returns, so it is never
stored: opening a folder replays it. What fits into `flat_bytes` is also kept as one flat array a
leaf, from which draws are fastest; the rest is drawn from the memory maps. Every byte of a shard is
checked once: when it is opened, or, once half of this machine's memory has been read so, when it is
first drawn from. Episodes of other processes' shards are taken in with `adopt`, which reads files
and writes none.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bigdm_ray.errors import RunFailed
from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.episode import Episode, EpisodeId
from bigdm_ray.replay.files import file_name, sweep
from bigdm_ray.replay.gather import Flat, bytes_of, gather, joined, leaves_of, sidecar
from bigdm_ray.replay.shard import ClosedShard, CorruptShard, NewerShard, Shard
from bigdm_ray.replay.table import Receipt, Retention, Table
from bigdm_ray.replay.windows import View, Windows

__all__ = ["Receipt", "Retention", "Store", "Table", "Verdict", "verify"]

Arrays = dict[str, np.ndarray]
SHARD_BYTES = 64 << 20
PREFIX = "episodes-"
"""Of the names that a writer gives to shards; a number follows. Shards of other names are taken in too."""


class Store:
    """See the module. One writer a folder; any number of readers, which `adopt` the shards the writer names."""

    def __init__(
        self,
        folder: Path,
        retention: Retention | None = None,
        flat_bytes: int = 256 << 20,
        write: bool = True,
    ) -> None:
        self.folder = folder
        self.retention = retention or Retention()
        self.problems: list[str] = []
        self.table = Table()
        self._shards: dict[str, Shard] = {}
        self._where = np.zeros(
            (0, 3), np.int64
        )  # a row of `table`: shard number, row in it, place in the flat arrays or -1
        self._floor: tuple[int, int] | None = None  # shard number and row of the table's floor
        self._terminated = np.zeros(0, bool)  # a row of `table`: whether the episode terminated
        self._names: list[str] = []  # shard number -> name
        self._left: set[str] = set()  # shards of the folder that were not to be opened
        self._unread: set[str] = set()  # shards whose bodies are checked at their first use
        self._at_once = max(flat_bytes, shards.memory_bytes() // 2)
        self._flat = Flat(flat_bytes)
        self._sidecars: dict[tuple[str, str], np.ndarray] = {}
        self._annotations: dict[str, np.ndarray] = {}
        self._among: dict[str, np.ndarray] = {}  # annotation -> the steps at which it is above 0
        self._starts = np.zeros(0, np.int64)  # where an episode's steps begin in the annotations
        self._write = write
        self._serial = itertools.count()
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, alone=True)
            for name, columns in self._sidecar_files().items():
                if not (folder / name).exists():  # it was set aside or dropped
                    _unlink(columns)

    # --- opening and adding

    def open(self, names: Iterable[str] | None = None, leave: Iterable[str] = ()) -> Store:
        """Take in the shards of the folder: all, or those named, but none of `leave`, which stay closed until `release` unlinks them.

        A torn or foreign file is named in `problems` and, by a writer, set aside as `NAME.corrupt`; the rest loads.
        Raises NewerShard or ClosedShard before anything is renamed.
        """
        there = sorted(path.name for path in self.folder.glob(f"*{shards.SUFFIX}"))
        self._left = set(leave) & set(there)
        shards.refuse_unknown(self.folder / name for name in sorted(self._left))
        wanted = (name for name in (there if names is None else names) if name not in self._left)
        for name, found in {name: self._found(name) for name in wanted}.items():
            self._take(name, found)
        used = [
            int(number)
            for name in (*self._shards, *self._left)
            if (number := name.removeprefix(PREFIX).removesuffix(shards.SUFFIX)).isdecimal()
        ]
        self._serial = itertools.count(max(used, default=-1) + 1)
        return self

    def adopt(self, name: str) -> Table:
        """Take in one shard that is on disk; the table of what was new in it (before retention).

        Raises NewerShard and ClosedShard.
        """
        return self._take(name, self._found(name))

    def _found(self, name: str) -> Shard | CorruptShard:
        if name in self._shards:
            return self._shards[name]
        try:
            path = self.folder / file_name(name, shards.SUFFIX)
            if self._at_once <= 0:
                self._unread.add(name)
                return Shard.open(path)
            found = shards.open_once(path)
            self._at_once -= found.nbytes
            return found
        except CorruptShard as error:
            return error
        except ValueError as error:
            return CorruptShard(str(error))

    def _take(self, name: str, opened: Shard | CorruptShard) -> Table:
        if name in self._shards:
            return Table()
        if isinstance(opened, CorruptShard):
            self._set_aside(name, str(opened))
            return Table()
        rows = self._new(opened.ids)
        ids = np.array(opened.ids, np.int64).reshape(-1, 3)[rows]
        spans = [(int(opened.offsets[row]), int(opened.offsets[row + 1])) for row in rows]
        returns = np.array(
            [opened.rewards[a:b].sum(dtype=np.float64) for a, b in spans], np.float64
        )
        fresh = Table(
            ids, returns, np.array([b - a for a, b in spans], np.int64), opened.peers[rows]
        )
        self._merge(opened, rows, fresh)
        return fresh

    def _new(self, ids: list[EpisodeId]) -> np.ndarray:
        """Positions of the ids that do not live yet, each id once. [m] int64"""
        lives = self.table.find(np.array(ids, np.int64).reshape(-1, 3)) >= 0
        first = {id: i for i, id in reversed(list(enumerate(ids))) if not lives[i]}
        return np.array(sorted(first.values()), np.int64)

    def _set_aside(self, name: str, why: str) -> None:
        try:
            path = self.folder / file_name(name, shards.SUFFIX)
        except ValueError as error:
            self.problems.append(f"a shard of {self.folder} is left out: {error}")
            return
        aside = path.with_name(f"{name}.corrupt")
        if not path.exists():
            self.problems.append(
                f"shard {path} is "
                + (f"set aside as {aside.name}" if aside.exists() else "missing")
            )
            return
        if self._write:
            with contextlib.suppress(OSError):
                path.rename(aside)
        self.problems.append(f"shard {path} is set aside: {why}")

    def add(self, episodes: list[Episode]) -> Receipt:
        """Store episodes so that they survive a crash once this returns. An id that lives already is not added twice.

        Raises ValueError for an episode that is not sound, RunFailed where the disk does not take the file; then
        nothing is stored.
        """
        for episode in episodes:
            if problem := episode.problem():
                raise ValueError(f"episode {episode.id} is not stored: {problem}")
        if new := [episodes[i] for i in self._new([e.id for e in episodes])]:
            self._publish(shards.encode(new), Table.of(new))
        return self._receipt(Table.of(episodes))

    def add_encoded(self, data: bytes | pa.Buffer) -> Receipt:
        """`add` for the bytes of a shard that an actor has encoded: they are checked and written as they are."""
        buffer = pa.py_buffer(data)
        incoming = Shard.read(buffer, self.folder / "incoming")
        episodes = [incoming.episode(row) for row in range(len(incoming.ids))]
        if len(self._new(incoming.ids)) < len(episodes):
            return self.add(episodes)
        for episode in episodes:
            if problem := episode.problem():
                raise ValueError(f"episode {episode.id} is not stored: {problem}")
        self._publish(buffer, Table.of(episodes))
        return self._receipt(Table.of(episodes))

    def _publish(self, data: bytes | pa.Buffer, fresh: Table) -> None:
        name = self._next_name()
        shards.publish(self.folder / name, data)
        try:
            written = Shard.open(self.folder / name)
        except CorruptShard as error:  # the folder went away in between
            raise shards.unwritten(
                self.folder / name, OSError(f"right after it was written {error}")
            ) from None
        self._merge(written, np.arange(len(fresh)), fresh)

    def _receipt(self, table: Table) -> Receipt:
        """Where the episodes of `table` live; those that the rule has evicted live nowhere."""
        found = self.table.find(table.ids)
        numbers = set(self._where[found[found >= 0], 0].tolist())
        if self._floor and (table.ids == self.table.floor).all(1).any():
            numbers.add(self._floor[0])
        return Receipt(table, sorted(self._names[number] for number in numbers))

    def _next_name(self) -> str:
        return f"{PREFIX}{next(self._serial):07d}{shards.SUFFIX}"

    def _sidecar_files(self) -> dict[str, list[Path]]:
        """The sidecars in the folder by the names of their shards."""
        files: dict[str, list[Path]] = {}
        for path in self.folder.glob(f".*{shards.SUFFIX}.*.npy"):
            shard = path.name[1 : path.name.index(shards.SUFFIX)] + shards.SUFFIX
            files.setdefault(shard, []).append(path)
        return files

    def _merge(self, opened: Shard, rows: np.ndarray, fresh: Table) -> None:
        self._shards[opened.path.name] = opened
        self._names.append(opened.path.name)
        if not len(rows):
            return
        places = np.stack(
            [np.full(len(rows), len(self._names) - 1), rows, np.full(len(rows), -1)], 1
        )
        older, before = self.table, len(self.table)
        self.table, origin = older.merged(fresh, self.retention)
        if self.table.floor is not None and self.table.floor != older.floor:
            all_ids, all_places = (
                np.concatenate(pair) for pair in ((older.ids, fresh.ids), (self._where, places))
            )
            place = all_places[(all_ids == self.table.floor).all(1)][0]
            self._floor = int(place[0]), int(place[1])
        self._where = np.concatenate([self._where, places])[origin]
        self._terminated = np.concatenate([self._terminated, opened.terminated[rows]])[origin]
        self._annotations, self._among = {}, {}
        gone = before + len(rows) - len(self.table)
        if gone:
            self._flat.keep(self._where[self._where[:, 2] >= 0, 2])
        for position in np.flatnonzero(origin >= before):
            number, row, _ = self._where[position]
            if self._names[number] not in self._unread:
                self._where[position, 2] = self._flat.add(self._at(number, row), self._moved)

    def _moved(self, old: np.ndarray, new: np.ndarray) -> None:
        """The flat arrays were packed anew: episodes that began at `old` begin at `new` (both ascending)."""
        flat = self._where[:, 2] >= 0
        self._where[flat, 2] = new[np.searchsorted(old, self._where[flat, 2])]

    # --- reading

    def episode(self, position: int) -> Episode:
        """The episode at a position of the table, its arrays views of the map."""
        number, row, _ = self._where[position]
        return self._at(number, row)

    def _at(self, number: int, row: int) -> Episode:
        return self._used(number).episode(int(row))

    def _used(self, number: int) -> Shard:
        """A shard of which steps are read. Raises RunFailed where its body has decayed."""
        name = self._names[number]
        if name in self._unread:
            try:
                self._shards[name].check_body()
            except CorruptShard as error:
                raise shards.decayed(self.folder / name, error) from None
            self._unread.discard(name)
        return self._shards[name]

    def draw(
        self,
        view: View,
        rng: np.random.Generator,
        size: int,
        rank: int = 0,
        world: int = 1,
        turn: int = 0,
    ) -> Windows:
        """`size` windows; rank r of w draws the same rows as every other and fetches only its share of them.

        `turn` counts draws: a store that draws from some of its shards at a time knows from it which.
        """
        positions, steps = self._rows(view, rng, size, turn)
        reached = view.reached(steps, self.table.lengths[positions], rng)
        share = slice(rank * size // world, (rank + 1) * size // world)
        positions, steps, reached = positions[share], steps[share], reached[share]
        lengths = self.table.lengths[positions]
        timesteps, mask = view.span(steps, lengths)
        mask &= timesteps < reached[:, None]
        windows = self._fetch(view, positions, timesteps)
        noted = {
            name: self._annotations[name].take(self._starts[positions][:, None] + timesteps)
            for name in view.annotations
        }
        if not mask.all():
            for values in (*leaves_of(windows), *noted.values()):
                values[~mask] = 0
        ends = (
            mask & self._terminated[positions][:, None] & (timesteps == lengths[:, None] - 1)
            if view.terminals
            else None
        )
        goals = {}
        if view.hindsight:
            after = self._fetch(
                View(stack=view.stack, next_observation=True), positions, reached[:, None] - 1
            ).next_observations
            goals = {path: values[:, 0] for path, values in after.items()}
        return replace(
            windows,
            mask=mask,
            timesteps=np.where(mask, timesteps, 0),
            annotations=noted,
            terminated=ends,
            goals=goals,
        )

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
        """Columns `[steps]` of the living episodes, one after the other as the table has them, for views that name them.

        They hold until an episode comes or goes (`annotated`).
        """
        steps = int(self.table.lengths.sum())
        for name, values in columns.items():
            if values.shape != (steps,):
                raise ValueError(
                    f"the annotation {name!r} has shape {values.shape}, but ({steps},) is expected"
                )
        self._annotations, self._among = columns, {}
        self._starts = self.table.ends - self.table.lengths

    def annotated(self, view: View) -> bool:
        """Whether every annotation that a view names is there and holds."""
        named = {*view.annotations, *([view.among] if view.among else [])}
        return named <= self._annotations.keys()

    def _fetch(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        fetch = self._fetch_flat if (self._where[:, 2] >= 0).all() else self._fetch_mixed
        return fetch(view, positions, timesteps)

    def _fetch_flat(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        flat = self._flat
        start = self._where[positions, 2][:, None]
        return gather(
            view,
            timesteps,
            flat.observations,
            flat.actions,
            flat.rewards,
            flat.column,
            start,
            start,
        )

    def _fetch_mixed(self, view: View, positions: np.ndarray, timesteps: np.ndarray) -> Windows:
        """Rows from the flat arrays and from as many maps as the batch touches, put together in the batch's order."""
        where = self._where[positions]
        source = np.where(where[:, 2] >= 0, -1, where[:, 0])
        parts: list[tuple[np.ndarray, Windows]] = []
        for number in (
            np.unique(source) if len(source) else self._where[:1, 0]
        ):  # an empty share has the same leaves, without rows
            here = np.flatnonzero(source == number)
            if number < 0:
                parts.append((here, self._fetch_flat(view, positions[here], timesteps[here])))
                continue
            mapped = self._used(number)
            row = where[here, 1]
            start = mapped.offsets[row][:, None]
            column = functools.partial(self._sidecar, mapped)
            windows = gather(
                view,
                timesteps[here],
                mapped.observations,
                mapped.actions,
                mapped.rewards,
                column,
                start,
                start + row[:, None],
            )
            parts.append((here, windows))
        return joined(len(positions), parts)

    def _sidecar(self, mapped: Shard, name: str) -> np.ndarray:
        key = (mapped.path.name, name)
        if key not in self._sidecars:
            self._sidecars[key] = sidecar(mapped, name)
        return self._sidecars[key]

    # --- housekeeping

    def living_shards(self) -> list[str]:
        """Names of the shards that hold living episodes, or the floor, which the rule needs."""
        numbers = {*self._where[:, 0].tolist(), *([self._floor[0]] if self._floor else [])}
        return [self._names[number] for number in sorted(numbers)]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards of this store, garbage included."""
        return sum(opened.nbytes for opened in self._shards.values())

    @property
    def garbage_bytes(self) -> int:
        """An estimate of the bytes not needed: a shard's size times its share of dead steps."""
        living = (
            np.bincount(self._where[:, 0], self.table.lengths, len(self._names))
            if len(self.table)
            else np.zeros(len(self._names))
        )
        if self._floor:
            living[self._floor[0]] += self._at(*self._floor).length
        return int(
            sum(
                s.nbytes * (1 - living[i] / max(1, s.offsets[-1]))
                for i, s in enumerate(self._shards[n] for n in self._names)
            )
        )

    def compact(self) -> list[str]:
        """Where garbage exceeds the living bytes, write the living anew into shards of about 64 MiB.

        Returns the names of all shards that hold living episodes now. Nothing is unlinked: the caller first saves
        a checkpoint that names these, then calls `release`. Every byte that is copied is checked first, so that decay
        is not sealed as sound; raises RunFailed where it is found.
        """
        if self._write and self.garbage_bytes > self.nbytes - self.garbage_bytes:
            for name in self.living_shards():
                try:
                    Shard.open(self.folder / name, verify=True)
                except CorruptShard as error:
                    raise shards.decayed(self.folder / name, error) from None
            needed = self._where[:, :2].tolist() + ([list(self._floor)] if self._floor else [])
            first, held = 0, 0
            for position, (number, row) in enumerate(needed):
                held += bytes_of(self._at(number, row))
                if held >= SHARD_BYTES or position == len(needed) - 1:
                    self._rewrite(needed, first, position + 1)
                    first, held = position + 1, 0
        return self.living_shards()

    def _rewrite(self, needed: list[list[int]], first: int, end: int) -> None:
        """Write some of the needed episodes anew: the living, then the floor."""
        name = self._next_name()
        episodes = [self._at(number, row) for number, row in needed[first:end]]
        shards.publish(self.folder / name, shards.encode(episodes))
        self._shards[name] = Shard.open(self.folder / name)
        self._names.append(name)
        living = min(end, len(self.table))
        self._where[first:living, 0] = len(self._names) - 1
        self._where[first:living, 1] = np.arange(living - first)
        if end > living:
            self._floor = len(self._names) - 1, end - 1 - first

    def release(self, named: set[str]) -> list[str]:
        """Unlink every shard without a living episode that is not `named` by a checkpoint; the names that went.

        The newest stays, so that a writer that opens the folder anew numbers its shards on from it: no name comes twice.
        """
        kept = {*self.living_shards(), *named, max(self._names, default="")}
        gone = [name for name in (*self._names, *sorted(self._left)) if name not in kept]
        self.forget(gone)
        self._left -= set(gone)
        if gone:
            columns = self._sidecar_files()
            for name in gone:
                _unlink([self.folder / name, *columns.get(name, [])])
            shards.sync_folder(self.folder)
        return gone

    def forget(self, names: Iterable[str]) -> None:
        """Let go of shards that hold no living episode (a reader does this when the writer has released them)."""
        going = set(names) & set(self._shards)
        keep = [name for name in self._names if name not in going]
        number = {name: i for i, name in enumerate(keep)}
        renumber = np.array([number.get(name, -1) for name in self._names], np.int64)
        if len(self._where):
            self._where[:, 0] = renumber[self._where[:, 0]]
        if self._floor:
            number_now = int(renumber[self._floor[0]])
            self._floor = (number_now, self._floor[1]) if number_now >= 0 else None
        self._names = keep
        self._unread -= going
        for name in going:
            del self._shards[name]
        self._sidecars = {
            key: column for key, column in self._sidecars.items() if key[0] not in going
        }

    def follow(self, names: Iterable[str]) -> None:
        """A reader takes over the shards that hold the writer's living episodes now, so that it can forget the old ones."""
        wanted = list(names)
        late = [name for name in wanted if name not in self._shards]
        for name in late:
            self.adopt(name)
        numbers = {name: number for number, name in enumerate(self._names)}
        named = [numbers[name] for name in wanted if name in numbers]
        for some in (late, wanted):  # what has moved is in those that are new here, else in any
            floor = [self._floor[0]] if self._floor else []
            if np.isin(np.append(self._where[:, 0], floor), named).all():
                return
            for number in (numbers[name] for name in some if name in numbers):
                self._point_to(number)

    def _point_to(self, number: int) -> None:
        """Have the living episodes of a shard, and the table's floor, drawn from it."""
        ids = np.array(self._shards[self._names[number]].ids, np.int64).reshape(-1, 3)
        positions = self.table.find(ids)
        rows = np.flatnonzero(positions >= 0)
        self._where[positions[rows], 0], self._where[positions[rows], 1] = number, rows
        if self._floor and len(row := np.flatnonzero((ids == self.table.floor).all(1))):
            self._floor = number, int(row[0])


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


class Verdict(NamedTuple):
    """What `verify` found."""

    sound: int  # shards
    episodes: int  # in them
    problems: list[str]  # one sentence for each shard that is not sound
    aside: int  # how many of those were set aside; the others are left as they are


def verify(folder: Path) -> Verdict:
    """Read every byte of every shard, and set aside those that are not sound.

    One of a newer version, or that cannot be opened now, is named and left as it is. Raises
    RunFailed where a shard cannot be renamed.
    """
    sound, episodes, aside, problems = 0, 0, 0, list[str]()
    for path in sorted(folder.glob(f"*{shards.SUFFIX}")):
        try:
            opened = Shard.open(path, verify=True)
            for row in range(len(opened.ids)):
                if problem := opened.episode(row).problem():
                    raise CorruptShard(f"in its episode {opened.ids[row]}, {problem}")
            sound, episodes = sound + 1, episodes + len(opened.ids)
        except (NewerShard, ClosedShard) as error:
            problems.append(str(error))
        except CorruptShard as error:
            if not path.exists():  # a run that goes on has let go of it
                continue
            try:
                path.rename(path.with_name(f"{path.name}.corrupt"))
            except OSError as failed:
                raise RunFailed(
                    f"cannot set aside {path}: {failed.strerror}; "
                    f"verify again where {folder} can be written and no run uses it"
                ) from None
            aside += 1
            problems.append(f"shard {path} is set aside as {path.name}.corrupt: {error}")
    return Verdict(sound, episodes, problems, aside)
