"""The death of this machine's own Ray: one sentence at once.

Ray has a process that knows the whole (gcs) and one for each machine (raylet). Without the one
nothing is begun any more, and Ray ends this process after a minute; without the other it ends it
without a word, at the next object that is put or fetched. So the two are looked at ten times a
second; where one has died the others are killed, and the main thread is interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from bigdm_ray import stopping
from bigdm_ray.errors import RunFailed

EVERY_S = 0.1
VITAL = {"gcs_server": "gcs", "raylet": "raylet"}


class _Watch(threading.Thread):
    """Looks at the processes that `ray.init` has started; `dead` names the one that has ended."""

    def __init__(self) -> None:
        super().__init__(name="watch over Ray", daemon=True)
        self.dead = ""
        self._node: Any = ray._private.worker._global_node
        self._raylet = self._node.all_processes["raylet"][0].process.pid
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()
        self._looking = threading.Lock()

    def run(self) -> None:
        while not self._over.wait(EVERY_S):
            if self.look():
                if self._interrupts:
                    stopping.break_off()
                return

    def look(self) -> bool:
        """Whether one of the two has died; the others are killed then."""
        with self._looking:
            for kind, _ in [] if self.dead else self._node.dead_processes():
                if kind in VITAL:
                    self.dead = VITAL[kind]
            if self.dead:
                for _, process in self._node.live_processes():
                    process.kill()
                _kill_children(self._raylet)
            return bool(self.dead)

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


def _kill_children(raylet: int) -> None:
    """End the workers and agents of a raylet, which has died: some would wait for it for ever.

    They have other titles than command lines, and no parent any more; the raylet's number is in
    their environment.
    """
    mark = f"RAY_RAYLET_PID={raylet}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """In here the death of the Ray that this process has started is RunFailed, whatever is done.

    What Ray prints of deaths, lines of its logs among it, is left out: they are mended, or told.
    """
    worker: Any = ray._private.worker
    prints, worker.print_to_stdstream = worker.print_to_stdstream, _print_nothing
    watch = _Watch()
    watch.start()
    try:
        yield
    except (KeyboardInterrupt, RayError):
        if not watch.look():
            raise
    finally:
        watch.end()
        worker.print_to_stdstream = prints
    if watch.dead:
        _end_of_ray()
        raise RunFailed(
            f"Ray's own process `{watch.dead}` has died (killed, or for want of memory?), and "
            "nothing goes on without it; start the command again, a run with --resume: what was "
            "stored and saved is whole"
        )


def _print_nothing(data: Any, ignore_prefix: bool) -> None:
    pass


_dead = False


def _end_of_ray() -> None:
    """Have a command end without Ray's own end, which waits for the dead.

    Raises KeyboardInterrupt where a signal was to end it: one that went to all its processes.
    """
    global _dead
    if stopping.in_force():
        _dead = True
        atexit.register(_leave, stopping.code() if stopping.asked() else RunFailed.exit_code)
        if stopping.asked():
            raise KeyboardInterrupt


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def shut_down() -> None:
    """End the Ray that this process has started, unless it has died and the command ends for that."""
    if not _dead:
        ray.shutdown(wait_for_processes=True)
