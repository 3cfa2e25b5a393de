"""Several runs in one table, from their summaries or from scores that were just played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json
from bigdm_ray.progress import rough_duration

HEAD: tuple[str, ...] = (
    *("run", "algorithm", "task", "seed", "steps", "asked"),
    *("return", "95 % interval", "normalised", "wall", "cpu"),
)
NAMED = 3
"""Tasks of a run that are named in a table, at most."""
WORDS = ("run", "algorithm", "task", "scored by")
"""Columns of words, align to the left; the others hold numbers."""


def require_summary(folder: Path) -> dict[str, Any]:
    """A run's summary.json. Raises UserError where there is none, or another file of that name."""
    file = folder / "summary.json"
    if not file.is_file():
        what = "has not ended yet" if (folder / "run.json").is_file() else "is no run folder"
        raise UserError(f"{folder} {what}: it holds no summary.json; leave it out")
    try:
        summary = read_json(file)
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from None
    if not isinstance(summary, dict) or "algorithm" not in summary:
        raise UserError(f"{file} is no summary of a run; leave {folder} out")
    return summary


def row(folder: Path, told: Mapping[str, Any]) -> list[str]:
    """The cells of a run, of its summary or of an evaluation's report beside it."""
    env, learner = told.get("env_steps"), told.get("learner_steps")
    steps = "" if env is None else f"{env:,}"
    if learner is not None and (told.get("dataset") or not env):
        steps = f"{learner:,} learner"
    asked = (told.get("command") or {}).get("desired_return")
    normalized, wall = told.get("normalized_score"), told.get("wall_s")
    bounds = told.get("return_low"), told.get("return_high")
    return [
        str(folder),
        str(told.get("algorithm", "")),
        _tasks(told),
        str(told.get("run_seed", told.get("seed", ""))),
        steps,
        _number(asked),
        _number(told.get("return_mean")),
        "" if None in bounds else " to ".join(map(_number, bounds)),
        _number(normalized),
        "" if wall is None else rough_duration(wall),
        "" if (cpu := told.get("cpu_s")) is None else rough_duration(cpu),
    ]


def _tasks(told: Mapping[str, Any]) -> str:
    """The task of a run; of several their names, or their number where they are many."""
    several = told.get("tasks", {})
    return f"{len(several)} tasks" if len(several) > NAMED else str(told.get("task", ""))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal; columns that are empty in every row are left out."""
    return align(HEAD, rows, WORDS)


def align(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """Rows under a head for a terminal, columns of `words` to the left and those of numbers to the
    right; columns that are empty in every row are left out."""
    kept = [n for n in range(len(head)) if any(cells[n] for cells in rows)]
    table = [[cells[n] for n in kept] for cells in (head, *rows)]
    widths = [max(len(cells[n]) for cells in table) for n in range(len(kept))]
    left = [head[n] in words for n in kept]

    def line(cells: Sequence[str]) -> str:
        parts = zip(cells, widths, left, strict=True)
        return "  ".join(f"{c:<{w}}" if to_left else f"{c:>{w}}" for c, w, to_left in parts)

    return "\n".join(line(cells).rstrip() for cells in table)


def markdown(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> str:
    """The table as Markdown, all columns."""
    rule = ["---" if name in WORDS else "---:" for name in head]
    shown = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, rule, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)
