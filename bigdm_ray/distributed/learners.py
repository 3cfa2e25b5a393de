"""The learners: one actor a rank, joined by torch.distributed (NCCL on GPUs, gloo on CPUs), that fail and return together.

Every rank maps all shards, draws the same rows and fetches its share. When a rank dies all are made
anew and go back to the last checkpoint; the steps since then are owed again. An error of the
program is no death: the rank leaves the group, so that the others do not wait for it, and the run
ends.
"""

from __future__ import annotations

import datetime
import socket
import uuid
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError

from bigdm_ray.distributed.actors import MAX_DEATHS, CallFault, classify_fault, give_up_sentence
from bigdm_ray.distributed.cluster import learner_options, loopback
from bigdm_ray.errors import RunFailed
from bigdm_ray.replay.mixture import Mixture
from bigdm_ray.replay.store import ShardRef
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import Run, run_from_json
from bigdm_ray.training.learner import Learner, LearnerProgress
from bigdm_ray.training.parallel import PeerLost
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.start import dataset_stores
from bigdm_ray.training.stores import Stores

Moves = tuple[list[ShardRef], list[ShardRef], list[str]]
"""Of a task: shards to take in; shards that living episodes have moved to; names of shards to let go of."""


@ray.remote
class LearnerActor:
    """One rank: a Learner, and a reader of the run's stores."""

    _failed: BaseException | None = None

    def address(self) -> str:
        """Where the group may meet: a file for ranks of one machine, else a port of this node."""
        if loopback():
            kept = Path(ray.get_runtime_context().get_temp_dir())
            return f"file://{kept / f'meet-{uuid.uuid4().hex}'}"
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def setup(
        self, run: dict[str, Any], folder: str, rank: int, world: int, meet: str, incarnation: int
    ) -> int:
        """Join the group, build, and take over the last checkpoint; the learner step that it stands at."""
        settings = run_from_json(run)
        torch.set_num_threads(settings.machines.threads)
        self._incarnation = incarnation
        home = RunFolder(Path(folder))
        machines = settings.machines
        signatures = {use.name: use.task.signature() for use in settings.tasks}
        self._learner = Learner(
            settings.learned_algorithm,
            signatures,
            settings.seed,
            machines.device,
            rank,
            world,
            compile=machines.compile,
            precision=machines.precision,
            mixture=Mixture({use.name: use.weight for use in settings.tasks}),
        )
        if world > 1:
            backend = "nccl" if self._learner.device.type == "cuda" else "gloo"
            try:
                dist.init_process_group(
                    backend,
                    init_method=meet,
                    rank=rank,
                    world_size=world,
                    timeout=datetime.timedelta(seconds=60),
                )
            except dist.DistError as error:  # one has died, or the port was taken since
                raise PeerLost(f"the learners have not met at {meet}: {error}") from None
        flat = settings.saves.flat_mib << 20
        self._stores = (
            dataset_stores(settings)
            if settings.offline
            else Stores(settings, home, flat, write=False).by_task
        )
        saved = checkpoint.last_checkpoint(home.checkpoints, settings.identity)
        if saved is not None:
            self._learner.load(saved.learner, saved.counters.learner_step)
        return self._learner.step

    def update(self, moves: dict[str, Moves], steps: int) -> tuple[Weights | None, LearnerProgress]:
        """Take in shards, then take learner steps; (rank 0's weights, progress)."""
        if self._failed is not None:
            raise self._failed
        try:
            return self._update(moves, steps)
        except BaseException as error:
            if dist.is_initialized():
                dist.destroy_process_group()
                self._failed = error  # what waits behind this call fails in the same way
            raise

    def _update(
        self, moves: dict[str, Moves], steps: int
    ) -> tuple[Weights | None, LearnerProgress]:
        for task, (taken, moved, gone) in moves.items():
            store = self._stores[task]
            for ref in taken:
                store.adopt(ref)
            store.follow(moved)
            store.forget(gone)
            if store.problems:
                raise RunFailed(
                    f"the learner cannot read what the replay actor has stored: {store.problems[0]}"
                )
        drawn = {task: store for task, store in self._stores.items() if len(store.table)}
        progress = self._learner.update(drawn, steps)
        return (
            self._learner.weights(self._incarnation) if self._learner.rank == 0 else None
        ), progress

    def state(self) -> tuple[int, dict[str, np.ndarray]]:
        """Learner step, and what a checkpoint keeps."""
        return self._learner.step, self._learner.state()


class LearnerGroup:
    """The group, seen from the driver. There are no ranks before `start`."""

    def __init__(self, run: Run, folder: Path, incarnation: int) -> None:
        self._run = run
        self._folder = folder
        self.incarnation = incarnation
        self.generation = 0
        self._deaths = 0
        self.step = 0
        self._ranks: list[Any] = []

    def start(self) -> None:
        """Make all ranks; returns when they have met and stand at the last checkpoint's step (`step`)."""
        run = self._run
        options = learner_options(run)
        world = run.machines.learners
        while True:
            actor: Any = LearnerActor
            for _ in range(world):
                self._ranks.append(actor.options(max_restarts=0, **options).remote())
            try:
                meet = ray.get(self._ranks[0].address.remote()) if world > 1 else ""
                settings = run.to_json()
                ready = [
                    rank.setup.remote(settings, str(self._folder), i, world, meet, self.incarnation)
                    for i, rank in enumerate(self._ranks)
                ]
                self.step = ray.get(ready)[0]
                return
            except RayError as error:
                if not self.is_death(error):
                    raise
                self._bury(error)

    def _bury(self, why: BaseException) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise RunFailed(give_up_sentence("learner", CallFault.DEATH, why))
        self.stop()

    def stop(self) -> None:
        """Kill all ranks."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    def update(self, moves: dict[str, Moves], steps: int) -> list[Any]:
        """References to rank 0's weights and to each rank's progress."""
        pairs = [rank.update.options(num_returns=2).remote(moves, steps) for rank in self._ranks]
        return [pairs[0][0], *(pair[1] for pair in pairs)]

    def state(self) -> tuple[int, dict[str, np.ndarray]]:
        """Rank 0's state; the other ranks equal it."""
        state: tuple[int, dict[str, np.ndarray]] = ray.get(self._ranks[0].state.remote())
        return state

    def note_answer(self) -> None:
        """An update has been answered: earlier deaths are forgiven."""
        self._deaths = 0

    def handle_death(self, generation: int, why: BaseException) -> bool:
        """Make all ranks anew if they are still that generation; whether this was done."""
        if generation != self.generation:
            return False
        self.generation += 1
        self.incarnation += 1
        self._bury(why)
        self.start()
        return True

    def verdict(self, error: BaseException, answers: list[Any]) -> BaseException:
        """The error that counts of an update that has ended in `error`: the program's before all.

        Where one rank fails, its peers fail in their collective: what they say tells nothing.
        """
        if isinstance(error, RayTaskError) and isinstance(error.cause, PeerLost):
            for answer in answers:
                try:
                    ray.get(answer)
                except RayError as other:
                    if not self.is_death(other):
                        return cast(BaseException, other)
        return error

    @staticmethod
    def is_death(error: BaseException) -> bool:
        """Whether an error of a call means that a rank is gone, or something that it was to have.

        All ranks are made anew then: where one has not answered, the others have stopped half-way.
        """
        lost = isinstance(error, RayTaskError) and isinstance(error.cause, PeerLost)
        return lost or classify_fault(error) is not None
