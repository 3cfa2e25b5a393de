"""Reading HDF5 that others have written: plain arrays of numbers that lie in the file itself, and
nothing else.

Links that lead elsewhere, virtual datasets and raw data in other files are refused, and so is every
type that is not a number (h5py would build Python objects of some). Small datasets are opened
through h5py's low-level calls, which cost a third of the high-level ones: files with a group an
episode hold many.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray import stopping
from bigdm_ray.errors import RunFailed, UserError, one_line
from bigdm_ray.formats.base import MAX_EPISODE_BYTES, import_optional
from bigdm_ray.formats.checks import refusal
from bigdm_ray.formats.claims import check_claim
from bigdm_ray.formats.varying import ReaderFailed, Varying

ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises for a file that is torn somewhere."""


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An open `h5py.File`.

    Raises UserError for a torn one, and for whatever h5py raises while it is read.
    """
    h5py = import_optional("h5py", "datasets")
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except ERRORS as error:
        raise UserError(
            f"{path} is not a whole HDF5 file ({one_line(error)}); nothing was imported"
        ) from None
    try:
        with file:
            yield file
    except ERRORS as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); nothing was imported"
        ) from None


class DeferredErrorFile:
    """A new file for h5py, whose errors wait for `check`: from the first on, writes stay in memory.

    HDF5 cannot close a file that it cannot write: on a full disk it dies of SIGSEGV. What it
    flushes after the first error is little, if the caller asks `check` after each episode.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._at = self._end = 0
        self._kept: list[tuple[int, bytes]] = []
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first OSError that a write met, or KeyboardInterrupt, if a signal has come."""
        if self._error is not None:
            raise self._error
        if stopping.is_stop_asked():
            raise KeyboardInterrupt

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a byte, counted from the beginning, from here, or from the end."""
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        """The byte at hand."""
        return self._at

    def write(self, data: Any) -> int:
        """Write all of these bytes, to the file or after an error to memory."""
        left = memoryview(data).cast("B")
        size, begin = len(left), self._at
        if self._error is None:
            try:
                self._file.seek(begin)
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                self._error = error
        if self._error is not None:
            self._kept.append((begin, bytes(data)))
        self._at = begin + size
        self._end = max(self._end, self._at)
        return size

    def read(self, size: int) -> bytes:
        """So many bytes from here on."""
        self.readinto(out := bytearray(size))
        return bytes(out)

    def readinto(self, buffer: Any) -> int:
        """Read what was written, with zeros where nothing was."""
        out = memoryview(buffer).cast("B")
        self._file.seek(self._at)
        found = self._file.readinto(out) or 0
        out[found:] = bytes(len(out) - found)
        for begin, data in self._kept:
            first, last = max(begin, self._at), min(begin + len(data), self._at + len(out))
            if first < last:
                out[first - self._at : last - self._at] = data[first - begin : last - begin]
        self._at += len(out)
        return len(out)

    def truncate(self, size: int) -> int:
        """Make the file this long."""
        self._end = size
        if self._error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self._error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Sync and close the file. Raises OSError where it, or a write before, failed."""
        try:
            self.check()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


@contextlib.contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[Any, DeferredErrorFile]]:
    """A new `h5py.File` to write, and what it writes to: ask its `check` often. Raises OSError.

    Signals are held: HDF5 takes what they raise in a write for a failed one, and cannot close then.
    """
    h5py = import_optional("h5py", "datasets")
    with stopping.hold_signals():
        written = DeferredErrorFile(path)
        try:
            with h5py.File(written, "w", track_order=True) as file:
                yield file, written
        finally:
            written.close()


class Hdf5Fields:
    """Datasets of groups that look alike (one an episode), read with what the first has told about
    their types."""

    def __init__(self, path: Path) -> None:
        self._path, self._claimed = path, 0
        h5py = import_optional("h5py", "datasets")
        self._h5py, self._open_dataset, self._open_group, self._hard_link = (
            h5py,
            h5py.h5d.open,
            h5py.h5g.open,
            h5py.h5l.TYPE_HARD,
        )
        self._virtual, self._all = h5py.h5d.VIRTUAL, h5py.h5s.ALL
        self._types: dict[bytes, tuple[Any, np.dtype[Any]]] = {}
        self._prefixes: dict[bytes, list[bytes]] = {}
        self._varying: Varying | None = None

    def open(self, group: Any, name: bytes, place: str) -> Any:
        """The low-level dataset `name` (`a/b/c`) of a low-level group.

        Raises UserError where it is none that may be read.
        """
        try:
            self._hard(group, name, place)
            found = self._open_dataset(group, name)
            made = found.get_create_plist()
            if made.get_layout() == self._virtual or made.get_external_count():
                raise refusal(place, name.decode(errors="replace"), "its data lie in another file")
        except ERRORS as error:
            raise refusal(
                place,
                name.decode(errors="replace"),
                f"it is missing or cannot be read ({one_line(error)})",
            ) from None
        return found

    def _hard(self, group: Any, name: bytes, place: str) -> None:
        if name not in self._prefixes:
            parts = name.split(b"/")
            self._prefixes[name] = [b"/".join(parts[: depth + 1]) for depth in range(len(parts))]
        links = group.links
        for prefix in self._prefixes[name]:
            if links.get_info(prefix).type != self._hard_link:
                raise refusal(
                    place, name.decode(errors="replace"), "it is a link that leads elsewhere"
                )

    def group(self, file: Any, name: bytes, place: str) -> Any:
        """A low-level group of a file. Raises UserError where it is missing or a link."""
        try:
            if file.links.get_info(name).type != self._hard_link:
                raise refusal(
                    place, name.decode(errors="replace"), "it is a link that leads elsewhere"
                )
            return self._open_group(file, name)
        except ERRORS as error:
            raise UserError(
                f"{place}: the group {name.decode()!r} is missing or cannot be read"
                f" ({one_line(error)}); nothing was imported"
            ) from None

    def claim(self, size: int) -> None:
        """Count bytes that are to be read; UserError where the file cannot hold all of them."""
        self._claimed += size
        check_claim(self._claimed, self._path)

    def names(self, group: Any, place: str) -> list[str]:
        """What lies in a low-level group. Raises UserError where it cannot be told."""
        try:
            return [name.decode(errors="replace") for name in group]
        except ERRORS as error:
            raise UserError(
                f"{place} cannot be read ({one_line(error)}); nothing was imported"
            ) from None

    def read(self, group: Any, name: bytes, place: str) -> np.ndarray:
        """A whole dataset of numbers."""
        found = self.open(group, name, place)
        try:
            shape, kind = found.shape, found.get_type()
            known = self._types.get(name)
            if known is None or not kind.equal(known[0]):
                known = self._types[name] = (kind, found.dtype)
            dtype = known[1]
            if dtype.kind not in "biuf":
                what = "objects" if dtype.kind == "O" else dtype
                raise refusal(
                    place, name.decode(errors="replace"), f"numbers are expected, not {what}"
                )
            if not shape or math.prod(shape) * dtype.itemsize > MAX_EPISODE_BYTES:
                limit = f"an array of at most {MAX_EPISODE_BYTES >> 30} GiB is expected"
                raise refusal(
                    place,
                    name.decode(errors="replace"),
                    f"it claims the shape {list(shape)}, but {limit}",
                )
            self.claim(math.prod(shape) * dtype.itemsize)
            values = np.empty(shape, dtype)
            if values.size:
                found.read(self._all, self._all, values, known[0])
            return values
        except ERRORS as error:
            raise refusal(
                place, name.decode(errors="replace"), f"it cannot be read ({one_line(error)})"
            ) from None

    def rank(self, group: Any, name: bytes, place: str) -> int:
        """How many axes a dataset has."""
        return int(self.open(group, name, place).rank)

    def attribute(self, group: Any, name: bytes) -> int | None:
        """A whole number that a group carries, or None."""
        h5a = self._h5py.h5a
        try:
            if not h5a.exists(group, name):
                return None
            found = h5a.open(group, name)
            if found.shape != ():
                return None
            value = np.empty((), np.int64)
            found.read(value)  # HDF5 converts numbers and raises for all else
            return int(value)
        except ERRORS:
            return None

    def high(self, group: Any, name: bytes, place: str) -> Any:
        """The same dataset as an `h5py.Dataset`, to be sliced."""
        return self._h5py.Dataset(self.open(group, name, place))

    def strings(self, group: Any, name: bytes, place: str) -> list[str]:
        """A dataset of strings; of nothing else that h5py would make objects of."""
        found = self.high(group, name, place)
        field = name.decode(errors="replace")
        if self._h5py.check_string_dtype(found.dtype) is None or found.ndim != 1:
            raise refusal(place, field, f"text is expected, not {found.dtype}")
        return [
            value.decode("utf-8", errors="replace") for value in self._entries(found, place, field)
        ]

    def blobs(self, group: Any, name: bytes, place: str) -> list[bytes]:
        """A dataset whose entries are bytes: `[N, bytes]` uint8, or lists of uint8 of any
        length."""
        found = self.high(group, name, place)
        field = name.decode(errors="replace")
        inner = self._h5py.check_vlen_dtype(found.dtype)
        if (found.dtype != np.uint8 and inner != np.uint8) or not found.ndim:
            raise refusal(place, field, f"encoded pictures are expected, not {found.dtype}")
        return [bytes(row) for row in self._entries(found, place, field)]

    def _entries(self, found: Any, place: str, field: str) -> Any:
        """The entries of a dataset; those of variable length as bytes, read apart."""
        self.claim(found.size * found.dtype.itemsize)
        try:
            if found.dtype.kind != "O":
                return found[()]
            if self._varying is None or not self._varying.is_running:
                self._varying = Varying(self._path)
            return self._varying.read(self._h5py.h5i.get_name(found.id), self.claim)
        except ReaderFailed as error:
            raise RunFailed(
                f"{place}, field {field!r}: the process that reads data of variable length failed"
                f" ({one_line(error)}); nothing was imported"
            ) from None
        except ERRORS as error:
            raise refusal(place, field, f"it cannot be read ({one_line(error)})") from None
