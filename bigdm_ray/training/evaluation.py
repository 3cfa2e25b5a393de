"""Evaluation: episodes on gymnasium's environments, with streams of their own, so that training
never notices them.

`evaluate` plays them in one rollout, whose rows share their chance and the batches that they act
in. What is to be played on several actors is cut into parts, each a rollout with environments and
streams of its own, named by its number: so it does not matter who plays it, or when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from bigdm_ray.algorithms.base import Columns, Mode, Policy
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import VectorEnv
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training.config import Run
from bigdm_ray.training.cpu import cpu_seconds
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout import EpisodeOrigin, RolloutResult, rollout
from bigdm_ray.training.streams import derived_seed, rng

ROWS = 50
"""Environments that are evaluated side by side, at most."""
KEPT_ROWS = 200
"""Environments that an evaluator keeps for the next evaluation, those of all its tasks together."""
GAP = 0.1
"""How far the return of an expert is above that of a random policy, at least, as a share of the
larger of the two in absolute value, where a normalised score is to count."""


@dataclass(frozen=True)
class Score:
    """Returns and lengths of evaluated episodes, in the order of their seeds."""

    returns: np.ndarray  # [n] float64
    lengths: np.ndarray  # [n] int64
    command: dict[str, float]
    # [calls] float64, the policy's time for each call
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    # [calls] int64, the rows that it acted for
    acted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    discarded: int = 0  # episodes thrown away
    problems: list[str] = field(default_factory=list)  # one sentence for each, at most ten
    stopped: bool = False  # Ctrl-C ended it before all episodes had ended
    cpu_s: float = 0.0  # CPU seconds that an `Evaluator` took for it

    @classmethod
    def of(cls, played: RolloutResult, command: dict[str, float]) -> Score:
        """The score of a rollout, of which nothing may have come."""
        returns, lengths = (
            np.array([e.total_return for e in played.episodes]),
            np.array([e.length for e in played.episodes], np.int64),
        )
        calls = np.array(played.calls).reshape(-1, 2)
        return cls(
            returns,
            lengths,
            command,
            calls[:, 0],
            calls[:, 1].astype(np.int64),
            played.discarded,
            played.problems,
            played.stopped,
        )

    def summary(self, task: Task) -> dict[str, float | int | None]:
        """Mean, standard deviation (of the episodes), 95 % interval of the mean, and the normalised
        score.

        The interval is bootstrapped: where returns have a limit that many reach, it does not pass
        it.
        """
        mean = float(self.returns.mean())
        low, high = bootstrap_interval(self.returns)
        return {
            "return_mean": mean,
            "return_std": float(self.returns.std()),
            "return_low": min(float(low), mean),
            "return_high": max(float(high), mean),
            "return_min": float(self.returns.min()),
            "return_max": float(self.returns.max()),
            "length_mean": float(self.lengths.mean()),
            "return_episodes": len(self.returns),
            "normalized_score": task.normalized_score(mean),
        }

    def latency(self) -> dict[str, float]:
        """Milliseconds of the policy for an action, environments left out: median and 99th
        percentile over all actions, and how many acted together.

        Rows act in one call; an action's time is the call's divided by its rows. Empty where
        nothing was timed. Names of times end in `_ms`: they differ between equal runs.
        """
        if not len(self.seconds):
            return {}
        each = 1000 * self.seconds / self.acted
        order = np.argsort(each)
        below = np.cumsum(self.acted[order])
        p50, p99 = (
            float(each[order][np.searchsorted(below, share * below[-1])]) for share in (0.5, 0.99)
        )
        return {"act_p50_ms": p50, "act_p99_ms": p99, "acted_together": float(self.acted.mean())}

    def require_episode(self, task: Task) -> Score:
        """Itself. Raises RunFailed where no episode has ended well."""
        if not len(self.returns):
            raise RunFailed(
                f"no evaluation episode of {task.name} could be played to its end:"
                f" {self.problems[0]}"
            )
        return self


Scores = dict[str, Score]
"""The scores of weights in each task."""


def means_of(scores: Scores) -> dict[str, float]:
    """The mean return in each task that has a score."""
    return {task: float(s.returns.mean()) for task, s in scores.items() if len(s.returns)}


def gap_problem(references: tuple[float, float] | None) -> str | None:
    """Why a task with these returns (random, expert) has no score that counts, in words; None where
    it has one.

    Where the expert is hardly above the random policy (`GAP`), a score is noise over next to
    nothing.
    """
    if references is None:
        return "no reference returns are known"
    low, high = references
    if high - low < GAP * max(abs(low), abs(high)):
        return f"the expert has {high:,.4g} where a random policy has {low:,.4g}"
    return None


def mean_normalized_score(scores: Scores, tasks: Mapping[str, Task]) -> float | None:
    """The mean of normalised scores over the tasks that have one that counts (`gap_problem`); None
    where there is none."""
    each = [
        tasks[task].normalized_score(mean)
        for task, mean in means_of(scores).items()
        if gap_problem(tasks[task].reference_returns) is None
    ]
    known = [score for score in each if score is not None]
    return float(np.mean(known)) if known else None


def merit(scores: Scores, tasks: Mapping[str, Task]) -> float | None:
    """What weights are compared by: the mean return in the only task, of several
    `mean_normalized_score`.

    Where none of several has reference returns, it is the mean of returns. None without a score.
    """
    score = mean_normalized_score(scores, tasks) if len(tasks) > 1 else None
    means = [*means_of(scores).values()]
    return score if score is not None or not means else float(np.mean(means))


class Evaluator:
    """Scores weights of a run on environments that it keeps, 20 episodes here and 100 there."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tasks = {use.name: use.task for use in run.tasks}
        signatures = {name: task.signature() for name, task in self._tasks.items()}
        self._model = run.algorithm.build(signatures)
        self._model.eval()
        self._policies = {
            name: run.algorithm.policy_in(
                self._model, cast(Mode, run.evaluations.mode), signature, name
            )
            for name, signature in signatures.items()
        }
        self._envs: dict[str, VectorEnv] = {}

    def score(
        self,
        weights: Weights,
        commands: Mapping[str, dict[str, float]],
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Scores:
        """See `evaluate`: the scores of the tasks that `commands` are given for, `episodes` of
        each.

        That of one of several tasks may be empty. Raises RunFailed where all of them are.
        """
        weights.into(self._model)
        scores: Scores = {}
        for task, command in commands.items():
            cpu = cpu_seconds()
            try:
                rows = self._rows(task, min(ROWS, episodes))
                played = play(
                    self._policies[task],
                    self._tasks[task],
                    constant(command, episodes),
                    episodes,
                    self._run.seed,
                    purpose,
                    round,
                    rows,
                    on_end,
                )
            except (UserError, RunFailed) as error:
                if not self._run.several:
                    raise
                played = RolloutResult([], discarded=episodes, problems=[str(error)])
            scores[task] = replace(Score.of(played, command), cpu_s=cpu_seconds() - cpu)
        if scores and not any(len(score.returns) for score in scores.values()):
            first = next(iter(scores))
            scores[first].require_episode(self._tasks[first])
        return scores

    def part(
        self,
        task: str,
        weights: Weights,
        command: dict[str, float],
        episodes: int,
        purpose: str,
        number: int,
    ) -> Score:
        """A part of `evaluate_in_parts`, which may hold no episode; of one of several tasks also
        where it cannot be played at all."""
        weights.into(self._model)
        try:
            played = play(
                self._policies[task],
                self._tasks[task],
                constant(command, episodes),
                episodes,
                self._run.seed,
                purpose,
                number,
                self._rows(task, episodes),
            )
        except (UserError, RunFailed) as error:
            if not self._run.several:
                raise
            played = RolloutResult([], discarded=episodes, problems=[str(error)])
        return Score.of(played, command)

    def _rows(self, task: str, rows: int) -> VectorEnv:
        """Reference environments of a task. Those that have waited longest go to make room."""
        kept = self._envs.pop(task, None)
        if kept is not None and kept.n != rows:
            kept.close()
            kept = None
        while self._envs and rows + sum(env.n for env in self._envs.values()) > KEPT_ROWS:
            self._envs.pop(next(iter(self._envs))).close()
        self._envs[task] = kept or self._tasks[task].make(rows, 0, "reference")
        return self._envs[task]

    def close(self) -> None:
        """Close the environments."""
        while self._envs:
            self._envs.popitem()[1].close()


def constant(command: dict[str, float], n: int) -> Columns:
    """The same command for n episodes."""
    return {name: np.full(n, value, np.float32) for name, value in command.items()}


def evaluate(
    policy: Policy,
    task: Task,
    command: dict[str, float],
    episodes: int,
    seed: int,
    purpose: str,
    round: int,
    env: VectorEnv | None = None,
    on_end: Callable[[int], None] | None = None,
) -> Score:
    """Play `episodes` on the reference environments.

    `purpose` and `round` name the streams (validation, final, ...).

    `env`, where given, are reference environments to use again; they are seeded anew and left open.
    `on_end`: see `rollout`. Raises RunFailed where no episode ends well.
    """
    return Score.of(
        play(
            policy, task, constant(command, episodes), episodes, seed, purpose, round, env, on_end
        ),
        command,
    ).require_episode(task)


def split_episodes(episodes: int, rows: int) -> list[int]:
    """How many of `episodes` each part plays: at most `rows`, and as equally many as can be."""
    parts = math.ceil(episodes / rows)
    return [episodes // parts + (number < episodes % parts) for number in range(parts)]


@dataclass(frozen=True)
class PlannedTask:
    """What an evaluation plays of a task: how it is commanded, and how many episodes each part
    has."""

    command: dict[str, float]
    parts: list[int]


def evaluate_in_parts(
    policy: Policy,
    task: Task,
    command: dict[str, float],
    parts: list[int],
    seed: int,
    purpose: str,
    on_end: Callable[[int], None] | None = None,
) -> Score:
    """Play parts of so many episodes each, one part after another.

    Ctrl-C ends it with what has ended by then: see `rollout`.

    Part k has the chance of `evaluate`'s round k. Raises RunFailed where no episode ends well, and
    KeyboardInterrupt where none has ended.
    """
    scores: list[Score] = []
    env = task.make(max(parts), 0, "reference")
    try:
        for number, count in enumerate(parts):
            played = play(
                policy,
                task,
                constant(command, count),
                count,
                seed,
                purpose,
                number,
                env,
                on_end,
                stoppable=True,
            )
            scores.append(Score.of(played, command))
            if scores[-1].stopped:
                break
    except KeyboardInterrupt:
        return join_scores(scores, command, stopped=True)
    finally:
        env.close()
    return join_scores(scores, command, scores[-1].stopped).require_episode(task)


def join_scores(scores: list[Score], command: dict[str, float], stopped: bool = False) -> Score:
    """Parts as one score.

    Raises KeyboardInterrupt where Ctrl-C came before any episode had ended well.
    """
    if stopped and not any(len(score.returns) for score in scores):
        raise KeyboardInterrupt
    names = ("returns", "lengths", "seconds", "acted")
    arrays = {name: np.concatenate([getattr(score, name) for score in scores]) for name in names}
    problems = [problem for score in scores for problem in score.problems][:10]
    return Score(
        command=command,
        discarded=sum(score.discarded for score in scores),
        problems=problems,
        stopped=stopped,
        cpu_s=sum(score.cpu_s for score in scores),
        **arrays,
    )


def play(
    policy: Policy,
    task: Task,
    commands: Columns,
    episodes: int,
    seed: int,
    purpose: str,
    round: int,
    env: VectorEnv | None = None,
    on_end: Callable[[int], None] | None = None,
    stoppable: bool = False,
) -> RolloutResult:
    """The episodes of an evaluation, for plots and recordings that want more than their scores.

    `on_end`, `stoppable`: see `rollout`.
    """
    env_seed = derived_seed(seed, f"{purpose} environments", round)
    rows = env or task.make(min(ROWS, episodes), env_seed, "reference")
    rows.reseed(env_seed)
    try:
        origin = EpisodeOrigin(round, 0, task.name, (0, 0), purpose, env_seed, task.max_return)
        return rollout(
            policy,
            rows,
            commands,
            episodes,
            rng(seed, purpose, round),
            origin,
            on_end=on_end,
            stoppable=stoppable,
        )
    finally:
        if env is None:
            rows.close()


def bootstrap_interval(
    values: np.ndarray, samples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % bootstrap interval of the mean over the first axis (Srivastava et al. 2019, appendix
    B: 1,000 resamples)."""
    picks = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    means = values[picks].mean(1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def stratified_interval(
    strata: list[np.ndarray], samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of some means: each stratum (the seeds of a task) is
    resampled within itself (Agarwal et al. 2021)."""
    chance = np.random.default_rng(seed)
    means = np.mean(
        [
            values[chance.integers(0, len(values), (samples, len(values)))].mean(1)
            for values in strata
        ],
        0,
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
