"""Format `steps`: Parquet with one row a step, in the columns that RLlib reads and writes (ray/rllib/core/columns.py).

    eps_id  t  obs  actions  rewards  new_obs  terminateds  truncateds

Rows of an episode follow each other, with the same `eps_id` and `t` counted from 0. It ends where a flag is set or `eps_id`
changes; without either flag it broke off and counts as truncated. `new_obs` of its last row is the last observation; where the
column is missing, that is not known, and what `d4rl` does is done here too. Dicts are structs, tensors are lists or tensor
columns, each value as the environment gives it (pictures channels last). Other spellings are understood: action, reward,
terminated, truncated, next_obs, episode_id.

`done` or `dones` in place of `terminateds` means either end: where `truncateds` is set it is that.
Where there is no such column, an end after exactly as many steps as the task's time limit allows
counts as truncated, every other as terminated. Beside `terminateds` it ends episodes too: those
that did not terminate were cut.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bigdm_ray.envs.task import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.formats.base import (
    MAX_EPISODE_BYTES,
    Advance,
    Format,
    Reader,
    Said,
    field_name,
    step_limit,
)
from bigdm_ray.formats.checks import followed, refused, truths
from bigdm_ray.formats.columns import (
    META,
    carried,
    expect_types,
    flat,
    is_plain,
    numbers,
    one_line,
    open_parquet,
    parquet_files,
    reading,
    rows_at_once,
    said_versions,
    told_alike,
)
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.spaces import (
    flatten_leaf,
    flatten_texts,
    layout,
    leaf_spaces,
    space_from_json,
    space_to_json,
    unflatten_leaf,
)
from bigdm_ray.formats.unread import unread
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId

ROW_BYTES = 16 << 20
SPELLINGS = {
    "obs": ("obs", "observation", "observations"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "new_obs": ("new_obs", "next_obs", "next_observation", "next_observations"),
    "terminateds": ("terminateds", "terminated", "terminals", "terminal"),
    "dones": ("dones", "done"),
    "truncateds": ("truncateds", "truncated", "timeouts", "timeout"),
    "eps_id": ("eps_id", "episode_id", "episode", "unroll_id"),
    "t": ("t",),
}
ROW_BY_ROW = "output_write_episodes=False, output_compress_columns=[]"
"""What RLlib's `offline_data` must be told to write rows of plain numbers."""
FRAGMENTS = "unroll_id"
"""An id of rows that were played in one go: episodes end in the midst of them."""


@dataclass
class Rows:
    """Consecutive rows as arrays: leaves of observations and actions by path, each `[n, ...]`."""

    observations: dict[str, np.ndarray]
    actions: dict[str, np.ndarray]
    rewards: np.ndarray

    def take(self, a: int, b: int) -> Rows:
        """The rows a to b, as views."""
        return Rows(
            {p: v[a:b] for p, v in self.observations.items()},
            {p: v[a:b] for p, v in self.actions.items()},
            self.rewards[a:b],
        )

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        """Parts one after another."""
        if len(parts) == 1:
            return parts[0]
        observations = {
            p: np.concatenate([part.observations[p] for part in parts])
            for p in parts[0].observations
        }
        actions = {p: np.concatenate([part.actions[p] for part in parts]) for p in parts[0].actions}
        return Rows(observations, actions, np.concatenate([part.rewards for part in parts]))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.rewards.nbytes + sum(
            v.nbytes for v in (*self.observations.values(), *self.actions.values())
        )


