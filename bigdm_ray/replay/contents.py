"""What a shard's Arrow batch must be before a byte of it is used.

Whoever wrote a file may have written anything, and checksums that match may be forged. Arrow trusts
offsets, types and counts; numpy's views and pyarrow's conversions trust Arrow: what is wrong there
ends in a signal or in another column's bytes. So Arrow's own validation comes first (buffers as
long as their lengths say, offsets that ascend, text that is UTF-8), then the types that the
metadata names, and lists whose offsets fit together. It reads no step, so its cost is that of the
episodes alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from bigdm_ray.errors import quote_value
from bigdm_ray.jsons import read_json

MALFORMED = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    SyntaxError,
    RecursionError,
)
"""What pyarrow and numpy raise for bytes that are not what they say."""
SCALARS: dict[str, pa.DataType] = {
    "round": pa.int64(),
    "group": pa.int64(),
    "number": pa.int64(),
    "terminated": pa.bool_(),
    "incarnation": pa.int64(),
    "learner_step": pa.int64(),
    "source": pa.string(),
    "seed": pa.int64(),
    "merit": pa.float64(),
    "peers": pa.float64(),
    "serial": pa.int64(),
    "command": pa.string(),
}
"""Columns of one value an episode."""
LATER = {"merit", "peers", "serial"}
"""Those that a shard need not have; `peers` is what shards of version 1 call `merit`."""


def check_batch(batch: pa.RecordBatch, meta: dict[str, Any]) -> None:
    """Raise one of MALFORMED unless `batch` is what `meta` and this module say. Reads no steps."""
    batch.validate(full=True)
    if not batch.num_rows:
        raise ValueError("it has no episode")
    if not isinstance(meta["task"], str):
        raise TypeError(f"its task is {quote_value(meta['task'])}, where a text is expected")
    types = {n: t for n, t in SCALARS.items() if n not in LATER or n in batch.schema.names}
    once = _held(meta)
    types |= {name: _leaf_type(meta, name, name in once) for name in meta["shapes"]}
    for name, kind in types.items():
        column = batch.column(name)
        if column.type != kind:
            raise TypeError(f"its column {name!r} is {column.type}, not {kind}")
        if column.null_count or column.offset:
            raise ValueError(f"its column {name!r} has missing values")
    ends = batch.column("rewards").offsets.to_numpy()
    if ends[0] != 0 or (np.diff(ends) < 1).any():
        raise ValueError("an episode has no steps")
    if "serial" in batch.schema.names:
        _check_serials(batch.column("serial").to_numpy(), meta["arrived"])
    for name in once:
        _check_items(name, batch.column(name), batch.num_rows)
    for name in meta["shapes"].keys() - once:
        seen = np.arange(len(ends)) if name.startswith("observations/") else 0
        _check_list(name, batch.column(name), ends + seen)


def _held(meta: dict[str, Any]) -> set[str]:
    """The observations that are stored once an episode."""
    told = meta.get("held", [])
    if not isinstance(told, list) or not all(
        isinstance(name, str) and name.startswith("observations/") and name in meta["shapes"]
        for name in told
    ):
        raise ValueError(f"what holds for whole episodes is {quote_value(told)}")
    return set(told)


def _check_serials(serials: np.ndarray, arrived: Any) -> None:
    if type(arrived) is not int or not -1 <= serials.min() <= serials.max() < arrived < 2**62:
        raise ValueError(f"its serials do not end before {quote_value(arrived)}")


def _leaf_type(meta: dict[str, Any], name: str, once: bool) -> pa.DataType:
    """The type of a step leaf: `large_list<fixed_size_list<dtype>[n]>`, scalars without `[n]`.

    Of what holds for whole episodes: the same without the `large_list`.
    """
    dtype, shape = np.dtype(meta["dtypes"][name]), meta["shapes"][name]
    if dtype.kind not in ("f" if name == "rewards" else "iuf"):
        raise TypeError(f"its column {name!r} is of {dtype}, where numbers are expected")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise TypeError(f"its column {name!r} has the shape {quote_value(shape)}")
    items = pa.from_numpy_dtype(dtype)
    items = pa.list_(items, int(np.prod(shape, dtype=object))) if shape else items
    return items if once else pa.large_list(items)


def _check_list(name: str, column: pa.LargeListArray, offsets: np.ndarray) -> None:
    """Its episodes begin and end where they must, and no step is missing."""
    if not np.array_equal(column.offsets.to_numpy(), offsets):
        raise ValueError("its columns are of unequal length")
    _check_items(name, column.values, offsets[-1])


def _check_items(name: str, items: pa.Array, count: int) -> None:
    """There is one for each step, or for each episode, and none is missing."""
    numbers = items.values if isinstance(items, pa.FixedSizeListArray) else items
    if len(items) != count:
        raise ValueError("its columns are of unequal length")
    if items.null_count or numbers.null_count or items.offset or numbers.offset:
        raise ValueError(f"its column {name!r} has missing values")


def check_commands(texts: pa.StringArray) -> None:
    """Raise ValueError unless each is the JSON of numbers by name. Equal ones are read once."""
    for text in texts.unique().to_pylist():
        for value in read_json(text).values():
            if type(value) not in (int, float):
                raise ValueError(
                    f"a command holds {quote_value(value)}, where a number is expected"
                )
