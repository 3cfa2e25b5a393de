"""A causal transformer over embedded tokens, and an explicit cache of its keys and values.

Every block is pre-norm. With the defaults it is GPT-2's (LayerNorm, one matrix for queries, keys
and values, GELU); `norm="rms"`, `gated=True`, `positions="rotary"` give the modern one. Padding
belongs on the right: causal attention then never sees it, and no mask is needed. What is not asked
for is not computed: `at` names the tokens whose outputs are wanted, and the last block then works
for these alone; with `packing`, sequences of any lengths are read without padding between them. It
is written for one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}


@dataclass
class Cache:
    """Keys and values of tokens that were seen, `[layers, rows, heads, slots, head width]` each.

    It belongs to the caller.
    """

    keys: Tensor
    values: Tensor

    def take(self, rows: Tensor) -> Cache:
        """The cache of these rows `[m]`, which may repeat: copies of what is in use."""
        return Cache(self.keys[:, rows], self.values[:, rows])


class Dropout(nn.Dropout):
    """nn.Dropout, whose mask on CPUs is compared from 16 random bits an element: several times as
    fast as drawing each as a float.

    The share that is dropped is rounded to 1 / 65,536. What is given in bfloat16 comes out in
    float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Dropout."""
        if not self.training or not self.p or input.is_cuda or self.p == 1:
            return super().forward(input)
        out: Tensor = input * dropout_mask(input.shape, self.p)
        return out


def dropout_mask(shape: torch.Size, p: float) -> Tensor:
    """A mask of ones and zeros over 1 - p: float32, of CPU."""
    count = shape.numel()
    bits = (
        torch.empty((count + 3) // 4, dtype=torch.int64)
        .random_(-(2**63), None)
        .view(torch.int16)[:count]
    )
    cut = round(p * 65536)
    return (bits >= cut - 32768).float().mul_(65536 / (65536 - cut)).view(shape)


class DropoutAttention(torch.autograd.Function):
    """Attention with dropout on a CPU: `look [t, s]` is True where queries `[n, heads, t, w]` may
    look at keys and values `[n, heads, s, w]`.

    Queries are taken `ROWS` at a time, with the keys up to the last that one of them may look at:
    most of what a causal mask hides is not computed. The backward pass is written out, so that
    blocks add to one gradient in place. In bfloat16 1 / (1 - dropout) is rounded too: at 0.1 what
    is gathered is 0.16 % too small.
    """

    ROWS = 32

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, look: Tensor, dropout: float
    ) -> Tensor:
        """See the class."""
        q, k, v = (x.flatten(0, 1).contiguous() for x in (queries, keys, values))
        bias = torch.zeros(look.shape, dtype=q.dtype).masked_fill_(~look, float("-inf"))
        ctx.scale, ctx.blocks = q.shape[-1] ** -0.5, []
        out, saved = torch.empty_like(q), []
        for a in range(0, q.shape[1], DropoutAttention.ROWS):
            b = min(a + DropoutAttention.ROWS, q.shape[1])
            s = int(look[a:b].any(0).nonzero()[-1]) + 1
            weights = torch.baddbmm(
                bias[a:b, :s], q[:, a:b], k[:, :s].transpose(1, 2), alpha=ctx.scale
            ).softmax(-1)
            mask = dropout_mask(weights.shape, dropout).to(weights.dtype)
            out[:, a:b] = (weights * mask) @ v[:, :s]
            ctx.blocks.append((a, b, s))
            saved += [weights, mask]
        ctx.save_for_backward(q, k, v, *saved)
        return out.view(queries.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        q, k, v, *saved = ctx.saved_tensors
        shape, g = grad.shape, grad.flatten(0, 1)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (a, b, s), weights, mask in zip(ctx.blocks, saved[::2], saved[1::2], strict=True):
            dv[:, :s] += (weights * mask).transpose(1, 2) @ g[:, a:b]
            back = (g[:, a:b] @ v[:, :s].transpose(1, 2)).mul_(mask)
            back = torch._softmax_backward_data(back, weights, -1, weights.dtype)
            dq[:, a:b] = back @ k[:, :s]
            dk[:, :s] += back.transpose(1, 2) @ q[:, a:b]
        n, heads = shape[:2]
        return (
            dq.mul_(ctx.scale).view(shape),
            dk.mul_(ctx.scale).view(n, heads, *dk.shape[1:]),
            dv.view(n, heads, *dv.shape[1:]),
            None,
            None,
        )


class Padding:
    """Sequences of much the same length as rows of one array, those that are shorter padded."""

    def __init__(self, lengths: Tensor) -> None:
        """`lengths [n]` int64, in the order of the sequences."""
        self.rows, self.longest = len(lengths), int(lengths.max())
        self.tokens = int(lengths.sum())
        self.where: Tensor | None = None
        if self.tokens < self.rows * self.longest:
            inside = torch.arange(self.longest, device=lengths.device) < lengths[:, None]
            self.where = inside.flatten().nonzero().flatten()

    def pad(self, x: Tensor) -> Tensor:
        """Tokens `[tokens, width]`, sequence after sequence, as `[rows, longest, width]`."""
        if self.where is not None:
            whole = x.new_zeros(self.rows * self.longest, x.shape[-1])
            x = whole.index_copy_(0, self.where, x)
        return x.view(self.rows, self.longest, -1)

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of `pad`."""
        flat = x.flatten(0, 1)
        return flat if self.where is None else flat.index_select(0, self.where)


