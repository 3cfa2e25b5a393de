"""Episodes as rows of an Arrow table, as `parquet.py` writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from bigdm_ray.formats.behaviour import Behaviour
from bigdm_ray.formats.columns import (
    env_id_of,
    schema_metadata,
)
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.replay.episode import Episode

FOLLOWS = "return"
"""A column that says nothing that the rewards do not say."""


def episode_schema(dataset: Dataset) -> pa.Schema:
    """The columns of a file of episode rows, with what the file says of itself."""
    signature = dataset.signature
    fields = [
        (field_name(what, path), pa.large_list(pa.from_numpy_dtype(np.dtype(leaf.dtype))))
        for what, leaves in (
            ("observations", signature.observations),
            ("actions", signature.actions),
        )
        for path, leaf in leaves.items()
    ]
    fields += [
        ("rewards", pa.large_list(pa.float32())),
        ("terminated", pa.large_list(pa.bool_())),
        ("truncated", pa.large_list(pa.bool_())),
    ]
    fields += [
        (FOLLOWS, pa.float64()),
        ("length", pa.int32()),
        ("policy", pa.string()),
        ("mode", pa.string()),
    ]
    fields += [
        ("sigma", pa.float32()),
        ("eps", pa.float32()),
        ("stage", pa.int16()),
        ("seed", pa.int64()),
        ("env_id", pa.string()),
    ]
    return pa.schema(fields, schema_metadata(dataset))


def episode_table(batch: list[Episode], schema: pa.Schema, dataset: Dataset) -> pa.Table:
    """Episodes as one row each, by `episode_schema`."""
    ends = [end_flags(episode.length, episode.terminated) for episode in batch]
    done_by = [Behaviour.read(episode.source) for episode in batch]
    columns: dict[str, Any] = {
        "rewards": list_array([e.rewards for e in batch]),
        "terminated": list_array([terminated for terminated, _ in ends]),
        "truncated": list_array([truncated for _, truncated in ends]),
        FOLLOWS: [e.total_return for e in batch],
        "length": [e.length for e in batch],
        **{
            name: [getattr(one, name) for one in done_by]
            for name in ("policy", "mode", "sigma", "eps", "stage")
        },
        "seed": [e.seed for e in batch],
        "env_id": [env_id_of(dataset) or None] * len(batch),
    }
    columns |= {
        field_name("observations", p): list_array([e.observations[p] for e in batch])
        for p in dataset.signature.observations
    }
    columns |= {
        field_name("actions", p): list_array([e.actions[p] for e in batch])
        for p in dataset.signature.actions
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def end_flags(length: int, terminated: bool) -> tuple[np.ndarray, np.ndarray]:
    """`terminated` and `truncated` of each step `[T]` bool of an episode of this length."""
    flags = np.zeros((2, length), bool)
    flags[0 if terminated else 1, -1] = True
    return flags[0], flags[1]


def list_array(parts: list[np.ndarray]) -> pa.Array:
    """Arrays as the rows of a column of lists of numbers."""
    offsets = np.cumsum([0, *(part.size for part in parts)])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()),
        pa.array(np.concatenate([part.reshape(-1) for part in parts])),
    )
