"""Metrics: one flat dict of `group/name` numbers a report, and who listens to it.

`train(run, report)` takes a function for its reports; here are the terminal's, metrics.jsonl's and TensorBoard's.
Names: `train/` losses, `play/` episodes that training played, `evaluation/` scores, `time/` counters and rates,
`store/` the replay. `play/staleness` is the lag in learner steps of the weights that played.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from bigdm_ray.formats.progress import Progress
from bigdm_ray.replay.shard import unwritten

Report = dict[str, float]
Listener = Callable[[Report], bool | None]
"""Hears every report; where it answers True, the run ends there (see `train`)."""


class Means:
    """Sums and counts between two reports; `take` gives the means and forgets them."""

    def __init__(self, begun: dict[str, tuple[float, int]] | None = None) -> None:
        """Go on from the `state` of another."""
        begun = begun or {}
        self._sums = {name: total for name, (total, _) in begun.items()}
        self._counts = {name: count for name, (_, count) in begun.items()}

    def state(self) -> dict[str, tuple[float, int]]:
        """Sum and count by name."""
        return {name: (total, self._counts[name]) for name, total in self._sums.items()}

    def add(self, metrics: dict[str, float], weight: int = 1) -> None:
        """Add means over `weight` things."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._counts[name] = self._counts.get(name, 0) + weight

    def take(self) -> Report:
        """The means since the last call."""
        means = {name: total / max(1, self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class JsonLines:
    """metrics.jsonl: one report a line. `offset` is what a checkpoint remembers, so that a resume can cut it back."""

    def __init__(self, path: Path, offset: int) -> None:
        try:
            self._file: IO[str] = path.open("a")
            if self._file.tell() > offset:
                self._file.truncate(offset)
                self._file.seek(offset)
        except OSError as error:
            raise unwritten(path, error) from None

    def __call__(self, report: Report) -> None:
        """Write one line. Raises RunFailed on a full disk."""
        try:
            self._file.write(json.dumps(report) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritten(Path(self._file.name), error) from None

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(
            OSError
        ):  # each line was flushed; what could not be written has been raised then
            self._file.close()


class TensorBoard:
    """Event files in `tensorboard/`, the horizontal axis being `clock`: environment steps, learner steps on a dataset.

    They are written here and now, not by the thread of tensorboardX's own writer: what that meets on a full disk nobody could catch.
    """

    FLUSH_S = 10.0

    def __init__(self, folder: Path, clock: str = "time/env_steps") -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._clock = clock
        self._folder = folder
        self._failed = False
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()

    def __call__(self, report: Report) -> None:
        """Write every number as a scalar. Raises RunFailed on a full disk."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        event = Event(wall_time=time.time(), step=int(report[self._clock]))
        for name, value in report.items():
            if name != self._clock and np.isfinite(value):
                event.summary.value.extend(scalar(name, value).value)
        with self._told():
            self._events.write_event(event)
            if time.monotonic() - self._flushed > self.FLUSH_S:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left. Raises RunFailed on a full disk, unless that has been said before."""
        if self._failed:
            return
        with self._told():
            self._events.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            raise unwritten(self._folder, error) from None


class Terminal:
    """Progress on one line of a terminal; silent where standard error is not one. Evaluations stay on screen.

    `budget` is what `clock` counts up to, `minutes` the wall time from `begin` on; the bar is of the one that is nearer to its end.
    """

    def __init__(
        self,
        budget: int,
        stream: IO[str] | None = None,
        clock: str = "time/env_steps",
        minutes: float | None = None,
    ) -> None:
        self._budget = budget
        self._minutes = minutes
        self._began = time.monotonic()
        self._clock = clock
        self._stream = stream or sys.stderr
        self._alive = self._stream.isatty()

    def begin(self) -> None:
        """The clock of the minutes starts."""
        self._began = time.monotonic()

    def __call__(self, report: Report) -> None:
        """Redraw the line; print an evaluation above it."""
        if not self._alive:
            return
        steps = report[self._clock]
        if "evaluation/return_mean" in report:
            text = f"evaluation at {steps:>11,.0f} steps: return {report['evaluation/return_mean']:8.1f} +- {report['evaluation/return_std']:.1f}"
            if "evaluation/normalized_score" in report:
                text += f", normalised score {report['evaluation/normalized_score']:.1f}"
            self._stream.write(f"\r\x1b[K{text}\n")
        else:
            done = steps / self._budget
            width = 24
            rate = report.get(f"{self._clock}_per_s", 0.0)
            left = max(0.0, (self._budget - steps) / rate) if rate else 0.0
            if self._minutes is not None:
                passed, whole = time.monotonic() - self._began, 60 * self._minutes
                done, left = (
                    max(done, passed / whole),
                    max(0.0, min(left if rate else whole, whole - passed)),
                )
            done = min(1.0, done)
            bar = "#" * int(width * done)
            played = (
                f"return {report['play/return_mean']:7.1f}  "
                if "play/return_mean" in report
                else ""
            )
            text = (
                f"[{bar:<{width}}] {100 * done:3.0f} %  {steps / 1e6:.2f}M steps  {rate / 1e3:.1f}k/s  {played}"
                f"loss {report.get('train/loss', 0.0):.3f}  about {left / 60:.0f} min left"
            )
            self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

    def watch(self, label: str, episodes: int) -> Progress | None:
        """A bar for episodes that are played when training is over, which stays on screen; None where there is no terminal."""
        if not self._alive:
            return None
        self.close()
        bar = Progress(label, episodes, stream=self._stream, units="episodes")
        bar.advance(0)
        return bar

    def close(self) -> None:
        """Leave the progress line."""
        if self._alive:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
