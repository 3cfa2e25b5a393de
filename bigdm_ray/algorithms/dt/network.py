"""The network of the Decision Transformer (Chen et al. 2021, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from bigdm_ray.algorithms.dt.settings import DtSettings
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.models.continuous import SquashedHead
from bigdm_ray.models.heads import ActionHead
from bigdm_ray.models.networks import Pixels, Standardise, Vector
from bigdm_ray.models.transformer import Activation, Transformer


class Embedding(nn.Module):
    """Leaves of any kind as one vector `[..., width]`: vectors standardised where that is asked
    for, images convolved.
    """

    def __init__(
        self,
        leaves: dict[str, Leaf],
        width: int,
        standardised: bool,
        stack: int = 1,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        self.vector = Vector(leaves)
        self.standardise = (
            Standardise(self.vector.width) if standardised and self.vector.width else None
        )
        self.images = Pixels(leaves, stack)
        self.linear = nn.Linear(self.vector.width + self.images.width, width)
        self.tanh = tanh

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., *shape]` to `[..., width]`."""
        parts = []
        if self.vector.width:
            vector = self.vector(values)
            parts.append(vector if self.standardise is None else self.standardise(vector))
        if self.images.width:
            parts.append(self.images(values))
        out: Tensor = self.linear(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
        return torch.tanh(out) if self.tanh else out


class Modulation(nn.Module):
    """What the newest return-to-go makes of the transformer's output: adaptive layer norm, which
    begins as the identity (Wang et al. 2026, arXiv 2601.15953, whose network knows no other
    return)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, width)
        self.out = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, embeddings: Tensor, returns: Tensor) -> Tensor:
        """Outputs `[..., width]` and scaled returns-to-go `[...]` to `[..., width]`."""
        scale, shift = self.out(silu(self.hidden(returns.unsqueeze(-1)))).chunk(2, -1)
        out: Tensor = embeddings * (1 + scale) + shift
        return out


class DecisionTransformer(nn.Module):
    """The network of section 3: three embeddings, a transformer without positions of its own, a
    head for the actions. With `returns` newest a step has two tokens, see Modulation.
    """

    def __init__(self, signature: Signature, settings: DtSettings) -> None:
        super().__init__()
        width, atari = settings.width, settings.positions == "window"
        self.context = settings.context
        self.scale = 0.0 if settings.critic else settings.return_scale
        self.critic = nn.Linear(width, 1) if settings.critic else None
        self.tokens = 3 if settings.returns == "each" else 2  # of a step: return, state, action
        self.width = width
        self.embed_return = nn.Linear(1, width) if settings.returns == "each" else None
        self.modulation = Modulation(width) if settings.returns == "newest" else None
        self.embed_state = Embedding(
            signature.observations, width, True, settings.frame_stack, atari
        )
        self.embed_action = Embedding(signature.actions, width, False, tanh=atari)
        self.bounded = atari
        self.embed_timestep = (
            nn.Embedding(settings.timesteps, width) if settings.positions != "none" else None
        )
        self.place = (
            nn.Parameter(torch.zeros(self.tokens * settings.context, width)) if atari else None
        )
        if atari and self.embed_timestep is not None:  # as the official Atari code begins
            nn.init.zeros_(self.embed_timestep.weight)
            nn.init.normal_(self.embed_action.linear.weight, std=0.02)
        self.norm = nn.Identity() if atari else nn.LayerNorm(width)
        activation: Activation = "gelu" if atari else "relu"
        self.transformer = Transformer(
            width,
            settings.layers,
            settings.heads,
            self.tokens * settings.context,
            activation=activation,
            dropout=settings.dropout,
        )
        self.head: ActionHead | SquashedHead
        if settings.stochastic:
            self.head = SquashedHead("dt", width, signature.actions)
            self.log_temperature = nn.Parameter(
                torch.tensor(math.log(settings.initial_temperature))
            )
        else:
            self.head = ActionHead(width, signature.actions, std=0.0, squash=True)

    def seen_tokens(self, returns: Tensor, states: Tensor) -> list[Tensor]:
        """What a step begins with: tokens `[..., width]` of returns-to-go `[...]`, where each has
        one, and of embedded states `[..., width]`."""
        if self.embed_return is None:
            return [states]
        told: Tensor = self.embed_return(returns.unsqueeze(-1) * self.scale)
        return [torch.tanh(told) if self.bounded else told, states]

    def modulate(self, embeddings: Tensor, returns: Tensor) -> Tensor:
        """What the transformer makes of states `[..., width]`, told the returns-to-go `[...]`, if
        no token has told them."""
        if self.modulation is None:
            return embeddings
        out: Tensor = self.modulation(embeddings, returns * self.scale)
        return out

    def moment(self, timesteps: Tensor) -> Tensor | None:
        """The embedding `[..., 1, width]` of the steps `[...]`, where every step has one of its
        own.
        """
        if self.embed_timestep is None or self.place is not None:
            return None
        out: Tensor = self.embed_timestep(
            timesteps.clamp(max=self.embed_timestep.num_embeddings - 1)
        ).unsqueeze(-2)
        return out

    def add_time(self, tokens: Tensor, moment: Tensor | None) -> Tensor:
        """Tokens `[..., t, width]` of steps whose `moment` this is, normalised."""
        out: Tensor = self.norm(tokens if moment is None else tokens + moment)
        return out

    def add_positions(self, tokens: Tensor, first: Tensor) -> Tensor:
        """Tokens of whole windows `[n, t, width]` with their place in the window and the window's
        first step `[n]`, where these are used.
        """
        if self.place is None or self.embed_timestep is None:
            return tokens
        steps = self.embed_timestep(first.clamp(max=self.embed_timestep.num_embeddings - 1))
        out: Tensor = tokens + self.place[: tokens.shape[1]] + steps[:, None]
        return out

    def window(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        returns: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """Windows `[B, K, ...]` as tokens `[B, 3 K, width]`, or `[B, 2 K, width]`."""
        seen = self.seen_tokens(returns, self.embed_state(observations))
        tokens = torch.stack([*seen, self.embed_action(actions)], 2)
        return self.add_positions(
            self.add_time(tokens, self.moment(timesteps)).flatten(1, 2), timesteps[:, 0]
        )

    def embed(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        returns: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """Windows `[B, K, ...]` to what the transformer makes of the state's token of each step
        `[B, K, width]`, told the step's return-to-go.
        """
        whole = self.window(observations, actions, returns, timesteps)
        states = slice(self.tokens - 2, None, self.tokens)
        return self.modulate(self.transformer(whole[:, :-1], at=states), returns)

    def forward(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        returns: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """Windows `[B, K, ...]` to the parameters of the action head at each step `[B, K, P]`."""
        out: Tensor = self.head(self.embed(observations, actions, returns, timesteps))
        return out

    def criticise(self, embeddings: Tensor) -> Tensor:
        """The return that is to come `[...]` of what `embed` gave, in units of 1 / `return_scale`.

        For `critic` alone.
        """
        assert self.critic is not None
        out: Tensor = self.critic(embeddings).squeeze(-1)
        return out

    def attention(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        returns: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """How much the state's token of each step looks at each step, all its tokens together.

        `[layers, B, heads, K, K]`.
        """
        found = self.transformer.attention(self.window(observations, actions, returns, timesteps))
        states = found[..., self.tokens - 2 :: self.tokens, :]
        out: Tensor = states.unflatten(-1, (-1, self.tokens)).sum(-1)
        return out
