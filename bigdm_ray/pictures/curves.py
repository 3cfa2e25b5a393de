"""Learning curves: evaluations of metrics.jsonl and the final one of summary.json, by the clock.

The clock (`Run.clock`) counts environment steps of a run that plays, learner steps of a run on a
dataset; the two never share a panel. "Last" is the point with the most steps. The final evaluation
is a point like the others, with the interval of its own episodes; it takes the place of an
evaluation at the very same step.

Runs that differ in nothing but their seed are one line: the mean over seeds with its 95 % bootstrap
band, each seed interpolated linearly onto common steps; one seed alone carries the 95 % interval of
its evaluation episodes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.task import UNPLAYED
from bigdm_ray.errors import UserError
from bigdm_ray.jsons import NotJson, real
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    PUBLISHED,
    SCHEMA_VERSION,
    STYLE,
    Picture,
    label_axes,
    make_panels,
    mark_published,
    output_path,
    write_picture,
)
from bigdm_ray.settings import to_json
from bigdm_ray.training.config import Run, read_run
from bigdm_ray.training.evaluation import bootstrap_interval
from bigdm_ray.training.run_folder import RunFolder, metrics_of, summary_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NoFlags:
    """The flags of learning curves, which have none."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, ascending by its clock."""

    folder: Path
    run: Run
    steps: np.ndarray  # [n] float64, of the run's clock
    mean: np.ndarray  # [n] float64, of the evaluation's episodes
    low: np.ndarray  # [n] float64, 95 % interval of that mean
    high: np.ndarray


@dataclass(frozen=True)
class CurveGroup:
    """One line of a learning curve, from runs that differ in nothing but their seed."""

    label: str
    curves: list[Curve]
    steps: np.ndarray  # [n] float64, common to the runs
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


SHOWN = ("return_mean", "return_low", "return_high")
"""What a point shows of an evaluation."""


def read_curves(folder: Path) -> list[Curve | None]:
    """The learning curve of each task of a run. Raises UserError: see `read_curve`."""
    reports, run = metrics_of(folder), read_run(folder)
    if not run.several:
        return [_curve(folder, run, reports)]
    return [_curve(folder, run, reports, use.name) for use in run.tasks]


def read_curve(folder: Path) -> Curve | None:
    """The learning curve of a run of one task, None where nothing has been evaluated yet.

    Raises UserError for a folder without a run, and for damaged files.
    """
    (curve,) = read_curves(folder)
    return curve


def _curve(
    folder: Path, run: Run, reports: list[dict[str, Any]], task: str | None = None
) -> Curve | None:
    """That of one task, by its name where there are several."""
    files = RunFolder(folder)
    run, group = (run, "evaluation/") if task is None else (run.of(task), f"{task}/evaluation/")
    if not run.only.task.plays:
        raise UserError(f"{folder} has no scores to draw: {UNPLAYED}")
    points: dict[float, list[float]] = {}  # a later score at the same step is the one that counts

    def take(score: dict[str, Any], clock: str, group: str, file: Path) -> None:
        try:
            at = real(score[clock], clock)
            points[at] = [real(score[f"{group}{name}"], f"{group}{name}") for name in SHOWN]
        except (KeyError, NotJson) as error:
            raise UserError(f"{file} holds no score of this project ({error})") from None

    for report in reports:
        if f"{group}return_mean" in report:
            take(report, run.clock, group, files.metrics)
    if summary := summary_of(folder):
        own = summary if task is None else summary.get("tasks", {}).get(task, {})
        if task is None or "return_mean" in own:
            take(summary | own, clock_name(run), "", files.summary_file)
    if not points:
        return None
    return Curve(folder, run, *np.array([[x, *points[x]] for x in sorted(points)], np.float64).T)


def clock_name(run: Run) -> str:
    """What the run's clock counts: `env_steps` or `learner_steps`."""
    return run.clock.rpartition("/")[2]


def line_settings(run: Run) -> dict[str, Any]:
    """What must be equal for two runs to be seeds of one line, beside what `kind_of` says."""
    start = run.start and f"{run.start.algorithm} at {run.start.learner_step:,} steps"
    data = run.dataset and run.dataset.sha256[:8]
    return {**to_json(run.algorithm), "mode": run.evaluations.mode, "start": start, "data": data}


def kind_of(run: Run) -> tuple[str, str, str, str, str]:
    """Task, clock, algorithm, preset, name of the dataset: within one, settings part the lines."""
    data = run.dataset.name if run.dataset else ""
    return run.task, clock_name(run), run.algorithm.name, run.preset, data


Lines = dict[tuple[str, str], list[CurveGroup]]
"""The lines of each panel, which is of a task and what the clock counts."""


def lines_of(curves: list[Curve]) -> Lines:
    """The lines of each panel, ordered by the first run of each. Raises UserError."""
    groups: dict[tuple[tuple[str, ...], str], list[Curve]] = {}
    for curve in curves:
        run = curve.run
        groups.setdefault((kind_of(run), json.dumps(line_settings(run))), []).append(curve)
    found: Lines = {}
    for (kind, _), members in groups.items():
        others = [group[0].run for (other, _), group in groups.items() if other == kind]
        found.setdefault((kind[0], kind[1]), []).append(line_of(members, label(members, others)))
    return found


