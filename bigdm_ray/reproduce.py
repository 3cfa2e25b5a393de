"""Fill a published table: `python -m bigdm_ray.reproduce TABLE [flags]`.

    python -m bigdm_ray.reproduce                              the tables there are
    python -m bigdm_ray.reproduce percent-bc --scale quick     train what is missing, print ours beside the published
    python -m bigdm_ray.reproduce percent-bc --show            print what is there, train nothing
    python -m bigdm_ray.reproduce percent-bc --only hopper     rows or columns that hold the word
    python -m bigdm_ray.reproduce dt-overview                  a picture of bars, of the finished cells of other tables

A cell is one ordinary run; a finished one leaves RESULTS/TABLE/SCALE/CELL.json and is never trained again. A stopped cell goes
on from its last checkpoint. Cells run side by side over Ray, one a core, or one after the other with --local. Offline
tables want datasets under --data; what is missing is named with the way to make it, and its cells print as not run.
An overview trains nothing: it prints bars, each with how many of its cells are there, and leaves RESULTS/OVERVIEW/SCALE/overview.png
and .json.
"""

from __future__ import annotations

import datetime
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
from bigdm_ray.training.config import Run, configure
from bigdm_ray.training.evaluation import bootstrap_interval

SCHEMA_VERSION = 1
Result = dict[str, Any]