class Packing:
    """Sequences of any lengths, one behind the other, in groups that attend together."""

    def __init__(self, groups: Sequence[Tensor]) -> None:
        """`groups` are their lengths `[n]` int64 in order, cut where they are to be padded apart:
        those of sequences of much the same length together."""
        self.groups = [Padding(lengths) for lengths in groups]


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind its norm and added to what came in."""

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        activation: Activation,
        dropout: float,
        norm: Literal["layer", "rms"],
        gated: bool,
    ) -> None:
        super().__init__()
        kind = nn.LayerNorm if norm == "layer" else nn.RMSNorm
        self.heads = heads
        self.norm1 = kind(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = kind(width, eps=1e-5)
        self.up = nn.Linear(width, inner)
        self.gate = nn.Linear(width, inner) if gated else None
        self.activation = _ACTIVATIONS[activation]()
        self.down = nn.Linear(inner, width)
        self.attention_dropout = dropout
        self.dropout = Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """`[n, t, width]` as `[n, heads, t, head width]`."""
        n, t, width = x.shape
        return x.view(n, t, self.heads, width // self.heads).transpose(1, 2)

    def project(self, x: Tensor, at: slice | Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the tokens `at`, keys and values of all, each split into heads."""
        normed = self.norm1(x)
        if at is None:
            queries, keys, values = self.qkv(normed).chunk(3, -1)
        else:
            width = x.shape[-1]
            queries = linear(normed[:, at], self.qkv.weight[:width], self.qkv.bias[:width])
            keys, values = linear(normed, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(
                2, -1
            )
        return self.split(queries), self.split(keys), self.split(values)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """What each query gathers `[n, t, width]`; `mask` is True where it may look."""
        dropout = self.attention_dropout if self.training else 0.0
        gathered: Tensor
        if (
            dropout and not queries.is_cuda and (mask is None or mask.ndim == 2)
        ):  # the fused one draws its dropout slowly on CPUs
            look = (
                torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool).tril_()
                if mask is None
                else mask
            )
            gathered = DropoutAttention.apply(queries, keys, values, look, dropout)  # type: ignore[no-untyped-call]  # torch gives it no types
        elif queries.dtype == torch.bfloat16 and not queries.is_cuda:
            # on CPUs the fused one takes 1.4 to 13 times as long in bfloat16
            with torch.autocast("cpu", enabled=False):
                gathered = scaled_dot_product_attention(
                    queries.float(), keys.float(), values.float(), mask, dropout, causal
                )
        else:
            gathered = scaled_dot_product_attention(queries, keys, values, mask, dropout, causal)
        return gathered.transpose(1, 2).flatten(2)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # shapes change at each call
    def attend_packed(self, projected: Tensor, packing: Packing) -> Tensor:
        """What each of the tokens `[N, 3 width]` of packed sequences gathers `[N, width]`."""
        parts, groups = [], packing.groups
        for part, padding in zip(projected.split([g.tokens for g in groups]), groups, strict=True):
            queries, keys, values = padding.pad(part).chunk(3, -1)
            gathered = self.attend(
                self.split(queries), self.split(keys), self.split(values), None, True
            )
            parts.append(padding.unpad(gathered))
        return torch.cat(parts)

    def attend_newest(self, x: Tensor, look: Tensor | None) -> Tensor:
        """What the last token alone gathers `[n, 1, width]`; `look` is True where it may look.

        No key and no value of the others is made: `q . (W x) = (W^T q) . x`, and the sum of values
        is the value of the sum. The bias of the keys adds the same to all scores, which softmax
        drops.
        """
        n, _, width = x.shape
        normed = self.norm1(x)
        _, keys, values = self.qkv.weight.view(3, self.heads, -1, width)
        asked = (
            linear(normed[:, -1], self.qkv.weight[:width], self.qkv.bias[:width])
            .view(n, self.heads, keys.shape[1])
            .transpose(0, 1)
        )
        scores = (asked @ keys).transpose(0, 1) @ normed.transpose(1, 2) * keys.shape[1] ** -0.5
        if look is not None:
            scores = scores.masked_fill(~(look if look.ndim == 2 else look[:, 0]), float("-inf"))
        mixed = scores.softmax(-1) @ normed
        gathered: Tensor = (mixed.transpose(0, 1) @ values.transpose(1, 2)).transpose(0, 1).flatten(
            1
        ) + self.qkv.bias[2 * width :]
        return gathered[:, None]

    def finish(self, x: Tensor, gathered: Tensor) -> Tensor:
        """The residual stream `[n, t, width]` with what attention gathered, then through the
        feed-forward layer."""
        gathered = self.out(gathered)
        x = x + (self.dropout(gathered) if self.training else gathered)
        normed = self.norm2(x)
        hidden = (
            self.activation(self.up(normed))
            if self.gate is None
            else self.activation(self.gate(normed)) * self.up(normed)
        )
        down = self.down(hidden)
        out: Tensor = x + (self.dropout(down) if self.training else down)
        return out