def label(curves: list[Curve], others: list[Run]) -> str:
    """Algorithm, dataset, preset, what differs from `others` of the same kind, and the seeds."""
    run = curves[0].run
    mine = line_settings(run)
    differing = [
        name for name in mine if any(line_settings(other)[name] != mine[name] for other in others)
    ]
    seeds = sorted({curve.run.seed for curve in curves})
    count = (
        f"seed {seeds[0]}"
        if len(curves) == 1
        else f"{len(curves)} {'seeds' if len(seeds) == len(curves) else 'runs'}"
    )
    named = [f"preset {run.preset}"] if run.preset != "none" else []
    learner = f"{run.algorithm.name} on {run.dataset.name}" if run.dataset else run.algorithm.name
    return ", ".join([learner, *named, *(f"{name} {mine[name]}" for name in differing), count])


def line_of(curves: list[Curve], text: str) -> CurveGroup:
    """The mean of the curves over the steps that all of them have reached, with its band.

    Raises UserError.
    """
    if len(curves) == 1:
        only = curves[0]
        return CurveGroup(text, curves, only.steps, only.mean, only.low, only.high)
    steps = common_steps(curves)
    values = np.stack([np.interp(steps, curve.steps, curve.mean) for curve in curves])
    low, high = bootstrap_interval(values)
    return CurveGroup(text, curves, steps, values.mean(0), low, high)


def common_steps(curves: list[Curve]) -> np.ndarray:
    """Steps from the latest first evaluation to the earliest last one, as many as the longest curve
    has. Raises UserError."""
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if first > 1.1 * last:
        late = max(curves, key=lambda curve: float(curve.steps[0]))
        raise UserError(
            f"{late.folder} is first evaluated at {first:,.0f} steps, after another seed's last"
            f" evaluation at {last:,.0f}; draw them apart"
        )
    return (
        np.linspace(first, last, max(len(curve.steps) for curve in curves))
        if first < last
        else np.array([last])
    )


AXES = {"env_steps": "environment steps", "learner_steps": "learner steps"}


def draw_curves(lines: Lines) -> Figure:
    """Learning curves, a panel for each task and clock."""
    figure, panels = make_panels(len(lines), 6.4, 4.2)
    for axes, ((task, clock), here) in zip(panels, lines.items(), strict=True):
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
            if task in PUBLISHED and clock == "env_steps"
            else []
        )
        mark_published(axes, published, "UDRL, Srivastava et al. 2019 (digitised)")
        axes.set_xlim(0, 1.05 * reach)
        label_axes(axes, task, AXES[clock], "mean return of an evaluation")
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


def curves_json(lines: Lines) -> dict[str, Any]:
    """The numbers by task; steps are `env_steps` or `learner_steps`, as the runs of a line
    count."""

    def one(line: CurveGroup, clock: str) -> dict[str, Any]:
        runs = {
            "folders": [str(curve.folder) for curve in line.curves],
            "seeds": [curve.run.seed for curve in line.curves],
        }
        numbers = {
            clock: line.steps,
            "return_mean": line.mean,
            "return_low": line.low,
            "return_high": line.high,
        }
        return {
            "label": line.label,
            **runs,
            **{name: values.tolist() for name, values in numbers.items()},
        }

    tasks: dict[str, list[dict[str, Any]]] = {}
    for (task, clock), here in lines.items():
        tasks.setdefault(task, []).extend(one(line, clock) for line in here)
    return {"schema_version": SCHEMA_VERSION, "tasks": tasks}


def draw_learning_curves(folders: list[Path], out: Path | None, asked: NoFlags) -> None:
    """Draw the learning curves of run folders.

    Raises UserError where none of them has been evaluated.
    """
    import matplotlib

    read = {folder: read_curves(folder) for folder in folders}
    curves = [curve for found in read.values() for curve in found if curve is not None]
    if not curves:
        raise UserError(
            "none of these runs has been evaluated yet, so there is no curve; wait, or train with a"
            " smaller --evaluations.every"
        )
    for folder in (folder for folder, found in read.items() if not any(found)):
        print(f"note: {folder} has not been evaluated yet and is left out", file=sys.stderr)
    path = output_path(out, folders[0], "learning_curve")
    lines = lines_of(curves)
    with matplotlib.rc_context(STYLE):
        write_picture(draw_curves(lines), curves_json(lines), path)
    for (task, clock), here in lines.items():
        for line in here:
            band = f"{line.low[-1]:,.1f} to {line.high[-1]:,.1f}"
            at = f"{line.steps[-1]:,.0f} {AXES[clock]}"
            print(f"  {task}: {line.label}: {line.mean[-1]:,.1f} ({band}) at {at}")


PICTURE = Picture(
    "learning_curve", "draw learning curves", draw_learning_curves, NoFlags, default=True
)
