"""Trajectory Transformer: a sequence model of whole trajectories that plans by beam search (Janner, Li, Levine 2021, arXiv 2106.02039).

States, actions, rewards and rewards-to-go become tokens, bins of each dimension, and a transformer learns what follows what. To act,
mode `plan` searches the model for the continuation with the highest rewards and reward-to-go (`--algorithm.objective reward`), or
for the most likely one (`likelihood`: imitation), or draws some and takes the one that is soonest at its goal (`goal`). `sample` and `mean` take
the next action's tokens from the model without a search.

With `--algorithm.goal` the model is told, before everything else, a state that the episode reaches (section 4.2): in training, by hindsight, its last one or
a later one, so that data that were after nothing will do; when it acts, the observation's leaf `goal`, which is not a part of the state then.

The defaults are the paper's table for planning; presets are the settings of the official repository (jannerm/trajectory-transformer),
which filter actions otherwise: `cdf_act`. Its training is the default: AdamW, decay on linear weights alone, gradients clipped at 1, a
warm-up over one epoch of the dataset, then a cosine to a tenth at its epoch 20, both in learner steps that are computed from the dataset's size
when the run is made. There the cosine is not capped, so that the official learning rate climbs again and, with a million windows, is back at its
height at epoch 39 of 50; here it stays at a tenth.

The planner, too, is the official one (`planning/beam.py`): the model sees `context` - 1 whole transitions and the one being written. With
`--algorithm.positions rotary`, which the paper has not, only distances between tokens count: another model, whose plans keep all that they have computed and
see all that they have written, so that a `window` of `context` - 1 + `horizon` transitions shows it in training every distance that it meets.

Deviations. (1) Windows begin at the last step too. (2) The loss is divided by the real transitions, not by all positions. (3) Behind the end the stop token is
learned where the episode terminated; the official mask goes by the number of the step. (4) The first action of a plan cannot be the stop
token. (5) A value that much of the data shares has a bin of its own (`tokens/bins.py`). (6) Pictures are averaged over
`cells` x `cells` fields and texts cut to `letters` bytes, for tasks that the paper has not.

    python -m bigdm_ray.run tt DATASET
    python -m bigdm_ray.run tt DATASET --evaluations.mode mean --algorithm.layers 2 --algorithm.batch-size 32 --budget.learner-steps 5000 \\
        --algorithm.warm-up-steps 200 --algorithm.decay-steps 4800
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bigdm_ray.algorithms.base import (
    Algorithm,
    Columns,
    Loss,
    Mode,
    Policy,
    State,
    leaves_of,
    own_flags,
)
from bigdm_ray.algorithms.bc import only_task
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.trajectory import TrajectoryTransformer
from bigdm_ray.planning.beam import Fan, Planner, Search
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.returns import discounted, episode_groups
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting
from bigdm_ray.tokens.bins import Bins, Elements

REFERENCE_WINDOWS = 1_000_000
"""Windows of an epoch by which the official budgets are counted: 50 epochs of so many, whatever the dataset's own number."""

NEVER = 1_000_000_000
"""An `--evaluations.every` that no run comes to: it is scored at its end alone."""

GOAL = "goal"
"""The leaf of observations that says which state is asked for."""


