"""Trajectory Transformer.

`tt.py` is the algorithm; beside it its settings, network, policy and presets.
"""

from bigdm_ray.algorithms.tt.network import GOAL, TrajectoryModel
from bigdm_ray.algorithms.tt.policy import BeamStates, TtPolicy, beams_of, plan_at
from bigdm_ray.algorithms.tt.tt import Tt, values_to_go

__all__ = [
    "ALGORITHM",
    "GOAL",
    "BeamStates",
    "TrajectoryModel",
    "Tt",
    "TtPolicy",
    "beams_of",
    "plan_at",
    "values_to_go",
]

ALGORITHM = Tt
