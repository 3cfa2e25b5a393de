"""The stores of a run, one a task: `store/` itself, or of several tasks a folder each below it.

Checkpoints name a shard by its path from `store/`, so by its bare name in a run of one task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bigdm_ray.errors import RunFailed
from bigdm_ray.replay.episode import EpisodeId
from bigdm_ray.replay.shard import ShardRef
from bigdm_ray.replay.source import ShardSource
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.table import Table
from bigdm_ray.training.checkpoint import Checkpoint
from bigdm_ray.training.config import Run
from bigdm_ray.training.run_folder import RunFolder


def store_places(run: Run) -> dict[str, str]:
    """The folder of each task below `store/`; nothing where there is one task, which has it all."""
    if not run.several:
        return {run.task: ""}
    return {
        use.name: f"{number}-{re.sub(r'[^0-9A-Za-z.-]+', '-', use.name)[:60]}"
        for number, use in enumerate(run.tasks)
    }


def names_within(place: str, names: Iterable[str]) -> list[str]:
    """Those of the shards that a checkpoint names which lie in one store, by their bare names."""
    if not place:
        return list(names)
    return [name.removeprefix(f"{place}/") for name in names if name.startswith(f"{place}/")]


def shards_within(place: str, shards: Iterable[ShardRef]) -> list[ShardRef]:
    """See `names_within`."""
    return [ref._replace(name=n) for ref in shards for n in names_within(place, [ref.name])]


def shards_below(place: str, shards: Iterable[ShardRef]) -> list[ShardRef]:
    """The shards of one store as a checkpoint names them."""
    return [ref._replace(name=f"{place}/{ref.name}") if place else ref for ref in shards]


class Stores:
    """The episodes that a run has played, by task."""

    def __init__(
        self,
        run: Run,
        home: RunFolder,
        flat_bytes: int,
        write: bool = True,
        source: Callable[[str, Path], ShardSource] | None = None,
    ) -> None:
        """`flat_bytes` are those of all stores together: see Store.

        `source` gives what a task's store opens shards through, by task and folder.
        """
        self.places = store_places(run)
        self.by_task = {
            task: Store(
                home.store / place,
                run.retention,
                flat_bytes // len(self.places),
                write=write,
                source=None if source is None else source(task, home.store / place),
            )
            for task, place in self.places.items()
        }

    def open(self, shards: Iterable[ShardRef] | None = None, leave: Iterable[str] = ()) -> Stores:
        """Take in all shards, or those named, but none of `leave`: see Store."""
        chosen, left = None if shards is None else list(shards), list(leave)
        for task, place in self.places.items():
            mine = None if chosen is None else shards_within(place, chosen)
            self.by_task[task].open(mine, leave=names_within(place, left))
        return self

    @property
    def tables(self) -> dict[str, Table]:
        """The living episodes by task."""
        return {task: store.table for task, store in self.by_task.items()}

    @property
    def problems(self) -> list[str]:
        """What was wrong with the folders."""
        return [problem for store in self.by_task.values() for problem in store.problems]

    def living_shards(self) -> dict[str, list[ShardRef]]:
        """The shards that hold living episodes, by task, with bare names."""
        return {task: store.living_shards() for task, store in self.by_task.items()}

    def compact(self) -> dict[str, list[ShardRef]]:
        """Compact where it pays; the `living_shards`."""
        return {task: store.compact() for task, store in self.by_task.items()}

    def release(
        self, named: Iterable[str], spared: Mapping[str, Iterable[str]] | None = None
    ) -> dict[str, list[str]]:
        """Unlink what neither lives nor is named by a checkpoint nor, by task, `spared`.

        The bare names that went, by task.
        """
        kept, more = list(named), spared or {}
        return {
            task: store.release({*names_within(self.places[task], kept), *more.get(task, ())})
            for task, store in self.by_task.items()
        }

    def name_shards(self, shards: Mapping[str, Iterable[ShardRef]]) -> list[ShardRef]:
        """Shards by task as a checkpoint names them."""
        return [ref for task, own in shards.items() for ref in shards_below(self.places[task], own)]

    def check_living(self, resumed: Checkpoint) -> None:
        """Raise RunFailed where episodes that the checkpoint counts as living are gone."""
        check_living(self.places, self.tables, self.problems, resumed)


def count_lost(places: Mapping[str, str], tables: Mapping[str, Table], resumed: Checkpoint) -> int:
    """How many episodes that the checkpoint counts as living are in no table."""
    return sum(
        len(resumed.living.get(place, set()) - {EpisodeId(*map(int, i)) for i in tables[task].ids})
        for task, place in places.items()
    )


def check_living(
    places: Mapping[str, str],
    tables: Mapping[str, Table],
    problems: list[str],
    resumed: Checkpoint,
) -> None:
    """Raise RunFailed where episodes that the checkpoint counts as living are gone."""
    if count := count_lost(places, tables, resumed):
        raise RunFailed(
            f"{count} episodes of the checkpoint are missing"
            f" ({', '.join(problems) or 'their shards are gone'})"
        )
