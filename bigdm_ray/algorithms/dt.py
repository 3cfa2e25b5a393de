"""Decision Transformer: actions as the continuation of returns-to-go, states and actions (Chen et al. 2021, arXiv 2106.01345).

A causal transformer reads the last K steps as three tokens each (return-to-go, state, action) and predicts the action at
the state's token. With `stochastic` it is the policy of Online Decision Transformer (Zheng et al. 2022, arXiv 2202.05607): a
squashed Gaussian whose entropy is kept above minus the number of action elements. Online it is UDRL's loop with this network:
episodes are played at a commanded return, stored, and learnt from with the return that they really got.

Deviations. (1) Windows are padded on the right, where causal attention never looks, in place of padding on the left with a mask;
without positions inside the window the two are equal. With them (`positions` window, Atari) the last steps of an episode stand at the first places, where the
official code moves the window back until it is full. (2) Only the state tokens pass the last block, which changes no number.
(3) The entropy of `stochastic` is averaged over real steps only. (4) While acting, the return that is left to ask for never exceeds what the task can pay.
(5) Atari: the head has a bias, rewards are not clipped, and returns-to-go are told in units of the game's target, as the tanh over them is all but flat
from 5 on, where the official code tells sums of clipped rewards as they are.
The code and the paper's table 9 disagree about the warm-up (10,000 steps, 100,000); the default is the code's.

    python -m bigdm_ray.run dt DATASET
    python -m bigdm_ray.run dt DATASET --preset online
    python -m bigdm_ray.run dt hopper --from RUN
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import (
    Algorithm,
    Columns,
    Loss,
    Mode,
    Policy,
    State,
    device_of,
    leaves_of,
    own_flags,
)
from bigdm_ray.algorithms.bc import acted_on, only_task
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.continuous import SquashedHead
from bigdm_ray.models.heads import ActionHead
from bigdm_ray.models.lamb import Lamb
from bigdm_ray.models.networks import Pixels, Standardise, Vector
from bigdm_ray.models.transformer import Activation, Cache, Transformer
from bigdm_ray.replay.store import Retention, Store, Table
from bigdm_ray.replay.windows import View, merge_stack, push_frame
from bigdm_ray.settings import setting

TOKENS = 3
"""Tokens of a step: return-to-go, state, action."""


class Embedding(nn.Module):
    """Leaves of any kind as one vector `[..., width]`: vectors standardised where that is asked for, images convolved."""

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


class DecisionTransformer(nn.Module):
    """The network of section 3: three embeddings, a transformer without positions of its own, a head for the actions."""

    def __init__(self, signature: Signature, settings: Dt) -> None:
        super().__init__()
        width, atari = settings.width, settings.positions == "window"
        self.context = settings.context
        self.scale = 0.0 if settings.critic else settings.return_scale
        self.critic = nn.Linear(width, 1) if settings.critic else None
        self.embed_return = nn.Linear(1, width)
        self.embed_state = Embedding(
            signature.observations, width, True, settings.frame_stack, atari
        )
        self.embed_action = Embedding(signature.actions, width, False, tanh=atari)
        self.bounded = atari
        self.embed_timestep = (
            nn.Embedding(settings.timesteps, width) if settings.positions != "none" else None
        )
        self.place = nn.Parameter(torch.zeros(TOKENS * settings.context, width)) if atari else None
        if atari and self.embed_timestep is not None:  # as the official Atari code begins
            nn.init.zeros_(self.embed_timestep.weight)
            nn.init.normal_(self.embed_action.linear.weight, std=0.02)
        self.norm = nn.Identity() if atari else nn.LayerNorm(width)
        activation: Activation = "gelu" if atari else "relu"
        self.transformer = Transformer(
            width,
            settings.layers,
            settings.heads,
            TOKENS * settings.context,
            activation=activation,
            dropout=settings.dropout,
        )
        self.head: ActionHead | SquashedHead
        if settings.stochastic:
            self.head = SquashedHead(settings.name, width, signature.actions)
            self.log_temperature = nn.Parameter(
                torch.tensor(math.log(settings.initial_temperature))
            )
        else:
            self.head = ActionHead(width, signature.actions, std=0.0, squash=True)

    def returns(self, values: Tensor) -> Tensor:
        """Returns-to-go `[...]` as tokens `[..., width]`."""
        out: Tensor = self.embed_return(values.unsqueeze(-1) * self.scale)
        return torch.tanh(out) if self.bounded else out

    def moment(self, timesteps: Tensor) -> Tensor | None:
        """The embedding `[..., 1, width]` of the steps `[...]`, where every step has one of its own."""
        if self.embed_timestep is None or self.place is not None:
            return None
        out: Tensor = self.embed_timestep(
            timesteps.clamp(max=self.embed_timestep.num_embeddings - 1)
        ).unsqueeze(-2)
        return out

    def stamped(self, tokens: Tensor, moment: Tensor | None) -> Tensor:
        """Tokens `[..., t, width]` of steps whose `moment` this is, normalised."""
        out: Tensor = self.norm(tokens if moment is None else tokens + moment)
        return out

    def placed(self, tokens: Tensor, first: Tensor) -> Tensor:
        """Tokens of whole windows `[n, t, width]` with their place in the window and the window's first step `[n]`, where these are used."""
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
        """Windows `[B, K, ...]` as tokens `[B, 3 K, width]`."""
        tokens = torch.stack(
            [self.returns(returns), self.embed_state(observations), self.embed_action(actions)], 2
        )
        return self.placed(
            self.stamped(tokens, self.moment(timesteps)).flatten(1, 2), timesteps[:, 0]
        )

    def embed(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        returns: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """Windows `[B, K, ...]` to what the transformer makes of the state's token of each step `[B, K, width]`."""
        whole = self.window(observations, actions, returns, timesteps)
        out: Tensor = self.transformer(whole[:, :-1], at=slice(1, None, TOKENS))
        return out

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
        """The return that is to come `[...]` of what `embed` gave, in units of 1 / `return_scale`. For `critic` alone."""
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
        """How much the state's token of each step looks at each step, all its tokens together: `[layers, B, heads, K, K]`."""
        found = self.transformer.attention(self.window(observations, actions, returns, timesteps))
        out: Tensor = found[..., 1::TOKENS, :].unflatten(-1, (-1, TOKENS)).sum(-1)
        return out


class DtPolicy(Policy):
    """Acts on the last K steps, whose tokens it remembers; all of them are read anew at each step."""

    def __init__(
        self, model: DecisionTransformer, stack: int, context: int, greedy: bool, held: bool
    ) -> None:
        """`held`: the desired return stays what it was, for rewards that come at the end only (section 5.6)."""
        self.model = model
        self.device = device_of(model)
        self.context = context
        self.greedy = greedy
        self.held = held
        self.uniforms = model.head.uniforms
        self.width = model.embed_return.out_features
        self._frames = {
            path: leaf for path, leaf in model.embed_state.images.leaves.items() if stack > 1
        }
        self._stack = stack

    def empty(self, n: int) -> State:
        """See Policy. Memory is the tokens of the window (the newest step last), how many steps it holds, and the time."""
        frames = {
            f"frames/{path}": np.zeros((n, self._stack, *leaf.shape), np.uint8)
            for path, leaf in self._frames.items()
        }
        return frames | {
            "tokens": torch.zeros(n, TOKENS * self.context, self.width, device=self.device),
            "count": np.zeros(n, np.int64),
            "time": np.zeros(n, np.int64),
        }

    @torch.inference_mode()
    def act(
        self,
        state: State,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        commands: Columns,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], State]:
        """See Policy."""
        state = state | {
            "time": np.where(first, 0, state["time"] + 1),
            "count": np.where(first, 1, np.minimum(state["count"] + 1, self.context)),
        }
        moment = self.model.moment(self._tensor(state["time"]))
        tokens = torch.stack(
            [
                self.model.returns(self._tensor(commands["desired_return"])),
                self._see(state, observations, first),
            ],
            1,
        )
        embedding = self.read(state, self.model.stamped(tokens, moment))
        actions = self.model.head.act(
            self.model.head(embedding), None if self.greedy else self._tensor(uniforms)
        )
        self.remember(
            state, self.model.stamped(self.model.embed_action(actions)[:, None], moment)[:, 0]
        )
        return {path: value.cpu().numpy() for path, value in actions.items()}, state

    def after(self, commands: Columns, rewards: np.ndarray, max_return: float | None) -> Columns:
        """See Policy."""
        return commands if self.held else super().after(commands, rewards, max_return)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _see(self, state: State, observations: dict[str, np.ndarray], first: np.ndarray) -> Tensor:
        seen = {path: self._tensor(values) for path, values in observations.items()}
        for path in self._frames:
            state[f"frames/{path}"] = push_frame(state[f"frames/{path}"], observations[path], first)
            seen[path] = self._tensor(merge_stack(state[f"frames/{path}"]))
        out: Tensor = self.model.embed_state(seen)
        return out

    def read(self, state: State, tokens: Tensor) -> Tensor:
        """Take in return and state of this step `[n, 2, width]`; what the transformer makes of the state's token `[n, width]`."""
        count = state["count"]
        window = torch.cat(
            [
                state["tokens"][:, TOKENS:],
                tokens,
                tokens.new_zeros(len(tokens), 1, self.width),
            ],
            1,
        )
        state["tokens"] = window
        most = int(count.max())
        held = window[:, window.shape[1] - TOKENS * most : -1]
        if self.model.place is not None:
            return self._read_placed(state, held, most)
        mask = None
        if count.min() < most:
            mask = (
                torch.arange(TOKENS * most - 1, device=self.device)
                >= self._tensor(TOKENS * (most - count))[:, None]
            )
        out: Tensor = self.model.transformer(held, slice(-1, None), mask)[:, 0]
        return out

    def _read_placed(self, state: State, held: Tensor, most: int) -> Tensor:
        """With places in the window, which begin where the row's window begins: the rows go by the number of steps they hold."""
        out = held.new_empty(len(held), held.shape[-1])
        for count in np.unique(state["count"]):
            rows = self._tensor(np.flatnonzero(state["count"] == count))
            first = self._tensor(state["time"])[rows] - int(count) + 1
            whole = self.model.placed(held[rows, TOKENS * (most - int(count)) :], first)
            out[rows] = self.model.transformer(whole, slice(-1, None))[:, 0]
        return out

    def remember(self, state: State, token: Tensor) -> None:
        """Note the action's token `[n, width]` in the memory, which is this step's own."""
        state["tokens"][:, -1] = token


