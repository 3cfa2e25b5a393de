"""Evaluation: episodes on gymnasium's environments, with streams of their own, so that training never notices them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from bigdm_ray.algorithms.base import Columns, Mode, Policy, State
from bigdm_ray.envs.task import Task, find_task
from bigdm_ray.envs.vector import VectorEnv
from bigdm_ray.errors import RunFailed
from bigdm_ray.training.config import Run
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout import Origin, Played, rollout
from bigdm_ray.training.streams import derived_seed, rng

ROWS = 50
"""Environments that are evaluated side by side, at most."""


@dataclass(frozen=True)
class Score:
    """Returns and lengths of evaluated episodes, in the order of their seeds."""

    returns: np.ndarray  # [n] float64
    lengths: np.ndarray  # [n] int64
    command: dict[str, float]
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [calls] float64, the policy's time for each call
    acted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [calls] int64, the rows that it acted for

    def summary(self, task: Task) -> dict[str, float | int | None]:
        """Mean, standard deviation (of the episodes), 95 % interval of the mean, and the normalised score."""
        mean = float(self.returns.mean())
        half = 1.96 * float(self.returns.std()) / math.sqrt(len(self.returns))
        return {
            "return_mean": mean,
            "return_std": float(self.returns.std()),
            "return_low": mean - half,
            "return_high": mean + half,
            "return_min": float(self.returns.min()),
            "return_max": float(self.returns.max()),
            "length_mean": float(self.lengths.mean()),
            "return_episodes": len(self.returns),
            "normalized_score": task.normalized_score(mean),
        }

    def latency(self) -> dict[str, float]:
        """Milliseconds of the policy for an action, environments left out: median and 99th percentile over all actions, and how many acted together.

        Rows act in one call; an action's time is the call's divided by its rows. Empty where nothing was timed. Names of times end in `_ms`: they differ
        between equal runs.
        """
        if not len(self.seconds):
            return {}
        each = 1000 * self.seconds / self.acted
        order = np.argsort(each)
        below = np.cumsum(self.acted[order])
        p50, p99 = (float(each[order][np.searchsorted(below, share * below[-1])]) for share in (0.5, 0.99))
        return {"act_p50_ms": p50, "act_p99_ms": p99, "acted_together": float(self.acted.mean())}


class Timed(Policy):
    """A policy, and how long its calls took."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.uniforms = policy.uniforms
        self.seconds: list[float] = []
        self.acted: list[int] = []

    def start(self, n: int) -> State:
        """See Policy."""
        return self._policy.start(n)

    def act(
        self,
        state: State,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        commands: Columns,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], State]:
        """See Policy."""
        began = time.perf_counter()
        answer = self._policy.act(state, observations, rewards, commands, first, uniforms)
        self.seconds.append(time.perf_counter() - began)
        self.acted.append(len(first))
        return answer

    def after(self, commands: Columns, rewards: np.ndarray, max_return: float | None) -> Columns:
        """See Policy."""
        return self._policy.after(commands, rewards, max_return)


class Evaluator:
    """Scores weights of a run on environments that it keeps, 20 episodes here and 100 there."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._task = find_task(run.task)
        self._model = run.algorithm.build({self._task.name: self._task.signature()})
        self._model.eval()
        self._policy = run.algorithm.policy(self._model, cast(Mode, run.evaluations.mode))
        self._env: VectorEnv | None = None

    def score(self, weights: Weights, command: dict[str, float], episodes: int, purpose: str, round: int) -> Score:
        """See `evaluate`."""
        weights.into(self._model)
        rows = min(ROWS, episodes)
        if self._env is None or self._env.n != rows:
            self.close()
            self._env = self._task.make(rows, 0, "reference")
        return evaluate(self._policy, self._task, command, episodes, self._run.seed, purpose, round, self._env)

    def close(self) -> None:
        """Close the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None


def constant(command: dict[str, float], n: int) -> Columns:
    """The same command for n episodes."""
    return {name: np.full(n, value, np.float32) for name, value in command.items()}


def evaluate(policy: Policy, task: Task, command: dict[str, float], episodes: int, seed: int, purpose: str, round: int, env: VectorEnv | None = None) -> Score:
    """Play `episodes` on the reference environments. `purpose` and `round` name the streams (validation, final, ...).

    `env`, where given, are reference environments to use again; they are seeded anew and left open. Raises RunFailed where no episode ends well.
    """
    timed = Timed(policy)
    played = play(timed, task, constant(command, episodes), episodes, seed, purpose, round, env)
    if not played.episodes:
        raise RunFailed(f"no evaluation episode of {task.name} could be played to its end: {played.problems[0]}")
    returns = np.array([e.total_return for e in played.episodes])
    return Score(returns, np.array([e.length for e in played.episodes]), command, np.array(timed.seconds), np.array(timed.acted, np.int64))


def play(policy: Policy, task: Task, commands: Columns, episodes: int, seed: int, purpose: str, round: int, env: VectorEnv | None = None) -> Played:
    """The episodes of an evaluation, for plots and recordings that want more than their scores."""
    env_seed = derived_seed(seed, f"{purpose} environments", round)
    rows = env or task.make(min(ROWS, episodes), env_seed, "reference")
    rows.reseed(env_seed)
    try:
        origin = Origin(round, 0, task.name, (0, 0), purpose, env_seed, task.max_return)
        return rollout(policy, rows, commands, episodes, rng(seed, purpose, round), origin)
    finally:
        if env is None:
            rows.close()


def bootstrap_interval(values: np.ndarray, samples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % bootstrap interval of the mean over the first axis (Srivastava et al. 2019, appendix B: 1,000 resamples)."""
    picks = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    means = values[picks].mean(1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high
