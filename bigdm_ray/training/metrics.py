"""Metrics: one flat dict of `group/name` numbers a report, and who listens to it.

`train(run, report)` takes a function for its reports; here are the terminal's, metrics.jsonl's and
TensorBoard's. Names: `train/` losses, `play/` episodes that training played, `evaluation/` scores,
`time/` counters and rates, `store/` the replay. In a run of several tasks each has its own behind
its name (`cartpole/play/return_mean`), and `TASK/train/share` says how much of the batches it was.
`play/staleness` is the lag in learner steps of the weights that played.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bigdm_ray.progress import LiveDisplay, Status, rough_duration, say, span
from bigdm_ray.replay.shard import write_failure

Report = dict[str, float]
Listener = Callable[[Report], bool | None]
"""Hears every report; where it answers True, the run ends there (see `train`)."""


class RunningMeans:
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


SHARE = "/train/share"
TOKENS = "train/tokens"
"""Tokens that a learner step reads, where an algorithm counts them."""


def by_task(means: Report) -> Report:
    """Means over whole batches in which what is a task's is the mean over its own part of them.

    Where a task has its share among them, its other `train/` metrics are what its part has added to
    the mean over all. Those of a task that was in no batch are left out.
    """
    shares = {n.removesuffix(SHARE): share for n, share in means.items() if n.endswith(SHARE)}
    out: Report = {}
    for name, value in means.items():
        task, train, metric = name.rpartition("/train/")
        if not train or task not in shares or metric == "share":
            out[name] = value
        elif shares[task]:
            out[name] = value / shares[task]
    return out


class JsonLines:
    """metrics.jsonl: one report a line.

    `offset` is what a checkpoint remembers, so that a resume can cut it back.
    """

    def __init__(self, path: Path, offset: int) -> None:
        try:
            self._file: IO[str] = path.open("a")
            if self._file.tell() > offset:
                self._file.truncate(offset)
                self._file.seek(offset)
        except OSError as error:
            raise write_failure(path, error) from None

    def __call__(self, report: Report) -> None:
        """Write one line. Raises RunFailed on a full disk."""
        try:
            self._file.write(json.dumps(report) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_failure(Path(self._file.name), error) from None

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


def _words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as TensorBoard takes them: it knows numbers, words and truth values, but no
    lists."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for name, value in settings.items()
    }


class TensorBoard:
    """Event files in `tensorboard/`, the horizontal axis being `clock`: environment steps, learner
    steps on a dataset.

    They are written here and now, not by the thread of tensorboardX's own writer: what that meets
    on a full disk nobody could catch. Its HParams tab shows `settings` beside the newest values of
    the metrics named `results`.
    """

    FLUSH_S = 10.0

    def __init__(
        self,
        folder: Path,
        clock: str = "time/env_steps",
        settings: Mapping[str, Any] | None = None,
        results: Sequence[str] = (),
    ) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import hparams

        self._clock = clock
        self._folder = folder
        self._failed = False
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            if settings:
                begun = hparams(_words(settings), dict.fromkeys(results))[:2]  # the third ends it
                for summary in begun:
                    self._events.write_event(Event(wall_time=time.time(), summary=summary))
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
            raise write_failure(self._folder, error) from None


@dataclass
class CurrentActivity:
    """What a run is doing at this moment, for those who look at it between two reports."""

    doing: str = "starting"
    done: int = 0
    total: int = 0
    env_steps: int = 0
    learner_steps: int = 0
    episodes: int = 0
    played: float | None = None  # mean return of the episodes that were stored last
    staleness: int = 0

    def advance(self, count: int = 1) -> None:
        """So much more of what it is doing is done."""
        self.done += count

    @contextlib.contextmanager
    def busy(self, doing: str, total: int = 0) -> Iterator[None]:
        """Inside the block it does this, `total` times where that is known."""
        before = self.doing, self.done, self.total
        self.doing, self.done, self.total = doing, 0, total
        try:
            yield
        finally:
            self.doing, self.done, self.total = before


EVALUATED = "evaluation/return_mean"


class TerminalReporter:
    """A run's progress on standard error: a bar on a terminal, elsewhere a line every ten seconds.

    Evaluations stay on screen. `budget` is what `clock` counts up to, `minutes` the wall time from
    `begin` on, `learner_steps` a budget of learner steps; the bar is of the one nearest its end.
    `doing` is said until the run begins.
    """

    def __init__(
        self,
        budget: int,
        stream: IO[str] | None = None,
        clock: str = "time/env_steps",
        minutes: float | None = None,
        learner_steps: int | None = None,
        doing: str = "starting",
    ) -> None:
        self._clock = clock.removeprefix("time/")
        self._budgets = {self._clock: budget}
        if learner_steps is not None:
            self._budgets.setdefault("learner_steps", learner_steps)
        self._minutes = minutes
        self._stream = stream or sys.stderr
        self._now = CurrentActivity(doing)
        self._at_first = CurrentActivity()
        self._opened = time.monotonic()
        self._began: float | None = None
        self._live = LiveDisplay(self.status, stream=self._stream)

    def watch(self, now: CurrentActivity) -> None:
        """Look at this from now on."""
        now.doing = self._now.doing
        self._now, self._at_first = now, dataclasses.replace(now)

    def begin(self) -> None:
        """The clock of the minutes starts."""
        self._at_first = dataclasses.replace(self._now)
        self._began = time.monotonic()

    def __call__(self, report: Report) -> None:
        """Print an evaluation above the bar; other reports need no line of their own."""
        tasks = [name.removesuffix(EVALUATED) for name in report if name.endswith(f"/{EVALUATED}")]
        if tasks:
            told = ", ".join(f"{task[:-1]} {report[task + EVALUATED]:.1f}" for task in tasks)
            at = f"{report[f'time/{self._clock}']:>11,.0f} {self._clock.replace('_', ' ')}"
            mean = report.get("evaluation/normalized_score")
            score = "" if mean is None else f", mean of normalised scores {mean:.1f}"
            say(f"evaluation at {at}: {told}{score}", self._stream)
        if "evaluation/return_mean" not in report:
            return
        steps, mean = report[f"time/{self._clock}"], report["evaluation/return_mean"]
        told = f"{steps:>11,.0f} {self._clock.replace('_', ' ')}"
        text = f"evaluation at {told}: return {mean:8.1f} +- {report['evaluation/return_std']:.1f}"
        if "evaluation/desired_return" in report:
            text += f", asked {report['evaluation/desired_return']:.1f}"
        if "evaluation/normalized_score" in report:
            text += f", normalised score {report['evaluation/normalized_score']:.1f}"
        say(text, self._stream)

    def status(self) -> Status:
        """How the run stands: the share of its budget, and the text beside it."""
        now, began = self._now, self._began
        passed = time.monotonic() - (self._opened if began is None else began)
        doing = now.doing
        if now.total:
            doing += f" {now.done:,} of {now.total:,}"
        if began is None:
            return Status(f"{doing}, {span(passed)}")
        share, left = self._share(now, passed)
        parts = [
            f"{now.env_steps:,} steps" if self._clock == "env_steps" else "",
            f"{now.episodes:,} episodes" if self._clock == "env_steps" else "",
            f"{now.learner_steps:,} learner steps" if "learner_steps" in self._budgets else "",
            "" if now.played is None else f"return {now.played:.1f}",
            f"staleness {now.staleness}" if now.staleness else "",
            span(passed) + ("" if self._minutes is None else f" of {span(60 * self._minutes)}"),
            "" if left is None or share >= 1 else f"{rough_duration(left)} left",
            doing,
        ]
        return Status(", ".join(filter(None, parts)), share)

    def _share(self, now: CurrentActivity, passed: float) -> tuple[float, float | None]:
        """The share of the budget that is spent, and the seconds that are left where that can be
        told."""
        whole = 60 * self._minutes if self._minutes is not None else None
        share, left = (0.0, None) if whole is None else (passed / whole, max(0.0, whole - passed))
        for name, budget in self._budgets.items():
            here, first = getattr(now, name), getattr(self._at_first, name)
            share = max(share, here / budget)
            if here > first:
                ends = max(0, budget - here) * passed / (here - first)
                left = ends if left is None else min(left, ends)
        return min(1.0, share), left

    def close(self) -> None:
        """Leave the progress line."""
        self._live.close()
