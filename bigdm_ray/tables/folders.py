"""TableFolders: where the finished cells of a table lie, each a small JSON file that says what was
asked for and what it came to."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from bigdm_ray.errors import UserError, quote_value
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.jsons import read_json, real
from bigdm_ray.models.parallel import transformers
from bigdm_ray.replay.files import remove_leftovers
from bigdm_ray.replay.shard import publish
from bigdm_ray.tables.base import Cell, Grid, Scale, twins
from bigdm_ray.training.config import Run, configure, read_run

SCHEMA_VERSION = 1
Result = dict[str, Any]


def check_result(found: Any) -> Result:
    """What a result's file holds, its numbers as floats.

    Raises KeyError, TypeError or ValueError for what is missing or of another kind.
    """
    result: Result = dict(found)
    result["return_mean"] = real(result["return_mean"], "return_mean")
    for name in ("normalized_score", "best_return_mean", "best_normalized_score"):
        result[name] = None if result[name] is None else real(result[name], name)
    if result["dataset"] is not None:
        result["dataset"] = {
            "sha256": str(result["dataset"]["sha256"]),
            "return_mean": real(result["dataset"]["return_mean"], "the dataset's return_mean"),
        }
    for name, value in result.get("settings", {}).items():
        if not isinstance(value, dict):
            raise TypeError(f"its settings of {quote_value(name)} are {quote_value(value)}")
    if not isinstance(result.get("task", ""), str):
        raise TypeError(f"its task is {quote_value(result['task'])}")
    return result


class TableFolders:
    """Where a table's finished cells lie, its run folders, and its datasets."""

    def __init__(
        self,
        grid: Grid,
        scale: Scale,
        data: Path,
        results: Path,
        runs: Path,
        precision: str = "float32",
    ) -> None:
        """`precision` is what transformers are trained in; a finished cell counts, and a begun one
        goes on, whatever it is trained in."""
        self.grid, self.scale, self.data, self.precision = grid, scale, data, precision
        self.root = results
        self.results = results / grid.name / scale
        self.runs = runs / grid.name / scale
        self._sha256: dict[str, str | None] = {}

    def choose_cells(self, only: list[str]) -> list[Cell]:
        """The cells that all these words are in. Raises UserError where that is none."""
        cells = [
            cell
            for cell in self.grid.cells(self.scale)
            if all(word in f"{cell.row} {cell.column} seed={cell.seed}" for word in only)
        ]
        if not cells:
            known = (
                f"its rows are {', '.join(self.grid.rows)} and its columns"
                f" {', '.join(self.grid.columns)}"
            )
            raise UserError(
                f"--only {' --only '.join(only)} fits no cell of {self.grid.name}; {known}"
            )
        return cells

    def file(self, cell: Cell, grid: str = "") -> Path:
        """The result of a cell (of the grid, or of another)."""
        return self.root / (grid or self.grid.name) / self.scale / f"{cell.name}.json"

    def request_of(self, cell: Cell, grid: str = "") -> dict[str, Any]:
        """What a result of this cell (of the grid, or of another) says of it."""
        told = {
            name: getattr(cell, name) for name in ("row", "column", "seed", "algorithm", "target")
        }
        return {
            "table": grid or self.grid.name,
            "scale": self.scale,
            **told,
            "flags": list(cell.flags),
        }

    def find_result(self, cell: Cell) -> tuple[Result | None, str]:
        """What a finished cell left, here or as a cell of another table that is the same run.

        Or None with, in words, what of its file is not as it is asked for (nothing where there is
        none). Raises UserError for a file that is not such a result.
        """
        here, why = self._held(cell, self.grid.name)
        if here:
            return here, ""
        there = (
            self._held(twin, grid)[0]
            for grid, twin in twins(self.scale).get(cell.run, [])
            if grid != self.grid.name
        )
        elsewhere = next((result for result in there if result), None)
        return elsewhere, "" if elsewhere else why

    def _held(self, cell: Cell, grid: str) -> tuple[Result | None, str]:
        path, asked = self.file(cell, grid), self.request_of(cell, grid)
        if not path.is_file():
            return None, ""
        try:
            found = check_result(read_json(path))
            differing = [name for name in asked if found[name] != asked[name]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not the result of a cell ({error}); remove it to train that cell again"
            ) from None
        if differing:
            return (
                None,
                f"its {differing[0]} {'are' if differing[0] == 'flags' else 'is'} not the cell's",
            )
        sha256 = found["dataset"] and found["dataset"]["sha256"]
        if cell.dataset and (sha256 is None or sha256 != (self.sha256(cell) or sha256)):
            return None, f"its dataset is not that in {self.data / cell.target}"
        if name := self._changed(cell, found.get("settings")):
            return None, f"its {name} is not today's"
        return found, ""

    def _changed(self, cell: Cell, held: Any) -> str | None:
        """The first setting of a result that the same words do not mean any more, because a default
        or a preset has changed since.

        Settings that came later are not compared, nor are those of results from before settings
        were kept, nor where the dataset is not at hand.
        """
        if not isinstance(held, dict) or self.missing_input(cell):
            return None
        now = self._plain(cell).to_json()
        return next(
            (
                f"{part}.{name}"
                for part in held
                for name in held[part]
                if name in now[part] and held[part][name] != now[part][name]
            ),
            None,
        )

    def _plain(self, cell: Cell) -> Run:
        """The run of a cell in float32. Raises UserError."""
        target = str(self.data / cell.target) if cell.dataset else cell.target
        return configure(cell.algorithm, target, [*cell.flags, "--seed", str(cell.seed)])

    def sha256(self, cell: Cell) -> str | None:
        """The content of a cell's dataset, where it is at hand."""
        if not cell.dataset:
            return None
        if cell.target not in self._sha256:
            folder = self.data / cell.target
            self._sha256[cell.target] = (
                Dataset.open(folder).sha256 if (folder / CARD).is_file() else None
            )
        return self._sha256[cell.target]

    def missing_input(self, cell: Cell) -> str | None:
        """What a cell lacks, with the way to make it."""
        if not cell.dataset or (self.data / cell.target / CARD).is_file():
            return None
        recipe = self.grid.recipes.get(cell.target, self.grid.recipe)
        return (
            f"{cell.target}:"
            f" {recipe.format(name=cell.target, folder=self.data / cell.target, data=self.data)}"
        )

    def run(self, cell: Cell) -> Run:
        """The run of a cell. Raises UserError."""
        run, folder = self._plain(cell), self.folder(cell)
        precision = (
            read_run(folder).machines.precision
            if (folder / "run.json").is_file()
            else self.precision
        )
        if precision == run.machines.precision or not transformers(
            run.algorithm.build({use.name: use.task.signature() for use in run.tasks})
        ):
            return run
        return dataclasses.replace(
            run, machines=dataclasses.replace(run.machines, precision=precision)
        )

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell.

        Where its result is outdated, that run's folder is left alone: a fresh one is named by what
        is asked for now.
        """
        if not self.find_result(cell)[1]:
            return self.runs / cell.name
        mark = hashlib.sha256(
            json.dumps(
                [self.request_of(cell), self.sha256(cell), self._plain(cell).to_json()["algorithm"]]
            ).encode()
        ).hexdigest()[:8]
        return self.runs / f"{cell.name}-{mark}"

    def keep(self, cell: Cell, run: Run, summary: dict[str, Any]) -> Result:
        """Write the small file that says that a cell is finished: what was asked for, what the run
        was, and what it came to."""
        kept = (
            "task", "env_steps", "learner_steps", "return_mean", "return_std", "return_low",
            "return_high", "return_episodes", "normalized_score",
            "best_return_mean", "best_normalized_score", "mode", "wall_s", "versions",
        )  # fmt: skip
        dataset, settings = summary.get("dataset"), run.to_json()
        result = {
            "schema_version": SCHEMA_VERSION,
            **self.request_of(cell),
            "seed": run.seed,
            "settings": {name: settings[name] for name in ("algorithm", "budget", "evaluations")},
            "precision": run.machines.precision,
            "dataset": dataset
            and {
                name: dataset[name]
                for name in ("name", "sha256", "episodes", "steps", "return_mean")
            },
            **{name: summary.get(name) for name in kept},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        self.results.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.results)
        publish(self.file(cell), json.dumps(result, indent=1).encode())
        return result


def value_of(result: Result, unit: str, which: str) -> float | None:
    """A cell's number: of the last weights, or of the best."""
    name = {
        ("normalised score", "last"): "normalized_score",
        ("normalised score", "best"): "best_normalized_score",
    }.get((unit, which), "return_mean" if which == "last" else "best_return_mean")
    value = result.get(name)
    return None if value is None else float(value)
