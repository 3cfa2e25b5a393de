"""Starting from another run: `--from FOLDER` takes over its learner, optimizers included, and its best episodes.

This becomes the run's first checkpoint, so that everything after it, a resume too, goes on as from any other. Episodes get foreign
ids in the order of their returns: under a retention of the newest the worst of them are replaced first (Zheng et al. 2022, section 4.3).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.replay.episode import FOREIGN, EpisodeId
from bigdm_ray.replay.store import Store
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint, Counters
from bigdm_ray.training.config import Run, Start, read_run
from bigdm_ray.training.loop import dataset_store
from bigdm_ray.training.run_folder import RunFolder

FIRST_ROUND = 1
"""The first round of a run that starts from another: its inherited episodes count as round 0."""
SHARD_EPISODES = 64


def start_of(folder: Path) -> Start:
    """What run.json says of the run that another starts from. Raises UserError where it has no checkpoint."""
    run, saved = _opened(folder)
    return Start(str(folder.resolve()), run.algorithm.name, saved.counters.learner_step, run.dataset.name if run.dataset else None)


def _opened(folder: Path) -> tuple[Run, Checkpoint]:
    if not (folder / "run.json").is_file():
        raise UserError(f"--from {folder} holds no run: a folder with a run.json is expected, as `run` leaves one")
    run = read_run(folder)
    saved = checkpoint.last(RunFolder(folder).checkpoints, {"algorithm": run.algorithm.name, "task": run.task})
    if saved is None:
        raise UserError(f"--from {folder} has no checkpoint yet: train it to its first one, or start anew without --from")
    return run, saved


def take_over(run: Run, home: RunFolder) -> None:
    """Write the first checkpoint of a run that starts from another, unless it has one. Raises UserError, and RunFailed on a full disk."""
    if run.start is None or checkpoint.saved(home.checkpoints):
        return
    before, saved = _opened(Path(run.start.folder))
    if saved.counters.learner_step != run.start.learner_step:
        raise UserError(
            f"--from {run.start.folder} stands at learner step {saved.counters.learner_step:,}, but this run was to start from "
            f"{run.start.learner_step:,}: begin it anew in another folder"
        )
    theirs = dataset_store(before) if before.dataset else Store(RunFolder(Path(run.start.folder)).store, before.algorithm.retention(), 0, write=False).open()
    for left in home.store.glob("*"):  # of a start that was cut short
        left.unlink()
    mine = Store(home.store, run.algorithm.retention(), 0)
    best = theirs.table.ranked()[: run.algorithm.retention().size or None][::-1]
    for at in range(0, len(best), SHARD_EPISODES):
        part = enumerate(best[at : at + SHARD_EPISODES], at)
        mine.add([dataclasses.replace(theirs.episode(int(position)), id=EpisodeId(0, FOREIGN, number)) for number, position in part])
    counters = Counters(learner_step=saved.counters.learner_step, began_at=saved.counters.learner_step, round=FIRST_ROUND)
    identity = {"algorithm": run.algorithm.name, "task": run.task}
    living: np.ndarray = mine.table.ids
    checkpoint.write(home.checkpoints, counters, mine.living_shards(), 0, saved.learner, living, identity)
