"""Environment of all tests: one thread, no banner, no window; helpers of the Ray tests can be
imported.

Tests with the marker `ray` join one Ray, which the first of them starts, and whose workers are
forks (`distributed/forked_worker.py`). One that ends it, or must start its own, says
`@pytest.mark.ray(own=True)`: it finds none, and the next one starts it anew.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 starves on a machine that others load
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("MPLBACKEND", "Agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# in the background of a script these are ignored, and so would be by the commands that tests stop
# `making`, `helpers`, `helpers_serving`
sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parent / "distributed"),
    str(Path(__file__).parent / "serving"),
]

from hypothesis import HealthCheck, settings  # noqa: E402  (after the environment is set)

settings.register_profile(
    "bigdm",
    deadline=None,
    max_examples=25,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# --hypothesis-profile=explore
settings.register_profile(
    "explore", deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)
settings.load_profile("bigdm")

RAY = contextlib.ExitStack()
"""Ends the Ray of the tests."""
RAY_CPUS = 12
"""CPUs of the Ray of the tests, which are but numbers: more than any test asks for."""
PATIENCE_S = 120.0
"""Seconds that a busy machine may take to end the actors of a test."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the Ray of the tests before fixtures, of whatever scope, that must find none."""
    marker = item.get_closest_marker("ray")
    if marker is not None and marker.kwargs.get("own"):
        RAY.close()


@pytest.fixture(autouse=True)
def ray_of_the_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that is marked `ray` finds of Ray; it leaves no actor behind."""
    marker = request.node.get_closest_marker("ray")
    if marker is None:
        yield
        return
    from bigdm_ray.distributed.cluster import own_ray

    ray = sys.modules["ray"]
    own = bool(marker.kwargs.get("own"))
    if not own and not ray.is_initialized():
        RAY.close()  # of a test that has ended it
        from forked_worker import forking

        RAY.enter_context(forking(Path(RAY.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))))
        RAY.enter_context(own_ray(RAY_CPUS))
    yield
    if own or not ray.is_initialized():
        ray.shutdown()
        return
    left, patience = actors_of_ray(), time.monotonic() + PATIENCE_S
    while left and time.monotonic() < patience:
        gc.collect()  # Ray ends an actor whose last handle goes
        time.sleep(0.05)
        left = actors_of_ray()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the test has left actors or tasks behind: {left}"


def actors_of_ray() -> dict[int, str]:
    """The processes below this one that are actors of Ray or run a task, by id, but Ray's own."""
    from helpers import descendants

    return {
        pid: name
        for pid, name in descendants(os.getpid()).items()
        if name.startswith("ray::") and not name.startswith(RAYS_OWN)
    }


RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_")
"""What the names of processes begin with that are no actors of a test; `_` those of Ray Data."""


def pytest_sessionfinish() -> None:
    """End the Ray of the tests."""
    RAY.close()
