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
from bigdm_ray.doors import Parser, door, program_name
from bigdm_ray.errors import UserError, suggest_names

DOORS = {
    "data": "Datasets and stored episodes",
    "evaluate": "Score a trained policy",
    "plots": "Draw a run's learning curve and how well it obeys",
    "reproduce": "Fill a published table",
    "run": "Train a policy",
    "serve": "Serve a policy",
    "table": "Compare runs",
    "weights": "Weights of others, in and out",
}
"""The modules of this package with a `main`, and what each is for."""


def cli_parser() -> Parser:
    """The parser of the words up to the name of a door."""
    name = program_name("bigdm")
    made = Parser(
        prog="bigdm",
        usage=f"{name} COMMAND [arguments]",
        epilog=f"`{name} COMMAND --help` explains a command.",
        allow_abbrev=False,
    )
    version = f"bigdm_ray {__version__}"
    made.add_argument("-V", "--version", action="version", version=version, help="name the version")
    doors = made.add_subparsers(title="commands", metavar="COMMAND")
    for door_name, about in DOORS.items():
        doors.add_parser(door_name, help=about, prog=f"bigdm {door_name}")
    return made


def open_door(arguments: list[str]) -> int:
    """Import the door that the first argument names and give it the others.

    Raises UserError for an unknown one.
    """
    if not arguments:
        known = ", ".join(DOORS)
        name = program_name("bigdm")
        raise UserError(f"a command is expected, one of {known}; `{name} --help` explains them")
    name = arguments[0]
    if name not in DOORS and not name.startswith("-"):
        near = suggest_names(name, list(DOORS))
        lists = f"`{program_name('bigdm')} --help` lists them"
        raise UserError(f"unknown command {name!r}{near} ({lists})")
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
