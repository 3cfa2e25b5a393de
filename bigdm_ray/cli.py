"""The console script `bigdm`, and the command-line parser that its doors share.

    bigdm run udrl lunarlander        the same as python -m bigdm_ray.run udrl lunarlander
    bigdm --help                      every door with a line about it

A door is a file of this package that ends with `raise SystemExit(door(main))`; it is found by being there. Its line in the
help is the beginning of its docstring, read without importing it, so `bigdm --help` imports neither torch nor ray.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bigdm_ray import __version__
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError, nearest
from bigdm_ray.settings import checked, converted, flag

T = TypeVar("T")
_END = re.compile(r"^ +raise SystemExit\(door\(main\)\)$", re.MULTILINE)
_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


def doors() -> dict[str, str]:
    """Every door by name, sorted, with a few words about it."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text()
        if _END.search(source):
            about = ast.get_docstring(ast.parse(source)) or ""
            found[path.stem] = about.partition("\n")[0].partition(":")[0].rstrip(".")
    return found


def usage() -> str:
    """What `bigdm --help` prints."""
    known = doors()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {about}" for name, about in known.items()]
    return "\n".join(["usage: bigdm DOOR [arguments]", "", *lines, "", "`bigdm DOOR --help` explains a door; `bigdm --version` names the version."])


def open_door(arguments: list[str]) -> int:
    """Import the door that the first argument names and give it the others. Raises UserError for an unknown one."""
    name = arguments[0] if arguments else None
    if name in ("--help", "-h"):
        print(usage())
        return 0
    if name == "--version":
        print(f"bigdm_ray {__version__}")
        return 0
    known = doors()
    if name is None:
        raise UserError(f"a door is expected, one of {', '.join(known)}; `bigdm --help` explains them")
    if name not in known:
        raise UserError(f"unknown door {name!r}{nearest(name, list(known))} (`bigdm --help` lists them)")
    main: Callable[[list[str]], int] = importlib.import_module(f"bigdm_ray.{name}").main
    return main(arguments[1:])


def main(arguments: list[str] | None = None) -> int:
    """The console script; its exit code."""
    return door(open_door, arguments)


class Parser(argparse.ArgumentParser):
    """argparse for doors: a mistake is a UserError, and flags come from a settings dataclass that checks their values."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise UserError with one sentence; for an unknown flag with the nearest ones."""
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            message = f"unknown argument {word!r}{nearest(word, known) if word.startswith('-') else ''}"
        raise UserError(f"{message} (`{self.prog} --help` explains the arguments)")

    def add_settings(self, kind: type[Any]) -> None:
        """Add a flag for each field of a settings dataclass."""
        for field in dataclasses.fields(kind):
            choices = f", one of {', '.join(field.metadata['choices'])}" if field.metadata["choices"] else ""
            default = "" if field.default in (None, ()) else f" (default: {field.default})"
            self.add_argument(flag(field.name), dest=field.name, metavar="X", help=f"{field.metadata['help']}{choices}{default}".replace("%", "%%"))

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """`parse_args`, where the value after a flag may be a negative number or a list that begins with one."""
        joined: list[str] = []
        for word in arguments:
            if joined and joined[-1].startswith("--") and "=" not in joined[-1] and _NUMBER.match(word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return self.parse_args(joined)

    @staticmethod
    def settings(kind: type[T], given: argparse.Namespace) -> T:
        """The settings that the flags of `add_settings` gave. Raises UserError for a value out of range."""
        hints = typing.get_type_hints(kind)
        typed = {name: converted(hint, getattr(given, name), name) for name, hint in hints.items() if getattr(given, name) is not None}
        made = kind(**typed)
        checked(made, "")
        return made


if __name__ == "__main__":
    raise SystemExit(main())
