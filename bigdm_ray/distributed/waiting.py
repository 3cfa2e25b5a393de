"""Waits with an end: they say what for, and after `--machines.patience` they end the run.

Ray waits for ever, and without a word: for an actor that no machine has room for, for a process
that has been stopped, for a machine that does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from bigdm_ray.errors import RunFailed
from bigdm_ray.progress import say

GOES_ON = (
    "add machines, ask for less (--actors, --learners), or give more time (--machines.patience, in "
    "minutes), then --resume"
)
"""What helps a run whose patience is at an end."""
SAY_S = 30.0
"""Seconds without news after which a wait says what it is for, and again after as many."""


class Wait:
    """One wait for news. Whoever waits looks in now and then (`check`), and says when some came."""

    def __init__(
        self, what: Callable[[], str], patience_s: float | None = None, advice: str = GOES_ON
    ) -> None:
        """`what` is waited for, in words; without `patience_s` it is waited for for ever.

        `advice` tells what helps at its end.
        """
        self._what = what
        self._patience_s = patience_s
        self._advice = advice
        self.news()

    def news(self) -> None:
        """Something came: the wait begins anew."""
        self._since = self._said = time.monotonic()

    def check(self) -> None:
        """Say what is waited for, where that is due.

        Raises RunFailed where patience is at an end.
        """
        now = time.monotonic()
        waited = now - self._since
        if self._patience_s is not None and waited > self._patience_s:
            raise in_vain(self._what(), waited, self._advice)
        if now - self._said > SAY_S:
            self._said = now
            say(f"waiting for {self._what()} ({waited:.0f} s); {free()}")

    def seconds(self, most: float = SAY_S) -> float:
        """How long may be slept until the next `check`."""
        now = time.monotonic()
        left = self._said + SAY_S - now
        if self._patience_s is not None:
            left = min(left, self._since + self._patience_s - now)
        return min(most, max(0.01, left))


def answer(
    refs: Any,
    what: Callable[[], str],
    patience_s: float | None = None,
    meanwhile: Callable[[], bool] | None = None,
) -> Any:
    """`ray.get` of a reference or a list of them, with a wait that says what it is for.

    The first error of one is raised at once, as `ray.get` does. `meanwhile` is asked every second;
    where it answers True there is an end, and the answer is None. Raises RunFailed.
    """
    wait = Wait(what, patience_s)
    pending = refs if isinstance(refs, list) else [refs]
    while pending:
        seconds = wait.seconds(1.0 if meanwhile else SAY_S)
        ready, pending = ray.wait(pending, num_returns=1, timeout=seconds)
        if ready and pending:
            ray.get(ready)  # raises what it has, while the others are still awaited
        if pending and meanwhile is not None and meanwhile():
            return None
        wait.check()
    return ray.get(refs)


def in_vain(what: str, waited: float, advice: str = GOES_ON) -> RunFailed:
    """That patience is at an end, after so many seconds."""
    return RunFailed(f"waited {waited / 60:.3g} minutes for {what}; {free()}: {advice}")


def free() -> str:
    """What the cluster has left, in words."""
    there, left = ray.cluster_resources(), ray.available_resources()
    parts = [f"{left.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    return f"free in the cluster: {', '.join(parts)}"
