"""Decision Transformer.

`dt.py` is the algorithm; beside it its settings, network, policy and presets.
"""

from bigdm_ray.algorithms.dt.dt import Dt
from bigdm_ray.algorithms.dt.network import DecisionTransformer
from bigdm_ray.algorithms.dt.policy import CachedPolicy, DtPolicy

__all__ = ["ALGORITHM", "CachedPolicy", "DecisionTransformer", "Dt", "DtPolicy"]

ALGORITHM = Dt