class TrajectoryModel(nn.Module):
    """The transformer, the bins of its tokens, and the leaves that they are made of."""

    def __init__(self, signature: Signature, settings: Tt) -> None:
        super().__init__()
        state = {
            path: leaf
            for path, leaf in signature.observations.items()
            if not (settings.goal != "none" and path == GOAL)
        }
        if settings.observed > (
            elements := Elements(state, settings.cells, settings.letters).width
        ):
            raise UserError(
                f"--algorithm.observed is {settings.observed}, but an observation has {elements} elements; give at most as many, or 0 for all"
            )
        self.seen = Elements(state, settings.cells, settings.letters, settings.observed)
        self.asked = (
            Elements(
                {GOAL: signature.observations[GOAL]},
                settings.cells,
                settings.letters,
                settings.observed,
            )
            if len(state) < len(signature.observations)
            else None
        )
        self.acted = Elements(signature.actions)
        choices = [*self.seen.choices, *self.acted.choices, 0, 0]
        self.bins = Bins(choices, settings.bins)
        size = (settings.bins, settings.window, settings.width, settings.layers, settings.heads)
        goal = self.seen.width if self.asked is not None else 0
        self.net = TrajectoryTransformer(
            choices,
            *size,
            settings.dropout,
            settings.stop,
            goal,
            "rotary" if settings.positions == "rotary" else "learned",
        )

    def rows(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        rewards: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Transitions as numbers `[..., dims]`: state, action, reward, value."""
        return torch.cat(
            [
                self.seen.rows(observations),
                self.acted.rows(actions),
                rewards.unsqueeze(-1),
                values.unsqueeze(-1),
            ],
            -1,
        )

    def states(self, observations: dict[str, Tensor]) -> Tensor:
        """Observations as tokens of the state `[..., seen]`."""
        return self.bins.encode(self.seen.rows(observations), slice(0, self.seen.width))

    def goals(self, observations: dict[str, Tensor]) -> Tensor | None:
        """What observations ask for, as tokens of a state `[..., seen]`; None for a model that is told no goal."""
        return (
            None
            if self.asked is None
            else self.bins.encode(self.asked.rows(observations), slice(0, self.seen.width))
        )


def values_to_go(store: Store, discount: float, penalty: float | None) -> np.ndarray:
    """V of each living step, the discounted rewards after it (its own left out): `[steps]` float32.

    `penalty`, where given, is the reward of steps at which an episode terminated. Nothing is added behind an episode's end.
    """
    parts = []
    for group in episode_groups(store):
        ends = np.cumsum(group.lengths) - 1
        rewards = group.rewards.copy()
        if penalty is not None:
            rewards[ends[group.terminated]] = penalty
        after = np.append(discounted(rewards, group.lengths, discount)[1:], np.float32(0))
        after[ends] = 0
        parts.append(after)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Beams:
    """All beams of a row's plan as numbers: their states `[beams, H, seen]`, from the current one on, and scores `[beams]`, the best first.

    Elements are NaN where a beam has stopped, and behind the first predicted state that is at the goal, where the goal was searched for.
    """

    states: np.ndarray
    scores: np.ndarray


def beams_of(model: TrajectoryModel, fan: Fan, sought: Tensor | None = None) -> list[Beams]:
    """The beams of each row of a search; `sought [n, seen]` are the goals of one that was after them, which scored no state behind them."""
    seen = model.seen.width
    tokens = fan.tokens[..., :seen]
    shown = tokens < model.bins.count
    if sought is not None:
        there = (tokens[:, :, 1:] == sought[:, None, None]).all(-1).long().cumsum(2)
        shown[:, :, 2:] &= (there[:, :, :-1] == 0).unsqueeze(-1)
    states = torch.where(shown, model.bins.decode(tokens, slice(0, seen)), torch.nan).cpu().numpy()
    return [Beams(*row) for row in zip(states, fan.score.cpu().numpy(), strict=True)]


class TtPolicy(Policy):
    """Remembers the last transitions as tokens; the reward of the last one comes with the next call.

    `watch`, where it is set, is called with the beams of each row that is planned for.
    """

    watch: Callable[[Beams], None] | None = None

    def __init__(self, model: TrajectoryModel, settings: Tt, mode: Mode) -> None:
        self._model, self._mode, self._objective = model, mode, settings.objective
        self._planner = Planner(
            model.net, model.bins, model.seen.width, model.acted.width, settings.search
        )
        self._kept = settings.context - 1
        self.uniforms = 2 if mode == "plan" else model.acted.width

    def empty(self, n: int) -> State:
        """See Policy. Memory is the tokens of past transitions, and how many of them there are."""
        shape = n, self._kept, self._model.net.dims
        device = self._model.bins.edges.device
        return {
            "past": torch.zeros(shape, dtype=torch.int16, device=device),
            "held": np.zeros(n, np.int64),
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
        """See Policy. Rows are planned in one batch; those whose episodes are younger than the context in batches of their age."""
        model, bins = self._model, self._model.bins
        device, seen, dims = bins.edges.device, model.seen.width, model.net.dims
        held = np.where(first, 0, state["held"])
        past = state["past"].long()
        past[:, -1, dims - 2] = bins.encode(
            torch.from_numpy(rewards)[:, None].to(device), slice(dims - 2, dims - 1)
        )[:, 0]
        now = {path: torch.from_numpy(v).to(device) for path, v in observations.items()}
        tokens, goal = model.states(now), model.goals(now)
        chosen = tokens.new_empty(len(tokens), model.acted.width)
        for age in np.unique(held).tolist():
            rows = np.flatnonzero(held == age)
            chosen[rows] = self._choose(
                past[rows, self._kept - age :],
                tokens[rows],
                uniforms[rows],
                None if goal is None else goal[rows],
            )
        numbers = bins.decode(chosen, slice(seen, dims - 2))
        transition = torch.cat(
            [
                tokens,
                chosen,
                torch.zeros_like(tokens[:, :1]),
                torch.full_like(tokens[:, :1], bins.count - 1),
            ],
            1,
        )
        past = torch.cat([past[:, 1:], transition[:, None]], 1)
        memory = {"past": past.short(), "held": np.minimum(held + 1, self._kept)}
        return {
            path: values.cpu().numpy() for path, values in model.acted.values(numbers).items()
        }, memory

    def _choose(
        self, past: Tensor, tokens: Tensor, uniforms: np.ndarray, goal: Tensor | None
    ) -> Tensor:
        planner, seen = self._planner, self._model.seen.width
        if self._mode != "plan":
            return planner.act(
                past,
                tokens,
                None if self._mode == "mean" else torch.from_numpy(uniforms).to(tokens.device),
                goal,
            )
        fan = planner.fan(
            past,
            tokens,
            None if self._objective == "likelihood" else planner.numbers(uniforms),
            goal,
        )
        if self.watch is not None:
            for beams in beams_of(self._model, fan, goal if self._objective == "goal" else None):
                self.watch(beams)
        return fan.best.tokens[:, 0, seen:-2]


def plan_at(
    model: TrajectoryModel, settings: Tt, episode: Episode, step: int, uniforms: np.ndarray
) -> Beams:
    """The beams of a plan at a step of an episode, after what truly came before it; its chance is `uniforms [2]`, see `Planner.numbers`."""
    bins, seen = model.bins, model.seen.width
    first = max(0, step - settings.context + 1)
    observed = {
        path: torch.from_numpy(np.array(values[first : step + 1]))
        for path, values in episode.observations.items()
    }
    acted = {
        path: torch.from_numpy(np.array(values[first:step]))
        for path, values in episode.actions.items()
    }
    states = model.seen.rows(observed)
    rewards = torch.from_numpy(np.array(episode.rewards[first:step]))
    whole = torch.cat(
        [
            states[:-1],
            model.acted.rows(acted),
            rewards[:, None],
            torch.zeros_like(rewards[:, None]),
        ],
        1,
    )
    now = {path: values[-1:] for path, values in observed.items()}
    planner = Planner(model.net, bins, seen, model.acted.width, settings.search)
    numbers = None if settings.objective == "likelihood" else planner.numbers(uniforms[None])
    goal = model.goals(now)
    fan = planner.fan(bins.encode(whole)[None], model.states(now), numbers, goal)
    return beams_of(model, fan, goal if settings.objective == "goal" else None)[0]


@dataclass(frozen=True)
class Tt(Algorithm):
    """Hyperparameters of the Trajectory Transformer."""

    name: ClassVar[str] = "tt"
    offline_steps: ClassVar[int] = 195_000
    acting: ClassVar[tuple[str, ...]] = (
        "horizon", "beams", "expansions", "context", "k_act", "cdf_act", "k_obs", "cdf_obs", "k_rew", "expected_rewards", "objective", "discount"
    )  # fmt: skip

    bins: int = setting(100, "bins of each dimension", low=2, high=10_000)
    discretiser: str = setting(
        "quantile",
        "bins that hold equally many values, or that are equally wide",
        choices=("quantile", "uniform"),
    )
    window: int = setting(10, "transitions of a training window", low=2)
    width: int = setting(128, "width of the transformer", low=1)
    layers: int = setting(4, "blocks of the transformer", low=1)
    heads: int = setting(4, "attention heads of each block", low=1)
    positions: str = setting(
        "learned",
        "an embedding of each place, or rotary: distances alone, faster plans",
        choices=("learned", "rotary"),
    )
    dropout: float = setting(
        0.1,
        "share of embeddings, residuals and attention that is dropped in training",
        low=0,
        high=0.9,
    )
    batch_size: int = setting(256, "windows drawn for one learner step", low=1, high=1_000_000)
    stop: bool = setting(
        True, "a stop token is learned behind terminations; without, a plan goes on for ever"
    )
    learning_rate: float = setting(6e-4, "AdamW's learning rate after the warm-up", above=0, high=1)
    weight_decay: float = setting(0.1, "decay of the weights of linear layers", low=0)
    max_norm: float | None = setting(1.0, "gradients are scaled down to this norm", above=0)
    warm_up_steps: int | None = setting(
        None,
        "learner steps over which the learning rate rises to its height; default: an epoch of the dataset",
        low=0,
    )
    decay_steps: int | None = setting(
        None,
        "learner steps of the cosine that follows, down to a tenth; 0 keeps the height; default: 19 epochs",
        low=0,
    )
    discount: float = setting(0.99, "gamma of values and plans", low=0, high=1)
    action_weight: float = setting(5.0, "weight of action tokens in the loss", low=0)
    reward_weight: float = setting(1.0, "weight of reward tokens in the loss", low=0)
    value_weight: float = setting(1.0, "weight of value tokens in the loss", low=0)
    termination_penalty: float | None = setting(
        None,
        "reward that stands for that of a step at which the episode terminated; none leaves it",
    )
    observed: int = setting(
        0, "only the first so many elements of an observation are seen; 0 for all", low=0
    )
    cells: int = setting(4, "fields, along a side, that a picture is averaged over", low=1)
    letters: int = setting(16, "bytes of a text that are seen", low=1)
    goal: str = setting(
        "none",
        "the goal that is told: none, the episode's last state, or one drawn from the later ones; when acting, the observation's leaf `goal`",
        choices=("none", "last", "later"),
    )
    goal_steps: int = setting(
        0, "a later goal is reached within so many steps; 0 for any, to the episode's end", low=0
    )
    objective: str = setting(
        "reward",
        "what plan searches for: reward and reward-to-go, the likelihood (imitation), or to be soon at the goal",
        choices=("reward", "likelihood", "goal"),
    )
    context: int = setting(
        5, "transitions that the planner sees, the one being written included", low=2
    )
    horizon: int = setting(15, "transitions of a plan", low=1)
    beams: int = setting(128, "sequences that are kept at each transition", low=1)
    expansions: int = setting(2, "actions that are tried for each of them", low=1)
    k_obs: int = setting(
        1, "states are drawn from so many most likely tokens; 1 takes the most likely, 0 all", low=0
    )
    k_act: int = setting(20, "actions are drawn from so many most likely tokens; 0 for all", low=0)
    k_rew: int = setting(
        1, "rewards and values are drawn from so many most likely tokens; 0 for all", low=0
    )
    cdf_obs: float = setting(
        0.0,
        "the least likely state tokens that hold this probability together are not drawn",
        low=0,
        high=0.999,
    )
    cdf_act: float = setting(
        0.0,
        "the least likely action tokens that hold this probability together are not drawn",
        low=0,
        high=0.999,
    )
    expected_rewards: bool = setting(
        True, "plans are scored by the expected reward and value, not by those drawn"
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
    def search(self) -> Search:
        """The settings of the planner."""
        return Search(
            self.horizon,
            self.beams,
            self.expansions,
            self.context,
            self.discount,
            self.k_obs,
            self.k_act,
            self.k_rew,
            self.cdf_obs,
            self.cdf_act,
            self.expected_rewards,
            self.objective == "goal",
        )

    def view(self, step: int = 0) -> View:
        """Windows that begin at every time step alike."""
        hindsight: Literal["", "last", "later"] = (
            "last" if self.goal == "last" else "later" if self.goal == "later" else ""
        )
        return View(
            self.window,
            weight="length",
            terminals=True,
            annotations=("value",),
            hindsight=hindsight,
            ahead=self.goal_steps,
        )

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm. Raises UserError for more than one task, for more choices than bins, and for settings that do not go together."""
        signature = only_task(self.name, signatures)
        if self.context > self.window:
            raise UserError(
                f"--algorithm.context is {self.context}, but at most --algorithm.window, which is {self.window}, is expected"
            )
        if self.objective == "goal" and self.goal == "none":
            raise UserError(
                "--algorithm.objective goal searches for a goal, but the model is told none; give --algorithm.goal too"
            )
        if self.objective == "goal" and self.horizon < 2:
            raise UserError(
                "--algorithm.objective goal looks for the goal among the states that a plan leads to, but --algorithm.horizon 1 leads to none"
            )
        if self.objective == "goal" and not self.discount:
            raise UserError(
                "--algorithm.discount is 0, with which --algorithm.objective goal cannot tell soon from late; a discount above 0 is expected"
            )
        if self.goal_steps and self.goal != "later":
            raise UserError(
                f"--algorithm.goal-steps is {self.goal_steps}, but --algorithm.goal {self.goal} draws no later goal; give 0, or --algorithm.goal later"
            )
        if self.width % self.heads:
            raise UserError(
                f"--algorithm.width is {self.width}, but a multiple of --algorithm.heads, which is {self.heads}, is expected"
            )
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(
                f"--algorithm.positions rotary turns pairs, but the heads are {self.width // self.heads} wide; an even width of heads is expected"
            )
        for path, leaf in (*signature.observations.items(), *signature.actions.items()):
            if max(leaf.choices, default=0) > self.bins:
                raise UserError(
                    f"--algorithm.bins is {self.bins}, but the {max(leaf.choices)} choices of {path!r} need as many bins"
                )
        for path, leaf in signature.actions.items():
            if leaf.kind not in ("tensor", "discrete"):
                raise UserError(
                    f"{self.name} acts with numbers and choices, but the action {path!r} is of kind {leaf.kind}"
                )
        if self.goal != "none":
            if GOAL not in signature.observations or len(signature.observations) < 2:
                raise UserError(
                    f"--algorithm.goal {self.goal} asks for what the observation's leaf {GOAL!r} says, but there is none beside others"
                )
            model = TrajectoryModel(signature, self)
            if model.asked is None or model.asked.choices != model.seen.choices:
                raise UserError(
                    f"--algorithm.goal {self.goal} expects the leaf {GOAL!r} to be such as the rest of the observation, which has {model.seen.width} elements"
                )
            return model
        return TrajectoryModel(signature, self)

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """The bins of every dimension, from all transitions."""
        assert isinstance(model, TrajectoryModel)
        noted = {
            task: values_to_go(store, self.discount, self.termination_penalty)
            for task, store in stores.items()
        }

        def passes() -> Iterator[Tensor]:
            for task, store in stores.items():
                for position, end in enumerate(store.table.ends.tolist()):
                    episode = store.episode(position)
                    rewards = episode.rewards.copy()
                    if episode.terminated and self.termination_penalty is not None:
                        rewards[-1] = self.termination_penalty
                    seen = {
                        path: torch.from_numpy(np.array(values[:-1]))
                        for path, values in episode.observations.items()
                    }
                    acted = {
                        path: torch.from_numpy(np.array(values))
                        for path, values in episode.actions.items()
                    }
                    yield model.rows(
                        seen,
                        acted,
                        torch.from_numpy(rewards),
                        torch.from_numpy(noted[task][end - episode.length : end]),
                    )

        model.bins.fit(
            passes,
            sum(int(store.table.lengths.sum()) for store in stores.values()),
            "quantile" if self.discretiser == "quantile" else "uniform",
        )

    def annotate(
        self, model: nn.Module, stores: Mapping[str, Store], step: int
    ) -> dict[str, Columns]:
        """`value`: the discounted rewards after each step, to the end of its episode."""
        return {
            task: {"value": values_to_go(store, self.discount, self.termination_penalty)}
            for task, store in stores.items()
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Weighted cross-entropy of every token of a window from those before it, a mean over the tokens of a transition (section 3.1).

        Behind the end of an episode that terminated, stop tokens are learned (not without `stop`); they count into the sum, not into the weight. A window
        ends where its goal is reached.
        """
        assert isinstance(model, TrajectoryModel)
        seen = leaves_of(batch, "observations")
        acted = leaves_of(batch, "actions")
        mask, rewards = batch["mask"], batch["rewards"]
        ends = batch["terminated"] & mask
        if self.termination_penalty is not None:
            rewards = torch.where(ends, self.termination_penalty, rewards)
        tokens = model.bins.encode(model.rows(seen, acted, rewards, batch["value"]))
        tokens = torch.where(mask.unsqueeze(-1), tokens, model.bins.count if self.stop else 0)
        reached = leaves_of(batch, "goals")
        logits = model.net(tokens, model.states(reached) if reached else None)
        targets = tokens.flatten(0, 1).T
        nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(
            len(targets), *mask.shape
        )
        counted = (
            (mask | ends.any(1, keepdim=True) if self.stop else mask)
            .float()
            .expand_as(nats)
            .clone()
        )
        counted[0, :, 0] = 0  # nothing comes before it
        weights = nats.new_ones(len(targets))
        weights[model.seen.width : -2], weights[-2], weights[-1] = (
            self.action_weight,
            self.reward_weight,
            self.value_weight,
        )
        total = torch.einsum("dnk,dnk,d->", nats, counted, weights) / len(targets)
        apart = (
            (nats.detach() * mask).sum((1, 2)).split([model.seen.width, model.acted.width, 1, 1])
        )
        parts = {
            f"train/{name}_loss": part.mean()
            for name, part in zip(("state", "action", "reward", "value"), apart, strict=True)
        }
        return Loss(total, mask.float().sum(), {"train/loss": total.detach(), **parts})

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """AdamW that decays the weights of linear layers, the heads among them, and nothing else."""
        assert isinstance(model, TrajectoryModel)
        linear = {
            id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)
        } | {id(model.net.heads)}
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in model.parameters() if id(p) in linear],
                "weight_decay": self.weight_decay,
            },
            {"params": [p for p in model.parameters() if id(p) not in linear], "weight_decay": 0.0},
        ]
        return {
            "adamw": torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=True)
        }

    def for_data(self, steps: int, episodes: int) -> Tt:
        """With the schedule in learner steps. An epoch has as many windows as officially: they begin at any step of an episode but its last."""
        warm_up, decay = self._schedule(max(1, steps - episodes))
        return dataclasses.replace(self, warm_up_steps=warm_up, decay_steps=decay)

    def _schedule(self, windows: int) -> tuple[int, int]:
        """Learner steps of the rise and of the cosine, where an epoch has so many windows: 1 and 19 epochs, where they are not set."""
        epoch = windows / self.batch_size
        return (
            max(1, round(epoch)) if self.warm_up_steps is None else self.warm_up_steps,
            max(1, round(19 * epoch)) if self.decay_steps is None else self.decay_steps,
        )

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """A straight rise, then a cosine that stays at a tenth once it is there (the official one climbs again, see the module)."""
        warm_up, decay = self._schedule(REFERENCE_WINDOWS)
        if step < warm_up:
            return (step + 1) / warm_up
        if not decay:
            return 1.0
        progress = min(1.0, (step - warm_up) / decay)
        return max(0.1, 0.5 * (1 + math.cos(math.pi * progress)))

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`plan` searches; `sample` draws the next action's tokens from the model, `mean` takes the most likely ones."""
        assert isinstance(model, TrajectoryModel)
        return TtPolicy(model, self, mode)

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """`cdf` and the bodies' presets are settings of the official repository, which differ by data set and have its quality's name; a body's default is
        its `medium`. Which of them a run has is said by who starts it: no name of a dataset is looked at.

        They score 15 episodes, as published, and only at the end; `--evaluations.mode mean` scores without planning. `four-rooms` has settings of
        our own: a small model that is told goals, for data of random play, whose bins are so small that a state in the goal's has reached it.
        """
        planned: dict[str, Any] = {
            "evaluations.mode": "plan",
            "evaluations.every": NEVER,
            "evaluations.episodes": 1,
            "evaluations.final_episodes": 15,
        }
        base = planned | {"algorithm.k_act": 0, "algorithm.cdf_act": 0.6}
        body = base | {"algorithm.termination_penalty": -100.0}
        longer = {"budget.learner_steps": 312_500}
        quick = {"algorithm.horizon": 5}
        narrow = {"algorithm.beams": 32}
        ant = (
            body
            | quick
            | {
                "algorithm.batch_size": 128,
                "algorithm.observed": 27,
                "budget.learner_steps": 390_600,
            }
        )
        rooms: dict[str, Any] = planned | {
            "evaluations.final_episodes": 40,
            "budget.learner_steps": 4_000,
        }
        small: dict[str, Any] = {
            "goal": "later",
            "goal_steps": 16,
            "objective": "goal",
            "horizon": 10,
            "beams": 32,
            "expansions": 1,
            "k_act": 0,
        }
        small |= {
            "discretiser": "uniform",
            "bins": 32,
            "window": 2,
            "context": 2,
            "width": 64,
            "layers": 2,
            "dropout": 0.0,
            "batch_size": 128,
        }
        small |= {
            "learning_rate": 2e-3,
            "warm_up_steps": 50,
            "decay_steps": 4_000,
            "value_weight": 0.0,
        }
        rooms |= own_flags(small)
        replayed = (
            narrow
            | longer
            | {"algorithm.horizon": 20, "algorithm.k_act": 40, "algorithm.cdf_act": 0.0}
        )
        return {
            "hopper": _qualities(body, replay=longer),
            "halfcheetah": _qualities(body | quick | narrow, expert={"algorithm.horizon": 15}),
            "walker2d": _qualities(body, replay=replayed, expert=quick),
            "ant": _qualities(ant, expert={"algorithm.horizon": 15}) | {"random": ant},
            "four-rooms": {"default": rooms},
            "*": {"default": planned, "cdf": base},
        }


def _qualities(
    medium: dict[str, Any],
    replay: Mapping[str, Any] = MappingProxyType({}),
    expert: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """A body's presets by quality of the data: those of `medium`, and in what the two others differ."""
    return {
        "default": medium,
        "medium": medium,
        "medium-replay": {**medium, **replay},
        "medium-expert": {**medium, **expert},
    }


ALGORITHM = Tt
