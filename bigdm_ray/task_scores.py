"""What `evaluate` does for a run of several tasks beside playing them: it chooses some, keeps those
that are finished, and tells all of them in one table.

Each finished task is kept as one file of FOLDER/evaluation, whole or not at all, with what decides
its returns: the weights' bytes, command, episodes and their parts, mode, settings, seed, device and
versions. An evaluation that was interrupted takes those that agree with what is asked for, and
plays the others. Once every task of the run is scored, the folder goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bigdm_ray.envs.task import Task
from bigdm_ray.errors import RunFailed, UserError, suggest_names
from bigdm_ray.jsons import read_json
from bigdm_ray.scoring import (
    SCHEMA_VERSION,
    EvaluateFlags,
    TaskPlan,
    check_actors,
    note_parts,
    plan_task,
    play_here,
    play_on_actors,
    report_of,
)
from bigdm_ray.tables.jat import describe_jat, score_as_jat
from bigdm_ray.tables.runs import align
from bigdm_ray.tables.suites import (
    THRESHOLDS,
    normalise,
    reached_line,
    score_tasks,
    suite_of,
    summarise,
)
from bigdm_ray.training.acting import report_head
from bigdm_ray.training.config import Run
from bigdm_ray.training.evaluation import Score
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.run_folder import RunFolder, write_json
from bigdm_ray.training.stores import store_places

KEPT = "evaluation"
"""The folder of finished tasks in the run's."""


def choose_tasks(run: Run, patterns: Sequence[str]) -> list[str]:
    """The run's tasks that names or patterns (`babyai/*`) mean, in the run's order; all of them
    without any. Raises UserError for one that means none."""
    if not patterns:
        return [use.name for use in run.tasks]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {
            use.name
            for use in run.tasks
            if any(fnmatchcase(name, pattern) for name in (use.name, use.task.full_name))
        }
        if not found:
            names = [use.name for use in run.tasks]
            raise UserError(
                f"--tasks has {pattern!r}, but the run has no such task"
                f"{suggest_names(pattern, names)}"
            )
        chosen |= found
    return [use.name for use in run.tasks if use.name in chosen]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class KeptTasks:
    """The finished tasks of an evaluation that goes on where it was interrupted."""

    def __init__(self, home: Path, run: Run) -> None:
        self._folder = home / KEPT
        self._places = store_places(run)

    def _file(self, task: str) -> Path:
        return self._folder / f"{self._places[task]}.json"

    def read(self, task: str, decided_by: Mapping[str, Any]) -> dict[str, Any] | None:
        """The report of a task that was finished with this in force; None where there is none."""
        try:
            kept = read_json(self._file(task))
            report: dict[str, Any] = kept["report"]
            whole = kept["decided_by"] == decided_by and report["returns"] and report["task"]
            return report if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, task: str, decided_by: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Keep the report of a finished task. Raises RunFailed."""
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFailed(
                f"cannot make {self._folder}: {error.strerror}; make its folder writable"
            ) from None
        write_json(
            self._file(task), {"task": task, "decided_by": decided_by, "report": dict(report)}
        )

    def drop(self) -> None:
        """Let go of them: every task is scored, and told elsewhere."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)


def summarise_reports(
    reports: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task]
) -> dict[str, Any]:
    """What the reports of several tasks say together; the part of evaluation.json about it."""
    scored, left_out = score_tasks(
        reports, lambda name: tasks[name].reference_returns, lambda name: suite_of(tasks[name])
    )
    summary = summarise(scored)
    return {
        "normalized_score": None if summary["all"] is None else summary["all"]["mean"],
        "scored": {name: one.suite for name, one in scored.items()},
        **summary,
        "left_out": left_out,
        "jat": score_as_jat(reports, tasks),
    }


def describe_tasks(
    reports: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task], summary: Mapping[str, Any]
) -> str:
    """The reports of several tasks for a terminal: a line a task, a line a suite, and what it comes
    to."""
    jat = summary["jat"]
    text = [_by_task(reports, tasks, {} if jat is None else jat["tasks"])]
    if summary["suites"]:
        text += ["", _by_suite(summary)]
    if jat is not None:
        text += ["", describe_jat(jat)]
    left_out = "; ".join(f"{name} ({why})" for name, why in summary["left_out"].items())
    if left_out:
        text += ["", f"left out of means and counts: {left_out}"]
    mean = summary["normalized_score"]
    shown = (
        "none for these tasks"
        if mean is None
        else f"{mean:.1f}, over {summary['all']['tasks']} of {len(reports)} tasks"
    )
    text += ["", f"mean of normalised scores: {shown}"]
    return "\n".join([*text, *([] if mean is None else [reached_line(summary)])])


