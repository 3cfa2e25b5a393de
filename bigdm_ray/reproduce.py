"""Fill a published table: `python -m bigdm_ray.reproduce TABLE [flags]`.

    python -m bigdm_ray.reproduce                              the tables there are
    python -m bigdm_ray.reproduce percent-bc --scale quick     train what is missing, print ours beside the published
    python -m bigdm_ray.reproduce percent-bc --show            print what is there, train nothing
    python -m bigdm_ray.reproduce percent-bc --only hopper     only what the word is in: rows, columns, seed=1
    python -m bigdm_ray.reproduce dt-overview                  a picture of bars, of the finished cells of other tables

A cell is one ordinary run; a finished one leaves RESULTS/TABLE/SCALE/CELL.json and is not trained again, unless its settings or its
dataset are other ones today: then the file is named as outdated and counts as not run. A stopped cell goes on from its last
checkpoint. Cells run side by side over Ray, one a core, or one after the other with --local. Offline tables want datasets under
--data; what is missing is named with the way to make it, and its cells print as not run.
An overview trains nothing: it prints bars, each with how many of its cells are there, and leaves RESULTS/OVERVIEW/SCALE/overview.png
and .json.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.replay.shard import publish
from bigdm_ray.tables.base import SCALES, Bar, Cell, Grid, Overview, Scale, find_grid, grids, overviews
from bigdm_ray.training.config import Run, configure, read_run, run_from_json
from bigdm_ray.training.evaluation import stratified_interval
from bigdm_ray.training.run_folder import SAME, difference, summary_of

SCHEMA_VERSION = 1
SEEDS = 3
"""Seeds of a row that an interval wants, at least."""
Result = dict[str, Any]


def sound(found: Any) -> Result:
    """What a result's file holds, its numbers as floats. Raises KeyError, TypeError or ValueError for what is missing or of another kind."""
    result: Result = dict(found)
    result["return_mean"] = float(result["return_mean"])
    for name in ("normalized_score", "best_return_mean", "best_normalized_score"):
        result[name] = None if result[name] is None else float(result[name])
    if result["dataset"] is not None:
        result["dataset"] = {"sha256": str(result["dataset"]["sha256"]), "return_mean": float(result["dataset"]["return_mean"])}
    return result


