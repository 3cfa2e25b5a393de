"""Many whole jobs side by side: each a Ray task with one core and one thread, made again where its
worker dies."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from bigdm_ray.distributed.cluster import ONE_THREAD, own_ray
from bigdm_ray.errors import UserError

DEATHS_FORGIVEN = 2


def run_side_by_side(
    work: Callable[..., Any], jobs: list[tuple[Any, ...]], at_once: int
) -> Iterator[tuple[int, Any, str]]:
    """Call `work(*job)` for every job, `at_once` of them at a time; (its number, the answer or
    None, why there is none) as they end.

    A job that fails stops no other; of an error that is not meant for users the traceback goes to
    stderr too. `work` is a function of this package: workers import it by name.
    """
    with contextlib.nullcontext() if ray.is_initialized() else own_ray(at_once):
        task = ray.remote(
            num_cpus=1, max_retries=DEATHS_FORGIVEN, runtime_env={"env_vars": dict(ONE_THREAD)}
        )(work)
        waiting = list(enumerate(jobs))[::-1]
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    number, job = waiting.pop()
                    running[task.remote(*job)] = number
                (ready,), _ = ray.wait(list(running), num_returns=1)
                number = running.pop(ready)
                try:
                    yield number, ray.get(ready), ""
                except RayTaskError as error:
                    why, cause = str(error.cause), type(error.cause).__name__
                    if not isinstance(error.cause, UserError):
                        print(error, file=sys.stderr)
                        why = f"{cause}: {why}"
                    yield number, None, why
                except RayError as error:
                    died = f"its worker died {DEATHS_FORGIVEN + 1} times"
                    yield number, None, f"{died} ({str(error).strip().splitlines()[0][:200]})"
        finally:
            for reference in running:  # there are some where the caller has stopped
                with contextlib.suppress(RayError):
                    ray.cancel(reference, force=True)
