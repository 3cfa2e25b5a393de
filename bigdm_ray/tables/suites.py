"""Scores of many tasks in one table: expert-normalised, by suite, with intervals and counts.

A score is 100 (return - random) / (expert - random) with the reference returns of the task, or of
its dataset. A task without a gap between the two (`gap_problem`) is in no mean and no count, and is
named. A suite's mean is over its tasks, and the mean over suites
counts each suite once. The interquartile mean (IQM; Agarwal et al. 2021) is that of rliable over
the matrix of episodes and tasks, an episode in the place of a run, as JAT takes it: the middle half
of all episodes of the suite, each task with the same weight. Intervals are of 95 %, by the
stratified bootstrap: the episodes of each task are drawn anew within the task, `SAMPLES` times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigdm_ray.envs.task import Task
from bigdm_ray.training.evaluation import gap_problem

THRESHOLDS = (25, 50, 75, 90)
"""Scores at or above which tasks are counted."""
SAMPLES = 1000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class TaskScores:
    """What one task brings to a table of many."""

    suite: str
    scores: np.ndarray  # [n] float64, one an episode, 0 for random and 100 for the expert

    @property
    def mean(self) -> float:
        """The task's score."""
        return float(self.scores.mean())


def suite_of(task: Task) -> str:
    """The suite that a task counts for; of one that no suite lists what stands before the colon."""
    return task.suite or task.name.partition(":")[0]


def interquartile_mean(values: Iterable[float]) -> float:
    """The mean of the middle half (Agarwal et al. 2021): a quarter of the weight is cut off at each
    end."""
    row = np.array(list(values), np.float64)[None]
    return float(middle_means(row, np.ones(row.shape[1]))[0])


def middle_means(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The interquartile mean of each row `[m, n]`, whose columns have these weights `[n]`: `[m]`
    float64."""
    order = np.argsort(rows, 1)
    share = (weights / weights.sum())[order]
    ends = np.cumsum(share, 1)
    inside = np.clip(np.minimum(ends, 0.75) - np.maximum(ends - share, 0.25), 0, None)
    out: np.ndarray = (np.take_along_axis(rows, order, 1) * inside).sum(1) / inside.sum(1)
    return out


def resample(tasks: Sequence[TaskScores], seed: int = 0) -> list[np.ndarray]:
    """`SAMPLES` samples of each task's scores, as many as it has: `[SAMPLES, n]` float64."""
    chance = np.random.default_rng(seed)
    return [t.scores[chance.integers(0, len(t.scores), (SAMPLES, len(t.scores)))] for t in tasks]


def aggregate(
    tasks: Sequence[TaskScores], samples: Sequence[np.ndarray] | None = None
) -> dict[str, Any]:
    """Mean and interquartile mean of some tasks' scores, their intervals, and how many tasks reach
    each threshold. `samples` are those of `resample`."""
    drawn = resample(tasks) if samples is None else samples
    weights = np.concatenate([np.full(len(t.scores), 1 / len(t.scores)) for t in tasks])
    middle = middle_means(np.concatenate([t.scores for t in tasks])[None], weights)
    means = np.mean([part.mean(1) for part in drawn], 0)
    middles = middle_means(np.concatenate(drawn, 1), weights)
    return {
        "tasks": len(tasks),
        "mean": float(np.mean([t.mean for t in tasks])),
        "mean_interval": np.percentile(means, [2.5, 97.5]).tolist(),
        "iqm": float(middle[0]),
        "iqm_interval": np.percentile(middles, [2.5, 97.5]).tolist(),
        "reached": {str(t): sum(one.mean >= t for one in tasks) for t in THRESHOLDS},
    }


def summarise(tasks: Mapping[str, TaskScores]) -> dict[str, Any]:
    """The scores of tasks by suite, over all of them, and the mean over suites with its
    interval."""
    names = sorted({one.suite for one in tasks.values()})
    if not names:
        return {"suites": {}, "all": None, "suite_mean": None, "suite_mean_interval": None}
    listed = list(tasks.values())
    drawn = resample(listed)
    suites, means = {}, []
    for name in names:
        mine = [k for k, one in enumerate(listed) if one.suite == name]
        suites[name] = aggregate([listed[k] for k in mine], [drawn[k] for k in mine])
        means.append(np.mean([drawn[k].mean(1) for k in mine], 0))
    return {
        "suites": suites,
        "all": aggregate(listed, drawn),
        "suite_mean": float(np.mean([one["mean"] for one in suites.values()])),
        "suite_mean_interval": np.percentile(np.mean(means, 0), [2.5, 97.5]).tolist(),
    }


def normalise(returns: Sequence[float], references: tuple[float, float]) -> np.ndarray:
    """The score of each return `[n]` float64 with these of a random and an expert policy."""
    low, high = references
    out: np.ndarray = 100.0 * (np.asarray(returns, np.float64) - low) / (high - low)
    return out


def score_tasks(
    reports: Mapping[str, Mapping[str, Any]],
    references: Callable[[str], tuple[float, float] | None],
    suites: Callable[[str], str],
) -> tuple[dict[str, TaskScores], dict[str, str]]:
    """The scores of played tasks, from the reports of `evaluate`, and why the others have none."""
    found, left_out = {}, {}
    for name, report in reports.items():
        known = references(name)
        if why := gap_problem(known):
            left_out[name] = why
        elif known is not None:
            found[name] = TaskScores(suites(name), normalise(report["returns"], known))
    return found, left_out


def reached_line(summary: Mapping[str, Any], threshold: int = 50) -> str:
    """How many tasks reach a threshold, and the mean over suites, in one line."""
    every = summary["all"]
    if every is None:
        return "no task has a score"
    count, suites = every["reached"][str(threshold)], len(summary["suites"])
    mean = f"mean over {suites} suites {summary['suite_mean']:.1f}" if suites > 1 else ""
    mean = mean or f"mean of normalised scores {every['mean']:.1f}"
    low, high = summary["suite_mean_interval"]
    return (
        f"{count} of {every['tasks']} tasks at >= {threshold} % of the expert, {mean} ({low:.1f} to"
        f" {high:.1f})"
    )
