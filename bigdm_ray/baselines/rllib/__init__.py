"""PPO, SAC, CQL, IQL and MARWIL of RLlib: their hyperparameters, and the networks that act for
them.

RLlib's RLModules, losses and optimizers learn, and its environment runners play (`trainer.py` says
how). PPO and SAC play through Ray with `--actors` runners, or in this process with `--local`. CQL,
IQL and MARWIL learn from a dataset. Discrete actions are for PPO and MARWIL. Neither observations
nor rewards are normalised, but for IQL's rewards (`return_range`). Each is a file of this package.
"""

from bigdm_ray.baselines.rllib.cql import RllibCql
from bigdm_ray.baselines.rllib.iql import RllibIql
from bigdm_ray.baselines.rllib.marwil import RllibMarwil
from bigdm_ray.baselines.rllib.ppo import RllibPpo
from bigdm_ray.baselines.rllib.sac import RllibSac

ALGORITHMS = (RllibPpo, RllibSac, RllibCql, RllibIql, RllibMarwil)
