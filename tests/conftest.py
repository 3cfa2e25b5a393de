"""Environment of all tests: one thread, no banner, no window; helpers of the Ray tests can be imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parent / "distributed"),
]  # `making`, `helpers`

from hypothesis import HealthCheck, settings  # noqa: E402  (after the environment is set)

settings.register_profile(
    "bigdm",
    deadline=None,
    max_examples=25,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "explore", deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)  # --hypothesis-profile=explore
settings.load_profile("bigdm")
