"""Rows of steps as episodes: what every layout with one row a step has in common, wherever its rows
come from.

Rows of an episode follow each other, with the same id and a number counted from 0. It ends where a
flag is set or the id changes; without either flag it broke off and counts as truncated. What was
seen after its last row is the last observation; where that column is missing, it is not known, and
what `d4rl` does is done here too. Dicts are structs, tensors are lists or tensor columns, each
value as the environment gives it (pictures channels last). Names of columns: `spellings.py`.

`done` in place of terminations means either end: where a truncation is set it is that.
Where there is no such column, an end after exactly as many steps as the task's time limit allows
counts as truncated, every other as terminated. Beside terminations it ends episodes too: those
that did not terminate were cut.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.formats.base import MAX_EPISODE_BYTES, Reader
from bigdm_ray.formats.checks import as_truth_values, check_next_observations, refusal
from bigdm_ray.formats.columns import (
    column_numbers,
    flatten_lists,
    is_plain,
    name_read_errors,
    struct_path,
)
from bigdm_ray.formats.looks import ActionColumns, guess_signature, seen_leaf
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.formats.spaces import flatten_leaf, flatten_texts, layout, leaf_spaces
from bigdm_ray.formats.spellings import SPELLINGS, ColumnMatch, join_columns, missing_columns
from bigdm_ray.formats.tasks import step_limit
from bigdm_ray.formats.unread import unread_names
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId

FRAGMENTS = "unroll_id"
"""An id of rows that were played in one go: episodes end in the midst of them."""


@dataclass
class StepBatch:
    """Consecutive rows as arrays: leaves of observations and actions by path, each `[n, ...]`."""

    observations: dict[str, np.ndarray]
    actions: dict[str, np.ndarray]
    rewards: np.ndarray

    def take(self, a: int, b: int) -> StepBatch:
        """The rows a to b, as views."""
        return StepBatch(
            {p: v[a:b] for p, v in self.observations.items()},
            {p: v[a:b] for p, v in self.actions.items()},
            self.rewards[a:b],
        )

    @staticmethod
    def concatenate(parts: list[StepBatch]) -> StepBatch:
        """Parts one after another."""
        if len(parts) == 1:
            return parts[0]
        observations = {
            p: np.concatenate([part.observations[p] for part in parts])
            for p in parts[0].observations
        }
        actions = {p: np.concatenate([part.actions[p] for part in parts]) for p in parts[0].actions}
        return StepBatch(observations, actions, np.concatenate([part.rewards for part in parts]))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.rewards.nbytes + sum(
            v.nbytes for v in (*self.observations.values(), *self.actions.values())
        )


class StepRows(Reader):
    """Rows that are read one after another; an episode may go on in the next file."""

    needed: tuple[str, ...] = ("observations", "actions", "rewards", "terminated")
    """Columns without which a layout is refused; flags of either end stand for `terminated`."""
    packed = "pickles are never opened here"
    """Why a column of bytes or text is refused where numbers are expected."""

    def __init__(
        self, files: list[Path], found: ColumnMatch, names: list[str], known: tuple[str, ...] = ()
    ) -> None:
        """`names` are all columns of the files, `known` those that are left out without a note."""
        self._files, self._found = files, found
        self._spaces: tuple[Any, Any] | None = None
        for what in self.needed:
            if what not in found and not (what == "terminated" and "dones" in found):
                raise refusal(str(files[0]), SPELLINGS[what][0], missing_columns(found, what))
        own = {*found.names, *(one[0] for one in SPELLINGS.values()), FRAGMENTS, *known}
        self.beside = unread_names(names, own, str(files[0]))
        self.taken = {what: found.name(what) for what in (*found.plain, *found.cut)}

    @abstractmethod
    def _rows_of(self, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a file with these columns, in batches of a few MiB."""

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for path in self._files:
            self._over = False  # ids of a file are its own
            with name_read_errors(functools.partial(self._within, path)):
                for batch in self._rows_of(path, self._found.names):
                    if len(batch):
                        yield join_columns(batch, self._found)

    def looks(self) -> Signature | None:
        """See Reader."""
        self._number, self._over = 0, False
        self._open_id: Any = None
        seen: dict[str, Leaf] = {}
        acted: dict[str, ActionColumns] = {}
        for batch in self._batches():
            self._batch = batch
            if not seen:
                column = batch.column(self._found.name("observations")).slice(0, 1)
                seen = {path: seen_leaf(values) for path, values in self._arrays(column, "")}
            for path, values in self._arrays(batch.column(self._found.name("actions")), ""):
                acted.setdefault(path, ActionColumns()).add(values)
        return guess_signature(seen, acted.items()) if seen else None

    def _arrays(self, column: pa.Array, path: str) -> Iterator[tuple[str, np.ndarray]]:
        """The leaves of a column as it lies in the file, each `[rows, ...]`."""
        shape = column.type.shape if isinstance(column.type, pa.FixedShapeTensorType) else None
        column = _storage(column)
        if pa.types.is_struct(column.type):
            for field in column.type:
                inner = f"{path}/{field.name}" if path else field.name
                yield from self._arrays(pc.struct_field(column, [field.name]), inner)
        elif pa.types.is_nested(column.type):
            values, offsets = flatten_lists(column, path, self._here)
            widths = np.diff(offsets)
            if (widths != widths[0]).any():
                raise refusal(self._here(), path, "rows hold different counts of numbers")
            yield path, values.reshape(len(column), *(shape or _shape(column) or (widths[0],)))
        else:
            yield path, column_numbers(column, path, self._here)

    def files(self) -> list[Path]:
        """See Reader."""
        return self._files

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        seen, done = self._spaces or layout(task, signature)
        self._leaves = {"observations": leaf_spaces(seen), "actions": leaf_spaces(done)}
        self._number, self._skip = 0, skip
        self._limit = step_limit(task)
        self._last_id: Any = None
        self._open_id = None
        self._seen_ids: set[Any] = set()
        self._over = False
        self._t: int | None = None
        self._counted = -1
        open_parts: list[StepBatch] = []
        last: dict[str, np.ndarray] | None = None
        for batch in self._batches():
            self._batch, self._open_id = batch, self._last_id if open_parts else None
            rows = self._rows(batch)
            ends, terminated, before = self._ends(
                batch, sum(len(part.rewards) for part in open_parts)
            )
            if before and open_parts:
                yield from self._episode(StepBatch.concatenate(open_parts), last, False)
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
                yield from self._episode(
                    StepBatch.concatenate(open_parts), final, bool(terminated[k])
                )
                open_parts, start = [], end
            if start < len(batch):
                open_parts.append(rows.take(start, len(batch)))
                last = (
                    None if after is None else {path: values[-1:] for path, values in after.items()}
                )
            if sum(part.nbytes for part in open_parts) > MAX_EPISODE_BYTES:
                raise refusal(
                    self.place(self._number),
                    self._found.name("episode"),
                    f"the episode has no end within {MAX_EPISODE_BYTES >> 30} GiB",
                )
        if open_parts:
            yield from self._episode(StepBatch.concatenate(open_parts), last, False)

    def _within(self, path: Path) -> str:
        return f"{path}, episode {self._number} or a later one"

    def _here(self, row: int = 0) -> str:
        """Where a row of the batch at hand is: what is no flag and no id ends no episode."""
        over = np.zeros(len(self._batch), bool)
        for what in ("terminated", "dones", "truncated"):
            if what in self._found and is_plain(self._batch.column(self._found.name(what)).type):
                over |= np.asarray(
                    self._batch.column(self._found.name(what)).to_numpy(zero_copy_only=False) == 1,
                    bool,
                )
        before = 0
        if "episode" in self._found:
            ids = self._batch.column(self._found.name("episode"))
            if not pa.types.is_null(ids.type):
                over[:-1] |= (
                    pc.not_equal(ids[1:], ids[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
                )
            before = int(self._open_id is not None and ids[0].as_py() not in (None, self._open_id))
        return self.place(self._number + before + int(np.count_nonzero(over[:row])))

    def _rows(self, batch: pa.RecordBatch) -> StepBatch:
        observations = {
            path: self._leaf(
                batch.column(self._found.name("observations")), "observations", name, space
            )
            for path, name, space in self._leaves["observations"]
        }
        actions = {
            path: self._leaf(batch.column(self._found.name("actions")), "actions", name, space)
            for path, name, space in self._leaves["actions"]
        }
        return StepBatch(
            observations,
            actions,
            self._rewards(batch),
        )

    def _rewards(self, batch: pa.RecordBatch) -> np.ndarray:
        """One a row: zeros where a layout may lack them."""
        if "rewards" not in self._found:
            return np.zeros(len(batch), np.float32)
        name = self._found.name("rewards")
        column = batch.column(name)
        values = (
            flatten_lists(column, name, self._here)[0] if pa.types.is_nested(column.type) else None
        )
        return column_numbers(column, name, self._here) if values is None else values

    def _after(
        self,
        batch: pa.RecordBatch,
        rows: StepBatch,
        ends: np.ndarray,
        last: dict[str, np.ndarray] | None,
    ) -> dict[str, np.ndarray] | None:
        """What was seen after each row, held against what the next row saw; `last` is what was seen
        after the row before the batch."""
        if "next_observations" not in self._found:
            return None
        after = {
            path: self._leaf(
                batch.column(self._found.name("next_observations")),
                "next_observations",
                name,
                space,
            )
            for path, name, space in self._leaves["observations"]
        }
        for path, values in after.items():
            field = field_name(self._found.name("next_observations"), path)
            check_next_observations(values, rows.observations[path], ends - 1, field, self._here)
            if last is not None:
                first = np.concatenate([last[path], rows.observations[path][:1]])
                check_next_observations(
                    np.concatenate([last[path], last[path]]),
                    first,
                    np.array([], np.int64),
                    field,
                    self._here,
                )
        return after

    def _leaf(self, column: pa.Array, what: str, name: str, space: Any) -> np.ndarray:
        from gymnasium import spaces

        field = field_name(self._found.name(what), name)
        column = _storage(column)
        if name:
            kind, parts = column.type, struct_path(column.type, name)
            if parts is None:
                raise refusal(self._here(), field, f"there is no such field in {kind}")
            for part in parts:
                column = _storage(pc.struct_field(column, [part]))
        if isinstance(space, spaces.Text):
            if not pa.types.is_string(column.type) or column.null_count:
                raise refusal(
                    self._here(_first_null(column)),
                    field,
                    f"text is expected, not {column.type if column.null_count == 0 else 'null'}",
                )
            return flatten_texts(space, column.to_pylist(), field, self._here)
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            why = f"numbers are expected, not {column.type} ({self.packed})"
            raise refusal(self._here(), field, why)
        if math.prod(space.shape or ()) == 1 and not pa.types.is_nested(column.type):
            values = column_numbers(column, field, self._here)
            return flatten_leaf(space, values.reshape(-1, *(space.shape or ())))
        values, offsets = flatten_lists(column, field, self._here)
        width = math.prod(space.shape or ())
        found = np.diff(offsets)
        if (wrong := np.flatnonzero(found != width)).size:
            raise refusal(
                self._here(int(wrong[0])),
                field,
                f"a row holds {int(found[wrong[0]]):,} numbers where {width:,} are expected",
            )
        return flatten_leaf(space, values.reshape(-1, *(space.shape or ())))

    def _flags(self, batch: pa.RecordBatch, what: str) -> np.ndarray:
        name = self._found.name(what)
        return as_truth_values(
            column_numbers(batch.column(name), name, self._here), name, self._here
        )

    def _ends(self, batch: pa.RecordBatch, begun: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Rows after which an episode ends (as counts of rows), which of them terminated, and
        whether one ended before the first row.

        Of the episode that goes on in this batch `begun` steps lie before it.
        """
        truncated = (
            self._flags(batch, "truncated")
            if "truncated" in self._found
            else np.zeros(len(batch), bool)
        )
        either = self._flags(batch, "dones") if "dones" in self._found else truncated
        terminated = (
            self._flags(batch, "terminated") if "terminated" in self._found else either & ~truncated
        )
        over = terminated | truncated | either
        before = False
        if "episode" in self._found:
            before = self._changes(batch.column(self._found.name("episode")), over)
        ends = np.flatnonzero(over) + 1
        if "t" in self._found:
            self._check_t(
                column_numbers(
                    batch.column(self._found.name("t")), self._found.name("t"), self._here
                ),
                ends,
                before,
            )
        terminated = terminated[ends - 1]
        if not {"terminated", "truncated"} & self._found.plain.keys():
            lengths = np.diff(ends, prepend=0 if before else -begun)
            terminated = terminated & (lengths != self._limit)
        return ends, terminated, before

    def _changes(self, ids: pa.Array, over: np.ndarray) -> bool:
        """Mark in `over` the rows before a change of id; whether the first row has another id than
        the row before it."""
        if ids.null_count:
            raise refusal(
                self._here(_first_null(ids)),
                self._found.name("episode"),
                "a value is missing (null)",
            )
        change = np.zeros(len(ids), bool)
        if len(ids) > 1:
            change[:-1] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        first = ids[0].as_py()
        before = self._last_id is not None and first != self._last_id
        if self._found.name("episode") != FRAGMENTS:
            goes_on = over[:-1] & ~change[:-1]
            if (self._over and first == self._last_id) or goes_on.any():
                at = 0 if self._over and first == self._last_id else int(np.argmax(goes_on)) + 1
                place = self._here(at - 1) if at else self.place(max(self._number - 1, 0))
                raise refusal(
                    place,
                    self._found.name("episode"),
                    f"{ids[at].as_py()!r} goes on after a row whose flags end the episode",
                )
        self._over = bool(over[-1])
        over |= change
        starts = np.flatnonzero(change) + 1
        begun = [0, *starts.tolist()] if self._last_id is None or before else starts.tolist()
        for at, one in zip(begun, ids.take(pa.array(begun, pa.int64())).to_pylist(), strict=True):
            if one in self._seen_ids:
                raise refusal(
                    self._here(at),
                    self._found.name("episode"),
                    f"{one!r} comes back after another episode; the rows of an episode must follow"
                    " each other",
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
            raise refusal(
                self._here(at),
                "t",
                f"{t[at]} does not follow the row before it; rows are missing or out of order",
            )
        begun = np.flatnonzero(
            fresh[:-1] | (np.arange(len(t)) == 0 if self._t is None or before else False)
        )
        counted_on = np.concatenate([[self._counted], t[:-1]])[begun] + 1  # through the whole file
        if (late := begun[(t[begun] != 0) & (t[begun] != 1) & (t[begun] != counted_on)]).size:
            raise refusal(
                self._here(int(late[0])),
                "t",
                f"the episode begins with {t[late[0]]}; its first rows are missing",
            )
        self._t, self._counted = None if fresh[-1] else int(t[-1]) + 1, int(t[-1])

    def _episode(
        self, rows: StepBatch, final: dict[str, np.ndarray] | None, terminated: bool
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


def _storage(column: pa.Array) -> pa.Array:
    """The plain values of a tensor column, whose shape the space tells: of Arrow's type, or of Ray
    Data's."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type) and {field.name for field in column.type} == {
        "data",
        "shape",
    }:
        column = pc.struct_field(column, "data")
    return column


def _shape(column: pa.Array) -> tuple[int, ...] | None:
    """What lists in lists say of the shape of the first row; None for a plain list."""
    value, shape = column[0].as_py(), list[int]()
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape) if len(shape) > 1 else None
