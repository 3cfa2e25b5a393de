"""Building blocks for bounded continuous actions: all leaves as one vector, batched ensembles,
squashed Gaussians.

The networks see and give actions in [-1, 1]; `ContinuousSpaces` brings them between the bounds of
their leaves. An Ensemble evaluates networks of one shape in one batched multiplication a layer,
which costs one call where a loop costs one a member.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.heads import normals
from bigdm_ray.models.networks import Vector, mlp


class ContinuousSpaces(nn.Module):
    """Observations as one vector of `seen` numbers, actions as one of `acted` numbers in [-1,
    1]."""

    def __init__(self, name: str, signatures: Mapping[str, Signature]) -> None:
        """`name` is the method's.

        Raises UserError for more than one task, and for leaves that it cannot read or act with.
        """
        super().__init__()
        if len(signatures) != 1:
            raise UserError(f"{name} trains on one task, but {len(signatures)} were given")
        (signature,) = signatures.values()
        for path, leaf in signature.observations.items():
            if leaf.kind not in ("tensor", "discrete"):
                raise UserError(
                    f"{name} reads vectors, but the observation{_named(path)} is of kind"
                    f" {leaf.kind}; take an algorithm that encodes it, such as bc"
                )
        for path, leaf in signature.actions.items():
            if leaf.kind != "tensor" or leaf.low is None or leaf.high is None:
                what = "unbounded" if leaf.kind == "tensor" else leaf.kind
                raise UserError(
                    f"{name} needs continuous actions with bounds, but the action{_named(path)} is"
                    f" {what}; take an algorithm that has such actions, such as bc"
                )
        self.vector = Vector(signature.observations)
        self.seen = self.vector.width
        self.leaves: dict[str, Leaf] = signature.actions
        self.acted = sum(leaf.size for leaf in self.leaves.values())
        low = torch.tensor([bound for leaf in self.leaves.values() for bound in leaf.low or ()])
        high = torch.tensor([bound for leaf in self.leaves.values() for bound in leaf.high or ()])
        self.middle: Tensor
        self.reach: Tensor
        self.register_buffer("middle", (low + high) / 2, persistent=False)
        self.register_buffer("reach", ((high - low) / 2).clamp(min=1e-6), persistent=False)

    def see(self, observations: dict[str, Tensor]) -> Tensor:
        """Observation leaves `[..., *shape]` as `[..., seen]`."""
        out: Tensor = self.vector(observations)
        return out

    def pack(self, actions: dict[str, Tensor]) -> Tensor:
        """Action leaves `[..., *shape]` as `[..., acted]`, the bounds being -1 and 1."""
        parts = [
            actions[path].flatten(actions[path].ndim - len(leaf.shape))
            if leaf.shape
            else actions[path][..., None]
            for path, leaf in self.leaves.items()
        ]
        return (torch.cat(parts, -1).float() - self.middle) / self.reach

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """`[n, acted]` as action leaves `[n, *shape]` of their own dtype and between their
        bounds."""
        whole = self.middle + self.reach * packed.clamp(-1.0, 1.0)
        parts = whole.split([leaf.size for leaf in self.leaves.values()], -1)
        return {
            path: part.reshape(len(part), *leaf.shape).to(getattr(torch, leaf.dtype))
            for (path, leaf), part in zip(self.leaves.items(), parts, strict=True)
        }


def _named(path: str) -> str:
    return f" {path!r}" if path else ""


class Ensemble(nn.Module):
    """`members` networks of the same widths, ReLU between their layers and nothing after the last,
    evaluated side by side.

    Initialised as torch.nn.Linear is: uniformly within 1 / sqrt(fan in).
    """

    def __init__(self, members: int, sizes: list[int]) -> None:
        super().__init__()
        self.members = members
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for narrow, wide in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(narrow)
            self.weights.append(
                nn.Parameter(torch.empty(members, narrow, wide).uniform_(-bound, bound))
            )
            self.biases.append(nn.Parameter(torch.empty(members, 1, wide).uniform_(-bound, bound)))

    def forward(self, rows: Tensor) -> Tensor:
        """`[n, in]`, shared by all, or `[members, n, in]` to `[members, n, out]`."""
        values = rows if rows.ndim == 3 else rows.expand(self.members, *rows.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, torch.relu(values) if layer else values, weight)
        return values

    def first(self, rows: Tensor) -> Tensor:
        """What the first member alone makes of `[n, in]`: `[n, out]`."""
        values = rows
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.addmm(bias[0], torch.relu(values) if layer else values, weight[0])
        return values


class DiagonalGaussian(nn.Module):
    """A diagonal Gaussian before tanh: layers with ReLU, then mean and log of the deviation, kept
    within `log_std`.

    `soft`: tanh brings the log of the deviation into its range, which keeps a gradient at the ends;
    else it is cut.
    """

    def __init__(
        self,
        width: int,
        hidden: tuple[int, ...],
        acted: int,
        log_std: tuple[float, float],
        soft: bool,
    ) -> None:
        super().__init__()
        self.layers = mlp([width, *hidden])
        self.head = nn.Linear(hidden[-1], 2 * acted)
        self.range = log_std
        self.soft = soft

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., width]` to mean and log deviation `[..., acted]` of what tanh squashes."""
        mean, raw = self.head(self.layers(seen)).chunk(2, -1)
        low, high = self.range
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1) if self.soft else raw.clamp(
            low, high
        )


