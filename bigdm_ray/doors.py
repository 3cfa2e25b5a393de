"""What the doors share: their command-line parser, and one sentence with an exit code for a user's mistake."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Callable
from textwrap import shorten
from typing import Any, TypeVar

from bigdm_ray.errors import (
    RunFailed,
    UserError,
    full_disk,
    full_memory,
    nearest,
    sentence,
)
from bigdm_ray.settings import checked, converted, flag

T = TypeVar("T")
_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


def door(main: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a door's main; print `error: ...` for a UserError, or for want of disk or memory wherever it was met, and return the exit code."""
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
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
            f"error: there is not enough memory ({shorten(str(error), 200)}); make batches, networks or what is kept in memory smaller",
            file=sys.stderr,
        )
        return RunFailed.exit_code


def apart(arguments: list[str], prefix: str) -> tuple[dict[str, str], list[str]]:
    """The values of the flags that begin with `prefix`, by the rest of their names, and the other words: for flags that are known only once these are parsed.

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


class Parser(argparse.ArgumentParser):
    """argparse for doors: a mistake is a UserError, and flags come from a settings dataclass that checks their values."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise UserError with one sentence; for an unknown flag with the nearest ones."""
        if message.startswith("unrecognized arguments: "):
            word = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            known = [
                option
                for action in self._actions
                for option in action.option_strings
                if option.startswith("--")
            ]
            message = (
                f"unknown argument {word!r}{nearest(word, known) if word.startswith('-') else ''}"
            )
        raise UserError(f"{message} (`{self.prog} --help` explains the arguments)")

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
        """`parse_args`, where the value after a flag may be a negative number or a list that begins with one."""
        joined: list[str] = []
        for word in arguments:
            if (
                joined
                and joined[-1].startswith("--")
                and "=" not in joined[-1]
                and _NUMBER.match(word)
            ):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return self.parse_args(joined)

    @staticmethod
    def settings(kind: type[T], given: argparse.Namespace) -> T:
        """The settings that the flags of `add_settings` gave. Raises UserError for a value out of range."""
        hints = typing.get_type_hints(kind)
        typed = {
            name: converted(hint, getattr(given, name), name)
            for name, hint in hints.items()
            if getattr(given, name) is not None
        }
        made = kind(**typed)
        checked(made, "")
        return made
