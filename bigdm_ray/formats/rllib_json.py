"""Format `rllib-json`: RLlib's older output, a sample batch a line, as plain lists of numbers.

    {"type": "SampleBatch", "eps_id": [...], "t": [...], "obs": [[...]],
     "actions": [...], "rewards": [...], "dones": [...]}

A batch of several agents is read where all of it is one policy's. How rows become episodes is told
in `rows.py`. Columns that RLlib has packed are pickles, which are never opened here. Source:
ray-project/ray, rllib/offline/json_writer.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import Format, Reader, SourceMetadata, require_inside
from bigdm_ray.formats.checks import refusal
from bigdm_ray.formats.rows import StepRows
from bigdm_ray.formats.spellings import match_columns

SUFFIXES = (".json", ".jsonl")
MOST = 256 << 20
"""Bytes of a line, at most; RLlib begins a new file at a quarter of that."""
KNOWN = ("type", "count", "agent_index", "infos")
_BATCH = re.compile(rb'"type"\s*:\s*"(?:SampleBatch|MultiAgentBatch)"')
_PACKED = (
    "RLlib has packed it as a pickle, which is never opened here; have it write with "
    "output_compress_columns=[]"
)


class JsonRows(StepRows):
    """Files of sample batches, one after another."""

    packed = _PACKED

    def __init__(self, source: str, files: list[Path]) -> None:
        first = next((batch for path in files for batch in _lines(path)), None)
        if first is None:
            raise UserError(f"{source} holds no episodes; nothing was imported")
        super().__init__(files, match_columns(first), list(first), KNOWN)
        self.said = SourceMetadata(source)

    def _rows_of(self, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(_lines(path)):
            place = f"{path}, batch {number}"
            for name in names:
                if name not in batch:
                    raise refusal(place, name, "there is no such column")
            arrays = [_array(batch[name], name, place) for name in names]
            yield pa.RecordBatch.from_arrays(arrays, names)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The batches of a file by column. Raises UserError."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST + 1):
            place = f"{path}, line {number + 1}"
            number += 1
            if len(line) > MOST:
                raise UserError(f"{place} is longer than {MOST >> 20} MiB; nothing was imported")
            if not line.strip():
                continue
            try:
                batch = json.loads(line)
                if batch["type"] == "MultiAgentBatch":
                    policies = batch["policy_batches"]
                    if len(policies) != 1:
                        raise UserError(
                            f"{place} holds batches of {len(policies)} policies, but episodes of "
                            "one are expected; nothing was imported"
                        )
                    (batch,) = policies.values()
                batch.keys()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{place} is no sample batch of RLlib ({one_line(error)}); nothing was imported"
                ) from None
            yield batch


def _array(value: Any, name: str, place: str) -> pa.Array:
    """A column of JSON: lists of numbers, or a dict of such."""
    if isinstance(value, dict) and value and not any(key.startswith("__") for key in value):
        parts = {key: _array(inner, f"{name}/{key}", place) for key, inner in value.items()}
        return pa.StructArray.from_arrays(list(parts.values()), list(parts))
    if not isinstance(value, list):
        raise refusal(place, name, f"lists of numbers are expected ({_PACKED})")
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths, which are told of where they are read
        return pa.array(value)
    if array.dtype.kind not in "biuf" or array.ndim != 2 or not array.size:
        return pa.array(value)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file() and path.suffix in SUFFIXES:
        return [path] if _is_batch(path) else []
    if not path.is_dir():
        return []
    found = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file())
    return (
        [require_inside(one, path) for one in found] if found and all(map(_is_batch, found)) else []
    )


def _is_batch(path: Path) -> bool:
    with path.open("rb") as file:
        return _BATCH.search(file.read(4096)) is not None


class RllibJson(Format):
    """See the module."""

    name = "rllib-json"
    about = "RLlib's JSON (a sample batch a line)"

    def recognises(self, source: str) -> bool:
        """See Format."""
        return bool(_files(source))

    def open(self, source: str) -> Reader:
        """See Format."""
        return JsonRows(source, _files(source))


FORMAT = RllibJson()
