"""Shards for learners on other machines than the driver's, which need not see the run's folder.

Who stands on the driver's machine maps the folder itself. Every other learner has a cache: a folder
of its own in which a shard appears, whole and checked against its reference, when it is first
opened, and from which it goes when nothing lives in it any more. Its bytes come by one actor on the
driver's machine, the shard server, which keeps nothing: where it dies Ray makes it anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from bigdm_ray.distributed.cluster import pinned_options
from bigdm_ray.distributed.session_folder import SessionFolder
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import CARD
from bigdm_ray.replay.files import file_name
from bigdm_ray.replay.shard import SUFFIX, CorruptShard, Shard, ShardRef, check_shard, publish
from bigdm_ray.replay.source import FolderSource
from bigdm_ray.replay.store import Store
from bigdm_ray.training.config import Run
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.start import dataset_store, dataset_stores
from bigdm_ray.training.stores import Stores, store_places

ATTEMPTS = 3
"""Times that a shard is fetched which does not come whole."""


class Home(NamedTuple):
    """Where a run's folder is, and who hands out what is in it to other machines."""

    node: str  # Ray's id of the driver's machine
    folder: str
    server: Any = None  # the shard server's handle, where a learner stands on another machine

    @property
    def here(self) -> bool:
        """Whether this process is on the machine of the folder."""
        return this_node() == self.node


def this_node() -> str:
    """Ray's id of the machine that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


@ray.remote
class ShardServer:
    """Reads files of a run's stores or datasets."""

    def __init__(self, folders: dict[str, str]) -> None:
        """`folders` are those of the tasks."""
        self._folders = {task: Path(folder) for task, folder in folders.items()}

    def names(self, task: str) -> list[str]:
        """The card and the shards of a task's dataset."""
        return [CARD, *sorted(path.name for path in self._folders[task].glob(f"*{SUFFIX}"))]

    def fetch(self, task: str, name: str) -> np.ndarray | None:
        """The bytes of a file `[n]` uint8; None where there is no such file."""
        try:
            return np.asarray(np.memmap(self._folders[task] / file_name(name), np.uint8, "r"))
        except FileNotFoundError:
            return None


def serve_shards(run: Run, folder: Path) -> Any:
    """The handle of a new shard server of a run, on this machine."""
    folders = {
        use.name: str(
            Path(use.dataset.folder).resolve()
            if use.dataset is not None
            else RunFolder(folder).store / store_places(run)[use.name]
        )
        for use in run.tasks
    }
    server: Any = ShardServer
    options = pinned_options() | {"max_restarts": -1, "max_task_retries": -1}
    return server.options(**options).remote(folders)


Fetch = Callable[[str], "np.ndarray | None"]
"""The bytes of a file by its name; None where there is none."""


class ShardCache:
    """A `ShardSource`: shards of another machine's folder, in a folder of this one."""

    def __init__(self, folder: Path, fetch: Fetch) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._fetch = fetch
        self._files = FolderSource(folder)

    def open(self, ref: ShardRef, whole: bool) -> Shard:
        """See ShardSource. What is missing here, or has decayed, is fetched.

        Raises RunFailed for what does not come whole.
        """
        path = self._folder / file_name(ref.name, SUFFIX)
        why = ""
        for _ in range(ATTEMPTS):
            try:
                if not path.is_file():
                    self._take(ref, path)
                return self._files.open(ref, whole)
            except CorruptShard as error:
                why = str(error)
                path.unlink(missing_ok=True)
        raise RunFailed(
            f"shard {ref.name} does not come whole from the machine of the run's folder: {why}; "
            "see to that machine's disk, then --resume"
        )

    def _take(self, ref: ShardRef, path: Path) -> None:
        data = self._fetch(ref.name)
        if data is None:
            raise CorruptShard("there is no such file")
        view = memoryview(data.data)
        crc = check_shard(view, body=True)
        if (ref.size, ref.crc) not in ((None, None), (len(view), crc)):
            raise CorruptShard(f"it is another one than {ref.name} was when it was acknowledged")
        publish(path, view)

    def drop(self, names: Iterable[str]) -> None:
        """Remove shards in which nothing lives, and the columns beside them."""
        for name in names:
            for path in (self._folder / name, *self._folder.glob(f".{name}.*.npy")):
                path.unlink(missing_ok=True)


class LearnerShards:
    """A learner's stores, by task: in the run's folder, on another machine in caches."""

    def __init__(self, run: Run, home: Home) -> None:
        """Raises UserError for a dataset that is gone or another one, RunFailed."""
        self._home = home
        self._patience_s = run.machines.patience_s
        self._caches: dict[str, ShardCache] = {}
        self._folder = None if home.here else SessionFolder("shards", sockets=False)
        flat = run.saves.flat_mib << 20
        if run.offline:
            self.stores: dict[str, Store] = (
                dataset_stores(run)
                if self._folder is None
                else {
                    use.name: self._dataset(run, number, self._folder.path)
                    for number, use in enumerate(run.tasks)
                }
            )
        elif self._folder is None:
            here = RunFolder(Path(home.folder))
            self.stores = Stores(run, here, flat, write=False).by_task
        else:
            there = RunFolder(self._folder.path)
            self.stores = Stores(run, there, flat, write=False, source=self._cache).by_task

    def _cache(self, task: str, folder: Path) -> ShardCache:
        self._caches[task] = ShardCache(folder, lambda name: self._ask("fetch", task, name))
        return self._caches[task]

    def _dataset(self, run: Run, number: int, folder: Path) -> Store:
        """The episodes of a task's dataset, all of which are fetched."""
        use = run.tasks[number]
        assert use.dataset is not None
        mine = folder / str(number)
        cache = ShardCache(mine, lambda name: self._ask("fetch", use.name, name))
        for name in self._ask("names", use.name):
            if name == CARD:
                card = self._ask("fetch", use.name, name)
                if card is None:
                    raise UserError(
                        f"{use.dataset.folder} is not a dataset any more: it has no {CARD}"
                    )
                publish(mine / CARD, card.data)
            else:
                cache.open(ShardRef(name), whole=False)
        fetched = dataclasses.replace(use.dataset, folder=str(mine))
        return dataset_store(run, dataclasses.replace(use, dataset=fetched))

    def _ask(self, method: str, *arguments: str) -> Any:
        """What the shard server answers. Raises RunFailed where it does not, or not in time."""
        call = getattr(self._home.server, method)
        try:
            return ray.get(call.remote(*arguments), timeout=self._patience_s)
        except RayTaskError:
            raise
        except RayError as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunFailed(
                f"the learner cannot reach the machine of the run's folder for {arguments[-1]} "
                f"({why[:200]}); --resume goes on from the last checkpoint"
            ) from None

    def forget(self, task: str, names: list[str]) -> None:
        """Let go of shards in which nothing lives."""
        self.stores[task].forget(names)
        if task in self._caches:
            self._caches[task].drop(names)

    def close(self) -> None:
        """Remove the cache."""
        if self._folder is not None:
            self._folder.remove()
