"""Drawing windows and inserting steps, one core.

    python -m tests.benchmarks.replay
    python -m tests.benchmarks.replay --gib 12 --where /var/tmp
            a dataset of that size, drawn warm and cold, 256 MiB of it in memory
    python -m tests.benchmarks.replay --ahead [--repeats 5]   only learner steps, drawn ahead or not

Hopper's shapes (11 observations, 3 actions), 1,000 episodes of 1,000 steps in memory-mapped shards;
batches of 64 windows of 20 steps with returns-to-go, as a decision transformer draws them. What
must not grow with the episodes that live: adding, following, merging.

Draws ahead: behavioural cloning on Hopper's shapes and on pictures, flat and from 50 shards, and a
decision transformer; and a network that is elsewhere, which is a wait. Bouts that never draw ahead,
that always do, and that try, in turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.replay import Episode, EpisodeId, Retention, Store, Table, View
from bigdm_ray.replay.living import LivingEpisodes
from bigdm_ray.replay.rotating import RotatingStore
from bigdm_ray.replay.shard import Shard
from tests.benchmarks.common import header, in_turns, measure, row


def episodes(count: int, steps: int, round: int = 0) -> list[Episode]:
    """Random episodes in Hopper's shapes."""
    chance = np.random.default_rng(round)

    def floats(*shape: int) -> np.ndarray:
        return chance.standard_normal(shape, np.float32)

    return [
        Episode(
            {"": floats(steps + 1, 11)},
            {"": floats(steps, 3)},
            floats(steps),
            True,
            EpisodeId(round, 0, i),
            "hopper",
        )
        for i in range(count)
    ]


def drawing(store: Store, view: View, batch: int = 64, draws: int = 500) -> Callable[[], float]:
    """Windows drawn."""
    chance = np.random.default_rng(0)

    def work() -> float:
        for _ in range(draws):
            store.draw(view, chance, batch)
        return float(batch * draws)

    return work


def checking(folder: Path) -> Callable[[], float]:
    """Bytes of shards whose bodies are checked, as at their first use."""
    mapped = [Shard.open(path) for path in sorted(folder.glob("*.arrow"))]

    def work() -> float:
        for shard in mapped:
            shard.check_body()
        return float(sum(shard.nbytes for shard in mapped))

    return work


def inserting(folder: Path, retention: Retention) -> Callable[[], float]:
    """Steps stored in calls of 20 episodes of 250 steps, each synced before it is acknowledged."""
    store = Store(folder, retention)
    made = [episodes(20, 250, round) for round in range(20)]
    rounds = itertools.count()

    def work() -> float:
        for batch in made:
            number = next(rounds)
            fresh = [
                Episode(
                    e.observations, e.actions, e.rewards, True, EpisodeId(number, 0, i), "hopper"
                )
                for i, e in enumerate(batch)
            ]
            store.add(fresh)
        return 20.0 * 20 * 250

    return work


