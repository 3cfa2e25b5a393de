"""Signs of life: a bar on a terminal or in a notebook, a line now and then where there is neither.

A `LiveDisplay` shows what a function says of the work, from a thread of its own: it moves while the
work is in a long call too. On a terminal that is tqdm's bar, drawn twice a second. Through a pipe,
in a log, under nohup it is a plain line: the first after two seconds, then one every ten. What else
is said while it is shown goes through `say`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from tqdm import tqdm

DRAW_S = 0.5
"""Seconds between two drawings of a bar."""
FIRST_S, LINE_S = 2.0, 10.0
"""Seconds until the first plain line, and between two of them."""
WIDTH = 10


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # the thread that draws is that of LiveDisplay


@dataclass(frozen=True)
class Status:
    """How far something is: the share that is done, where that can be known, and what is written
    beside it."""

    text: str
    share: float | None = None


def say(text: str, stream: IO[str] | None = None) -> None:
    """Write a line above the bars that are shown, if there are any; standard error by default."""
    stream = stream or sys.stderr
    with _Bar.external_write_mode(file=stream):
        stream.write(text + "\n")
        stream.flush()


def is_animated(stream: IO[str]) -> bool:
    """Whether what is written there can be written over: a terminal, or a notebook."""
    return stream.isatty() or (stream is sys.stderr and notebook() is not None)


def notebook() -> Any:
    """IPython's shell of the notebook that this process is the kernel of; None elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell if "IPKernelApp" in getattr(shell, "config", {}) else None


def span(seconds: float) -> str:
    """Seconds as one reads them on a clock: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rough_duration(seconds: float) -> str:
    """Roughly so long: 40 s, 12 min, 7 h, 3 days."""
    for unit, size, until in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{max(0.0, seconds) / size:,.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"


class LiveDisplay:
    """Shows what `status` says until it is closed; nothing where it is `quiet`."""

    def __init__(
        self, status: Callable[[], Status], quiet: bool = False, stream: IO[str] | None = None
    ) -> None:
        self._status = status
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lines = 0
        self.shown = not quiet
        if quiet:
            return
        if is_animated(self._stream):
            first = self._status()
            self._bar = _Bar(
                total=1.0,
                initial=_within(first.share),
                file=self._stream,
                **_shape(self._stream),
                leave=False,
                bar_format=_format(first),
            )
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def draw(self) -> None:
        """Show how it stands now."""
        status = self._status()
        if self._bar is None:
            share = "" if status.share is None else f"{100 * min(1.0, status.share):.0f} %, "
            self._stream.write(f"{share}{status.text}\n")
            self._stream.flush()
            self._lines += 1
            return
        self._bar.n = _within(status.share)
        self._bar.bar_format = _format(status)
        self._bar.refresh()

    def _run(self) -> None:
        wait = FIRST_S if self._bar is None else DRAW_S
        with contextlib.suppress(OSError, ValueError):  # nobody is there to read it any more
            while not self._ended.wait(wait):
                self.draw()
                wait = LINE_S if self._bar is None else DRAW_S

    def close(self, leave: bool = False) -> None:
        """End it.

        With `leave` its last state stays on the screen, or in the log if it told of it before.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError, ValueError):
            if leave and self.shown and (self._bar is not None or self._lines):
                self.draw()
            if self._bar is not None:
                self._bar.leave = leave
                self._bar.close()


def _shape(stream: IO[str]) -> dict[str, Any]:
    """How tqdm is told a terminal's size: one that does not know its own says 0, and it would draw
    nothing."""
    try:
        if not min(os.get_terminal_size(stream.fileno())):
            columns, lines = shutil.get_terminal_size()
            return {"ncols": columns, "nrows": lines}
    except (OSError, ValueError):  # a notebook's
        pass
    return {"dynamic_ncols": True}


def _within(share: float | None) -> float:
    return min(1.0, max(0.0, share or 0.0))


def _format(status: Status) -> str:
    """What tqdm is to draw."""
    text = status.text.replace("{", "{{").replace("}", "}}")
    if status.share is None:
        return text
    return f"{{percentage:3.0f}} %|{{bar:{WIDTH}}}| {text}"


class Progress:
    """Counts steps, or other `units`; `total` may not be known, and without units time alone is
    told.

    Used as a context manager, it is shown inside the block, and its last state stays.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        done: int = 0,
        quiet: bool = False,
        stream: IO[str] | None = None,
        units: str = "steps",
    ) -> None:
        self._label, self._total, self._units = label, total, units
        self._quiet, self._stream = quiet, stream
        self._began = time.monotonic()
        self._before = self.done = done
        self._live: LiveDisplay | None = None

    def __enter__(self) -> Progress:
        self._live = LiveDisplay(self.status, self._quiet, self._stream)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.close(leave=bool(self._units))

    def advance(self, steps: int) -> None:
        """So many steps more have gone by."""
        self.done += steps

    def status(self) -> Status:
        """How it stands now."""
        share = min(1.0, self.done / self._total) if self._total else None
        return Status(self.line(time.monotonic() - self._began), share)

    def line(self, seconds: float) -> str:
        """What is written beside the bar after so many seconds."""
        if not self._units:
            return f"{self._label}, {span(seconds)}"
        rate = (self.done - self._before) / max(seconds, 1e-3)
        pace = f"{rate:,.0f} a second" if not 0 < rate < 1 else f"one in {1 / rate:,.0f} s"
        told = f"{self._label}: {self.done:,}"
        if self._total:
            told += f" of {self._total:,}"
            pace += (
                f", {rough_duration(max(0, self._total - self.done) / rate)} left"
                if rate > 0
                else ""
            )
        return f"{told} {self._units}, {pace}, {span(seconds)}"
