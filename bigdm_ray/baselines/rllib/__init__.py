"""PPO, SAC, CQL, IQL and MARWIL of RLlib: their hyperparameters, and the networks that act for them.

RLlib's RLModules, losses and optimizers learn, and its environment runners play (`trainer.py` says how). PPO and SAC play
through Ray with `--actors` runners, or in this process with `--local`. CQL, IQL and MARWIL learn from a dataset. Discrete
actions are for PPO and MARWIL. Neither observations nor rewards are normalised, but for IQL's rewards (`return_range`).
Each is a file of this package.
"""

from bigdm_ray.baselines.rllib.cql import Cql
from bigdm_ray.baselines.rllib.iql import Iql
from bigdm_ray.baselines.rllib.marwil import Marwil
from bigdm_ray.baselines.rllib.ppo import Ppo
from bigdm_ray.baselines.rllib.sac import Sac

ALGORITHMS = (Ppo, Sac, Cql, Iql, Marwil)
