"""Environments: one file is one suite, found by its name; nothing is listed here."""

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.task import Task, find_task, tasks
from bigdm_ray.envs.vector import GymnasiumRows, Step, VectorEnv

__all__ = ["GymnasiumRows", "Leaf", "Signature", "Step", "Task", "VectorEnv", "find_task", "tasks"]
