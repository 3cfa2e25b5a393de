"""The Decision Transformer as the original repository stores and computes it: a peer for tests,
with the names of its state dict.

GPT-2's layers without its table of positions, matrices stored as inputs x outputs, causal masks
stored as buffers, and what must not be attended to pushed down by 10,000 in place of removed.
"""

from types import SimpleNamespace

import torch
from torch import nn


class Transposed(nn.Module):
    """A linear layer whose matrix is inputs x outputs."""

    def __init__(self, given, made):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.empty(given, made)),
            nn.Parameter(torch.empty(made)),
        )

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal attention; `hidden` (windows, 1, 1, tokens) is added to its scores."""

    def __init__(self, width, heads, places):
        super().__init__()
        self.heads = heads
        self.register_buffer(
            "bias", torch.ones(places, places, dtype=torch.uint8).tril().view(1, 1, places, places)
        )
        self.register_buffer("masked_bias", torch.tensor(-1e4))
        self.c_attn, self.c_proj = Transposed(width, 3 * width), Transposed(width, width)

    def forward(self, x, hidden):
        n, t, width = x.shape
        queries, keys, values = (
            part.view(n, t, self.heads, -1).transpose(1, 2)
            for part in self.c_attn(x).split(width, 2)
        )
        scores = queries @ keys.transpose(2, 3) / (width // self.heads) ** 0.5
        weights = (
            torch.where(self.bias[:, :, :t, :t].bool(), scores, self.masked_bias) + hidden
        ).softmax(-1)
        return self.c_proj((weights @ values).transpose(1, 2).reshape(n, t, width))


class Layer(nn.Module):
    """Attention and a feed-forward layer, pre-norm."""

    def __init__(self, width, heads, places):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, places)
        self.mlp = nn.ModuleDict(
            {"c_fc": Transposed(width, 4 * width), "c_proj": Transposed(4 * width, width)}
        )

    def forward(self, x, hidden):
        x = x + self.attn(self.ln_1(x), hidden)
        return x + self.mlp["c_proj"](self.mlp["c_fc"](self.ln_2(x)).relu())


class PlainDecisionTransformer(nn.Module):
    """Windows of return-to-go, state and action; the action is read off the state's token.

    Its weights are drawn at random.
    """

    def __init__(self, seen, acted, width=32, layers=2, heads=2, timesteps=50, places=64):
        super().__init__()
        body = {
            "wte": nn.Embedding(1, width),
            "h": nn.ModuleList(Layer(width, heads, places) for _ in range(layers)),
            "ln_f": nn.LayerNorm(width),
        }
        self.transformer = nn.ModuleDict(body)
        self.embed_timestep = nn.Embedding(timesteps, width)
        self.embed_return, self.embed_state, self.embed_action = (
            nn.Linear(size, width) for size in (1, seen, acted)
        )
        self.embed_ln = nn.LayerNorm(width)
        self.predict_state, self.predict_return = nn.Linear(width, seen), nn.Linear(width, 1)
        self.predict_action = nn.Sequential(nn.Linear(width, acted), nn.Tanh())
        for values in self.parameters():
            nn.init.normal_(values, std=0.3)

    def forward(self, states, actions, rewards, returns_to_go, timesteps, attention_mask):
        times = self.embed_timestep(timesteps)
        tokens = [
            self.embed_return(returns_to_go) + times,
            self.embed_state(states) + times,
            self.embed_action(actions) + times,
        ]
        x = self.embed_ln(torch.stack(tokens, 2).flatten(1, 2))
        hidden = (1.0 - attention_mask.repeat_interleave(3, 1)[:, None, None].float()) * -1e4
        for layer in self.transformer["h"]:
            x = layer(x, hidden)
        return SimpleNamespace(
            action_preds=self.predict_action(self.transformer["ln_f"](x)[:, 1::3])
        )
