"""ShardFolder: the shards of a folder and the episodes that live in them; what a Store keeps and
does not draw.

See `store.py`, whose Store is one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.episode import Episode, EpisodeId, bytes_of
from bigdm_ray.replay.files import file_name, remove_leftovers
from bigdm_ray.replay.living import IdIndex, LivingEpisodes, last_of_each
from bigdm_ray.replay.shard import CorruptShard, Shard, ShardRef
from bigdm_ray.replay.source import FolderSource, ShardSource
from bigdm_ray.replay.table import COLUMNS, Receipt, Retention, Table

Arrays = dict[str, np.ndarray]
SHARD_BYTES = 64 << 20
PREFIX = "episodes-"
"""Of the names that a writer gives to shards; a number follows. Shards of other names are taken in
too."""


class ShardFolder:
    """See the module."""

    def __init__(
        self,
        folder: Path,
        retention: Retention | None = None,
        at_once: int = 0,
        write: bool = True,
        source: ShardSource | None = None,
    ) -> None:
        """`at_once` are bytes of shards that are checked when they are opened, not at their first
        use."""
        self.folder = folder
        self.retention = retention or Retention()
        self.problems: list[str] = []
        self._source = source or FolderSource(folder)
        self._shards: dict[str, Shard] = {}
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []  # number -> name, "" where the number is free
        self._free: list[int] = []
        self._count = np.zeros(0, np.int64)  # number -> living episodes
        self._steps = np.zeros(0, np.int64)  # number -> their steps
        # place: shard number, row in it, place in the flat arrays or -1, first step in the shard
        self._living = LivingEpisodes(
            self.retention,
            {"place": np.zeros((0, 4), np.int64), "terminated": np.zeros(0, bool)},
        )
        self._floor: tuple[int, int] | None = None  # shard number and row of the table's floor
        self._arrived = 0  # the serial of the next episode
        self._ids: IdIndex | None = None  # of what is in the shards; made at the first add
        self._left: set[str] = set()  # shards of the folder that were not to be opened
        self._unread: set[str] = set()  # shards whose bodies are checked at their first use
        self._at_once = at_once
        self._write = write
        self._next = itertools.count()
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder, alone=True)
            for name, columns in self._sidecar_files().items():
                if not (folder / name).exists():  # it was set aside or dropped
                    _unlink(columns)

    @property
    def table(self) -> Table:
        """The living episodes."""
        return self._living.table

    @property
    def next_serial(self) -> int:
        """The serial of the next episode: all that were ever added have smaller ones."""
        return self._arrived

    # --- opening and adding

    def open(
        self, names: Iterable[ShardRef | str] | None = None, leave: Iterable[str] = ()
    ) -> ShardFolder:
        """Take in the shards of the folder: all, or those named, but none of `leave`, which stay
        closed until `release` unlinks them.

        A torn or foreign file is named in `problems` and, by a writer, set aside as `NAME.corrupt`;
        the rest loads. Raises NewerShard or ClosedShard before anything is renamed.
        """
        there = sorted(path.name for path in self.folder.glob(f"*{shards.SUFFIX}"))
        self._left = set(leave) & set(there)
        shards.refuse_unknown(self.folder / name for name in sorted(self._left))
        wanted = map(ShardRef.of, there if names is None else names)
        found = {ref.name: self._found(ref) for ref in wanted if ref.name not in self._left}
        for name, one in found.items():
            if isinstance(one, CorruptShard):
                self._set_aside(name, str(one))
        self._take([one for one in found.values() if isinstance(one, Shard)])
        used = [
            int(number)
            for name in (*self._shards, *self._left)
            if (number := name.removeprefix(PREFIX).removesuffix(shards.SUFFIX)).isdecimal()
        ]
        self._next = itertools.count(max(used, default=-1) + 1)
        return self

    def adopt(self, named: ShardRef | str) -> Table:
        """Take in one shard that is there; the table of what was new in it (before retention).

        What lives already is drawn from it from now on. Raises NewerShard and ClosedShard.
        """
        ref = ShardRef.of(named)
        found = self._found(ref)
        if isinstance(found, CorruptShard):
            self._set_aside(ref.name, str(found))
            return Table()
        return self._take([found])

    def _found(self, ref: ShardRef) -> Shard | CorruptShard:
        if ref.name in self._shards:
            return self._shards[ref.name]
        whole = self._at_once > 0
        try:
            found = self._source.open(ref, whole)
        except CorruptShard as error:
            return error
        if whole:
            self._at_once -= found.nbytes
        else:
            self._unread.add(ref.name)
        return found

    def _take(self, opened: list[Shard]) -> Table:
        """Hold open shards, and merge their episodes; the table of those that are new.

        Where several hold the same episode, the last one counts: compaction has written it anew.
        """
        opened = [shard for shard in opened if shard.path.name not in self._shards]
        if not opened:
            return Table()
        numbers = [self._hold(shard) for shard in opened]
        sizes = [len(shard.serials) for shard in opened]
        which = np.repeat(np.arange(len(opened)), sizes)
        rows = np.concatenate([np.arange(size) for size in sizes])
        ids = np.concatenate([shard.keys for shard in opened])
        serials = np.concatenate([shard.serials for shard in opened])
        last = last_of_each(serials, ids)
        which, rows, ids, serials = which[last], rows[last], ids[last], serials[last]
        self._arrived = max(self._arrived, *(shard.arrived for shard in opened))
        place = np.stack([np.array(numbers)[which], rows, np.full(len(rows), -1), rows], 1)
        place[:, 3] = np.concatenate([shard.offsets[:-1] for shard in opened])[last]
        if self._floor and (at := self._floors(serials, ids)) is not None:
            self._floor = int(place[at, 0]), int(place[at, 1])
        there = self._living.find(serials, ids)
        known = there >= 0
        self._move(there[known], place[known])
        new = np.flatnonzero(~known)
        paid, lengths = [], []
        for one, row in zip(which[new].tolist(), rows[new].tolist(), strict=True):
            start, end = opened[one].offsets[row : row + 2].tolist()
            paid.append(opened[one].rewards[start:end].sum(dtype=np.float64))
            lengths.append(end - start)

        def told(name: str) -> np.ndarray:
            column = np.concatenate([getattr(shard, name) for shard in opened])
            picked: np.ndarray = column[last[new]]
            return picked

        fresh = Table(
            ids[new],
            np.array(paid, np.float64),
            np.array(lengths, np.int64),
            told("merit"),
            serials[new],
            told("sources"),
        )
        if len(fresh):
            self._merge(fresh, place[new], told("terminated"))
        return fresh

    def _hold(self, shard: Shard) -> int:
        """The number of a shard that is held from now on."""
        if self._free:
            number = self._free.pop()
        else:
            number = len(self._names)
            self._names.append("")
            if number >= len(self._count):
                more = np.zeros(max(64, number), np.int64)
                self._count, self._steps = (
                    np.append(self._count, more),
                    np.append(self._steps, more),
                )
        name = shard.path.name
        self._names[number], self._numbers[name], self._shards[name] = name, number, shard
        self._count[number] = self._steps[number] = 0
        self._opened(number)
        return number

    def _floors(self, serials: np.ndarray, ids: np.ndarray) -> int | None:
        """Which of some episodes is the table's floor."""
        floor = self._living.floor
        if floor is None:
            return None
        at = np.flatnonzero((serials == floor.serial) & (ids == floor.id).all(1))
        return int(at[0]) if len(at) else None

    def _move(self, rows: np.ndarray, place: np.ndarray) -> None:
        """Living episodes are drawn from these places now."""
        lengths, where = self._living.column("lengths")[rows], self._living.column("place")
        for numbers, sign in ((where[rows, 0], -1), (place[:, 0], 1)):
            np.add.at(self._count, numbers, sign)
            np.add.at(self._steps, numbers, sign * lengths)
        where[rows, 0], where[rows, 1], where[rows, 3] = place[:, 0], place[:, 1], place[:, 3]

    def _merge(self, fresh: Table, place: np.ndarray, terminated: np.ndarray) -> None:
        floor = self._living.floor
        columns = {name: fresh[name] for name in COLUMNS}
        alive, gone = self._living.add(columns | {"place": place, "terminated": terminated})
        for numbers, lengths, sign in (
            (place[:, 0], fresh.lengths, 1),
            (gone["place"][:, 0], gone["lengths"], -1),
        ):
            np.add.at(self._count, numbers, sign)
            np.add.at(self._steps, numbers, sign * lengths)
        if self._living.floor != floor:
            self._floor = int(gone["place"][-1, 0]), int(gone["place"][-1, 1])
        self._came_and_went(len(fresh), alive, gone)

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
        """Store episodes so that they survive a crash once this returns.

        An id that was added before, and whose shard is still there, is not added again.

        Raises ValueError for an episode that is not sound, RunFailed where the disk does not take
        the file; then nothing is stored.
        """
        return self._add(episodes)

    def add_encoded(self, *data: bytes | pa.Buffer) -> Receipt:
        """`add` for the bytes of shards that actors have encoded: these are checked.

        What one has encoded is written as it is; of several, which waited for one sync, one shard
        is made, or as many as they are where it would be too large.
        """
        buffers = [pa.py_buffer(one) for one in data]
        if len(buffers) > 1 and sum(buffer.size for buffer in buffers) > SHARD_BYTES:
            receipts = [self.add_encoded(buffer) for buffer in buffers]
            named = dict.fromkeys(ref for receipt in receipts for ref in receipt.shards)
            return Receipt(Table.concatenate(receipt.added for receipt in receipts), [*named])
        incoming = [Shard.read(buffer, self.folder / "incoming") for buffer in buffers]
        episodes = [one.episode(row) for one in incoming for row in range(len(one.serials))]
        return self._add(episodes, buffers[0] if len(buffers) == 1 else None)

    def _add(self, episodes: list[Episode], encoded: pa.Buffer | None = None) -> Receipt:
        for episode in episodes:
            if problem := episode.problem():
                raise ValueError(f"episode {episode.id} is not stored: {problem}")
        if self._ids is None or self._ids.full:
            held = [*self._shards.values()]
            self._ids = IdIndex(
                np.concatenate([np.zeros((0, 3), np.int64), *(shard.keys for shard in held)]),
                np.concatenate([np.zeros(0, np.int64), *(shard.serials for shard in held)]),
            )
        known = self._ids.find([episode.id for episode in episodes])
        given = dict[EpisodeId, int]()
        new = list[Episode]()
        for episode, serial in zip(episodes, known, strict=True):
            if serial is None and episode.id not in given:
                given[episode.id] = self._arrived + len(new)
                new.append(episode)
        if new:
            whole = encoded is not None and len(new) == len(episodes)
            self._publish(encoded if whole else shards.encode(new))
            for id, serial in given.items():
                self._ids.add(id, serial)
        serials = [
            given[episode.id] if serial is None else serial
            for episode, serial in zip(episodes, known, strict=True)
        ]
        return self._receipt(Table.of(episodes, serials))

    def _publish(self, data: bytes | pa.Buffer) -> None:
        """Write the bytes of a shard, its episodes numbered from the next serial on."""
        self._written(*shards.number_episodes(data, self._arrived))

    def _written(self, *data: bytes | memoryview) -> None:
        """Write the bytes of a shard, and take it in."""
        name = self._next_name()
        shards.publish(self.folder / name, *data)
        try:
            written = Shard.open(self.folder / name)
        except CorruptShard as error:  # the folder went away in between
            raise shards.write_failure(
                self.folder / name, OSError(f"right after it was written {error}")
            ) from None
        self._take([written])

    def _receipt(self, table: Table) -> Receipt:
        """Where the episodes of `table` live; those that the rule has evicted live nowhere."""
        found = self._living.find(table.serials, table.ids)
        numbers = set(self._living.column("place")[found[found >= 0], 0].tolist())
        if self._floor and self._floors(table.serials, table.ids) is not None:
            numbers.add(self._floor[0])
        return Receipt(table, self._refs(numbers))

    def _refs(self, numbers: Iterable[int]) -> list[ShardRef]:
        """References to shards, in the order of their names."""
        return [self._shards[name].ref for name in sorted(self._names[n] for n in numbers)]

    def _next_name(self) -> str:
        return f"{PREFIX}{next(self._next):07d}{shards.SUFFIX}"

    def _sidecar_files(self) -> dict[str, list[Path]]:
        """The sidecars in the folder by the names of their shards."""
        files: dict[str, list[Path]] = {}
        for path in self.folder.glob(f".*{shards.SUFFIX}.*.npy"):
            shard = path.name[1 : path.name.index(shards.SUFFIX)] + shards.SUFFIX
            files.setdefault(shard, []).append(path)
        return files

    # --- what a Store hears of

    def _came_and_went(self, fresh: int, alive: np.ndarray, gone: Arrays) -> None:
        """So many episodes were merged, of which these rows live; those of `gone` do not (any
        more)."""

    def _opened(self, number: int) -> None:
        """A shard is held."""

    def _closed(self, number: int) -> None:
        """A shard is let go of."""

    # --- reading

    def episode(self, position: int) -> Episode:
        """The episode at a position of the table, its arrays views of the map."""
        number, row, *_ = self._places(np.array([position]))[0].tolist()
        return self._at(number, row)

    def _places(self, positions: np.ndarray) -> np.ndarray:
        """Shard number, row in it, place in the flat arrays or -1, first step: `[m, 4]` int64."""
        places: np.ndarray = self._living.column("place")[self._living.rows(positions)]
        return places

    @property
    def _where(self) -> np.ndarray:
        """`_places` of all."""
        return self._places(np.arange(len(self._living)))

    def _at(self, number: int, row: int) -> Episode:
        return self._used(number).episode(int(row))

    def _used(self, number: int) -> Shard:
        """A shard of which steps are read. Raises RunFailed where its body has decayed."""
        name = self._names[number]
        if name in self._unread:
            try:
                self._shards[name].check_body()
            except CorruptShard as error:
                raise shards.decay_failure(self.folder / name, error) from None
            self._unread.discard(name)
        return self._shards[name]

    # --- housekeeping

    def living_shards(self) -> list[ShardRef]:
        """The shards that hold living episodes, or the floor, which the rule needs."""
        numbers = {
            *np.flatnonzero(self._count).tolist(),
            *([self._floor[0]] if self._floor else []),
        }
        return self._refs(numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards of this store, garbage included."""
        return sum(opened.nbytes for opened in self._shards.values())

    @property
    def garbage_bytes(self) -> int:
        """An estimate of the bytes not needed: a shard's size times its share of dead steps."""
        living = self._steps.astype(np.float64)
        if self._floor:
            living[self._floor[0]] += self._at(*self._floor).length
        return int(
            sum(
                shard.nbytes * (1 - living[self._numbers[name]] / max(1, int(shard.offsets[-1])))
                for name, shard in self._shards.items()
            )
        )

    def compact(self) -> list[ShardRef]:
        """Where garbage exceeds the living bytes, write the living anew into shards of about 64
        MiB.

        Returns all shards that hold living episodes now. Nothing is unlinked: the caller first
        saves a checkpoint that names these, then calls `release`. Every byte that is copied is
        checked first, so that decay is not sealed as sound; raises RunFailed where it is found.
        """
        if self._write and self.garbage_bytes > self.nbytes - self.garbage_bytes:
            for name, *_ in self.living_shards():
                try:
                    Shard.open(self.folder / name, verify=True)
                except CorruptShard as error:
                    raise shards.decay_failure(self.folder / name, error) from None
            needed = self._where[:, :2].tolist() + ([list(self._floor)] if self._floor else [])
            first, held = 0, 0
            for position, (number, row) in enumerate(needed):
                held += bytes_of(self._at(number, row))
                if held >= SHARD_BYTES or position == len(needed) - 1:
                    self._rewrite(needed[first : position + 1])
                    first, held = position + 1, 0
        return self.living_shards()

    def _rewrite(self, needed: list[list[int]]) -> None:
        """Write some episodes anew, with their serials."""
        episodes = [self._at(number, row) for number, row in needed]
        serials = [int(self._shards[self._names[n]].serials[row]) for n, row in needed]
        self._written(shards.encode(episodes, serials, self._arrived))

    def release(self, named: set[str]) -> list[str]:
        """Unlink every shard without a living episode that is not `named` by a checkpoint; the
        names that went.

        The newest stays, so that a writer that opens the folder anew numbers its shards on from it:
        no name comes twice.
        """
        living = {ref.name for ref in self.living_shards()}
        kept = {*living, *named, max(self._shards, default="")}
        gone = [name for name in (*self._shards, *sorted(self._left)) if name not in kept]
        self.forget(gone)
        self._left -= set(gone)
        if gone:
            columns = self._sidecar_files()
            for name in gone:
                _unlink([self.folder / name, *columns.get(name, [])])
            shards.sync_folder(self.folder)
        return gone

    def forget(self, names: Iterable[str]) -> None:
        """Let go of shards that hold no living episode (a reader does this when the writer has
        released them)."""
        for name in names:
            number = self._numbers.get(name)
            if number is None or self._count[number]:
                continue
            if self._floor and self._floor[0] == number:
                self._floor = None
            del self._shards[name], self._numbers[name]
            self._names[number] = ""
            self._free.append(number)
            self._unread.discard(name)
            self._closed(number)

    def follow(self, named: Iterable[ShardRef | str]) -> None:
        """A reader takes over shards to which living episodes have moved, so that it can forget the
        old ones."""
        late = [ref for ref in map(ShardRef.of, named) if ref.name not in self._shards]
        for ref in late:
            self.adopt(ref)


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
