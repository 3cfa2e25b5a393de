"""Stations: actors that are made, set up, called, and made anew when they die.

An actor's constructor does nothing, so it cannot throw (Ray never retries one); its real set-up is a method. What a
station is set up with is small and travels by value. Calls in flight when an actor dies are for its owner to repeat:
every call of this project may be repeated.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
)

from bigdm_ray.algorithms.base import Columns
from bigdm_ray.distributed.session_folder import last_words
from bigdm_ray.errors import RunFailed
from bigdm_ray.replay import shard as shards
from bigdm_ray.training.config import run_from_json
from bigdm_ray.training.evaluation import Evaluator, Score
from bigdm_ray.training.params import Weights
from bigdm_ray.training.player import Player

DEATHS = (ActorDiedError, ActorUnavailableError, RayActorError, ObjectLostError, OwnerDiedError)
"""What Ray raises where a call was lost with a process, not with the program."""

MAX_DEATHS = 20
"""Deaths in a row, without a call answered between them, after which a run gives up."""


class Station:
    """One place on the ring and the actor that stands there now."""

    def __init__(
        self, what: str, actor_class: Any, options: dict[str, Any], setup: tuple[Any, ...]
    ) -> None:
        self.what = what
        self._class = actor_class
        self._options = options
        self._setup = setup
        self.generation = -1
        self._deaths = 0
        self.handle: Any = None
        self.ready: Any = None
        self.start()

    def start(self) -> None:
        """Make the actor and begin its set-up."""
        self.generation += 1
        self.handle = self._class.options(max_restarts=0, **self._options).remote()
        self.ready = self.handle.setup.remote(*self._setup)

    def settle(self) -> None:
        """Wait for the set-up, which raises here what it could not do."""
        while True:
            generation = self.generation
            try:
                ray.get(self.ready)
                return
            except DEATHS as error:
                self.died(generation, error)

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """Call a method; its reference, or a list of them."""
        return getattr(self.handle, method).options(num_returns=returns).remote(*arguments)

    def answered(self) -> None:
        """A call has been answered: earlier deaths are forgiven."""
        self._deaths = 0

    def died(self, generation: int, why: BaseException) -> bool:
        """Make the actor anew if it is still that generation; whether this was done. Raises RunFailed after too many."""
        if generation != self.generation:
            return False
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            wrote = last_words(Path(ray.get_runtime_context().get_temp_dir()), str(why))
            raise RunFailed(
                f"the {self.what} died {MAX_DEATHS} times in a row ({_first_line(why)})"
                + (f"; it wrote last: {wrote}" if wrote else "")
            )
        self.stop()
        self.start()
        return True

    def stop(self) -> None:
        """Kill the actor."""
        ray.kill(self.handle)

    def insist(self, method: str, *arguments: Any) -> Any:
        """Call until it is answered, making the actor anew as often as it dies; the answer."""
        while True:
            generation = self.generation
            try:
                answer = ray.get(self.call(method, *arguments))
            except DEATHS as error:
                self.died(generation, error)
            else:
                self.answered()
                return answer


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@ray.remote
class PlayerActor:
    """Plays rounds. Between calls it keeps nothing worth saving."""

    def setup(self, run: dict[str, Any]) -> None:
        """Build network and policy; environments are made when they are first played in."""
        torch.set_num_threads(1)
        self._player = Player(run_from_json(run))

    def play(
        self,
        weights: Weights | None,
        round: int,
        group: int,
        era: tuple[int, int, int],
        commands: Columns,
        count: int,
        version: tuple[int, int],
    ) -> tuple[bytes, dict[str, Any]]:
        """(the episodes as the bytes of a shard, a summary of a few hundred bytes)."""
        before = self._player.busy_s
        played = self._player.play(weights, round, group, era, commands, count)
        data = shards.encode(played.episodes) if played.episodes else b""
        summary = asdict(played) | {
            "episodes": len(played.episodes),
            "busy_s": self._player.busy_s - before,
        }
        return data, summary | {
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
        self, weights: Weights, command: dict[str, float], episodes: int, purpose: str, round: int
    ) -> Score:
        """See Evaluator."""
        return self._evaluator.score(weights, command, episodes, purpose, round)

    def part(
        self, weights: Weights, command: dict[str, float], episodes: int, purpose: str, number: int
    ) -> Score:
        """See Evaluator."""
        return self._evaluator.part(weights, command, episodes, purpose, number)
