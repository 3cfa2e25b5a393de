"""Bootstrapping Error Accumulation Reduction (BEAR; Kumar et al. 2019, arXiv 1906.00949).

A stochastic policy maximises the smaller of two critics while the maximum mean discrepancy (MMD)
between a few of its actions and a few of an auto-encoder that imitates the data stays below
`threshold` (equation 1; the multiplier follows by dual ascent, algorithm 1). Before `warm_start`
steps it minimises the MMD alone. MMD is taken before tanh, on noise cut to [-0.5, 0.5]. Settings
are those of the official code and readme (aviralkumar2907/BEAR); the preset `d4rl` has those of
D4RL's evaluations (rail-berkeley/d4rl_evaluations).

Deviations. (1) Bootstrapping stops at terminations only, not at time limits. (2) The logarithm of
the deviation is cut to [-20, 2], as in D4RL's version; the first code has no bounds. (3) The
logarithm of the multiplier begins at 0, not at a random number.

    python -m bigdm_ray.run bear DATASET
    python -m bigdm_ray.run bear DATASET --algorithm.warm-start 5000 --budget.learner-steps 50000
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Mode, Policy, Presets, Pretraining, own_flags
from bigdm_ray.baselines.base import follow
from bigdm_ray.baselines.offline import (
    Critics,
    OfflineBaseline,
    Transitions,
    best_of,
    descend,
    frozen_copy,
    repeat_rows,
    soft_clip,
    vector_policy,
)
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.autoencoder import Autoencoder
from bigdm_ray.models.continuous import ContinuousSpaces, DiagonalGaussian
from bigdm_ray.models.heads import normals
from bigdm_ray.settings import setting

LOG_STD_RANGE = (-20.0, 2.0)
LOG_MULTIPLIER_RANGE = (-5.0, 10.0)


class Multiplier(nn.Module):
    """The Lagrange multiplier of the constraint, as its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))


class BearModel(nn.Module):
    """Auto-encoder, policy, critics and multiplier, with the slow copies of policy and critics."""

    def __init__(self, spaces: ContinuousSpaces, settings: Bear) -> None:
        super().__init__()
        self.spaces = spaces
        self.autoencoder = Autoencoder(spaces, settings.vae_hidden)
        self.actor = DiagonalGaussian(
            spaces.seen, settings.hidden, spaces.acted, LOG_STD_RANGE, soft=False
        )
        self.actor_target = frozen_copy(self.actor)
        self.critics = Critics(spaces, settings.hidden)
        self.multiplier = Multiplier()


def mmd(one: Tensor, other: Tensor, sigma: float, kernel: str) -> Tensor:
    """Maximum mean discrepancy between two sets of samples for each row: `[n, k, d]` and
    `[n, m, d]` to `[n]` (section 5, equation 2).

    `laplacian`: exp(-|x - y|_1 / (2 sigma)); `gaussian`: exp(-|x - y|_2^2 / (2 sigma)). The mean
    over pairs counts a sample with itself.
    """

    def affinity(x: Tensor, y: Tensor) -> Tensor:
        difference = x.unsqueeze(2) - y.unsqueeze(1)
        distance = difference.abs().sum(-1) if kernel == "laplacian" else (difference**2).sum(-1)
        return torch.exp(-distance / (2 * sigma)).mean((1, 2))

    return (
        (affinity(one, one) + affinity(other, other) - 2 * affinity(one, other) + 1e-6)
        .clamp(min=1e-6)
        .sqrt()
    )


VALUES: dict[str, Any] = {
    "batch_size": 256,
    "hidden": (256, 256),
    "critic_learning_rate": 3e-4,
    "policy_learning_rate": 1e-4,
}
VALUES |= {"kernel": "gaussian", "sigma": 50.0, "matched": 100, "warm_start": 40_000}
PRESETS: Presets = {"*": {"d4rl": own_flags(VALUES)}}
"""`d4rl`: the version of D4RL's evaluations."""