def _by_task(
    reports: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, Task],
    jat: Mapping[str, float],
) -> str:
    rows = []
    for name, report in reports.items():
        known = tasks[name].reference_returns
        score = report["normalized_score"]
        bounds = [report["return_low"], report["return_high"]]
        rows.append(
            [
                name,
                f"{report['episodes']:,}{' (stopped)' if report['partial'] else ''}",
                f"{report['return_mean']:,.2f}",
                f"{bounds[0]:,.2f} to {bounds[1]:,.2f}",
                "" if score is None else f"{score:.1f}",
                "" if known is None else " to ".join(f"{v:.1f}" for v in normalise(bounds, known)),
                f"{jat[name]:.1f}" if name in jat else "",
            ]
        )
    return align(
        ["task", "episodes", "return", "95 % interval", "score", "95 % interval", "JAT's"],
        rows,
        ("task",),
    )


def _by_suite(summary: Mapping[str, Any]) -> str:
    shown = dict(summary["suites"]) | {"all tasks": summary["all"]}
    rows = [
        [
            name,
            str(own["tasks"]),
            f"{own['mean']:.1f}",
            _between(own["mean_interval"]),
            f"{own['iqm']:.1f}",
            _between(own["iqm_interval"]),
            *(str(own["reached"][str(t)]) for t in THRESHOLDS),
        ]
        for name, own in shown.items()
    ]
    head = ["suite", "tasks", "mean", "95 % interval", "IQM", "95 % interval"]
    return align([*head, *(f">= {t}" for t in THRESHOLDS)], rows, ("suite",))


def _between(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"


def score_each(loaded: Loaded, asked: EvaluateFlags, home: Path) -> dict[str, Any]:
    """Play the tasks of a run of several; the content of evaluation.json.

    Finished ones are kept in HOME/evaluation, and taken from there. A task that cannot be played is
    told, and left out. Raises UserError or RunFailed where that is so of all.
    """
    check_actors(asked)
    names, kept = choose_tasks(loaded.run, asked.tasks), KeptTasks(home, loaded.run)
    weights = file_hash(RunFolder(loaded.folder).weights(asked.weights))
    reports: dict[str, dict[str, Any]] = {}
    problems: dict[str, UserError | RunFailed] = {}
    plans: dict[str, TaskPlan] = {}
    for name in names:
        try:
            plan = plan_task(loaded.of(name), asked)
            found = kept.read(name, plan.decided_by(weights))
            if found is None:
                plan.loaded.task.require()
                plans[name] = plan
            else:
                reports[name] = found
        except (UserError, RunFailed) as error:
            problems[name] = error
    if reports:
        print(
            f"note: {len(reports)} of {len(names)} tasks are finished already, in {home / KEPT}",
            file=sys.stderr,
        )

    def note_score(name: str, score: Score) -> None:
        plan = plans[name]
        try:
            report = report_of(plan, asked, score.require_episode(plan.loaded.task))
        except RunFailed as error:
            problems[name] = error
            return
        reports[name] = report
        if not report["partial"]:
            kept.write(name, plan.decided_by(weights), report)

    if plans:
        count = sum(plan.episodes for plan in plans.values())
        print(f"playing {count:,} episodes of {len(plans)} tasks", file=sys.stderr)
        note_parts([part for plan in plans.values() for part in plan.parts], asked.actors)
        if asked.actors > 1:
            play_on_actors(plans, asked, note_score)
        else:
            play_each(plans, note_score, problems)
    if not reports:
        raise next(iter(problems.values()))
    for problem in problems.values():
        print(f"note: {problem}", file=sys.stderr)
    done = {name: reports[name] for name in names if name in reports}
    partial = len(done) + len(problems) < len(names) or any(r["partial"] for r in done.values())
    first = next(iter(done.values()))
    summary = summarise_reports(done, loaded.tasks)
    print(describe_tasks(done, loaded.tasks, summary))
    return {
        "schema_version": SCHEMA_VERSION,
        **report_head(loaded, asked.weights, first["mode"], first["seed"]),
        "tasks": done,
        **summary,
        "partial": partial,
        "tasks_asked": len(names),
        "problems": [str(problem) for problem in problems.values()],
    }


def play_each(
    plans: Mapping[str, TaskPlan],
    on_task: Callable[[str, Score], None],
    problems: dict[str, UserError | RunFailed],
) -> None:
    """Play tasks one after another in this process; those that cannot be played go to `problems`.
    Ctrl-C ends it: see `rollout`."""
    for name, plan in plans.items():
        try:
            score = play_here(plan)
        except (UserError, RunFailed) as error:
            problems[name] = error
            continue
        except KeyboardInterrupt:
            if name == next(iter(plans)):
                raise
            return
        on_task(name, score)
        if score.stopped:
            return