def merging(retention: Retention, living: int = 1_000_000) -> Callable[[], float]:
    """Receipts of eight episodes that a driver merges into a table of so many."""

    def table(start: int, count: int) -> Table:
        serials = np.arange(start, start + count)
        ids = np.stack([serials // 8, serials * 0, serials % 8], 1)
        paid = np.random.default_rng(start).normal(size=count)
        return Table(ids, paid, np.full(count, 200), serials=serials)

    held = LivingEpisodes.of(table(0, living), retention)
    rounds = itertools.count(living, 8)

    def work() -> float:
        for _ in range(1000):
            held.learn(table(next(rounds), 8))
            len(held.table)
        return 1000.0

    return work


def small(folder: Path, files: int) -> Store:
    """A store of an episode of ten steps a file, of which a hundred live."""
    store = Store(folder, Retention("newest", 100))
    for round in range(files):
        store.add(episodes(1, 10, round))
    return store


def adding(store: Store) -> Callable[[], float]:
    """Adds of one small episode, none unlinked."""
    rounds = itertools.count(1_000_000)

    def work() -> float:
        for _ in range(100):
            store.add(episodes(1, 10, next(rounds)))
        return 100.0

    return work


def following(folder: Path, shards: int) -> Callable[[], float]:
    """Times that a reader follows a writer whose shards are the same as before."""
    writer = Store(folder)
    for round in range(shards):
        writer.add(episodes(1, 10, round))
    reader, refs = Store(folder, write=False).open(), writer.living_shards()

    def work() -> float:
        for _ in range(100):
            reader.follow(refs)
        return 100.0

    return work


def anonymous_mib() -> float:
    """Memory of this process that no file backs."""
    return (
        int(
            next(
                line
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("RssAnon")
            ).split()[1]
        )
        / 1024
    )


def large(folder: Path, gib: float, view: View) -> None:
    """Draw from a dataset of `gib` GiB, of which 256 MiB are in memory: warm, and after its pages
    were dropped."""
    writer = Store(folder, flat_bytes=0)
    rounds = itertools.count()
    while writer.nbytes < gib * 2**30:
        writer.add(episodes(1000, 1000, next(rounds)))
    del writer
    store = RotatingStore(folder, 256 << 20).open()
    chance, at = np.random.default_rng(0), itertools.count()

    def work(draws: int = 5_000) -> float:
        for _ in range(draws):
            store.draw(view, chance, 64, turn=next(at))
        return 64.0 * draws

    row(
        f"windows of 20 from {store.nbytes / 2**30:.1f} GiB in {len(store.living_shards())} shards,"
        " warm",
        "windows",
        measure(work, 3),
    )
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    print(
        f"{'the same, cold':<64} {work() / (time.perf_counter() - began):>12,.0f} windows per wall"
        f" second; {anonymous_mib():.0f} MiB of anonymous memory"
    )


def pictures(count: int, steps: int, round: int = 0) -> list[Episode]:
    """Random episodes in Atari's shapes."""
    chance = np.random.default_rng(round)
    return [
        Episode(
            {"": chance.integers(0, 256, (steps + 1, 1, 84, 84), np.uint8)},
            {"": chance.integers(0, 4, steps, np.int32)},
            chance.standard_normal(steps, np.float32),
            True,
            EpisodeId(round, 0, i),
            "breakout",
        )
        for i in range(count)
    ]


def ahead(folder: Path, repeats: int) -> None:
    """Learner steps that draw ahead never, always, and where it pays."""
    from unittest import mock

    from bigdm_ray.algorithms.base import find_algorithm
    from bigdm_ray.envs import find_task
    from bigdm_ray.training.learner import Learner
    from bigdm_ray.training.prefetch import PrefetchTrial

    for name, made in (("hopper", episodes), ("breakout", pictures)):
        writer = Store(folder / name, flat_bytes=0)
        for round in range(50):
            writer.add(made(1, 1000 if name == "hopper" else 200, round))

    class Awaited(find_algorithm("dt")):  # type: ignore[misc]  # a class found by name
        """A network on a device: nothing is computed here, and its 10 ms are waited for."""

        own_update = True

        def update(self, model: Any, optimizers: Any, batch: Any, step: int) -> dict[str, Any]:
            time.sleep(0.01)
            return {}

    small = {"channels": (4, 4), "hidden": (32,)}
    stacks = {"frame_stack": 4, "context": 10, "batch_size": 32, "width": 16, "layers": 1}
    cases: list[tuple[str, str, str, dict[str, Any], int, int]] = [
        ("10 ms of a device, stacks of pictures", "awaited", "breakout", stacks, 256 << 20, 20),
        ("cloning, Hopper, flat", "bc", "hopper", {}, 256 << 20, 100),
        ("cloning, Hopper, from 50 shards", "bc", "hopper", {}, 0, 50),
        ("dt, Hopper, flat", "dt", "hopper", {"width": 64, "layers": 1}, 256 << 20, 10),
        ("cloning, pictures, small network", "bc", "breakout", small, 256 << 20, 20),
        ("cloning, pictures, from 50 shards", "bc", "breakout", small, 0, 20),
    ]
    print(f"{'seconds a step':<38} {'drawing':>8} {'':>9} {'never':>8} {'always':>8} {'tried':>8}")
    known: dict[str, Any] = {name: find_algorithm(name) for name in ("bc", "dt")}
    known["awaited"] = Awaited
    for what, kind, task, settings, flat, steps in cases:
        store = Store(folder / task, flat_bytes=flat, write=False).open()
        learners = [
            Learner(known[kind](**settings), {task: find_task(task).signature()}, 1)
            for _ in range(3)
        ]

        def bout(way: int) -> None:
            forced = mock.patch.object(PrefetchTrial, "prefetch_next", bool(way))
            with forced if way < 2 else mock.MagicMock():
                learners[way].update({task: store}, steps)  # noqa: B023  # called in this turn

        def draws() -> None:
            for step in range(steps):  # noqa: B023
                learners[0]._draw({task: store}, step)  # noqa: B023

        for _ in range(80 // steps + 1):  # the trial has ended
            bout(2)
        sides = {str(way): lambda way=way: bout(way) for way in range(3)} | {"draws": draws}
        spent = in_turns(sides, repeats, 1)
        for clock in (0, 1):
            drawing, never, *others = (
                spent[side].medians[clock] / steps for side in ("draws", "0", "1", "2")
            )
            print(
                f"{'' if clock else what:<38} {drawing / never:>7.0%} {['CPU', 'wall'][clock]:>9}"
                f" {never:>8.5f} {others[0]:>8.5f} {others[1]:>8.5f}"
                f"   {never / others[0]:.2f}, {never / others[1]:.2f} times never's"
                f"{', ahead' if clock and learners[2]._prefetcher.should_prefetch else ''}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--gib", type=float, default=0.0, help="also draw from a dataset of this size"
    )
    parser.add_argument("--where", default=".", help="where temporary files go")
    parser.add_argument("--ahead", action="store_true", help="only draws ahead")
    parser.add_argument("--repeats", type=int, default=5, help="bouts of each way, with --ahead")
    given = parser.parse_args()
    header()
    if given.ahead:
        with tempfile.TemporaryDirectory(dir=given.where) as name:
            ahead(Path(name), given.repeats)
        raise SystemExit
    view = View(length=20, weight="length", pad="left", columns=("returns_to_go",))
    with tempfile.TemporaryDirectory(dir=given.where) as name:
        folder = Path(name)
        writer = Store(folder / "store", flat_bytes=0)
        for round in range(50):
            writer.add(episodes(20, 1000, round))
        writer.compact()
        row(
            "windows of 20 from memory-mapped shards, kept flat",
            "windows",
            measure(drawing(Store(folder / "store", write=False).open(), view)),
        )
        row(
            "windows of 20 from the maps alone (50 shards)",
            "windows",
            measure(drawing(writer, view)),
        )
        row(
            "single steps (UDRL), batch 512, from the maps alone",
            "windows",
            measure(drawing(writer, View(columns=("returns_to_go", "steps_remaining")), 512)),
        )
        row("checking a shard's body, once a process", "bytes", measure(checking(folder / "store")))
        row(
            "single steps (UDRL), batch 512, kept flat",
            "windows",
            measure(
                drawing(
                    Store(folder / "store", write=False).open(),
                    View(columns=("returns_to_go", "steps_remaining")),
                    512,
                )
            ),
        )
        row(
            "inserting, best 600 kept, synced",
            "steps",
            measure(inserting(folder / "best", Retention("best", 600))),
        )
        row("inserting, all kept, synced", "steps", measure(inserting(folder / "all", Retention())))
        row(
            "adding one small episode at 1,500 files",
            "adds",
            measure(adding(small(folder / "many", 1500))),
        )
        row(
            "following 1,000 shards that have not changed",
            "times",
            measure(following(folder / "followed", 1000)),
        )
        for keep in ("all", "newest", "best"):
            row(
                f"merging 8 episodes into a table of 1,000,000, {keep} kept",
                "receipts",
                measure(merging(Retention(keep, 1_000_000))),
            )
        if given.gib:
            large(folder / "large", given.gib, view)
