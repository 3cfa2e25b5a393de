"""Fill a published table: `python -m bigdm_ray.reproduce TABLE [flags]`.

    python -m bigdm_ray.reproduce                            the tables there are
    python -m bigdm_ray.reproduce percent-bc --scale quick   train what is missing, print ours
                                                             beside the published
    python -m bigdm_ray.reproduce percent-bc --show          print what is there, train nothing
    python -m bigdm_ray.reproduce percent-bc --only hopper   only what the word is in: rows,
                                                             columns, seed=1
    python -m bigdm_ray.reproduce dt-overview                a picture of bars, of the finished
                                                             cells of other tables
    python -m bigdm_ray.reproduce --tables docs/tables       every table with a finished cell as a
                                                             page

A cell is one ordinary run; a finished one leaves RESULTS/TABLE/SCALE/CELL.json and is not trained
again, nor is a cell of another table that is the same run, unless its settings or its dataset are
other ones today: then the file is named as outdated and counts as not run. A stopped cell goes on
from its last checkpoint. Cells run side by side over Ray, one a core, or one after the other with
--local. With --precision bf16 transformers are trained in bfloat16; the table says how many of its
runs were. Offline tables want datasets under --data; what is missing is named with the way to make
it, and its cells print as not run. An overview trains nothing: it prints bars, each with how many
of its cells are there, and leaves RESULTS/OVERVIEW/SCALE/overview.png and .json.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.progress import Progress, say
from bigdm_ray.replay.shard import publish
from bigdm_ray.tables.base import SCALES, Cell, Overview, Scale, find_grid, grids, overviews
from bigdm_ray.tables.folders import SCHEMA_VERSION, TableFolders, value_of
from bigdm_ray.tables.markdown import MeasuredBar, measure_bars, overview_table, table
from bigdm_ray.training.config import Run, read_run, run_from_json
from bigdm_ray.training.run_folder import SAME, difference, summary_of


def train_cell(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train one cell in this process, or go on with it; its summary.

    Raises UserError where the folder holds another run.
    """
    from bigdm_ray.run import train

    run, path = run_from_json(asked), Path(folder)
    begun = (path / "run.json").is_file()
    if begun and (differs := difference(run, read_run(path), ("budget", *SAME))):
        raise UserError(
            f"{path} holds another run than the cell's ({differs}); remove that folder to train the"
            " cell"
        )
    if begun and (summary := summary_of(path)):
        return summary
    return train(run, path, resume=begun, local=True)


def fill(shelf: TableFolders, cells: list[Cell], jobs: int, local: bool) -> list[str]:
    """Train cells, and show how many have ended; one sentence for each that failed.

    A failure stops no other cell.
    """
    problems: list[str] = []
    with Progress(f"{shelf.grid.name}, scale {shelf.scale}", len(cells), units="cells") as bar:
        _fill(shelf, cells, jobs, local, problems, bar)
    return problems


def _fill(
    shelf: TableFolders,
    cells: list[Cell],
    jobs: int,
    local: bool,
    problems: list[str],
    bar: Progress,
) -> None:

    def done(cell: Cell, run: Run, summary: dict[str, Any] | None, why: str = "") -> None:
        bar.advance(1)
        if summary is None:
            problems.append(f"{cell.row}, {cell.column}, seed {cell.seed}: {why}")
            say(f"failed: {problems[-1]}")
            return
        result = shelf.keep(cell, run, summary)
        score = value_of(result, shelf.grid.unit, "last")
        told = f"return {result['return_mean']:.1f}" if score is None else f"{score:.1f}"
        say(f"{cell.row}, {cell.column}, seed {cell.seed}: {told} ({result['wall_s']:.0f} s)")

    work = [(cell, shelf.run(cell), str(shelf.folder(cell).resolve())) for cell in cells]
    if local:
        for cell, run, folder in work:
            try:
                done(cell, run, train_cell(run.to_json(), folder))
            except UserError as error:
                done(cell, run, None, str(error))
            except Exception as error:  # noqa: BLE001  (whatever broke, the other cells can be trained)
                traceback.print_exc()
                done(cell, run, None, f"{type(error).__name__}: {error}")
        return
    from bigdm_ray.distributed.map import run_side_by_side

    for number, summary, why in run_side_by_side(
        train_cell, [(run.to_json(), folder) for _, run, folder in work], jobs
    ):
        done(*work[number][:2], summary, why)


