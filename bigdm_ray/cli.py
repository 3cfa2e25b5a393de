"""The console script `bigdm`: one parser, whose subcommands are the doors.

    bigdm run udrl lunarlander        the same as python -m bigdm_ray.run udrl lunarlander
    bigdm --help                      every door with a line about it

A door has a parser of its own, which may need torch to know its flags; it is imported when it is
opened, so that `bigdm --help` imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from bigdm_ray import __version__
from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import UserError, suggest_names

DOORS = {
    "data": "Datasets and stored episodes",
    "evaluate": "Score a trained policy",
    "plots": "Draw a run's learning curve and how well it obeys",
    "reproduce": "Fill a published table",
    "run": "Train a policy",
    "table": "Compare runs",
    "weights": "Weights of others, in and out",
}
"""The modules of this package with a `main`, and what each is for."""


def cli_parser() -> Parser:
    """The parser of the words up to the name of a door."""
    made = Parser(
        prog="bigdm",
        usage="bigdm DOOR [arguments]",
        epilog="`bigdm DOOR --help` explains a door.",
        allow_abbrev=False,
    )
    version = f"bigdm_ray {__version__}"
    made.add_argument("-V", "--version", action="version", version=version, help="name the version")
    doors = made.add_subparsers(title="doors", metavar="DOOR")
    for name, about in DOORS.items():
        doors.add_parser(name, help=about, prog=f"bigdm {name}")
    return made


def open_door(arguments: list[str]) -> int:
    """Import the door that the first argument names and give it the others.

    Raises UserError for an unknown one.
    """
    if not arguments:
        known = ", ".join(DOORS)
        raise UserError(f"a door is expected, one of {known}; `bigdm --help` explains them")
    name = arguments[0]
    if name not in DOORS and not name.startswith("-"):
        near = suggest_names(name, list(DOORS))
        raise UserError(f"unknown door {name!r}{near} (`bigdm --help` lists them)")
    if name not in DOORS:
        cli_parser().parse(arguments)
    main: Callable[[list[str]], int] = importlib.import_module(f"bigdm_ray.{name}").main
    return main(arguments[1:])


def main(arguments: list[str] | None = None) -> int:
    """The console script; its exit code.

    Modules of the folder at hand are found, as `python -m` finds them.
    """
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    return door(open_door, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
