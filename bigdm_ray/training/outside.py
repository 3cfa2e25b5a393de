"""Episodes of others on their way into a live run, and what those others are told of it.

A run that is served and its server share an `Outside`. The server offers episodes, from any thread;
the loop takes them at the ring's own step, stores them, counts them by arrival and acknowledges
them: they are durable then. The loop publishes the newest weights and the living episodes, from
which the server acts and makes commands as the run's own rollouts would. What has an id that was
counted is acknowledged and not stored again, in a resumed run too (`Counters.outside`).

The order in which episodes arrive is the world's, so a run that takes them repeats nothing: it is
resumed as an asynchronous one is, and keeps all that was acknowledged.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from bigdm_ray.algorithms.online import Online
from bigdm_ray.errors import UserError
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.table import Table
from bigdm_ray.training.config import Run
from bigdm_ray.training.params import Weights


class RunOver(Exception):
    """The run takes no more episodes."""


@dataclass(eq=False)
class Parcel:
    """An episode on its way; its future is done when the episode is durable."""

    task: str
    episode: Episode
    stored: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class Publication:
    """What a run tells those who play for it."""

    weights: Weights
    tables: Mapping[str, Table]


class Outside:
    """See the module. All of it may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: list[Parcel] = []
        self._changed = threading.Condition()
        self._over = False
        self.told: Publication | None = None

    def offer(self, task: str, episode: Episode) -> Future[None]:
        """Hand an episode in. The future raises RunOver where nobody takes it any more."""
        parcel = Parcel(task, episode)
        with self._changed:
            if self._over:
                parcel.stored.set_exception(RunOver())
            else:
                self._waiting.append(parcel)
                self._changed.notify_all()
        return parcel.stored

    def take(self, wait_s: float = 0.0) -> list[Parcel]:
        """What waits to be stored; where there is nothing, what comes within so many seconds."""
        with self._changed:
            if wait_s:
                self._changed.wait_for(lambda: bool(self._waiting), wait_s)
            taken, self._waiting = self._waiting, []
        return taken

    def acknowledge(self, parcels: list[Parcel]) -> None:
        """These are durable."""
        for parcel in parcels:
            if parcel.stored.set_running_or_notify_cancel():
                parcel.stored.set_result(None)

    def publish(self, weights: Weights, tables: Mapping[str, Table]) -> None:
        """Tell of newer weights, and of the episodes that live."""
        self.told = Publication(weights, tables)

    def close(self) -> None:
        """The run takes nothing any more."""
        with self._changed:
            self._over = True
            waiting, self._waiting = self._waiting, []
        for parcel in waiting:
            if parcel.stored.set_running_or_notify_cancel():
                parcel.stored.set_exception(RunOver())


def check_outside(run: Run, served: bool) -> None:
    """Raise UserError where episodes of others and the run do not go together."""
    if not served:
        if not run.rollouts.own:
            raise UserError(
                "--rollouts.own is false, so the run learns from what others send it alone; give"
                " --serve HOST:PORT, where they can"
            )
        return
    if run.offline:
        raise UserError(
            "--serve takes episodes into a run that plays, but this one learns from a dataset;"
            " leave it out, and serve the run folder with `bigdm serve`"
        )
    if not isinstance(run.algorithm, Online):
        raise UserError(
            f"--serve takes episodes into a run of ours, but {run.algorithm.name} is trained by"
            " another library; leave it out"
        )
    if run.machines.lock_step:
        raise UserError(
            "--serve takes episodes as they come, but --machines.lock-step repeats a run; leave"
            " one of them out"
        )