@dataclass(frozen=True)
class Bear(OfflineBaseline):
    """Hyperparameters of BEAR."""

    name: ClassVar[str] = "bear"
    presets: ClassVar[Presets] = PRESETS
    acting: ClassVar[tuple[str, ...]] = ("candidates",)

    batch_size: int = setting(100, "steps drawn for one learner step", low=1, high=1_000_000)
    hidden: tuple[int, ...] = setting(
        (400, 300), "widths of critics and policy", low=1, high=65_536
    )
    vae_hidden: tuple[int, ...] = setting(
        (750, 750), "widths of encoder and decoder of the auto-encoder", low=1, high=65_536
    )
    critic_learning_rate: float = setting(
        1e-3, "Adam's learning rate of the critics", above=0, high=1
    )
    policy_learning_rate: float = setting(
        1e-3, "Adam's learning rate of the policy", above=0, high=1
    )
    vae_learning_rate: float = setting(
        1e-3, "Adam's learning rate of the auto-encoder", above=0, high=1
    )
    multiplier_learning_rate: float = setting(
        1e-3, "Adam's learning rate of the multiplier's logarithm", above=0, high=1
    )
    kl_weight: float = setting(0.5, "weight of the auto-encoder's divergence from its prior", low=0)
    threshold: float = setting(0.05, "what the maximum mean discrepancy may be (epsilon)", above=0)
    kernel: str = setting(
        "laplacian", "kernel of the maximum mean discrepancy", choices=("laplacian", "gaussian")
    )
    sigma: float = setting(10.0, "width of the kernel", above=0)
    matched: int = setting(5, "actions of each side that are compared", low=1)
    warm_start: int = setting(
        20_000, "learner steps on the discrepancy alone, before the critics count", low=0
    )
    min_share: float = setting(
        0.75, "share of the smaller critic in a target, the rest being of the larger", low=0, high=1
    )
    target_actions: int = setting(
        10, "actions sampled for a target, of which the best counts", low=1
    )
    candidates: int = setting(10, "actions sampled to act, of which the best is taken", low=1)

    def pretraining(self) -> Pretraining | None:
        """The steps on the discrepancy alone."""
        return Pretraining(self.warm_start, ("warm_start",), "an imitation of the data")

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Raises UserError for what is not one task of vectors and bounded continuous actions.
        """
        return BearModel(ContinuousSpaces(self.name, signatures), self)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam for each of the four."""
        assert isinstance(model, BearModel)
        return {
            "autoencoder": self.adam(model.autoencoder, self.vae_learning_rate),
            "critics": self.adam(model.critics, self.critic_learning_rate),
            "actor": self.adam(model.actor, self.policy_learning_rate),
            "multiplier": self.adam(model.multiplier, self.multiplier_learning_rate),
        }

    def targets(self, model: BearModel, t: Transitions) -> Tensor:
        """r + gamma max over sampled actions of the soft-clipped target critics `[B]` (algorithm 1,
        line 4)."""
        seen = repeat_rows(t.seen_next, self.target_actions)
        mean, log_std = (
            repeat_rows(value, self.target_actions) for value in model.actor_target(t.seen_next)
        )
        action = torch.tanh(mean + torch.exp(log_std) * torch.randn_like(mean))
        values = soft_clip(model.critics.target_values(seen, action), self.min_share).reshape(
            -1, self.target_actions
        )
        return t.reward + self.discount * t.goes_on * values.amax(1)

    def update(
        self,
        model: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        batch: dict[str, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """Algorithm 1: auto-encoder, critics, policy, multiplier, target networks."""
        assert isinstance(model, BearModel)
        t = Transitions.of(model.spaces, batch)
        encoding = model.autoencoder.loss(t.seen, t.action, self.kl_weight)
        descend(encoding, optimizers["autoencoder"])
        with torch.no_grad():
            targets = self.targets(model, t)
        metrics = self.fit_critics(model.critics, t, targets, optimizers["critics"])

        discrepancy, raw = self._discrepancy(model, t.seen)
        weight = torch.exp(model.multiplier.log.detach())
        loss = weight * discrepancy.mean()
        if step >= self.warm_start:
            count = raw.shape[1]
            judged = (
                model.critics.both_values(repeat_rows(t.seen, count), torch.tanh(raw).flatten(0, 1))
                .reshape(2, -1, count)
                .mean(2)
                .amin(0)
                .mean()
            )
            loss = loss - judged
            metrics["policy_value"] = judged
        descend(loss, optimizers["actor"])
        excess = (discrepancy.detach() - self.threshold).mean()
        descend(-torch.exp(model.multiplier.log) * excess, optimizers["multiplier"])
        with torch.no_grad():
            model.multiplier.log.clamp_(*LOG_MULTIPLIER_RANGE)
        follow(model.critics.target, model.critics.online, self.follow_rate)
        follow(model.actor_target, model.actor, self.follow_rate)
        metrics |= {"autoencoder_loss": encoding, "mmd": discrepancy.mean(), "multiplier": weight}
        return {f"train/{name}": value.detach() for name, value in metrics.items()}

    def _discrepancy(self, model: BearModel, seen: Tensor) -> tuple[Tensor, Tensor]:
        """MMD of each row `[B]`, and the policy's actions before tanh that it was taken on
        `[B, matched, acted]`."""
        n, count = len(seen), self.matched
        with torch.no_grad():
            latent = torch.randn(n * count, model.autoencoder.latent, device=seen.device).clamp(
                -0.5, 0.5
            )
            imitated = model.autoencoder.decode(repeat_rows(seen, count), latent).reshape(
                n, count, -1
            )
        mean, log_std = model.actor(seen)
        raw = mean.unsqueeze(1) + torch.exp(log_std).unsqueeze(1) * torch.randn_like(
            imitated
        ).clamp(-0.5, 0.5)
        return mmd(imitated, raw, self.sigma, self.kernel), raw

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`sample`: of some samples of the policy the one that Q1 likes best, as in the official
        code; `mean`: the squashed mean."""
        assert isinstance(model, BearModel)
        if mode == "plan":
            raise UserError("bear has no planner; its modes are sample and mean")
        count = self.candidates

        def best(seen: Tensor, uniforms: Tensor) -> Tensor:
            mean, log_std = (value.unsqueeze(1) for value in model.actor(seen))
            return best_of(
                model.critics,
                seen,
                torch.tanh(
                    mean + torch.exp(log_std) * normals(uniforms).reshape(len(seen), count, -1)
                ),
            )

        def middle(seen: Tensor, uniforms: Tensor) -> Tensor:
            return torch.tanh(model.actor(seen)[0])

        return vector_policy(
            model.spaces, best if mode == "sample" else middle, count * model.spaces.acted
        )


ALGORITHM = Bear
