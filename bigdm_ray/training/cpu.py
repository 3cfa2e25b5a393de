"""CPU seconds of a process and of those that it has started: what training costs, whoever else the
machine is busy with."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
"""Parts of a second that Linux counts a process's time in."""


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all its threads together, with those of processes that it
    has started: of ended ones, and of living ones in its own session, such as environments in
    processes of their own. (Ray's are sessions of their own, and tell their time themselves.)"""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(map(_alive, _children()))


def _children() -> set[str]:
    found: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found.update(file.read_text().split())
    return found


def _alive(pid: str) -> float:
    """CPU seconds of a living process of this session, 0 of others."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        session, user, system = (int(fields[k]) for k in (3, 11, 12))
    except (OSError, ValueError, IndexError):  # it has ended meanwhile
        return 0.0
    return (user + system) / TICKS if session == os.getsid(0) else 0.0
