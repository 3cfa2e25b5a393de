"""What the doors share: their command-line parser, and one sentence with an exit code for a user's
mistake."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import gc
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from bigdm_ray import stopping
from bigdm_ray.errors import (
    RunFailed,
    UserError,
    full_disk,
    full_memory,
    near_names,
    sentence,
    suggest_names,
)
from bigdm_ray.settings import check_settings, convert, flag

T = TypeVar("T")
_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


def door(main: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a door's main, which signals can stop (`stopping.py`); the exit code.

    Prints `error: ...` for a UserError, or for want of disk or memory wherever it was met. The end
    of the process does not look for cycles in all that torch holds, which takes a second and frees
    nothing.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    with stopping.heed_signals():
        return _told(main, sys.argv[1:] if arguments is None else arguments)


def _told(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return main(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return stopping.code()
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        if not full_disk(error):
            raise
        what = f"cannot write {error.filename or 'a file'}: {error.strerror}"
        print(f"error: {sentence(what)}; free some space, then try again", file=sys.stderr)
        return RunFailed.exit_code
    except (MemoryError, RuntimeError) as error:
        if not full_memory(error):
            raise
        print(
            f"error: there is not enough memory ({shorten(str(error), 200)}); make batches,"
            " networks or what is kept in memory smaller",
            file=sys.stderr,
        )
        return RunFailed.exit_code


def _is_flag(word: str) -> bool:
    name = word.partition("=")[0]
    return len(name) > 1 and name[0] == "-" and " " not in name and not _NUMBER.match(word)


def split_prefixed(arguments: list[str], prefix: str) -> tuple[dict[str, str], list[str]]:
    """The values of the flags that begin with `prefix`, by the rest of their names, and the other
    words: for flags that are known only once these are parsed.

    Raises UserError for a flag without a value.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith(prefix):
            others.append(word)
            continue
        name, given, value = word.partition("=")
        if not given:
            value = next(words, "--")
        if value.startswith("--"):
            raise UserError(f"{name} is given no value; write it behind the flag")
        found[name.removeprefix(prefix).replace("-", "_")] = value
    return found, others


def program_name(prog: str) -> str:
    """`python -m bigdm_ray.DOOR` as the user has called it: `bigdm DOOR` by the console script."""
    called = Path(sys.argv[0] if sys.argv else "")
    if called.name == "bigdm":
        return prog.replace("python -m bigdm_ray.", "bigdm ", 1)
    if called.name == "__main__.py" and called.parent.name == "bigdm_ray":
        prog = prog.replace("python -m bigdm_ray.", "bigdm ", 1)
        return prog.replace("bigdm", "python -m bigdm_ray", 1)
    return prog


class Parser(argparse.ArgumentParser):
    """argparse for doors: a mistake is a UserError, and flags come from a settings dataclass that
    checks their values."""

    def __init__(self, *, prog: str, **options: Any) -> None:
        """As argparse; `prog` says how the door is called where nothing better is known."""
        super().__init__(prog=program_name(prog), **options)

    def error(self, message: str) -> typing.NoReturn:
        """Raise UserError with one sentence; for an unknown flag with the nearest ones."""
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            known = [option for option in self._takes() if option.startswith("--")]
            near = near_names(word, known) if word.startswith("-") else []
            message = f"unknown argument {word!r}{suggest_names(word, near)}"
        raise UserError(f"{message} (`{self.prog} --help` explains the arguments)")

    def _commands(self) -> dict[str, Parser]:
        """The parsers of commands, by name."""
        named = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        return {name: parser for choices in named for name, parser in choices.items()}

    def _takes(self) -> dict[str, bool]:
        """Every flag of this parser and of its commands, and whether a value follows it."""
        takes = {
            name: action.nargs != 0 for action in self._actions for name in action.option_strings
        }
        for command in self._commands().values():
            takes |= command._takes()
        return takes

    def split(self, arguments: list[str], unknown: bool = False) -> tuple[list[str], list[str]]:
        """The flags, each joined to its value by `=`, and the words that are none, wherever they
        stood.

        Underscores in names are as good as hyphens. The value may be a negative number or a list
        that begins with one. `unknown` says whether a value follows a flag that the parser does not
        know (yet). What stands behind `--` is a word.
        """
        takes = self._takes()
        flags: list[str] = []
        words: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                words += rest
                break
            if not _is_flag(word):
                words.append(word)
                continue
            name, equals, value = word.partition("=")
            if (hyphened := name.replace("_", "-")) in takes:  # underscores are as good
                word = hyphened + equals + value
            if takes.get(word, unknown) and "=" not in word and rest and not _is_flag(rest[0]):
                word = f"{word}={rest.pop(0)}"
            flags.append(word)
        return flags, words

    def add_settings(self, *kinds: type[Any]) -> None:
        """Add a flag for each field of settings dataclasses; a field that several have gets one."""
        for field in {
            field.name: field for kind in kinds for field in dataclasses.fields(kind)
        }.values():
            choices = (
                f", one of {', '.join(field.metadata['choices'])}"
                if field.metadata["choices"]
                else ""
            )
            default = "" if field.default in (None, ()) else f" (default: {field.default})"
            self.add_argument(
                flag(field.name),
                dest=field.name,
                metavar="X",
                help=f"{field.metadata['help']}{choices}{default}".replace("%", "%%"),
            )

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """`parse_args` for flags that stand anywhere: before the command and between the words too.

        Raises UserError.
        """
        flags, words = self.split(arguments)
        commands = self._commands()
        command = [word for word in words[:1] if word in commands]
        owner = commands[command[0]] if command else self
        known, names = owner._takes(), [word.partition("=")[0] for word in flags]
        wrong = [name for name in names if name not in known]
        if wrong and not {"-h", "--help"} & {*names}:
            owner.error(f"unrecognized arguments: {wrong[0]}")
        words = words[len(command) :]
        if any(map(_is_flag, words)):
            return self.parse_args([*command, *flags, "--", *words])
        return self.parse_args([*command, *words, *flags])

    @staticmethod
    def settings(kind: type[T], given: argparse.Namespace) -> T:
        """The settings that the flags of `add_settings` gave.

        Raises UserError for a value out of range.
        """
        hints = typing.get_type_hints(kind)
        typed = {
            name: convert(hint, getattr(given, name), name)
            for name, hint in hints.items()
            if getattr(given, name) is not None
        }
        made = kind(**typed)
        check_settings(made, "")
        return made
