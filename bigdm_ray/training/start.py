"""What a run has before its first step: its dataset's episodes, another run's learner and best
episodes, or its own checkpoint.

`--from FOLDER` takes over the learner, optimizers included, and as many of the best episodes as the
run keeps. That becomes the run's first checkpoint, so that everything after it, a resume too, goes
on as from any other. Episodes get foreign ids in the order of their returns: under a retention of
the newest the worst of them are replaced first (Zheng et al. 2022, section 4.3).

A lock-step `--resume` goes on from the newest checkpoint whose episodes are all there
(`last_whole_checkpoint`), and plays what came after it again. An asynchronous one, and one that
took episodes of others, keeps all that is on disk (`count_stored`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.replay.episode import FOREIGN, EpisodeId
from bigdm_ray.replay.shard import SUFFIX, UNNUMBERED, refuse_unknown
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.table import Table
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint, Counters, TaskCounters
from bigdm_ray.training.config import Run, TaskUse, open_start
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.stores import (
    Stores,
    count_lost,
    names_within,
    shards_within,
    store_places,
)

FIRST_ROUND = 1
"""The first round of a run that starts from another: its inherited episodes count as round 0."""
SHARD_EPISODES = 64


def take_over(run: Run, home: RunFolder) -> None:
    """Write the first checkpoint of a run that starts from another, unless it has one.

    Raises UserError, and RunFailed on a full disk.
    """
    if run.start is None or checkpoint.complete_checkpoints(home.checkpoints):
        return
    before, saved = open_start(Path(run.start.folder))
    if (before.algorithm.name, before.task, saved.counters.learner_step) != (
        run.algorithm.name,
        run.task,
        run.start.learner_step,
    ):
        raise UserError(
            f"--from {run.start.folder} is {before.algorithm.name} on {before.task} at learner step"
            f" {saved.counters.learner_step:,}, but this run was to start from {run.algorithm.name}"
            f" on {run.task} at {run.start.learner_step:,}: begin it anew in another folder"
        )
    theirs = (
        dataset_store(before, before.only)
        if before.offline
        else Store(
            RunFolder(Path(run.start.folder)).store,
            before.online_algorithm.retention(),
            0,
            write=False,
        ).open()
    )
    if not len(theirs.table):
        raise UserError(
            f"--from {run.start.folder} has no episodes to begin with; one that learned from a"
            " dataset or by playing is expected"
        )
    refuse_unknown(home.store.glob(f"*{SUFFIX}"))
    for left in home.store.glob("*"):  # of a start that was cut short
        left.unlink()
    mine = Store(home.store, run.online_algorithm.retention(), 0)
    best = theirs.table.rank()[: run.online_algorithm.retention().count or None][::-1]
    for at in range(0, len(best), SHARD_EPISODES):
        part = enumerate(best[at : at + SHARD_EPISODES], at)
        mine.add(
            [
                dataclasses.replace(theirs.episode(int(position)), id=EpisodeId(0, FOREIGN, number))
                for number, position in part
            ]
        )
    counters = Counters(
        learner_step=saved.counters.learner_step,
        began_at=saved.counters.learner_step,
        round=FIRST_ROUND,
        arrived=mine.next_serial,
    )
    living: np.ndarray = mine.table.ids
    checkpoint.write(
        home.checkpoints,
        counters,
        mine.living_shards(),
        0,
        saved.learner,
        {"": living},
        run.identity,
    )


def dataset_stores(run: Run) -> dict[str, Store]:
    """The episodes of the run's datasets by task. Raises UserError: see `dataset_store`."""
    return {use.name: dataset_store(run, use) for use in run.tasks}


