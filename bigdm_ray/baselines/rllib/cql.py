"""CQL of RLlib: `python -m bigdm_ray.run cql DATASET`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bigdm_ray.algorithms.base import Pretraining
from bigdm_ray.baselines.rllib import inner
from bigdm_ray.baselines.rllib.base import RllibTempered
from bigdm_ray.baselines.rllib.modules import conservative_module
from bigdm_ray.baselines.rllib.offline import RllibOffline
from bigdm_ray.settings import setting


@dataclass(frozen=True)
class RllibCql(RllibTempered, RllibOffline):
    """Hyperparameters of conservative Q-learning, CQL(H) without Lagrange (Kumar et al. 2020);
    those of the authors' D4RL runs."""

    name: ClassVar[str] = "cql"
    offline_steps: ClassVar[int] = 500_000

    actor_learning_rate: float = setting(
        1e-4, "Adam's learning rate of the policy", above=0, high=1
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics", above=0, high=1
    )
    alpha_learning_rate: float = setting(
        1e-4, "Adam's learning rate of the temperature", above=0, high=1
    )
    gamma: float = setting(0.99, "discount", low=0, high=1)
    tau: float = setting(
        0.005,
        "share of the critics that their targets take over at each learner step",
        above=0,
        high=1,
    )
    initial_alpha: float = setting(1.0, "temperature of the entropy at the start", above=0)
    min_q_weight: float = setting(5.0, "weight of the conservative loss", low=0)
    actions: int = setting(
        10,
        "actions sampled from the policy here, from it there, and at random, for the conservative"
        " loss",
        low=1,
    )
    clone_steps: int = setting(
        40_000, "learner steps at the start in which the policy clones the data", low=0
    )
    deterministic_backup: bool = setting(True, "whether targets leave the entropy out")

    def pretraining(self) -> Pretraining | None:
        """Cloning."""
        return Pretraining(self.clone_steps, ("clone_steps",), "a clone of the data")

    def module(self, config: Any) -> Any:
        """See RllibSquashed."""
        return conservative_module()

    def begin(self, learner: Any, steps: int) -> None:
        """See RllibOffline."""
        inner.count_iterations(learner, steps)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.cql import CQLConfig

        return CQLConfig().training(
            actor_lr=self.actor_learning_rate,
            critic_lr=self.critic_learning_rate,
            alpha_lr=self.alpha_learning_rate,
            gamma=self.gamma,
            tau=self.tau,
            initial_alpha=self.initial_alpha,
            min_q_weight=self.min_q_weight,
            num_actions=self.actions,
            bc_iters=self.clone_steps,
            deterministic_backup=self.deterministic_backup,
            train_batch_size_per_learner=self.batch_size,
        )
