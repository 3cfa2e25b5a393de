"""Evaluates a TrajectoryTransformer for a search, window by window and token by token, without
computing anything twice.

Its outputs are those of the network's own forward pass. What is saved:

- windows of all beams and environments are encoded as a tree, in which what begins alike is
  computed once: an environment's own past once for all its beams, beams that agree once, ancestors
  once for all their descendants;
- the expansions of a beam look at its keys from one matrix, and at their own few tokens beside it;
- the last block is evaluated only for tokens whose outputs are used, and value tokens, at which
  nothing looks, have no keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from bigdm_ray.models.trajectory import TrajectoryTransformer
from bigdm_ray.models.transformer import Block, rotate

ROWS = 1024
"""Tokens that pass a feed-forward layer at once: more do not fit a core's cache."""


@dataclass
class EncodedWindows:
    """What rows of windows have been encoded to: keys and values `[rows, heads, slots, head width]`
    of each layer, the output of the last token `[rows, width]`, and how many slots are in use."""

    keys: list[Tensor]
    values: list[Tensor]
    last: Tensor
    used: int

    def take(self, rows: Tensor) -> EncodedWindows:
        """These rows, which may repeat: a copy of their keys and values; the trunk itself where
        they are all of them in order."""
        if len(rows) == len(self.last) and bool(
            (rows == torch.arange(len(rows), device=rows.device)).all()
        ):
            return self
        return EncodedWindows(
            [k.index_select(0, rows) for k in self.keys],
            [v.index_select(0, rows) for v in self.values],
            self.last[rows],
            self.used,
        )

    def move(self, source: Tensor, target: Tensor) -> None:
        """Write the rows `source` over the rows `target`, in place."""
        for part in (*self.keys, *self.values, self.last):
            part.index_copy_(0, target, part.index_select(0, source))


