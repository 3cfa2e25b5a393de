"""The replay actor: the one writer of a run's stores, which it locks.

What it has acknowledged survives its death.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from bigdm_ray.replay.store import Receipt, ShardRef, Table
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import run_from_json
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.stores import Stores


@ray.remote
class ReplayActor:
    """Reopens the folder wherever it is made, so a death costs nothing that was acknowledged."""

    def setup(self, run: dict[str, Any], folder: str) -> None:
        """Open the store; retention is replayed over what is on disk, in lock-step without what had
        died by the last checkpoint."""
        settings = run_from_json(run)
        self._home = RunFolder(Path(folder))
        self._lock = self._home.hold_store()  # the one before it may still be dying
        outlived = (
            checkpoint.outlived_shards(self._home.checkpoints)
            if settings.machines.lock_step
            else set()
        )
        self._stores = Stores(settings, self._home, flat_bytes=0).open(leave=outlived)

    def add(self, task: str, *encoded: bytes) -> Receipt:
        """Store what one or more workers have encoded of a task; returns once it is synced."""
        return self._stores.by_task[task].add_encoded(*(data for data in encoded if len(data)))

    def tables(self) -> dict[str, Table]:
        """The living episodes by task."""
        return self._stores.tables

    def shards(self) -> dict[str, list[ShardRef]]:
        """The shards that hold living episodes, by task."""
        return self._stores.living_shards()

    def compact(self) -> dict[str, list[ShardRef]]:
        """Compact where it pays; the shards that hold living episodes, by task."""
        return self._stores.compact()

    def release(self, spared: dict[str, list[str]]) -> dict[str, list[str]]:
        """Unlink what neither lives nor is named by a checkpoint; the names that went, by task.

        Those that are `spared`, by task, are what learners of other machines may still fetch.
        """
        return self._stores.release(checkpoint.named_shards(self._home.checkpoints), spared)

    def problems(self) -> list[str]:
        """What was wrong with the folders when they were opened."""
        return self._stores.problems
