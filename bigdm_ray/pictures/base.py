"""What pictures share: what a picture is, how pictures are found, their flags, style, published
values and files."""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.progress import Progress
from bigdm_ray.settings import setting
from bigdm_ray.training.config import Run
from bigdm_ray.training.evaluation import constant
from bigdm_ray.training.loaded import Loaded, load
from bigdm_ray.training.run_folder import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart."""
GREY = "#808080"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class PublishedValues:
    """Values read off the figures of Srivastava et al. 2019 (arXiv 1912.02877), means over
    seeds."""

    curve: tuple[tuple[float, float], ...]  # (environment steps, return), Figures 4 and 5
    obedience: tuple[tuple[float, float], ...]  # (asked, obtained), Figure 6
    asked: tuple[float, ...]  # the returns that are asked for by default


_LANDER = (-300.0, -200.0, -100.0, 0.0, 100.0, 200.0, 250.0, 300.0)
PUBLISHED = {
    "lunarlander": PublishedValues(
        ((1e6, 1.5), (2e6, 50.0), (3e6, 77.0), (5e6, 118.0), (7e6, 126.0), (10e6, 141.0)),
        (
            (-300.0, -390.0),
            (0.0, -140.0),
            (100.0, 25.0),
            (200.0, 205.0),
            (250.0, 250.0),
            (300.0, 200.0),
        ),
        _LANDER,
    ),
    "lunarlander-sparse": PublishedValues(
        ((0.5e6, 39.0), (1e6, 91.0), (2e6, 116.0), (5e6, 143.0), (10e6, 162.0)),
        # the seed that obeys; another hardly reacts
        (
            (-300.0, -150.0),
            (0.0, 22.0),
            (200.0, 155.0),
            (300.0, 230.0),
        ),
        _LANDER,
    ),
    "takecover": PublishedValues(
        ((1e6, 414.0), (5e6, 510.0), (10e6, 546.0)),
        ((0.0, 390.0), (400.0, 515.0), (800.0, 565.0)),
        (0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0),
    ),
}


@dataclass(frozen=True)
class PictureFlags:
    """Flags of every picture that is made from a run's weights."""

    weights: str = setting("last", "which weights", choices=("last", "best"))
    seed: int | None = setting(
        None, "seed of environments and actions; default: the run's", low=0, high=2**31 - 1
    )


@dataclass(frozen=True)
class EpisodeFlags(PictureFlags):
    """Flags of a picture of several episodes."""

    episodes: int = setting(20, "episodes; of --obedience, for each return", low=1, high=100_000)


@dataclass(frozen=True)
class SweepFlags(EpisodeFlags):
    """What is played for a picture of played episodes."""

    returns: tuple[float, ...] = setting(
        (),
        "returns to ask for, joined by commas; default: from the task's low to its highest",
        low=-1e9,
        high=1e9,
    )
    mode: str = setting(
        "own", "how the policy acts; own: as in the run's own evaluations", choices=OWN_OR_MODES
    )


@dataclass(frozen=True)
class Picture:
    """A kind of picture: `--NAME` asks for it, `draw(folders, out, asked)` makes it and writes it
    with its numbers."""

    name: str
    help: str
    draw: Callable[[list[Path], Path | None, Any], None]
    settings: type[Any]
    """Its flags: a settings dataclass, of which `draw` gets one."""
    default: bool = False
    """It is drawn where no picture is asked for, and has no flag."""


def pictures() -> dict[str, Picture]:
    """Every picture of this folder by name. A file is found by being there; it has `PICTURE`."""
    package = importlib.import_module("bigdm_ray.pictures")
    modules = [
        importlib.import_module(f"bigdm_ray.pictures.{name}")
        for _, name, _ in pkgutil.iter_modules(package.__path__)
    ]
    found = [module.PICTURE for module in modules if hasattr(module, "PICTURE")]
    return {
        picture.name: picture for picture in sorted(found, key=lambda picture: str(picture.name))
    }


def dataset_of(run: Run) -> Dataset | None:
    """The dataset that a run learned from, where it still lies there."""
    if run.dataset is None or not (Path(run.dataset.folder) / CARD).is_file():
        return None
    return Dataset.open(Path(run.dataset.folder))