def dataset_store(run: Run, use: TaskUse) -> Store:
    """The episodes of a task's dataset.

    Raises UserError where it is gone, damaged, or another one than the run began with.
    """
    return open_dataset(use).store((run.saves.flat_mib << 20) // len(run.tasks), run.total)


def open_dataset(use: TaskUse) -> Dataset:
    """A task's dataset. Raises UserError: see `dataset_store`."""
    assert use.dataset is not None
    found, began = Dataset.open(Path(use.dataset.folder)), use.dataset.sha256
    if found.sha256 != began:
        raise UserError(
            f"{found.folder} holds another dataset than this run began with (hash"
            f" {found.sha256[:12]}, then {began[:12]}); import that one again"
        )
    if why := found.misfit():
        raise UserError(
            f"{found.folder} does not fit its task {found.task} as it is now: {why}; record or"
            " import the episodes anew"
        )
    return found


def rotation_note(run: Run) -> str | None:
    """That the run's dataset does not fit into its memory, in one sentence, and what follows; None
    where it does or there is none."""
    count, limit = len(run.tasks), run.saves.flat_mib
    folders = [Path(use.dataset.folder) for use in run.tasks if use.dataset is not None]
    nbytes = count * max([Dataset.open(folder).nbytes for folder in folders], default=0)
    if nbytes <= limit << 20:
        return None
    size = nbytes >> 20
    if count > 1:
        return (
            f"--saves.flat-mib is {limit:,}, shared by {count} datasets: of those that do not fit a"
            f" few shards at a time are drawn from, in turns; with --saves.flat-mib {size + 1}"
            " every batch is drawn from all episodes"
        )
    return (
        f"the dataset has {size:,} MiB and --saves.flat-mib is {limit:,}: a few of its shards at a"
        f" time are drawn from, in turns; with --saves.flat-mib {size + 1} every batch is drawn"
        " from all episodes"
    )


def last_whole_checkpoint(run: Run, home: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose living episodes are all on disk, and one sentence for each newer
    one, which is set aside.

    Nothing is unlinked. Raises UserError for a checkpoint that cannot be read, RunFailed where
    episodes of all of them are gone.
    """
    aside = checkpoint.set_torn_aside(home.checkpoints)
    damage: list[str] = []
    damaged: list[Path] = []
    for path in reversed(checkpoint.complete_checkpoints(home.checkpoints)):
        found = checkpoint.read(path, run.identity)
        try:
            Stores(run, home, 0).open(found.shards).check_living(found)
        except RunFailed as error:
            damage.append(f"{path.name}: {error}")
            damaged.append(path)
            continue
        for newer in damaged:
            checkpoint.set_aside(newer)
        return found, [
            *aside,
            *(f"the run goes on from {path.name}, not from {why}" for why in damage),
        ]
    if damage:
        raise RunFailed(
            f"no checkpoint in {home.checkpoints} is whole ({'; '.join(damage)}): put the shards"
            f" back from a copy, or begin in another --folder; --from {home.path} then takes over"
            " the learner and the episodes that are left"
        )
    return None, aside


def drop_later(run: Run, home: RunFolder) -> None:
    """Unlink the shards that no kept checkpoint names: a lock-step run plays them again.

    The columns beside them go too. Raises NewerShard or ClosedShard, and unlinks nothing, where
    one of them must stay.
    """
    named = checkpoint.named_shards(home.checkpoints)
    later = [
        path
        for place in store_places(run).values()
        for path in (home.store / place).glob(f"*{SUFFIX}")
        if path.name not in names_within(place, named)
    ]
    refuse_unknown(later)
    for path in later:
        for column in path.parent.glob(f".{path.name}.*.npy"):
            column.unlink(missing_ok=True)
        path.unlink()


def count_stored(run: Run, home: RunFolder) -> tuple[Checkpoint, list[str]]:
    """The last checkpoint with the budget counted from the episodes on disk: those of rounds that
    were open or later are new.

    The second value names damaged shards: their episodes are left out.
    """
    aside = checkpoint.set_torn_aside(home.checkpoints)
    saved = checkpoint.last_checkpoint(home.checkpoints, run.identity)
    base = saved or Checkpoint(Counters(), [], 0, {}, {}, {})
    counters, where, tables, problems = (
        base.counters,
        store_places(run),
        dict[str, Table](),
        list[str](),
    )
    for task, place in where.items():
        on_disk = {path.name for path in (home.store / place).glob(f"*{SUFFIX}")}
        named = {ref.name for ref in shards_within(place, base.shards)}
        store = Store(home.store / place, flat_bytes=0).open(sorted(on_disk | named))
        tables[task] = store.table
        problems += store.problems
    damage = (
        [
            f"the run goes on without {count_lost(where, tables, base)} episodes of its last"
            f" checkpoint ({', '.join(problems)})"
        ]
        if problems
        else []
    )
    if run.several and not counters.tasks:
        counters.tasks = {task: TaskCounters() for task in tables}
    last = -1
    for task, table in tables.items():
        arrivals = counters.tasks[task] if run.several else counters
        rounds, own = table.ids[:, 0], table.ids[:, 1] != FOREIGN
        ahead = np.isin(table.serials, arrivals.arrived_ahead)
        came = (table.serials >= arrivals.arrived) & ~ahead
        played = (rounds >= counters.round) | np.isin(rounds, counters.open_rounds)
        new = np.where(table.serials == UNNUMBERED, played, came)
        steps, episodes = int(table.lengths[new].sum()), int(new.sum())
        counters.env_steps += steps
        counters.episodes += episodes
        if run.several:
            counters.tasks[task].env_steps += steps
            counters.tasks[task].episodes += episodes
        last = max(last, int(rounds[own].max(initial=-1)))
        arrivals.arrive(table.serials[new].tolist())
        # round 0 are those that a run has begun with (`take_over`)
        counters.count_outside(EpisodeId(*map(int, id)) for id in table.ids[~own & (rounds > 0)])
    counters.round = max(counters.round, last + 1, *(r + 1 for r in counters.open_rounds), 0)
    counters.open_rounds = []
    return base, aside + damage
