"""The two errors that end a command with one sentence instead of a traceback.

`UserError` is a mistake that its reader can mend (a wrong name, a value out of range, a folder of
another run); `RunFailed` is what the world did to a run (a full disk, environments that all raise).
Every door turns them into one line on standard error and the exit code of the class. What a
sentence quotes may come out of a file that anyone has written: `quote_value` shows the beginning of
a value, and no sentence is longer than LONGEST.
"""

import errno
import json
import reprlib
from typing import Any
from urllib.parse import unquote

LISTED = 60
"""Names that a message lists, at most."""
LONGEST = 2000
"""Characters of a message, at most."""
QUOTED = 120
"""Characters of a value that a message quotes, at most."""
_GAP = " [...] "


class UserError(Exception):
    """A user's mistake: what was wrong, what was expected, what to do. Exit code 2.

    Its text is one line of at most LONGEST characters that a terminal can show.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(sentence(message))


class RunFailed(UserError):
    """A run that cannot go on for a reason outside the program.

    What it has stored stays valid. Exit code 1.
    """

    exit_code = 1


def sentence(message: object) -> str:
    """A text on one line, without control characters, and without its middle where it is longer
    than LONGEST."""
    text = elide(str(message), LONGEST)
    if not text.isprintable():
        text = "".join(one if one.isprintable() else _shown(one) for one in text)
        text = elide(text, LONGEST)
    return text


def _shown(one: str) -> str:
    return " " if one.isspace() else one.encode("unicode_escape").decode()


def elide(text: str, longest: int) -> str:
    """The text, without what stands before its last quarter where it is longer than this many
    characters."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return text[: longest - end - len(_GAP)] + _GAP + text[len(text) - end :]


def quote_value(value: Any) -> str:
    """A value out of a file as a message shows it: like `repr`, in at most QUOTED characters."""
    try:
        return sentence(elide(_REPR.repr(value), QUOTED))
    except ValueError:  # Python writes no integer of thousands of digits
        return f"a value ({type(value).__name__}) that is too large to be shown"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = QUOTED
_REPR.maxlong = 40


def full_disk(error: OSError) -> bool:
    """Whether it was raised for want of space: a full disk, a quota, a limit on the size of
    files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def full_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory; torch says so on a processor by the words of a
    RuntimeError alone, on a GPU by a class of its own."""
    return (
        isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
        or type(error).__name__ == "OutOfMemoryError"
    )


def suggest_names(word: str, known: list[str]) -> str:
    """`"; did you mean 'x'?"` with the names that are near `word`: misspelt, or short for (`--lr`).

    Where none is near, the list of a few known names, or nothing where they are many.
    """
    near = near_names(word, known)
    if near:
        return "; did you mean " + " or ".join(repr(name) for name in near) + "?"
    if len(known) > LISTED:
        return ""
    return f"; known: {', '.join(sorted(known))}" if known else ""


def near_names(word: str, known: list[str]) -> list[str]:
    """At most three of the names, those that `word` may stand for, the nearest first."""
    import difflib

    plain = _plain(word)
    ends: dict[str, list[str]] = {}
    for name in known:
        ends.setdefault(_plain(name.rpartition(".")[2]), []).append(name)
    short = plain.removeprefix("no-")
    meant = ABBREVIATED.get(short, short)
    if meant in ends:  # its own name, without what stands before it
        return ends[meant][:3]
    initials = {"".join(part[:1] for part in end.split("-")): end for end in ends if "-" in end}
    if 1 < len(short) <= 3 and short in initials:
        return ends[initials[short]][:3]
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.72)
    if not near and "." not in word:
        close = difflib.get_close_matches(plain, list(ends), n=3, cutoff=0.75)
        near = [name for end in close for name in ends[end]][:3]
    if not near:
        near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return near


def _plain(word: str) -> str:
    return word.lstrip("-").replace("_", "-").lower()


ABBREVIATED = {
    "lr": "learning-rate",
    "bs": "batch-size",
    "batch": "batch-size",
    "epochs": "learner-steps",
    "total-timesteps": "env-steps",
    "timesteps": "env-steps",
    "max-steps": "env-steps",
    "num-workers": "actors",
    "workers": "actors",
    "n-envs": "environments",
    "num-envs": "environments",
    "output": "folder",
    "output-dir": "folder",
    "gpu": "device",
    "verbose": "quiet",
}
"""What other tools call our settings."""


def install(extra: str) -> str:
    """The command that installs an extra of this package in the way in which it was installed
    itself."""
    from importlib import metadata

    try:
        told = metadata.distribution("bigdm-ray").read_text("direct_url.json")
        where = json.loads(told) if told else {}
    except (metadata.PackageNotFoundError, ValueError):
        where = {}
    url = str(where.get("url", ""))
    if "dir_info" in where and url.startswith("file://"):
        editable = "-e " if where["dir_info"].get("editable") else ""
        return f"pip install {editable}'{unquote(url.removeprefix('file://'))}[{extra}]'"
    return f"pip install 'bigdm-ray[{extra}]{f' @ {url}' if url else ''}'"


def one_line(error: Exception) -> str:
    """The text of an error on one line."""
    return " ".join(str(error).split())[:300]
