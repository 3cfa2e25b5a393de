"""Table: what is known of the living episodes; Retention: the rule by which they live.

The rule is a function of the set of all episodes that were ever added, and of their serials, which
say in which order a store took them in. Those that it has evicted may be forgotten, for they live
under no larger set either. One rule is told more than the living: see `Table.floor`. A table costs
64 bytes an episode, so that a driver can hold millions. `living.py` keeps one up to date.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from bigdm_ray.replay.episode import Episode, EpisodeId, source_number
from bigdm_ray.replay.shard import UNNUMBERED, ShardRef


class ArrivalOrder(NamedTuple):
    """Where an episode stands among all: by its serial, and by its id where it has none."""

    serial: int
    id: EpisodeId


@dataclass(frozen=True)
class Retention:
    """Which episodes live on: the `count` best by return, the `count` newest, or all.

    A tie goes to the one that came later. `newest` with `steps` keeps the newest that together hold
    at most so many steps, and at least one. With a `length_cost`, episodes are ranked by their
    return less that cost for each step beyond `length_allowance`; with a `merit_weight`, plus that
    many times their merit.
    """

    keep: Literal["best", "newest", "all"] = "all"
    count: int = 0
    length_cost: float = 0.0
    length_allowance: int = 0
    steps: int = 0
    merit_weight: float = 0.0

    @property
    def by_steps(self) -> bool:
        """Whether it is the rule that needs `Table.floor`."""
        return self.keep == "newest" and self.steps > 0

    def worth(self, returns: np.ndarray, lengths: np.ndarray, merit: np.ndarray) -> np.ndarray:
        """What episodes are ranked by: `[n]` float64."""
        beyond = np.maximum(lengths - self.length_allowance, 0)
        worth: np.ndarray = returns + self.merit_weight * merit - self.length_cost * beyond
        return worth


class Table:
    """The living episodes in the order in which they came, as columns that are made when asked for.

    `ids [n, 3]` int64, `returns [n]` and `merit [n]` float64, `lengths [n]`, `serials [n]` and
    `sources [n]` (`source_number`) int64. Never changed after it is made. Episodes without a serial
    come first, by their ids.

    `floor` is the newest that a limit on steps has evicted. That limit keeps the newest episodes
    up to the first that does not fit, so whatever is older lives no more, however late it comes.
    """

    def __init__(
        self,
        ids: np.ndarray | None = None,
        returns: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        merit: np.ndarray | None = None,
        serials: np.ndarray | None = None,
        sources: np.ndarray | None = None,
        floor: ArrivalOrder | None = None,
    ) -> None:
        size = 0 if lengths is None else len(lengths)
        self.floor = floor
        self._size = size
        self._noted: dict[Any, np.ndarray] = {}
        self._made = {
            "ids": np.zeros((size, 3), np.int64) if ids is None else ids,
            "returns": np.zeros(size) if returns is None else returns,
            "lengths": np.zeros(size, np.int64) if lengths is None else lengths,
            "merit": np.zeros(size) if merit is None else merit,
            "serials": np.full(size, UNNUMBERED) if serials is None else serials,
            "sources": np.zeros(size, np.int64) if sources is None else sources,
        }
        self._column: Callable[[str], np.ndarray] = self._made.__getitem__

    @staticmethod
    def from_columns(*columns: np.ndarray) -> Table:
        """The table of all COLUMNS."""
        ids, returns, lengths, merit, serials, sources = columns
        return Table(ids, returns, lengths, merit, serials, sources)

    @staticmethod
    def lazy(size: int, column: Callable[[str], np.ndarray], floor: ArrivalOrder | None) -> Table:
        """A table of `size` episodes whose columns `column` gives by name, each at most once."""
        table = Table(floor=floor)
        table._size, table._made, table._column = size, {}, column
        return table

    def __len__(self) -> int:
        return self._size

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (*(self[name] for name in COLUMNS), self.floor)

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of this name."""
        if name not in self._made:
            self._made[name] = self._column(name)
        return self._made[name]

    def memoize(self, key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` says of this table, which is asked for often and made once."""
        if key not in self._noted:
            self._noted[key] = make()
        return self._noted[key]

    @property
    def ids(self) -> np.ndarray:
        """`[n, 3]` int64."""
        return self["ids"]

    @property
    def returns(self) -> np.ndarray:
        """`[n]` float64."""
        return self["returns"]

    @property
    def lengths(self) -> np.ndarray:
        """`[n]` int64."""
        return self["lengths"]

    @property
    def merit(self) -> np.ndarray:
        """`Episode.merit`: `[n]` float64."""
        return self["merit"]

    @property
    def serials(self) -> np.ndarray:
        """`[n]` int64, ascending."""
        return self["serials"]

    @property
    def sources(self) -> np.ndarray:
        """Which agent played it: `[n]` int64."""
        return self["sources"]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Steps up to and with each episode: `[n]` int64."""
        return np.cumsum(self.lengths)

    @functools.cached_property
    def by_return(self) -> np.ndarray:
        """`rank` by return: `[n]` int64."""
        return self.rank()

    def rank(self, rule: Retention | None = None, count: int | None = None) -> np.ndarray:
        """Positions from the best return, or the best by `rule`, to the worst. [n] int64

        A tie goes to the one that came later. With a `count`, so many of the best, in the time that
        it takes to look at all once.
        """
        worth = self.worth(rule)
        if count is None or count >= len(worth):
            return np.lexsort((-np.arange(len(self)), -worth))
        edge = np.partition(worth, len(worth) - max(1, count))[len(worth) - max(1, count)]
        best = np.flatnonzero(worth >= edge)
        return best[np.lexsort((-best, -worth[best]))][:count]

    def worth(self, rule: Retention | None = None) -> np.ndarray:
        """What episodes are ranked by: `[n]` float64."""
        if rule is None:
            return self.returns
        return rule.worth(self.returns, self.lengths, self.merit)

    def take(self, rows: np.ndarray) -> Table:
        """The table of these positions."""
        return Table.from_columns(*(self[name][rows] for name in COLUMNS))

    @staticmethod
    def concatenate(tables: Iterable[Table]) -> Table:
        """The rows of one table after those of another."""
        every = (Table(), *tables)
        columns = (np.concatenate([table[name] for table in every]) for name in COLUMNS)
        return Table.from_columns(*columns)

    @staticmethod
    def of(episodes: Iterable[Episode], serials: Iterable[int] | None = None) -> Table:
        """The table of some episodes, in their order."""
        listed = list(episodes)
        return Table(
            np.array([e.id for e in listed], np.int64).reshape(-1, 3),
            np.array([e.total_return for e in listed], np.float64),
            np.array([e.length for e in listed], np.int64),
            np.array([e.merit for e in listed], np.float64),
            None if serials is None else np.array(list(serials), np.int64),
            np.array([source_number(e.source) for e in listed], np.int64),
        )


COLUMNS = ("ids", "returns", "lengths", "merit", "serials", "sources")
"""Of a table, in the order in which its constructor takes them."""


@dataclass(frozen=True)
class Receipt:
    """What `add` acknowledges: the table of the episodes it was given, in their order; shards.

    The shards are those of the episodes that live, and of the one that is the table's floor: a
    reader that takes them in has the same table.
    """

    added: Table
    shards: list[ShardRef]
