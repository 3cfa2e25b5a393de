"""Actions as tokens: an element is a bin or a choice, told one after the other.

The elements of an action are drawn in the order of their leaves, each given those before it (Reed
et al. 2022, section 2.1), by a layer on what the transformer says of the step. Bins are uniform
between the bounds of the action; choices are tokens of their own, as many as the task has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.envs.signature import Leaf

MOST = 64
"""Elements of an action that are told apart by their place; later ones share places."""


def choices_of(leaves: dict[str, Leaf]) -> list[int]:
    """How many choices each element of an action has, in their order; 0 where it is continuous."""
    return [
        leaf.choices[at] if leaf.choices else 0
        for leaf in leaves.values()
        for at in range(leaf.size)
    ]


class Said(NamedTuple):
    """Elements of actions of a task: what is to be told `[rows, E]`, and what has been before it
    `[rows, E, width]`."""

    tokens: Tensor
    before: Tensor


class ActionTokens(nn.Module):
    """Tokens of actions, in and out."""

    def __init__(self, bins: int, choices: int, width: int) -> None:
        """`choices` is the most that an element of any task has."""
        super().__init__()
        self.bins, self.most = bins, choices
        self.table = nn.Embedding(bins + choices, width)
        self.place = nn.Embedding(MOST, width)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.hidden = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, bins + choices)

    def tokens(
        self, leaves: dict[str, Leaf], actions: dict[str, Tensor], low: Tensor, high: Tensor
    ) -> Tensor:
        """Actions by leaf `[..., *shape]` as tokens `[..., E]` int64; `low` and `high` `[E]` are
        what continuous elements lie between."""
        parts, at = [], 0
        for path, leaf in leaves.items():
            value = actions[path]
            flat = value.reshape(*value.shape[: value.ndim - len(leaf.shape)], leaf.size)
            if leaf.choices:
                parts.append(flat.long() + self.bins)
            else:
                a, b = low[at : at + leaf.size], high[at : at + leaf.size]
                share = (flat.float() - a) / (b - a)
                parts.append((share * self.bins).long().clamp(0, self.bins - 1))
            at += leaf.size
        return torch.cat(parts, -1)

    def places(self, count: int) -> Tensor:
        """The place of each of `count` elements `[count, width]`."""
        at = torch.arange(count, device=self.place.weight.device) % MOST
        return self.place.weight[at]

    def read(self, tokens: Tensor) -> Tensor:
        """Whole actions `[..., E]` as one vector each `[..., width]`."""
        out: Tensor = (self.table(tokens) * (1 + self.places(tokens.shape[-1]))).sum(-2)
        return out

    def said(self, tokens: Tensor) -> Said:
        """What the elements of actions `[rows, E]` are given of each other."""
        each = self.table(tokens) * (1 + self.places(tokens.shape[-1]))
        return Said(tokens, each.cumsum(1) - each)

    def think(self, step: Tensor, before: Tensor, place: Tensor) -> Tensor:
        """What is said of elements `[rows, width]`, of what the transformer says of their steps,
        of the elements before them, and of their places."""
        x = step + before + place
        out: Tensor = x + self.back(nn.functional.gelu(self.hidden(self.norm(x))))
        return out

    def losses(self, thought: Tensor, tokens: Tensor, choices: Tensor) -> Tensor:
        """-log p of tokens `[rows]`, in nats `[rows]`; `choices [rows]` is 0 for bins."""
        out = thought.new_zeros(len(thought), dtype=torch.float32)
        continuous = (choices == 0).nonzero().flatten()
        if len(continuous):
            logits = nn.functional.linear(
                thought[continuous], self.out.weight[: self.bins], self.out.bias[: self.bins]
            )
            missed = nn.functional.cross_entropy(
                logits.float(), tokens[continuous], reduction="none"
            )
            out = out.index_put((continuous,), missed)
        discrete = (choices > 0).nonzero().flatten()
        if len(discrete):
            logits = self.choose(thought[discrete], choices[discrete])
            missed = nn.functional.cross_entropy(
                logits, tokens[discrete] - self.bins, reduction="none"
            )
            out = out.index_put((discrete,), missed)
        return out

    def choose(self, thought: Tensor, choices: Tensor) -> Tensor:
        """Logits of the choices `[rows, most]` that each row has."""
        logits = nn.functional.linear(
            thought, self.out.weight[self.bins :], self.out.bias[self.bins :]
        ).float()
        known = torch.arange(self.most, device=logits.device) < choices[:, None]
        return logits.masked_fill(~known, float("-inf"))

    def act(
        self,
        leaves: dict[str, Leaf],
        step: Tensor,
        low: Tensor,
        high: Tensor,
        uniforms: Tensor | None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Actions by leaf `[n, *shape]`, and their tokens `[n, E]`, drawn element by element with
        `uniforms [n, E]`, or the most likely ones where there are none."""
        tokens, before = [], torch.zeros_like(step)
        for at, choices in enumerate(choices_of(leaves)):
            place = self.place.weight[at % MOST]
            thought = self.think(step, before, place)
            if choices:
                count = torch.full((len(step),), choices, device=step.device)
                logits, base = self.choose(thought, count)[:, :choices], self.bins
            else:
                weight, bias = self.out.weight[: self.bins], self.out.bias[: self.bins]
                logits, base = nn.functional.linear(thought, weight, bias).float(), 0
            if uniforms is None:
                drawn = logits.argmax(-1)
            else:
                ends = logits.softmax(-1).cumsum(-1)
                ends = ends / ends[:, -1:]
                drawn = (ends <= uniforms[:, at, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
            tokens.append(drawn + base)
            before = before + self.table(tokens[-1]) * (1 + place)
        told = torch.stack(tokens, -1)
        return self.values(leaves, told, low, high), told

    def values(
        self, leaves: dict[str, Leaf], tokens: Tensor, low: Tensor, high: Tensor
    ) -> dict[str, Tensor]:
        """Tokens `[n, E]` as actions by leaf: the middle of a bin, the number of a choice."""
        out, at = {}, 0
        for path, leaf in leaves.items():
            part = tokens[:, at : at + leaf.size]
            dtype = getattr(torch, leaf.dtype)
            if leaf.choices:
                flat = (part - self.bins).to(dtype)
            else:
                a, b = low[at : at + leaf.size], high[at : at + leaf.size]
                middle = a + (part + 0.5) / self.bins * (b - a)
                flat = (middle if dtype.is_floating_point else middle.round()).to(dtype)
            out[path] = flat.reshape(len(tokens), *leaf.shape)
            at += leaf.size
        return out


def bounds_of(leaves: dict[str, Leaf]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest and highest value of each element `[E]` float32, and whether it is without bounds."""
    low, high, free = [], [], []
    for leaf in leaves.values():
        known = leaf.low is not None and leaf.high is not None
        low += list(leaf.low or ()) if known else [-1.0] * leaf.size
        high += list(leaf.high or ()) if known else [1.0] * leaf.size
        free += [not known and not leaf.choices] * leaf.size
    return np.array(low, np.float32), np.array(high, np.float32), np.array(free, bool)
