"""Steps on the file system: counted, and one of them the last, or the first on a full disk."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CALLS = ("rename", "replace", "fsync", "mkdir", "unlink", "remove", "rmdir", "link", "truncate")
"""Functions of `os` that are a step each."""
How = Literal["kill", "stop", "full"]
ROOM = ("open", "write", "fsync", "mkdir", "made by a library")
"""Kinds of steps that a full disk fails."""


class Steps:
    """Counts steps; what happens at the step `at` and after it is `strike`'s business."""

    def __init__(self, at: int, strike: Callable[[str, int], None], torn: bool = True) -> None:
        """With `torn` a write is struck when half of it is done, else before it, as it may go
        on."""
        self.count = 0
        self._at, self._strike, self._torn = at, strike, torn

    def __call__(self, kind: str, half: Callable[[], object] = lambda: None) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.count += 1
        if self._at and self.count >= self._at:
            if self._torn:
                half()
            self._strike(kind, self.count)


class Written:
    """A file that is written to: writing and closing it are steps."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            with contextlib.suppress(OSError):
                self._file.flush()

        self._steps("write", half)
        return self._file.write(data)

    def close(self) -> None:
        if not self._file.closed:
            self._steps("close")
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def hook(steps: Steps) -> None:
    """Have everything in this process that changes files be counted."""

    def counted(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps(kind)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name), name))
    plain_open, plain_os_open = io.open, os.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set("wax+") & set(mode):
            return plain_open(file, mode, *args, **kwargs)
        steps("open")
        return Written(plain_open(file, mode, *args, **kwargs), steps)

    def os_opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            steps("open")
        return plain_os_open(path, flags, *args, **kwargs)

    io.open = builtins.open = opened  # type: ignore[assignment]
    os.open = os_opened  # type: ignore[assignment]
    import h5py
    import pyarrow.parquet as pq

    def begun(file: Any, name: Any, mode: str = "r", *args: Any, **kwargs: Any) -> None:
        if mode != "r":
            steps("made by a library")
        made(file, name, mode, *args, **kwargs)

    def ended(file: Any) -> None:
        if file and file.mode != "r":
            steps("closed by a library")
        closed(file)

    made, closed = h5py.File.__init__, h5py.File.close
    h5py.File.__init__, h5py.File.close = begun, ended
    for kind, names in (
        (h5py.Group, ("create_dataset", "create_group")),
        (pq.ParquetWriter, ("__init__", "write_batch", "write_table", "close")),
    ):
        for name in names:
            what = "closed by a library" if name == "close" else "made by a library"
            setattr(kind, name, counted(getattr(kind, name), what))


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (or minus a signal), what it said, how many steps it took."""

    code: int
    said: str
    steps: int


def forked(run: Callable[[], int], log: Path, at: int | None = None, how: How = "kill") -> Ended:
    """`run` in a fork: without hooks, or struck at a step (0: at none).

    It is killed there, or is sent SIGTERM, or its disk is full from that step on.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        status = os.waitpid(process, 0)[1]
        steps = int(told or 0)
        return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), steps)
    code = 99
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(fd, "w"), write_through=True) for fd in (1, 2)
        )

        def strike(kind: str, count: int) -> None:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "stop" and count == at:
                os.kill(os.getpid(), signal.SIGTERM)
            elif how == "full" and kind in ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        steps = Steps(at or 0, strike, torn=how != "stop")
        if at is not None:
            hook(steps)
        code = run()
        os.write(writing, str(steps.count).encode())
    except BaseException:  # noqa: BLE001  (a fork of a test must not go on as the test)
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError
