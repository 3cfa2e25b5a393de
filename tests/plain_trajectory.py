"""The Trajectory Transformer as its authors wrote it down, without a thought for speed: a peer for
tests and benchmarks.

All heads at all places, attention as an explicit softmax over a mask, and the names of the original
repository's state dict. With `fork` the names and the layout of the cached fork: PyTorch's
attention, no stop token, one place more.
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy


class Attention(nn.Module):
    """Causal attention whose mask also hides the value of every transition."""

    def __init__(self, width, heads, places, dims, dropout):
        super().__init__()
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.weights_dropout, self.dropout = (
            heads,
            nn.Dropout(dropout),
            nn.Dropout(dropout),
        )
        mask = torch.ones(places, places).tril()
        mask[:, dims - 1 :: dims] = 0
        self.register_buffer("mask", mask.view(1, 1, places, places))

    def forward(self, x):
        n, t, width = x.shape
        queries, keys, values = (
            layer(x).view(n, t, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(width // self.heads)
        weights = self.weights_dropout(
            scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf")).softmax(-1)
        )
        return self.dropout(self.proj((weights @ values).transpose(1, 2).reshape(n, t, width)))


class Layer(nn.Module):
    """Attention and a feed-forward layer, pre-norm."""

    def __init__(self, width, heads, places, dims, dropout, fork):
        super().__init__()
        self.fork = fork
        mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        if fork:
            self.norm1, self.norm2, self.attention, self.mlp = (
                nn.LayerNorm(width),
                nn.LayerNorm(width),
                nn.MultiheadAttention(width, heads, batch_first=True),
                mlp,
            )
            hidden = ~torch.ones(places, places).tril().bool()
            hidden[:, dims - 1 :: dims] = True
            self.register_buffer("attn_mask", hidden)
        else:
            self.ln1, self.ln2, self.attn, self.mlp = (
                nn.LayerNorm(width),
                nn.LayerNorm(width),
                Attention(width, heads, places, dims, dropout),
                mlp,
            )

    def forward(self, x):
        if not self.fork:
            x = x + self.attn(self.ln1(x))
            return x + self.mlp(self.ln2(x))
        normed, t = self.norm1(x), x.shape[1]
        x = (
            x
            + self.attention(
                normed, normed, normed, attn_mask=self.attn_mask[:t, :t], need_weights=False
            )[0]
        )
        return x + self.mlp(self.norm2(x))


class Heads(nn.Module):
    """One linear layer without bias for each place of a transition."""

    def __init__(self, dims, classes, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dims, classes, width) * 0.02)


class PlainTrajectory(nn.Module):
    """Windows `[n, t]` of tokens to logits `[n, t, classes]` of what follows each."""

    def __init__(
        self,
        seen,
        acted,
        bins=100,
        window=10,
        width=128,
        layers=4,
        heads=4,
        dropout=0.1,
        fork=False,
    ):
        super().__init__()
        self.seen, self.acted, self.dims, self.bins, self.fork = (
            seen,
            acted,
            seen + acted + 2,
            bins,
            fork,
        )
        places = window * self.dims - (not fork)
        self.tok_emb = nn.Embedding(bins * self.dims + (not fork), width)
        self.pos_emb = nn.Parameter(torch.zeros(1, places, width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Layer(width, heads, places, self.dims, dropout, fork) for _ in range(layers))
        )
        setattr(self, "norm" if fork else "ln_f", nn.LayerNorm(width))
        self.head = Heads(self.dims, bins + (not fork), width)

    def forward(self, tokens):
        n, t = tokens.shape
        transitions = math.ceil(t / self.dims)
        rows = tokens + (torch.arange(self.dims) * self.bins).repeat(transitions)[:t]
        rows[tokens == self.bins] = self.bins * self.dims
        x = self.blocks(self.drop(self.tok_emb(rows) + self.pos_emb[:, :t]))
        x = (self.norm if self.fork else self.ln_f)(x)
        whole = torch.cat([x, x.new_zeros(n, transitions * self.dims - t, x.shape[-1])], 1).view(
            n * transitions, self.dims, -1
        )
        return torch.einsum("doi,bdi->bdo", self.head.weight, whole).reshape(
            n, transitions * self.dims, -1
        )[:, :t]

    def loss(self, tokens, targets, mask, action=5.0, reward=1.0, value=1.0):
        """The weighted cross-entropy of windows `[n, t]`, a mean over all places."""
        nats = cross_entropy(self(tokens).flatten(0, 1), targets.flatten(), reduction="none")
        weights = torch.tensor([1.0] * self.seen + [action] * self.acted + [reward, value])
        weights = weights.repeat(math.ceil(tokens.shape[1] / self.dims))[1:].repeat(len(tokens), 1)
        return (nats * weights.flatten() * mask.flatten()).mean()
