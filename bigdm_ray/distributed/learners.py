"""The learners: one actor a rank, joined by torch.distributed (NCCL on GPUs, gloo on CPUs), that
fail and return together.

Every rank maps all shards, draws the same rows and fetches its share. Each is handed the last
checkpoint by the driver, which alone reads it, and answers at which step it stands and with which
weights: ranks that are not alike are refused. When a rank dies all are made anew and go back to the
last checkpoint; the steps since then are owed again. An error of the program is no death: the rank
leaves the group, so that the others do not wait for it, and the run ends.
"""

from __future__ import annotations

import datetime
import os
import socket
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError

from bigdm_ray.distributed.actors import MAX_DEATHS, CallFault, classify_fault, give_up_sentence
from bigdm_ray.distributed.cluster import interface_of, learner_options, loopback
from bigdm_ray.distributed.deaths import Tell, peer_or_cause
from bigdm_ray.distributed.shard_server import Home, LearnerShards, serve_shards, this_node
from bigdm_ray.distributed.waiting import answer
from bigdm_ray.errors import RunFailed
from bigdm_ray.replay.mixture import Mixture
from bigdm_ray.replay.store import ShardRef
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import Run, run_from_json
from bigdm_ray.training.learner import Learner, LearnerProgress
from bigdm_ray.training.parallel import PeerLost
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder

GROUP_TIMEOUT_S = 300
"""Seconds that ranks wait for each other in a step: one may have shards to fetch first."""
Moves = tuple[list[ShardRef], list[ShardRef], list[str]]
"""Of a task: shards to take in; shards that living episodes have moved to; names of shards to let
go of."""


Saved = tuple[int, dict[str, np.ndarray]]
"""Learner step and state of a checkpoint."""


class Standing(NamedTuple):
    """Where a rank stands before its first step."""

    step: int
    crc: int  # of its weights; 0 where it is the only rank
    machine: str
    versions: str


@ray.remote
class LearnerActor:
    """One rank: a Learner, and a reader of the run's stores."""

    _failed: BaseException | None = None

    def node(self) -> str:
        """Ray's id of the machine that this rank has been given."""
        return this_node()

    def address(self) -> str:
        """Where the group may meet: a file for ranks of one machine, else a port of this node."""
        if loopback():
            kept = Path(ray.get_runtime_context().get_temp_dir())
            return f"file://{kept / f'meet-{uuid.uuid4().hex}'}"
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def setup(
        self,
        run: dict[str, Any],
        home: Home,
        rank: int,
        world: int,
        meet: str,
        incarnation: int,
        saved: Saved | None,
    ) -> Standing:
        """Join the group, build, take over what was `saved`, and open the stores."""
        settings = run_from_json(run)
        torch.set_num_threads(settings.machines.threads)
        self._incarnation = incarnation
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
            if interface := interface_of(address := ray.util.get_node_ip_address()):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            try:
                dist.init_process_group(
                    backend,
                    init_method=meet,
                    rank=rank,
                    world_size=world,
                    timeout=datetime.timedelta(seconds=GROUP_TIMEOUT_S),
                )
            except dist.DistError as error:  # one has died, or the port was taken since
                raise PeerLost(
                    f"the learners have not met at {meet}, seen from {address}: {error}"
                ) from None
        if saved is not None:
            self._learner.load(saved[1], saved[0])
        self._shards = LearnerShards(settings, home)
        return self._standing()

    def _standing(self) -> Standing:
        crc = 0
        if self._learner.world > 1:
            for _, values in sorted(self._learner.weights(self._incarnation).arrays.items()):
                crc = zlib.crc32(np.ascontiguousarray(values).data, crc)
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("bigdm-ray", "torch"))
        return Standing(self._learner.step, crc, ray.util.get_node_ip_address(), versions)

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
        stores = self._shards.stores
        for task, (taken, moved, gone) in moves.items():
            store = stores[task]
            for ref in taken:
                store.adopt(ref)
            store.follow(moved)
            self._shards.forget(task, gone)
            if store.problems:
                raise RunFailed(
                    f"the learner cannot read what the replay actor has stored: {store.problems[0]}"
                )
        drawn = {task: store for task, store in stores.items() if len(store.table)}
        progress = self._learner.update(drawn, steps)
        return (
            self._learner.weights(self._incarnation) if self._learner.rank == 0 else None
        ), progress

    def state(self) -> Saved:
        """Learner step, and what a checkpoint keeps."""
        return self._learner.step, self._learner.state()

    def close(self) -> None:
        """Remove what this rank has put on its machine's disk."""
        self._shards.close()


CLOSE_S = 5.0
"""Seconds that ranks have to remove their caches; whoever does not is killed, and the next one
that stands on that machine removes them."""


def check_alike(standing: list[Standing]) -> None:
    """Raise RunFailed unless all ranks stand at one step with the same weights."""
    first = standing[0]
    for number, one in enumerate(standing):
        if (one.step, one.crc) != (first.step, first.crc):
            told = " and ".join(
                f"rank {rank} on {at.machine} at step {at.step:,} with weights {at.crc:08x} "
                f"({at.versions})"
                for rank, at in ((0, first), (number, one))
            )
            raise RunFailed(
                f"the learners do not stand alike: {told}; all were handed the same checkpoint or "
                "seed, so their machines compute or install otherwise: have the same versions and "
                "processors on all, or --learners 1, then --resume"
            )


