"""Grid and Cell: a published table as runs.

A cell is one ordinary run, given by the words one would type.

`python -m bigdm_ray.reproduce TABLE` trains the cells that are missing and prints ours beside the
published ones. A file of published tables in this folder has a `GRIDS` tuple, and may have
`OVERVIEWS`, pictures made of the cells of grids; no list is edited to add one.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bigdm_ray.errors import UserError, suggest_names

Scale = Literal["quick", "paper"]
SCALES: tuple[Scale, ...] = ("quick", "paper")


@dataclass(frozen=True)
class Cell:
    """One run: `python -m bigdm_ray.run ALGORITHM TARGET FLAGS --seed SEED`, the target a task or a
    dataset's name."""

    row: str
    column: str
    seed: int
    algorithm: str
    target: str
    dataset: bool
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A file name of its own."""
        text = f"{self.row}--{self.column}--{self.seed}"
        return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)

    @property
    def run(self) -> tuple[object, ...]:
        """What the run is, wherever it stands."""
        return self.algorithm, self.target, self.dataset, self.flags, self.seed


@dataclass(frozen=True)
class Grid:
    """A table: its rows, its columns, what was published, and the runs of a scale.

    `make(row, column, scale)` gives (algorithm, target, whether that is a dataset, flags), or None
    for a cell that this project cannot run. `published` has (row, column) -> (mean, deviation or
    None). Averages over rows leave the rows `apart` out; there are none without `averages`.
    `recipe` is how to make a dataset that is missing, with `{name}`, `{folder}` and `{data}` (where
    datasets are) in it; `recipes` are those of datasets that are made in another way. `headings`
    are what a column is called at a scale where its cells are something else than its name says.
    """

    name: str
    title: str
    unit: Literal["normalised score", "return"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: int
    make: Callable[[str, str, Scale], tuple[str, str, bool, tuple[str, ...]] | None]
    budgets: dict[Scale, str]
    source: str
    published: dict[tuple[str, str], tuple[float, float | None]] = field(default_factory=dict)
    averages: bool = True
    apart: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recipe: str = "python -m bigdm_ray.data import SOURCE --folder {folder}"
    recipes: Mapping[str, str] = field(default_factory=dict)
    headings: Mapping[tuple[Scale, str], str] = field(default_factory=dict)

    @property
    def averaged_rows(self) -> tuple[str, ...]:
        """The rows that averages are over."""
        return tuple(row for row in self.rows if row not in self.apart) if self.averages else ()

    def heading(self, column: str, scale: Scale) -> str:
        """What a column is called at a scale."""
        return self.headings.get((scale, column), column)

    def cells(self, scale: Scale) -> list[Cell]:
        """All runs of a scale, seed by seed, so that a stopped grid has every cell once before any
        twice."""
        out = []
        for seed in range(1, self.seeds + 1):
            for row in self.rows:
                for column in self.columns:
                    if made := self.make(row, column, scale):
                        out.append(Cell(row, column, seed, *made))
        return out


@dataclass(frozen=True)
class OverviewBar:
    """One bar of an overview: the mean over `rows` of a method's cells, which are those of
    `column`, a grid and a column of it.

    Without one, this project does not run the method there. `published` is the mean of the
    published cells. A bar with `peer` is not drawn before a peer's own code has come to the same on
    the same data (`tables/peers.py`).
    """

    domain: str
    method: str
    rows: tuple[str, ...]
    column: tuple[str, str] | None
    published: float
    peer: bool = False


@dataclass(frozen=True)
class Overview:
    """A picture of bars that are made of the finished cells of grids, all in normalised scores.

    It has no runs of its own.
    """

    name: str
    title: str
    bars: tuple[OverviewBar, ...]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def domains(self) -> list[str]:
        """The groups of bars, in order."""
        return list(dict.fromkeys(bar.domain for bar in self.bars))

    @property
    def methods(self) -> list[str]:
        """The bars of a group, in order."""
        return list(dict.fromkeys(bar.method for bar in self.bars))


def _found(what: str) -> list[Any]:
    package = importlib.import_module("bigdm_ray.tables")
    files = [
        importlib.import_module(f"bigdm_ray.tables.{name}")
        for _, name, _ in pkgutil.iter_modules(package.__path__)
    ]
    return sorted(
        (one for file in files for one in getattr(file, what, ())), key=lambda one: str(one.name)
    )


def grids() -> dict[str, Grid]:
    """Every grid of this folder by name."""
    return {grid.name: grid for grid in _found("GRIDS")}


@functools.cache
def twins(scale: Scale) -> dict[tuple[object, ...], list[tuple[str, Cell]]]:
    """Of every run of a scale, the cells of all tables that ask for it, each with the name of its
    grid."""
    out: dict[tuple[object, ...], list[tuple[str, Cell]]] = {}
    for grid in grids().values():
        for cell in grid.cells(scale):
            out.setdefault(cell.run, []).append((grid.name, cell))
    return out


def overviews() -> dict[str, Overview]:
    """Every overview of this folder by name."""
    return {overview.name: overview for overview in _found("OVERVIEWS")}


def find_grid(name: str) -> Grid:
    """The grid of a name.

    Raises UserError with the nearest names, those of overviews among them.
    """
    known = grids()
    if name not in known:
        raise UserError(f"unknown table {name!r}{suggest_names(name, [*known, *overviews()])}")
    return known[name]
