"""Upside-Down RL: supervised learning of actions from commands (Srivastava et al. 2019, arXiv
1912.02877).

A behaviour function B(s, d_r, d_h) is trained to repeat what the stored episodes did, given the
return that they went on to receive and the steps that they went on to take; it acts on commands
that ask for slightly more than the best of them got. Algorithm 1 is the loop, Algorithm 2 is
`Policy.after`; section numbers stand at what they explain.

Deviations. (1) The horizon is T - t, 1 at the last step, so that every step is trained on (the
paper's t2 - t1 leaves the last out). (2) The nonlinearity of the observation layer, not stated in
the paper, is ReLU. (3) `length_cost` takes a cost off an episode's return for each step beyond
`length_allowance` where episodes are ranked; 0 is the paper. LunarLander pays for hovering on
shaped reward, and a replay of the best returns fills with episodes of 900 steps from which no
command to land can be learned. A cost of every step would reward quick crashes; beyond 120 steps it
takes away what hovering earns and leaves landings. (4) `peers_weight` adds to the return by which
an episode is ranked the mean return of the episodes that the same weights played along with it; 0
is the paper. The best returns of a whole run are lucky ones, of risky ways to act that mostly fail
(falling fast, firing engines on the ground), and whoever clones them fails mostly too. With its
peers counted, an episode lives on because the weights that played it succeed. Their mean must be a
sound estimate, hence 100 episodes an iteration where the paper has up to 40. (5) With `hold`, one
of `held_every` exploratory episodes repeats its random numbers from step to step: what pays only if
it is done for 25 steps in a row, as standing still on the ground, or running from one wall to the
other in TakeCover, is never tried by independent draws.
(6) With `standardise`, numbers among the observations are brought to mean 0 and deviation 1 of the
warm-up's episodes: in 0..3400 they drown the command, in 1000..1003 little of them is seen. It is
on in the preset of every task that has none of its own; those that are tuned, and the paper, are
without.

    python -m bigdm_ray.run udrl lunarlander
    python -m bigdm_ray.run udrl lunarlander --preset paper
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bigdm_ray.algorithms.base import (
    Algorithm,
    Columns,
    Mode,
    Policy,
    Presets,
    State,
    device_of,
    own_flags,
)
from bigdm_ray.algorithms.bc import observations_by_network
from bigdm_ray.algorithms.learned import Loss, Supervised, of_tasks, select_leaves
from bigdm_ray.algorithms.online import Online, Persistence
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.heads import ActionHead
from bigdm_ray.models.networks import (
    Images,
    MultiTaskNetwork,
    SharedTrunk,
    Standardise,
    Vector,
    mlp,
    network_for,
    orthogonal,
)
from bigdm_ray.replay.store import Retention, Store, Table
from bigdm_ray.replay.windows import View, merge_stack, push_frame
from bigdm_ray.settings import setting

STILL = 1e-6
"""Deviation of an element that does not change, as a share of its mean (at least 1)."""


class BehaviourFunction(nn.Module):
    """The gated behaviour function of section 3.2.

    The command, scaled by fixed factors, passes one fully connected layer with a sigmoid whose
    output multiplies the embedding of the observation: after the first fully connected layer for
    vectors, after the convolutions for images.
    """

    def __init__(
        self,
        signature: Signature,
        hidden: tuple[int, ...],
        channels: tuple[int, ...],
        stack: int,
        scales: tuple[float, float],
        standardise: bool = False,
        trunk: SharedTrunk | None = None,
    ) -> None:
        """`trunk`, where there is one, takes the place of the layers behind the gate."""
        super().__init__()
        self.vector = Vector(signature.observations)
        width = self.vector.width
        self.standardise = Standardise(width) if standardise and width else None
        self.images = Images(signature.observations, channels, stack)
        first = hidden[0] if self.vector.width else 0
        self.first = nn.Linear(self.vector.width, first) if first else None
        gated = first + self.images.width
        self.command = nn.Linear(2, gated)
        self.trunk = trunk
        if trunk is None:
            self.hidden = mlp([gated, *(hidden[1:] if first else hidden)])
            wide = hidden[-1] if len(hidden) > 1 or not first else gated
        else:
            self.hidden = mlp([gated, trunk.width] if gated != trunk.width else [gated])
            wide = trunk.out
        self.head = ActionHead(wide, signature.actions)
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(scales), persistent=False)
        orthogonal(self)

    def forward(
        self, observations: dict[str, Tensor], desired_return: Tensor, desired_horizon: Tensor
    ) -> Tensor:
        """Observation leaves `[..., *shape]` and commands `[...]` to the action head's parameters
        `[..., P]`."""
        parts = []
        if self.first is not None:
            vector = self.vector(observations)
            if self.standardise is not None:
                vector = self.standardise(vector)
            parts.append(torch.relu(self.first(vector)))
        if self.images.width:
            parts.append(self.images(observations))
        embedding = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        command = torch.stack([desired_return, desired_horizon], -1) * self.scales
        gate = torch.sigmoid(self.command(command))
        rows = self.hidden(embedding * gate)
        out: Tensor = self.head(rows if self.trunk is None else self.trunk(rows))
        return out

    @torch.no_grad()
    def fit(self, parts: Iterable[dict[str, np.ndarray]]) -> None:
        """Take mean and deviation of the numbers among observations by leaf, each `[m, ...]`.

        One-hot choices and texts stay as they are. An element that does not change here keeps its
        deviation of 1: it may change later, and would then be as large as it changed little here.
        """
        if (scale := self.standardise) is None:
            return
        scale.fit(self.vector.rows(parts, scale.mean.device))
        leaves = self.vector.leaves.values()
        other = [np.full(self.vector.width_of(leaf), leaf.kind != "tensor") for leaf in leaves]
        kept = torch.from_numpy(np.concatenate(other)).to(scale.mean.device)
        scale.std.masked_fill_(kept | (scale.std <= STILL * scale.mean.abs().clamp(min=1)), 1.0)
        scale.mean.masked_fill_(kept, 0.0)


class UdrlPolicy(Policy):
    """Acts on the observation (its last `stack` frames, where there are images) and the command of
    the step."""

    def __init__(self, model: BehaviourFunction, stack: int, greedy: bool) -> None:
        self._model = model
        self._device = device_of(model)
        self._stack = stack
        self._greedy = greedy
        self._frames = {path: leaf for path, leaf in model.images.leaves.items() if stack > 1}
        self.uniforms = model.head.uniforms
        shared = () if model.trunk is None else model.trunk.layers
        layers = [model.first, model.command, *model.hidden, *shared, model.head.linear]
        self._weights = [
            (layer.weight, layer.bias) for layer in layers if isinstance(layer, nn.Linear)
        ]

    def empty(self, n: int) -> State:
        """See Policy. Memory is the last frames of each image leaf."""
        return {
            path: np.zeros((n, self._stack, *leaf.shape), np.uint8)
            for path, leaf in self._frames.items()
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
        state = {
            path: push_frame(frames, observations[path], first) for path, frames in state.items()
        }
        seen = {
            path: torch.from_numpy(merge_stack(state[path]) if path in state else v).to(
                self._device
            )
            for path, v in observations.items()
        }
        told = np.stack([commands["desired_return"], commands["desired_horizon"]], -1)
        parameters = self._parameters(seen, torch.from_numpy(told).to(self._device))
        actions = self._model.head.act(
            parameters, None if self._greedy else torch.from_numpy(uniforms).to(self._device)
        )
        return {path: value.cpu().numpy() for path, value in actions.items()}, state

    def _parameters(self, seen: dict[str, Tensor], told: Tensor) -> Tensor:
        """The forward pass, bit for bit, of observations and commands `[n, 2]`: without pictures in
        half of the time, for in a small network modules and new arrays cost more than the
        products."""
        model = self._model
        if model.images.width:
            out: Tensor = model(seen, *told.unbind(-1))
            return out
        vector = model.vector(seen)
        if model.standardise is not None:
            vector = model.standardise(vector)
        first, command, *hidden, head = self._weights
        x = linear(vector, *first).relu_()
        x = x.mul_(linear(told * model.scales, *command).sigmoid_())
        for layer in hidden:
            x = linear(x, *layer).relu_()
        return linear(x, *head)


PAPER: dict[str, Any] = {
    "hidden": (64, 128, 128, 128),
    "batch_size": 768,
    "learning_rate": 3.5e-4,
    "return_scale": 0.025,
    "horizon_scale": 0.01,
}
PAPER |= {
    "last_few": 75,
    "replay_size": 500,
    "warm_up_episodes": 50,
    "n_updates_per_iter": 100,
    "episodes_per_iteration": 20,
}
LANDING: dict[str, Any] = {
    "hidden": (128, 128),
    "batch_size": 512,
    "learning_rate": 1e-3,
    "return_scale": 0.01,
    "horizon_scale": 0.02,
}
LANDING |= {
    "last_few": 50,
    "replay_size": 600,
    "warm_up_episodes": 50,
    "n_updates_per_iter": 200,
    "episodes_per_iteration": 100,
}
LANDING |= {"length_cost": 0.3, "length_allowance": 120, "peers_weight": 5.0, "hold": 0.95}
LOOSE = {"machines.max_staleness": 600}  # learner and rollouts seldom wait for each other
DOOM: dict[str, Any] = {
    "frame_stack": 8,
    "hidden": (128, 128),
    "channels": (32, 48, 96, 128),
    "batch_size": 512,
    "return_scale": 0.1,
}
DOOM |= {
    "horizon_scale": 0.01,
    "replay_size": 300,
    "last_few": 50,
    "n_updates_per_iter": 200,
    "episodes_per_iteration": 40,
}
DOOM |= {"horizon_equals_return": True}
RUNNING = DOOM | {
    "batch_size": 256,
    "n_updates_per_iter": 600,
    "episodes_per_iteration": 100,
    "replay_size": 500,
}
RUNNING |= {"peers_weight": 5.0, "hold": 0.9, "held_every": 1}
# few episodes are kept and asked for, so that commands rise quickly in a short run
UNTUNED: dict[str, Any] = {"standardise": True, "batch_size": 256, "last_few": 10}
UNTUNED |= {"replay_size": 100, "episodes_per_iteration": 10, "n_updates_per_iter": 50}
UNTUNED |= {"hold": 0.9, "held_every": 5}
PRESETS: Presets = {
    "lunarlander": {"default": own_flags(LANDING) | LOOSE, "paper": own_flags(PAPER)},
    "lunarlander-sparse": {"default": own_flags(LANDING), "paper": own_flags(PAPER)},
    "lunarlander-continuous": {"default": own_flags(LANDING)},
    "takecover": {"default": own_flags(RUNNING) | LOOSE, "paper": own_flags(DOOM)},
    "*": {"default": own_flags(UNTUNED)},
}
"""The paper did not publish its winning values: `paper` is its algorithm with values from its
grids, near those that its first author advised for a reimplementation
(TrentBrick/RewardConditionedUDRL)."""


@dataclass(frozen=True)
class Udrl(Supervised, Online):
    """Hyperparameters of Upside-Down RL; the names are those of the paper's appendix B."""

    name: ClassVar[str] = "udrl"
    presets: ClassVar[Presets] = PRESETS
    several: ClassVar[bool] = True
    commands: ClassVar[tuple[str, ...]] = ("desired_return", "desired_horizon")
    fixed: ClassVar[tuple[str, ...]] = (*Algorithm.fixed, "standardise")

    hidden: tuple[int, ...] = setting(
        (64, 128, 128),
        "widths of the fully connected layers; the first embeds vector observations",
        low=1,
        high=65_536,
    )
    channels: tuple[int, ...] = setting(
        (32, 48, 96, 128),
        "channels of the convolutions over image observations",
        low=1,
        high=65_536,
    )
    frame_stack: int = setting(
        1, "frames of an image observation that the policy sees", low=1, high=64
    )
    batch_size: int = setting(768, "steps drawn for one learner step", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "Adam's learning rate", above=0, high=1)
    return_scale: float = setting(0.02, "fixed factor on the desired return", above=0)
    horizon_scale: float = setting(0.01, "fixed factor on the desired horizon", above=0)
    last_few: int = setting(75, "best episodes that exploratory commands are made from", low=1)
    n_updates_per_iter: int = setting(100, "learner steps owed for each iteration", low=1)
    episodes_per_iteration: int = setting(
        20, "episodes played in each iteration (n_episodes_per_iter)", low=1
    )
    warm_up_episodes: int = setting(
        50, "episodes of random actions before learning (n_warm_up_episodes)", low=1
    )
    replay_size: int = setting(500, "episodes kept, the best by return", low=1)
    length_cost: float = setting(
        0.0, "return that a step costs when episodes are ranked; 0 is the paper's rule", low=0
    )
    length_allowance: int = setting(0, "steps of an episode that cost nothing", low=0)
    peers_weight: float = setting(
        0.0,
        "weight of the mean return of an episode's peers where episodes are ranked; 0 is the"
        " paper's rule",
        low=0,
    )
    hold: float = setting(
        0.0,
        "probability that a step of a persistent episode repeats the one before's chance; 0 is the"
        " paper's rule",
        low=0,
        high=1,
    )
    held_every: int = setting(
        4,
        "one of so many episodes of an iteration is persistent, where --algorithm.hold is above 0",
        low=1,
    )
    standardise: bool = setting(
        False,
        "whether numbers that are observed are brought to mean 0 and deviation 1 of the warm-up's "
        "episodes, or the dataset's",
    )
    horizon_equals_return: bool = setting(
        False, "ask for as many steps as return, for tasks that pay 1 a step (TakeCover)"
    )

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    def view(self, step: int = 0) -> View:
        """Trailing segments: an episode uniformly, then a step uniformly; t2 is always the last
        step (section 2.3.3)."""
        return View(columns=("returns_to_go", "steps_remaining"), stack=self.frame_stack)

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Several tasks share what is behind the gate; commands of each pass a layer of its own.
        """

        def network(signature: Signature, trunk: SharedTrunk | None = None) -> BehaviourFunction:
            return BehaviourFunction(
                signature,
                self.hidden,
                self.channels,
                self.frame_stack,
                (self.return_scale, self.horizon_scale),
                self.standardise,
                trunk,
            )

        if len(signatures) == 1:
            return network(next(iter(signatures.values())))
        return MultiTaskNetwork(signatures, SharedTrunk([*self.hidden]), network)

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Mean and deviation of what was observed before the first learner step, if asked for."""
        for part, seen in observations_by_network(model, stores):
            assert isinstance(part, BehaviourFunction)
            part.fit(seen)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam, as in appendix B."""
        return {"adam": torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Negative log-likelihood of the stored actions under the commands that they fulfilled
        (equation 1)."""
        if isinstance(model, MultiTaskNetwork):
            return of_tasks(model, batch, lambda part, own: self.loss(part, own, step))
        assert isinstance(model, BehaviourFunction)
        # windows of one step: [B, 1, ...] to [B, ...]
        steps = {name: value.flatten(0, 1) for name, value in batch.items()}
        seen = select_leaves(steps, "observations")
        actions = select_leaves(steps, "actions")
        parameters = model(seen, steps["returns_to_go"], steps["steps_remaining"])
        mask = steps["mask"].float()
        negative = -(model.head.log_prob(parameters, actions) * mask).sum()
        return Loss(negative, mask.sum(), {"train/loss": negative.detach()})

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`sample` is the paper's; `mean` takes the most likely action."""
        if mode == "plan":
            raise UserError("udrl has no planner; its modes are sample and mean")
        model = network_for(model, signature)
        assert isinstance(model, BehaviourFunction)
        return UdrlPolicy(model, self.frame_stack, greedy=mode == "mean")

    def retention(self) -> Retention:
        """A fixed number of whole episodes, the highest returns (section 2.3.1)."""
        return Retention(
            "best",
            self.replay_size,
            self.length_cost,
            self.length_allowance,
            merit_weight=self.peers_weight,
        )

    def warm_up(self) -> int:
        """See Algorithm."""
        return self.warm_up_episodes

    def per_iteration(self) -> int:
        """See Algorithm."""
        return self.episodes_per_iteration

    def persistence(self) -> Persistence:
        """See Algorithm."""
        return Persistence(self.hold, self.held_every)

    def steps_per_call(self) -> int:
        """An iteration's worth."""
        return self.n_updates_per_iter

    def owed(self, env_steps: int, episodes: int) -> int:
        """n_updates_per_iter after the warm-up and after each iteration (Algorithm 1)."""
        if episodes < self.warm_up_episodes:
            return 0
        return self.n_updates_per_iter * (
            1 + (episodes - self.warm_up_episodes) // self.episodes_per_iteration
        )

    def _best(self, table: Table) -> Table:
        return table.take(table.rank(self.retention(), self.last_few))

    def ask(self, table: Table, rng: np.random.Generator, n: int) -> Columns:
        """Exploratory commands from the last_few best: mean horizon, return in U[M, M + S] (section
        2.3.4)."""
        best = self._best(table)
        mean, spread = float(best.returns.mean()), float(best.returns.std())
        desired = rng.uniform(mean, mean + spread, n).astype(np.float32)
        return {"desired_return": desired, "desired_horizon": self._horizon(desired, best)}

    def complete_command(self, asked: Mapping[str, float]) -> dict[str, float]:
        """See Algorithm: a horizon may follow from the return (`horizon_equals_return`)."""
        made = dict(asked)
        if (
            self.horizon_equals_return
            and "desired_return" in asked
            and "desired_horizon" not in asked
        ):
            made["desired_horizon"] = max(1.0, float(round(asked["desired_return"])))
        return made

    def evaluation_command(self, table: Table) -> dict[str, float]:
        """The lower end M of the exploratory range, with the same horizon (section 2.3.6)."""
        best = self._best(table)
        desired = np.array([best.returns.mean()], np.float32)
        return {
            "desired_return": float(desired[0]),
            "desired_horizon": float(self._horizon(desired, best)[0]),
        }

    def _horizon(self, desired: np.ndarray, best: Table) -> np.ndarray:
        if self.horizon_equals_return:
            horizon: np.ndarray = np.maximum(np.rint(desired), 1).astype(np.float32)
            return horizon
        return np.full(len(desired), best.lengths.mean(), np.float32)


ALGORITHM = Udrl
