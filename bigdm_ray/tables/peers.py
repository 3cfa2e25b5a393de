"""What other projects' own code came to on the same data at equal learner steps, beside our cells.

`python -m tests.benchmarks.trust` leaves a small JSON file for each such cell under `peers` of the
results. A gap of more than `GAP` normalised points and two standard errors is a fault to mend or to
explain.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError, quote_value
from bigdm_ray.jsons import read_json, real
from bigdm_ray.tables.base import Cell
from bigdm_ray.tables.folders import Result, TableFolders

GAP = 5.0
"""Normalised points by which ours may differ from a peer's, at most."""


def peer_file(shelf: TableFolders, cell: Cell) -> Path:
    """Where the result of a cell's peer lies."""
    return shelf.root / "peers" / shelf.grid.name / shelf.scale / f"{cell.name}.json"


def peer_result(shelf: TableFolders, cell: Cell) -> Result | None:
    """What a cell's peer came to, None where it was not run on today's data. Raises UserError."""
    path = peer_file(shelf, cell)
    if not path.is_file():
        return None
    try:
        found: Result = read_json(path)
        for name in ("normalized_score", "return_std", "return_mean", "return_episodes"):
            found[name] = real(found[name], name)
        for name in ("peer", "target", "sha256"):
            if not isinstance(found[name], str):
                raise TypeError(f"its {name} is {quote_value(found[name])}")
        if found["return_episodes"] < 1 or found["return_std"] < 0:
            raise ValueError("it tells a spread that no returns can have")
        same = found["sha256"] == (shelf.sha256(cell) or found["sha256"])
        return found if same and found["flags"] == list(cell.flags) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the result of a peer ({error}); remove it to run that peer again"
        ) from None


def compare_with_peers(shelf: TableFolders, cells: list[Cell]) -> list[str]:
    """Lines of a Markdown table: ours beside "peer, same data", with the gap; none without peers.

    The standard error is that of the mean over seeds where there are two or more, else that of the
    mean over the final episodes of the one run.
    """
    groups: dict[tuple[str, str], tuple[list[Result], list[Result]]] = {}
    for cell in cells:
        theirs = peer_result(shelf, cell)
        if theirs is not None:
            ours, peers = groups.setdefault((cell.row, cell.column), ([], []))
            peers.append(theirs)
            if (result := shelf.find_result(cell)[0]) is not None:
                ours.append(result)
    lines = []
    for (row, column), (ours, peers) in groups.items():
        there, their_error = _mean(peers)
        text = f"{there:.1f} ± {their_error:.1f} ({peers[0]['peer']}, {_seeds(peers)})"
        if not ours:
            lines.append(f"| {row}, {column} | not run | {text} | | |")
            continue
        here, our_error = _mean(ours)
        gap, allowed = here - there, 2 * math.hypot(our_error, their_error)
        verdict = "apart" if abs(gap) > max(GAP, allowed) else "alike"
        mine = f"{here:.1f} ± {our_error:.1f} ({_seeds(ours)})"
        lines.append(f"| {row}, {column} | {mine} | {text} | {gap:+.1f} | {verdict} |")
    if not lines:
        return []
    return [
        "",
        f"| cell (± standard error) | ours | peer, same data | gap | more than {GAP:g} points and "
        "two standard errors is apart |",
        "|---|---|---|---|---|",
        *lines,
    ]


def is_trusted(shelf: TableFolders, column: str) -> bool:
    """Whether a column was run by a peer on every row where ours is finished, and none is apart."""
    cells = [cell for cell in shelf.grid.cells(shelf.scale) if cell.column == column]
    rows = {cell.row for cell in cells if shelf.find_result(cell)[0] is not None}
    held = {cell.row for cell in cells if peer_result(shelf, cell) is not None}
    return rows <= held and not any(
        line.endswith("apart |") for line in compare_with_peers(shelf, cells)[3:]
    )


def _seeds(results: list[Result]) -> str:
    return f"{len(results)} seed{'s' if len(results) > 1 else ''}"


def _mean(results: list[Result]) -> tuple[float, float]:
    """The mean of normalised scores over seeds, and its standard error."""
    values = np.array([float(result["normalized_score"]) for result in results])
    if len(values) > 1:
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    one: dict[str, Any] = results[0]
    task = find_task(str(one.get("task") or one["target"].partition("-")[0]))
    error = float(one["return_std"]) / math.sqrt(float(one["return_episodes"]))
    scale = task.normalized_score(float(one["return_mean"]) + error)
    assert scale is not None
    return float(values[0]), abs(scale - float(values[0]))
