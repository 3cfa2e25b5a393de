"""Observations as tokens, made by the same weights whatever the task: a leaf or an element each.

Leaves as vectors are told what the task is: the mean of its text's pieces moves what is made of
symbols and numbers, so that the same numbers may mean something else elsewhere. Elements as tokens
are the paper's (Reed et al. 2022, section 2.1): bins of numbers, symbols and choices in one table,
each with its place in the step, then a separator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.gato.settings import GatoSettings
from bigdm_ray.envs.signature import Leaf
from bigdm_ray.errors import UserError
from bigdm_ray.models.networks import Images

CELL = 32
"""Width of what a cell of a grid is embedded in."""
CLIP = 5.0
"""Deviations beyond which an element of a vector counts no more."""
CHOICES = 64
"""Choices of a discrete element that have an embedding of their own; others share them."""


BINS = 1024
"""Bins of an element that is a token (section 2.1)."""
MU, MOST = 100.0, 256.0
"""Constants of mu-law (Reed et al. 2022, appendix B)."""
PLACES = 512
"""Places in a step that tokens are told apart by; later ones share them."""


def count_tokens(leaves: dict[str, Leaf], settings: GatoSettings) -> int:
    """Tokens of a step's observation, with the separator where there is one."""
    if settings.input == "tokens":
        return 1 + sum(1 if leaf.kind == "text" else leaf.size for leaf in leaves.values())
    return sum(
        math.ceil(leaf.size / settings.elements) if leaf.kind == "tensor" else 1
        for leaf in leaves.values()
    )


class NumberTokens(nn.Module):
    """Vectors of any size, standardised, `elements` of them a token."""

    def __init__(self, elements: int, width: int) -> None:
        super().__init__()
        self.elements = elements
        self.first = nn.Linear(elements, 2 * width)
        self.told = nn.Linear(width, 2 * width)
        self.chunk = nn.Embedding(64, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, values: Tensor, told: Tensor) -> Tensor:
        """`[B, K, size]` float32, `told [B, width]`: `[B, K, tokens, width]`."""
        size = values.shape[-1]
        count = math.ceil(size / self.elements)
        padded = nn.functional.pad(values, (0, count * self.elements - size))
        chunks = padded.unflatten(-1, (count, self.elements))
        which = self.chunk.weight[torch.arange(count, device=values.device) % 64]
        hidden = self.first(chunks) + which + self.told(told)[:, None, None]
        out: Tensor = self.second(nn.functional.gelu(hidden))
        return out


