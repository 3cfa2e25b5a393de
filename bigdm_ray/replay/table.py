"""Table: ids, returns and lengths of the living episodes; Retention: the rule by which they live.

The rule is a function of the set of all episodes that were ever added: of no order, and of nothing
beside them. Those that it has evicted may be forgotten, for they live under no larger set either.
One rule is told more than the living: see `Table.floor`. A table costs 48 bytes an episode, so that
a driver can hold millions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bigdm_ray.replay.episode import Episode, EpisodeId


@dataclass(frozen=True)
class Retention:
    """Which episodes live on: the `count` best by return, the `count` newest, or all.

    A tie goes to the newer id. `newest` with `steps` keeps the newest that together hold at most so
    many steps, and at least one. With a `length_cost`, episodes are ranked by their return less
    that cost for each step beyond `length_allowance`; with a `peers_weight`, plus that many times
    the mean return of the episodes that the same weights played along with it.
    """

    keep: Literal["best", "newest", "all"] = "all"
    count: int = 0
    length_cost: float = 0.0
    length_allowance: int = 0
    steps: int = 0
    peers_weight: float = 0.0

    @property
    def by_steps(self) -> bool:
        """Whether it is the rule that needs `Table.floor`."""
        return self.keep == "newest" and self.steps > 0

    def living(self, table: Table) -> np.ndarray:
        """Positions of the episodes that live on, ascending by id. [m] int64"""
        size = len(table)
        if self.by_steps:
            held = np.cumsum(table.lengths[::-1])
            count = max(1, int(np.searchsorted(held, self.steps, side="right")))
            return np.arange(max(0, size - count, table.below_floor), size)
        if self.keep == "all" or size <= self.count:
            return np.arange(size)
        if self.keep == "newest":
            return np.arange(size - self.count, size)
        return np.flatnonzero(_best(self.merit(table), self.count))

    def merit(self, table: Table) -> np.ndarray:
        """What episodes are ranked by: `[n]` float64."""
        beyond = np.maximum(table.lengths - self.length_allowance, 0)
        merit: np.ndarray = (
            table.returns + self.peers_weight * table.peers - self.length_cost * beyond
        )
        return merit


def _best(merit: np.ndarray, count: int) -> np.ndarray:
    """Which of `[n]` are the `count` largest (fewer than all), later ones first: `[n]` bool."""
    going = len(merit) - count
    edge = np.partition(merit, going - 1)[going - 1]
    lives: np.ndarray = merit >= edge
    lives[np.flatnonzero(merit == edge)[: going - int((merit < edge).sum())]] = False
    return lives


@dataclass(frozen=True)
class Table:
    """The living episodes, ascending by id.

    `floor` is the newest id that a limit on steps has evicted. That limit keeps the newest episodes
    up to the first that does not fit, so whatever is older lives no more, however late it comes.
    """

    ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    peers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))
    floor: EpisodeId | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Steps up to and with each episode: `[n]` int64."""
        return np.cumsum(self.lengths)

    @functools.cached_property
    def by_return(self) -> np.ndarray:
        """`ranked` by return: `[n]` int64."""
        return self.ranked()

    @property
    def below_floor(self) -> int:
        """How many episodes are not newer than the floor."""
        return 0 if self.floor is None else int(_places(self.ids, _row(self.floor), after=True)[0])

    def ranked(self, rule: Retention | None = None) -> np.ndarray:
        """Positions from the best return, or the best by `rule`, to the worst. [n] int64

        A tie goes to the newer id.
        """
        merit = self.returns if rule is None else rule.merit(self)
        return np.lexsort((-np.arange(len(self)), -merit))

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Where ids `[m, 3]` stand in this table, ascending by id: `[m]` int64, -1 where not."""
        if not len(self):
            return np.full(len(ids), -1)
        places = np.minimum(_places(self.ids, ids), len(self) - 1)
        return np.where((self.ids[places] == ids).all(1), places, -1)

    def take(self, rows: np.ndarray) -> Table:
        """The table of these positions."""
        return Table(self.ids[rows], self.returns[rows], self.lengths[rows], self.peers[rows])

    @staticmethod
    def joined(tables: Iterable[Table]) -> Table:
        """The rows of one table after those of another."""
        every = (Table(), *tables)
        return Table(
            np.concatenate([table.ids for table in every]),
            np.concatenate([table.returns for table in every]),
            np.concatenate([table.lengths for table in every]),
            np.concatenate([table.peers for table in every]),
        )

    def merged(self, other: Table, retention: Retention) -> tuple[Table, np.ndarray]:
        """Both tables under the rule, and where each row came from: positions in self, then other.

        Ids must differ. Costs a copy of the table; where the other is in no order or not newer, its
        sorting too.
        """
        fresh = _ascending(other.ids)
        places = _places(self.ids, other.ids[fresh])
        both, origin = Table.joined((self, other)), np.arange(len(self) + len(other))
        if len(places) and (places[0] < len(self) or (np.diff(fresh) != 1).any()):
            origin = np.insert(np.arange(len(self)), places, len(self) + fresh)
            both = both.take(origin)
        both = replace(both, floor=self.floor)
        living = retention.living(both)
        if len(living) == len(both):
            return both, origin
        kept = both.take(living)
        if retention.by_steps:
            newest = EpisodeId(*both.ids[int(living[0]) - 1].tolist())
            kept = replace(kept, floor=max(newest, self.floor or newest))
        return kept, origin[living]

    @staticmethod
    def of(episodes: Iterable[Episode]) -> Table:
        """The table of some episodes, in their order."""
        listed = list(episodes)
        return Table(
            np.array([e.id for e in listed], np.int64).reshape(-1, 3),
            np.array([e.total_return for e in listed], np.float64),
            np.array([e.length for e in listed], np.int64),
            np.array([e.peers for e in listed], np.float64),
        )


def _row(id: EpisodeId) -> np.ndarray:
    return np.array([id], np.int64)


def _ascending(ids: np.ndarray) -> np.ndarray:
    """Positions of ids `[n, 3]` in their order: `[n]` int64."""
    return np.lexsort((ids[:, 2], ids[:, 1], ids[:, 0]))


def _places(ids: np.ndarray, wanted: np.ndarray, after: bool = False) -> np.ndarray:
    """`numpy.searchsorted` for ids: where in `ids [n, 3]`, ascending, `wanted [m, 3]` belong."""
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(ids))
    if not len(ids) or not len(wanted):
        return low
    if (_less(ids[-1:], wanted)).all():
        return high
    for _ in range(len(ids).bit_length()):
        middle = np.minimum((low + high) // 2, len(ids) - 1)
        there = ids[middle]
        right = ~_less(wanted, there) if after else _less(there, wanted)
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


@dataclass(frozen=True)
class Receipt:
    """What `add` acknowledges: the table of the episodes it was given, in their order; shards.

    The shards are those of the episodes that live, and of the one that is the table's floor: a
    reader that takes them in has the same table.
    """

    added: Table
    shards: list[str]
