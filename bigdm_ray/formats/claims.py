"""What a file claims, held against its size before anything is made: one limit for all readers.

A few bytes can claim any amount of memory: run lengths and dictionaries (Parquet), chunks that were
never written or hold one value (HDF5), gzip, shapes in a header or in JSON. Data that somebody
recorded do not shrink so: pictures of games by 10 to 100, and deflate, whatever the data, by 1,032
at most. Small files may hold what is constant, so a floor holds for them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from bigdm_ray.errors import UserError
from bigdm_ray.formats.footer import claimed_values

if TYPE_CHECKING:
    import pyarrow.parquet as pq

RATIO = 1000
"""Bytes in memory for one in the file, at most."""
FLOOR = 128 << 20
"""Bytes in memory that any file may claim."""
MAX_ELEMENTS = 1 << 22
"""Numbers of one observation or action, at most: all leaves of a space together."""
MAX_LEAVES = 1024
"""Leaves of a space, at most."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def check_claim(claimed: int, path: Path) -> None:
    """Raise UserError where the file claims more bytes than one of its size can hold."""
    size = path.stat().st_size
    if claimed > max(FLOOR, RATIO * size):
        raise UserError(
            f"{path} claims to hold {claimed / 2**20:,.0f} MiB of numbers in {size:,} bytes, where "
            f"{RATIO:,} times its size, or {FLOOR >> 20} MiB, is expected at most; where it is "
            "sound, write it anew with less compression; nothing was imported"
        )


def parquet_claim(path: Path, metadata: pq.FileMetaData) -> int:
    """Bytes that the numbers of a Parquet file take in memory, by its footer; text is left out.

    Raises ValueError for a broken footer.
    """
    schema = metadata.schema
    widths = [_WIDTHS.get(schema.column(k).physical_type, 0) for k in range(len(schema))]
    found = path.stat()
    return sum(
        width * count
        for counts in _values(path, found.st_size, found.st_mtime_ns)
        for width, count in zip(widths, counts, strict=True)
    )


@functools.lru_cache(maxsize=64)
def _values(path: Path, size: int, mtime_ns: int) -> list[list[int]]:
    """What the footer says, once for each state of a file."""
    return claimed_values(path)


def expect_size(elements: int, leaves: int) -> None:
    """Raise ValueError for more numbers or leaves than an observation or an action can have."""
    if elements > MAX_ELEMENTS:
        raise ValueError(f"{elements:,} numbers, where {MAX_ELEMENTS:,} are expected at most")
    if leaves > MAX_LEAVES:
        raise ValueError(f"{leaves:,} leaves, where {MAX_LEAVES:,} are expected at most")
