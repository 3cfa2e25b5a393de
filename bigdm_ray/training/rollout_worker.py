"""RolloutWorker: plays rounds of episodes for some groups, holding their environments and a copy of
the network.

A round is of one task. Each group's environments are made from (seed, save index, group) and made
anew after each save, in every run, interrupted or not: that is how a resumed run meets the same
environments although their state cannot be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bigdm_ray.algorithms.base import Columns
from bigdm_ray.algorithms.online import Persistence
from bigdm_ray.envs.vector import VectorEnv
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training.config import Run
from bigdm_ray.training.cpu import cpu_seconds
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout import EpisodeOrigin, RandomPolicy, RolloutResult, rollout
from bigdm_ray.training.streams import derived_seed, rng


class RolloutWorker:
    """Plays with the weights it is given last.

    Between calls no environment is in the middle of an episode.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tasks = {use.name: use.task for use in run.tasks}
        signatures = {name: task.signature() for name, task in self._tasks.items()}
        self._model = run.algorithm.build(signatures)
        self._model.eval()
        self._policies = {
            name: run.algorithm.policy_in(self._model, "sample", signature, name)
            for name, signature in signatures.items()
        }
        self._random = {name: RandomPolicy(signature) for name, signature in signatures.items()}
        self._version: tuple[int, int] | None = None
        self._envs: dict[tuple[str, int], tuple[tuple[int, int, int], int, VectorEnv]] = {}
        self.busy_s = 0.0
        self.cpu_s = 0.0

    def play(
        self,
        task: str,
        weights: Weights | None,
        round: int,
        group: int,
        era: tuple[int, int, int],
        commands: Columns,
        count: int,
        on_end: Callable[[int], None] | None = None,
    ) -> RolloutResult:
        """Play `count` episodes of a task and a round in a group's environments, at random where
        there are no weights.

        Where environments of one of several tasks cannot be made, its episodes are discarded.
        `on_end`: see `rollout`. `era` is (save index, incarnation of the run, attempt):
        environments are made anew where it changes.
        """
        began, cpu = time.perf_counter(), cpu_seconds()
        if weights is not None and weights.version != self._version:
            weights.into(self._model)
            self._version = weights.version
        try:
            seed, env = self._environments(task, group, era)
        except (UserError, RunFailed) as error:
            if not self._run.several:
                raise
            return RolloutResult(
                [], discarded=count, problems=[f"no episode of {task} begins: {error}"]
            )
        policy = (self._policies if weights is not None else self._random)[task]
        source = self._run.algorithm.name if weights is not None else "random"
        version = weights.version if weights is not None else (0, 0)
        most = self._tasks[task].max_return
        origin = EpisodeOrigin(round, group, task, version, source, seed, most)
        persistence = (
            self._run.online_algorithm.persistence() if weights is not None else Persistence()
        )
        played = rollout(
            policy,
            env,
            commands,
            count,
            rng(self._run.seed, "play", round, group),
            origin,
            persistence=persistence,
            on_end=on_end,
        )
        self.busy_s += time.perf_counter() - began
        self.cpu_s += cpu_seconds() - cpu
        return played

    def _environments(
        self, task: str, group: int, era: tuple[int, int, int]
    ) -> tuple[int, VectorEnv]:
        held = self._envs.get((task, group))
        if held is None or held[0] != era:
            if held is not None:
                del self._envs[task, group]
                held[2].close()
            seed = derived_seed(self._run.seed, "environments", *era, group)
            episodes = self._run.share(self._run.online_algorithm.per_iteration(), group)
            n = max(1, min(self._run.rollouts.environments, episodes.stop - episodes.start))
            self._envs[task, group] = (era, seed, self._tasks[task].make(n, seed))
        _, seed, env = self._envs[task, group]
        return seed, env

    def close(self) -> None:
        """Close all environments."""
        for _, _, env in self._envs.values():
            env.close()
        self._envs = {}
