"""Drawing ahead: the next step's windows are drawn in a thread while the learner takes this one.

What a step draws is a pure function of the step and of what the sources hold. So it does not matter
when and where it is drawn, as long as nothing is added, fitted or noted in between; the learner
draws ahead of no step before which that may be, and a bout ends with nothing drawn (`settle`).

A thread does not always pay: both sides want Python's lock, and what is small is drawn sooner than
it is handed over. So it is tried: now and then some steps are taken without it and some with it, in
turns, and the faster way stays. Which one it is changes nothing but the time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")

BLOCK = 6
"""Steps in a row that are taken in one of the two ways while they are compared."""
BLOCKS = 8
AGAIN = 4_000
"""Steps until they are compared anew: stores grow, and machines become busy."""
SHARE = 0.1
"""Share of a step's time that drawing must take for the thread to be tried at all."""
GAIN = 0.95
"""How much of the time may be left with the thread, at most."""


class PrefetchTrial:
    """Which of the two ways is faster, from the seconds of the steps that were taken in each."""

    def __init__(self) -> None:
        self._step = -BLOCK  # of this comparison; those below 0 warm up
        self._faster = False
        self._begin()

    def _begin(self) -> None:
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._drawing: list[float] = []

    @property
    def prefetch_next(self) -> bool:
        """Whether the next step is to be drawn ahead."""
        if 0 <= self._step < BLOCK * BLOCKS:
            return self._step // BLOCK % 2 == 1
        return self._faster

    def note(self, ahead: bool | None, seconds: float, drawing: float) -> None:
        """A step was taken in one of the ways (None: neither); `drawing` of it went to windows."""
        if self._step >= 0 and ahead is not None:
            self._seconds[ahead].append(seconds)
            if not ahead:
                self._drawing.append(drawing)
        self._step += 1
        plain, with_thread = self._seconds[False], self._seconds[True]
        if self._step == BLOCK and not (
            plain and statistics.median(self._drawing) > SHARE * statistics.median(plain)
        ):
            self._step, self._faster = BLOCK * BLOCKS + 1, False
        if self._step == BLOCK * BLOCKS:
            self._faster = bool(plain and with_thread) and statistics.median(
                with_thread
            ) < GAIN * statistics.median(plain)
        if self._step >= AGAIN:
            self._step = 0
            self._begin()


class Prefetcher(Generic[T]):
    """Gives a step its draw, from the thread where it was begun there; it ends with this object."""

    def __init__(self) -> None:
        self.trial = PrefetchTrial()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[T] | None = None
        self._began = 0.0
        self._waited = 0.0
        self._threaded = False

    def take(self, draw: Callable[[], T]) -> T:
        """What `begin` has begun, else `draw()`. What was raised in the thread is raised here."""
        self._began = time.perf_counter()
        pending = self._pending
        self._threaded = pending is not None
        drawn = draw() if pending is None else pending.result()
        self._pending = None
        self._waited = time.perf_counter() - self._began
        return drawn

    @property
    def should_prefetch(self) -> bool:
        """Whether the thread is to draw for the next step, if that can be drawn as things are."""
        return self.trial.prefetch_next

    def begin(self, draw: Callable[[], T]) -> None:
        """Draw for the step after this one in the thread."""
        self._thread = self._thread or ThreadPoolExecutor(1, "draw")
        self._pending = self._thread.submit(draw)

    def note_step(self) -> None:
        """The step that has taken its draw is done."""
        begun = self._pending is not None
        way = begun if begun == self._threaded else None
        self.trial.note(way, time.perf_counter() - self._began, self._waited)

    def settle(self) -> None:
        """Wait until nothing is being drawn, and forget what was: sources may change after it."""
        if self._pending is not None:
            wait([self._pending])
            self._pending = None
