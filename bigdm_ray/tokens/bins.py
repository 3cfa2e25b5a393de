"""Discretisers: each dimension of a row of numbers becomes the index of a bin, and an index the
middle of its bin.

`quantile` bins hold equally many of the data's values, `uniform` ones are equally wide between the
least and the greatest (Janner, Li, Levine 2021, section 3.1). Whole numbers that are choices are
their own bin. The edges are a buffer, so they travel with the weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from bigdm_ray.envs.signature import PICKED, Leaf

Kind = Literal["quantile", "uniform"]


class Elements:
    """Leaves by path as one row of `width` numbers, in the order of the paths.

    Discrete leaves and grids give their indices, pictures the mean brightness of `cells` x `cells`
    fields of each channel, texts their first `letters` bytes. `choices [width]` is the number of
    choices of an element, 0 where it is continuous. `first`, where it is not 0, keeps the first so
    many elements alone.
    """

    def __init__(
        self, leaves: dict[str, Leaf], cells: int = 4, letters: int = 16, first: int = 0
    ) -> None:
        self.leaves = leaves
        self.cells, self.letters = cells, letters
        sizes, choices = [], []
        for leaf in leaves.values():
            size = {
                "image": cells * cells * leaf.shape[0] if leaf.kind == "image" else 0,
                "text": min(letters, leaf.size),
            }.get(leaf.kind, leaf.size)
            sizes.append(size)
            choices += list(leaf.choices) if leaf.kind in PICKED else [0] * size
        self.width = min(first, sum(sizes)) if first else sum(sizes)
        self.choices = choices[: self.width]
        ends = list(itertools.accumulate(sizes))
        self._columns = {
            path: slice(end - size, end)
            for path, size, end in zip(leaves, sizes, ends, strict=True)
        }

    def columns(self, path: str) -> slice | None:
        """Which elements of a row are those of this leaf; None where a row has not all of them."""
        found = self._columns.get(path)
        return found if found is not None and found.stop <= self.width else None

    def rows(self, values: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., *shape]` as `[..., width]` float32."""
        parts = []
        for path, leaf in self.leaves.items():
            value = values[path]
            lead = value.shape[: value.ndim - len(leaf.shape)]
            if leaf.kind == "image":
                pooled = adaptive_avg_pool2d(value.reshape(-1, *leaf.shape).float(), self.cells)
                parts.append(pooled.reshape(*lead, leaf.shape[0] * self.cells**2))
            else:
                flat = value.reshape(*lead, leaf.size).float()
                parts.append(flat[..., : self.letters] if leaf.kind == "text" else flat)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1))[..., : self.width]

    def values(self, rows: Tensor) -> dict[str, Tensor]:
        """The inverse of `rows` for actions: `[n, width]` as leaves `[n, *shape]` of their own
        dtype, cut to their bounds."""
        out = {}
        for (path, leaf), part in zip(
            self.leaves.items(),
            rows.split([leaf.size for leaf in self.leaves.values()], -1),
            strict=True,
        ):
            flat = part
            if leaf.low is not None and leaf.high is not None:
                flat = torch.minimum(
                    torch.maximum(flat, torch.tensor(leaf.low, device=flat.device)),
                    torch.tensor(leaf.high, device=flat.device),
                )
            dtype = getattr(torch, leaf.dtype)
            flat = flat if dtype.is_floating_point else flat.round()
            out[path] = flat.reshape(len(part), *leaf.shape).to(dtype)
        return out


class Bins(nn.Module):
    """`count` bins for each of `len(choices)` dimensions; a dimension of n > 0 choices has its
    first n bins at 0, 1, ..., n - 1.

    Until `fit` the continuous ones lie between -1 and 1.
    """

    edges: Tensor

    def __init__(self, choices: list[int], count: int = 100) -> None:
        super().__init__()
        self.count = count
        self.choices = choices
        edges = torch.linspace(-1, 1, count + 1).repeat(len(choices), 1)
        edges[[n > 0 for n in choices]] = torch.arange(count + 1) - 0.5
        self.register_buffer("edges", edges)

    def encode(self, rows: Tensor, dims: slice = slice(None)) -> Tensor:
        """Numbers `[..., d]` of these dimensions as indices `[..., d]` int64.

        A value's bin is the last whose lower edge is not above it. Where edges coincide, the values
        that lie on them have the first of these bins, which has no width, so that a value that much
        of the data shares keeps a bin of its own. Values beyond the data have the outermost bin.
        """
        edges = self.edges[dims]
        columns = rows.reshape(-1, rows.shape[-1]).T.contiguous()
        index = torch.minimum(
            torch.searchsorted(edges, columns, right=True) - 1, torch.searchsorted(edges, columns)
        )
        return index.clamp(0, self.count - 1).T.reshape(rows.shape)

    def decode(self, tokens: Tensor, dims: slice = slice(None)) -> Tensor:
        """Indices `[..., d]` as the middles of their bins `[..., d]` float32; an index that is no
        bin is the nearest one."""
        middles = self.middles[dims]
        columns = tokens.reshape(-1, tokens.shape[-1]).T.clamp(0, self.count - 1)
        return middles.gather(1, columns).T.reshape(tokens.shape)

    @property
    def middles(self) -> Tensor:
        """The middle of each bin: `[dimensions, count]`."""
        return (self.edges[:, :-1] + self.edges[:, 1:]) / 2

    def fit(
        self,
        passes: Callable[[], Iterable[Tensor]],
        rows: int,
        kind: Kind = "quantile",
        limit: int = 256 << 20,
    ) -> None:
        """Set the edges from data that `passes()` gives in parts `[m, dimensions]`, `rows` rows in
        all, as often as it is called.

        Quantiles are exact: the data passes once for as many columns as fit into `limit` bytes. A
        single column that does not fit is sampled: every s-th of its values, s the least that fits.
        Raises ValueError for no rows.
        """
        if not rows:
            raise ValueError("bins are fitted on no data")
        free = [i for i, n in enumerate(self.choices) if not n]
        if kind == "uniform":
            low, high = (
                self.edges.new_full((len(self.choices),), math.inf),
                self.edges.new_full((len(self.choices),), -math.inf),
            )
            for part in passes():
                low, high = (
                    torch.minimum(low, part.to(low).amin(0)),
                    torch.maximum(high, part.to(low).amax(0)),
                )
            share = torch.linspace(0, 1, self.count + 1, device=low.device, dtype=torch.float64)
            wide = low.double()[:, None] + share * (high - low).double()[:, None]
            wide[:, -1] = high.double()
            self.edges[free] = wide.float()[free]
            return
        stride = max(1, math.ceil(4 * rows / limit))
        each = max(1, limit // (4 * math.ceil(rows / stride)))
        for start in range(0, len(free), each):
            columns = free[start : start + each]
            taken, before = [], 0
            for part in passes():
                taken.append(part[-before % stride :: stride, columns].to(self.edges))
                before += len(part)
            self.edges[columns] = quantiles(torch.cat(taken).T.contiguous(), self.count)


def quantiles(columns: Tensor, count: int) -> Tensor:
    """Edges `[d, count + 1]` from all values of each dimension `[d, n]`: every ceil(n / count)-th
    in order, then the greatest.

    Where that gives fewer than `count + 1`, the greatest is repeated.
    """
    ordered = columns.sort(-1).values
    picked = ordered[:, :: math.ceil(ordered.shape[1] / count)]
    return torch.cat([picked, ordered[:, -1:].expand(-1, count + 1 - picked.shape[1])], 1)
