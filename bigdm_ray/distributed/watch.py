"""The death of this machine's own Ray: one sentence at once.

Ray has a process that knows the whole (gcs) and one for each machine (raylet). Without the one
nothing is begun any more, and Ray ends this process after a minute; without the other it ends it
without a word, at the next object that is put or fetched. So the two are waited for; where one has
died the others are killed, and the main thread is interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from bigdm_ray import stopping
from bigdm_ray.errors import RunFailed

EVERY_S = 0.1
PATIENCE_S = 10.0
"""Seconds that the main thread of a command has to hear of the death. Ray holds it for a minute
where it was about to call the dead."""
SENTENCE = (
    "Ray's own process `{}` has died (killed, or for want of memory?), and nothing goes on without"
    " it; start the command again, a run with --resume: what was stored and saved is whole"
)
VITAL = {"gcs_server": "gcs", "raylet": "raylet"}


class _Watch(threading.Thread):
    """Looks at the processes that `ray.init` has started; `dead` names the one that has ended."""

    def __init__(self, at_end: Callable[[], None]) -> None:
        super().__init__(name="watch over Ray", daemon=True)
        self._at_end = at_end
        self.dead = ""
        self._node: Any = ray._private.worker._global_node
        processes = self._node.all_processes
        self._gcs, self._raylet = (processes[kind][0].process.pid for kind in VITAL)
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()
        self._looking = threading.Lock()

    def run(self) -> None:
        with contextlib.ExitStack() as end:
            death = select.poll()
            for pid in (self._gcs, self._raylet):
                with contextlib.suppress(
                    OSError
                ):  # gone already, or a kernel that has no such thing
                    death.register(handle := os.pidfd_open(pid), select.POLLIN)
                    end.callback(os.close, handle)
            while not self._over.is_set():
                death.poll(1000 * EVERY_S)
                if self.look(self._interrupts):
                    if (
                        self._interrupts
                        and stopping.is_heeding()
                        and not self._over.wait(PATIENCE_S)
                    ):
                        self._end_command()
                    return

    def look(self, interrupt: bool = False) -> bool:
        """Whether one of the two has died; the main thread is interrupted, the others are
        killed."""
        with self._looking:
            for kind, _ in [] if self.dead else self._node.dead_processes():
                if kind in VITAL:
                    self.dead = VITAL[kind]
            if self.dead:
                if interrupt:  # before it puts or fetches an object
                    stopping.break_off()
                for _, process in self._node.live_processes():
                    process.kill()
                _kill_children(self._raylet)
            return bool(self.dead)

    def _end_command(self) -> None:
        """End it from here: the main thread waits for the dead, where it hears nothing."""
        print(f"error: {SENTENCE.format(self.dead)}", file=sys.stderr)
        self._at_end()
        _leave(stopping.code() if stopping.is_stop_asked() else RunFailed.exit_code)

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


def _kill_children(raylet: int) -> None:
    """End the workers and agents of a raylet, which has died: some would wait for it for ever.

    They have no parent any more, and the titles that they give themselves hide their command lines,
    of agents the environment too. A worker's tells the raylet's number; agents are of its session.
    """
    mark = f"RAY_RAYLET_PID={raylet}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environment.parent.name)
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if os.getsid(pid) == raylet or mark in environment.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def watch_ray(at_end: Callable[[], None]) -> Iterator[None]:
    """In here the death of the Ray that this process has started is RunFailed, whatever is done.

    Where it cannot be raised the command ends at once, after `at_end`.
    """
    watch = _Watch(at_end)
    watch.start()
    try:
        with hush_ray():
            yield
    except (KeyboardInterrupt, RayError):
        if not watch.look():
            raise
    finally:
        watch.end()
    if watch.dead:
        _end_of_ray()
        raise RunFailed(SENTENCE.format(watch.dead))


@contextlib.contextmanager
def hush_ray() -> Iterator[None]:
    """In here what Ray prints of deaths, lines of its logs among it, is left out: they are mended,
    or told."""
    worker: Any = ray._private.worker
    prints, worker.print_to_stdstream = worker.print_to_stdstream, _print_nothing
    try:
        yield
    finally:
        worker.print_to_stdstream = prints


def _print_nothing(data: Any, ignore_prefix: bool) -> None:
    pass


_dead = False


def _end_of_ray() -> None:
    """Have a command end without Ray's own end, which waits for the dead.

    Raises KeyboardInterrupt where a signal was to end it: one that went to all its processes.
    """
    global _dead
    if stopping.is_heeding():
        _dead = True
        atexit.register(
            _leave, stopping.code() if stopping.is_stop_asked() else RunFailed.exit_code
        )
        if stopping.is_stop_asked():
            raise KeyboardInterrupt


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def shut_down() -> None:
    """End the Ray that this process has started, unless it has died and the command ends for
    that."""
    if not _dead:
        ray.shutdown(wait_for_processes=True)
