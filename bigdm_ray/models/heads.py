"""Action heads: distributions over every leaf of an action signature, from one embedding.

Discrete elements are categorical; continuous ones are Gaussian with a mean and a standard deviation
of their own, sampled actions being clipped to the leaf's bounds. All chance comes in as uniforms,
so sampling is a pure function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.envs.signature import Leaf

LOG_STD_RANGE = (-5.0, 1.0)


class ActionHead(nn.Module):
    """A linear layer to the parameters of all leaves, and what to do with them.

    `uniforms` counts chance per row.

    `std` None: continuous elements learn their deviation. A number: it is fixed, in units of half
    the leaf's range; 0 acts on the mean and trains on the squared error, of which
    `mean_square_factor` times -log_prob is the mean over elements. `squash`: tanh brings the mean
    between the leaf's bounds.
    """

    def __init__(
        self, width: int, leaves: dict[str, Leaf], std: float | None = None, squash: bool = False
    ) -> None:
        super().__init__()
        self.leaves = leaves
        self.std = std
        self.squash = squash
        per = 2 if std is None else 1
        self.sizes = [
            sum(leaf.choices) if leaf.kind == "discrete" else per * leaf.size
            for leaf in leaves.values()
        ]
        self.uniforms = sum(leaf.size for leaf in leaves.values())
        self.linear = nn.Linear(width, sum(self.sizes))
        elements = sum(leaf.size for leaf in leaves.values() if leaf.kind != "discrete")
        self.mean_square_factor = 2 / elements if std == 0 and elements == self.uniforms else 1.0
        for i, leaf in enumerate(leaves.values()):
            if leaf.low is not None and leaf.high is not None:
                self.register_buffer(f"low{i}", torch.tensor(leaf.low), persistent=False)
                self.register_buffer(f"high{i}", torch.tensor(leaf.high), persistent=False)
                self.register_buffer(
                    f"half{i}",
                    (torch.tensor(leaf.high) - torch.tensor(leaf.low)) / 2,
                    persistent=False,
                )

    def forward(self, embedding: Tensor) -> Tensor:
        """`[..., width]` to parameters `[..., sum(sizes)]`."""
        out: Tensor = self.linear(embedding)
        return out

    def log_prob(self, parameters: Tensor, actions: dict[str, Tensor]) -> Tensor:
        """log pi(a | s) of whole actions, summed over leaves and elements: `[...]`, nats; with a
        fixed deviation up to a constant."""
        total = parameters.new_zeros(parameters.shape[:-1])
        for i, ((path, leaf), part) in enumerate(
            zip(self.leaves.items(), parameters.split(self.sizes, -1), strict=True)
        ):
            lead = part.shape[:-1]
            action = actions[path].reshape(*lead, leaf.size)
            if leaf.kind == "discrete":
                for j, logits in enumerate(part.split(list(leaf.choices), -1)):
                    flat = nn.functional.cross_entropy(
                        logits.reshape(-1, logits.shape[-1]),
                        action[..., j].reshape(-1).long(),
                        reduction="none",
                    )
                    total = total - flat.reshape(lead)
            else:
                if self.std is not None:
                    z = (action.float() - self._mean(part, i)) / (self._half(i) * (self.std or 1.0))
                    total = total - 0.5 * (z**2).sum(-1)
                    continue
                mean, log_std = _gaussian(part)
                z = (action.float() - mean) * torch.exp(-log_std)
                total = total - (0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
        return total

    def _half(self, i: int) -> Tensor | float:
        """Half the range of a leaf's elements; 1 where it has no bounds."""
        half: Tensor | float = getattr(self, f"half{i}", 1.0)
        return half

    def _mean(self, part: Tensor, i: int) -> Tensor:
        if not self.squash or not hasattr(self, f"low{i}"):
            return part
        squashed: Tensor = getattr(self, f"low{i}") + self._half(i) * (1 + torch.tanh(part))
        return squashed

    def act(self, parameters: Tensor, uniforms: Tensor | None) -> dict[str, Tensor]:
        """Actions by leaf: sampled with `uniforms [n, k]` in [0, 1), or the most likely ones where
        it is None."""
        out, used = {}, 0
        for i, ((path, leaf), part) in enumerate(
            zip(self.leaves.items(), _split(parameters, self.sizes), strict=True)
        ):
            chance = None if uniforms is None else uniforms[:, used : used + leaf.size]
            used += leaf.size
            if leaf.kind == "discrete":
                flat = _categorical(part, leaf, chance)
            else:
                mean, deviation = (
                    (self._mean(part, i), self._half(i) * self.std)
                    if self.std is not None
                    else _mean_and_std(part)
                )
                flat = (
                    mean if chance is None or self.std == 0 else mean + deviation * normals(chance)
                )
                if leaf.low is not None:
                    flat = flat.clamp(getattr(self, f"low{i}"), getattr(self, f"high{i}"))
            out[path] = flat.reshape(len(part), *leaf.shape)
        return out


def _mean_and_std(part: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = _gaussian(part)
    return mean, torch.exp(log_std)


def _gaussian(part: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = part.chunk(2, -1)
    return mean, raw.clamp(*LOG_STD_RANGE)


def normals(uniforms: Tensor) -> Tensor:
    """Standard normals from uniforms in [0, 1), by the inverse of the distribution."""
    clipped = uniforms.clamp(1e-6, 1 - 1e-6)
    return math.sqrt(2.0) * torch.erfinv(2.0 * clipped - 1.0)


def _split(values: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Parts of the last axis; what is one part is not split, which is most of the time of a small
    one."""
    return (values,) if len(sizes) == 1 else values.split(list(sizes), -1)


def _categorical(part: Tensor, leaf: Leaf, chance: Tensor | None) -> Tensor:
    picks = []
    for j, logits in enumerate(_split(part, leaf.choices)):
        if chance is None:
            picks.append(logits.argmax(-1).int())
        else:
            picks.append(draw_choice(torch.softmax(logits, -1), chance[:, j : j + 1]))
    return picks[0] if len(picks) == 1 else torch.stack(picks, -1)


def draw_choice(shares: Tensor, chance: Tensor) -> Tensor:
    """Which of the choices whose probabilities are `shares [n, choices]` uniforms `[n, 1]` draw:
    `[n]` int32.

    On a CPU numpy does it, in a third of the time for few rows; as torch, it adds up in float64.
    """
    most = shares.shape[-1] - 1
    if not shares.is_cpu or shares.requires_grad:
        return (shares.cumsum(-1) < chance).sum(-1).clamp(max=most).int()
    sums = np.cumsum(shares.numpy(), -1, dtype=np.float64).astype(np.float32)
    picked = np.minimum((sums < chance.numpy()).sum(-1, dtype=np.int32), np.int32(most))
    return torch.from_numpy(picked)
