"""Workers of the tests' Ray are forks of one process that has imported torch and the package.

A worker that starts by itself spends 3 CPU-seconds on imports, which is most of what a tiny run
costs. What is forked is a plain default worker of Ray otherwise: a process of its own, with the
environment that Ray gives it. Tests that start their own Ray, and commands that they run, start
workers as users do.

Ray runs this file in the place of its `setup_worker.py`: it hands over its arguments, environment
and outputs to the process that forks, waits for the worker's end, and ends as it did.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SOCKET = "BIGDM_TESTS_FORKING"
"""The variable that names the socket of the process that forks."""
THEIRS = "BIGDM_TESTS_SETUP"
"""The one that names Ray's own `setup_worker.py`."""
PATIENCE_S = 20.0
"""Seconds that the process that forks may take to import."""
PRELOADED = (
    "bigdm_ray.training.evaluation",
    "bigdm_ray.training.learner",
    "bigdm_ray.training.rollout_worker",
    "bigdm_ray.training.stores",
    "bigdm_ray.algorithms.udrl",
    "bigdm_ray.envs.toys",
    "torch._dynamo",  # optimizers import it
)


@contextlib.contextmanager
def forking(path: Path) -> Iterator[None]:
    """A Ray that starts inside the block has workers that are forked; `path`: a short folder."""
    from ray._private import services

    here, start = str(Path(__file__).resolve()), services.start_ray_process
    theirs = str(Path(services.RAY_PATH) / "_private" / "workers" / "setup_worker.py")

    def with_forks(command: list[str], *others: object, **named: object) -> object:
        return start([word.replace(theirs, here) for word in command], *others, **named)

    os.environ |= {SOCKET: str(path / "forks"), THEIRS: theirs}
    command = [sys.executable, here, "--serve", os.environ[SOCKET]]
    forker = subprocess.Popen(command, env={"A": ""} | os.environ)
    services.start_ray_process = with_forks
    try:
        yield
    finally:
        services.start_ray_process = start
        del os.environ[SOCKET], os.environ[THEIRS]
        forker.kill()
        forker.wait()


def hand_over() -> None:
    """Do what Ray's `setup_worker.py` would, in a fork of the process that listens; else let it."""
    with socket.socket(socket.AF_UNIX) as to:
        deadline = time.monotonic() + PATIENCE_S
        while to.connect_ex(os.environ[SOCKET]):  # it still imports
            if time.monotonic() > deadline:
                os.execv(sys.executable, [sys.executable, os.environ[THEIRS], *sys.argv[1:]])
            time.sleep(0.05)
        request = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": str(Path.cwd())}
        data = json.dumps(request).encode()
        socket.send_fds(to, [len(data).to_bytes(8, "big")], [0, 1, 2])
        to.sendall(data)
        to.recv(1)  # there is none: it is closed with the worker's end


def serve(path: str) -> None:
    """Fork a worker for every connection, until the parent process is gone."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert "ray" not in sys.modules, "Ray reads once, at its import, what it gives each worker"
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        listening.settimeout(2)
        parent = os.getppid()
        while os.getppid() == parent:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            if not os.fork():
                listening.close()
                connection.setblocking(True)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                become_worker(connection)
            connection.close()


def become_worker(connection: socket.socket) -> None:
    """Run Ray's default worker as the request says; does not return."""
    os.setpgid(0, 0)  # Ray kills the process group of a worker that ends
    length, fds, _, _ = socket.recv_fds(connection, 8, 3)
    data = b""
    while len(data) < int.from_bytes(length, "big"):
        data += connection.recv(1 << 20)
    request = json.loads(data)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])  # none is removed: the title's place is found by the first
    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    given, sys.argv = parser.parse_known_args(request["argv"])
    os.environ.update(json.loads(given.serialized_runtime_env_context).get("env_vars", {}))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "--serve" else hand_over()
