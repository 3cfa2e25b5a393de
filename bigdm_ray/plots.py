"""Draw a run's learning curve and how well it obeys: `python -m bigdm_ray.plots FOLDER... [flags]`.

    python -m bigdm_ray.plots runs/udrl-lunarlander-*   learning curves, a panel for each task
    python -m bigdm_ray.plots runs/udrl-lunarlander-1 --obedience
            asked return against the return obtained
    python -m bigdm_ray.plots runs/udrl-lunarlander-1 --obedience --returns -300,0,100,200,250,300
    python -m bigdm_ray.plots runs/dt-key-to-door-1000-1 --attention
            which earlier steps a transformer looks at
    python -m bigdm_ray.plots runs/tt-hopper-medium-1 --prediction
            trajectories that a model predicts against the real ones
    python -m bigdm_ray.plots runs/tt-four-rooms-1 --beams
            the beams of some plans, over two elements of the state
    python -m bigdm_ray.plots runs/bcq-hopper-medium-1 --extrapolation
            what critics promise, what follows
    python -m bigdm_ray.plots runs/rwr-hopper-medium-1 --weighting
            what each step of the data counts

The pictures are the files of `pictures/`, which say what each of them shows. Each has its numbers
beside it as JSON; both go into plots/ of the first FOLDER. In a notebook, or one's own program, the
same pictures are figures of matplotlib:

    from bigdm_ray import plots
    plots.curves("runs/udrl-cartpole-1", "runs/udrl-cartpole-2")
    plots.obedience("runs/udrl-cartpole-1", returns=(100.0, 200.0, 500.0))
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import UserError, suggest_names
from bigdm_ray.pictures.base import Picture, keep_figures, pictures
from bigdm_ray.progress import notebook
from bigdm_ray.settings import check_settings, flag
from bigdm_ray.training.zoo import is_zoo, locate, results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(picture: str, *folders: str | Path, **settings: Any) -> Figure:
    """A picture of run folders as a matplotlib figure, for notebooks; no file is written.

    `picture` is a name of `pictures()`, `settings` are its flags: `figure("obedience", folder,
    returns=(0.0, 100.0))`. Raises UserError for an unknown one and what the picture raises.
    """
    known = pictures()
    if picture not in known:
        raise UserError(f"unknown picture {picture!r}{suggest_names(picture, list(known))}")
    kind = known[picture].settings
    fields = {field.name for field in dataclasses.fields(kind)}
    if wrong := sorted(settings.keys() - fields):
        raise UserError(
            f"the picture {picture} has no {wrong[0]!r}{suggest_names(wrong[0], sorted(fields))}"
        )
    asked = kind(**settings)
    check_settings(asked, "")
    with keep_figures() as figures:
        known[picture].draw([locate(folder) for folder in folders], None, asked)
    if (shell := notebook()) is not None:  # which shows figures of pyplot alone, unless told
        importlib.import_module("IPython.core.pylabtools").select_figure_formats(shell, {"png"})
    return figures[0]


def curves(*folders: str | Path) -> Figure:
    """Learning curves of run folders as a matplotlib figure.

    Raises UserError where there are none.
    """
    return figure("learning_curve", *folders)


def obedience(*folders: str | Path, **settings: Any) -> Figure:
    """Asked return against the return obtained as a matplotlib figure; plays. See `figure`."""
    return figure("obedience", *folders, **settings)


def find_picture(given: argparse.Namespace, known: dict[str, Picture]) -> Picture:
    """The picture that is asked for.

    Raises UserError where two are, and for a flag that it does not have.
    """
    asked = [
        picture
        for picture in known.values()
        if not picture.default and getattr(given, picture.name)
    ]
    if len(asked) > 1:
        raise UserError(
            f"--{asked[0].name} and --{asked[1].name} are two pictures; ask for one of them"
        )
    (picture,) = asked or [picture for picture in known.values() if picture.default]
    flags = {
        name: {field.name for field in dataclasses.fields(other.settings)}
        for name, other in known.items()
    }
    for name in sorted(set().union(*flags.values()) - flags[picture.name]):
        if getattr(given, name) is not None:
            owners = " or ".join(flag(other) for other in flags if name in flags[other])
            raise UserError(
                f"{flag(name)} belongs to other pictures; give {owners}, or leave it out"
            )
    return picture


def main(arguments: list[str]) -> int:
    """The door."""
    known = pictures()
    parser = Parser(
        prog="python -m bigdm_ray.plots",
        description="Draw learning curves of runs, or the picture that a flag names.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        type=Path,
        nargs="+",
        help="run folders; those that differ in nothing but their seed are one line",
    )
    parser.add_argument(
        "--out",
        metavar="X",
        type=Path,
        help="folder or file (.png, .pdf, .svg); default: plots/ in the first FOLDER",
    )
    for picture in known.values():
        if not picture.default:
            parser.add_argument(f"--{picture.name}", action="store_true", help=picture.help)
    parser.add_settings(*(picture.settings for picture in known.values()))
    given = parser.parse(arguments)
    picture = find_picture(given, known)
    first, *_ = given.folders
    out = given.out or (results(first) / "plots" if is_zoo(first) else None)
    folders = list({folder.resolve(): folder for folder in map(locate, given.folders)}.values())
    picture.draw(folders, out, parser.settings(picture.settings, given))
    return 0


if __name__ == "__main__":
    raise SystemExit(door(main))
