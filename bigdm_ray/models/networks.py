"""Encoders of observations and small stacks of layers: whatever a signature holds becomes one
embedding.

Leaves that are not images are flattened into one vector (discrete ones and grids as one-hot, text
as the mean of byte embeddings); image leaves pass the convolutions of Srivastava et al. 2019,
appendix B. Initial weights are orthogonal with gain sqrt(2), biases zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.envs.signature import PICKED, Leaf, Signature
from bigdm_ray.errors import UserError

M = TypeVar("M", bound=nn.Module)
TEXT_WIDTH = 32


def orthogonal(module: M, gain: float = 2.0**0.5) -> M:
    """Give every linear and convolution layer below `module` orthogonal weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def mlp(sizes: list[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers through these widths, ReLU and dropout (where there is any) after each."""
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(sizes):
        layers += [nn.Linear(narrow, wide), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers)


class SharedTrunk:
    """The layers that several networks share, as one of them holds them: among the modules of none,
    so that they are counted once."""

    def __init__(self, sizes: list[int], dropout: float = 0.0) -> None:
        """Layers through these widths; at least one."""
        self.width, self.out = sizes[0], sizes[-1]
        self.layers = orthogonal(mlp(sizes if len(sizes) > 1 else [*sizes, *sizes], dropout))

    def __call__(self, rows: Tensor) -> Tensor:
        """`[..., width]` to `[..., out]`."""
        out: Tensor = self.layers(rows)
        return out


class MultiTaskNetwork(nn.Module):
    """One network of several tasks: for each signature a part that sees and acts, around a trunk
    that all share.

    A part is a whole network, made by `make(signature, trunk)`, which calls the trunk between its
    encoder and its head. Tasks of equal signatures have one part.
    """

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        trunk: SharedTrunk,
        make: Callable[[Signature, SharedTrunk], nn.Module],
    ) -> None:
        super().__init__()
        every = list(signatures.values())
        kinds = [kind for at, kind in enumerate(every) if kind not in every[:at]]
        self.trunk = trunk.layers
        self.kinds = kinds
        self.tasks = {task: kinds.index(kind) for task, kind in signatures.items()}
        self.parts = nn.ModuleList(make(kind, trunk) for kind in kinds)

    def part(self, task: str) -> nn.Module:
        """The network of one of the tasks."""
        return self.parts[self.tasks[task]]


def network_for(model: nn.Module, signature: Signature | None) -> nn.Module:
    """The network that acts in tasks of a signature: a part, or the model itself where it is of one
    task.

    Raises UserError for a signature that none of the tasks has.
    """
    if not isinstance(model, MultiTaskNetwork):
        return model
    if signature not in model.kinds:
        raise UserError(
            f"the network acts in {', '.join(model.tasks)}, but in no task of such observations and"
            " actions"
        )
    return model.parts[model.kinds.index(signature)]


class Vector(nn.Module):
    """All leaves that are not images as one float vector `[..., width]`."""

    def __init__(self, leaves: dict[str, Leaf]) -> None:
        super().__init__()
        self.leaves = {path: leaf for path, leaf in leaves.items() if leaf.kind != "image"}
        self.text = nn.ModuleDict(
            {
                str(i): nn.Embedding(256, TEXT_WIDTH)
                for i, leaf in enumerate(self.leaves.values())
                if leaf.kind == "text"
            }
        )
        self.width = sum(self.width_of(leaf) for leaf in self.leaves.values())

    @staticmethod
    def width_of(leaf: Leaf) -> int:
        """Numbers that a leaf becomes."""
        if leaf.kind in PICKED:
            return sum(leaf.choices)
        return {"tensor": leaf.size, "text": TEXT_WIDTH}[leaf.kind]

    @torch.no_grad()
    def rows(
        self, parts: Iterable[dict[str, np.ndarray]], device: torch.device
    ) -> Iterator[Tensor]:
        """Observations by leaf, each `[m, ...]`, as vectors `[m, width]`, a part at a time."""
        for seen in parts:
            mine = {path: np.array(seen[path]) for path in self.leaves}
            yield self({path: torch.from_numpy(values).to(device) for path, values in mine.items()})

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., *shape]` to `[..., width]`."""
        parts = []
        for i, (path, leaf) in enumerate(self.leaves.items()):
            value = observations[path]
            lead = value.shape[: value.ndim - len(leaf.shape)]
            if leaf.kind == "tensor":
                parts.append(value.reshape(*lead, leaf.size).float())
            elif leaf.kind == "discrete":
                flat = value.reshape(*lead, leaf.size).long()
                parts += [
                    nn.functional.one_hot(flat[..., j], n).float()
                    for j, n in enumerate(leaf.choices)
                ]
            elif leaf.kind == "grid":  # many elements of few symbols: ones in one array of zeros
                ends = torch.tensor(leaf.choices, device=value.device).cumsum(0)
                begins = ends - torch.tensor(leaf.choices, device=value.device)
                at = value.reshape(*lead, leaf.size).long() + begins
                parts.append(torch.zeros(*lead, sum(leaf.choices), device=value.device))
                parts[-1].scatter_(-1, at, 1.0)
            else:
                real = (value != 0).unsqueeze(-1).float()
                total = (self.text[str(i)](value.long()) * real).sum(-2)
                parts.append(total / real.sum(-2).clamp(min=1.0))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class Standardise(nn.Module):
    """(x - mean) / (deviation + 1e-6) with statistics of the data, which travel with the weights;
    the identity until they are fitted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, parts: Iterable[Tensor]) -> None:
        """Take mean and deviation over all rows of `parts`, each `[m, width]`, added up in
        float64."""
        count, total, squares = (
            0,
            torch.zeros(len(self.mean), dtype=torch.float64),
            torch.zeros(len(self.mean), dtype=torch.float64),
        )
        for part in parts:
            rows = part.double().cpu()
            count += len(rows)
            total += rows.sum(0)
            squares += (rows**2).sum(0)
        mean = total / max(1, count)
        self.mean.copy_(mean)
        self.std.copy_((squares / max(1, count) - mean**2).clamp(min=0).sqrt())

    def forward(self, rows: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        return (rows - self.mean) / (self.std + 1e-6)


class Encoder(nn.Module):
    """Observations of any signature as one embedding: vectors standardised, images convolved, both
    through layers with ReLU."""

    def __init__(
        self,
        leaves: dict[str, Leaf],
        hidden: tuple[int, ...],
        channels: tuple[int, ...] = (),
        stack: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.vector = Vector(leaves)
        self.standardise = Standardise(self.vector.width)
        self.images = Images(leaves, channels, stack)
        self.layers = mlp([self.vector.width + self.images.width, *hidden], dropout)
        self.width = hidden[-1]
        orthogonal(self)

    def fit(self, parts: Iterable[dict[str, np.ndarray]]) -> None:
        """Fit the standardisation on observations by leaf, each `[m, ...]`."""
        if self.vector.width:
            self.standardise.fit(self.vector.rows(parts, self.standardise.mean.device))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., *shape]` to `[..., width]`."""
        parts = [self.standardise(self.vector(observations))] if self.vector.width else []
        if self.images.width:
            parts.append(self.images(observations))
        out: Tensor = self.layers(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        return out


class Images(nn.Module):
    """Each image leaf through 3x3 convolutions of stride 2 and padding 1 with ReLU, flattened and
    joined `[..., width]`."""

    def __init__(self, leaves: dict[str, Leaf], channels: tuple[int, ...], stack: int = 1) -> None:
        super().__init__()
        self.leaves = {path: leaf for path, leaf in leaves.items() if leaf.kind == "image"}
        grids = [path for path, leaf in leaves.items() if leaf.kind == "grid"]
        if grids and stack > 1:
            raise UserError(
                f"{stack} frames of pictures are to be stacked, but the observation {grids[0]!r} is"
                " a grid of symbols, which is not; set --algorithm.frame-stack 1"
            )
        self.stacks = nn.ModuleList()
        self.width = 0
        for leaf in self.leaves.values():
            depth, height, width = leaf.shape
            layers: list[nn.Module] = []
            narrow = depth * stack
            for wide, (kernel, stride, pad) in zip(
                channels, self.convolutions(len(channels), min(height, width)), strict=True
            ):
                layers += [nn.Conv2d(narrow, wide, kernel, stride, pad), nn.ReLU()]
                height, width = (
                    (side + 2 * pad - kernel) // stride + 1 for side in (height, width)
                )
                narrow = wide
            self.stacks.append(nn.Sequential(*layers))
            self.width += narrow * height * width

    def convolutions(self, count: int, side: int) -> list[tuple[int, int, int]]:
        """Kernel, stride and padding of each layer for images whose shorter side is `side`
        pixels."""
        return [(3, 2, 1)] * count

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., channels, height, width]` uint8 to `[..., width]`."""
        parts = []
        for path, layers in zip(self.leaves, self.stacks, strict=True):
            pixels = observations[path]
            lead = pixels.shape[:-3]
            features = layers(pixels.reshape(-1, *pixels.shape[-3:]).float() / 255.0).flatten(1)
            parts.append(features.reshape(*lead, features.shape[-1]))
        return torch.cat(parts, -1)


class Pixels(Images):
    """The three convolutions of Mnih et al. 2015 (32 of 8x8, 64 of 4x4, 64 of 3x3; strides 4, 2, 1)
    where images have 36 pixels a side or more."""

    def __init__(self, leaves: dict[str, Leaf], stack: int = 1) -> None:
        super().__init__(leaves, (32, 64, 64), stack)

    def convolutions(self, count: int, side: int) -> list[tuple[int, int, int]]:
        """See Images."""
        return (
            [(8, 4, 0), (4, 2, 0), (3, 1, 0)] if side >= 36 else super().convolutions(count, side)
        )
