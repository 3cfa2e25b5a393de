"""What an expert is, and how the one of a task is found.

A file of this folder with a function `expert(task)` is a source: it gives the Expert of a task that
it can do, else None. Simulators and programs of others are imported inside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigdm_ray.algorithms.base import Columns, Policy, State
from bigdm_ray.envs.task import Backend, Task
from bigdm_ray.envs.vector import Arrays, VectorEnv
from bigdm_ray.errors import UserError


@dataclass(frozen=True)
class Expert:
    """Who does a task well.

    `policy` is made for the environments that it acts in, which are of the `backend`. `learned`
    says that it was trained, so that its return is the best that a stretch of its episodes has on
    average; of a program it is that of all. `made_of`, JSON, is what else its episodes follow from.
    """

    source: str  # as `Episode.source` has it
    policy: Callable[[VectorEnv], Policy]
    backend: Backend = "fast"
    learned: bool = False
    command: dict[str, float] | None = None
    version: tuple[int, int] = (0, 0)
    made_of: tuple[Any, ...] = ()


class Scripted(Policy):
    """Acts by a rule on what is observed: `choose(observations) -> actions`, by leaf `[n, ...]`."""

    uniforms = 0

    def __init__(self, choose: Callable[[Arrays], Arrays]) -> None:
        self._choose = choose

    def act(
        self,
        state: State,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        commands: Columns,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], State]:
        """See Policy."""
        return self._choose(observations), state


def find_expert(task: Task) -> Expert:
    """Who does this task well. Raises UserError where nobody is known, or for want of a package."""
    task.require()
    for find in _sources():
        if (found := find(task)) is not None:
            return found
    raise UserError(f"no expert is known for {task.name}: train one, and record it with --from RUN")


def _sources() -> Iterator[Callable[[Task], Expert | None]]:
    package = importlib.import_module("bigdm_ray.experts")
    for _, name, _ in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"bigdm_ray.experts.{name}")
        if (find := getattr(module, "expert", None)) is not None:
            yield find
