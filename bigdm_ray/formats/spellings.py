"""One table of what the columns of episodes are called, for every reader, and of columns that are
numbered.

The first name of a list that a file has is taken. Numbered columns (`obs_0`, `obs_1`, ...; also
`obs.0`, `obs0`) are the elements of one vector, in their order, where none is missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SPELLINGS: dict[str, tuple[str, ...]] = {
    "observations": ("obs", "observation", "observations", "observation.state", "state", "states"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward", "next.reward"),
    "next_observations": (
        "new_obs", "next_obs", "next_observation", "next_observations", "next_state", "next_states",
    ),
    "terminated": (
        "terminateds", "terminated", "terminals", "terminal", "terminations", "next.terminated",
    ),
    "dones": ("dones", "done", "next.done"),
    "truncated": (
        "truncateds", "truncated", "timeouts", "timeout", "truncations", "next.truncated",
    ),
    "episode": ("eps_id", "episode_id", "episode", "episode_index", "unroll_id"),
    "t": ("t", "frame_index"),
}  # fmt: skip
VECTORS = ("observations", "actions", "next_observations")
"""What may be cut into numbered columns."""
_NUMBERED = re.compile(r"(.*?)[_.]?(\d+)")


@dataclass(frozen=True)
class ColumnMatch:
    """Which columns of a file are which: `plain` by one name, `cut` by the names of their
    elements."""

    plain: dict[str, str]
    cut: dict[str, tuple[str, ...]]

    def __contains__(self, what: str) -> bool:
        return what in self.plain or what in self.cut

    @property
    def names(self) -> list[str]:
        """Every column of the file that is read."""
        return [*self.plain.values(), *(name for names in self.cut.values() for name in names)]

    def name(self, what: str) -> str:
        """What messages call a column: its own name, or the first to the last of them."""
        if what in self.cut:
            return " to ".join(dict.fromkeys((self.cut[what][0], self.cut[what][-1])))
        return self.plain.get(what, what)

    def __str__(self) -> str:
        return ", ".join(f"{what} from {self.name(what)!r}" for what in (*self.plain, *self.cut))


def match_columns(
    names: Iterable[str], of: Collection[str] = SPELLINGS, own: Mapping[str, str] | None = None
) -> ColumnMatch:
    """Which of a file's columns are which of `of`; `own` are names that go before the table's."""
    there = list(names)
    plain: dict[str, str] = {}
    cut: dict[str, tuple[str, ...]] = {}
    for what in of:
        wanted = [*([own[what]] if own and what in own else []), *SPELLINGS[what]]
        if theirs := next((name for name in wanted if name in there), ""):
            plain[what] = theirs
        elif what in VECTORS and (parts := _numbered(there, wanted)):
            cut[what] = parts
    return ColumnMatch(plain, cut)


def _numbered(names: list[str], wanted: list[str]) -> tuple[str, ...]:
    for stem in wanted:
        parts = {
            int(found[2]): name
            for name in names
            if (found := _NUMBERED.fullmatch(name)) and found[1] == stem
        }
        first = min(parts, default=-1)
        if first in (0, 1) and sorted(parts) == list(range(first, first + len(parts))):
            return tuple(parts[number] for number in sorted(parts))
    return ()


def join_columns(batch: pa.RecordBatch, found: ColumnMatch) -> pa.RecordBatch:
    """A batch whose numbered columns are one each, by what it is.

    A cell that is missing stays so.
    """
    arrays = {name: batch.column(name) for name in found.plain.values()}
    for what, names in found.cut.items():
        columns = [batch.column(name) for name in names]
        kinds = {pa.types.is_null(column.type) or str(column.type) for column in columns}
        if len(kinds) > 1:
            columns = [column.cast(pa.float64()) for column in columns]
        if len(columns) == 1 and pa.types.is_integer(columns[0].type):
            arrays[found.name(what)] = columns[0]  # one choice a step
            continue
        order = np.arange(len(batch) * len(names)).reshape(len(names), -1).T.reshape(-1)
        flat = pa.concat_arrays(columns).take(pa.array(order))
        arrays[found.name(what)] = pa.FixedSizeListArray.from_arrays(flat, len(names))
    return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))


def missing_columns(found: ColumnMatch, what: str) -> str:
    """Why a file is refused that lacks a column, with what was taken for what."""
    names = ", ".join(SPELLINGS[what])
    return f"there is no such column (one of {names} is expected; taken were {found or 'none'})"
