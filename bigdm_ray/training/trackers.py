"""Trackers: the reports of a run told to Weights & Biases or MLflow, where its flags name one.

Their packages are imported when they are asked for. A tracker that cannot begin ends the command
with one sentence; what it cannot take later ends its listening with a note, not the run.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigdm_ray.errors import UserError, elide, sentence
from bigdm_ray.progress import say
from bigdm_ray.settings import flag
from bigdm_ray.training.config import Run
from bigdm_ray.training.metrics import EVALUATED, Listener, Report, TensorBoard


class TrackerCallbacks(NamedTuple):
    """How a tracker that has begun is told of a run."""

    report: Callable[[Report], object]
    end: Callable[[], object]


@dataclass
class Tracker:
    """A listener whose package may fail at any report, as a service that is not reached does."""

    path: str
    """Of the setting that names it."""
    errors: tuple[type[Exception], ...]
    told: TrackerCallbacks | None

    def __call__(self, report: Report) -> None:
        """Pass on the finite numbers of a report; its clock is among them."""
        finite = {name: value for name, value in report.items() if math.isfinite(value)}
        if self.told is not None:
            self._tried(self.told.report, finite)

    def close(self) -> None:
        """Have it send what is left."""
        if self.told is not None:
            self._tried(self.told.end)

    def _tried(self, act: Callable[..., object], *given: Any) -> None:
        try:
            act(*given)
        except self.errors as error:
            self.told = None
            say(f"note: {flag(self.path)} is told nothing more ({_why(error)})")


def writers(run: Run, folder: Path) -> list[Listener]:
    """TensorBoard's files, and the trackers that the run's flags name.

    Raises UserError for a package that is missing, and for a tracker that cannot begin.
    """
    trackers: list[Tracker] = []
    try:
        for name, begin in (("wandb", _wandb), ("mlflow", _mlflow)):
            value = getattr(run.saves, name)
            if value is not None:
                trackers.append(_tracker(name, begin, run, folder, value))
    except UserError:
        for tracker in trackers:  # they write to the folder, which a refused run leaves as it was
            tracker.close()
        raise
    settings = run.to_json()["algorithm"] | {"task": run.title, "seed": run.seed}
    prefixes = [f"{use.name}/" for use in run.tasks] if run.several else [""]
    results = [prefix + name for prefix in prefixes for name in (EVALUATED, "train/loss")]
    return [TensorBoard(folder / "tensorboard", run.clock, settings, results), *trackers]


def _tracker(
    name: str,
    begin: Callable[[Any, Run, Path, str], TrackerCallbacks],
    run: Run,
    folder: Path,
    value: str,
) -> Tracker:
    path = f"saves.{name}"
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{flag(path)} needs the package {name!r} ({error}); install it with: "
            f"pip install {name}, or leave the flag out"
        ) from None
    own: type[Exception] = package.Error if name == "wandb" else package.MlflowException
    errors = (own, OSError, ValueError)
    try:
        return Tracker(path, errors, begin(package, run, folder, value))
    except errors as error:
        raise UserError(
            f"{flag(path)} {value!r} cannot be used: {_why(error)}; mend that, or leave the"
            " flag out"
        ) from None


def _why(error: Exception) -> str:
    return elide(sentence(error), 300) or type(error).__name__


def _wandb(wandb: Any, run: Run, folder: Path, project: str) -> TrackerCallbacks:
    """Where Weights & Biases cannot be reached, WANDB_MODE=offline keeps the reports on disk."""
    settings = wandb.Settings(silent=True)
    begun = wandb.init(
        project=project, name=folder.name, dir=str(folder), config=run.to_json(), settings=settings
    )
    return TrackerCallbacks(begun.log, begun.finish)


def _mlflow(mlflow: Any, run: Run, folder: Path, uri: str) -> TrackerCallbacks:
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(f"{run.algorithm.name}-{run.title}")
    mlflow.start_run(run_name=folder.name)
    mlflow.log_params({"algorithm": run.algorithm.name, "task": run.title, "seed": run.seed})
    return TrackerCallbacks(
        lambda report: mlflow.log_metrics(report, step=int(report[run.clock])), mlflow.end_run
    )
