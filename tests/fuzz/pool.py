"""Forked children that open mutants one after another; what became of each is told to the parent
line by line.

A child that dies of a signal, runs for too long or eats too much memory costs one mutant: the next
one begins with the mutant after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import io
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py  # noqa: F401  (what readers import is imported once, not in every child)
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import numpy as np

import bigdm_ray.formats.importing  # noqa: F401
from bigdm_ray.doors import door
from bigdm_ray.errors import LONGEST
from tests.fuzz.kinds import Command, Kind
from tests.fuzz.mutate import VICTIM, mutated

CPU_S, WALL_S = 30, 300
"""A mutant that takes longer is a hang: seconds of the processor, and of the clock, which a busy
machine stretches."""
MEMORY = 2 << 30
"""Bytes that a child may take beside what it was forked with."""
EACH = 400
"""Mutants that a child opens before the next child takes over."""
FAULTS = ("traceback", "signal", "hang", "memory", "untidy", "escape", "silent")
"""Outcomes that must not be. `silent`: changed, accepted without a word, though there is a checksum
to go by."""
OUTCOMES = ("refused", "told", "same", "changed", *FAULTS)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    kind: str
    index: int
    command: str
    outcome: str
    mutation: str
    text: str  # the sentence, or the traceback's last lines


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: samples, and a folder for each child."""
    where = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=where) as made:
        yield Path(made)


def run(
    kind: Kind, seed: int, indices: Sequence[int], root: Path, workers: int = 1
) -> Iterator[Outcome]:
    """The outcome of each mutant, in the order in which they are done; kinds of one sample share it
    under `root`."""
    sample = root / f"sample-{getattr(kind.make, '__name__', kind.name)}"
    if not sample.exists():
        sample.mkdir()
        child = _forked(lambda: _quietly(kind.make, sample))
        if status := os.waitpid(child, 0)[1]:
            shutil.rmtree(sample)
            raise RuntimeError(f"the sample of {kind.name} was not made (status {status})")
    with selectors.DefaultSelector() as watched:
        for number in range(workers):
            share = list(indices[number::workers])
            _Child(kind, seed, share, sample, root / str(number)).begin(watched)
        while watched.get_map():
            for key, _ in watched.select():
                yield from key.data.heard(watched)


