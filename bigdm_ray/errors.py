"""The two errors that end a command with one sentence instead of a traceback.

`UserError` is a mistake that its reader can mend (a wrong name, a value out of range, a folder of another run);
`RunFailed` is what the world did to a run (a full disk, environments that all raise). Every door turns them into
one line on standard error and the exit code of the class.
"""

import errno

LISTED = 60
"""Names that a message lists, at most."""


class UserError(Exception):
    """A user's mistake: what was wrong, what was expected, what to do. Exit code 2."""

    exit_code = 2


class RunFailed(UserError):
    """A run that cannot go on for a reason outside the program. What it has stored stays valid. Exit code 1."""

    exit_code = 1


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
