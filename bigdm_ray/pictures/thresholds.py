"""How many tasks reach how much of the expert's score: Figure 5 of Reed et al. 2022 (Gato).

It draws what `evaluate` has left in evaluation.json of runs of several tasks, and plays nothing. Of
one run the tasks are stacked by suite; several runs are a line each. At a score of x stands the
number of tasks whose own score is x or more; those without a gap between random and expert policy
are left out, as in `evaluate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    SCHEMA_VERSION,
    STYLE,
    Picture,
    make_panels,
    output_path,
    write_picture,
)
from bigdm_ray.pictures.curves import NoFlags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = np.linspace(0, 100, 501)
"""Where the curves are drawn, in per cent of the expert's score."""
MARKED = (25, 50, 75, 90)
"""Thresholds that are marked by thin lines."""


def scores_of(folder: Path) -> dict[str, Any]:
    """The scores by suite that an evaluation of a run of several tasks has left.

    Raises UserError where there is none.
    """
    file = folder / "evaluation.json"
    try:
        told = read_json(file) if file.is_file() else None
        if told is None or "suites" not in told:
            why = "holds no evaluation of several tasks"
            raise UserError(f"{folder} {why}; score it with: python -m bigdm_ray.evaluate {folder}")
        scores: dict[str, list[float]] = {}
        for name, suite in told["scored"].items():
            scores.setdefault(suite, []).append(float(told["tasks"][name]["normalized_score"]))
        if not scores:
            raise UserError(f"no task of {folder} has a score: {file} names the reasons")
        return {"folder": str(folder), "algorithm": told["algorithm"], "scores": scores} | {
            "partial": bool(told["partial"]),
            "episodes": min(one["episodes"] for one in told["tasks"].values()),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no evaluation of this project ({error}); score anew") from None


def counts(scores: list[float]) -> np.ndarray:
    """How many of some tasks' scores are at least each of SCORES: `[501]` int64."""
    out: np.ndarray = (np.array(scores)[None] >= SCORES[:, None]).sum(1)
    return out


def draw_thresholds(runs: list[dict[str, Any]]) -> Figure:
    """One run stacked by suite, or several as lines."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = make_panels(1, 8.0, 4.4)
    every = [[s for own in run["scores"].values() for s in own] for run in runs]
    most = max(map(len, every))
    if len(runs) == 1:
        suites = dict(sorted(runs[0]["scores"].items(), key=lambda item: -len(item[1])))
        colours = [COLOURS[k % len(COLOURS)] for k in range(len(suites))]
        axes.stackplot(
            SCORES,
            *(counts(own) for own in suites.values()),
            labels=[f"{name} ({len(own)})" for name, own in suites.items()],
            colors=colours,
            alpha=0.85,
            step="pre",
        )
    else:
        names = [Path(run["folder"]).name for run in runs]
        for k, (run, name, own) in enumerate(zip(runs, names, every, strict=True)):
            text = name if names.count(name) == 1 else run["folder"]
            axes.step(
                SCORES,
                counts(own),
                where="pre",
                color=COLOURS[k % len(COLOURS)],
                linestyle=("-", "--", ":", "-.")[k // len(COLOURS) % 4],
                label=f"{text} ({len(own)} tasks)",
            )
    for mark in MARKED:
        axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, most * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    few, many = (pick(run["episodes"] for run in runs) for pick in (min, max))
    played = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    axes.set_title(f"Tasks at or above a score, {played} episodes each")
    axes.set_xlabel("score, % of the expert (0: random)")
    axes.set_ylabel("number of tasks")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside: it would hide low counts
    return figure


def show_thresholds(folders: list[Path], out: Path | None, asked: NoFlags) -> None:
    """Draw the counts of run folders. Raises UserError and RunFailed."""
    import matplotlib

    runs = [scores_of(folder) for folder in folders]
    path = output_path(out, folders[0], "thresholds")
    with matplotlib.rc_context(STYLE):
        write_picture(draw_thresholds(runs), {"schema_version": SCHEMA_VERSION, "runs": runs}, path)
    for run in runs:
        own = np.array([s for scores in run["scores"].values() for s in scores])
        told = ", ".join(f"{(own >= mark).sum()} at >= {mark}" for mark in MARKED)
        print(f"  {run['folder']}: {len(own)} tasks, {told}")


PICTURE = Picture(
    "thresholds", "draw how many tasks reach how much of the expert", show_thresholds, NoFlags
)
