"""The two errors that end a command with one sentence instead of a traceback.

`UserError` is a mistake that its reader can mend (a wrong name, a value out of range, a folder of another run);
`RunFailed` is what the world did to a run (a full disk, environments that all raise). Every door turns them into
one line on standard error and the exit code of the class. What a sentence quotes may come out of a file that anyone
has written: `quoted` shows the beginning of a value, and no sentence is longer than LONGEST.
"""

import errno
import reprlib
from typing import Any

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
    """A run that cannot go on for a reason outside the program. What it has stored stays valid. Exit code 1."""

    exit_code = 1


def sentence(message: object) -> str:
    """A text on one line, without control characters, and without its middle where it is longer than LONGEST."""
    text = shortened(str(message), LONGEST)
    if not text.isprintable():
        text = "".join(one if one.isprintable() else _shown(one) for one in text)
        text = shortened(text, LONGEST)
    return text


def _shown(one: str) -> str:
    return " " if one.isspace() else one.encode("unicode_escape").decode()


def shortened(text: str, longest: int) -> str:
    """The text, without what stands before its last quarter where it is longer than this many characters."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return text[: longest - end - len(_GAP)] + _GAP + text[len(text) - end :]


def quoted(value: Any) -> str:
    """A value out of a file as a message shows it: like `repr`, in at most QUOTED characters."""
    try:
        return sentence(shortened(_REPR.repr(value), QUOTED))
    except ValueError:  # Python writes no integer of thousands of digits
        return f"a value ({type(value).__name__}) that is too large to be shown"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = QUOTED
_REPR.maxlong = 40


def full_disk(error: OSError) -> bool:
    """Whether it was raised for want of space: a full disk, a quota, a limit on the size of files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def full_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory; torch says so on a processor by the words of a RuntimeError alone, on a GPU by a class of its own."""
    return (
        isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
        or type(error).__name__ == "OutOfMemoryError"
    )


def nearest(word: str, known: list[str]) -> str:
    """`"; did you mean 'x'?"` with the known names nearest to `word`, or the list of them where none is near; of a long list the first ones."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(name) for name in near) + "?"
    shown = sorted(known)[: None if len(known) <= LISTED else LISTED // 5]
    more = f" and {len(known) - len(shown):,} more" if len(shown) < len(known) else ""
    return f"; known: {', '.join(shown)}{more}" if known else ""
