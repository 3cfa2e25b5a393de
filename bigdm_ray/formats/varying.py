"""HDF5's data of variable length (texts, encoded pictures), read by a process of its own.

HDF5 itself may run for ever in them, or die, where bytes have decayed: they lie in a heap whose
entries tell where the next one is. A hang inside HDF5 holds Python's lock, so no thread can end it;
a process can be ended. It is started at a file's first such dataset, needs h5py alone, takes one
request a line (the name of a dataset), and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

CPU_S = 5.0
"""Seconds of the processor that `SLICE` entries may take: a thousand times what they do."""
SLICE = 256
MEMORY = 3 << 30
"""Bytes of address space that the process may take: h5py takes less than one GiB of it."""
END, ERROR = -1, -2
"""What stands in the place of a number of entries."""


class Unreadable(ValueError):
    """What is wrong with the data, in a few words."""


class Varying:
    """The reader of one file's data of variable length."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-P", str(Path(__file__)), str(path), str(CPU_S)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for who asked
        )
        assert process.stdin is not None and process.stdout is not None
        self._process, self._to, self._from = process, process.stdin, process.stdout
        self._finalizer = weakref.finalize(self, _end, process)

    @property
    def is_running(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def read(self, name: bytes, claim: Callable[[int], None]) -> list[bytes]:
        """The entries of a dataset of one axis; `claim` is told of bytes before they are taken.

        Raises Unreadable.
        """
        found: list[bytes] = []
        try:
            with contextlib.suppress(BrokenPipeError):
                self._to.write(json.dumps(name.decode("latin-1")).encode() + b"\n")
                self._to.flush()
            while (count := self._whole(8)) != END:
                if count == ERROR:
                    raise Unreadable(self._bytes(self._whole(8)).decode(errors="replace"))
                sizes = struct.unpack(f"<{count}q", self._bytes(8 * count))
                claim(sum(sizes))
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
            code = self._process.wait()
            if code == -signal.SIGPROF:
                raise Unreadable("HDF5 does not come to an end reading it: bytes have decayed")
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise Unreadable(f"HDF5 dies reading it ({how}): bytes have decayed")
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
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
        for line in asked:
            try:
                _answer(file[json.loads(line).encode("latin-1")], cpu_s, answers)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
                why = (str(error) or type(error).__name__).encode(errors="replace")[:300]
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
    answer_requests(sys.argv[1], float(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
