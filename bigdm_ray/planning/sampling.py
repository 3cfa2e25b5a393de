"""What a search is told, what it finds, and how a token is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchSettings:
    """How a plan is searched for; `k` and `cdf` filters are 0 where they are off."""

    horizon: int = 15
    beams: int = 128
    expansions: int = 2
    context: int = 5
    discount: float = 0.99
    k_obs: int = 1
    k_act: int = 20
    k_rew: int = 1
    cdf_obs: float = 0.0
    cdf_act: float = 0.0
    expected: bool = True
    """Whether rewards and values count as the expectation over their bins, or as the bin that was
    drawn."""
    reach: bool = False
    """Whether `plan` scores a beam by how soon its states have the tokens of the goal, and not by
    rewards and values."""


@dataclass(frozen=True)
class Plan:
    """Tokens `[n, H, dims]` of the best beam of each row, from the current state on, and its score
    `[n]`."""

    tokens: Tensor
    score: Tensor


@dataclass(frozen=True)
class RankedPlans:
    """Tokens `[n, beams, H, dims]` of all beams of each row, from the current state on, and their
    scores `[n, beams]`, the best first."""

    tokens: Tensor
    score: Tensor

    @property
    def best(self) -> Plan:
        """The plan of each row."""
        return Plan(self.tokens[:, 0], self.score[:, 0])


def filter_logits(logits: Tensor, k: int, cdf: float) -> Tensor:
    """Logits `[..., m]` with -inf at what may not be drawn.

    `cdf`: the least likely tokens go, as many as stay under this probability together, and what is
    as unlikely as the last of them; then of the rest all but the `k` most likely. The most likely
    token always stays.
    """
    if cdf > 0:
        probability = torch.softmax(logits, -1)
        ordered = probability.sort(-1).values
        under = (ordered.cumsum(-1) < cdf).sum(-1, keepdim=True)
        last = torch.where(under > 0, ordered.gather(-1, (under - 1).clamp(min=0)), -1.0)
        logits = logits.masked_fill(
            (probability <= last) & (probability < ordered[..., -1:]), -torch.inf
        )
    if 0 < k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(k, -1).values[..., -1:], -torch.inf)
    return logits


def sample_tokens(logits: Tensor, k: int, uniforms: Tensor | None) -> Tensor:
    """A token of each distribution `[..., m]` by the inverse of its distribution function: `[...]`;
    the most likely where k is 1."""
    if k == 1 or uniforms is None:
        return logits.argmax(-1)
    below = torch.softmax(logits, -1).cumsum(-1)
    return (
        (below <= uniforms.unsqueeze(-1) * below[..., -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    )
