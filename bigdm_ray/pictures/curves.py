"""Learning curves, drawn from the evaluations in metrics.jsonl; a run too short for one is the point of its final score, in summary.json.

Runs that differ in nothing but their seed are one line: the mean over seeds with its 95 % bootstrap band, each seed interpolated
linearly onto common steps; one seed alone carries the 95 % interval of its evaluation episodes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    PUBLISHED,
    SCHEMA_VERSION,
    STYLE,
    Picture,
    label_axes,
    mark,
    metrics_of,
    panelled,
    target,
    write,
)
from bigdm_ray.settings import to_json
from bigdm_ray.training.config import Run, read_run
from bigdm_ray.training.evaluation import bootstrap_interval
from bigdm_ray.training.run_folder import summary_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Nothing:
    """The flags of learning curves, which have none."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, ascending by environment steps."""

    folder: Path
    run: Run
    steps: np.ndarray  # [n] float64
    mean: np.ndarray  # [n] float64, of the evaluation's episodes
    low: np.ndarray  # [n] float64, 95 % interval of that mean
    high: np.ndarray


@dataclass(frozen=True)
class Line:
    """One line of a learning curve, from runs that differ in nothing but their seed."""

    label: str
    curves: list[Curve]
    steps: np.ndarray  # [n] float64, common to the runs
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_curve(folder: Path) -> Curve | None:
    """The learning curve of a run, None where nothing has been evaluated yet. Raises UserError for a folder without a run, and for damaged files."""
    names = (
        "time/env_steps",
        "evaluation/return_mean",
        "evaluation/return_low",
        "evaluation/return_high",
    )
    rows = [
        [report[name] for name in names]
        for report in metrics_of(folder)
        if all(name in report for name in names)
    ]
    if not rows and (summary := summary_of(folder)):  # it ended before its first evaluation was due
        try:
            rows = [[float(summary[name.rpartition("/")[2]]) for name in names]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'summary.json'} holds no score of this project ({error})"
            ) from None
    if not rows:
        return None
    columns = np.array(sorted(rows), np.float64).T
    return Curve(folder, read_run(folder), *columns)


def settings_of(run: Run) -> dict[str, Any]:
    """What must be equal for two runs to be seeds of one line, beside algorithm, task and preset."""
    return {**to_json(run.algorithm), "mode": run.evaluations.mode}


def lines_of(curves: list[Curve]) -> dict[str, list[Line]]:
    """The lines of each task, in the order in which their first runs are given. Raises UserError."""
    groups: dict[tuple[str, str, str, str], list[Curve]] = {}
    for curve in curves:
        run = curve.run
        groups.setdefault(
            (run.task, run.algorithm.name, run.preset, json.dumps(settings_of(run))), []
        ).append(curve)
    found: dict[str, list[Line]] = {}
    for key, members in groups.items():
        others = [group[0].run for other, group in groups.items() if other[:3] == key[:3]]
        found.setdefault(key[0], []).append(line_of(members, label(members, others)))
    return found


def label(curves: list[Curve], others: list[Run]) -> str:
    """Algorithm, preset, what differs from `others` of the same preset, and the seeds."""
    run = curves[0].run
    mine = settings_of(run)
    differing = [
        name for name in mine if any(settings_of(other)[name] != mine[name] for other in others)
    ]
    seeds = sorted({curve.run.seed for curve in curves})
    count = (
        f"seed {seeds[0]}"
        if len(curves) == 1
        else f"{len(curves)} {'seeds' if len(seeds) == len(curves) else 'runs'}"
    )
    named = [f"preset {run.preset}"] if run.preset != "none" else []
    return ", ".join(
        [run.algorithm.name, *named, *(f"{name} {mine[name]}" for name in differing), count]
    )


def line_of(curves: list[Curve], text: str) -> Line:
    """The mean of the curves over the steps that all of them have reached, with its band. Raises UserError."""
    if len(curves) == 1:
        only = curves[0]
        return Line(text, curves, only.steps, only.mean, only.low, only.high)
    steps = common_steps(curves)
    values = np.stack([np.interp(steps, curve.steps, curve.mean) for curve in curves])
    low, high = bootstrap_interval(values)
    return Line(text, curves, steps, values.mean(0), low, high)