class LearnerGroup:
    """The group, seen from the driver. There are no ranks before `place`."""

    def __init__(self, run: Run, folder: Path, incarnation: int, tell: Tell) -> None:
        """`tell` hears of deaths."""
        self._run = run
        self._folder = folder
        self._tell = tell
        self.incarnation = incarnation
        self.generation = 0
        self._deaths = 0
        self.step = 0
        self._asked = 1  # learner steps of the last call
        self._ranks: list[Any] = []
        self._nodes: list[Any] = []  # references to where they are
        self._home = Home(this_node(), str(folder))
        self._patience_s = run.machines.patience_s

    def place(self) -> None:
        """Ask for a machine for each rank."""
        options, actor = learner_options(self._run), cast(Any, LearnerActor)
        for _ in range(self._run.machines.learners):
            self._ranks.append(actor.options(max_restarts=0, **options).remote())
        self._nodes = [rank.node.remote() for rank in self._ranks]

    def start(self) -> None:
        """Wait until all ranks have met and stand at the last checkpoint's step (`step`).

        Raises RunFailed where they do not stand alike, or there is no machine for one.
        """
        run = self._run
        world = run.machines.learners
        while True:
            if not self._ranks:
                self.place()
            try:
                self._serve(self._answer(self._nodes, self._without_place))
                meet = self._answer(self._ranks[0].address.remote(), lambda: "the first learner")
                meet = meet if world > 1 else ""
                saved = checkpoint.last_checkpoint(
                    RunFolder(self._folder).checkpoints, run.identity
                )
                state = saved and ray.put((saved.counters.learner_step, saved.learner))
                del saved
                settings = run.to_json()
                ready = [
                    rank.setup.remote(settings, self._home, i, world, meet, self.incarnation, state)
                    for i, rank in enumerate(self._ranks)
                ]
                standing = self._answer(ready, lambda: f"{world} learner(s) to be set up")
                check_alike(standing)
                self.step = standing[0].step
                return
            except RayError as error:
                if not self.is_death(error):
                    raise
                self._bury(error)

    def _answer(self, refs: Any, what: Callable[[], str], times: int = 1) -> Any:
        """What is referred to, waited for as long as patience is, `times` over."""
        return answer(refs, what, self._patience_s and max(1, times) * self._patience_s)

    def _without_place(self) -> str:
        there, _ = ray.wait(self._nodes, num_returns=len(self._nodes), timeout=0)
        asked = learner_options(self._run)
        each = f"{asked['num_cpus']} CPU" + (", 1 GPU" if asked["num_gpus"] else "")
        count = len(self._nodes) - len(there)
        return f"a machine for {count} of {len(self._nodes)} learner(s) ({each} each)"

    def _serve(self, nodes: list[str]) -> None:
        """Have a shard server where a rank is on another machine than the run's folder."""
        if self._home.server is None and set(nodes) != {self._home.node}:
            self._home = self._home._replace(server=serve_shards(self._run, self._folder))

    def _bury(self, why: BaseException) -> None:
        self._tell("learner", peer_or_cause(why))
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise RunFailed(give_up_sentence("learner", CallFault.DEATH, why))
        self._kill()

    def stop(self) -> None:
        """End all ranks and the shard server."""
        if self._home.server is not None:
            last = [rank.close.remote() for rank in self._ranks]
            ray.wait(last, num_returns=len(last), timeout=CLOSE_S)
        self._kill()
        if self._home.server is not None:
            ray.kill(self._home.server)
            self._home = self._home._replace(server=None)

    def _kill(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    def update(self, moves: dict[str, Moves], steps: int) -> list[Any]:
        """References to rank 0's weights and to each rank's progress."""
        self._asked = steps
        pairs = [rank.update.options(num_returns=2).remote(moves, steps) for rank in self._ranks]
        return [pairs[0][0], *(pair[1] for pair in pairs)]

    def progress(self, answers: list[Any], steps: int) -> LearnerProgress:
        """Wait for what the ranks have made of an update: rank 0's, with the CPU seconds of all."""
        told: list[LearnerProgress] = self._answer(answers, lambda: f"{steps} learner steps", steps)
        return replace(told[0], cpu_s=sum(one.cpu_s for one in told))

    def state(self) -> Saved:
        """Rank 0's state; the other ranks equal it."""
        asked = self._ranks[0].state.remote()
        before = 2 * self._asked  # updates that it stands behind
        state: Saved = self._answer(asked, lambda: "the learner's state, to be saved", before)
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
        telling = error
        if isinstance(error, RayTaskError) and isinstance(error.cause, PeerLost):
            for one in answers:
                try:
                    ray.get(one)
                except RayError as other:
                    if not self.is_death(other):
                        return cast(BaseException, other)
                    if classify_fault(other) is not None:
                        telling = other
        return telling

    @staticmethod
    def is_death(error: BaseException) -> bool:
        """Whether an error of a call means that a rank is gone, or something that it was to have.

        All ranks are made anew then: where one has not answered, the others have stopped half-way.
        """
        lost = isinstance(error, RayTaskError) and isinstance(error.cause, PeerLost)
        return lost or classify_fault(error) is not None
