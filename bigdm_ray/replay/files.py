"""Names of files: those that come out of files, and those of what is not whole yet.

Whatever is written takes its name by a rename. Until then it has a name that says who writes it, so
that what a killed process left can be told from what a living one is writing, and is removed when
its folder is next written to (`remove_leftovers`).
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from pathlib import Path
from typing import Any

from bigdm_ray.errors import quote_value

ENDING = ".tmp"


def file_name(value: Any, suffix: str = "") -> str:
    """`value`, which must be the plain name of a file that ends in `suffix`, and no path.

    For every name that is read from a file: whoever wrote it may have written anything. Raises
    ValueError.
    """
    plain = (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and not set("/\0") & set(value)
        and _fits(value)
        and value.endswith(suffix)
    )
    if not plain:
        ending = f" that ends in {suffix}" if suffix else ""
        raise ValueError(f"{quote_value(value)} is not the name of a file{ending}")
    return str(value)


def _fits(name: str) -> bool:
    try:
        return len(os.fsencode(name)) <= 255
    except UnicodeEncodeError:
        return False


def temporary_path(path: Path) -> Path:
    """The name, beside `path`, under which this process writes it until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}{ENDING}")


def remove_leftovers(folder: Path, name: str | None = None, alone: bool = False) -> None:
    """Remove what killed processes left under names of `temporary_path` in `folder`.

    Where `name` is given, of that file or folder only. `alone` says that nobody is writing there
    (the folder is locked, say): then all goes, whoever wrote it. Else what belongs to a process
    that lives stays.
    """
    of = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{of}.*{ENDING}"):
        writer = path.name.removesuffix(ENDING).rpartition(".")[2]
        if alone or (writer.isdecimal() and not _lives(int(writer))):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