class StepRows(Reader):
    """Files of step rows, read one after another; an episode may go on in the next file."""

    def __init__(self, source: str, files: list[Path]) -> None:
        self._files = files
        opened = [open_parquet(path) for path in files]
        self._columns = _spelled(opened[0].schema_arrow.names)
        for path, file in zip(files, opened, strict=True):
            if _spelled(file.schema_arrow.names) != self._columns:
                raise UserError(f"{path} has other columns than {files[0]}; nothing was imported")
            expect_types(
                path, file.schema_arrow, {self._columns.get("eps_id", ""): "text or a whole number"}
            )
        for name in ("obs", "actions", "rewards", "terminateds"):
            if name not in self._columns and not (
                name == "terminateds" and "dones" in self._columns
            ):
                raise UserError(
                    f"{files[0]}, field {name!r}: there is no such column (columns are {', '.join(opened[0].schema_arrow.names)}); nothing was imported"
                )
        known = {*self._columns.values(), *(names[0] for names in SPELLINGS.values()), FRAGMENTS}
        self.beside = unread(opened[0].schema_arrow.names, known, str(files[0]))
        meta, task, signature = told_alike(files, opened)
        self._spaces = _spaces(meta, source)
        self.said = Said(
            source,
            meta.get("env_id", ""),
            None,
            signature,
            said_versions(meta),
            None,
            sum(f.metadata.num_rows for f in opened),
            task,
        )

    def files(self) -> list[Path]:
        """See Reader."""
        return self._files

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        seen, done = self._spaces or layout(task, signature)
        self._leaves = {"obs": leaf_spaces(seen), "actions": leaf_spaces(done)}
        self._number, self._skip = 0, skip
        self._limit = step_limit(task)
        self._last_id: Any = None
        self._open_id: Any = None
        self._seen_ids: set[Any] = set()
        self._over = False
        self._t: int | None = None
        self._counted = -1
        open_parts: list[Rows] = []
        last: dict[str, np.ndarray] | None = None
        for batch in self._batches():
            self._batch, self._open_id = batch, self._last_id if open_parts else None
            rows = self._rows(batch)
            ends, terminated, before = self._ends(
                batch, sum(len(part.rewards) for part in open_parts)
            )
            if before and open_parts:
                yield from self._episode(Rows.joined(open_parts), last, False)
                open_parts, self._open_id = [], None
            after = self._after(batch, rows, ends, last if open_parts else None)
            start = 0
            for k, end in enumerate(ends.tolist()):
                open_parts.append(rows.take(start, end))
                final = (
                    None
                    if after is None
                    else {path: values[end - 1 : end] for path, values in after.items()}
                )
                yield from self._episode(Rows.joined(open_parts), final, bool(terminated[k]))
                open_parts, start = [], end
            if start < len(batch):
                open_parts.append(rows.take(start, len(batch)))
                last = (
                    None if after is None else {path: values[-1:] for path, values in after.items()}
                )
            if sum(part.nbytes for part in open_parts) > MAX_EPISODE_BYTES:
                raise refused(
                    self.place(self._number),
                    "eps_id",
                    f"the episode has no end within {MAX_EPISODE_BYTES >> 30} GiB",
                )
        if open_parts:
            yield from self._episode(Rows.joined(open_parts), last, False)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        names = list(self._columns.values())
        for path in self._files:
            self._over = False  # ids of a file are its own
            file = open_parquet(path)
            with reading(functools.partial(self._within, path)):
                each = rows_at_once(
                    file, names, list(range(file.metadata.num_row_groups)), ROW_BYTES, 1 << 16
                )
                yield from (
                    batch
                    for batch in file.iter_batches(batch_size=each, columns=names)
                    if len(batch)
                )

    def _within(self, path: Path) -> str:
        return f"{path}, episode {self._number} or a later one"

    def _here(self, row: int = 0) -> str:
        """Where a row of the batch at hand is: what is no flag and no id ends no episode."""
        over = np.zeros(len(self._batch), bool)
        for what in ("terminateds", "dones", "truncateds"):
            if what in self._columns and is_plain(self._batch.column(self._columns[what]).type):
                over |= np.asarray(
                    self._batch.column(self._columns[what]).to_numpy(zero_copy_only=False) == 1,
                    bool,
                )
        before = 0
        if "eps_id" in self._columns:
            ids = self._batch.column(self._columns["eps_id"])
            if not pa.types.is_null(ids.type):
                over[:-1] |= (
                    pc.not_equal(ids[1:], ids[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
                )
            before = int(self._open_id is not None and ids[0].as_py() not in (None, self._open_id))
        return self.place(self._number + before + int(np.count_nonzero(over[:row])))

    def _rows(self, batch: pa.RecordBatch) -> Rows:
        observations = {
            path: self._leaf(batch.column(self._columns["obs"]), "obs", name, space)
            for path, name, space in self._leaves["obs"]
        }
        actions = {
            path: self._leaf(batch.column(self._columns["actions"]), "actions", name, space)
            for path, name, space in self._leaves["actions"]
        }
        return Rows(
            observations,
            actions,
            numbers(batch.column(self._columns["rewards"]), "rewards", self._here),
        )

    def _after(
        self,
        batch: pa.RecordBatch,
        rows: Rows,
        ends: np.ndarray,
        last: dict[str, np.ndarray] | None,
    ) -> dict[str, np.ndarray] | None:
        """What was seen after each row, held against what the next row saw; `last` is what was seen after the row before the batch."""
        if "new_obs" not in self._columns:
            return None
        after = {
            path: self._leaf(batch.column(self._columns["new_obs"]), "new_obs", name, space)
            for path, name, space in self._leaves["obs"]
        }
        for path, values in after.items():
            field = field_name(self._columns["new_obs"], path)
            followed(values, rows.observations[path], ends - 1, field, self._here)
            if last is not None:
                first = np.concatenate([last[path], rows.observations[path][:1]])
                followed(
                    np.concatenate([last[path], last[path]]),
                    first,
                    np.array([], np.int64),
                    field,
                    self._here,
                )
        return after

    def _leaf(self, column: pa.Array, what: str, name: str, space: Any) -> np.ndarray:
        from gymnasium import spaces

        field = field_name(self._columns[what], name)
        column = _storage(column)
        for part in name.split("/") if name else []:
            if not pa.types.is_struct(column.type) or column.type.get_field_index(part) < 0:
                raise refused(self._here(), field, f"there is no such field in {column.type}")
            column = _storage(pc.struct_field(column, part))
        if isinstance(space, spaces.Text):
            if not pa.types.is_string(column.type) or column.null_count:
                raise refused(
                    self._here(_first_null(column)),
                    field,
                    f"text is expected, not {column.type if column.null_count == 0 else 'null'}",
                )
            return flatten_texts(space, column.to_pylist(), field, self._here)
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            why = f"RLlib packs columns as pickles unless told {ROW_BY_ROW}, and pickles are never opened here"
            raise refused(self._here(), field, f"numbers are expected, not {column.type} ({why})")
        if isinstance(space, spaces.Discrete) and not pa.types.is_nested(column.type):
            return flatten_leaf(space, numbers(column, field, self._here))
        values, offsets = flat(column, field, self._here)
        width = math.prod(space.shape or ())
        found = np.diff(offsets)
        if (wrong := np.flatnonzero(found != width)).size:
            raise refused(
                self._here(int(wrong[0])),
                field,
                f"a row holds {int(found[wrong[0]]):,} numbers where {width:,} are expected",
            )
        return flatten_leaf(space, values.reshape(-1, *(space.shape or ())))

    def _flags(self, batch: pa.RecordBatch, what: str) -> np.ndarray:
        name = self._columns[what]
        return truths(numbers(batch.column(name), name, self._here), name, self._here)

    def _ends(self, batch: pa.RecordBatch, begun: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Rows after which an episode ends (as counts of rows), which of them terminated, and whether one ended before the first row.

        Of the episode that goes on in this batch `begun` steps lie before it.
        """
        truncated = (
            self._flags(batch, "truncateds")
            if "truncateds" in self._columns
            else np.zeros(len(batch), bool)
        )
        either = self._flags(batch, "dones") if "dones" in self._columns else truncated
        terminated = (
            self._flags(batch, "terminateds")
            if "terminateds" in self._columns
            else either & ~truncated
        )
        over = terminated | truncated | either
        before = False
        if "eps_id" in self._columns:
            before = self._changes(batch.column(self._columns["eps_id"]), over)
        ends = np.flatnonzero(over) + 1
        if "t" in self._columns:
            self._check_t(numbers(batch.column("t"), "t", self._here), ends, before)
        terminated = terminated[ends - 1]
        if not {"terminateds", "truncateds"} & self._columns.keys():
            lengths = np.diff(ends, prepend=0 if before else -begun)
            terminated = terminated & (lengths != self._limit)
        return ends, terminated, before

    def _changes(self, ids: pa.Array, over: np.ndarray) -> bool:
        """Mark in `over` the rows before a change of id; whether the first row has another id than the row before it."""
        if ids.null_count:
            raise refused(self._here(_first_null(ids)), "eps_id", "a value is missing (null)")
        change = np.zeros(len(ids), bool)
        if len(ids) > 1:
            change[:-1] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        first = ids[0].as_py()
        before = self._last_id is not None and first != self._last_id
        if self._columns["eps_id"] != FRAGMENTS:
            goes_on = over[:-1] & ~change[:-1]
            if (self._over and first == self._last_id) or goes_on.any():
                at = 0 if self._over and first == self._last_id else int(np.argmax(goes_on)) + 1
                place = self._here(at - 1) if at else self.place(max(self._number - 1, 0))
                raise refused(
                    place,
                    "eps_id",
                    f"{ids[at].as_py()!r} goes on after a row whose flags end the episode",
                )
        self._over = bool(over[-1])
        over |= change
        starts = np.flatnonzero(change) + 1
        begun = [0, *starts.tolist()] if self._last_id is None or before else starts.tolist()
        for at, one in zip(begun, ids.take(pa.array(begun, pa.int64())).to_pylist(), strict=True):
            if one in self._seen_ids:
                raise refused(
                    self._here(at),
                    "eps_id",
                    f"{one!r} comes back after another episode; the rows of an episode must follow each other",
                )
            self._seen_ids.add(one)
        self._last_id = ids[len(ids) - 1].as_py()
        return before

    def _check_t(self, t: np.ndarray, ends: np.ndarray, before: bool) -> None:
        """Within an episode `t` goes up by one a row."""
        fresh = np.zeros(len(t) + 1, bool)
        fresh[ends] = True
        gaps = (np.diff(t) != 1) & ~fresh[1:-1]
        goes_on = self._t is not None and not before and t[0] != self._t
        if goes_on or gaps.any():
            at = 0 if goes_on else int(np.argmax(gaps)) + 1
            raise refused(
                self._here(at),
                "t",
                f"{t[at]} does not follow the row before it; rows are missing or out of order",
            )
        begun = np.flatnonzero(
            fresh[:-1] | (np.arange(len(t)) == 0 if self._t is None or before else False)
        )
        counted_on = np.concatenate([[self._counted], t[:-1]])[begun] + 1  # through the whole file
        if (late := begun[(t[begun] != 0) & (t[begun] != 1) & (t[begun] != counted_on)]).size:
            raise refused(
                self._here(int(late[0])),
                "t",
                f"the episode begins with {t[late[0]]}; its first rows are missing",
            )
        self._t, self._counted = None if fresh[-1] else int(t[-1]) + 1, int(t[-1])

    def _episode(
        self, rows: Rows, final: dict[str, np.ndarray] | None, terminated: bool
    ) -> Iterator[Episode]:
        steps = len(rows.rewards)
        if final is None and not terminated:
            steps -= 1
            if not steps:
                return
            rows, final = (
                rows.take(0, steps),
                {path: values[steps : steps + 1] for path, values in rows.observations.items()},
            )
        elif final is None:
            final = {path: values[-1:] for path, values in rows.observations.items()}
        number = self._number
        self._number += 1
        if number >= self._skip:
            seen = {
                path: np.concatenate([values, final[path]])
                for path, values in rows.observations.items()
            }
            yield Episode(
                seen, rows.actions, rows.rewards, terminated, EpisodeId(0, FOREIGN, number), ""
            )


def _first_null(column: pa.Array) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))


def _spelled(names: list[str]) -> dict[str, str]:
    """Which column of a file is which of ours."""
    found = {
        ours: next((theirs for theirs in spellings if theirs in names), "")
        for ours, spellings in SPELLINGS.items()
    }
    return {mine: theirs for mine, theirs in found.items() if theirs}


def _storage(column: pa.Array) -> pa.Array:
    """The plain values of a tensor column, whose shape the space tells: of Arrow's type, or of Ray Data's."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type) and {field.name for field in column.type} == {
        "data",
        "shape",
    }:
        column = pc.struct_field(column, "data")
    return column


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
    about = "Parquet files of one step a row, as RLlib has them (columns obs, actions, rewards, terminateds)"
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
                f"{files[0]} holds RLlib's packed episodes, which are never opened here; have RLlib write with {ROW_BY_ROW}"
            )
        rewards = _spelled(schema.names).get("rewards")
        return rewards is not None and not pa.types.is_nested(schema.field(rewards).type)

    def open(self, source: str) -> Reader:
        """See Format."""
        return StepRows(source, parquet_files(source))

    def write(self, dataset: Dataset, folder: Path, advance: Advance) -> None:
        """One file, NAME.parquet, with whole episodes in each row group."""
        spaces = layout(dataset.task, dataset.signature)
        meta = carried(dataset)
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
