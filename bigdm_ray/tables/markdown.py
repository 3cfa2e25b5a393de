"""Tables and overviews as Markdown: ours, with its spread over seeds, beside the published
numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigdm_ray.envs.task import find_task
from bigdm_ray.tables.base import Grid, Overview, OverviewBar, Scale, find_grid
from bigdm_ray.tables.folders import Result, TableFolders, value_of
from bigdm_ray.tables.peers import compare_with_peers, is_trusted
from bigdm_ray.tables.suites import interquartile_mean
from bigdm_ray.training.evaluation import stratified_interval

SEEDS = 3
"""Seeds of a row that an interval wants, at least."""


def table(shelf: TableFolders, only: list[str] | None = None) -> str:
    """The table as Markdown: ours (last weights, over seeds), the published number in brackets, and
    a line that says what is what.

    With words, the rows and columns of the cells that these are in. Raises UserError where that is
    none.
    """
    grid = shelf.grid
    cells = shelf.choose_cells(only or [])
    found: dict[tuple[str, str], list[Result]] = {}
    outdated: list[str] = []
    for cell in cells:
        result, why = shelf.find_result(cell)
        if result:
            found.setdefault((cell.row, cell.column), []).append(result)
        elif why:
            outdated.append(f"{shelf.file(cell).name} ({why})")
    asked = {(cell.row, cell.column) for cell in cells}
    known = {(cell.row, cell.column) for cell in grid.cells(shelf.scale)}
    rows = [row for row in grid.rows if not only or any(row == r for r, _ in asked)]
    columns = [column for column in grid.columns if not only or any(column == c for _, c in asked)]
    offline = any(cell.dataset for cell in cells)
    heads = ["", *(grid.heading(c, shelf.scale) for c in columns)]
    heads += ["the data"] if offline else []
    lines = [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * (1 + len(columns) + offline)}",
    ]
    for row in rows:
        without = {
            column: "not run"
            if (row, column) in asked
            else "left out"
            if (row, column) in known
            else "none"
            for column in columns
        }
        printed = [
            _cell(found.get((row, column), []), grid, (row, column), without[column])
            for column in columns
        ]
        lines.append(
            f"| {' | '.join([row, *printed, *([_data(row, grid, found)] if offline else [])])} |"
        )
    if grid.averages and set(grid.averaged_rows) <= set(rows):
        named = (
            f"mean of the {len(grid.averaged_rows)} rows without {', '.join(grid.apart)}"
            if grid.apart
            else "mean of the rows"
        )
        average = [named, *(_average(grid, found, column) for column in columns)]
        average += [""] if offline else []
        lines.append(f"| {' | '.join(average)} |")
    rounded = sum(
        result.get("precision") == "bf16" for results in found.values() for result in results
    )
    untold = sum("settings" not in result for results in found.values() for result in results)
    text = [
        (
            f"{grid.title}. {grid.unit.capitalize()} of the last weights: mean over seeds ±"
            f" standard deviation over seeds (95 % bootstrap interval of the mean, from {SEEDS}"
            f" seeds on) [published]; scale {shelf.scale}: {grid.budgets[shelf.scale]}."
        ),
        (
            f"Published: {grid.source}. {sum(map(len, found.values()))} of {len(cells)} runs are"
            " finished."
        ),
        *([f"Trained with --precision bf16: {rounded} of these."] if rounded else []),
        *(
            [f"Of {untold} of these the settings were not kept: a default may have changed since."]
            if untold
            else []
        ),
        *([f"Outdated, so counted as not run: {'; '.join(outdated)}."] if outdated else []),
        *grid.notes,
        "",
        *lines,
    ]
    return "\n".join(text + spread(grid, found, shelf.scale) + compare_with_peers(shelf, cells))


def scores(results: list[Result], unit: str, which: str = "last") -> np.ndarray:
    """The numbers of a cell's seeds, without those that have none: `[n]`."""
    return np.array([v for r in results if (v := value_of(r, unit, which)) is not None])


def interval(strata: list[np.ndarray]) -> str:
    """The 95 % interval of the mean of the rows' means, where each row has seeds enough."""
    return (
        "{:.1f} to {:.1f}".format(*stratified_interval(strata))
        if min(map(len, strata)) >= SEEDS
        else f"fewer than {SEEDS} seeds in a row"
    )


def _cell(results: list[Result], grid: Grid, key: tuple[str, str], without: str) -> str:
    """Ours, and [published]; `without` results what is said instead.

    Where a task has no normalised score, its return.
    """
    values, word = scores(results, grid.unit), ""
    if results and not len(values):
        values, word = scores(results, "return"), "return "
    ours = without
    if len(values):
        deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else " (1 seed)"
        ours = f"{word}{values.mean():.1f}{deviation}"
        if len(values) >= SEEDS:
            ours += f" ({interval([values])})"
    known = grid.published.get(key)
    if not known:
        return ours
    return f"{ours} [{known[0]:g}{'' if known[1] is None else f' ± {known[1]:g}'}]"


def _data(row: str, grid: Grid, found: dict[tuple[str, str], list[Result]]) -> str:
    for (r, _), results in found.items():
        if r == row and results[0]["dataset"]:
            mean = results[0]["dataset"]["return_mean"]
            ratio = results[0]["normalized_score"] is not None and grid.unit == "normalised score"
            # results of before it was kept are of bodies
            task = results[0].get("task") or row.partition("-")[0]
            score = find_task(task).normalized_score(mean) if ratio else None
            return f"{mean if score is None else score:.1f}"
    return ""