class CachedPolicy(DtPolicy):
    """Keeps the keys and values of the window in place of its tokens, so that a step costs three tokens.

    Equal to DtPolicy until the window slides; from then on tokens remember what has left the window, which training never showed.
    """

    def empty(self, n: int) -> State:
        """See Policy. Memory is a ring of keys and values, the last action's token, how many steps are held, and the time."""
        cache = self.model.transformer.empty(n, TOKENS * self.context)
        state = super().empty(n)
        del state["tokens"]
        return state | {
            "action": torch.zeros(n, self.width, device=self.device),
            "keys": cache.keys.transpose(0, 1).contiguous(),
            "values": cache.values.transpose(0, 1).contiguous(),
        }

    def read(self, state: State, tokens: Tensor) -> Tensor:
        """See DtPolicy. Keys and values of what is new are written into the memory that was given."""
        slots = TOKENS * self.context
        cache = Cache(*(state[name].transpose(0, 1) for name in ("keys", "values")))
        new = torch.cat([state["action"][:, None], tokens], 1)
        time = self._tensor(state["time"])[:, None]
        index = TOKENS * time + torch.arange(
            -1, 2, device=self.device
        )  # which tokens of the episode these are
        newest = index[:, -1:]
        held = (
            newest - (newest - torch.arange(slots, device=self.device)) % slots
        )  # which token of the episode a slot holds
        oldest = TOKENS * (time + 1 - self._tensor(state["count"])[:, None])
        look = (held[:, None, :] <= index[..., None]) & (held >= oldest)[:, None, :]
        look |= (
            held[:, None, :] == index[..., None]
        )  # the token before the first looks at itself alone
        out: Tensor = self.model.transformer.scatter(new, cache, index % slots, look)[:, -1]
        return out

    def remember(self, state: State, token: Tensor) -> None:
        """See DtPolicy."""
        state["action"] = token


