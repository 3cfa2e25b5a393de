"""PPO of RLlib: `python -m bigdm_ray.run ppo lunarlander --local`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bigdm_ray.algorithms.base import Presets, own_flags
from bigdm_ray.baselines.base import TrainerContext, TrainerResult
from bigdm_ray.baselines.rllib import inner
from bigdm_ray.baselines.rllib.base import MEAN, RllibGaussian
from bigdm_ray.baselines.rllib.online import RllibOnline, RllibOnlineTrainer
from bigdm_ray.settings import setting

ZOO = {
    "gamma": 0.999,
    "gae_lambda": 0.98,
    "entropy_coefficient": 0.01,
    "epochs": 4,
    "train_batch": 4096,
}
COUNTED = {
    "budget.env_steps": 1_000_000,
    "evaluations.every": 100_000,
    "saves.every": 100_000,
}
LANDER = {"default": MEAN | own_flags(ZOO) | COUNTED}
BODY = {"default": MEAN | COUNTED}
BODIES = dict.fromkeys(("hopper", "halfcheetah", "walker2d", "reacher"), BODY)
PRESETS: Presets = {
    "lunarlander": LANDER,
    "lunarlander-sparse": LANDER,
    **BODIES,
    "*": {"default": MEAN},
}
"""LunarLander: the RL Zoo's discount, lambda, entropy and epochs, with a smaller iteration."""


@dataclass(frozen=True)
class RllibPpo(RllibGaussian, RllibOnline):
    """Hyperparameters of proximal policy optimisation (Schulman et al. 2017)."""

    name: ClassVar[str] = "ppo"
    presets: ClassVar[Presets] = PRESETS

    train_batch: int = setting(2048, "environment steps of an iteration", low=1)
    minibatch: int = setting(64, "steps of a learner step", low=1)
    epochs: int = setting(10, "passes over the steps of an iteration", low=1)
    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    gamma: float = setting(0.99, "discount", low=0, high=1)
    gae_lambda: float = setting(0.95, "lambda of generalised advantages", low=0, high=1)
    clip: float = setting(0.2, "how far the probability ratio may leave 1", above=0)
    value_clip: float = setting(
        1e6, "squared errors of the value are clipped at this, which stops their gradient", above=0
    )
    value_coefficient: float = setting(0.5, "weight of the value loss", low=0)
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0)
    kl_coefficient: float = setting(
        0.0, "first weight of the divergence from the policy that played; 0 leaves it out", low=0
    )
    max_norm: float = setting(0.5, "gradients are scaled down to this norm", above=0)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.ppo import PPOConfig

        return PPOConfig().training(
            lr=self.learning_rate,
            gamma=self.gamma,
            lambda_=self.gae_lambda,
            clip_param=self.clip,
            vf_clip_param=self.value_clip,
            vf_loss_coeff=self.value_coefficient,
            entropy_coeff=self.entropy_coefficient,
            use_kl_loss=self.kl_coefficient > 0,
            kl_coeff=self.kl_coefficient,
            grad_clip=self.max_norm,
            grad_clip_by="global_norm",
            train_batch_size_per_learner=self.train_batch,
            minibatch_size=min(self.minibatch, self.train_batch),
            num_epochs=self.epochs,
        )

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """See Rllib."""
        return {"kl_coefficient": inner.kl_coefficient(learner)}

    def trainer(self, context: TrainerContext) -> RllibPpoTrainer:
        """See ExternalAlgorithm."""
        return RllibPpoTrainer(self, context)


class RllibPpoTrainer(RllibOnlineTrainer):
    """An iteration: play a batch, learn from it in some epochs, hand out the policy."""

    algorithm: RllibPpo

    def step(self, steps: int) -> TrainerResult:
        """See Trainer: one whole iteration, whatever was asked for."""
        before = self.env_steps
        pieces, returns, lengths = self.play_episodes(self.algorithm.train_batch)
        taken = inner.learn_from_episodes(self.learner, pieces, self.env_steps, self.config)
        self.learner_steps += taken
        self._sync()
        return TrainerResult(self.env_steps - before, taken, returns, lengths, self.metrics())
