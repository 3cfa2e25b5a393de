"""HDF5's data of variable length (texts, encoded pictures), read by a process of its own.

HDF5 itself may run for ever in them, or die, where bytes have decayed: they lie in a heap whose
entries tell where the next one is. A hang inside HDF5 holds Python's lock, so no thread can end it;
a process can be ended. It is started at a file's first such dataset, needs h5py alone, takes one
request a line (the name of a dataset), and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

CPU_S = 5.0
"""Seconds of the processor that `SLICE` entries may take: a thousand times what they do."""
SLICE = 256
MEMORY = 3 << 30
"""Bytes of address space that the process may take: h5py takes less than one GiB of it."""
END, ERROR, READY = -1, -2, -3
"""What stands in the place of a number of entries; READY comes once, when the file is open."""
LONGEST_ERROR = 300
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Unreadable(ValueError):
    """What is wrong with the data, in a few words."""


class ReaderFailed(Exception):
    """Why the process could not read, where that tells nothing of the file."""


class Varying:
    """The reader of one file's data of variable length.

    Its answers come through a pipe of their own: whatever is loaded with Python may print. Raises
    ReaderFailed where it does not come up.
    """

    def __init__(self, path: Path) -> None:
        with contextlib.ExitStack() as streams:
            try:
                said = streams.enter_context(tempfile.TemporaryFile())
                mine, its = os.pipe()
                self._from = streams.enter_context(os.fdopen(mine, "rb"))
                process = _start(path, its, said)
            except OSError as error:
                raise ReaderFailed(str(error)) from None
            streams.pop_all()
        assert process.stdin is not None
        self._process, self._to, self._said = process, process.stdin, said
        self._is_ready = False
        self._finalizer = weakref.finalize(self, _end, process, (self._to, self._from, said))
        try:
            if self._whole(8) != READY:
                raise ReaderFailed("it answers before it is asked")
        except BaseException:
            self._finalizer()
            raise
        self._is_ready = True

    @property
    def is_running(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def read(self, name: bytes, claim: Callable[[int], None]) -> list[bytes]:
        """The entries of a dataset of one axis; `claim` is told of bytes before they are taken.

        Raises Unreadable; ReaderFailed where the process was ended from outside.
        """
        found: list[bytes] = []
        try:
            with contextlib.suppress(BrokenPipeError):
                self._to.write(json.dumps(name.decode("latin-1")).encode() + b"\n")
                self._to.flush()
            while (count := self._whole(8)) != END:
                if count == ERROR:
                    size = _within(self._whole(8), LONGEST_ERROR)
                    raise Unreadable(self._bytes(size).decode(errors="replace"))
                size = 8 * _within(count, SLICE)
                sizes = struct.unpack(f"<{count}q", self._bytes(size))
                claim(sum(_within(size, sys.maxsize) for size in sizes))
                found += [self._bytes(size) for size in sizes]
        except BaseException:
            self._finalizer()  # an answer of which a part is left cannot be followed by another
            raise
        return found

    def _whole(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "little", signed=True)

    def _bytes(self, size: int) -> bytes:
        data = self._from.read(size)
        if len(data) < size:
            raise self._death()
        return data

    def _death(self) -> Exception:
        """Of what the process has died. Bytes are blamed for what HDF5 does in an open file."""
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        told = ": ".join(filter(None, (how, self._last_line())))
        if -code in _FROM_OUTSIDE or not self._is_ready:
            return ReaderFailed(told)
        if code == -signal.SIGPROF:
            return Unreadable("HDF5 does not come to an end reading it: bytes have decayed")
        if code < 0:
            return Unreadable(f"HDF5 dies reading it ({how}): bytes have decayed")
        return Unreadable(f"HDF5 dies reading it ({told})")

    def _last_line(self) -> str:
        """What the process has said last on its standard error."""
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 4096))
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:LONGEST_ERROR]


def _start(path: Path, answers: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process, which alone keeps the end of the pipe that it answers to."""
    command = [sys.executable, "-P", str(Path(__file__)), str(path), str(CPU_S), str(answers)]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=(answers,),
            process_group=0,  # Ctrl-C is for who asked
        )
    finally:
        os.close(answers)


def _within(number: int, most: int) -> int:
    if not 0 <= number <= most:
        raise Unreadable(f"HDF5 has told of {number:,} entries or bytes: bytes have decayed")
    return number


def _end(process: subprocess.Popen[bytes], streams: Iterable[IO[bytes]]) -> None:
    process.kill()
    process.wait()
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.close()


def answer_requests(path: str, cpu_s: float, asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more; die of SIGPROF where one comes to no end."""
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY if allowed == resource.RLIM_INFINITY else min(MEMORY, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r", locking="best-effort") as file:
        answers.write(struct.pack("<q", READY))
        answers.flush()
        for line in asked:
            try:
                _answer(file[json.loads(line).encode("latin-1")], cpu_s, answers)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
                why = (str(error) or type(error).__name__).encode(errors="replace")
                why = why[:LONGEST_ERROR]
                answers.write(struct.pack("<qq", ERROR, len(why)) + why)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.flush()


def _answer(data: Any, cpu_s: float, answers: IO[bytes]) -> None:
    for first in range(0, len(data), SLICE):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # by default it ends a process
        entries = [bytes(entry) for entry in data[first : first + SLICE]]
        answers.write(struct.pack(f"<{len(entries) + 1}q", len(entries), *map(len, entries)))
        answers.writelines(entries)
    answers.write(struct.pack("<q", END))


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[3]), "wb") as pipe:
        answer_requests(sys.argv[1], float(sys.argv[2]), sys.stdin.buffer, pipe)
