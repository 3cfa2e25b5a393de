"""The conditional variational auto-encoder of actions that BCQ and BEAR imitate a dataset with.

Latents have twice the elements of an action; the log of their deviation is kept within [-4, 15]
(Fujimoto et al. 2019, appendix D.1 and official code).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigdm_ray.models.continuous import ContinuousSpaces
from bigdm_ray.models.networks import mlp

LOG_STD_RANGE = (-4.0, 15.0)


class Autoencoder(nn.Module):
    """q(z | s, a) and the decoder; actions are in [-1, 1], and decoded before the tanh that brings
    them there."""

    def __init__(self, spaces: ContinuousSpaces, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.latent = 2 * spaces.acted
        self.encoder = nn.Sequential(
            mlp([spaces.seen + spaces.acted, *hidden]), nn.Linear(hidden[-1], 2 * self.latent)
        )
        self.decoder = nn.Sequential(
            mlp([spaces.seen + self.latent, *hidden]), nn.Linear(hidden[-1], spaces.acted)
        )

    def decode(self, seen: Tensor, latent: Tensor) -> Tensor:
        """`[n, seen]` and `[n, latent]` to actions before tanh `[n, acted]`."""
        out: Tensor = self.decoder(torch.cat([seen, latent], -1))
        return out

    def loss(self, seen: Tensor, action: Tensor, kl_weight: float) -> Tensor:
        """Squared error of the reconstruction plus `kl_weight` times the divergence from the prior,
        both means over elements."""
        mean, raw = self.encoder(torch.cat([seen, action], -1)).chunk(2, -1)
        log_std = raw.clamp(*LOG_STD_RANGE)
        latent = mean + torch.exp(log_std) * torch.randn_like(mean)
        error = ((torch.tanh(self.decode(seen, latent)) - action) ** 2).mean()
        divergence = 0.5 * (mean**2 + torch.exp(2 * log_std) - 1 - 2 * log_std).mean()
        out: Tensor = error + kl_weight * divergence
        return out