@dataclass(frozen=True)
class Dt(Algorithm):
    """Hyperparameters; the defaults are those of the paper's Gym experiments (appendix, table 9) and its code."""

    name: ClassVar[str] = "dt"
    online: ClassVar[bool] = True
    commands: ClassVar[tuple[str, ...]] = ("desired_return",)
    offline_steps: ClassVar[int] = 100_000
    fixed: ClassVar[tuple[str, ...]] = (
        "width", "layers", "heads", "positions", "timesteps", "context", "frame_stack", "stochastic", "critic", "optimizer", "decay_matrices_only"
    )  # fmt: skip
    acting: ClassVar[tuple[str, ...]] = ("acting_context", "cached")

    context: int = setting(20, "steps in a window (K)", low=1, high=100_000)
    acting_context: int = setting(
        0, "steps that the policy looks back on when it acts; 0: as many as in training", low=0
    )
    width: int = setting(128, "width of the transformer", low=1, high=65_536)
    layers: int = setting(3, "blocks of the transformer", low=1, high=1_000)
    heads: int = setting(1, "attention heads", low=1, high=65_536)
    dropout: float = setting(
        0.1,
        "share of activations and attention weights that are dropped in training",
        low=0,
        high=0.9,
    )
    positions: str = setting(
        "timesteps",
        "what tells tokens apart in time: the episode's step, as in Gym; place in the window and its first step, as in Atari; nothing, as in ODT",
        choices=("timesteps", "window", "none"),
    )
    timesteps: int = setting(
        1000,
        "steps of an episode that have an embedding; later ones share the last",
        low=1,
        high=10_000_000,
    )
    frame_stack: int = setting(
        1, "frames of an image observation that make one state", low=1, high=64
    )
    whole_episodes: bool = setting(
        False,
        "windows begin at the first step of an episode, for contexts that hold whole episodes",
    )
    batch_size: int = setting(64, "windows drawn for one learner step", low=1, high=1_000_000)
    optimizer: str = setting("adamw", "AdamW, or LAMB as in ODT", choices=("adamw", "lamb"))
    learning_rate: float = setting(1e-4, "learning rate after the warm-up", above=0, high=1)
    weight_decay: float = setting(1e-4, "weight decay", low=0)
    decay_matrices_only: bool = setting(
        False, "whether weight decay spares biases, norms and embeddings, as in Atari"
    )
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", above=0, high=1)
    max_norm: float = setting(0.25, "norm that gradients are cut down to", above=0)
    warm_up_steps: int = setting(
        10_000, "learner steps over which the learning rate rises to its value", low=0
    )
    cosine_steps: int = setting(
        0,
        "learner step at which a cosine has brought the learning rate down to a tenth; 0 keeps it",
        low=0,
    )
    return_scale: float = setting(
        0.001,
        "fixed factor on returns-to-go; 0 hides them, which is cloning, as in the paper's Atari columns",
        low=0,
    )
    target_return: float | None = setting(
        None, "return that evaluations ask for; default: the best of the data", low=-1e9, high=1e9
    )
    critic: bool = setting(
        False,
        "predict at each state the return that is to come, in place of being told it (section 5.5); the policy is then a clone",
    )
    delayed_reward: bool = setting(
        False,
        "pay all reward at the episode's end: the return-to-go is the whole return, and is held",
    )
    best_fraction: float = setting(
        1.0,
        "only the best episodes by return that hold at most this share of all time steps; at least one",
        above=0,
        high=1,
    )
    stochastic: bool = setting(
        False,
        "squashed Gaussian policy with a bound on its entropy, as in ODT; for continuous actions",
    )
    initial_temperature: float = setting(0.1, "weight of the entropy at the beginning", above=0)
    temperature_rate: float = setting(1e-4, "learning rate of that weight", above=0)
    cached: bool = setting(
        False, "keep keys and values when acting: faster, and exact only until the window slides"
    )
    explore_factor: float = setting(
        2.0, "online: the target return times this is asked for when exploring", above=0, high=1e6
    )
    replay_size: int = setting(1000, "online: episodes kept, the newest", low=1)
    warm_up_episodes: int = setting(
        20,
        "online: episodes of random actions before learning, where the run begins from nothing",
        low=1,
    )
    updates_per_episode: int = setting(300, "online: learner steps owed for an episode", low=1)
    episodes_per_iteration: int = setting(
        1, "online: episodes played between two bouts of learning", low=1
    )

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    @property
    def clip_norm(self) -> float | None:
        """See Algorithm."""
        return self.max_norm

    @property
    def _column(self) -> str:
        return "episode_return" if self.delayed_reward else "returns_to_go"

    def view(self, step: int = 0) -> View:
        """Windows that begin at any step of any episode, each alike, or with whole episodes; what hangs over the end is padding."""
        weight: Literal["length", "whole"] = "whole" if self.whole_episodes else "length"
        return View(
            self.context,
            weight,
            columns=(self._column,),
            best=self.best_fraction,
            stack=self.frame_stack,
        )

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm. Raises UserError for more than one task, and for `stochastic` where actions are not continuous and bounded."""
        if self.acting_context > self.context:
            raise UserError(
                f"--algorithm.acting-context is {self.acting_context}, but at most --algorithm.context, which is {self.context}, is expected"
            )
        if self.width % self.heads:
            raise UserError(
                f"--algorithm.width is {self.width}, but a multiple of --algorithm.heads {self.heads} is expected"
            )
        if self.critic and not self.return_scale:
            raise UserError(
                "--algorithm.critic is true, but --algorithm.return-scale is 0: what it predicts are returns times that; more is expected"
            )
        return DecisionTransformer(only_task(self.name, signatures), self)

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Mean and deviation of the vector observations over all episodes."""
        assert isinstance(model, DecisionTransformer)
        state = model.embed_state
        if state.standardise is not None:
            device = state.standardise.mean.device
            with torch.no_grad():
                parts = (
                    {
                        p: torch.from_numpy(np.array(v)).to(device)
                        for p, v in seen.items()
                        if p in state.vector.leaves
                    }
                    for seen in acted_on(stores)
                )
                state.standardise.fit(state.vector(part) for part in parts)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Squared error (continuous), cross-entropy (discrete), or ODT's constrained likelihood (equations 3 to 5), over real steps."""
        assert isinstance(model, DecisionTransformer)
        seen = leaves_of(batch, "observations")
        actions = leaves_of(batch, "actions")
        embeddings = model.embed(seen, actions, batch[self._column], batch["timesteps"])
        parameters = model.head(embeddings)
        mask = batch["mask"].float()
        weight = mask.sum()
        acting = self._acting_loss(model, parameters, actions, mask, weight)
        if model.critic is None:
            return acting
        missed = (
            (model.criticise(embeddings) - self.return_scale * batch[self._column]) ** 2 * mask
        ).sum()
        return Loss(
            acting.sum + missed, weight, {**acting.metrics, "train/critic_loss": missed.detach()}
        )

    def _acting_loss(
        self,
        model: DecisionTransformer,
        parameters: Tensor,
        actions: dict[str, Tensor],
        mask: Tensor,
        weight: Tensor,
    ) -> Loss:
        if isinstance(model.head, SquashedHead):
            negative = -(model.head.log_prob(parameters, actions) * mask).sum()
            entropy = (model.head.entropy(parameters) * mask).sum()
            temperature = model.log_temperature.exp()
            bound = -float(model.head.acted)
            total = (
                negative
                - temperature.detach() * entropy
                + temperature * (entropy.detach() - bound * weight)
            )
            return Loss(
                total,
                weight,
                {
                    "train/loss": negative.detach(),
                    "train/entropy": entropy.detach(),
                    "train/temperature": temperature.detach() * weight,
                },
            )
        negative = (
            -(model.head.log_prob(parameters, actions) * mask).sum() * model.head.mean_square_factor
        )
        return Loss(negative, weight, {"train/loss": negative.detach()})

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """AdamW or LAMB; the temperature of `stochastic` has an Adam of its own."""
        assert isinstance(model, DecisionTransformer)
        own = [p for name, p in model.named_parameters() if name != "log_temperature"]
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {
            id(model.place),
            id(model.embed_action.linear.weight),
        }
        spared = [p for p in own if self.decay_matrices_only and (p.ndim < 2 or id(p) in tables)]
        known = {id(p) for p in spared}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in own if id(p) not in known]},
            *([{"params": spared, "weight_decay": 0.0}] if spared else []),
        ]
        betas = (0.9, self.adam_beta2)
        main: torch.optim.Optimizer
        if self.optimizer == "lamb":
            main = Lamb(groups, self.learning_rate, betas, self.weight_decay)
        else:
            main = torch.optim.AdamW(
                groups, self.learning_rate, betas, weight_decay=self.weight_decay, fused=True
            )
        found: dict[str, torch.optim.Optimizer] = {self.optimizer: main}
        if self.stochastic:
            found["temperature"] = torch.optim.Adam([model.log_temperature], self.temperature_rate)
        return found

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """A linear rise, then a cosine where one is asked for; the temperature's rate stays."""
        if optimizer == "temperature":
            return 1.0
        if step < self.warm_up_steps:
            return (step + 1) / self.warm_up_steps
        if not self.cosine_steps:
            return 1.0
        share = min(
            1.0, (step - self.warm_up_steps) / max(1, self.cosine_steps - self.warm_up_steps)
        )
        return max(0.1, 0.5 * (1 + math.cos(math.pi * share)))

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`sample` draws from the head (its mean, where it is trained on the squared error), `mean` takes the most likely action."""
        assert isinstance(model, DecisionTransformer)
        if mode == "plan":
            raise UserError("dt has no planner; its modes are sample and mean")
        if self.cached and self.positions == "window":
            raise UserError(
                "--algorithm.cached is true, but with --algorithm.positions window every token changes its place at each step; leave it out"
            )
        kind = CachedPolicy if self.cached else DtPolicy
        return kind(
            model,
            self.frame_stack,
            self.acting_context or self.context,
            mode == "mean",
            self.delayed_reward,
        )

    # --- online

    def retention(self) -> Retention:
        """The newest episodes; those of a dataset count as older, the worst of them as the oldest (ODT, section 4.3)."""
        return Retention("newest", self.replay_size)

    def remark(self, signature: Signature) -> str | None:
        """See Algorithm: the squared error leaves no chance to actions."""
        if self.stochastic or all(leaf.kind == "discrete" for leaf in signature.actions.values()):
            return None
        return (
            "dt plays its mean actions and explores by the returns that it asks for alone; --algorithm.stochastic true, "
            "as in --preset online, is the policy of Online Decision Transformer, which draws them"
        )

    def warm_up(self) -> int:
        """See Algorithm."""
        return self.warm_up_episodes

    def per_iteration(self) -> int:
        """See Algorithm."""
        return self.episodes_per_iteration

    def steps_per_call(self) -> int:
        """See Algorithm."""
        return min(100, self.updates_per_episode)

    def owed(self, env_steps: int, episodes: int) -> int:
        """`updates_per_episode` for each episode that was played."""
        return self.updates_per_episode * episodes

    def _target(self, table: Table) -> float:
        return float(table.returns.max()) if self.target_return is None else self.target_return

    def ask(self, table: Table, rng: np.random.Generator, n: int) -> Columns:
        """More than the target (ODT, section 4.3): `explore_factor` times a positive one, and as far above a negative one."""
        target = self._target(table)
        return {
            "desired_return": np.full(
                n, target + (self.explore_factor - 1) * abs(target), np.float32
            )
        }

    def evaluation_command(self, table: Table) -> dict[str, float]:
        """The target return."""
        return {"desired_return": self._target(table)}

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """Target returns of the paper, and its context for Reacher; `online` is ODT's network and settings for pretraining and fine-tuning."""
        targets = {"hopper": 3600.0, "halfcheetah": 6000.0, "walker2d": 5000.0, "ant": 5000.0}
        odt: dict[str, Any] = {
            "stochastic": True,
            "positions": "none",
            "width": 512,
            "layers": 4,
            "heads": 4,
            "acting_context": 5,
            "optimizer": "lamb",
        }
        odt |= {"batch_size": 256, "weight_decay": 5e-4, "learning_rate": 1e-4}
        rates = {"walker2d": (1e-3, 1e-3), "ant": (1e-4, 1e-4)}
        found = {}
        for task, target in targets.items():
            rate, decay = rates.get(task, (1e-4, 5e-4))
            named = {"target_return": target}
            online = odt | named | {"learning_rate": rate, "weight_decay": decay}
            found[task] = {"default": own_flags(named), "online": own_flags(online) | MEAN}
        atari: dict[str, Any] = {
            "context": 30,
            "layers": 6,
            "heads": 8,
            "positions": "window",
            "frame_stack": 4,
            "batch_size": 128,
        }
        atari |= {
            "learning_rate": 6e-4,
            "adam_beta2": 0.95,
            "weight_decay": 0.1,
            "decay_matrices_only": True,
            "max_norm": 1.0,
            "warm_up_steps": 3,
            "cosine_steps": 23_437,
        }
        atari |= {"timesteps": 27_000}
        games = {
            "breakout": 90.0,
            "qbert": 2500.0,
            "pong": 20.0,
            "seaquest": 1450.0,
        }  # their points, which are the unit of returns
        for game, target in games.items():
            more = (
                {"context": 50, "batch_size": 512, "warm_up_steps": 1, "cosine_steps": 5_859}
                if game == "pong"
                else {}
            )
            found[game] = found[f"{game}-sticky"] = {
                "default": own_flags(
                    atari | more | {"target_return": target, "return_scale": 1 / target}
                )
            }
        door = {
            "context": 120,
            "timesteps": 120,
            "return_scale": 1.0,
            "target_return": 1.0,
            "whole_episodes": True,
        }
        found["key-to-door"] = {"default": own_flags(door)}
        arm = {"context": 5, "return_scale": 0.1}  # gymnasium's, whose returns are negative tens
        found["reacher"] = {
            "default": own_flags(arm),
            "online": own_flags(odt | arm | {"acting_context": 5}) | MEAN,
        }
        found["*"] = {"online": own_flags(odt) | MEAN}
        return found


MEAN = {"evaluations.mode": "mean"}
"""ODT explores with sampled actions and is scored with the mean."""


ALGORITHM = Dt
