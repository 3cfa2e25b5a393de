"""The folder of a Ray of one's own: short, closed to others, where there is room.

Ray makes unix sockets below its folder, whose paths may have 107 bytes, and opens that folder to
every user of the machine. So it is given one inside a folder that only its owner may enter. The
owner holds a lock on it for as long as it lives: the next one removes those of the killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

from bigdm_ray.errors import RunFailed

PREFIX = "bigdm-ray-"
ROOM = 64 << 20
"""Bytes that are free where a folder is made, at least: Ray writes logs from the first second."""
LONGEST = "session_2026-11-30_19-45-45_011584_4194304/sockets/plasma_store"
"""The longest name of a socket that Ray makes below its folder, by its length."""
REMOVALS = 20
QUOTED = 200
"""Characters of a log that a message quotes, at most."""
REASONS = (
    re.compile(r"^\[.* C \d+ \d+\] (\(\w+\) )?"),
    re.compile(r"^\[.* E \d+ \d+\] (\(\w+\) )?(?!.*@ 0x)"),
    re.compile(r"^(?=\w*Error\b)"),
)
"""How lines begin that tell why a process of Ray has ended: a failed check, an error, Python's."""


class SessionFolder:
    """A folder of this process's own; `path` is what Ray is given.

    Raises RunFailed where there is no place for it.
    """

    def __init__(self, what: str = "its sockets and logs", sockets: bool = True) -> None:
        """`what` it is for, in words; unless it is for `sockets`, its path may have any length."""
        refused: list[str] = []
        for place in candidate_folders():
            _sweep(place)
            try:
                self._folder, self._held = _made(place, sockets)
            except OSError as error:
                refused.append(f"{place} ({error.strerror or error})")
            else:
                self.path = self._folder / "r"
                return
        raise RunFailed(
            f"Ray needs a folder for {what}, and none of these will do: "
            f"{', '.join(refused) or 'there is no /tmp'}; make room or give rights in one of them, "
            "or name another with a short path in TMPDIR; --local trains without Ray"
        )

    def complaint(self) -> str:
        """The reason of its end that one of Ray's own processes wrote; empty where none did."""
        logs = [
            p for p in self.path.glob("session_*/logs/*") if p.suffix in (".out", ".err", ".log")
        ]
        for pattern in REASONS:
            for log in sorted(logs, key=_age):
                if found := [line for line in _tail(log) if pattern.search(line)]:
                    return pattern.sub("", found[-1])[:QUOTED]
        return ""

    def remove(self) -> None:
        """Remove the folder, also while the last processes of Ray are still ending."""
        for _ in range(REMOVALS):
            shutil.rmtree(self._folder, ignore_errors=True)
            if not self._folder.exists():
                break
            time.sleep(0.1)
        with contextlib.suppress(OSError):
            os.close(self._held)


def last_words(folder: Path, death: str) -> str:
    """What an actor wrote before the `death` that Ray tells; empty where there is nothing.

    `folder` is Ray's, of this machine. `death` names the process.
    """
    if (pid := re.search(r"\bpid: (\d+)", death)) is None:
        return ""
    lines = [
        line
        for log in folder.glob(f"session_*/logs/worker-*-{pid[1]}.err")
        for line in _tail(log)
        if not line.startswith(":")  # the names of job and actor
    ]
    fatal = [line for line in lines if line.startswith(("Fatal Python error", "*** SIG"))]
    return (fatal or lines or [""])[-1][:QUOTED]


def candidate_folders() -> list[Path]:
    """Where a folder may be made: what the user names, what is on disk, what is in memory."""
    named = [os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    found = [*named, "/tmp", "/var/tmp", runtime, "/dev/shm", os.curdir]
    whole = [Path(place).absolute() for place in found if place]
    return [place for place in dict.fromkeys(whole) if place.is_dir()]


def _made(place: Path, sockets: bool) -> tuple[Path, int]:
    """A new folder in `place`, and the lock on it. Raises OSError where Ray cannot work there."""
    free = shutil.disk_usage(place).free
    if free < ROOM:
        raise OSError(errno.ENOSPC, f"{free >> 20} MiB free, {ROOM >> 20} are needed")
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        held = -1
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.exists():  # swept before it was locked
                os.close(held)
                continue
            name = folder / f"r-{LONGEST.replace('/', '-')}"
            with socket.socket(socket.AF_UNIX) as probe:
                if sockets:
                    probe.bind(str(name))
                    name.unlink()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if held >= 0:
                os.close(held)
            if error.errno is None:  # what Python says of a path that is too long has no number
                raise OSError(errno.ENAMETOOLONG, "its path is too long") from None
            raise
        return folder, held


def _sweep(place: Path) -> None:
    """Remove the folders in `place` whose owners are dead."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(held).st_uid == os.getuid():
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its owner lives, or it is not ours to remove
            continue
        finally:
            os.close(held)


def _age(path: Path) -> float:
    """Smaller is newer, and a file that has gone is the oldest."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _tail(path: Path) -> list[str]:
    """The last lines of a file that are not empty; none of a file that cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
