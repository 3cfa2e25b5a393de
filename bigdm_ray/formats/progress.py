"""A progress bar for a terminal: one line on standard error that is written over. Silent where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import IO

WIDTH = 24
EVERY_S = 0.2


class Progress:
    """Counts steps, or other `units`. `total` may not be known. Used as a context manager, it ends its line however the work ends."""

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
        self._stream = sys.stderr if stream is None else stream
        self._shown = not quiet and self._stream.isatty()
        self._began = time.monotonic()
        self._next = 0.0
        self._before = self.done = done

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._show()
            self._stream.write("\n")
            self._stream.flush()

    def advance(self, steps: int) -> None:
        """So many steps more have gone by."""
        self.done += steps
        if self._shown and time.monotonic() >= self._next:
            self._show()
            self._next = time.monotonic() + EVERY_S

    def _show(self) -> None:
        self._stream.write(f"\r{self.line(time.monotonic() - self._began)}\x1b[K")
        self._stream.flush()

    def line(self, seconds: float) -> str:
        """The text of the bar after so many seconds."""
        rate = (self.done - self._before) / max(seconds, 1e-3)
        pace = f"{rate:,.0f} a second" if not 0 < rate < 1 else f"one in {1 / rate:,.0f} s"
        if not self._total:
            return f"{self._label}: {self.done:,} {self._units}, {pace}"
        share = min(1.0, self.done / self._total)
        bar = "#" * round(WIDTH * share)
        left = f", {max(0.0, (self._total - self.done) / rate):,.0f} s left" if rate > 0 else ""
        return f"{self._label}: [{bar:<{WIDTH}}] {self.done:,} of {self._total:,} {self._units}, {pace}{left}"
