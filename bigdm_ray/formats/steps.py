"""Format `steps`: Parquet with one row a step, in the columns that RLlib reads and writes
(ray/rllib/core/columns.py).

    eps_id  t  obs  actions  rewards  new_obs  terminateds  truncateds

How rows become episodes is told in `rows.py`, which other spellings are understood in
`spellings.py`; vectors may be cut into columns of one number each (`obs_0`, `obs_1`, ...,
`action_0`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import (
    Advance,
    Format,
    Reader,
    SourceMetadata,
)
from bigdm_ray.formats.columns import (
    META,
    common_metadata,
    expect_types,
    open_parquet,
    parquet_files,
    rows_at_once,
    said_versions,
    schema_metadata,
)
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.rows import StepRows
from bigdm_ray.formats.spaces import (
    layout,
    space_from_json,
    space_to_json,
    unflatten_leaf,
)
from bigdm_ray.formats.spellings import ColumnMatch, match_columns
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import Episode

ROW_BYTES = 16 << 20
ROW_BY_ROW = "output_write_episodes=False, output_compress_columns=[]"
"""What RLlib's `offline_data` must be told to write rows of plain numbers."""


class ParquetSteps(StepRows):
    """Parquet files of step rows."""

    packed = (
        f"RLlib packs columns as pickles unless told {ROW_BY_ROW}, and pickles are never opened"
        " here"
    )

    def __init__(
        self,
        source: str,
        files: list[Path],
        found: ColumnMatch | None = None,
        known: tuple[str, ...] = (),
    ) -> None:
        names = open_parquet(files[0]).schema_arrow.names
        super().__init__(files, found or match_columns(names), names, known)
        ids, rows = {self._found.plain.get("episode", ""): "text or a whole number"}, 0
        for path in files:  # one is open at a time: a recording may have thousands
            file = open_parquet(path)
            if match_columns(file.schema_arrow.names) != match_columns(names):
                raise UserError(f"{path} has other columns than {files[0]}; nothing was imported")
            if absent := sorted({*self._read()} - {*file.schema_arrow.names}):
                raise UserError(f"{path} has no column {absent[0]!r}; nothing was imported")
            expect_types(path, file.schema_arrow, ids)
            rows += file.metadata.num_rows
        meta, task, signature = common_metadata(files, (open_parquet(path) for path in files))
        self._spaces = _spaces(meta, source)
        self.said = SourceMetadata(
            source,
            meta.get("env_id", ""),
            None,
            signature,
            said_versions(meta),
            None,
            rows,
            task,
        )

    def _read(self) -> list[str]:
        """The columns that each file must have."""
        return self._found.names

    def _rows_of(self, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
        file = open_parquet(path)
        groups = list(range(file.metadata.num_row_groups))
        each = rows_at_once(file, names, groups, ROW_BYTES, 1 << 16)
        yield from file.iter_batches(batch_size=each, columns=names)


def _spaces(meta: dict[str, str], source: str) -> tuple[Any, Any] | None:
    """The spaces that a file which was written here carries."""
    if META not in meta:
        return None
    try:
        told = read_json(meta[META])["spaces"]
        seen, done = told["observations"], told["actions"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{source} carries broken spaces ({one_line(error)}); nothing was imported"
        ) from None
    return space_from_json(seen, source), space_from_json(done, source)


# --- writing


class Steps(Format):
    """See the module."""

    name = "steps"
    about = (
        "Parquet files of one step a row, as RLlib has them (columns obs, actions, rewards,"
        " terminateds)"
    )
    writes = True

    def recognises(self, source: str) -> bool:
        """See Format."""
        files = parquet_files(source)
        if not files:
            return False
        schema = open_parquet(files[0]).schema_arrow
        if schema.names == ["item"] or (
            {"item", "eps_id"} <= set(schema.names)
            and pa.types.is_binary(schema.field("item").type)
        ):
            raise UserError(
                f"{files[0]} holds RLlib's packed episodes, which are never opened here; have RLlib"
                f" write with {ROW_BY_ROW}"
            )
        rewards = match_columns(schema.names).plain.get("rewards")
        return rewards is not None and not pa.types.is_nested(schema.field(rewards).type)

    def open(self, source: str) -> Reader:
        """See Format."""
        return ParquetSteps(source, parquet_files(source))

    def write(self, dataset: Dataset, folder: Path, advance: Advance) -> None:
        """One file, NAME.parquet, with whole episodes in each row group."""
        spaces = layout(dataset.task, dataset.signature)
        meta = schema_metadata(dataset)
        told = json.loads(meta[META]) | {
            "spaces": {
                name: space_to_json(space)
                for name, space in zip(("observations", "actions"), spaces, strict=True)
            }
        }
        meta |= {META: json.dumps(told)}
        writer: pq.ParquetWriter | None = None
        try:
            tables: list[pa.Table] = []
            for number, episode in enumerate(dataset.stream()):
                tables.append(_table(number, episode, spaces))
                if sum(table.nbytes for table in tables) >= ROW_BYTES:
                    writer = _written(writer, tables, folder / f"{dataset.name}.parquet", meta)
                    tables = []
                advance(episode.length)
            if tables:
                writer = _written(writer, tables, folder / f"{dataset.name}.parquet", meta)
        finally:
            if writer is not None:
                writer.close()


def _written(
    writer: pq.ParquetWriter | None, tables: list[pa.Table], path: Path, meta: dict[str, str]
) -> pq.ParquetWriter:
    if writer is None:
        writer = pq.ParquetWriter(
            path,
            tables[0].schema.with_metadata(meta),
            compression="zstd",
            use_dictionary=["eps_id"],
        )
    writer.write_table(pa.concat_tables(tables).combine_chunks())
    return writer


def _table(number: int, episode: Episode, spaces: tuple[Any, Any]) -> pa.Table:
    steps = episode.length
    flags = np.zeros((2, steps), bool)
    flags[0 if episode.terminated else 1, -1] = True
    return pa.table(
        {
            "eps_id": pa.array([str(number)] * steps, pa.string()),
            "t": pa.array(np.arange(steps, dtype=np.int64)),
            "obs": _tree(
                spaces[0], {path: values[:-1] for path, values in episode.observations.items()}
            ),
            "actions": _tree(spaces[1], episode.actions),
            "rewards": pa.array(episode.rewards),
            "new_obs": _tree(
                spaces[0], {path: values[1:] for path, values in episode.observations.items()}
            ),
            "terminateds": pa.array(flags[0]),
            "truncateds": pa.array(flags[1]),
        }
    )


def _tree(space: Any, arrays: dict[str, np.ndarray], path: str = "") -> pa.Array:
    """Values of a space as a column: structs of lists, tensors and scalars."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        named = [
            (str(name), _tree(child, arrays, f"{path}/{name}" if path else str(name)))
            for name, child in parts
        ]
        return pa.StructArray.from_arrays(
            [column for _, column in named], [name for name, _ in named]
        )
    values = unflatten_leaf(space, arrays[path])
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


FORMAT = Steps()
