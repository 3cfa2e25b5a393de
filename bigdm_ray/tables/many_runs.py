"""Runs of several tasks beside each other, by suite: what `table` adds for them.

The scores are those that `evaluate` left in evaluation.json, where that is of the run's last
weights as they are now; else those of the run's own final evaluation, which tells a mean a task and
so no interquartile mean. Nothing is played.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json
from bigdm_ray.tables.jat import JAT
from bigdm_ray.tables.suites import TaskScores, suite_of, summarise
from bigdm_ray.training.config import read_run
from bigdm_ray.training.evaluation import gap_problem

COUNTED = 50
"""The score at or above which tasks are counted."""


def evaluation_of(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `evaluate` has said of a run of several tasks, if it is of its last weights.

    None where there is none. Raises UserError for a file that is no evaluation.
    """
    file = folder / "evaluation.json"
    if not file.is_file():
        return None
    try:
        told: dict[str, Any] = read_json(file)
        last = told["weights"] == "last" and told["version"][1] == summary["learner_steps"]
        return told if last and not told["partial"] and "suites" in told else None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is no evaluation of this project ({error}); score anew") from None


def suites_of_run(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of a run of several tasks by suite, as `summarise` tells them, with how many
    `episodes` a task they are of, and whether they were `evaluated`. Raises UserError."""
    if (told := evaluation_of(folder, summary)) is not None:
        episodes = min(own["episodes"] for own in told["tasks"].values())
        return told | {"episodes": episodes, "evaluated": True}
    tasks = {use.name: use.task for use in read_run(folder).tasks}
    scores, episodes = {}, []
    for name, own in summary["tasks"].items():
        score = own.get("normalized_score")
        if score is not None and gap_problem(tasks[name].reference_returns) is None:
            scores[name] = TaskScores(suite_of(tasks[name]), np.array([float(score)]))
            episodes.append(own["return_episodes"])
    return summarise(scores) | {"episodes": min(episodes, default=0), "evaluated": False}


def compare_by_suite(
    runs: Sequence[tuple[Path, Mapping[str, Any]]],
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of runs of several tasks, with their summaries: a column a suite,
    and where a run has scores in JAT's constants a column of them and a row of JAT's own.

    Raises UserError for an evaluation that cannot be read.
    """
    told = [suites_of_run(folder, summary) for folder, summary in runs]
    names = sorted({name for one in told for name in one["suites"]})
    as_jat = [(one.get("jat") or {"suites": {}})["suites"] for one in told]
    beside = sorted({name for own in as_jat for name in own})
    head = ["run", "scored by", "episodes", *names, "over suites", f">= {COUNTED} %"]
    head += [f"{name}, JAT's IQM" for name in beside] + ["cpu", "of it learning"]
    rows = [
        [
            str(folder),
            "evaluate" if one["evaluated"] else "its run",
            f"{one['episodes']:,}",
            *(_cell(one["suites"].get(name), one["evaluated"]) for name in names),
            "" if one["suite_mean"] is None else f"{one['suite_mean']:.1f}",
            _reached(one["all"]),
            *(f"{own[name]['iqm']:.1f}" if name in own else "" for name in beside),
            *(_time(summary.get(what)) for what in ("cpu_s", "learn_cpu_s")),
        ]
        for (folder, summary), one, own in zip(runs, told, as_jat, strict=True)
    ]
    if beside:
        known = [f"{JAT[name].iqm:.0f}{JAT[name].about}" if name in JAT else "" for name in beside]
        rows.append(["JAT itself", "its authors", "", *[""] * len(names), "", "", *known, "", ""])
    return head, rows


def _cell(own: Mapping[str, Any] | None, evaluated: bool) -> str:
    if own is None:
        return ""
    return f"{own['mean']:.1f} [{own['iqm']:.1f}]" if evaluated else f"{own['mean']:.1f}"


def _reached(every: Mapping[str, Any] | None) -> str:
    return "" if every is None else f"{every['reached'][str(COUNTED)]} of {every['tasks']}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:,.1f} min"
