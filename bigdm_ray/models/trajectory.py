"""The network of the Trajectory Transformer: a causal transformer over the tokens of transitions
(Janner, Li, Levine 2021, section 3).

A transition is `dims` tokens: state, action, reward, value. One table embeds them, each dimension
with its own rows and all with the stop token that stands for whatever lies behind an episode's end;
each place has an embedding, and each dimension a linear layer that predicts it. The last token of a
transition, its value, is hidden from all attention.

With `positions` rotary, which the paper has not, only the distances between places count. It is
another model: what it makes of a token does not change when others leave the window, so that a
search can keep all that it has computed.

A network that is told a goal has its tokens, with a table and places of their own, before all
others, which may all look at them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from bigdm_ray.models.transformer import Transformer


class TrajectoryTransformer(nn.Module):
    """Tokens `0 ... bins - 1` of each of `choices` dimensions, and `bins`, the stop token; `window`
    transitions at most.

    Where `choices` is n > 0 the dimension has n tokens only, and the others have probability 0; so
    has the stop token without `stop`. `goal` is the number of tokens of a goal, 0 for a network
    that is told none.
    """

    closed: Tensor
    offsets: Tensor

    def __init__(
        self,
        choices: list[int],
        bins: int,
        window: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float = 0.0,
        stop: bool = True,
        goal: int = 0,
        positions: Literal["learned", "rotary"] = "learned",
    ) -> None:
        super().__init__()
        self.dims, self.bins, self.window, self.goal = len(choices), bins, window, goal
        context = goal + window * self.dims - 1
        place = torch.arange(context) - goal
        hidden = (place >= 0) & (place % self.dims == self.dims - 1)
        self.transformer = Transformer(
            width, layers, heads, context, dropout=dropout, positions=positions, hidden_keys=hidden
        )
        self.embedding = nn.Embedding(bins * self.dims + 1, width)
        self.heads = nn.Parameter(torch.empty(self.dims, bins + 1, width))
        self.goal_embedding = nn.Embedding(bins * goal, width) if goal else None
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.goal_embedding is not None:
            nn.init.normal_(self.goal_embedding.weight, std=0.02)
        nn.init.normal_(self.heads, std=0.02)
        open_ = torch.tensor([n or bins for n in choices])[:, None]
        place = torch.arange(bins + 1)
        self.register_buffer(
            "closed",
            torch.where((place < open_) | (stop & (place == bins)), 0.0, -torch.inf),
            persistent=False,
        )
        self.register_buffer("offsets", bins * torch.arange(self.dims), persistent=False)

    def embed(self, tokens: Tensor, dims: slice | int = slice(None)) -> Tensor:
        """Tokens of these dimensions `[..., d]` (of one, `[...]`) to `[..., d, width]`, without
        their places."""
        rows = torch.where(tokens == self.bins, self.bins * self.dims, tokens + self.offsets[dims])
        out: Tensor = self.embedding(rows)
        return out

    def embed_goal(self, goal: Tensor) -> Tensor:
        """Tokens of goals `[..., goal]` to `[..., goal, width]`, without their places, which are
        the first ones."""
        assert self.goal_embedding is not None
        out: Tensor = self.goal_embedding(goal + self.offsets[: self.goal])
        return out

    def logits(self, hidden: Tensor, dim: int) -> Tensor:
        """What dimension `dim` is predicted to be by the token before it: `[..., width]` to
        `[..., bins + 1]`."""
        return torch.nn.functional.linear(hidden, self.heads[dim], self.closed[dim])

    def forward(self, tokens: Tensor, goal: Tensor | None = None) -> Tensor:
        """Windows of tokens `[n, k, dims]`, with the goals of each `[n, goal]`, to logits
        `[dims, n * k, bins + 1]` of each of them from those before.

        The first token of a window has none before it: its logits mean nothing. All heads are one
        batched multiplication.
        """
        n, k, dims = tokens.shape
        x = self.embed(tokens).flatten(1, 2)[:, :-1]
        seen = self.transformer(x if goal is None else torch.cat([self.embed_goal(goal), x], 1))[
            :, self.goal :
        ]
        before = (
            nn.functional.pad(seen, (0, 0, 1, 0))
            .reshape(n * k, dims, seen.shape[-1])
            .transpose(0, 1)
        )
        return torch.baddbmm(self.closed[:, None], before, self.heads.transpose(1, 2))
