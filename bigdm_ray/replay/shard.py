"""Shard: one immutable Arrow IPC file of whole episodes, one row an episode, memory-mapped when
read.

Every step leaf is a `large_list<fixed_size_list<dtype>[n]>` column (a plain `large_list<dtype>` for
scalars) with the episode's scalars beside it; an observation that holds for whole episodes is a
column of one value each. One record batch, uncompressed, so that a draw copies nothing. The footer
carries the file's size, a CRC-32 of the body and one of the footer itself; and, where a store has
taken it in, the serial of the first episode (`number_episodes`): the others follow it, unless a
column tells them, as in shards that compaction has written. Opening checks size, footer and how the
batch is put together (`contents.py`); whoever uses what is in it checks the body first, once
(`check_body`, or `verify` at opening).

A shard appears under its name complete or not at all: written under a temporary name, synced,
renamed, the folder synced. Nothing here is pickled.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bigdm_ray.errors import RunFailed, UserError, full_disk
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.contents import MALFORMED, check_batch, check_commands
from bigdm_ray.replay.episode import Episode, EpisodeId, broadcast_held, is_held, source_number
from bigdm_ray.replay.files import temporary_path

SCHEMA_VERSION = 2
SUFFIX = ".arrow"
_MAGIC = b"ARROW1"
_SEAL = b"bigdm-seal:"
_DIGITS = re.compile(rb"[0-9a-f]{32}")
_SERIALS = re.compile(rb"[0-3][0-9a-f]{15}")
_BLANK = _SEAL + b"0" * 32  # size (16 hex), body CRC (8 hex), footer CRC (8 hex)
_SERIAL = b"bigdm-serial:"
_UNNUMBERED = _SERIAL + b"-" * 16  # the first serial (16 hex)
UNNUMBERED = -1
"""The serial of episodes that no store has numbered: of datasets, and of runs from before
serials."""


_CHECKED: dict[Path, tuple[int, ...]] = {}
"""Shards whose bodies this process has checked, as the files were then."""
_SETTLED_NS = 2_000_000_000
"""Nanoseconds after which a change of a file changes its time for certain."""


class CorruptShard(Exception):
    """A file that is not a whole, unchanged shard. The text says what is wrong with it."""


class NewerShard(UserError):
    """A shard of a later version of this project: sound, so it is neither renamed nor unlinked."""

    @staticmethod
    def of(path: Path, version: int) -> NewerShard:
        """Of this file and its version."""
        return NewerShard(
            f"shard {path} has schema version {version}, newer than the {SCHEMA_VERSION} known "
            "here: update bigdm_ray"
        )


class ClosedShard(RunFailed):
    """A shard that cannot be opened now (no memory, no permission, too many open files).

    Nothing is known of its content, so it is neither renamed nor unlinked.
    """

    @staticmethod
    def of(path: Path, error: BaseException) -> ClosedShard:
        """Of this file and what opening it raised."""
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else shorten(str(error) or type(error).__name__, 200)
        return ClosedShard(
            f"shard {path} cannot be opened now ({why}); it is left as it is: see to the cause, "
            "then give the command again (a run goes on with --resume)"
        )


class ShardRef(NamedTuple):
    """Names a shard wherever it lies; what is opened in its name is held against the rest."""

    name: str
    size: int | None = None  # bytes; None in what was written before there were references
    crc: int | None = None  # of the body

    @staticmethod
    def of(named: ShardRef | str) -> ShardRef:
        """A reference, or one to the shard of this name."""
        return named if isinstance(named, ShardRef) else ShardRef(named)


def encode(
    episodes: list[Episode], serials: Sequence[int] | None = None, arrived: int = 0
) -> bytes:
    """The bytes of a shard file that holds `episodes`, which must be of one task and one signature.

    `serials` are those that a store has given them, `arrived` the one that it gives next. Without,
    `number_episodes` may tell them later.
    """
    columns: dict[str, pa.Array] = {
        "round": pa.array([e.id.round for e in episodes], pa.int64()),
        "group": pa.array([e.id.group for e in episodes], pa.int64()),
        "number": pa.array([e.id.number for e in episodes], pa.int64()),
        "terminated": pa.array([e.terminated for e in episodes], pa.bool_()),
        "incarnation": pa.array([e.version[0] for e in episodes], pa.int64()),
        "learner_step": pa.array([e.version[1] for e in episodes], pa.int64()),
        "source": pa.array([e.source for e in episodes], pa.string()),
        "seed": pa.array([e.seed for e in episodes], pa.int64()),
        "command": pa.array([json.dumps(e.command, sort_keys=True) for e in episodes], pa.string()),
    }
    if any(e.merit for e in episodes):
        columns["merit"] = pa.array([e.merit for e in episodes], pa.float64())
    if serials is not None:
        columns["serial"] = pa.array(serials, pa.int64())
    first = episodes[0]
    shapes: dict[str, list[int]] = {}
    leaves: dict[str, list[np.ndarray]] = {"rewards": [e.rewards for e in episodes]}
    leaves |= {
        f"observations/{path}": [e.observations[path] for e in episodes]
        for path in first.observations
    }
    leaves |= {f"actions/{path}": [e.actions[path] for e in episodes] for path in first.actions}
    once = [name for name, values in leaves.items() if _hold(name, values)]
    for name, values in leaves.items():
        columns[name] = (
            _items(np.stack([v[0] for v in values])) if name in once else _list_column(values)
        )
        shapes[name] = list(values[0].shape[1:])
    meta = {
        "schema_version": SCHEMA_VERSION,
        "task": first.task,
        "shapes": shapes,
        "dtypes": {k: str(v[0].dtype) for k, v in leaves.items()},
    }
    meta |= {"held": once} if once else {}
    meta |= {"arrived": arrived} if serials is not None else {}
    table = pa.table(columns).replace_schema_metadata(
        {b"bigdm": json.dumps(meta, sort_keys=True).encode()}
    )
    sink = pa.BufferOutputStream()
    footer = {"seal": _BLANK.decode(), "serial": _UNNUMBERED.decode()}
    with pa.ipc.new_file(sink, table.schema, metadata=footer) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])
    return _sealed(bytearray(sink.getvalue()))


def _hold(name: str, values: list[np.ndarray]) -> bool:
    """Whether a leaf is to be stored once an episode."""
    return name.startswith("observations/") and all(is_held(v) for v in values)


def _list_column(values: list[np.ndarray]) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(v) for v in values], out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), _items(np.concatenate(values)))


def _items(rows: np.ndarray) -> pa.Array:
    """`[n, ...]` as n values of Arrow."""
    items: pa.Array = pa.array(np.ascontiguousarray(rows).reshape(-1))
    if rows.ndim > 1:
        items = pa.FixedSizeListArray.from_arrays(items, int(np.prod(rows.shape[1:])))
    return items


def _sealed(data: bytearray) -> bytes:
    """Write size and checksums over the blank seal in the footer; the body lies before it and is
    not touched."""
    start = _footer_start(data)
    at = data.index(_BLANK, start)
    data[at + 11 : at + 35] = b"%016x%08x" % (len(data), zlib.crc32(memoryview(data)[:start]))
    data[at + 35 : at + 43] = b"%08x" % zlib.crc32(memoryview(data)[start:])
    return bytes(data)


def number_episodes(data: Any, first: int) -> tuple[memoryview, bytes]:
    """What `encode` gave, with the serial of its first episode: (body, footer).

    No copy of the body.
    """
    view = memoryview(data)
    start = _footer_start(view)
    footer = bytearray(view[start:])
    at, seal = footer.index(_SERIAL), footer.index(_SEAL)
    footer[at + len(_SERIAL) : at + len(_UNNUMBERED)] = b"%016x" % first
    footer[seal + 35 : seal + 43] = b"0" * 8
    footer[seal + 35 : seal + 43] = b"%08x" % zlib.crc32(footer)
    return view[:start], bytes(footer)


def _first_serial(data: Any) -> int | None:
    """What `number_episodes` wrote; None where nothing did."""
    footer = bytes(data[_footer_start(data) :])
    at = footer.find(_SERIAL)
    digits = footer[at + len(_SERIAL) : at + len(_UNNUMBERED)]
    return int(digits, 16) if at >= 0 and _SERIALS.fullmatch(digits) else None


def _footer_start(data: Any) -> int:
    if len(data) < 24 or bytes(data[-6:]) != _MAGIC or bytes(data[:6]) != _MAGIC:
        raise CorruptShard("it is not a whole Arrow file")
    start = len(data) - 10 - int.from_bytes(data[-10:-6], "little", signed=True)
    if not 8 <= start < len(data) - 10:
        raise CorruptShard("its footer is broken")
    return start


def check_shard(data: Any, body: bool) -> int:
    """Raise CorruptShard unless size and footer (and, with `body`, every byte) are as written.

    The checksum of the body.
    """
    start = _footer_start(data)
    footer = bytearray(data[start:])
    at = footer.find(_SEAL)
    digits = bytes(footer[at + 11 : at + 43])
    if at < 0 or not _DIGITS.fullmatch(digits):
        raise CorruptShard("its footer carries no checksum of this project")
    size, crc, footer_crc = (int(part, 16) for part in (digits[:16], digits[16:24], digits[24:]))
    footer[at + 35 : at + 43] = b"0" * 8
    if zlib.crc32(footer) != footer_crc:
        raise CorruptShard("the checksum of its footer does not match")
    if size != len(data):
        raise CorruptShard(f"it is {len(data)} bytes long where {size} were written")
    if body and zlib.crc32(memoryview(data)[:start]) != crc:
        raise CorruptShard("the checksum of its body does not match")
    return crc


def publish(path: Path, *data: Any) -> None:
    """Write bytes, one part after the other, sync, rename, sync the folder: the file is there
    whole, or not at all and RunFailed is raised."""
    hidden = temporary_path(path)
    try:
        with hidden.open("wb") as file:
            for part in data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            hidden.unlink()
        raise write_failure(path, error) from None


def write_failure(path: Path, error: OSError) -> RunFailed:
    """One sentence for a file that could not be written, with what may help."""
    help = (
        "free some space" if full_disk(error) else "see that its folder exists and may be written"
    )
    return RunFailed(
        f"cannot write {path}: {error.strerror or error}; {help}, then try again (a run goes on"
        " with --resume)"
    )


def sync_folder(folder: Path) -> None:
    """Make renames and unlinks inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Shard:
    """An open shard: memory-mapped columns as numpy views.

    Opening allocates next to nothing, drawing copies rows only.
    """

    path: Path
    data: pa.Buffer  # all of the file
    crc: int  # of its body, as it was written
    task: str
    keys: np.ndarray  # [episodes, 3] int64: the ids
    serials: np.ndarray  # [episodes] int64: in which order a store took them in, or UNNUMBERED
    arrived: int  # the serial that the store gives next, as far as this shard tells
    offsets: np.ndarray  # [episodes + 1] int64, in steps
    terminated: np.ndarray  # [episodes] bool
    versions: np.ndarray  # [episodes, 2] int64
    merit: np.ndarray  # [episodes] float64; 0 where there is no such column
    rewards: np.ndarray  # [steps] float32, all episodes one after another
    # [steps + episodes, ...]: episode i starts at offsets[i] + i
    observations: dict[str, np.ndarray]
    held: dict[str, np.ndarray]  # [episodes, ...]: observations that hold for whole episodes
    actions: dict[str, np.ndarray]  # [steps, ...]
    scalars: pa.RecordBatch

    @staticmethod
    def open(path: Path, verify: bool = False) -> Shard:
        """Map a shard; `verify` reads every byte of it.

        Raises CorruptShard, also for what is no file or is not there, NewerShard and ClosedShard.
        """
        try:
            data = pa.memory_map(str(path)).read_buffer()
        except (OSError, MemoryError, pa.ArrowException) as error:
            if _is_no_file(path):
                raise CorruptShard(f"it cannot be opened ({error})") from None
            raise ClosedShard.of(path, error) from None
        return Shard.read(data, path, verify)

    @staticmethod
    def read(data: pa.Buffer, path: Path, verify: bool = True) -> Shard:
        """The shard whose bytes are `data`, to be known as `path`.

        Raises CorruptShard, and NewerShard, which the footer tells before anything else is read.
        """
        crc = check_shard(memoryview(data), verify)
        try:
            reader = pa.ipc.open_file(data)
            meta = read_json(reader.schema.metadata[b"bigdm"])
            if meta["schema_version"] > SCHEMA_VERSION:
                raise NewerShard.of(path, meta["schema_version"])
            if reader.num_record_batches != 1:
                raise ValueError("it has more than one batch")
            batch = reader.get_batch(0)
            check_batch(batch, meta)
            if verify:
                check_commands(batch.column("command"))
            return _mapped(path, data, crc, batch, meta, _first_serial(memoryview(data)))
        except MemoryError as error:
            raise ClosedShard.of(path, error) from None
        except MALFORMED as error:
            raise CorruptShard(_unreadable(error)) from None

    def check_body(self) -> None:
        """Read every byte, where `open` was not told to. Raises CorruptShard."""
        check_shard(memoryview(self.data), True)
        try:
            check_commands(self.scalars.column("command"))
        except MALFORMED as error:
            raise CorruptShard(_unreadable(error)) from None

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return int(self.data.size)

    @property
    def ref(self) -> ShardRef:
        """What names this shard."""
        return ShardRef(self.path.name, self.nbytes, self.crc)

    @functools.cached_property
    def ids(self) -> list[EpisodeId]:
        """The ids of its episodes."""
        return [EpisodeId(*row) for row in self.keys.tolist()]

    @functools.cached_property
    def sources(self) -> np.ndarray:
        """`source_number` of each episode: `[episodes]` int64."""
        named = self.scalars.column("source").dictionary_encode()
        numbers = np.array([source_number(text) for text in named.dictionary.to_pylist()], np.int64)
        found: np.ndarray = numbers[named.indices.to_numpy()]
        return found

    def episode(self, row: int) -> Episode:
        """One episode; its arrays are read-only views of the map."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        seen = slice(start + row, end + row + 1)
        observations = {path: values[seen] for path, values in self.observations.items()}
        for path, values in self.held.items():
            observations[path] = broadcast_held(values[row], end - start + 1)
        return Episode(
            dict(sorted(observations.items())) if self.held else observations,
            {path: values[start:end] for path, values in self.actions.items()},
            self.rewards[start:end],
            bool(self.terminated[row]),
            EpisodeId(*self.keys[row].tolist()),
            self.task,
            read_json(self._scalar("command", row)),
            (int(self.versions[row, 0]), int(self.versions[row, 1])),
            self._scalar("source", row),
            self._scalar("seed", row),
            float(self.merit[row]),
        )

    def _scalar(self, name: str, row: int) -> Any:
        return self.scalars.column(name)[row].as_py()


def _unreadable(error: BaseException) -> str:
    return f"its contents cannot be read ({type(error).__name__}: {shorten(str(error), 200)})"


def open_once(path: Path) -> Shard:
    """`Shard.open` that reads every byte, once a process as long as the file does not change."""
    stamp = _stamp(path)
    opened = Shard.open(path, verify=not stamp or _CHECKED.get(path) != stamp)
    if stamp and time.time_ns() - max(stamp[2:]) > _SETTLED_NS:
        _CHECKED[path] = stamp
    return opened


def _stamp(path: Path) -> tuple[int, ...]:
    """What of a file changes whenever it does: empty where it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def decay_failure(path: Path, error: CorruptShard) -> RunFailed:
    """One sentence for decay that is found while a shard is in use."""
    return RunFailed(
        f"shard {path} has decayed: {error}; `data verify` sets it aside, then --resume goes on "
        "without its episodes, or in lock-step from an older checkpoint that does not need them; "
        "a dataset is to be imported anew"
    )


