"""Slots: actors that are made, set up, called, and made anew when they die.

An actor's constructor does nothing, so it cannot throw (Ray never retries one); its real set-up is
a method. What a slot is set up with is small and travels by value. Calls in flight when an actor
dies are for its owner to repeat: every call of this project may be repeated. An object that is lost
on its way (`classify_fault`) is not the callee's death: the call is made again, after what it
carried.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from bigdm_ray.algorithms.base import Columns
from bigdm_ray.distributed.deaths import PAYLOAD, Tell, cause_of
from bigdm_ray.distributed.session_folder import last_words
from bigdm_ray.distributed.waiting import answer
from bigdm_ray.errors import RunFailed
from bigdm_ray.replay import shard as shards
from bigdm_ray.training.config import run_from_json
from bigdm_ray.training.evaluation import Evaluator, Score, Scores
from bigdm_ray.training.params import Commands, Weights
from bigdm_ray.training.rollout_worker import RolloutWorker

DEATHS = (RayActorError, OutOfMemoryError)
"""What Ray raises where the process that was called is gone; with the latter Ray has ended it."""


class CallFault(enum.Enum):
    """What became of a call that no program failed."""

    DEATH = "the process that was called is gone"
    ARGUMENT = "what it was called with is gone, with the machine that held it; the callee is well"
    RESULT = "its answer is gone, with the machine that held it"


def classify_fault(error: BaseException) -> CallFault | None:
    """What the error of a call says of the machines; None where it says something of the program.

    Ray wraps what is raised where a call runs, and an argument that cannot be fetched is raised
    there: as the loss of the object, or as the death of the actor that should have made it.
    """
    if isinstance(error, RayTaskError):
        gone = isinstance(error.cause, ObjectLostError | RayActorError)
        return CallFault.ARGUMENT if gone else None
    if isinstance(error, DEATHS):
        return CallFault.DEATH
    return CallFault.RESULT if isinstance(error, ObjectLostError) else None


MAX_DEATHS = 20
"""Deaths and losses in a row, without a call answered between, after which a run gives up."""


class ActorSlot:
    """One place on the ring and the actor that stands there now."""

    def __init__(
        self,
        what: str,
        actor_class: Any,
        options: dict[str, Any],
        setup: tuple[Any, ...],
        tell: Tell | None = None,
        patience_s: float | None = None,
    ) -> None:
        """`tell` hears of deaths; `patience_s`: see `Machines`."""
        self.what = what
        self._class = actor_class
        self._options = options
        self._setup = setup
        self._tell = tell or (lambda kind, cause: None)
        self.patience_s = patience_s
        self.generation = -1
        self._faults = 0
        self._stands = False
        self._since = 0.0
        self.heard = 0.0  # when it last answered a call
        self.handle: Any = None
        self.ready: Any = None
        self.start()

    def start(self) -> None:
        """Make the actor and begin its set-up."""
        self.generation += 1
        self._stands, self._since = False, time.monotonic()
        self.handle = self._class.options(max_restarts=0, **self._options).remote()
        self.ready = self.handle.setup.remote(*self._setup)

    def settle(self, missing: Callable[[], str] | None = None) -> None:
        """Wait for the set-up, which raises here what it could not do.

        Deaths until then count for nothing: the random streams of what is played go by generation,
        and a busy machine that loses a process at its start shall not change a lock-step run.
        `missing` says what is waited for.
        """
        while True:
            generation = self.generation
            try:
                answer(self.ready, missing or (lambda: f"a {self.what}"), self.patience_s)
                self.generation, self._stands = 0, True
                return
            except RayError as error:
                self.handle_failure(generation, error)

    def stands(self) -> bool:
        """Whether the actor is set up. One that has died before that is made anew."""
        if not self._stands and ray.wait([self.ready], timeout=0)[0]:
            generation = self.generation
            try:
                ray.get(self.ready)
                self._stands = True
            except RayError as error:
                self.handle_failure(generation, error)
        return self._stands

    def missing_s(self) -> float:
        """Seconds for which there has been no actor that stands."""
        return 0.0 if self.stands() else time.monotonic() - self._since

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Call a method; its reference, or a list of them."""
        return getattr(self.handle, method).options(num_returns=returns).remote(*arguments)

    def note_answer(self) -> None:
        """A call has been answered: earlier faults are forgiven."""
        self._faults = 0
        self.heard = time.monotonic()

    def handle_failure(self, generation: int, error: BaseException) -> CallFault:
        """See to it that a call which failed can be made again; what became of it.

        A dead actor is made anew, if it is still that generation. Raises an error of the program as
        it is, and RunFailed after too many faults in a row.
        """
        what = classify_fault(error)
        if what is None:
            raise error
        if what is CallFault.DEATH and generation != self.generation:
            return what
        self._faults += 1
        if self._faults > MAX_DEATHS:
            raise RunFailed(give_up_sentence(self.what, what, error))
        self._tell(self.what if what is CallFault.DEATH else PAYLOAD, cause_of(error))
        if what is CallFault.DEATH:
            self.stop()
            self.start()
        return what

    def stop(self) -> None:
        """Kill the actor."""
        ray.kill(self.handle)

    def insist(self, method: str, *arguments: Any, times: int = 1) -> Any:
        """Call until it is answered, making the actor anew as often as it dies; the answer.

        For arguments that travel by value: a lost one is sent again. `times` the patience is had.
        Raises RunFailed.
        """
        patience_s = None if self.patience_s is None else times * self.patience_s
        while True:
            generation = self.generation
            try:
                told = answer(
                    self.call(method, *arguments),
                    lambda: f"the {self.what}'s answer to `{method}`",
                    patience_s,
                )
            except RayError as error:
                self.handle_failure(generation, error)
            else:
                self.note_answer()
                return told


