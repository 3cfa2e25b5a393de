"""The console script `bigdm`.

    bigdm run udrl lunarlander        the same as python -m bigdm_ray.run udrl lunarlander
    bigdm --help                      every door with a line about it

A door is a file of this package that ends with `raise SystemExit(door(main))`; it is found by being there. Its line in the
help is the beginning of its docstring, read without importing it, so `bigdm --help` imports neither torch nor ray.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bigdm_ray import __version__
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError, nearest

_END = re.compile(r"^ +raise SystemExit\(door\(main\)\)$", re.MULTILINE)


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
    return "\n".join(
        [
            "usage: bigdm DOOR [arguments]",
            "",
            *lines,
            "",
            "`bigdm DOOR --help` explains a door; `bigdm --version` names the version.",
        ]
    )


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
        raise UserError(
            f"a door is expected, one of {', '.join(known)}; `bigdm --help` explains them"
        )
    if name not in known:
        raise UserError(
            f"unknown door {name!r}{nearest(name, list(known))} (`bigdm --help` lists them)"
        )
    main: Callable[[list[str]], int] = importlib.import_module(f"bigdm_ray.{name}").main
    return main(arguments[1:])


def main(arguments: list[str] | None = None) -> int:
    """The console script; its exit code. Modules of the folder at hand are found, as `python -m` finds them."""
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    return door(open_door, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