def _quietly(make: Any, folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        make(folder)


def _forked(work: Any) -> int:
    """A child that does the work and never comes back; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001  (a child of fork must never come back)
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class _Child:
    """One share of the mutants, and the process that opens them now."""

    def __init__(self, kind: Kind, seed: int, share: list[int], sample: Path, folder: Path) -> None:
        self._kind, self._seed, self._share, self._sample = kind, seed, share, sample
        self._folder = folder
        self._done, self._rest = 0, b""

    def begin(self, watched: selectors.BaseSelector) -> None:
        """Fork a process for what is left of the share."""
        if self._done == len(self._share):
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        reads, writes = os.pipe()
        part = self._share[self._done : self._done + EACH]
        self._end = self._done + len(part)

        def work() -> None:
            os.close(reads)
            _open_all(self._kind, self._seed, part, self._sample, self._folder, writes)

        self._pid = _forked(work)
        os.close(writes)
        self._pipe = reads
        watched.register(reads, selectors.EVENT_READ, self)

    def heard(self, watched: selectors.BaseSelector) -> Iterator[Outcome]:
        """What the process has told since; where it has ended, the next one begins."""
        told = os.read(self._pipe, 1 << 20)
        *lines, self._rest = (self._rest + told).split(b"\n")
        for line in lines:
            self._done += 1
            yield Outcome(self._kind.name, **json.loads(line))
        if told:
            return
        watched.unregister(self._pipe)
        os.close(self._pipe)
        status = os.waitpid(self._pid, 0)[1]
        if self._done < self._end:
            yield self._death(status)
            self._done += 1
        self.begin(watched)

    def _death(self, status: int) -> Outcome:
        index = self._share[self._done]
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        noted = self._folder / "mutation"
        if not noted.is_file():
            raise RuntimeError((self._folder / "said").read_text(errors="replace"))
        hang = name in ("SIGALRM", "SIGPROF")
        words = self._folder / "said"
        text = words.read_text(errors="replace")[-600:] if words.is_file() else ""
        what = noted.read_text()
        command = self._kind.command(index).name
        return Outcome(
            self._kind.name,
            index,
            command,
            "hang" if hang else "signal",
            what,
            f"{name}: {' '.join(text.split())}",
        )


def _open_all(
    kind: Kind, seed: int, indices: list[int], sample: Path, folder: Path, pipe: int
) -> None:
    faulthandler.disable()
    for name, descriptor in (("printed", 1), ("said", 2)):
        os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False), errors="backslashreplace", write_through=True
    )
    sound = {command.name: _opened(kind, command, sample, folder, None) for command in kind.opens}
    for name, (outcome, text, _) in sound.items():
        if outcome != "done":
            raise RuntimeError(f"{name} refuses the sample of {kind.name}: {text}")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for index in indices:
        command = kind.command(index)
        chance = np.random.default_rng([seed, zlib.crc32(kind.name.encode()), index])
        (folder / "mutation").write_text("")
        outcome, text, result = _opened(kind, command, sample, folder, chance)
        if outcome == "done":
            before = sound[command.name]
            heard = (text, result[:1]) != (before[1], before[2][:1])  # a note, or another exit code
            outcome = "same" if result == before[2] else "told" if heard else "changed"
            if outcome == "changed" and kind.sealed:
                outcome = "silent"
        told = {
            "index": index,
            "command": command.name,
            "outcome": outcome,
            "mutation": (folder / "mutation").read_text(),
            "text": text[-700:],
        }
        _tell(pipe, told)


def _tell(pipe: int, told: dict[str, Any]) -> None:
    left = json.dumps(told).encode() + b"\n"
    while left:
        left = left[os.write(pipe, left) :]


def _opened(
    kind: Kind, command: Command, sample: Path, folder: Path, chance: np.random.Generator | None
) -> tuple[str, str, str]:
    """Outcome (`done` where the command ended well), what was said on standard error, and what came
    in."""
    case = folder / "case"
    os.chdir(folder)
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(sample, case / "in", symlinks=True)
    victims = [
        case / VICTIM,
        case / "in" / VICTIM,
        *((d / VICTIM) for d in kind.inner(case / "in")),
    ]
    targets = kind.files(case / "in")
    for victim in victims:
        victim.write_text("whole")
    if chance is not None:
        what = mutated(targets[int(chance.integers(len(targets)))], chance, kind.forged)
        (folder / "mutation").write_text(what)
    sys.stdout.flush()  # what the case before has left
    os.truncate(1, 0)
    os.truncate(2, 0)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    said, result = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(said):
            code = door(lambda _: command.go(case / "in"), [])
            if code in (0, 1) and not said.getvalue().startswith("error: "):
                result = f"{code} {command.result(case / 'in')}"
    except BaseException as error:  # noqa: BLE001  (whatever comes out is what is looked for)
        return "traceback", _last(error), ""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    text = said.getvalue()
    native = Path("/proc/self/fd/2").read_bytes().decode(errors="replace")
    if any(not victim.is_file() or victim.read_text() != "whole" for victim in victims):
        return "escape", text, result
    if "Traceback (most recent call last)" in text + native or code not in (0, 1, 2):
        return "traceback", (text + native)[-600:], result
    lines = text.splitlines()
    if any(len(line) > LONGEST + 20 for line in [*lines, *native.splitlines()]):
        return "untidy", text[:300], result
    text = text.replace(str(folder), "")
    if text.startswith("error: there is not enough memory"):
        return "memory", text, result
    if result:
        return "done", text, result
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith(("error: ", "note: "))]
    if len(errors) != 1 or others:
        return "untidy", f"not one sentence: {text[:500]}", result
    return "refused", text, result


def _last(error: BaseException) -> str:
    """Where an error was raised, in the package, and what it said."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "bigdm_ray/" in frame.filename] or frames
    at = f"{ours[-1].filename.rpartition('bigdm_ray/')[2]}:{ours[-1].lineno} {ours[-1].name}"
    return f"{type(error).__name__} at {at}: {' '.join(str(error).split())[:200]}"
