"""Signatures remembered on disk, so that looking at hundreds of tasks makes no environment.

A signature is one JSON file in the user's cache folder (`$XDG_CACHE_HOME/bigdm-ray/signatures`,
else below `~/.cache`). Its name is a hash of what it depends on: the task with its arguments, the
suite's files, and the packages that are installed. What cannot be read, written or believed is as
if it were not there, and costs an environment. The folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from bigdm_ray.envs.signature import Signature
from bigdm_ray.jsons import NotJson, read_json

LARGEST = 4 * 2**20
"""Bytes of a file that may be a signature."""


def folder() -> Path:
    """Where signatures are remembered."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = told if told.is_absolute() else Path("~/.cache").expanduser()
    return base / "bigdm-ray" / "signatures"


def key_of(task: str, folders: Iterable[Path], modules: Iterable[str]) -> dict[str, Any] | None:
    """What the signature of a task depends on, as JSON; None where a part of it cannot be told.

    `task` is its name with its arguments, `folders` hold the Python files of its suite, `modules`
    are what makes its environments.
    """
    try:
        files = [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for where in folders
            for file in sorted(where.glob("*.py"))
        ]
        packages = [(name, *_installed(name)) for name in sorted({*modules, "gymnasium"})]
    except (OSError, ValueError, ImportError):
        return None
    return {"task": task, "files": files, "packages": packages}


def _installed(module: str) -> tuple[str, str, int]:
    """Which copy of a module this is: its version, where it is known, its file, and the time of it.

    Raises ImportError where there is none.
    """
    found = importlib.util.find_spec(module.partition(".")[0])
    if found is None or found.origin is None:
        raise ImportError(module)
    version = ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version(module)
    return version, found.origin, Path(found.origin).stat().st_mtime_ns


def recall(key: dict[str, Any]) -> Signature | None:
    """The signature that was remembered for this key, if it is there and whole."""
    try:
        told = read_json(_file(key), largest=LARGEST)
        if told["sum"] != _sum({"key": told["key"], "signature": told["signature"]}):
            return None
        return Signature.from_json(told["signature"]) if told["key"] == _plain(key) else None
    except (OSError, NotJson, KeyError, TypeError, ValueError, AttributeError):
        return None


def remember(key: dict[str, Any], signature: Signature) -> None:
    """Write a signature down, whole or not at all; where that is not possible, nothing happens."""
    told = {"key": _plain(key), "signature": _plain(signature.to_json())}
    path, name = _file(key), ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            name = file.name
            file.write(json.dumps(told | {"sum": _sum(told)}))
        Path(name).replace(path)
    except OSError:
        if name:
            Path(name).unlink(missing_ok=True)


def forget(key: dict[str, Any]) -> None:
    """Remove what was remembered for this key."""
    with contextlib.suppress(OSError):
        _file(key).unlink(missing_ok=True)


def _file(key: dict[str, Any]) -> Path:
    return folder() / f"{_sum(_plain(key))[:32]}.json"


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
