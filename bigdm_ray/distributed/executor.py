"""RayExecutor: the verbs of the loop done by actors, one call at a time.

With `--machines.lock-step true` it equals `--local`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError

from bigdm_ray import stopping
from bigdm_ray.algorithms.base import Columns
from bigdm_ray.distributed.actors import ActorSlot, CallFault, EvaluatorActor, RolloutActor
from bigdm_ray.distributed.cluster import cpu_options, pinned_options
from bigdm_ray.distributed.deaths import Nodes, Tell
from bigdm_ray.distributed.learners import LearnerGroup, Moves
from bigdm_ray.distributed.pool import WorkerPool
from bigdm_ray.distributed.replay import ReplayActor
from bigdm_ray.distributed.waiting import answer
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.living import LivingEpisodes
from bigdm_ray.replay.shard import encode
from bigdm_ray.replay.store import PREFIX, Receipt, ShardRef, Table
from bigdm_ray.training.checkpoint import Checkpoint
from bigdm_ray.training.config import Run
from bigdm_ray.training.evaluation import Scores
from bigdm_ray.training.learner import LearnerProgress
from bigdm_ray.training.loop import RoundResult
from bigdm_ray.training.params import Commands, Weights
from bigdm_ray.training.start import dataset_stores
from bigdm_ray.training.stores import check_living, shards_below, store_places


class ShardTracker:
    """What the learners have not been told yet of the shards that they map."""

    def __init__(self, living: list[ShardRef]) -> None:
        # the last save: no shard up to `_newest` holds anything living, but for `_living`
        self._newest, self._living = "", set[str]()
        self.restart(living)

    def restart(self, living: list[ShardRef]) -> None:
        """Learners that know nothing are told of all shards that hold living episodes."""
        self._forget()
        self._taken = list(living)
        self._told = {ref.name for ref in living}

    def _forget(self) -> None:
        self._taken, self._moved, self._gone = list[ShardRef](), list[ShardRef](), list[str]()

    def note_stored(self, shards: list[ShardRef]) -> None:
        """Shards that a receipt names.

        It may arrive after a save that has left its episodes elsewhere, and has unlinked them.
        """
        for ref in shards:
            if ref.name not in self._told and (ref.name > self._newest or ref.name in self._living):
                self._taken.append(ref)
                self._told.add(ref.name)

    def note_saved(self, living: list[ShardRef], released: list[str]) -> None:
        """A save has left the living episodes in these shards; those hold none, or are unlinked."""
        names = [ref.name for ref in living]
        # these ascend, and none comes twice
        numbered = [name for name in (*names, *released) if name.startswith(PREFIX)]
        self._newest, self._living = max([self._newest, *numbered]), set(names)
        gone = set(released)
        self._taken = [ref for ref in self._taken if ref.name not in gone]
        # what an earlier save said may be unlinked by now
        self._moved = [ref for ref in self._moved if ref.name not in gone]
        self._moved += [ref for ref in living if ref.name not in self._told]
        self._told = (self._told | self._living) - gone
        self._gone += released

    def shards_left(self, living: list[ShardRef]) -> list[str]:
        """The shards that the learners were told of, and in which nothing lives any more."""
        return sorted(self._told - {ref.name for ref in living})

    def moves(self) -> Moves:
        """All of it, once: from now on it is the learners'."""
        moves = (self._taken, self._moved, self._gone)
        self._forget()
        return moves