class EncoderLayer:
    """A block of the network for acting alone, without dropout: its weights, and functions in place
    of modules, whose calls cost as much as a small multiplication does."""

    def __init__(self, block: Block) -> None:
        assert (
            isinstance(block.norm1, nn.LayerNorm)
            and isinstance(block.norm2, nn.LayerNorm)
            and block.gate is None
        )
        assert isinstance(block.activation, nn.GELU) and block.activation.approximate == "none"
        self.heads = block.heads
        self._norm1, self._norm2 = (
            (norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            for norm in (block.norm1, block.norm2)
        )
        self._qkv, self._out, self._up, self._down = (
            (part.weight, part.bias) for part in (block.qkv, block.out, block.up, block.down)
        )

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values `[..., 3 * width]`."""
        return linear(layer_norm(x, *self._norm1), *self._qkv)

    def project_apart(self, x: Tensor, ends: int) -> tuple[Tensor, Tensor]:
        """Queries `[ends, width]` of the last `ends` tokens, keys and values `[tokens, 2 * width]`
        of all."""
        width, (weight, bias) = x.shape[-1], self._qkv
        normed = layer_norm(x, *self._norm1)
        return linear(normed[-ends:], weight[:width], bias[:width]), linear(
            normed, weight[width:], bias[width:]
        )

    def finish(self, x: Tensor, gathered: Tensor) -> Tensor:
        """As Block.finish."""
        x = linear(gathered, *self._out).add_(x)
        return linear(gelu(linear(layer_norm(x, *self._norm2), *self._up)), *self._down).add_(x)


class WindowEncoder:
    """The network's forward pass in the pieces that a search needs.

    It reads weights; it trains nothing.
    """

    def __init__(self, net: TrajectoryTransformer) -> None:
        assert net.transformer.rotary == (net.transformer.table is None), (
            "places are embedded, or turn queries and keys"
        )
        self.net = net
        self.blocks = [
            EncoderLayer(block) for block in net.transformer.blocks if isinstance(block, Block)
        ]
        self.split = self.blocks[0].heads
        self._heads = torch.arange(self.split, device=net.heads.device)
        self._memory: dict[tuple[object, ...], Tensor] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def add_positions(self, x: Tensor, place: Tensor) -> Tensor:
        """Embedded tokens `[..., t, width]` with their places `[t]`, counted from the first token
        of the goal, where places are embedded."""
        table = self.net.transformer.table
        return x if table is None else x + table[place]

    def _one(self, tokens: Tensor, dim: int, place: int) -> tuple[Tensor, Tensor]:
        """One token of each row `[...]`, of dimension `dim`: `[..., width]` with its place, and
        that place `[1]`."""
        where = torch.tensor([place + self.net.goal], device=self.net.heads.device)
        return self.add_positions(self.net.embed(tokens, dim).unsqueeze(-2), where).squeeze(
            -2
        ), where

    def turn(self, heads: Tensor, place: Tensor) -> Tensor:
        """Queries or keys `[..., t, head width]` at the places `[t]`: as they are, unless positions
        are rotary."""
        return rotate(heads, place) if self.net.transformer.rotary else heads

    def _mask(self, own: int, before: int) -> Tensor:
        """Which keys each of `own` tokens may look at, when `before` come before them:
        `[own, before + own]`."""
        if (own, before) not in self._masks:
            self._masks[own, before] = torch.ones(
                own, before + own, dtype=torch.bool, device=self._heads.device
            ).tril(before)
        return self._masks[own, before]

    def trunk(
        self, past: Tensor, state: Tensor | None, room: int, goal: Tensor | None = None
    ) -> tuple[EncodedWindows, Tensor]:
        """Encode windows of transitions `[n, m, dims]`, and where it is given the state `[n, seen]`
        that follows, behind goals `[n, goal]`.

        Returns what is different among them, with `room` more slots, and which of it each of the n
        rows is `[n]`. Without a state the last output is that of the last value token, which
        predicts the next state. The trunk's memory is used again by the next one that is encoded.
        """
        net, m = self.net, past.shape[1]
        if (0 if goal is None else goal.shape[1]) != net.goal:
            raise ValueError(
                f"a goal of {net.goal} tokens is expected, but"
                f" {'none' if goal is None else goal.shape[1]} is given"
            )
        each = net.dims - 1  # a transition without its value
        tail, dim, place = (
            (past[:, -1, -1:], each, net.dims * m - 1)
            if state is None
            else (state, 0, net.dims * m)
        )
        tree: list[Tensor] = []  # for each level, which row of the level before comes before
        parts: list[Tensor] = []
        places: list[Tensor] = []
        which = torch.zeros(len(past), dtype=torch.int64, device=past.device)
        goals = [] if goal is None else [goal]
        for k, tokens in enumerate((*goals, *past[:, :, :-1].unbind(1), tail), -len(goals)):
            rows, which = torch.unique(
                torch.cat([which[:, None], tokens], 1), dim=0, return_inverse=True
            )
            begin, start = (dim, place) if k == m else (0, net.dims * k)
            count = tokens.shape[1]
            tree.append(rows[:, 0])
            first = 0 if k < 0 else net.goal + start
            places.append(torch.arange(first, first + count, device=past.device))
            embedded = (
                net.embed_goal(rows[:, 1:])
                if k < 0
                else net.embed(rows[:, 1:], slice(begin, begin + count))
            )
            parts.append(self.add_positions(embedded, places[-1]))
        keep = 0 if state is None else state.shape[1]
        trunk = EncodedWindows([], [], parts[-1], net.goal + each * m + keep)
        x = torch.cat([part.flatten(0, 1) for part in parts])
        rows_of = [len(part) for part in parts]
        as_before = (
            not keep
            and rows_of[-1] == rows_of[-2]
            and bool((tree[-1] == torch.arange(rows_of[-1], device=x.device)).all())
        )
        for layer in range(len(self.blocks)):
            x = self._level(
                layer,
                x,
                [part.shape[:2] for part in parts],
                places,
                tree,
                keep,
                room,
                as_before,
                trunk,
            )
        trunk.last = net.transformer.norm(x.view(len(parts[-1]), -1, x.shape[-1])[:, -1])
        return trunk, which

    def _room(self, name: tuple[object, ...], shape: tuple[int, ...]) -> Tensor:
        """Memory of this name and shape, whatever it holds: fresh memory would cost a page fault
        for each of its pages."""
        size = math.prod(shape)
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = self.net.heads.new_empty(size)
        return self._memory[name][:size].view(shape)

    def _level(
        self,
        layer: int,
        x: Tensor,
        shapes: list[torch.Size],
        places: list[Tensor],
        tree: list[Tensor],
        keep: int,
        room: int,
        as_before: bool,
        trunk: EncodedWindows,
    ) -> Tensor:
        """One block over the tokens of all levels, joined to `[tokens, width]`; of the last level
        alone where it is the final block.

        Adds the keys and values of the whole windows to the trunk. `as_before`: the last level's
        rows are those of the level before it, and add no keys.
        """
        block, final, end = self.blocks[layer], layer == len(self.blocks) - 1, len(shapes) - 1
        width, (rows, count) = x.shape[1], shapes[-1]
        if final:
            asking, keys_values = block.project_apart(x, rows * count)
            x, queries = x[-rows * count :], [asking]
        else:
            both = block.project(x)
            queries, keys_values = (
                list(both[:, :width].split([n * t for n, t in shapes])),
                both[:, width:],
            )
        gathered: list[Tensor] = []
        head = width // self.split
        keys = values = x.new_zeros(1, self.split, 0, head)
        for k, (part, (n, t)) in enumerate(
            zip(keys_values.split([n * t for n, t in shapes]), shapes, strict=True)
        ):
            before = keys.shape[2]
            adds = t if k < end else keep
            if k < end or not as_before:
                raw, worth = part.view(n, t, 2, self.split, head).permute(2, 0, 3, 1, 4)
                new = (self.turn(raw, places[k]), worth)
                whole_windows = k == end - as_before
                name = (layer, "trunk") if whole_windows else (k % 2, "level")
                size = (n, self.split, before + adds + (room if whole_windows else 0), head)
                grown = [self._room((*name, which), size) for which in range(2)]
                rows_before = (tree[k][:, None] * self.split + self._heads).flatten()
                for whole, old, more in zip(grown, (keys, values), new, strict=True):
                    if before:
                        torch.index_select(
                            old.flatten(0, 1).flatten(1),
                            0,
                            rows_before,
                            out=whole.flatten(0, 1).flatten(1)[:, : before * head],
                        )
                    whole[:, :, before : before + adds] = more[:, :, :adds]
                keys, values = (whole[:, :, : before + adds] for whole in grown)
                if whole_windows:
                    trunk.keys.append(grown[0])
                    trunk.values.append(grown[1])
            if k == end or not final:
                asked = self.turn(
                    queries[0 if final else k].view(n, t, self.split, head).transpose(1, 2),
                    places[k],
                )
                mask = self._mask(t, before) if adds and t > 1 else None
                gathered.append(
                    scaled_dot_product_attention(asked, keys, values, mask)
                    .transpose(1, 2)
                    .flatten(2)
                    .flatten(0, 1)
                )
        looked = torch.cat(gathered)
        if len(x) <= ROWS:
            return block.finish(x, looked)
        return torch.cat(
            [block.finish(a, b) for a, b in zip(x.split(ROWS), looked.split(ROWS), strict=True)]
        )

    def step(self, trunk: EncodedWindows, tokens: Tensor, dim: int, place: int) -> None:
        """One more token of each row of a trunk `[rows]`, of dimension `dim`: its keys take the
        next slot, its output becomes `last`."""
        (x, where), slot = self._one(tokens, dim, place), trunk.used
        trunk.used += 1
        for block, keys, values in zip(self.blocks, trunk.keys, trunk.values, strict=True):
            query, key, value = block.project(x).view(len(x), 3, self.split, 1, -1).unbind(1)
            keys[:, :, slot : slot + 1], values[:, :, slot : slot + 1] = (
                self.turn(key, where),
                value,
            )
            scores = (self.turn(query, where) * query.shape[-1] ** -0.5) @ keys[
                :, :, : slot + 1
            ].transpose(2, 3)
            x = block.finish(x, (torch.softmax(scores, -1) @ values[:, :, : slot + 1]).flatten(1))
        trunk.last = self.net.transformer.norm(x)

    def branch(
        self,
        trunk: EncodedWindows,
        own: list[tuple[Tensor, Tensor]],
        tokens: Tensor,
        dim: int,
        place: int,
        slot: int,
    ) -> Tensor:
        """A token of each of several continuations of the rows of a trunk, `[rows, each]`, of
        dimension `dim`: outputs `[rows, each, width]`.

        `own` are keys and values of the continuations' own tokens
        `[rows, heads, each, slots, head width]` by layer; this one's take `slot`. The attention is
        one softmax over the trunk's keys, read once for all continuations of a row, and their own.
        """
        x, where = self._one(tokens, dim, place)
        n, each, _ = x.shape
        for block, keys, values, (mine, worth) in zip(
            self.blocks, trunk.keys, trunk.values, own, strict=True
        ):
            query, key, value = (
                block.project(x).view(n, each, 3, self.split, -1).permute(2, 0, 3, 1, 4)
            )
            mine[:, :, :, slot], worth[:, :, :, slot] = self.turn(key, where), value
            query = self.turn(query, where) * query.shape[-1] ** -0.5
            shared = query @ keys[:, :, : trunk.used].transpose(2, 3)
            apart = (query.unsqueeze(3) * mine[:, :, :, : slot + 1]).sum(-1)
            looks = torch.softmax(torch.cat([shared, apart], -1), -1)
            gathered = looks[..., : trunk.used] @ values[:, :, : trunk.used]
            gathered = gathered + (
                looks[..., trunk.used :].unsqueeze(-1) * worth[:, :, :, : slot + 1]
            ).sum(3)
            x = block.finish(x, gathered.transpose(1, 2).flatten(2))
        out: Tensor = self.net.transformer.norm(x)
        return out

    def allocate(self, rows: int, each: int, slots: int) -> list[tuple[Tensor, Tensor]]:
        """Room for the keys and values of `slots` tokens of each of `each` continuations of so many
        rows, by layer."""
        like = self.net.heads
        shape = (rows, self.split, each, slots, like.shape[-1] // self.split)
        return [(like.new_empty(shape), like.new_empty(shape)) for _ in self.blocks]
