"""Trackers: the reports of a run told to Weights & Biases or MLflow, where its flags name one.

Their packages are imported when they are asked for. What a tracker cannot take ends its listening
with a note, not the run.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from bigdm_ray.errors import UserError
from bigdm_ray.settings import flag
from bigdm_ray.training.config import Run
from bigdm_ray.training.metrics import Listener, Report, TensorBoard


def writers(run: Run, folder: Path) -> list[Listener]:
    """TensorBoard's files, and the trackers that the run's flags name. Raises UserError for a missing package."""
    found: list[Listener] = [TensorBoard(folder / "tensorboard", run.clock)]
    if run.saves.wandb is not None:
        found.append(Wandb(run, folder, run.saves.wandb))
    if run.saves.mlflow is not None:
        found.append(Mlflow(run, folder, run.saves.mlflow))
    return found


def _imported(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{flag(path)} needs the package {name!r} ({error}); install it with: "
            f"pip install {name}, or leave the flag out"
        ) from None


def _finite(report: Report) -> Report:
    return {name: value for name, value in report.items() if math.isfinite(value)}


class Wandb:
    """A run of Weights & Biases; where it cannot be reached WANDB_MODE=offline keeps it on disk."""

    def __init__(self, run: Run, folder: Path, project: str) -> None:
        self._clock = run.clock
        wandb = _imported("wandb", "saves.wandb")
        self._run = wandb.init(
            project=project, name=folder.name, dir=str(folder), config=run.to_json()
        )

    def __call__(self, report: Report) -> None:
        """Log the report; its clock is among its numbers."""
        self._run.log(_finite(report))

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


class Mlflow:
    """A run of MLflow at a tracking URI; a folder is one too."""

    def __init__(self, run: Run, folder: Path, uri: str) -> None:
        self._clock = run.clock
        self._mlflow = _imported("mlflow", "saves.mlflow")
        self._mlflow.set_tracking_uri(uri)
        self._mlflow.set_experiment(f"{run.algorithm.name}-{run.task}")
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_params(
            {"algorithm": run.algorithm.name, "task": run.task, "seed": run.seed}
        )

    def __call__(self, report: Report) -> None:
        """Log the report at its clock."""
        self._mlflow.log_metrics(_finite(report), step=int(report[self._clock]))

    def close(self) -> None:
        """End the run there."""
        self._mlflow.end_run()