class SquashedHead(nn.Module):
    """Two linear layers to a squashed Gaussian over all action leaves, with a deviation of each
    state's own (Zheng et al. 2022, appendix)."""

    LOG_STD = (-5.0, 2.0)

    def __init__(self, name: str, width: int, leaves: dict[str, Leaf]) -> None:
        """`name` is the method's.

        Raises UserError for actions that are not continuous and bounded.
        """
        super().__init__()
        self.spaces = ContinuousSpaces(name, {"": Signature({}, leaves)})
        self.acted = self.uniforms = self.spaces.acted
        self.mean, self.log_std = nn.Linear(width, self.acted), nn.Linear(width, self.acted)
        for layer in (self.mean, self.log_std):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """`[..., width]` to parameters `[..., 2 * acted]`."""
        return torch.cat([self.mean(embedding), self.log_std(embedding)], -1)

    def _gaussian(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = parameters.chunk(2, -1)
        low, high = self.LOG_STD
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    def log_prob(self, parameters: Tensor, actions: dict[str, Tensor]) -> Tensor:
        """log-density of whole actions `[...]`, nats, in units where the bounds are -1 and 1."""
        packed = self.spaces.pack(actions).clamp(-1 + 1e-6, 1 - 1e-6)
        return squashed_log_prob(torch.atanh(packed), *self._gaussian(parameters))

    def entropy(self, parameters: Tensor) -> Tensor:
        """An estimate `[...]` of the entropy from one sample that gradients pass through, nats."""
        mean, log_std = self._gaussian(parameters)
        raw = mean + log_std.exp() * torch.randn_like(mean)
        return -squashed_log_prob(raw, mean, log_std)

    def act(self, parameters: Tensor, uniforms: Tensor | None) -> dict[str, Tensor]:
        """Actions by leaf: sampled with `uniforms [n, k]` in [0, 1), or the squashed means where it
        is None."""
        mean, log_std = self._gaussian(parameters)
        raw = mean if uniforms is None else mean + log_std.exp() * normals(uniforms)
        return self.spaces.unpack(torch.tanh(raw).clamp(-1 + 1e-6, 1 - 1e-6))


def squashed_log_prob(raw: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log-density of tanh(raw), where raw is Gaussian, summed over the last axis; nats."""
    gaussian = (
        -0.5 * ((raw - mean) * torch.exp(-log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    )
    slope = 2 * (math.log(2) - raw - nn.functional.softplus(-2 * raw))  # log(1 - tanh(raw)^2)
    return (gaussian - slope).sum(-1)