class Shelf:
    """Where a table's finished cells lie, its run folders, and its datasets."""

    def __init__(self, grid: Grid, scale: Scale, data: Path, results: Path, runs: Path) -> None:
        self.grid, self.scale, self.data = grid, scale, data
        self.results = results / grid.name / scale
        self.runs = runs / grid.name / scale

    def file(self, cell: Cell) -> Path:
        """The result of a cell."""
        return self.results / f"{cell.name}.json"

    def result(self, cell: Cell) -> Result | None:
        """What a finished cell left. Raises UserError for a file that is not such a result."""
        path = self.file(cell)
        if not path.is_file():
            return None
        try:
            found: Result = json.loads(path.read_text())
            float(found["return_mean"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not the result of a cell ({error}); remove it to train that cell again") from None
        return found

    def missing(self, cell: Cell) -> str | None:
        """What a cell lacks, with the way to make it."""
        if not cell.dataset or (self.data / cell.target / CARD).is_file():
            return None
        return f"{cell.target}: {self.grid.recipe.format(name=cell.target, folder=self.data / cell.target)}"

    def run(self, cell: Cell) -> Run:
        """The run of a cell. Raises UserError."""
        target = str(self.data / cell.target) if cell.dataset else cell.target
        return configure(cell.algorithm, target, [*cell.flags, "--seed", str(cell.seed)])

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.runs / cell.name

    def keep(self, cell: Cell, summary: dict[str, Any]) -> Result:
        """Write the small file that says that a cell is finished."""
        kept = (
            "task", "env_steps", "learner_steps", "return_mean", "return_std", "return_low", "return_high", "return_episodes", "normalized_score",
            "best_return_mean", "best_normalized_score", "mode", "wall_s", "versions",
        )  # fmt: skip
        dataset = summary.get("dataset")
        result = {
            "schema_version": SCHEMA_VERSION,
            "table": self.grid.name,
            "scale": self.scale,
            "row": cell.row,
            "column": cell.column,
            "seed": cell.seed,
            "algorithm": cell.algorithm,
            "target": cell.target,
            "flags": list(cell.flags),
            "dataset": dataset and {name: dataset[name] for name in ("name", "sha256", "episodes", "steps", "return_mean")},
            **{name: summary.get(name) for name in kept},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        self.results.mkdir(parents=True, exist_ok=True)
        publish(self.file(cell), json.dumps(result, indent=1).encode())
        return result


def train_cell(run: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train one cell in this process, or go on with it; its summary."""
    from bigdm_ray.run import train
    from bigdm_ray.training.config import run_from_json

    path = Path(folder)
    summary = path / "summary.json"
    if summary.is_file():
        done: dict[str, Any] = json.loads(summary.read_text())
        return done
    return train(run_from_json(run), path, resume=(path / "run.json").is_file(), local=True)


def fill(shelf: Shelf, cells: list[Cell], jobs: int, local: bool) -> list[str]:
    """Train cells; one sentence for each that failed. A failure stops no other cell."""
    problems = []

    def done(cell: Cell, summary: dict[str, Any] | None, why: str = "") -> None:
        if summary is None:
            problems.append(f"{cell.row}, {cell.column}, seed {cell.seed}: {why}")
            print(f"failed: {problems[-1]}", file=sys.stderr)
            return
        result = shelf.keep(cell, summary)
        score = result["normalized_score"] if shelf.grid.unit == "normalised score" else result["return_mean"]
        print(f"{cell.row}, {cell.column}, seed {cell.seed}: {score:.1f} ({result['wall_s']:.0f} s)", file=sys.stderr)

    work = [(cell, shelf.run(cell).to_json(), str(shelf.folder(cell).resolve())) for cell in cells]
    if local:
        for cell, run, folder in work:
            try:
                done(cell, train_cell(run, folder))
            except (UserError, RunFailed) as error:
                done(cell, None, str(error))
        return problems
    from bigdm_ray.distributed.map import side_by_side

    for number, summary, why in side_by_side(train_cell, [(run, folder) for _, run, folder in work], jobs):
        done(work[number][0], summary, why)
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


def table(shelf: Shelf) -> str:
    """The table as Markdown: ours (last weights, over seeds), the published number in brackets, and a line that says what is what."""
    grid = shelf.grid
    found: dict[tuple[str, str], list[Result]] = {}
    runnable = set()
    for cell in grid.cells(shelf.scale):
        runnable.add((cell.row, cell.column))
        if result := shelf.result(cell):
            found.setdefault((cell.row, cell.column), []).append(result)
    offline = any(cell.dataset for cell in grid.cells(shelf.scale))
    head = ["", *grid.columns, *(["the data"] if offline else [])]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in grid.rows:
        cells = [_cell(found.get((row, column), []), grid, (row, column), (row, column) in runnable) for column in grid.columns]
        lines.append(f"| {' | '.join([row, *cells, *([_data(row, grid, found)] if offline else [])])} |")
    if grid.averages:
        lines.append(f"| {' | '.join(['mean of the rows', *(_average(grid, found, column) for column in grid.columns), *([''] if offline else [])])} |")
    done, asked = sum(map(len, found.values())), len(grid.cells(shelf.scale))
    text = [
        f"{grid.title}. {grid.unit.capitalize()} of the last weights, mean over seeds [published]; scale {shelf.scale}: {grid.budgets[shelf.scale]}.",
        f"Published: {grid.source}. {done} of {asked} runs are finished.",
        *grid.notes,
        "",
        *lines,
    ]
    return "\n".join(text + spread(grid, found))


def _cell(results: list[Result], grid: Grid, key: tuple[str, str], runnable: bool) -> str:
    ours = "not run" if runnable else "none"
    values = [v for r in results if (v := value_of(r, grid.unit, "last")) is not None]
    if values:
        deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else " (1 seed)"
        ours = f"{np.mean(values):.1f}{deviation}"
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
    """Over the rows, where all of them are there."""
    rows = [[v for r in found.get((row, column), []) if (v := value_of(r, grid.unit, "last")) is not None] for row in grid.rows]
    ours = "not complete" if not all(rows) else f"{np.mean([np.mean(row) for row in rows]):.1f}"
    known = [grid.published[row, column][0] for row in grid.rows if (row, column) in grid.published]
    return f"{ours} [{np.mean(known):.1f}]" if len(known) == len(grid.rows) else ours


def spread(grid: Grid, found: dict[tuple[str, str], list[Result]]) -> list[str]:
    """For each column: mean of last and best, 95 % bootstrap interval and interquartile mean over all finished runs."""
    lines = ["", "| over all finished runs | runs | mean, last | 95 % interval | interquartile mean | mean, best on the way |", "|---|---|---|---|---|---|"]
    for column in grid.columns:
        results = [result for (_, c), cell in found.items() if c == column for result in cell]
        last = np.array([v for r in results if (v := value_of(r, grid.unit, "last")) is not None])
        best = [v for r in results if (v := value_of(r, grid.unit, "best")) is not None]
        if len(last) < 2:
            continue
        low, high = bootstrap_interval(last)
        mean_best = f"{np.mean(best):.1f}" if best else "none"
        lines.append(f"| {column} | {len(last)} | {last.mean():.1f} | {low:.1f} to {high:.1f} | {interquartile_mean(last):.1f} | {mean_best} |")
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


def measured(overview: Overview, scale: Scale, results: Path) -> list[Measured]:
    """Every bar, made of the finished cells of the grids. Raises UserError for a file that is not a cell's result."""
    out = []
    for bar in overview.bars:
        scores: dict[str, float] = {}
        for name, column in bar.columns:
            grid = find_grid(name)
            shelf = Shelf(grid, scale, Path(), results, Path())
            cells = [cell for cell in grid.cells(scale) if cell.column == column and cell.row in bar.rows and cell.row not in scores]
            values: dict[str, list[float]] = {}
            for cell in cells:
                result = shelf.result(cell)
                value = None if result is None else value_of(result, grid.unit, "last")
                if value is not None:
                    values.setdefault(cell.row, []).append(value)
            scores |= {row: float(np.mean(found)) for row, found in values.items()}
        out.append(Measured(bar, {row: scores[row] for row in bar.rows if row in scores}))
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
            bars = measured(overview, scale, results)
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
        "--only", action="append", default=[], metavar="WORD", help="only cells whose row, column or seed (as seed=1) holds this; may be repeated"
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
    if given.table is None:
        for grid in grids().values():
            print(f"{grid.name:<20}{grid.title}; {len(grid.rows)} x {len(grid.columns)}, {grid.seeds} seeds")
        for overview in overviews().values():
            print(f"{overview.name:<20}{overview.title}; bars made of other tables")
    elif given.table in overviews():
        overview, scale = overviews()[given.table], cast(Scale, given.scale)
        if given.only:
            raise UserError(f"{overview.name} is made of the cells of other tables, all of them; leave --only out")
        bars = measured(overview, scale, given.results)
        print(overview_table(overview, scale, bars))
        if not given.show:
            draw_overview(overview, bars, given.results / overview.name / scale / "overview.png")
    else:
        shelf = Shelf(find_grid(given.table), cast(Scale, given.scale), given.data, given.results, given.runs)
        problems = [] if given.show else fill_missing(shelf, given.only, given.jobs, given.local)
        print(table(shelf))
    if given.page:
        write_docs(given.page, given.results, given.data, given.runs)
    return 1 if problems else 0


def fill_missing(shelf: Shelf, only: list[str], jobs: int, local: bool) -> list[str]:
    """Train the cells that are asked for, missing, and possible; one sentence for each that failed. Raises UserError for words that fit none."""
    asked = [cell for cell in shelf.grid.cells(shelf.scale) if all(word in f"{cell.row} {cell.column} seed={cell.seed}" for word in only)]
    if not asked:
        known = f"its rows are {', '.join(shelf.grid.rows)} and its columns {', '.join(shelf.grid.columns)}"
        raise UserError(f"--only {' --only '.join(only)} fits no cell of {shelf.grid.name}; {known}")
    wanted = [cell for cell in asked if shelf.result(cell) is None]
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
