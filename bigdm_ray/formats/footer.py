"""How many values each column of a Parquet file claims, read from its footer without pyarrow.

pyarrow tells them too, but dies of SIGABRT where a column's statistics are broken: its C++ raises
what Python's side does not expect. The footer is a struct of Thrift's compact protocol; all is
passed over but `row_groups` (4), their `columns` (1), of these `meta_data` (3), and of these
`num_values` (5). Source: apache/parquet-format, parquet.thrift; apache/thrift,
doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

_MAGIC = b"PAR1"
_BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 3, 7, 8, 9, 10, 12
_FLAGS, _NUMBERS = (1, 2), (4, 5, 6)
_DEEPEST = 32


def claimed_values(path: Path) -> list[list[int]]:
    """The values that each column of each row group claims.

    Raises ValueError where it is broken.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - 8:
            raise ValueError("it does not end in a footer")
        file.seek(size - 8 - length)
        data = file.read(length)
    groups: list[list[int]] = []
    try:
        _Compact(data).groups(groups)
    except IndexError:
        raise ValueError("its footer breaks off") from None
    return groups


class _Compact:
    """Thrift's compact protocol, from the beginning of some bytes on."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def groups(self, out: list[list[int]]) -> None:
        """Pass over the whole footer and note what its columns claim."""

        def group() -> None:
            out.append([])
            self._struct({1: lambda kind: self._each(kind, column)})

        def column() -> None:
            self._struct({3: meta})

        def meta(kind: int) -> None:
            self._expect(kind, _STRUCT)
            self._struct({5: number})

        def number(kind: int) -> None:
            if kind not in _NUMBERS:
                raise ValueError("its footer tells no number of values")
            if (value := self._whole()) < 0:
                raise ValueError(f"its footer tells {value} values of a column")
            out[-1].append(value)

        self._struct({4: lambda kind: self._each(kind, group)})

    def _expect(self, kind: int, expected: int) -> None:
        if kind != expected:
            raise ValueError("its footer has values of a wrong type")

    def _struct(self, known: dict[int, Callable[[int], None]], depth: int = 0) -> None:
        for field, kind in self._fields():
            if field in known:
                known[field](kind)
            else:
                self._skip(kind, depth + 1)

    def _fields(self) -> Iterator[tuple[int, int]]:
        field = 0
        while head := self._byte():
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else self._whole()
            yield field, kind

    def _each(self, kind: int, do: Callable[[], None]) -> None:
        self._expect(kind, _LIST)
        count, inner = self._list()
        self._expect(inner, _STRUCT)
        for _ in range(count):
            do()

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        count = head >> 4
        return (self._varint() if count == 15 else count), head & 15

    def _skip(self, kind: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deep")
        if kind in _NUMBERS:
            self._varint()
        elif kind == _BINARY:
            self._move(self._varint())
        elif kind in (_LIST, _SET):
            count, inner = self._list()
            for _ in range(count):
                if inner in _FLAGS:
                    self._byte()
                else:
                    self._skip(inner, depth + 1)
        elif kind == _STRUCT:
            self._struct({}, depth)
        elif kind in (_BYTE, _DOUBLE):
            self._move(1 if kind == _BYTE else 8)
        elif kind not in _FLAGS:  # the format has no maps
            raise ValueError("its footer has values of an unknown type")

    def _move(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number of more than 64 bits")

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
