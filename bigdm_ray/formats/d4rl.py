"""Format `d4rl`: an HDF5 file with observations, actions, rewards, terminals and, mostly, timeouts,
one row a step.

The file does not say which environment it is of: the task is the first word of its name
(`hopper_medium-v2.hdf5`) or `--task`. An episode ends where `terminals` or `timeouts` is set;
without `timeouts`, also after the task's time limit (1,000 steps where it tells none). What was
seen after an episode's last step is taken from `next_observations`. Where that is missing it is not
known, and D4RL's own `qlearning_dataset` drops the transition; here the last step of an episode
that ran into a limit is dropped, its observation being the last one seen, while a terminated
episode keeps its last step and repeats its last observation, for the reward of the end must not be
lost. Rows after the last end are kept as a truncated episode. Source: Fu et al. 2020,
arXiv:2004.07219; Farama-Foundation/D4RL, d4rl/__init__.py.

d3rlpy's first layout is the same file with `episode_terminals`, which alone says where episodes
end, in place of `timeouts`; `terminals` on such a row says that it terminated. `discrete_action`
and `version` lie beside them. Its own replay buffers flag a terminal on the last two rows, of which
the first is none. Source: takuseno/d3rlpy 1.1.1, d3rlpy/dataset.pyx (`_to_episodes`, `dump`),
d3rlpy/online/buffers.py (`append`).
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import tasks
from bigdm_ray.errors import UserError
from bigdm_ray.formats.base import Format, Reader, SourceMetadata
from bigdm_ray.formats.checks import as_truth_values, check_next_observations, refusal
from bigdm_ray.formats.hdf5 import ERRORS, Hdf5Fields, open_hdf5
from bigdm_ray.formats.looks import ActionColumns, guess_signature, move_channels_first, seen_leaf
from bigdm_ray.formats.spellings import match_columns, missing_columns
from bigdm_ray.formats.tasks import step_limit
from bigdm_ray.formats.unread import unread_names
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId

SUFFIXES = (".hdf5", ".h5")
BLOCK = 1 << 16
"""Steps that are read at once."""
BLOCK_BYTES = 16 << 20
TIME_LIMIT = 1000
TABLE = {
    "observations": "observations",
    "actions": "actions",
    "rewards": "rewards",
    "terminals": "terminated",
    "dones": "dones",
    "timeouts": "truncated",
    "next_observations": "next_observations",
}
"""D4RL's names, and what the table of spellings calls them."""
NEEDED = ("observations", "actions", "rewards", "terminals")
CUTS = ("timeouts", "episode_terminals")
"""Columns that tell where episodes end, of which a file has one at most: D4RL's and d3rlpy's."""
D3RLPY = ("discrete_action", "version")


class Span(NamedTuple):
    """The rows of an episode and how it ended."""

    start: int
    end: int
    terminated: bool