class Shelf:
    """Where a table's finished cells lie, its run folders, and its datasets."""

    def __init__(self, grid: Grid, scale: Scale, data: Path, results: Path, runs: Path) -> None:
        self.grid, self.scale, self.data = grid, scale, data
        self.results = results / grid.name / scale
        self.runs = runs / grid.name / scale

    def file(self, cell: Cell) -> Path:
        """The result of a cell."""
        return self.results / f"{cell.name}.json"

    def asked(self, cell: Cell) -> dict[str, Any]:
        """What a result of this cell says of it."""
        told = {name: getattr(cell, name) for name in ("row", "column", "seed", "algorithm", "target")}
        return {"table": self.grid.name, "scale": self.scale, **told, "flags": list(cell.flags)}

    def result(self, cell: Cell) -> Result | None:
        """What a finished cell left, None where that is outdated. Raises UserError for a file that is not such a result."""
        found = self._read(cell)
        return None if found is None or self._differs(cell, found) else found

    def outdated(self, cell: Cell) -> str | None:
        """What of a finished cell's file is not as it is asked for, in words. Raises UserError for a file that is not such a result."""
        found = self._read(cell)
        return None if found is None else self._differs(cell, found)

    def _read(self, cell: Cell) -> Result | None:
        path = self.file(cell)
        if not path.is_file():
            return None
        try:
            found = sound(json.loads(path.read_text()))
            return {name: found[name] for name in self.asked(cell)} | found  # all of them are there
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not the result of a cell ({error}); remove it to train that cell again") from None

    def _differs(self, cell: Cell, found: Result) -> str | None:
        for name, value in self.asked(cell).items():
            if found[name] != value:
                return f"its {name} {'are' if name == 'flags' else 'is'} not the cell's"
        sha256 = found["dataset"] and found["dataset"]["sha256"]
        if cell.dataset and (sha256 is None or sha256 != (self.sha256(cell) or sha256)):
            return f"its dataset is not that in {self.data / cell.target}"
        return None

    def sha256(self, cell: Cell) -> str | None:
        """The content of a cell's dataset, where it is at hand."""
        folder = self.data / cell.target
        return Dataset.open(folder).sha256 if cell.dataset and (folder / CARD).is_file() else None

    def missing(self, cell: Cell) -> str | None:
        """What a cell lacks, with the way to make it."""
        if not cell.dataset or (self.data / cell.target / CARD).is_file():
            return None
        recipe = self.grid.recipes.get(cell.target, self.grid.recipe)
        return f"{cell.target}: {recipe.format(name=cell.target, folder=self.data / cell.target, data=self.data)}"

    def run(self, cell: Cell) -> Run:
        """The run of a cell. Raises UserError."""
        target = str(self.data / cell.target) if cell.dataset else cell.target
        return configure(cell.algorithm, target, [*cell.flags, "--seed", str(cell.seed)])

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell. Where its result is outdated, that run's folder is left alone: a fresh one is named by what is asked for now."""
        if self.outdated(cell) is None:
            return self.runs / cell.name
        mark = hashlib.sha256(json.dumps([self.asked(cell), self.sha256(cell)]).encode()).hexdigest()[:8]
        return self.runs / f"{cell.name}-{mark}"

    def keep(self, cell: Cell, run: Run, summary: dict[str, Any]) -> Result:
        """Write the small file that says that a cell is finished: what was asked for, what the run was, and what it came to."""
        kept = (
            "task", "env_steps", "learner_steps", "return_mean", "return_std", "return_low", "return_high", "return_episodes", "normalized_score",
            "best_return_mean", "best_normalized_score", "mode", "wall_s", "versions",
        )  # fmt: skip
        dataset, settings = summary.get("dataset"), run.to_json()
        result = {
            "schema_version": SCHEMA_VERSION,
            **self.asked(cell),
            "seed": run.seed,
            "settings": {name: settings[name] for name in ("algorithm", "budget", "evaluations")},
            "dataset": dataset and {name: dataset[name] for name in ("name", "sha256", "episodes", "steps", "return_mean")},
            **{name: summary.get(name) for name in kept},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        self.results.mkdir(parents=True, exist_ok=True)
        publish(self.file(cell), json.dumps(result, indent=1).encode())
        return result


def train_cell(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train one cell in this process, or go on with it; its summary. Raises UserError where the folder holds another run."""
    from bigdm_ray.run import train

    run, path = run_from_json(asked), Path(folder)
    begun = (path / "run.json").is_file()
    if begun and (differs := difference(run, read_run(path), ("budget", *SAME))):
        raise UserError(f"{path} holds another run than the cell's ({differs}); remove that folder to train the cell")
    if begun and (summary := summary_of(path)):
        return summary
    return train(run, path, resume=begun, local=True)


def fill(shelf: Shelf, cells: list[Cell], jobs: int, local: bool) -> list[str]:
    """Train cells; one sentence for each that failed. A failure stops no other cell."""
    problems = []

    def done(cell: Cell, run: Run, summary: dict[str, Any] | None, why: str = "") -> None:
        if summary is None:
            problems.append(f"{cell.row}, {cell.column}, seed {cell.seed}: {why}")
            print(f"failed: {problems[-1]}", file=sys.stderr)
            return
        result = shelf.keep(cell, run, summary)
        score = value_of(result, shelf.grid.unit, "last")
        told = f"return {result['return_mean']:.1f}" if score is None else f"{score:.1f}"
        print(f"{cell.row}, {cell.column}, seed {cell.seed}: {told} ({result['wall_s']:.0f} s)", file=sys.stderr)

    work = [(cell, shelf.run(cell), str(shelf.folder(cell).resolve())) for cell in cells]
    if local:
        for cell, run, folder in work:
            try:
                done(cell, run, train_cell(run.to_json(), folder))
            except (UserError, RunFailed) as error:
                done(cell, run, None, str(error))
        return problems
    from bigdm_ray.distributed.map import side_by_side

    for number, summary, why in side_by_side(train_cell, [(run.to_json(), folder) for _, run, folder in work], jobs):
        done(*work[number][:2], summary, why)
    return problems


# --- printing


def value_of(result: Result, unit: str, which: str) -> float | None:
    """A cell's number: of the last weights, or of the best."""
    name = {("normalised score", "last"): "normalized_score", ("normalised score", "best"): "best_normalized_score"}.get(
        (unit, which), "return_mean" if which == "last" else "best_return_mean"
    )
    value = result.get(name)
    return None if value is None else float(value)


def interquartile_mean(values: Iterable[float]) -> float:
    """The mean of the middle half (Agarwal et al. 2021): a quarter of the weight is cut off at each end."""
    ordered = np.sort(np.array(list(values), np.float64))
    n = len(ordered)
    edges = np.arange(n + 1) / n
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float((ordered * weights).sum() / weights.sum())


def chosen(shelf: Shelf, only: list[str]) -> list[Cell]:
    """The cells that all these words are in. Raises UserError where that is none."""
    cells = [cell for cell in shelf.grid.cells(shelf.scale) if all(word in f"{cell.row} {cell.column} seed={cell.seed}" for word in only)]
    if not cells:
        known = f"its rows are {', '.join(shelf.grid.rows)} and its columns {', '.join(shelf.grid.columns)}"
        raise UserError(f"--only {' --only '.join(only)} fits no cell of {shelf.grid.name}; {known}")
    return cells


def table(shelf: Shelf, only: list[str] | None = None) -> str:
    """The table as Markdown: ours (last weights, over seeds), the published number in brackets, and a line that says what is what.

    With words, the rows and columns of the cells that these are in. Raises UserError where that is none.
    """
    grid = shelf.grid
    cells = chosen(shelf, only or [])
    found: dict[tuple[str, str], list[Result]] = {}
    for cell in cells:
        if result := shelf.result(cell):
            found.setdefault((cell.row, cell.column), []).append(result)
    asked = {(cell.row, cell.column) for cell in cells}
    known = {(cell.row, cell.column) for cell in grid.cells(shelf.scale)}
    rows = [row for row in grid.rows if not only or any(row == r for r, _ in asked)]
    columns = [column for column in grid.columns if not only or any(column == c for _, c in asked)]
    offline = any(cell.dataset for cell in cells)
    lines = [f"| {' | '.join(['', *columns, *(['the data'] if offline else [])])} |", f"|{'---|' * (1 + len(columns) + offline)}"]
    for row in rows:
        without = {column: "not run" if (row, column) in asked else "left out" if (row, column) in known else "none" for column in columns}
        printed = [_cell(found.get((row, column), []), grid, (row, column), without[column]) for column in columns]
        lines.append(f"| {' | '.join([row, *printed, *([_data(row, grid, found)] if offline else [])])} |")
    if grid.averages and set(grid.averaged) <= set(rows):
        named = f"mean of the {len(grid.averaged)} rows without {', '.join(grid.apart)}" if grid.apart else "mean of the rows"
        lines.append(f"| {' | '.join([named, *(_average(grid, found, column) for column in columns), *([''] if offline else [])])} |")
    outdated = [f"{shelf.file(cell).name} ({why})" for cell in cells if (why := shelf.outdated(cell))]
    text = [
        f"{grid.title}. {grid.unit.capitalize()} of the last weights: mean over seeds ± standard deviation over seeds (95 % bootstrap interval of the mean, "
        f"from {SEEDS} seeds on) [published]; scale {shelf.scale}: {grid.budgets[shelf.scale]}.",
        f"Published: {grid.source}. {sum(map(len, found.values()))} of {len(cells)} runs are finished.",
        *([f"Outdated, so counted as not run: {'; '.join(outdated)}."] if outdated else []),
        *grid.notes,
        "",
        *lines,
    ]
    return "\n".join(text + spread(grid, found))


def scores(results: list[Result], unit: str, which: str = "last") -> np.ndarray:
    """The numbers of a cell's seeds, without those that have none: `[n]`."""
    return np.array([v for r in results if (v := value_of(r, unit, which)) is not None])


def interval(strata: list[np.ndarray]) -> str:
    """The 95 % interval of the mean of the rows' means, where each row has seeds enough."""
    return "{:.1f} to {:.1f}".format(*stratified_interval(strata)) if min(map(len, strata)) >= SEEDS else f"fewer than {SEEDS} seeds in a row"


def _cell(results: list[Result], grid: Grid, key: tuple[str, str], without: str) -> str:
    """Ours, and [published]; `without` results what is said instead. Where a task has no normalised score, its return."""
    values, word = scores(results, grid.unit), ""
    if results and not len(values):
        values, word = scores(results, "return"), "return "
    ours = without
    if len(values):
        deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else " (1 seed)"
        ours = f"{word}{values.mean():.1f}{deviation}{f' ({interval([values])})' if len(values) >= SEEDS else ''}"
    known = grid.published.get(key)
    return f"{ours} [{known[0]:g}]" if known else ours


def _data(row: str, grid: Grid, found: dict[tuple[str, str], list[Result]]) -> str:
    from bigdm_ray.envs.task import find_task

    for (r, _), results in found.items():
        if r == row and results[0]["dataset"]:
            mean = results[0]["dataset"]["return_mean"]
            ratio = results[0]["normalized_score"] is not None and grid.unit == "normalised score"
            task = results[0].get("task") or row.partition("-")[0]  # results of before it was kept are of bodies
            score = find_task(task).normalized_score(mean) if ratio else None
            return f"{mean if score is None else score:.1f}"
    return ""


def _average(grid: Grid, found: dict[tuple[str, str], list[Result]], column: str) -> str:
    """Over the rows that are averaged, where all of them are there."""
    rows = [scores(found.get((row, column), []), grid.unit) for row in grid.averaged]
    ours = f"{np.mean([row.mean() for row in rows]):.1f}" if all(map(len, rows)) else "not complete"
    known = [grid.published[row, column][0] for row in grid.averaged if (row, column) in grid.published]
    return f"{ours} [{np.mean(known):.1f}]" if len(known) == len(grid.averaged) else ours


def spread(grid: Grid, found: dict[tuple[str, str], list[Result]]) -> list[str]:
    """For each column, over the rows with finished runs: the mean of their means, its 95 % interval over seeds, and the interquartile mean of the runs.

    The interval is a stratified bootstrap (Agarwal et al. 2021): seeds are resampled within each row, so that how much rows differ does not count.
    """
    lines = ["", "| over the rows with finished runs | runs | mean, last | 95 % interval over seeds | interquartile mean | mean, best on the way |"]
    lines += ["|---|---|---|---|---|---|"]
    for column in grid.columns:
        here = [found[row, column] for row in grid.averaged if (row, column) in found]
        last = [values for results in here if len(values := scores(results, grid.unit))]
        best = [values.mean() for results in here if len(values := scores(results, grid.unit, "best"))]
        runs = sum(map(len, last))
        if runs < 2:
            continue
        mean, mean_best = np.mean([values.mean() for values in last]), f"{np.mean(best):.1f}" if best else "none"
        lines.append(f"| {column} | {runs} | {mean:.1f} | {interval(last)} | {interquartile_mean(np.concatenate(last)):.1f} | {mean_best} |")
    return lines if len(lines) > 3 else []


# --- overviews


@dataclass(frozen=True)
class Measured:
    """A bar with what is finished of it: the mean over seeds of each row that has any, by row."""

    bar: Bar
    scores: dict[str, float]

    @property
    def mean(self) -> float | None:
        """The mean over the rows that are there; None where none is."""
        return float(np.mean(list(self.scores.values()))) if self.scores else None

    @property
    def state(self) -> str:
        """How much of the bar is there: nothing to say where it is whole."""
        if not self.bar.columns:
            return "none"
        here, all_of_it = len(self.scores), len(self.bar.rows)
        return "not run" if not here else "" if here == all_of_it else f"{here} of {all_of_it} cells"


def measured(overview: Overview, scale: Scale, results: Path, data: Path) -> list[Measured]:
    """Every bar, made of the finished cells of the grids. Raises UserError for a file that is not a cell's result."""
    out = []
    for bar in overview.bars:
        means: dict[str, float] = {}
        for name, column in bar.columns:
            grid = find_grid(name)
            shelf = Shelf(grid, scale, data, results, Path())
            cells = [cell for cell in grid.cells(scale) if cell.column == column and cell.row in bar.rows and cell.row not in means]
            values: dict[str, list[float]] = {}
            for cell in cells:
                result = shelf.result(cell)
                value = None if result is None else value_of(result, grid.unit, "last")
                if value is not None:
                    values.setdefault(cell.row, []).append(value)
            means |= {row: float(np.mean(found)) for row, found in values.items()}
        out.append(Measured(bar, {row: means[row] for row in bar.rows if row in means}))
    return out


def overview_table(overview: Overview, scale: Scale, bars: list[Measured]) -> str:
    """The bars as Markdown: a row a domain, a column a method; ours, how much of it is there, [published]."""
    found = {(one.bar.domain, one.bar.method): one for one in bars}

    def cell(domain: str, method: str) -> str:
        one = found[domain, method]
        ours = one.state if one.mean is None else f"{one.mean:.1f}{f' ({one.state})' if one.state else ''}"
        return f"{ours} [{one.bar.published:g}]"

    lines = [f"| {' | '.join(['', *overview.methods])} |", f"|{'---|' * (len(overview.methods) + 1)}"]
    lines += [f"| {' | '.join([domain, *(cell(domain, method) for method in overview.methods)])} |" for domain in overview.domains]
    text = [
        f"{overview.title}. Normalised score of the last weights, mean over the cells of a domain [published]; scale {scale}.",
        f"Published: {overview.source}.",
        *overview.notes,
        "",
        *lines,
    ]
    return "\n".join(text)


def draw_overview(overview: Overview, bars: list[Measured], path: Path) -> None:
    """Write the picture, and its numbers beside it as JSON. Raises RunFailed."""
    import matplotlib

    from bigdm_ray.pictures.base import COLOURS, STYLE, mark, panelled, write

    with matplotlib.rc_context(STYLE):
        figure, panels = panelled(len(overview.domains), 4.2, 4.0)
        for axes, domain in zip(panels, overview.domains, strict=True):
            here = [one for one in bars if one.bar.domain == domain]
            for place, one in enumerate(here):
                height = one.mean or 0.0
                colour = COLOURS[overview.methods.index(one.bar.method)]
                axes.bar(place, height, 0.65, color=colour, hatch="//" if one.state else None, alpha=0.6 if one.state else 1.0)
                axes.annotate(one.state, (place, max(height, 0.0)), (0, 3), textcoords="offset points", ha="center", fontsize=9)
            mark(axes, [(place + 0.42, one.bar.published) for place, one in enumerate(here)], "published")
            axes.set_xticks(range(len(here)), [one.bar.method for one in here])
            axes.set_title(domain)
            axes.grid(axis="x", visible=False)
        panels[0].set_ylabel("normalised score, mean over the cells")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right")
        numbers = [
            {"domain": one.bar.domain, "method": one.bar.method, "mean": one.mean, "published": one.bar.published, "rows": list(one.bar.rows)}
            | {"scores": one.scores, "state": one.state or "complete"}
            for one in bars
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write(figure, {"schema_version": SCHEMA_VERSION, "overview": overview.name, "source": overview.source, "bars": numbers}, path)


# --- docs/results.md

BEGIN, END = "<!-- tables of reproduce: made, not written -->", "<!-- end of tables -->"


def write_docs(page: Path, results: Path, data: Path, runs: Path) -> None:
    """Put every table and overview that has a finished cell between the two marks of the page. Raises UserError where the marks are missing."""
    text = page.read_text() if page.is_file() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise UserError(f"{page} has no place for tables: it needs the lines {BEGIN!r} and {END!r}")
    parts = []
    for grid in grids().values():
        for scale in SCALES:
            shelf = Shelf(grid, scale, data, results, runs)
            if any(shelf.result(cell) for cell in grid.cells(scale)):
                parts.append(f"### `python -m bigdm_ray.reproduce {grid.name} --scale {scale}`\n\n{table(shelf)}\n")
    for overview in overviews().values():
        for scale in SCALES:
            bars = measured(overview, scale, results, data)
            if any(one.scores for one in bars):
                parts.append(f"### `python -m bigdm_ray.reproduce {overview.name} --scale {scale}`\n\n{overview_table(overview, scale, bars)}\n")
    before, after = text.split(BEGIN)[0], text.split(END, 1)[1]
    publish(page, (before + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + after).encode())


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(prog="python -m bigdm_ray.reproduce", description="Fill a published table with runs of one's own.", allow_abbrev=False)
    parser.add_argument("table", nargs="?", metavar="TABLE", help="one of " + ", ".join([*grids(), *overviews()]))
    parser.add_argument("--scale", choices=SCALES, default="quick", help="how much training a cell gets (default: quick)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="train and print only cells whose row, column or seed (as seed=1) has this in it; repeatable",
    )
    parser.add_argument("--data", type=Path, default=Path("datasets"), help="where the datasets are (default: datasets)")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="where finished cells are kept (default: docs/results)")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="where the run folders are (default: runs/reproduce)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells side by side over Ray (default: one a core)")
    parser.add_argument("--local", action="store_true", help="one cell after the other in this process, without Ray")
    parser.add_argument("--show", action="store_true", help="print the table as it is, train and draw nothing")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also put all tables into this Markdown page, between its two marks")
    given = parser.parse(arguments)
    if given.jobs < 1:
        raise UserError(f"--jobs is {given.jobs}, but at least 1 is expected")
    problems: list[str] = []
    if given.table is None and given.only:
        raise UserError("--only chooses among the cells of a table; name the TABLE too")
    if given.table is None:
        for grid in grids().values():
            print(f"{grid.name:<20}{grid.title}; {len(grid.rows)} x {len(grid.columns)}, {grid.seeds} seeds")
        for overview in overviews().values():
            print(f"{overview.name:<20}{overview.title}; bars made of other tables")
    elif given.table in overviews():
        overview, scale = overviews()[given.table], cast(Scale, given.scale)
        if given.only:
            raise UserError(f"{overview.name} is made of the cells of other tables, all of them; leave --only out")
        bars = measured(overview, scale, given.results, given.data)
        print(overview_table(overview, scale, bars))
        if not given.show:
            draw_overview(overview, bars, given.results / overview.name / scale / "overview.png")
    else:
        shelf = Shelf(find_grid(given.table), cast(Scale, given.scale), given.data, given.results, given.runs)
        problems = [] if given.show else fill_missing(shelf, given.only, given.jobs, given.local)
        print(table(shelf, given.only))
    if given.page:
        write_docs(given.page, given.results, given.data, given.runs)
    return 1 if problems else 0


def fill_missing(shelf: Shelf, only: list[str], jobs: int, local: bool) -> list[str]:
    """Train the cells that are asked for, missing, and possible; one sentence for each that failed. Raises UserError for words that fit none."""
    asked = chosen(shelf, only)
    wanted = [cell for cell in asked if shelf.result(cell) is None]
    for cell in wanted:
        if why := shelf.outdated(cell):
            print(f"outdated, so not run: {shelf.file(cell)}: {why}", file=sys.stderr)
    lacking = sorted({lack for cell in wanted if (lack := shelf.missing(cell))})
    for lack in lacking:
        print(f"not run, the dataset is missing: {lack}", file=sys.stderr)
    possible = [cell for cell in wanted if shelf.missing(cell) is None]
    for name in sorted({cell.target for cell in possible if cell.dataset}):
        Dataset.open(shelf.data / name)
    print(f"{shelf.grid.name}, scale {shelf.scale}: {len(asked) - len(wanted)} of {len(asked)} cells are there, {len(possible)} to train", file=sys.stderr)
    return fill(shelf, possible, jobs, local) if possible else []


if __name__ == "__main__":
    raise SystemExit(door(main))
