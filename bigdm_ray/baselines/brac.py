"""Behavior Regularized Actor Critic (BRAC; Wu, Tucker and Nachum 2019, arXiv 1911.11361), with the
KL divergence in primal form.

A squashed Gaussian that was cloned from the data stays fixed; an actor-critic pays `alpha` times
the divergence of its policy from it: in the policy's objective (equation 5), and with
`value_penalty` (BRAC-v) in the critics' targets too (equation 4), without it (BRAC-p) not. The
first `clone_steps` learner steps fit the clone by maximum likelihood; then come `warm_start` steps
of the critics alone. Settings are those of the official code
(google-research/behavior_regularized_offline_rl) and D4RL's evaluations; the paper tunes `alpha`
for each task.

Deviations. (1) The divergence of the two Gaussians before tanh is added up in closed form, where
the paper averages 4 samples: tanh is one-to-one, so it is the same quantity without the noise. (2)
Cloning is part of the run, has no entropy term, and the policy begins as the clone. So it rests in
the warm start, which for the official code is the time to reach the clone: steps at a divergence of
0 would wear Adam's second moments away, and the critics' first gradients would throw the policy
far. (3) Bootstrapping stops at terminations only, not at time limits.

    python -m bigdm_ray.run brac DATASET --evaluations.mode mean
    python -m bigdm_ray.run brac DATASET --algorithm.clone-steps 5000 --algorithm.warm-start 2000 \\
        --budget.learner-steps 50000
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Mode, Policy, Presets, Pretraining
from bigdm_ray.baselines.base import follow
from bigdm_ray.baselines.offline import (
    Critics,
    OfflineBaseline,
    Transitions,
    descend,
    frozen_copy,
    soft_clip,
    vector_policy,
)
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.continuous import ContinuousSpaces, DiagonalGaussian, squashed_log_prob
from bigdm_ray.models.heads import normals
from bigdm_ray.settings import setting

LOG_STD_RANGE = (-5.0, 0.0)
CLIP = 1e-3
"""How far the cloned actions stay from the bounds -1 and 1, whose inverse tanh is infinite."""


class BracModel(nn.Module):
    """Policy, clone and critics."""

    def __init__(self, spaces: ContinuousSpaces, settings: Brac) -> None:
        super().__init__()
        self.spaces = spaces
        self.actor = DiagonalGaussian(
            spaces.seen, settings.policy_hidden, spaces.acted, LOG_STD_RANGE, soft=True
        )
        self.clone = frozen_copy(self.actor)
        self.critics = Critics(spaces, settings.hidden)

    def divergence(self, seen: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """KL of the policy, given its mean and log deviation, from the clone: `[n]`, nats."""
        return gaussian_kl(mean, log_std, *self.clone(seen))


def gaussian_kl(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL of one diagonal Gaussian from another, summed over the last axis; nats."""
    ratio = torch.exp(2 * (log_std - other_log_std))
    distance = ((mean - other_mean) * torch.exp(-other_log_std)) ** 2
    return 0.5 * (ratio + distance - 1).sum(-1) + (other_log_std - log_std).sum(-1)


PRESETS: Presets = {"*": {"default": {"evaluations.mode": "mean"}}}
"""The official code is scored on the mean."""


@dataclass(frozen=True)
class Brac(OfflineBaseline):
    """Hyperparameters of BRAC."""

    name: ClassVar[str] = "brac"
    presets: ClassVar[Presets] = PRESETS

    hidden: tuple[int, ...] = setting((300, 300), "widths of the critics", low=1, high=65_536)
    policy_hidden: tuple[int, ...] = setting(
        (200, 200), "widths of policy and clone", low=1, high=65_536
    )
    critic_learning_rate: float = setting(
        1e-3, "Adam's learning rate of the critics", above=0, high=1
    )
    policy_learning_rate: float = setting(
        3e-4, "Adam's learning rate of policy and clone", above=0, high=1
    )
    alpha: float = setting(0.1, "weight of the divergence", low=0)
    value_penalty: bool = setting(
        True, "put the divergence into the critics' targets too (BRAC-v); false is BRAC-p"
    )
    min_share: float = setting(
        1.0, "share of the smaller critic, the rest being of the larger", low=0, high=1
    )
    clone_steps: int = setting(50_000, "learner steps at the beginning that fit the clone", low=1)
    warm_start: int = setting(
        20_000,
        "learner steps after these in which the critics learn alone, and the policy stays the"
        " clone",
        low=0,
    )

    def pretraining(self) -> Pretraining | None:
        """Cloning, and the critics alone."""
        return Pretraining(
            self.clone_steps + self.warm_start, ("clone_steps", "warm_start"), "a clone of the data"
        )

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Raises UserError for what is not one task of vectors and bounded continuous actions.
        """
        return BracModel(ContinuousSpaces(self.name, signatures), self)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam for both."""
        assert isinstance(model, BracModel)
        return {
            "critics": self.adam(model.critics, self.critic_learning_rate),
            "actor": self.adam(model.actor, self.policy_learning_rate),
        }

    def targets(self, model: BracModel, t: Transitions) -> Tensor:
        """r + gamma (min of the target critics at a sampled action - alpha KL) `[B]` (equation
        4)."""
        mean, log_std = model.actor(t.seen_next)
        action = torch.tanh(mean + torch.exp(log_std) * torch.randn_like(mean))
        value = soft_clip(model.critics.target_values(t.seen_next, action), self.min_share)
        if self.value_penalty:
            value = value - self.alpha * model.divergence(t.seen_next, mean, log_std)
        return t.reward + self.discount * t.goes_on * value

    def update(
        self,
        model: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        batch: dict[str, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """Clone first; then critics, policy and target networks."""
        assert isinstance(model, BracModel)
        t = Transitions.of(model.spaces, batch)
        if step < self.clone_steps:
            raw = torch.atanh(t.action.clamp(CLIP - 1, 1 - CLIP))
            loss = -squashed_log_prob(raw, *model.actor(t.seen)).mean()
            descend(loss, optimizers["actor"])
            follow(model.clone, model.actor, 1.0)
            return {"train/clone_loss": loss.detach()}
        with torch.no_grad():
            targets = self.targets(model, t)
        metrics = self.fit_critics(model.critics, t, targets, optimizers["critics"])

        if step >= self.clone_steps + self.warm_start:
            mean, log_std = model.actor(t.seen)
            divergence = model.divergence(t.seen, mean, log_std).mean()
            action = torch.tanh(mean + torch.exp(log_std) * torch.randn_like(mean))
            judged = soft_clip(model.critics.both_values(t.seen, action), self.min_share).mean()
            descend(self.alpha * divergence - judged, optimizers["actor"])
            metrics |= {"divergence": divergence, "policy_value": judged}
        follow(model.critics.target, model.critics.online, self.follow_rate)
        return {f"train/{name}": value.detach() for name, value in metrics.items()}

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`mean`: the squashed mean, which the official code is scored with; `sample`: a sample."""
        assert isinstance(model, BracModel)
        if mode == "plan":
            raise UserError("brac has no planner; its modes are sample and mean")

        def choose(seen: Tensor, uniforms: Tensor) -> Tensor:
            mean, log_std = model.actor(seen)
            return torch.tanh(
                mean if mode == "mean" else mean + torch.exp(log_std) * normals(uniforms)
            )

        return vector_policy(model.spaces, choose, model.spaces.acted)


ALGORITHM = Brac