class RayExecutor:
    """Players, the replay actor, the learners and the evaluator, each remade when it dies."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        resumed: Checkpoint | None,
        incarnation: int,
        rolled_back: Callable[[int, int], None],
        tell: Tell,
    ) -> None:
        """`roll_back(learner step, incarnation)` is told when the learners went back to a
        checkpoint.

        `tell` hears of deaths.
        """
        self._run = run
        self._tell = tell
        self._nodes = None if run.machines.address == "local" else Nodes(tell)
        self._incarnation = incarnation
        self._rolled_back = rolled_back
        self.workers: list[ActorSlot] = []
        self.pool = WorkerPool(self.workers)
        self._replay: ActorSlot | None = None  # a dataset has no writer: learners map it themselves
        self._evaluator: ActorSlot | None = None
        self._patience_s = run.machines.patience_s
        self.learners = LearnerGroup(run, folder.resolve(), incarnation, self._died)
        try:
            self._begin(folder.resolve(), resumed)
        except BaseException:
            self.close()
            raise

    def _begin(self, folder: Path, resumed: Checkpoint | None) -> None:
        """Make all actors and wait until they stand: the learners are asked for first."""
        run, settings = self._run, self._run.to_json()
        self.learners.place()
        if not run.offline:
            where = (settings, str(folder))
            self._replay = self._slot("replay actor", ReplayActor, pinned_options(), where)
        self._evaluator = self._slot("evaluator", EvaluatorActor, cpu_options(0), (settings,))
        plays = not run.offline and run.rollouts.own
        for _ in range(run.machines.actors if plays else 0):
            worker = self._slot("rollout actor", RolloutActor, cpu_options(), (settings,))
            self.workers.append(worker)
        self.learners.start()
        for slot in self._slots():
            slot.settle(self.pool.count_missing if slot in self.workers else None)
        self._places = store_places(run)
        tables: dict[str, Table] = (
            self.replay.insist("tables")
            if self._replay
            else {task: store.table for task, store in dataset_stores(run).items()}
        )
        self.living = {
            task: LivingEpisodes.of(table, run.retention) for task, table in tables.items()
        }
        if resumed and self._replay:
            check_living(self._places, tables, self.replay.insist("problems"), resumed)
        self._trackers = {task: ShardTracker(shards) for task, shards in self._all_shards().items()}
        self._step = self.learners.step
        self._weights_ref: Any = None
        self._refresh()

    def _slot(
        self, what: str, actor: Any, options: dict[str, Any], setup: tuple[Any, ...]
    ) -> ActorSlot:
        return ActorSlot(what, actor, options, setup, self._died, self._run.machines.patience_s)

    def _died(self, what: str, cause: str) -> None:
        self._tell(what.removesuffix(" actor"), cause)
        self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        if self._nodes is not None:
            self._nodes.look()

    def _slots(self) -> list[ActorSlot]:
        slots = [*self.workers, self._evaluator, self._replay]
        return [slot for slot in slots if slot is not None]

    @property
    def evaluator(self) -> ActorSlot:
        """The evaluator."""
        assert self._evaluator is not None
        return self._evaluator

    @property
    def replay(self) -> ActorSlot:
        """The replay actor, of a run that plays."""
        assert self._replay is not None
        return self._replay

    def _all_shards(self) -> dict[str, list[ShardRef]]:
        living: dict[str, list[ShardRef]] = self._replay.insist("shards") if self._replay else {}
        return living

    # --- shards on their way to the learners

    def moves(self) -> dict[str, Moves]:
        """What the learners have not been told yet, by task; it is theirs from now on."""
        return {task: tracker.moves() for task, tracker in self._trackers.items()}

    def note_stored(self, task: str, receipt: Receipt) -> None:
        """Note an acknowledged round."""
        self.living[task].learn(receipt.added)
        self._trackers[task].note_stored(receipt.shards)

    def note_update(self, progress: LearnerProgress, weights_ref: Any) -> None:
        """Note an answered update; one that a later one has overtaken brings no news."""
        self.learners.note_answer()
        if progress.step >= self._step:
            self._step, self._weights_ref = progress.step, weights_ref

    def learners_lost(self, generation: int, error: BaseException, answers: list[Any]) -> None:
        """Make the learners anew, unless that is done, and have their weights. Raises what is none.

        `answers` are references to what each rank has made of the call that failed.
        """
        if self._mended(generation, error, answers):
            self._refresh()

    def _mended(self, generation: int, error: BaseException, answers: list[Any]) -> bool:
        """Whether the learners had to be made anew; they know nothing then, so are told all."""
        error = self.learners.verdict(error, answers)
        if not self.learners.is_death(error):
            raise error
        if not self.learners.handle_death(generation, error):
            return False
        for task, names in self._all_shards().items():
            self._trackers[task].restart(names)
        self._step = self.learners.step
        self._rolled_back(self._step, self.learners.incarnation)
        return True

    def _refresh(self) -> None:
        """Have the newest weights at hand, from an update of no steps that also takes in all
        shards."""
        while True:
            generation = self.learners.generation
            weights, *progress = self.learners.update(self.moves(), 0)
            try:
                self.learners.progress(progress, 0)
            except RayError as error:
                self._mended(generation, error, progress)
            else:
                self._weights_ref = weights
                return

    def renew_weights(self, weights: Any) -> Any:
        """A reference to weights in place of one whose weights are gone: the newest."""
        if weights is self._weights_ref:
            self._refresh()
        return self._weights_ref

    @property
    def weights_ref(self) -> Any:
        """Reference to the newest weights: it travels, the driver reads it only to evaluate."""
        return self._weights_ref

    # --- the verbs

    def play(
        self, task: str, round: int, saves: int, commands: Columns, count: int, random: bool
    ) -> RoundResult:
        """See Executor."""
        groups = [
            g
            for g in range(self._run.groups)
            if self._run.share(count, g).stop > self._run.share(count, g).start
        ]
        shares = {group: self._run.share(count, group) for group in groups}
        parts: list[tuple[Any, dict[str, Any]]] = []
        while True:
            with stopping.release_signals():
                parts = parts or self._played(task, round, saves, commands, shares, random)
            generation = self.replay.generation
            try:
                shared = [data for data, _ in parts]
                receipt: Receipt = answer(
                    self.replay.call("add", task, *shared),
                    lambda: "the replay actor to store a round",
                    self._patience_s,
                )
                break
            except RayError as error:
                if self.replay.handle_failure(generation, error) is CallFault.ARGUMENT:
                    parts = []
        self.replay.note_answer()
        self.note_stored(task, receipt)
        return round_result(receipt, [summary for _, summary in parts])

    def _played(
        self,
        task: str,
        round: int,
        saves: int,
        commands: Columns,
        shares: dict[int, slice],
        random: bool,
    ) -> list[tuple[Any, dict[str, Any]]]:
        """For each group a reference to its episodes, and their summary."""

        patience_s = {
            group: None
            if self._patience_s is None
            else self._patience_s * (share.stop - share.start)
            for group, share in shares.items()
        }

        def submit(group: int) -> tuple[Any, ActorSlot, int, list[Any]]:
            call = self.submit(task, round, group, saves, commands, shares[group], random)
            return self._weights_ref, *call

        calls = {group: submit(group) for group in shares}
        parts = []
        for group in shares:
            while True:
                weights, slot, generation, (data, summary) = calls[group]
                try:
                    told = self._summary(summary, slot, patience_s[group])
                except RayError as error:
                    if slot.handle_failure(generation, error) is CallFault.ARGUMENT:
                        self.renew_weights(weights)
                else:
                    if told is not None:
                        parts.append((data, told))
                        slot.note_answer()
                        break
                calls[group] = submit(group)
        return parts

    def _summary(
        self, summary: Any, slot: ActorSlot, patience_s: float | None
    ) -> dict[str, Any] | None:
        """What a rollout actor says of its share of a round; None where another should play it."""
        told: dict[str, Any] | None = answer(
            summary,
            lambda: "a rollout actor to play its share of a round",
            patience_s,
            lambda: self.pool.stuck(slot) and self.pool.others(),
        )
        return told

    def submit(
        self,
        task: str,
        round: int,
        group: int,
        saves: int,
        commands: Columns,
        share: slice,
        random: bool,
    ) -> tuple[ActorSlot, int, list[Any]]:
        """Hand a group's share of a round to its worker: (slot, its generation, [episodes,
        summary])."""
        slot = self.pool.choose(group)
        mine = {name: values[share] for name, values in commands.items()}
        weights = None if random else self._weights_ref
        era = (saves, self._incarnation, self.pool.attempt(group, slot))
        version = (self.learners.incarnation, 0)
        count = share.stop - share.start
        refs = slot.call("play", task, weights, round, group, era, mine, count, version, returns=2)
        return slot, slot.generation, refs

    def store(self, task: str, episodes: list[Episode]) -> Receipt:
        """See Executor. What a dying actor has stored already is not stored again."""
        receipt: Receipt = self.replay.insist("add", task, encode(episodes))
        self.note_stored(task, receipt)
        return receipt

    def learn(self, steps: int) -> LearnerProgress:
        """See Executor. After a death the steps since the last checkpoint are taken again."""
        target = self._step + steps
        progress = LearnerProgress(self._step)
        while self._step < target:
            generation = self.learners.generation
            weights, *answers = self.learners.update(self.moves(), target - self._step)
            try:
                progress = self.learners.progress(answers, target - self._step)
                self.note_update(progress, weights)
            except RayError as error:
                self.learners_lost(generation, error, answers)
        return progress

    def tables(self) -> dict[str, Table]:
        """See Executor."""
        return {task: living.table for task, living in self.living.items()}

    def weights(self) -> Weights:
        """See Executor."""
        while True:
            reference = self._weights_ref
            try:
                weights: Weights = ray.get(reference)
                return weights
            except ObjectLostError:
                self.renew_weights(reference)

    def score(
        self,
        weights: Weights,
        commands: Commands,
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Scores:
        """See Executor. The evaluator tells nothing before it has played all."""
        count = episodes * len(commands)
        scores: Scores = self.evaluator.insist(
            "score", weights, commands, episodes, purpose, round, times=max(1, count)
        )
        if on_end is not None:
            on_end(count)
        return scores

    def save(self, write: Callable[[int, dict[str, np.ndarray], list[ShardRef]], Any]) -> None:
        """See Executor."""
        self._look_at_nodes()
        while True:
            generation = self.learners.generation
            try:
                step, state = self.learners.state()
                break
            except RayError as error:
                self.learners_lost(generation, error, [])
        self._step = step
        if self._replay is None:
            write(step, state, [])
            return
        shards: dict[str, list[ShardRef]] = self.replay.insist("compact")
        named = [
            ref for task, own in shards.items() for ref in shards_below(self._places[task], own)
        ]
        write(step, state, named)
        # what the learners hear of only now is unlinked one save later
        left = {task: tracker.shards_left(shards[task]) for task, tracker in self._trackers.items()}
        gone: dict[str, list[str]] = self.replay.insist("release", left)
        for task, tracker in self._trackers.items():
            tracker.note_saved(shards[task], [*left[task], *gone[task]])

    def close(self) -> None:
        """End all actors: the Ray that they live in may be its user's, and go on."""
        for slot in self._slots():
            slot.stop()
        self.learners.stop()


def round_result(receipt: Receipt, summaries: list[dict[str, Any]]) -> RoundResult:
    """A stored round from what its workers said."""
    version = summaries[0]["version"]
    problems = [problem for summary in summaries for problem in summary["problems"]]
    total = {
        name: sum(summary[name] for summary in summaries)
        for name in ("env_steps", "discarded", "busy_s", "cpu_s")
    }
    return RoundResult(
        receipt.added,
        (version[0], version[1]),
        total["env_steps"],
        total["discarded"],
        problems,
        total["busy_s"],
        summaries[0]["task"],
        total["cpu_s"],
    )