def give_up_sentence(who: str, what: CallFault, error: BaseException) -> str:
    """Why a run ends after so many faults in a row, in one sentence."""
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    fate = "died" if what is CallFault.DEATH else "lost what it was sent or what it answered"
    wrote = last_words(Path(ray.get_runtime_context().get_temp_dir()), str(error))
    last = f"; it wrote last: {wrote}" if wrote else ""
    return f"the {who} {fate} {MAX_DEATHS} times in a row ({why}){last}"


@ray.remote
class RolloutActor:
    """Plays rounds. Between calls it keeps nothing worth saving."""

    def setup(self, run: dict[str, Any]) -> None:
        """Build network and policy; environments are made when they are first played in."""
        torch.set_num_threads(1)
        self._player = RolloutWorker(run_from_json(run))

    def play(
        self,
        task: str,
        weights: Weights | None,
        round: int,
        group: int,
        era: tuple[int, int, int],
        commands: Columns,
        count: int,
        version: tuple[int, int],
    ) -> tuple[bytes, dict[str, Any]]:
        """(the episodes as the bytes of a shard, a summary of a few hundred bytes)."""
        before, cpu = self._player.busy_s, self._player.cpu_s
        played = self._player.play(task, weights, round, group, era, commands, count)
        data = shards.encode(played.episodes) if played.episodes else b""
        summary = asdict(played) | {
            "episodes": len(played.episodes),
            "busy_s": self._player.busy_s - before,
            "cpu_s": self._player.cpu_s - cpu,
        }
        return data, summary | {
            "task": task,
            "round": round,
            "group": group,
            "version": weights.version if weights is not None else version,
        }


@ray.remote
class EvaluatorActor:
    """Scores weights, so that training does not wait for it."""

    def setup(self, run: dict[str, Any]) -> None:
        """Build the network."""
        torch.set_num_threads(1)
        self._evaluator = Evaluator(run_from_json(run))

    def score(
        self, weights: Weights, commands: Commands, episodes: int, purpose: str, round: int
    ) -> Scores:
        """See Evaluator."""
        return self._evaluator.score(weights, commands, episodes, purpose, round)

    def part(
        self,
        task: str,
        weights: Weights,
        command: dict[str, float],
        episodes: int,
        purpose: str,
        number: int,
    ) -> Score:
        """See Evaluator."""
        return self._evaluator.part(task, weights, command, episodes, purpose, number)
