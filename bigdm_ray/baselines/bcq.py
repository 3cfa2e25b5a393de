"""Batch-Constrained deep Q-learning (BCQ; Fujimoto, Meger and Precup 2019, arXiv 1812.02900), for
continuous actions.

A conditional variational auto-encoder G(s) imitates the data; a perturbation xi(s, a) within [-Phi,
Phi] moves its samples towards higher value; the policy takes the best of n perturbed samples under
Q1 (equation 11). Targets take the best of 10 of them under 0.75 min + 0.25 max of two target
critics (equation 13). Settings are those of the official code (sfujim/BCQ, continuous_BCQ).

Deviations. (1) Bootstrapping stops at terminations only, not at time limits. (2) The networks see
actions in [-1, 1]; Phi is a share of half the range, as in the official code, whose environments
have such bounds.

    python -m bigdm_ray.run bcq DATASET
    python -m bigdm_ray.run bcq DATASET --algorithm.vae-hidden 256,256 --budget.learner-steps 50000
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Mode, Policy
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
from bigdm_ray.models.continuous import ContinuousSpaces
from bigdm_ray.models.heads import normals
from bigdm_ray.models.networks import mlp
from bigdm_ray.settings import setting


class Perturbation(nn.Module):
    """xi(s, a): moves actions by at most `limit` in each element, within [-1, 1] (section 4,
    equation 10)."""

    def __init__(self, spaces: ContinuousSpaces, hidden: tuple[int, ...], limit: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            mlp([spaces.seen + spaces.acted, *hidden]), nn.Linear(hidden[-1], spaces.acted)
        )
        self.limit = limit

    def forward(self, seen: Tensor, action: Tensor) -> Tensor:
        """The moved actions `[n, acted]`."""
        moved: Tensor = action + self.limit * torch.tanh(self.layers(torch.cat([seen, action], -1)))
        return moved.clamp(-1.0, 1.0)


class BcqModel(nn.Module):
    """Auto-encoder, perturbation and critics, with the slow copies of the latter two."""

    def __init__(self, spaces: ContinuousSpaces, settings: Bcq) -> None:
        super().__init__()
        self.spaces = spaces
        self.autoencoder = Autoencoder(spaces, settings.vae_hidden)
        self.perturbation = Perturbation(spaces, settings.hidden, settings.perturbation)
        self.perturbation_target = frozen_copy(self.perturbation)
        self.critics = Critics(spaces, settings.hidden)

    def generate(self, seen: Tensor, noise: Tensor, perturbation: nn.Module) -> Tensor:
        """Perturbed samples of the auto-encoder `[n, acted]`; `noise [n, latent]` is cut to [-0.5,
        0.5]."""
        out: Tensor = perturbation(
            seen, torch.tanh(self.autoencoder.decode(seen, noise.clamp(-0.5, 0.5)))
        )
        return out


@dataclass(frozen=True)
class Bcq(OfflineBaseline):
    """Hyperparameters of BCQ."""

    name: ClassVar[str] = "bcq"
    acting: ClassVar[tuple[str, ...]] = ("candidates",)

    batch_size: int = setting(100, "steps drawn for one learner step", low=1, high=1_000_000)
    hidden: tuple[int, ...] = setting(
        (400, 300), "widths of critics and perturbation", low=1, high=65_536
    )
    vae_hidden: tuple[int, ...] = setting(
        (750, 750), "widths of encoder and decoder of the auto-encoder", low=1, high=65_536
    )
    learning_rate: float = setting(1e-3, "Adam's learning rate, of all networks", above=0, high=1)
    kl_weight: float = setting(0.5, "weight of the auto-encoder's divergence from its prior", low=0)
    perturbation: float = setting(
        0.05, "how far xi may move an action, in halves of its range (Phi)", low=0, high=2
    )
    min_share: float = setting(
        0.75,
        "share of the smaller critic in a target, the rest being of the larger (lambda)",
        low=0,
        high=1,
    )
    target_actions: int = setting(
        10, "actions generated for a target, of which the best counts", low=1
    )
    candidates: int = setting(
        100, "actions generated to act, of which the best is taken (n)", low=1
    )

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Raises UserError for what is not one task of vectors and bounded continuous actions.
        """
        return BcqModel(ContinuousSpaces(self.name, signatures), self)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam for each of the three."""
        assert isinstance(model, BcqModel)
        networks = {
            "autoencoder": model.autoencoder,
            "critics": model.critics,
            "perturbation": model.perturbation,
        }
        return {name: self.adam(network, self.learning_rate) for name, network in networks.items()}

    def targets(self, model: BcqModel, t: Transitions) -> Tensor:
        """r + gamma max over generated actions of the soft-clipped target critics `[B]` (equation
        13)."""
        seen = repeat_rows(t.seen_next, self.target_actions)
        action = model.generate(
            seen,
            torch.randn(len(seen), model.autoencoder.latent, device=seen.device),
            model.perturbation_target,
        )
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
        """Algorithm 1: auto-encoder, critics, perturbation, target networks."""
        assert isinstance(model, BcqModel)
        t = Transitions.of(model.spaces, batch)
        encoding = model.autoencoder.loss(t.seen, t.action, self.kl_weight)
        descend(encoding, optimizers["autoencoder"])
        with torch.no_grad():
            targets = self.targets(model, t)
        metrics = self.fit_critics(model.critics, t, targets, optimizers["critics"])
        with torch.no_grad():
            noise = torch.randn(len(t.seen), model.autoencoder.latent, device=t.seen.device).clamp(
                -0.5, 0.5
            )
            sampled = torch.tanh(model.autoencoder.decode(t.seen, noise))
        improvement = -model.critics.first(t.seen, model.perturbation(t.seen, sampled)).mean()
        descend(improvement, optimizers["perturbation"])
        follow(model.critics.target, model.critics.online, self.follow_rate)
        follow(model.perturbation_target, model.perturbation, self.follow_rate)
        metrics |= {"autoencoder_loss": encoding, "policy_value": -improvement}
        return {f"train/{name}": value.detach() for name, value in metrics.items()}

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`sample` is the paper's: the best of n generated actions.

        Raises UserError for other modes.
        """
        assert isinstance(model, BcqModel)
        if mode != "sample":
            raise UserError(
                f"bcq has no mode {mode}; it acts on the best of its samples, which is the mode"
                " sample"
            )
        latent, count = model.autoencoder.latent, self.candidates

        def choose(seen: Tensor, uniforms: Tensor) -> Tensor:
            noise = normals(uniforms).reshape(-1, latent)
            generated = model.generate(repeat_rows(seen, count), noise, model.perturbation)
            return best_of(model.critics, seen, generated.reshape(len(seen), count, -1))

        return vector_policy(model.spaces, choose, count * latent)


ALGORITHM = Bcq