class ChoiceTokens(nn.Module):
    """A few discrete elements as one vector: the sum of an embedding of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(CHOICES, width)
        self.place = nn.Embedding(CHOICES, width)

    def forward(self, values: Tensor) -> Tensor:
        """`[B, K, size]` whole numbers: `[B, K, 1, width]`."""
        place = self.place.weight[torch.arange(values.shape[-1], device=values.device) % CHOICES]
        out: Tensor = (self.table(values.long() % CHOICES) * (1 + place)).sum(-2, keepdim=True)
        return out


class GridToken(nn.Module):
    """Symbols on a grid of one shape as one vector: an embedding of each cell's symbols, two
    convolutions, of which the first is moved by what the task is (FiLM), and a layer over all."""

    def __init__(self, shape: tuple[int, ...], symbols: int, width: int) -> None:
        super().__init__()
        height, wide, channels = (*shape, 1, 1)[:3]
        self.symbols = symbols
        self.table = nn.Embedding(channels * symbols, CELL)
        self.first = nn.Conv2d(CELL, CELL, 3, padding=1)
        self.film = nn.Linear(width, 2 * CELL)
        self.second = nn.Conv2d(CELL, CELL, 3, padding=1)
        self.last = nn.Linear(height * wide * CELL, width)

    def forward(self, values: Tensor, told: Tensor) -> Tensor:
        """`[B, K, height, width, channels]` uint8, `told [B, width]`: `[B, K, 1, width]`."""
        b, k, *_, channels = values.shape
        begins = torch.arange(channels, device=values.device) * self.symbols
        cells = self.table(values.long() + begins).sum(-2)  # [B, K, h, w, CELL]
        x = self.first(cells.flatten(0, 1).permute(0, 3, 1, 2))
        scale, shift = self.film(told).repeat_interleave(k, 0)[:, :, None, None].chunk(2, 1)
        x = nn.functional.gelu(x * (1 + scale) + shift)
        x = nn.functional.gelu(self.second(x) + x)
        out: Tensor = self.last(x.flatten(1)).view(b, k, 1, -1)
        return out


class LeafTokens(nn.Module):
    """All leaves of a step, of any task that is given when it is made."""

    def __init__(self, signatures: list[dict[str, Leaf]], elements: int, width: int) -> None:
        super().__init__()
        self.elements = elements
        found = [leaf for leaves in signatures for leaf in leaves.values()]
        self.numbers = NumberTokens(elements, width)
        self.choices = ChoiceTokens(width)
        grids: dict[str, nn.Module] = {}
        images: dict[str, nn.Module] = {}
        for leaf in found:
            if leaf.kind == "grid":
                symbols = max(
                    max(one.choices)
                    for one in found
                    if one.kind == "grid" and _key(one) == _key(leaf)
                )
                grids.setdefault(_key(leaf), GridToken(leaf.shape, symbols, width))
            if leaf.kind == "image" and _key(leaf) not in images:
                seen = Images({"": leaf}, (32, 48, 64))
                images[_key(leaf)] = nn.Sequential(seen, nn.Linear(seen.width, width))
        self.grids, self.images = nn.ModuleDict(grids), nn.ModuleDict(images)
        self.place = nn.Embedding(64, width)

    def forward(
        self,
        leaves: dict[str, Leaf],
        values: dict[str, Tensor],
        scaled: dict[str, Tensor],
        told: Tensor,
        texts: dict[str, Tensor],
    ) -> Tensor:
        """The step's leaves in the order of their paths, `[B, K, ...]`, as `[B, K, tokens, width]`.

        `scaled` are those of kind `tensor`, standardised `[B, K, size]`; `texts` those of kind
        `text` that change with the steps, as the means of their pieces `[B, K, width]`; `told
        [B, width]` is what the task is.
        """
        parts = []
        for path, leaf in leaves.items():
            if leaf.kind == "tensor":
                parts.append(self.numbers(scaled[path], told))
            elif leaf.kind == "discrete":
                parts.append(
                    self.choices(values[path].flatten(2) if leaf.shape else values[path][..., None])
                )
            elif leaf.kind == "grid":
                parts.append(
                    self.grids[_key(leaf)](
                        values[path].view(*values[path].shape[:2], *(*leaf.shape, 1, 1)[:3]), told
                    )
                )
            elif leaf.kind == "image":
                parts.append(self.images[_key(leaf)]({"": values[path]})[:, :, None])
            else:
                parts.append(texts[path][:, :, None])
        tokens = torch.cat(parts, 2)
        out: Tensor = tokens + self.place.weight[: tokens.shape[2]]
        return out


def bin_numbers(values: Tensor, low: float, high: float) -> Tensor:
    """The bin `[...]` of `BINS` between two bounds that each number falls in, the last ones beyond
    them."""
    return ((values - low) / (high - low) * BINS).long().clamp(0, BINS - 1)


def middle_of(bins: Tensor, low: float, high: float) -> Tensor:
    """The number in the middle of each bin: the inverse of `bin_numbers`, to half a bin."""
    return low + (bins + 0.5) / BINS * (high - low)


def squash(values: Tensor) -> Tensor:
    """mu-law: numbers of any size, finely told near 0, between -1 and 1 (equation 3 there)."""
    most = math.log(MU * MOST + 1)
    return values.sign() * torch.log1p(MU * values.abs()) / most


def unsquash(squashed: Tensor) -> Tensor:
    """The inverse of `squash`."""
    most = math.log(MU * MOST + 1)
    return squashed.sign() * torch.expm1(squashed.abs() * most) / MU


def element_tokens(leaf: Leaf, values: Tensor, scaled: Tensor | None, mu_law: bool) -> Tensor:
    """The elements of a leaf `[B, K, *shape]`, row by row, as tokens `[B, K, size]` int64.

    Numbers are bins of what is `scaled` `[B, K, size]`, or of themselves under mu-law; symbols and
    choices follow the bins. Text has no elements.
    """
    flat = values.reshape(*values.shape[:2], leaf.size)
    if leaf.kind != "tensor":
        return flat.long() + BINS
    if mu_law:
        return bin_numbers(squash(flat.float()), -1, 1)
    assert scaled is not None
    return bin_numbers(scaled, -CLIP, CLIP)


def element_values(leaf: Leaf, tokens: Tensor, mu_law: bool) -> Tensor:
    """The inverse of `element_tokens`, `[B, K, *shape]`: symbols and choices themselves, the middle
    of the bins of numbers, in deviations where there is no mu-law."""
    if leaf.kind != "tensor":
        found = (tokens - BINS).to(getattr(torch, leaf.dtype))
    elif mu_law:
        found = unsquash(middle_of(tokens, -1, 1))
    else:
        found = middle_of(tokens, -CLIP, CLIP)
    return found.reshape(*tokens.shape[:2], *leaf.shape)


class ElementTokens(nn.Module):
    """A token an element, in the order of the leaves and row by row, then a separator."""

    def __init__(self, signatures: list[dict[str, Leaf]], width: int, mu_law: bool) -> None:
        """Raises UserError for pictures, whose patches are not read here."""
        super().__init__()
        found = [leaf for leaves in signatures for leaf in leaves.values()]
        if any(leaf.kind == "image" for leaf in found):
            raise UserError(
                "--algorithm.input is tokens, but an observation has a picture, which it does not"
                " cut into patches; set --algorithm.input leaves"
            )
        self.mu_law = mu_law
        symbols = max([1, *(max(leaf.choices) for leaf in found if leaf.choices)])
        self.table = nn.Embedding(BINS + symbols, width)
        self.place = nn.Embedding(PLACES, width)
        self.separator = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.separator, std=0.02)

    def forward(
        self,
        leaves: dict[str, Leaf],
        values: dict[str, Tensor],
        scaled: dict[str, Tensor],
        told: Tensor,
        texts: dict[str, Tensor],
    ) -> Tensor:
        """See LeafTokens; texts that change with the steps are one token."""
        parts = []
        for path, leaf in leaves.items():
            if leaf.kind == "text":
                parts.append(texts[path][:, :, None])
                continue
            numbers = element_tokens(leaf, values[path], scaled.get(path), self.mu_law)
            parts.append(self.table(numbers))
        rows = len(told)
        parts.append(self.separator.expand(rows, parts[0].shape[1], 1, -1))
        tokens = torch.cat(parts, 2)
        place = torch.arange(tokens.shape[2], device=tokens.device) % PLACES
        out: Tensor = tokens + self.place.weight[place]
        return out


def _key(leaf: Leaf) -> str:
    """What leaves share that are read by the same weights."""
    return "x".join(map(str, leaf.shape))