class FlatArrays(Reader):
    """One file with an array for each field, of all episodes, one row a step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as (found, names, told):
            self._names = set(found)
            self.taken = {
                TABLE[name]: self._found.name(TABLE[name]) for name in found if name in TABLE
            }
            for name in NEEDED:
                if name not in found and not (name == "terminals" and "dones" in found):
                    raise refusal(str(path), name, missing_columns(self._found, TABLE[name]))
            self.beside = unread_names(
                names, (*self._found.names, *TABLE, *CUTS, *D3RLPY), str(path)
            )
            if set(CUTS) <= found.keys():
                why = "it tells where episodes end, and so does 'timeouts'; leave one of them out"
                raise refusal(str(path), "episode_terminals", why)
            self._picks = told
            self._cut = next((name for name in CUTS if name in found), None)
            for name, values in found.items():
                if values.dtype.kind not in "biuf" or not values.ndim:
                    why = f"an array of numbers is expected, not {values.dtype}"
                    raise refusal(f"{path}, episode 0", self._theirs(name), why)
                if name in ("rewards", "terminals", "dones", *CUTS) and values.size != len(values):
                    shape = list(values.shape)
                    why = f"one number a row is expected, not an array of shape {shape}"
                    raise refusal(f"{path}, episode 0", self._theirs(name), why)
            rows = {name: len(values) for name, values in found.items()}
            self._rows = max(rows.values())
            self._row_bytes = sum(
                values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
                for values in found.values()
            )
            if len(set(rows.values())) > 1:
                name = min(rows, key=lambda one: rows[one])
                over = _padded(found["terminals" if "terminals" in found else "dones"], rows[name])
                if self._cut is not None:
                    cut = _padded(found[self._cut], rows[name])
                    over = cut if self._cut == "episode_terminals" else over | cut
                ends = int(np.count_nonzero(over))
                why = (
                    f"the file holds {rows[name]:,} rows of it where it holds {self._rows:,} of"
                    " others"
                )
                raise refusal(f"{path}, episode {ends}", self._theirs(name), why)
        word = re.split(r"[-_.]", path.name.lower())[0]
        likely = word if word in tasks() else ""
        self.said = SourceMetadata(str(path), likely, steps=self._rows, likely=likely)

    @abstractmethod
    def _opened(
        self,
    ) -> contextlib.AbstractContextManager[tuple[dict[str, Any], list[str], bool | None]]:
        """The arrays by D4RL's names, all names of the file, and whether it tells that actions are
        choices."""

    def _spelled(self, names: list[str]) -> dict[str, str]:
        """The names that a file has for D4RL's."""
        self._found = match_columns(
            names, TABLE.values(), {what: name for name, what in TABLE.items()}
        )
        own = {
            name: self._found.plain[what]
            for name, what in TABLE.items()
            if what in self._found.plain
        }
        if "terminals" in own:
            own.pop("dones", None)
        return own | (
            {"episode_terminals": "episode_terminals"} if "episode_terminals" in names else {}
        )

    def _theirs(self, name: str) -> str:
        return self._found.name(TABLE[name]) if name in TABLE else name

    def files(self) -> list[Path]:
        """See Reader."""
        return [self._path]

    def looks(self) -> Signature | None:
        """See Reader."""
        acted = ActionColumns(self._picks)
        with self._opened() as (file, _, _):
            seen = seen_leaf(np.asarray(file["observations"][:1]))
            for at in range(0, self._rows, BLOCK):
                acted.add(np.asarray(file["actions"][at : at + BLOCK]))
        return guess_signature({"": seen}, [("", acted)])

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        if set(signature.observations) != {""} or set(signature.actions) != {""}:
            raise UserError(
                f"{self._path} is a dataset of another task: it holds one array of observations,"
                f" but {task} has dicts; nothing was imported"
            )
        picks = signature.actions[""].kind == "discrete"
        if self._picks not in (None, picks):
            theirs, mine = ("discrete", "real") if self._picks else ("real", "discrete")
            raise UserError(
                f"{self._path} is a dataset of another task: its field 'discrete_action' says "
                f"that actions are {theirs}, but those of {task} are {mine}; nothing was imported"
            )
        self._leaf = signature.observations[""]
        with self._opened() as (file, _, _):
            group: list[Span] = []
            number, size = skip, 0
            for span in self._spans(file, step_limit(task) or TIME_LIMIT, skip):
                group.append(span)
                size += span.end - span.start
                if size >= BLOCK or size * self._row_bytes >= BLOCK_BYTES:
                    yield from self._read(file, group, number)
                    number, group, size = number + len(group), [], 0
            if group:
                yield from self._read(file, group, number)

    def _spans(self, file: Any, limit: int, skip: int) -> Iterator[Span]:
        """Episodes in order, without the first `skip`; those that would have no step left are
        none."""
        begin, kept = 0, 0
        known = "next_observations" in self._names

        def whole(start: int, end: int, terminated: bool) -> Iterator[Span]:
            nonlocal kept
            if known or terminated or end - start > 1:
                kept += 1
                if kept > skip:
                    yield Span(start, end, terminated)

        doubled = False
        either = "terminals" not in self._names
        for at in range(0, self._rows, BLOCK):
            terminals = self._flags(file, "dones" if either else "terminals", at)
            stops = terminals if self._cut is None else self._flags(file, self._cut, at)
            if self._cut == "timeouts":
                stops = terminals | stops
            elif self._cut is not None:
                doubled = self._early(terminals, stops, at, doubled)
            for stop in np.flatnonzero(stops).tolist():
                end = at + stop + 1
                while self._cut is None and end - begin > limit:
                    yield from whole(begin, begin + limit, False)
                    begin += limit
                cut = either and self._cut is None and end - begin == limit
                cut |= either and self._cut is not None and bool(self._stopped(file, at + stop))
                yield from whole(begin, end, bool(terminals[stop]) and not cut)
                begin = end
        if doubled:
            why = "it is set on the last row, where 'episode_terminals' ends no episode"
            raise refusal(f"{self._path}, row {self._rows - 1:,}", "terminals", why)
        while begin < self._rows:
            end = min(self._rows, begin + limit) if self._cut is None else self._rows
            yield from whole(begin, end, False)
            begin = end

    def _stopped(self, file: Any, row: int) -> Any:
        return self._cut == "timeouts" and np.asarray(file["timeouts"][row]).reshape(-1)[0]

    def _early(self, terminals: np.ndarray, stops: np.ndarray, at: int, before: bool) -> bool:
        """Whether the last row is a terminal that ends nothing; `before`: of the row before.

        Only the row before a terminated end may be one. Raises UserError for any other.
        """
        early = np.concatenate([[before], terminals & ~stops])
        lone = early[:-1] & ~(terminals & stops)
        if lone.any():
            row = at + int(np.argmax(lone)) - 1
            why = "it is set, but 'episode_terminals' ends no episode there or on the next row"
            raise refusal(f"{self._path}, row {row:,}", "terminals", why)
        return bool(early[-1])

    def _flags(self, file: Any, name: str, at: int) -> np.ndarray:
        try:
            values = np.asarray(file[name][at : at + BLOCK]).reshape(-1)
        except ERRORS as error:
            raise refusal(
                f"{self._path}, in rows {at:,} to {at + BLOCK:,}",
                self._theirs(name),
                f"it cannot be read ({' '.join(str(error).split())})",
            ) from None
        return as_truth_values(
            values, self._theirs(name), lambda k: f"{self._path}, row {at + k:,}"
        )

    def _read(self, file: Any, spans: list[Span], number: int) -> Iterator[Episode]:
        first, last = spans[0].start, spans[-1].end
        fields = {
            name: self._slice(file, name, first, last, number)
            for name in ("observations", "actions", "rewards")
        }
        fields["observations"] = move_channels_first(fields["observations"], self._leaf)
        after = (
            self._slice(file, "next_observations", first, last, number)
            if "next_observations" in self._names
            else None
        )
        if after is not None:
            after = move_channels_first(after, self._leaf)
            lasts = np.array([span.end - first - 1 for span in spans])
            check_next_observations(
                after,
                fields["observations"],
                lasts,
                "next_observations",
                lambda row: self.place(number + int(np.searchsorted(lasts, row))),
            )
        for k, (a, b, terminated) in enumerate(spans):
            a, b = a - first, b - first
            seen = fields["observations"][a:b]
            if after is not None:
                seen = np.concatenate([seen, after[b - 1 : b]])
            elif terminated:
                seen = np.concatenate([seen, seen[-1:]])
            else:
                b -= 1
            yield Episode(
                {"": seen},
                {"": fields["actions"][a:b]},
                fields["rewards"][a:b],
                terminated,
                EpisodeId(0, FOREIGN, number + k),
                "",
            )

    def _slice(self, file: Any, name: str, first: int, last: int, number: int) -> np.ndarray:
        try:
            return np.asarray(file[name][first:last])
        except ERRORS as error:
            raise refusal(
                f"{self.place(number)} or a later one",
                self._theirs(name),
                f"it cannot be read ({' '.join(str(error).split())})",
            ) from None


def _padded(flags: Any, rows: int) -> np.ndarray:
    out = np.zeros(rows, bool)
    out[: len(flags)] = flags[:rows]
    return out


class D4rlFile(FlatArrays):
    """An HDF5 file."""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[dict[str, Any], list[str], bool | None]]:
        with open_hdf5(self._path) as file:
            fields, picks = Hdf5Fields(self._path), None
            found = {
                ours: fields.high(file.id, theirs.encode(), str(self._path))
                for ours, theirs in self._spelled(list(file)).items()
            }
            for values in found.values():
                fields.claim(int(values.size) * values.dtype.itemsize)
            if "discrete_action" in file:
                told = fields.high(file.id, b"discrete_action", str(self._path))
                if told.shape == () and told.dtype.kind in "biu":
                    picks = bool(told[()])
            yield found, list(file), picks


class D4rl(Format):
    """See the module."""

    name = "d4rl"
    about = "D4RL files (.hdf5 with observations, actions, rewards, terminals)"

    def recognises(self, source: str) -> bool:
        """See Format."""
        return Path(source).suffix in SUFFIXES and Path(source).is_file()

    def open(self, source: str) -> Reader:
        """See Format."""
        return D4rlFile(Path(source))


FORMAT = D4rl()