def common_steps(curves: list[Curve]) -> np.ndarray:
    """Steps from the latest first evaluation to the earliest last one, as many as the longest curve has. Raises UserError."""
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if first > 1.1 * last:
        late = max(curves, key=lambda curve: float(curve.steps[0]))
        raise UserError(
            f"{late.folder} is first evaluated at {first:,.0f} steps, after another seed's last evaluation at {last:,.0f}; draw them apart"
        )
    return (
        np.linspace(first, last, max(len(curve.steps) for curve in curves))
        if first < last
        else np.array([last])
    )


def draw_curves(lines: dict[str, list[Line]]) -> Figure:
    """Learning curves, a panel for each task."""
    figure, panels = panelled(len(lines), 6.4, 4.2)
    for axes, (task, here) in zip(panels, lines.items(), strict=True):
        for number, line in enumerate(here):
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                line.steps,
                line.mean,
                color=colour,
                label=line.label,
                marker="o" if len(line.steps) < 2 else None,
            )
        reach = max(float(line.steps[-1]) for line in here)
        published = (
            [point for point in PUBLISHED[task].curve if point[0] <= 1.05 * reach]
            if task in PUBLISHED
            else []
        )
        mark(axes, published, "UDRL, Srivastava et al. 2019 (digitised)")
        axes.set_xlim(0, 1.05 * reach)
        label_axes(axes, task, "environment steps", "mean return of an evaluation")
        axes.xaxis.set_major_formatter(thousands())
    over = {
        "seeds (bootstrap)" if len(line.curves) > 1 else "the episodes of an evaluation"
        for here in lines.values()
        for line in here
    }
    figure.supxlabel(
        f"band: 95 % interval of the mean over {', or over '.join(sorted(over, reverse=True))}",
        fontsize=9,
        color=GREY,
    )
    return figure


def thousands() -> Any:
    """Ticks as 250k and 1.5M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def curves_json(lines: dict[str, list[Line]]) -> dict[str, Any]:
    """The numbers of the learning curves."""

    def one(line: Line) -> dict[str, Any]:
        runs = {
            "folders": [str(curve.folder) for curve in line.curves],
            "seeds": [curve.run.seed for curve in line.curves],
        }
        numbers = {
            "env_steps": line.steps,
            "return_mean": line.mean,
            "return_low": line.low,
            "return_high": line.high,
        }
        return {
            "label": line.label,
            **runs,
            **{name: values.tolist() for name, values in numbers.items()},
        }

    return {
        "schema_version": SCHEMA_VERSION,
        "tasks": {task: [one(line) for line in here] for task, here in lines.items()},
    }


def learning(folders: list[Path], out: Path | None, asked: Nothing) -> None:
    """Draw the learning curves of run folders. Raises UserError where none of them has been evaluated."""
    import matplotlib

    read = {folder: read_curve(folder) for folder in folders}
    curves = [curve for curve in read.values() if curve is not None]
    if not curves:
        raise UserError(
            "none of these runs has been evaluated yet, so there is no curve; wait, or train with a smaller --evaluations.every"
        )
    for folder in (folder for folder, curve in read.items() if curve is None):
        print(f"note: {folder} has not been evaluated yet and is left out", file=sys.stderr)
    path = target(out, folders[0], "learning_curve")
    lines = lines_of(curves)
    with matplotlib.rc_context(STYLE):
        write(draw_curves(lines), curves_json(lines), path)
    for task, here in lines.items():
        for line in here:
            print(
                f"  {task}: {line.label}: {line.mean[-1]:,.1f} ({line.low[-1]:,.1f} to {line.high[-1]:,.1f}) at {line.steps[-1]:,.0f} steps"
            )


PICTURE = Picture("learning_curve", "draw learning curves", learning, Nothing, default=True)