def require_dataset(loaded: Loaded, else_: str) -> Dataset:
    """The dataset that a run learned from.

    Raises UserError: it has none, so `else_`, or it is gone.
    """
    found, named = dataset_of(loaded.run), loaded.run.dataset
    if named is None:
        raise UserError(
            f"{loaded.folder} names no dataset that it learned from, as neither imported weights "
            f"nor runs that play do, so {else_}"
        )
    if found is None:
        raise UserError(
            f"the dataset that {loaded.folder} learned from does not lie at {named.folder} any "
            "more; put it there"
        )
    return found


def returns_asked(
    policy: Policy, command: dict[str, float], rewards: np.ndarray, max_return: float | None
) -> np.ndarray:
    """The return that a policy was told to achieve at each step `[T]` float32 of an episode."""
    asking, told = constant(command, 1), []
    for reward in rewards:
        told.append(asking["desired_return"][0])
        asking = policy.after(asking, np.full(1, reward, np.float32), max_return)
    return np.array(told, np.float32)


def make_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of this size in inches, at most three in a row."""
    from matplotlib.figure import Figure

    across = min(count, 3)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, number + 1) for number in range(count)]


def mark_published(axes: Axes, points: list[tuple[float, float]], text: str) -> None:
    """Draw published values as thin grey markers."""
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(
            x,
            y,
            linestyle="none",
            marker="D",
            markersize=5,
            markerfacecolor="none",
            markeredgecolor=GREY,
            markeredgewidth=1,
            label=text,
        )


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, legend."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc="best")


def output_path(out: Path | None, first: Path, name: str) -> Path:
    """The picture's file: --out itself where it ends as a picture does, NAME.png in it, or in
    plots/ of the first folder. Raises UserError."""
    kinds = [".png", ".pdf", ".svg"]
    if _KEPT.get() is not None:
        return first
    folder = out or first / "plots"
    path = folder / f"{name}.png"
    if out is not None and out.suffix and not out.is_dir():
        if out.suffix.lower() not in kinds:
            raise UserError(
                f"--out {out} ends in {out.suffix}, but a folder or one of {', '.join(kinds)} is"
                " expected"
            )
        path = out
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be made ({error.strerror}); give another --out"
        ) from None
    return path


_KEPT: ContextVar[list[Figure] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def keep_figures() -> Iterator[list[Figure]]:
    """Inside the block pictures are not written, and nothing is printed of them: they are in this
    list."""
    figures: list[Figure] = []
    token = _KEPT.set(figures)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield figures
    finally:
        _KEPT.reset(token)


def write_picture(figure: Figure, numbers: dict[str, Any], path: Path) -> None:
    """Write the picture, and its numbers beside it as JSON. Raises RunFailed.

    Inside `keep_figures` it is kept as it is, and nothing is written.
    """
    if (figures := _KEPT.get()) is not None:
        figures.append(figure)
        return
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise RunFailed(
            f"cannot write {path}: {error.strerror}; make its folder writable or free some space"
        ) from None
    write_json(path.with_suffix(".json"), numbers)
    print(f"picture: {path}, its numbers: {path.with_suffix('.json')}")


Numbers = list[dict[str, Any]]
Kind = TypeVar("Kind", bound=PictureFlags)


def make_picture(
    folders: list[Path],
    out: Path | None,
    asked: Kind,
    name: str,
    key: str,
    of: Callable[[Loaded, Kind], dict[str, Any]],
    draw: Callable[[Numbers], Figure],
) -> Numbers:
    """Take the numbers of each run folder and draw them together as the picture `name`; the
    numbers, which lie beside it under `key`."""
    import matplotlib

    runs = [load(folder, asked.weights) for folder in folders]
    path = output_path(out, folders[0], name)
    found = []
    for folder, loaded in zip(folders, runs, strict=True):
        with Progress(f"{name} of {folder}", units=""):
            found.append(of(loaded, asked))
    with matplotlib.rc_context(STYLE):
        write_picture(draw(found), {"schema_version": SCHEMA_VERSION, key: found}, path)
    return found
