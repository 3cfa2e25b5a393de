"""A server in the process of a live run: others act with its newest weights, and what they live
through goes into its store.

Before the run has learned anything its actions are uniformly random, as those of its own warm-up
are. Commands that a client does not give are those that the run's own rollouts would ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import numpy as np
from torch import nn

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.progress import say
from bigdm_ray.replay.episode import Episode
from bigdm_ray.serving.served import Served
from bigdm_ray.serving.server import Server, served_phrase
from bigdm_ray.serving.sessions import Refused
from bigdm_ray.serving.settings import ServerSettings
from bigdm_ray.training.acting import TrainedRun, command_from
from bigdm_ray.training.config import Run
from bigdm_ray.training.loop import commands_for
from bigdm_ray.training.outside import Outside, Publication, RunOver
from bigdm_ray.training.rollout import RandomPolicy

PEERS = 100
"""Episodes of a client whose mean return is the merit of its newest. Of a run's own rollouts it is
the mean of those that the same weights played together."""
CLIENTS = 4096
"""Clients whose last returns are remembered."""


class LiveServed(Served):
    """A version of a run's weights while it learns; untrained ones play at random."""

    def __init__(self, trained: TrainedRun, told: Publication | None) -> None:
        super().__init__(trained, "sample")
        self.told = told  # commands are made of the newest episodes
        self._learned = {task: has_learned(told, task) for task in self.by_task}
        self._chance = np.random.default_rng()

    def source_in(self, task: str) -> str:
        """See Served."""
        return super().source_in(task) if self._learned[task] else "random"

    def policy(self, task: str, mode: str) -> Policy:
        """See Served."""
        if not self._learned[task]:
            return RandomPolicy(self.by_task[task].signature)
        return super().policy(task, mode)

    def command(self, task: str, asked: Mapping[str, float]) -> dict[str, float]:
        """See Served. What is not asked for is drawn as for a rollout."""
        one, told = self.by_task[task], self.told
        own = dict.fromkeys(one.run.algorithm.commands, 0.0)
        if told is not None and self._learned[task]:
            run, table = one.trained or one.run, told.tables[task]
            columns = commands_for(run, task, table, self._chance, 1)
            own = {name: float(values[0]) for name, values in columns.items()}
        elif not asked:
            return {}  # it plays at random
        return command_from(dataclasses.replace(one, summary={"command": own}), asked, str)


def has_learned(told: Publication | None, task: str) -> bool:
    """Whether a run has learned, and has episodes of a task to make commands of."""
    return told is not None and told.weights.version[1] > 0 and len(told.tables[task]) > 0


class LiveVersions:
    """Versions of what a run publishes; see Versions."""

    def __init__(self, run: Run, outside: Outside) -> None:
        tasks = {use.name: use.task for use in run.tasks}
        signatures = {name: task.signature() for name, task in tasks.items()}
        model: nn.Module = run.algorithm.build(signatures).eval()
        self._blank = TrainedRun(Path(), run, tasks, signatures, model, {"command": {}}, (0, 0))
        self._outside = outside
        self._lock = threading.Lock()
        self._newest = LiveServed(self._blank, None)

    def newest(self) -> Served:
        """See Versions."""
        told = self._outside.told
        with self._lock:
            now = self._newest
            if told is None or told is now.told:
                return now
            same = now.told is not None and now.told.weights is told.weights
            if same and all(has_learned(told, t) == has_learned(now.told, t) for t in now.by_task):
                now.told = told
                return now
            self._newest = LiveServed(self._blank.with_weights(told.weights), told)
            return self._newest

    def reload(self) -> Served:
        """See Versions."""
        return self.newest()


class LiveTakes:
    """Hands episodes to a run; see Takes."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._returns: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=PEERS))

    async def put(self, task: str, episode: Episode) -> None:
        """See Takes."""
        if len(self._returns) > CLIENTS:
            self._returns.clear()
        returns = self._returns[episode.id.round]
        returns.append(episode.total_return)
        one = dataclasses.replace(episode, merit=float(np.mean(returns)))
        try:
            await asyncio.wrap_future(self._outside.offer(task, one))
        except RunOver:
            why = "the run is over: it takes no more episodes"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, why) from None


@contextlib.contextmanager
def serve_run(run: Run, settings: ServerSettings) -> Iterator[Outside]:
    """Serve a run that is about to begin, in here; the way in for episodes of others.

    Raises UserError for settings or an address that cannot be.
    """
    outside = Outside()
    settings = dataclasses.replace(settings, threads=run.machines.threads)  # as the learner's
    server = Server(settings, LiveVersions(run, outside), LiveTakes(outside))
    with server:
        for line in served_phrase(server, f"the run, {run.algorithm.name} on {run.title},"):
            say(line)
        yield outside
