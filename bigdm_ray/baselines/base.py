"""The contract of methods that bootstrap: they share task, store, draws, evaluation and run folder, and take their own steps.

A Baseline is an Algorithm whose `update` replaces the descent on a loss: several optimizers in turn, target
networks, noise. Target networks are submodules of the network, so that a checkpoint holds them. Chance comes from torch's
global generator, which the learner seeds at every step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Algorithm, Loss


@dataclass(frozen=True)
class Baseline(Algorithm):
    """See the module."""

    conditioned: ClassVar[bool] = False
    own_update: ClassVar[bool] = True

    @abstractmethod
    def update(self, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """One learner step on a batch `[B, 1, ...]`; metrics as scalars."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """There is no single loss: `update` is called instead."""
        raise NotImplementedError(f"{self.name} takes its own steps")


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move a target network towards the online one: target <- (1 - rate) target + rate online."""
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in online.parameters()], rate)