def _average(grid: Grid, found: dict[tuple[str, str], list[Result]], column: str) -> str:
    """Over the rows that are averaged, where all of them are there."""
    rows = [scores(found.get((row, column), []), grid.unit) for row in grid.averaged_rows]
    ours = f"{np.mean([row.mean() for row in rows]):.1f}" if all(map(len, rows)) else "not complete"
    known = [
        grid.published[row, column][0]
        for row in grid.averaged_rows
        if (row, column) in grid.published
    ]
    return f"{ours} [{np.mean(known):.1f}]" if len(known) == len(grid.averaged_rows) else ours


def spread(grid: Grid, found: dict[tuple[str, str], list[Result]], scale: Scale) -> list[str]:
    """For each column, over the rows with finished runs: the mean of their means, its 95 % interval
    over seeds, and the interquartile mean of the runs.

    Where rows are not averaged, the same of each cell. The interval is a stratified bootstrap
    (Agarwal et al. 2021): seeds are resampled within each row, so that how much rows differ does
    not count.
    """
    what = "over the rows with finished runs" if grid.averages else "cell"
    lines = [
        "",
        (
            f"| {what} | runs | mean, last | 95 % interval over seeds | interquartile mean | mean,"
            " best on the way |"
        ),
    ]
    lines += ["|---|---|---|---|---|---|"]
    if grid.averages:
        groups = {
            grid.heading(column, scale): [(row, column) for row in grid.averaged_rows]
            for column in grid.columns
        }
    else:
        groups = {
            f"{row}, {grid.heading(column, scale)}": [(row, column)]
            for row in grid.rows
            for column in grid.columns
        }
    for name, keys in groups.items():
        here = [found[key] for key in keys if key in found]
        last = [values for results in here if len(values := scores(results, grid.unit))]
        best = [
            values.mean() for results in here if len(values := scores(results, grid.unit, "best"))
        ]
        runs = sum(map(len, last))
        if runs < 2:
            continue
        mean, mean_best = (
            np.mean([values.mean() for values in last]),
            f"{np.mean(best):.1f}" if best else "none",
        )
        lines.append(
            f"| {name} | {runs} | {mean:.1f} | {interval(last)} |"
            f" {interquartile_mean(np.concatenate(last)):.1f} | {mean_best} |"
        )
    return lines if len(lines) > 3 else []


# --- overviews


@dataclass(frozen=True)
class MeasuredBar:
    """A bar with what is finished of it: the mean over seeds of each row that has any, by row."""

    bar: OverviewBar
    scores: dict[str, float]
    withheld: bool = False
    """Whether cells are finished, but no peer's own code has come to the same."""

    @property
    def mean(self) -> float | None:
        """The mean over the rows that are there; None where none is."""
        return float(np.mean(list(self.scores.values()))) if self.scores else None

    @property
    def state(self) -> str:
        """How much of the bar is there: nothing to say where it is whole."""
        if self.bar.column is None:
            return "none"
        if self.withheld:
            return "no peer comes to the same"
        here, all_of_it = len(self.scores), len(self.bar.rows)
        return (
            "not run" if not here else "" if here == all_of_it else f"{here} of {all_of_it} cells"
        )


def measure_bars(overview: Overview, scale: Scale, results: Path, data: Path) -> list[MeasuredBar]:
    """Every bar, made of the finished cells of the grids.

    Raises UserError for a file that is not a cell's result.
    """
    out = []
    for bar in overview.bars:
        values: dict[str, list[float]] = {}
        withheld = False
        if bar.column is not None:
            grid = find_grid(bar.column[0])
            shelf = TableFolders(grid, scale, data, results, Path())
            withheld = bar.peer and not is_trusted(shelf, bar.column[1])
            for cell in grid.cells(scale):
                result = (
                    shelf.find_result(cell)[0]
                    if cell.column == bar.column[1] and cell.row in bar.rows
                    else None
                )
                value = None if result is None else value_of(result, grid.unit, "last")
                if value is not None:
                    values.setdefault(cell.row, []).append(value)
        means = {row: float(np.mean(values[row])) for row in bar.rows if row in values}
        out.append(MeasuredBar(bar, {} if withheld else means, withheld and bool(means)))
    return out


def overview_table(overview: Overview, scale: Scale, bars: list[MeasuredBar]) -> str:
    """The bars as Markdown: a row a domain, a column a method; ours, how much of it is there,
    [published]."""
    found = {(one.bar.domain, one.bar.method): one for one in bars}

    def cell(domain: str, method: str) -> str:
        one = found[domain, method]
        ours = (
            one.state
            if one.mean is None
            else f"{one.mean:.1f}{f' ({one.state})' if one.state else ''}"
        )
        return f"{ours} [{one.bar.published:g}]"

    lines = [
        f"| {' | '.join(['', *overview.methods])} |",
        f"|{'---|' * (len(overview.methods) + 1)}",
    ]
    lines += [
        f"| {' | '.join([domain, *(cell(domain, method) for method in overview.methods)])} |"
        for domain in overview.domains
    ]
    text = [
        (
            f"{overview.title}. Normalised score of the last weights, mean over the cells of a"
            f" domain [published]; scale {scale}."
        ),
        f"Published: {overview.source}.",
        *overview.notes,
        "",
        *lines,
    ]
    return "\n".join(text)
