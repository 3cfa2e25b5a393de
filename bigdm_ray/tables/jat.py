"""Scores beside JAT's: the same returns normalised by the random and expert returns of JAT
(`envs/jat.py`), whose own interquartile means are known by suite.

JAT (Gallouédec et al. 2024; model card of jat-project/jat) is one network of 12 layers of 768 for
157 tasks. It played Meta-World v2, whose rewards and tasks differ in places from those of v3 here,
and all tasks of a suite: so beside its figure stands how many tasks ours is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bigdm_ray.envs.jat import jat_returns
from bigdm_ray.envs.task import Task
from bigdm_ray.tables.suites import normalise, score_tasks, suite_of, summarise


class PublishedIqm(NamedTuple):
    """An interquartile mean of JAT, in per cent of its experts."""

    iqm: float
    tasks: int
    about: str = ""


JAT = {
    "babyai": PublishedIqm(99.0, 39),
    "metaworld": PublishedIqm(65.0, 50, " of Meta-World v2"),
}


def score_as_jat(
    reports: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task]
) -> dict[str, Any] | None:
    """The scores of played tasks in JAT's constants, each and by suite, from the reports of
    `evaluate`; None where no task has them."""
    scored, _ = score_tasks(
        {name: own for name, own in reports.items() if jat_returns(tasks[name].full_name)},
        lambda name: jat_returns(tasks[name].full_name),
        lambda name: suite_of(tasks[name]),
    )
    if not scored:
        return None
    suites = summarise(scored)["suites"]
    for suite, own in suites.items():
        mine = [tasks[name] for name, one in scored.items() if one.suite == suite]
        own["expert_mean"] = _expert_mean(mine)
    return {"tasks": {name: one.mean for name, one in scored.items()}, "suites": suites}


def _expert_mean(tasks: Sequence[Task]) -> float | None:
    """What the experts of these tasks, or of their datasets, have in JAT's constants on average:
    what a policy that imitates them can reach. None where one is not known."""
    scores = []
    for task in tasks:
        own, theirs = task.reference_returns, jat_returns(task.full_name)
        if own is None or theirs is None:
            return None
        scores.append(normalise([own[1]], theirs)[0])
    return float(np.mean(scores))


def describe_jat(told: Mapping[str, Any]) -> str:
    """Those scores in words, a line a suite."""
    lines = []
    for suite, own in told["suites"].items():
        low, high = own["iqm_interval"]
        line = (
            f"in JAT's constants, {suite}: IQM {own['iqm']:.1f} ({low:.1f} to {high:.1f}), mean"
            f" {own['mean']:.1f}, over {own['tasks']} tasks"
        )
        if (expert := own["expert_mean"]) is not None:
            line += f" (the experts here: {expert:.1f})"
        if (theirs := JAT.get(suite)) is not None:
            line += f"; JAT's own IQM {theirs.iqm:.0f}, over {theirs.tasks} tasks{theirs.about}"
        lines.append(line)
    return "\n".join(lines)
