"""IQL of RLlib: `python -m bigdm_ray.run iql DATASET`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bigdm_ray.algorithms.base import Presets, own_flags
from bigdm_ray.baselines.actor import LayeredActor, layers_of
from bigdm_ray.baselines.rllib.base import MEAN, RllibSquashed
from bigdm_ray.baselines.rllib.modules import implicit_module
from bigdm_ray.baselines.rllib.offline import RllibOffline
from bigdm_ray.envs.signature import Signature
from bigdm_ray.replay.store import Store
from bigdm_ray.settings import setting

LOCOMOTION = ("hopper", "halfcheetah", "walker2d", "ant", "humanoid")
"""The tasks whose rewards the paper standardises."""

PRESETS: Presets = {
    "*": {"default": MEAN},
    **{task: {"default": MEAN | own_flags({"return_range": 1000.0})} for task in LOCOMOTION},
}


@dataclass(frozen=True)
class RllibIql(RllibSquashed, RllibOffline):
    """Hyperparameters of implicit Q-learning (Kostrikov et al. 2021, section 5 and appendix B for
    MuJoCo).

    As there, the policy is a Gaussian whose mean alone is squashed and whose deviations depend on
    nothing. RLlib's is squashed whole: to it an action at a bound, where noise and clipping put
    many, is one of infinite size before tanh, which it cuts off at 7.25.
    """

    name: ClassVar[str] = "iql"
    presets: ClassVar[Presets] = PRESETS
    offline_steps: ClassVar[int] = 500_000

    actor_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the policy", above=0, high=1
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics", above=0, high=1
    )
    value_learning_rate: float = setting(3e-4, "Adam's learning rate of the value", above=0, high=1)
    gamma: float = setting(0.99, "discount", low=0, high=1)
    tau: float = setting(
        0.005,
        "share of the critics that their targets take over at each learner step",
        above=0,
        high=1,
    )
    expectile: float = setting(
        0.7, "expectile of the critics that the value is fitted to", above=0, high=0.999
    )
    beta: float = setting(
        3.0, "inverse temperature of the advantages that weigh the policy's loss", above=0
    )
    return_range: float = setting(
        0.0,
        "rewards are scaled so that the returns of the data lie in a range so wide; 0 leaves them",
        low=0,
    )

    def build(self, signatures: Mapping[str, Signature]) -> LayeredActor:
        """See Algorithm."""
        (signature,) = signatures.values()
        return LayeredActor(
            signature, self.name, self.hidden, "relu", "bounded", free_std=True, scaled=True
        )

    def module(self, config: Any) -> Any:
        """See RllibSquashed."""
        return implicit_module()

    def export_state(self, module: Any) -> dict[str, np.ndarray]:
        """See Rllib."""
        return layers_of(module.pi_encoder, module.pi, log_std=module.pi.log_std)

    def reward_scale(self, store: Store) -> float:
        """See RllibOffline: the paper's standardisation of locomotion tasks."""
        spread = float(np.ptp(store.table.returns)) if self.return_range else 0.0
        return self.return_range / spread if spread else 1.0

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.iql import IQLConfig

        return IQLConfig().training(
            actor_lr=self.actor_learning_rate,
            critic_lr=self.critic_learning_rate,
            value_lr=self.value_learning_rate,
            gamma=self.gamma,
            tau=self.tau,
            expectile=self.expectile,
            beta=self.beta,
            train_batch_size_per_learner=self.batch_size,
        )
