"""The scripted policies of Meta-World, one a task, which act on what is observed; actions are cut
to [-1, 1], as the environment does."""

from __future__ import annotations

import numpy as np

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import Arrays
from bigdm_ray.experts.base import Expert, Scripted


def expert(task: Task) -> Expert | None:
    """The scripted policy of a task of Meta-World."""
    if task.suite != "metaworld":
        return None
    from metaworld.policies import ENV_POLICY_MAP

    name = task.full_name.rpartition("/")[2]
    act = ENV_POLICY_MAP[f"{name}-v3"]().get_action

    def choose(observations: Arrays) -> Arrays:
        seen = observations[""].astype(np.float64)
        return {"": np.clip([act(one) for one in seen], -1.0, 1.0).astype(np.float32)}

    return Expert(f"metaworld-{name}-v3-policy", lambda rows: Scripted(choose))
