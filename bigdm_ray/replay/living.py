"""LivingEpisodes: the episodes that live under a rule, of which a few come and go at a time.

No call costs more than what comes and goes, however many live: columns grow by doubling, what the
rule evicts is cut off in front or marked, and what is marked is swept when it is half of all.
Columns that are not asked for are not made. A Table that was handed out stays as it was.

`IdIndex` finds what was added before by its id, so that it is not added twice.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Mapping

import numpy as np

from bigdm_ray.replay.episode import EpisodeId
from bigdm_ray.replay.table import COLUMNS, ArrivalOrder, Retention, Table

Arrays = dict[str, np.ndarray]


class LivingEpisodes:
    """See the module. Rows are the places of its arrays; positions are those of its table."""

    def __init__(
        self, retention: Retention, beside: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """`beside` are further columns, by name, in arrays without rows."""
        self.retention = retention
        self._arrays: Arrays = {name: Table()[name] for name in COLUMNS} | dict(beside or {})
        self._dead = np.zeros(0, bool)
        self._low = self._high = 0  # rows in use
        self._holes = 0  # dead ones among them
        self._steps = 0  # of all that live, under a limit on steps
        self._floor: ArrivalOrder | None = None
        self._worst: list[tuple[float, int]] | None = None  # a heap of worth and row
        self._edge = (0.0, 0)  # all living up to this are in it
        self._table: Table | None = None
        self._view: _View | None = None

    @staticmethod
    def of(table: Table, retention: Retention) -> LivingEpisodes:
        """Those of a table, which all live under the rule."""
        living = LivingEpisodes(retention)
        living._floor = table.floor
        living.learn(table)
        return living

    def __len__(self) -> int:
        return self._high - self._low - self._holes

    @property
    def table(self) -> Table:
        """What lives now."""
        if self._table is None or self._view is None:
            self._view = _View(self._arrays, self._low, self._high, self._dead, self._holes)
            self._table = Table.lazy(len(self), self._view.column, self._floor)
        return self._table

    @property
    def floor(self) -> ArrivalOrder | None:
        """See Table."""
        return self._floor

    def column(self, name: str) -> np.ndarray:
        """A column by rows: those `beside` may be written to."""
        return self._arrays[name]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows of positions of the table."""
        if not self._holes:
            return positions + self._low if self._low else positions
        assert self.table is not None and self._view is not None
        found: np.ndarray = self._view.rows[positions]
        return found

    def find(self, serials: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The rows of episodes `[m]`, `[m, 3]`: `[m]` int64, -1 where one does not live."""
        low, high = self._low, self._high
        if low == high:
            return np.full(len(ids), -1)
        known = self._arrays["serials"][low:high]
        first = np.searchsorted(known, serials, side="left")
        after = np.searchsorted(known, serials, side="right")
        for start in np.unique(first[after - first > 1]).tolist():  # without a serial: by their ids
            end = int(after[first == start][0])
            here = first == start
            first[here] += _places(self._arrays["ids"][low + start : low + end], ids[here])
        rows = low + np.minimum(first, high - low - 1)
        same = (self._arrays["ids"][rows] == ids).all(1)
        same &= (self._arrays["serials"][rows] == serials) & ~self._dead[rows]
        return np.where(same, rows, -1)

    def add(self, fresh: Arrays) -> tuple[np.ndarray, Arrays]:
        """Take in episodes, of none of which the like is there; the rule decides who lives.

        `fresh` has all columns. The rows of those of them that live, and the columns of whoever
        died, in the order of the table. Rows change here alone.
        """
        self._let_go()
        order = _ascending(fresh["serials"], fresh["ids"])
        if order is not None:
            fresh = {name: values[order] for name, values in fresh.items()}
        count = len(fresh["serials"])
        if 2 * self._holes > self._high - self._low:
            self._sweep()
        rows = self._place(fresh, count)
        if self.retention.by_steps:
            self._steps += int(fresh["lengths"].sum())
            gone = self._pass_floor()
        elif self.retention.keep == "newest":
            gone = self._cut(max(0, len(self) - self.retention.count))
        elif self.retention.keep == "best":
            gone = self._drop_worst(rows)
        else:
            gone = rows[:0]
        left = {name: values[gone] for name, values in self._arrays.items()}
        return rows[(rows >= self._low) & ~self._dead[rows]], left

    def learn(self, told: Table) -> None:
        """Take in what is new of the episodes that a receipt tells."""
        each = last_of_each(told.serials, told.ids)
        new = each[self.find(told.serials[each], told.ids[each]) < 0]
        if len(new):
            self.add({name: told[name][new] for name in COLUMNS})

    # --- rows

    def _let_go(self) -> None:
        """A table that somebody holds is told which rows it is of before they change."""
        held = None if self._table is None else weakref.ref(self._table)
        self._table, view, self._view = None, self._view, None
        if held is not None and held() is not None and view is not None:
            view.settle()

    def _place(self, fresh: Arrays, count: int) -> np.ndarray:
        """Write them to where they belong; their rows."""
        low, high = self._low, self._high
        if not count or low == high or self._arrival(high - 1) < _arrival(fresh, 0):
            self._reserve(count)
            start, self._high = self._high, self._high + count
            for name, values in fresh.items():
                self._arrays[name][start : self._high] = values
            self._dead[start : self._high] = False
            return np.arange(start, self._high)
        serials, ids = self._arrays["serials"][low:high], self._arrays["ids"][low:high]
        both = {
            "serials": np.concatenate([serials, fresh["serials"]]),
            "ids": np.concatenate([ids, fresh["ids"]]),
        }
        order = _ascending(both["serials"], both["ids"])
        assert order is not None
        self._arrays = {
            name: np.concatenate([values[low:high], fresh[name]])[order]
            for name, values in self._arrays.items()
        }
        self._dead = np.append(self._dead[low:high], np.zeros(count, bool))[order]
        self._low, self._high, self._worst = 0, len(order), None
        return np.flatnonzero(order >= high - low)

    def _arrival(self, row: int) -> ArrivalOrder:
        return _arrival(self._arrays, row)

    def _reserve(self, count: int) -> None:
        """Room for so many more rows."""
        low, high = self._low, self._high
        if high + count <= len(self._dead):
            return
        size = max(64, 2 * (high - low + count))

        def moved(values: np.ndarray) -> np.ndarray:
            new = np.empty((size, *values.shape[1:]), values.dtype)
            new[: high - low] = values[low:high]
            return new

        self._arrays = {name: moved(values) for name, values in self._arrays.items()}
        self._dead = moved(self._dead)
        self._low, self._high = 0, high - low

    def _sweep(self) -> None:
        """Leave out the dead."""
        alive = self._low + np.flatnonzero(~self._dead[self._low : self._high])
        self._arrays = {name: values[alive] for name, values in self._arrays.items()}
        self._dead = np.zeros(len(alive), bool)
        self._low, self._high, self._holes, self._worst = 0, len(alive), 0, None

    # --- the rules

    def _cut(self, count: int) -> np.ndarray:
        """The oldest go; their rows."""
        start, self._low = self._low, self._low + count
        return np.arange(start, self._low)

    def _pass_floor(self) -> np.ndarray:
        """The newest live that hold at most so many steps, and whatever is not newer goes."""
        old = 0
        if self._floor is not None:
            while old < len(self) and self._arrival(self._low + old) <= self._floor:
                old += 1
        gone = self._cut(old)
        lengths = self._arrays["lengths"]
        self._steps -= int(lengths[gone].sum())
        at, most = self._low, self._high - 1
        while at < most and self._steps > self.retention.steps:
            held = np.cumsum(lengths[at : min(most, at + 1024)])
            over = int(np.searchsorted(held, self._steps - self.retention.steps, side="left"))
            last = min(over, len(held) - 1)
            at, self._steps = at + last + 1, self._steps - int(held[last])
        gone = np.append(gone, self._cut(at - self._low))
        if len(gone):
            newest = self._arrival(int(gone[-1]))
            self._floor = max(newest, self._floor or newest)
        return gone

    def _drop_worst(self, fresh: np.ndarray) -> np.ndarray:
        """All but the best go; their rows."""
        excess = len(self) - self.retention.count
        if excess <= 0:
            return fresh[:0]
        if self._worst is not None:
            for one in zip(self._worth(fresh).tolist(), fresh.tolist(), strict=True):
                if one <= self._edge:
                    heapq.heappush(self._worst, one)
        gone = list[int]()
        while len(gone) < excess:
            if not self._worst:
                self._look(excess - len(gone))
            assert self._worst
            row = heapq.heappop(self._worst)[1]
            self._dead[row] = True
            self._holes += 1
            gone.append(row)
        return np.array(sorted(gone), np.int64)

    def _look(self, needed: int) -> None:
        """Look at all: a sixteenth of them, the worst, will do for as many evictions."""
        alive = self._low + np.flatnonzero(~self._dead[self._low : self._high])
        worth = self._worth(alive)
        count = min(len(alive), max(1024, len(alive) // 16, needed))
        edge = np.partition(worth, count - 1)[count - 1]
        ties = np.flatnonzero(worth == edge)[: count - int((worth < edge).sum())]
        worst = np.append(np.flatnonzero(worth < edge), ties)
        self._edge = float(edge), int(alive[ties[-1]])
        if count == len(alive):
            self._edge = float("inf"), 0
        self._worst = sorted(zip(worth[worst].tolist(), alive[worst].tolist(), strict=True))

    def _worth(self, rows: np.ndarray) -> np.ndarray:
        named = (self._arrays[name][rows] for name in ("returns", "lengths", "merit"))
        return self.retention.worth(*named)


class _View:
    """The columns of the rows that live at one time."""

    def __init__(self, arrays: Arrays, low: int, high: int, dead: np.ndarray, holes: int) -> None:
        self._arrays, self._low, self._high = arrays, low, high
        self._dead = dead
        self._holes = holes
        self._rows: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """The rows, by position."""
        if self._rows is None:
            self._rows = self._low + np.flatnonzero(~self._dead[self._low : self._high])
        return self._rows

    def settle(self) -> None:
        """Note the rows, where some are dead: more will be soon."""
        if self._holes and self._rows is None:
            _ = self.rows

    def column(self, name: str) -> np.ndarray:
        """A column by position."""
        if self._holes:
            taken: np.ndarray = self._arrays[name][self.rows]
            return taken
        return self._arrays[name][self._low : self._high]


class IdIndex:
    """Ids and what serials they were given. A large sorted part and a small one that grows."""

    def __init__(self, ids: np.ndarray, serials: np.ndarray) -> None:
        hashes = _hashes(ids)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._ids, self._serials = hashes[order], ids[order], serials[order]
        self._recent: dict[EpisodeId, int] = {}

    @property
    def full(self) -> bool:
        """Whether it is time to sort all anew."""
        return len(self._recent) > max(4096, len(self._ids) // 8)

    def add(self, id: EpisodeId, serial: int) -> None:
        """Note one."""
        self._recent[id] = serial

    def find(self, ids: list[EpisodeId]) -> list[int | None]:
        """The serial of each, None where it was never added."""
        rows = np.array(ids, np.int64).reshape(-1, 3)
        hashes = _hashes(rows)
        first = np.searchsorted(self._hashes, hashes, side="left").tolist()
        after = np.searchsorted(self._hashes, hashes, side="right").tolist()
        found: list[int | None] = [self._recent.get(id) for id in ids]
        for i, (start, end) in enumerate(zip(first, after, strict=True)):
            for at in range(start, end):
                if (self._ids[at] == rows[i]).all():
                    found[i] = int(self._serials[at])
        return found


def _hashes(ids: np.ndarray) -> np.ndarray:
    """`[n]` uint64 that seldom agree by chance."""
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    mixed: np.ndarray = (ids.astype(np.uint64) * factors).sum(1, dtype=np.uint64)
    hashes: np.ndarray = (mixed ^ (mixed >> np.uint64(29))) * factors[0]
    return hashes


def _arrival(arrays: Arrays, row: int) -> ArrivalOrder:
    return ArrivalOrder(int(arrays["serials"][row]), EpisodeId(*arrays["ids"][row].tolist()))


def _ascending(serials: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
    """The order of arrival `[n]` int64; None where they are in it."""
    if (serials[1:] > serials[:-1]).all():
        return None
    return np.lexsort((ids[:, 2], ids[:, 1], ids[:, 0], serials))


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`numpy.searchsorted` for ids: where in `ids [n, 3]`, ascending, `wanted [m, 3]` belong."""
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(ids))
    for _ in range(len(ids).bit_length()):
        middle = np.minimum((low + high) // 2, len(ids) - 1)
        right = _less(ids[middle], wanted)
        open = low < high
        low = np.where(open & right, middle + 1, low)
        high = np.where(open & ~right, middle, high)
    return low


def _less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which rows of `a` are smaller ids than those of `b`: `[m]` bool."""
    less: np.ndarray = (a[:, 0] < b[:, 0]) | (
        (a[:, 0] == b[:, 0]) & ((a[:, 1] < b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 2] < b[:, 2])))
    )
    return less


def last_of_each(serials: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Positions of the episodes `[n]`, `[n, 3]`, of those that are the same the last one's."""
    if (serials[1:] > serials[:-1]).all():
        return np.arange(len(serials))
    order = np.lexsort((ids[:, 2], ids[:, 1], ids[:, 0], serials))  # equal ones stay in order
    same = (np.diff(serials[order]) == 0) & (np.diff(ids[order], axis=0) == 0).all(1)
    last: np.ndarray = order[np.append(~same, True)]
    return last
