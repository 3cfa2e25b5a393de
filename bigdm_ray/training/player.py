"""Player: plays rounds of episodes for some groups, holding their environments and a copy of the network.

Each group's environments are made from (seed, save index, group) and made anew after each save, in every run,
interrupted or not: that is how a resumed run meets the same environments although their state cannot be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bigdm_ray.algorithms.base import Columns, Persistence
from bigdm_ray.envs.vector import VectorEnv
from bigdm_ray.training.config import Run, task_for
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout import Origin, Played, RandomPolicy, rollout
from bigdm_ray.training.streams import derived_seed, rng


class Player:
    """Plays with the weights it is given last. Between calls no environment is in the middle of an episode."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._task = task_for(run)
        self._signature = self._task.signature()
        self._model = run.algorithm.build({self._task.name: self._signature})
        self._model.eval()
        self._policy = run.algorithm.policy(self._model, "sample", self._signature)
        self._random = RandomPolicy(self._signature)
        self._version: tuple[int, int] | None = None
        self._envs: dict[int, tuple[tuple[int, int, int], int, VectorEnv]] = {}
        self.busy_s = 0.0

    def play(
        self,
        weights: Weights | None,
        round: int,
        group: int,
        era: tuple[int, int, int],
        commands: Columns,
        count: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Played:
        """Play `count` episodes of a round in a group's environments, at random where there are no weights.

        `on_end`: see `rollout`. `era` is (save index, incarnation of the run, attempt): environments are made anew where it changes.
        """
        began = time.perf_counter()
        if weights is not None and weights.version != self._version:
            weights.into(self._model)
            self._version = weights.version
        seed, env = self._environments(group, era)
        policy = self._policy if weights is not None else self._random
        source = self._run.algorithm.name if weights is not None else "random"
        version = weights.version if weights is not None else (0, 0)
        origin = Origin(round, group, self._task.name, version, source, seed, self._task.max_return)
        persistence = self._run.algorithm.persistence() if weights is not None else Persistence()
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
        return played

    def _environments(self, group: int, era: tuple[int, int, int]) -> tuple[int, VectorEnv]:
        held = self._envs.get(group)
        if held is None or held[0] != era:
            if held is not None:
                held[2].close()
            seed = derived_seed(self._run.seed, "environments", *era, group)
            episodes = self._run.share(self._run.algorithm.per_iteration(), group)
            n = max(1, min(self._run.rollouts.environments, episodes.stop - episodes.start))
            self._envs[group] = (era, seed, self._task.make(n, seed))
        _, seed, env = self._envs[group]
        return seed, env

    def close(self) -> None:
        """Close all environments."""
        for _, _, env in self._envs.values():
            env.close()
        self._envs = {}