def draw_overview(overview: Overview, bars: list[MeasuredBar], path: Path) -> None:
    """Write the picture, and its numbers beside it as JSON. Raises RunFailed."""
    import matplotlib

    from bigdm_ray.pictures.base import COLOURS, STYLE, make_panels, mark_published, write_picture

    with matplotlib.rc_context(STYLE):
        figure, panels = make_panels(len(overview.domains), 4.2, 4.0)
        for axes, domain in zip(panels, overview.domains, strict=True):
            here = [one for one in bars if one.bar.domain == domain]
            for place, one in enumerate(here):
                height = one.mean or 0.0
                colour = COLOURS[overview.methods.index(one.bar.method)]
                axes.bar(
                    place,
                    height,
                    0.65,
                    color=colour,
                    hatch="//" if one.state else None,
                    alpha=0.6 if one.state else 1.0,
                )
                axes.annotate(
                    one.state,
                    (place, max(height, 0.0)),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
            mark_published(
                axes,
                [(place + 0.42, one.bar.published) for place, one in enumerate(here)],
                "published",
            )
            axes.set_xticks(range(len(here)), [one.bar.method for one in here])
            axes.set_title(domain)
            axes.grid(axis="x", visible=False)
        panels[0].set_ylabel("normalised score, mean over the cells")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right")
        numbers = [
            {
                "domain": one.bar.domain,
                "method": one.bar.method,
                "mean": one.mean,
                "published": one.bar.published,
                "rows": list(one.bar.rows),
            }
            | {"scores": one.scores, "state": one.state or "complete"}
            for one in bars
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(
            figure,
            {
                "schema_version": SCHEMA_VERSION,
                "overview": overview.name,
                "source": overview.source,
                "bars": numbers,
            },
            path,
        )


# --- docs/tables


def write_tables(folder: Path, results: Path, data: Path, runs: Path) -> list[Path]:
    """Write FOLDER/TABLE.md for every table and overview that has a finished cell, each at its
    scales; the files.

    Raises UserError for a result's file that is broken, RunFailed where a page cannot be written.
    """
    texts: dict[str, list[tuple[Scale, str]]] = {}
    for grid in grids().values():
        for scale in SCALES:
            shelf = TableFolders(grid, scale, data, results, runs)
            if any(shelf.find_result(cell)[0] for cell in grid.cells(scale)):
                texts.setdefault(grid.name, []).append((scale, table(shelf)))
    for overview in overviews().values():
        for scale in SCALES:
            bars = measure_bars(overview, scale, results, data)
            if any(one.scores for one in bars):
                text = overview_table(overview, scale, bars)
                texts.setdefault(overview.name, []).append((scale, text))
    pages = []
    for name, parts in texts.items():
        pages.append(folder / f"{name}.md")
        sections = [f"## Scale `{scale}`\n\n{text}\n" for scale, text in parts]
        title = f"# `python -m bigdm_ray.reproduce {name}`\n\n{MADE}\n\n"
        folder.mkdir(parents=True, exist_ok=True)
        publish(pages[-1], (title + "\n".join(sections)).encode())
    return pages


MADE = (
    "Made by `python -m bigdm_ray.reproduce --tables docs/tables` from the files of"
    " `docs/results/`."
)


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(
        prog="python -m bigdm_ray.reproduce",
        description="Fill a published table with runs of one's own.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "table", nargs="?", metavar="TABLE", help="one of " + ", ".join([*grids(), *overviews()])
    )
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="quick",
        help="how much training a cell gets (default: quick)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help=(
            "train and print only cells whose row, column or seed (as seed=1) has this in it;"
            " repeatable"
        ),
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("datasets"),
        help="where the datasets are (default: datasets)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/results"),
        help="where finished cells are kept (default: docs/results)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/reproduce"),
        help="where the run folders are (default: runs/reproduce)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="cells side by side over Ray (default: one a core)",
    )
    parser.add_argument(
        "--local", action="store_true", help="one cell after the other in this process, without Ray"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help=(
            "what transformers are trained in (--machines.precision of run): bf16 is slower on"
            " processors that do not multiply in it"
        ),
    )
    parser.add_argument(
        "--show", action="store_true", help="print the table as it is, train and draw nothing"
    )
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="FOLDER",
        help="also write every table that has a finished cell there, as TABLE.md",
    )
    given = parser.parse(arguments)
    if given.jobs < 1:
        raise UserError(f"--jobs is {given.jobs}, but at least 1 is expected")
    problems: list[str] = []
    if given.table is None and given.only:
        raise UserError("--only chooses among the cells of a table; name the TABLE too")
    if given.table is None:
        for grid in grids().values():
            print(
                f"{grid.name:<20}{grid.title}; {len(grid.rows)} x {len(grid.columns)}, {grid.seeds}"
                " seeds"
            )
        for overview in overviews().values():
            print(f"{overview.name:<20}{overview.title}; bars made of other tables")
    elif given.table in overviews():
        overview, scale = overviews()[given.table], cast(Scale, given.scale)
        if given.only:
            raise UserError(
                f"{overview.name} is made of the cells of other tables, all of them; leave"
                " --only out"
            )
        bars = measure_bars(overview, scale, given.results, given.data)
        print(overview_table(overview, scale, bars))
        if not given.show:
            draw_overview(overview, bars, given.results / overview.name / scale / "overview.png")
    else:
        shelf = TableFolders(
            find_grid(given.table),
            cast(Scale, given.scale),
            given.data,
            given.results,
            given.runs,
            given.precision,
        )
        problems = [] if given.show else fill_missing(shelf, given.only, given.jobs, given.local)
        print(table(shelf, given.only))
    if given.tables:
        write_tables(given.tables, given.results, given.data, given.runs)
    return 1 if problems else 0


def fill_missing(shelf: TableFolders, only: list[str], jobs: int, local: bool) -> list[str]:
    """Train the cells that are asked for, missing, and possible; one sentence for each that failed.

    Raises UserError for words that fit none.
    """
    asked = shelf.choose_cells(only)
    wanted = []
    for cell in asked:
        result, why = shelf.find_result(cell)
        if result is None:
            wanted.append(cell)
        if why:
            print(f"outdated, so not run: {shelf.file(cell)}: {why}", file=sys.stderr)
    lacking = sorted({lack for cell in wanted if (lack := shelf.missing_input(cell))})
    for lack in lacking:
        print(f"not run, the dataset is missing: {lack}", file=sys.stderr)
    possible = [cell for cell in wanted if shelf.missing_input(cell) is None]
    for name in sorted({cell.target for cell in possible if cell.dataset}):
        Dataset.open(shelf.data / name)
    print(
        f"{shelf.grid.name}, scale {shelf.scale}: {len(asked) - len(wanted)} of {len(asked)} cells"
        f" are there, {len(possible)} to train",
        file=sys.stderr,
    )
    return fill(shelf, possible, jobs, local) if possible else []


if __name__ == "__main__":
    raise SystemExit(door(main))
