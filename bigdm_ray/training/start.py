"""What a run has before its first step: its dataset's episodes, or another run's learner and best episodes.

`--from FOLDER` takes over the learner, optimizers included, and as many of the best episodes as the run keeps. That becomes the
run's first checkpoint, so that everything after it, a resume too, goes on as from any other. Episodes get foreign ids in the order
of their returns: under a retention of the newest the worst of them are replaced first (Zheng et al. 2022, section 4.3).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.replay.episode import FOREIGN, EpisodeId
from bigdm_ray.replay.store import Store
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Counters
from bigdm_ray.training.config import Run, opened
from bigdm_ray.training.run_folder import RunFolder

FIRST_ROUND = 1
"""The first round of a run that starts from another: its inherited episodes count as round 0."""
SHARD_EPISODES = 64


def take_over(run: Run, home: RunFolder) -> None:
    """Write the first checkpoint of a run that starts from another, unless it has one. Raises UserError, and RunFailed on a full disk."""
    if run.start is None or checkpoint.saved(home.checkpoints):
        return
    before, saved = opened(Path(run.start.folder))
    if (before.algorithm.name, before.task, saved.counters.learner_step) != (run.algorithm.name, run.task, run.start.learner_step):
        raise UserError(
            f"--from {run.start.folder} is {before.algorithm.name} on {before.task} at learner step {saved.counters.learner_step:,}, but this run "
            f"was to start from {run.algorithm.name} on {run.task} at {run.start.learner_step:,}: begin it anew in another folder"
        )
    theirs = dataset_store(before) if before.dataset else Store(RunFolder(Path(run.start.folder)).store, before.algorithm.retention(), 0, write=False).open()
    if not len(theirs.table):
        raise UserError(f"--from {run.start.folder} has no episodes to begin with; one that learned from a dataset or by playing is expected")
    for left in home.store.glob("*"):  # of a start that was cut short
        left.unlink()
    mine = Store(home.store, run.algorithm.retention(), 0)
    best = theirs.table.ranked()[: run.algorithm.retention().count or None][::-1]
    for at in range(0, len(best), SHARD_EPISODES):
        part = enumerate(best[at : at + SHARD_EPISODES], at)
        mine.add([dataclasses.replace(theirs.episode(int(position)), id=EpisodeId(0, FOREIGN, number)) for number, position in part])
    counters = Counters(learner_step=saved.counters.learner_step, began_at=saved.counters.learner_step, round=FIRST_ROUND)
    identity = {"algorithm": run.algorithm.name, "task": run.task}
    living: np.ndarray = mine.table.ids
    checkpoint.write(home.checkpoints, counters, mine.living_shards(), 0, saved.learner, living, identity)


def dataset_store(run: Run) -> Store:
    """The episodes of the run's dataset. Raises UserError where it is gone, damaged, or another one than the run began with."""
    assert run.dataset is not None
    found = Dataset.open(Path(run.dataset.folder))
    if found.sha256 != run.dataset.sha256:
        raise UserError(
            f"{found.folder} holds another dataset than this run began with (hash {found.sha256[:12]}, then {run.dataset.sha256[:12]}); import that one again"
        )
    return found.store(run.saves.flat_mib << 20)