class Transformer(nn.Module):
    """Blocks and a last norm over embedded tokens `[n, t, width]`.

    `positions`: `none` (the caller embeds them), `learned` (a table of `context` rows is added),
    `rotary` (queries and keys are turned, so that only distances count). `hidden_keys`, a row of
    booleans `[context]`, marks places that no token may look at, the token that stands there
    included: it is known to itself by the residual stream alone. The first place cannot be hidden.
    """

    hidden_keys: Tensor | None

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        context: int,
        inner: int | None = None,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        norm: Literal["layer", "rms"] = "layer",
        gated: bool = False,
        positions: Literal["none", "learned", "rotary"] = "none",
        hidden_keys: Tensor | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads")
        if hidden_keys is not None and bool(hidden_keys[0]):
            raise ValueError(
                "the first place is hidden, but its token would then have nothing to look at"
            )
        self.context = context
        self.blocks = nn.ModuleList(
            Block(width, heads, inner or 4 * width, activation, dropout, norm, gated)
            for _ in range(layers)
        )
        self.norm = (nn.LayerNorm if norm == "layer" else nn.RMSNorm)(width, eps=1e-5)
        self.dropout = Dropout(dropout)
        self.table = nn.Parameter(torch.zeros(context, width)) if positions == "learned" else None
        self.rotary = positions == "rotary"
        self.register_buffer("hidden_keys", hidden_keys, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        at: slice | Tensor | None = None,
        mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Outputs `[n, t', width]` of the tokens `at` (all by default), each having seen itself and
        what came before.

        `mask [n, t]` is False at tokens that nobody else may look at: padding that is not on the
        right. Raises ValueError for more tokens than the context.

        With `packing`, x and the outputs are `[N, width]`: packed sequences, one behind the other.
        Padding is made for attention alone, to the longest of a group; all else is computed once
        for all tokens. For positions that the caller embeds, without `at` and `mask`.
        """
        if packing is not None:
            return self._packed(x, packing)
        t = x.shape[1]
        place = torch.arange(t, device=x.device)
        x = self._enter(x, place)
        look = self._look(place, place, mask)
        # it may look at all of them
        newest = isinstance(at, slice) and range(t)[at] == range(t - 1, t)
        for layer, block in enumerate(self._blocks()):
            last = at if layer == len(self.blocks) - 1 else None
            if last is not None and newest and not self.rotary and not self.training:
                x = block.finish(
                    x[:, -1:], block.attend_newest(x, None if look is None else look[..., -1:, :])
                )
                continue
            queries, keys, values = block.project(x, last)
            seen = place if last is None else place[last]
            queries, keys = self._turn(queries, seen), self._turn(keys, place)
            if last is None:
                gathered = block.attend(queries, keys, values, look, look is None)
                x = block.finish(x, gathered)
            else:
                rows = (
                    look[..., last, :]
                    if look is not None
                    else None
                    if newest
                    else place <= seen[:, None]
                )
                x = block.finish(x[:, last], block.attend(queries, keys, values, rows, False))
        out: Tensor = self.norm(x)
        return out

    def _packed(self, x: Tensor, packing: Packing) -> Tensor:
        x = self.dropout(x) if self.training else x
        for block in self._blocks():
            x = block.finish(x, block.attend_packed(block.qkv(block.norm1(x)), packing))
        out: Tensor = self.norm(x)
        return out

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """How much each token looks at each before it, `[layers, n, heads, t, t]`; rows add up to
        1. For pictures."""
        place = torch.arange(x.shape[1], device=x.device)
        x, look, found = self._enter(x, place), self._look(place, place, None), []
        allowed = place <= place[:, None] if look is None else look
        for block in self._blocks():
            queries, keys, values = block.project(x, None)
            queries, keys = self._turn(queries, place), self._turn(keys, place)
            scores = queries @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
            found.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1))
            x = block.finish(x, block.attend(queries, keys, values, look, look is None))
        return torch.stack(found)

    def empty(self, rows: int, slots: int | None = None) -> Cache:
        """A cache with room for `slots` tokens of each row (the whole context by default)."""
        first = next(iter(self._blocks()))
        width = first.qkv.in_features
        shape = (len(self.blocks), rows, first.heads, slots or self.context, width // first.heads)
        like = first.qkv.weight
        return Cache(like.new_zeros(shape), like.new_zeros(shape))

    def extend(self, x: Tensor, cache: Cache, start: int, wanted: int | None = None) -> Tensor:
        """Tokens that follow the `start` ones that the cache holds, the same number for each row:
        outputs of the last `wanted`.

        Writes their keys and values into the cache. Equals `forward` over all tokens, position by
        position.
        """
        t = x.shape[1]
        place = torch.arange(start, start + t, device=x.device)
        x = self._enter(x, place)
        before = torch.arange(start + t, device=x.device)
        look = self._look(place, before, None) if t > 1 or self.hidden_keys is not None else None
        if look is None and t > 1:
            look = before <= place[:, None]
        for layer, block in enumerate(self._blocks()):
            at = (
                slice(t - wanted, t)
                if wanted is not None and layer == len(self.blocks) - 1
                else None
            )
            queries, keys, values = block.project(x, at)
            cache.keys[layer, :, :, start : start + t] = self._turn(keys, place)
            cache.values[layer, :, :, start : start + t] = values
            queries = self._turn(queries, place if at is None else place[at])
            rows = look if look is None or at is None else look[at]
            gathered = block.attend(
                queries,
                cache.keys[layer, :, :, : start + t],
                cache.values[layer, :, :, : start + t],
                rows,
                False,
            )
            x = block.finish(x if at is None else x[:, at], gathered)
        out: Tensor = self.norm(x)
        return out

    def scatter(self, x: Tensor, cache: Cache, slots: Tensor, look: Tensor) -> Tensor:
        """Tokens `[n, t, width]` of rows that stand at different places: outputs `[n, t, width]`.

        Writes their keys and values into the cache at `slots [n, t]`; `look [n, t, cache slots]` is
        True where a token may look, at itself too. For positions that the caller embeds.
        """
        x = self.dropout(x)
        rows = torch.arange(len(x), device=x.device)[:, None]
        for layer, block in enumerate(self._blocks()):
            queries, keys, values = block.project(x, None)
            cache.keys[layer][rows, :, slots] = keys.transpose(1, 2)
            cache.values[layer][rows, :, slots] = values.transpose(1, 2)
            x = block.finish(
                x,
                block.attend(queries, cache.keys[layer], cache.values[layer], look[:, None], False),
            )
        out: Tensor = self.norm(x)
        return out

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _enter(self, x: Tensor, place: Tensor) -> Tensor:
        if self.table is not None or self.hidden_keys is not None:
            if int(place[-1]) >= self.context:
                raise ValueError(
                    f"{int(place[-1]) + 1} tokens do not fit a context of {self.context}"
                )
            x = x if self.table is None else x + self.table[place]
        out: Tensor = self.dropout(x) if self.training else x
        return out

    def _look(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which of the `keys` places each of the `queries` places may look at; None where it is the
        causal triangle alone."""
        if mask is None and self.hidden_keys is None:
            return None
        look = keys <= queries[:, None]
        if self.hidden_keys is not None:
            look = look & ~self.hidden_keys[keys]
        if mask is None:
            return look
        itself = keys == queries[:, None]
        return ((look & mask[:, None, :]) | itself)[:, None]

    def _turn(self, heads: Tensor, place: Tensor) -> Tensor:
        return rotate(heads, place) if self.rotary else heads


def rotate(heads: Tensor, place: Tensor) -> Tensor:
    """Queries or keys `[..., t, head width]` at the places `[t]`, by rotary positions (Su et al.
    2021, equation 34).

    Halves of a head's width are the pairs. Their products depend on the distance between places
    alone.
    """
    half = heads.shape[-1] // 2
    speed = torch.exp(torch.arange(half, device=heads.device) * (-math.log(10_000.0) / half))
    angle = place[:, None] * speed
    cosine, sine = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    a, b = heads[..., :half], heads[..., half:]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)
