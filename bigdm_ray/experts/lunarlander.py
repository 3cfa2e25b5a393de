"""The heuristic that gymnasium ships with LunarLander, for discrete and for continuous engines."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import Arrays
from bigdm_ray.experts.base import Expert, Scripted


def expert(task: Task) -> Expert | None:
    """The heuristic, for each LunarLander."""
    if not task.full_name.startswith("box2d/lunarlander"):
        return None
    from gymnasium.envs.box2d.lunar_lander import heuristic

    leaf = task.signature().actions[""]
    engines = SimpleNamespace(continuous=leaf.kind == "tensor")
    engines.unwrapped = engines  # it asks the environment which engines there are

    def choose(observations: Arrays) -> Arrays:
        return {"": np.array([heuristic(engines, one) for one in observations[""]], leaf.dtype)}

    return Expert("lunarlander-heuristic", lambda rows: Scripted(choose))
