"""How many bytes an Arrow IPC file takes in memory, told before anything is decompressed.

Rows count besides buffers: nulls and equal runs take none, and numpy makes an offset of each row.
A compressed buffer begins with its uncompressed length, which Arrow allocates as it stands. Where
the buffers lie is told by the metadata of each batch, a FlatBuffers table; the footer tells where
the batches lie. Source: apache/arrow, format/File.fbs, Message.fbs.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b"ARROW1"
_DICTIONARIES, _BATCHES = 2, 3  # fields of Footer
_VERSION, _HEADER_TYPE, _HEADER = 0, 1, 2  # of Message
_V4 = 3  # a version; what is compressed says so in Message's metadata there (Arrow 0.17)
_V4_COMPRESSED = b"ARROW:experimental_compression"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # values of the former
_DATA = 1  # of DictionaryBatch
_LENGTH, _NODES, _BUFFERS, _COMPRESSION = 0, 1, 2, 3  # of RecordBatch
_CONTINUES = 0xFFFFFFFF


def claimed_bytes(path: Path) -> int:
    """Bytes that the file's buffers take in memory, 8 more for each row, and 1 for each entry of a
    column or of its lists.

    Raises ValueError where it is broken.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) < 24:
            raise ValueError("it is not a whole Arrow file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return sum(_batch(data, *block) for block in _blocks(data))
            except (struct.error, IndexError):
                raise ValueError("its metadata are broken") from None


def _blocks(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where each batch of a file begins, and where its body does."""
    end = len(data) - 10
    length, magic = struct.unpack("<I6s", data[end:])
    if magic != _MAGIC or data[:6] != _MAGIC or length > end:
        raise ValueError("it is not a whole Arrow file")
    footer = _Table(data, end - length)
    for field in (_DICTIONARIES, _BATCHES):
        for at in footer.items(field, 24):
            begin, metadata, _, _ = struct.unpack_from("<qiiq", data, at)
            if begin < 0 or metadata < 0 or begin + metadata > len(data):
                raise ValueError("its footer names a batch outside the file")
            yield begin, begin + metadata


def _batch(data: mmap.mmap, begin: int, body: int) -> int:
    """What one batch claims."""
    (first,) = struct.unpack_from("<I", data, begin)
    message = _Table(data, begin + (8 if first == _CONTINUES else 4))
    header = message.table(_HEADER)
    if message.byte(_HEADER_TYPE) == _DICTIONARY_BATCH and header is not None:
        header = header.table(_DATA)
    elif message.byte(_HEADER_TYPE) != _RECORD_BATCH:
        raise ValueError("its footer names what is no batch")
    if header is None:
        raise ValueError("its metadata are broken")
    compressed = header.table(_COMPRESSION) is not None or (
        message.byte(_VERSION) <= _V4 and data.find(_V4_COMPRESSED, begin, body) >= 0
    )
    counts = [8 * header.long(_LENGTH)]
    counts += [struct.unpack_from("<q", data, at)[0] for at in header.items(_NODES, 16)]
    if min(counts) < 0:
        raise ValueError("it claims less than no rows")
    total = sum(counts)
    for at in header.items(_BUFFERS, 16):
        offset, length = struct.unpack_from("<qq", data, at)
        if offset < 0 or length < 0 or body + offset + length > len(data):
            raise ValueError(f"a buffer of {length:,} bytes lies outside the file")
        if compressed and length >= 8:
            (told,) = struct.unpack_from("<q", data, body + offset)
            if told < -1:
                raise ValueError(f"a buffer claims {told} bytes")
            total += told if told >= 0 else length
        else:
            total += length
    return total


class _Table:
    """A FlatBuffers table, by the place that refers to it."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self._at = at + struct.unpack_from("<I", data, at)[0]
        self._fields = self._at - struct.unpack_from("<i", data, self._at)[0]
        if self._fields < 0:
            raise ValueError("its metadata are broken")
        (self._size,) = struct.unpack_from("<H", data, self._fields)

    def _place(self, field: int) -> int | None:
        """Where a field's value lies; None where it is left out."""
        at = 4 + 2 * field
        if at + 2 > self._size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._fields + at)
        return self._at + offset if offset else None

    def byte(self, field: int) -> int:
        """A field of one byte; 0 where it is left out."""
        place = self._place(field)
        return 0 if place is None else self._data[place]

    def long(self, field: int) -> int:
        """A field of eight bytes; 0 where it is left out."""
        place = self._place(field)
        return 0 if place is None else int(struct.unpack_from("<q", self._data, place)[0])

    def table(self, field: int) -> _Table | None:
        """A field that is a table."""
        place = self._place(field)
        return None if place is None else _Table(self._data, place)

    def items(self, field: int, size: int) -> Iterator[int]:
        """Where the structs of a vector lie, of so many bytes each."""
        place = self._place(field)
        if place is None:
            return
        begin = place + struct.unpack_from("<I", self._data, place)[0]
        (count,) = struct.unpack_from("<I", self._data, begin)
        if begin + 4 + count * size > len(self._data):
            raise ValueError("its metadata are broken")
        for number in range(count):
            yield begin + 4 + number * size
