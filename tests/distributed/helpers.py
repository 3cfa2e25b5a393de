"""What the tests of the Ray ring share: tiny runs, and how the processes of a run's actors are
found and killed."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import bigdm_ray
from bigdm_ray.replay import Store, Table
from bigdm_ray.training.config import Run

TINY = (
    "--algorithm.hidden 16,16 --algorithm.batch-size 32 --algorithm.n-updates-per-iter 5"
    " --algorithm.warm-up-episodes 20 --algorithm.replay-size 60 --evaluations.episodes 4"
    " --evaluations.final-episodes 4"
)


def tiny(flags: str, task: str = "toy-vector") -> Run:
    return bigdm_ray.configure("udrl", task, f"{TINY} {flags}".split())


def descendants(pid: int) -> dict[int, str]:
    """Process id -> command line of everything below `pid`."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (
                    (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
                )
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    below: dict[int, str] = {}
    for child in parents:
        up = child
        while up in parents and up != pid:
            up = parents[up]
        if up == pid and child != pid:
            below[child] = names[child]
    return below


def kill_one(kind: str, pid: int | None = None) -> bool:
    """kill -9 one process of an actor class below `pid`; whether there was one."""
    for child, name in descendants(pid or os.getpid()).items():
        if name.startswith(f"ray::{kind}"):
            os.kill(child, signal.SIGKILL)
            return True
    return False


def episodes_on_disk(folder: Path) -> Table:
    """Every episode of a store's shards, living or not, each once."""
    store = Store(folder, flat_bytes=0, write=False).open()
    assert store.problems == []
    return store.table


def listeners(pid: int) -> list[tuple[str, int]]:
    """The addresses and ports on which `pid` and everything below it wait for TCP connections."""
    sockets = set()
    for process in (pid, *descendants(pid)):
        for link in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(str(link.readlink()))
    found = []
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                words, port = local.split(":")
                turned = b"".join(
                    bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8)
                )
                address = socket.inet_ntop(family, turned).removeprefix("::ffff:")
                found.append((address, int(port, 16)))
    return found


def answers(port: int, path: str) -> int:
    """The status of an HTTP answer without a token; 0 where no HTTP is spoken."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0