def _is_no_file(path: Path) -> bool:
    """Whether there is surely nothing at `path` that could be a shard."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def memory_bytes() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_unknown(paths: Iterable[Path]) -> None:
    """Before these shards are unlinked: raise NewerShard or ClosedShard where one must stay."""
    for path in paths:
        with contextlib.suppress(CorruptShard):
            Shard.open(path)


def _mapped(
    path: Path,
    data: pa.Buffer,
    crc: int,
    batch: pa.RecordBatch,
    meta: dict[str, Any],
    first: int | None,
) -> Shard:
    once, count = set(meta.get("held", ())), batch.num_rows

    def leaf(name: str) -> np.ndarray:
        values = batch.column(name)
        values = values if name in once else values.values
        if isinstance(values, pa.FixedSizeListArray):
            values = values.values
        array: np.ndarray = values.to_numpy(zero_copy_only=True)
        return array.reshape(-1, *meta["shapes"][name])

    keys = np.stack([batch.column(name).to_numpy() for name in EpisodeId._fields], 1)
    told = set(batch.schema.names)
    if "serial" in told:
        serials, arrived = batch.column("serial").to_numpy(), meta["arrived"]
    elif first is not None:
        serials, arrived = np.arange(first, first + count), first + count
    else:
        serials, arrived = np.full(count, UNNUMBERED), 0
    merit = next((name for name in ("merit", "peers") if name in told), None)
    versions = np.stack(
        [batch.column("incarnation").to_numpy(), batch.column("learner_step").to_numpy()], 1
    )
    names = [name for name in meta["shapes"] if name != "rewards"]
    return Shard(
        path,
        data,
        crc,
        meta["task"],
        keys,
        serials,
        arrived,
        batch.column("rewards").offsets.to_numpy(),
        batch.column("terminated").to_numpy(zero_copy_only=False),
        versions,
        batch.column(merit).to_numpy() if merit else np.zeros(count),
        leaf("rewards"),
        {
            name.removeprefix("observations/"): leaf(name)
            for name in names
            if name.startswith("observations/") and name not in once
        },
        {name.removeprefix("observations/"): leaf(name) for name in once},
        {
            name.removeprefix("actions/"): leaf(name)
            for name in names
            if name.startswith("actions/")
        },
        batch,
    )
