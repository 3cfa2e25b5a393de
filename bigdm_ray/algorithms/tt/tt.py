"""Trajectory Transformer: a sequence model of whole trajectories that plans by beam search (Janner,
Li, Levine 2021, arXiv 2106.02039).

States, actions, rewards and rewards-to-go become tokens, bins of each dimension, and a transformer
learns what follows what. To act, mode `plan` searches the model for the continuation with the
highest rewards and reward-to-go (`--algorithm.objective reward`), or for the most likely one
(`likelihood`: imitation), or draws some and takes the one that is soonest at its goal (`goal`).
`sample` and `mean` take the next action's tokens from the model without a search.

With `--algorithm.goal` the model is told, before everything else, a state that the episode reaches
(section 4.2): in training, by hindsight, its last one or a later one, so that data that were after
nothing will do; when it acts, the observation's leaf `goal`, which is not a part of the state then.

The defaults are the paper's table for planning; presets are the settings of the official repository
(jannerm/trajectory-transformer), which filter actions otherwise: `cdf_act`. Its training is the
default: AdamW, decay on linear weights alone, gradients clipped at 1, a warm-up over one epoch of
the dataset, then a cosine to a tenth at its epoch 20, both in learner steps that are computed from
the dataset's size when the run is made. There the cosine is not capped, so that the official
learning rate climbs again and, with a million windows, is back at its height at epoch 39 of 50;
here it stays at a tenth.

The planner, too, is the official one (`planning/beam.py`): the model sees `context` - 1 whole
transitions and the one being written. With `--algorithm.positions rotary`, which the paper has not,
only distances between tokens count: another model, whose plans keep all that they have computed and
see all that they have written, so that a `window` of `context` - 1 + `horizon` transitions shows it
in training every distance that it meets.

Deviations. (1) Windows begin at the last step too. (2) The loss is divided by the real transitions,
not by all positions. (3) Behind the end the stop token is learned where the episode terminated; the
official mask goes by the number of the step. (4) The first action of a plan cannot be the stop
token. (5) A value that much of the data shares has a bin of its own (`tokens/bins.py`). (6)
Pictures are averaged over `cells` x `cells` fields and texts cut to `letters` bytes, for tasks that
the paper has not.

    python -m bigdm_ray.run tt DATASET
    python -m bigdm_ray.run tt DATASET --evaluations.mode mean --algorithm.layers 2 \\
        --algorithm.batch-size 32 --budget.learner-steps 5000 \\
        --algorithm.warm-up-steps 200 --algorithm.decay-steps 4800
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bigdm_ray.algorithms.base import Columns, Mode, Policy, Presets
from bigdm_ray.algorithms.bc import only_task
from bigdm_ray.algorithms.learned import Loss, Supervised, select_leaves
from bigdm_ray.algorithms.tt.network import GOAL, TrajectoryModel
from bigdm_ray.algorithms.tt.policy import TtPolicy
from bigdm_ray.algorithms.tt.presets import PRESETS
from bigdm_ray.algorithms.tt.settings import TtSettings
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay.returns import discounted_returns, episode_groups
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View

REFERENCE_WINDOWS = 1_000_000
"""Windows of an epoch by which the official budgets are counted: 50 epochs of so many, whatever the
dataset's own number.
"""


def values_to_go(store: Store, discount: float, penalty: float | None) -> np.ndarray:
    """V of each living step, the discounted rewards after it (its own left out): `[steps]` float32.

    `penalty`, where given, is the reward of steps at which an episode terminated. Nothing is added
    behind an episode's end.
    """
    parts = []
    for group in episode_groups(store):
        ends = np.cumsum(group.lengths) - 1
        rewards = group.rewards.copy()
        if penalty is not None:
            rewards[ends[group.terminated]] = penalty
        after = np.append(discounted_returns(rewards, group.lengths, discount)[1:], np.float32(0))
        after[ends] = 0
        parts.append(after)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Tt(TtSettings, Supervised):
    """See the module; its hyperparameters are those of `TtSettings`."""

    name: ClassVar[str] = "tt"
    offline_steps: ClassVar[int] = 195_000
    presets: ClassVar[Presets] = PRESETS
    acting: ClassVar[tuple[str, ...]] = (
        "horizon", "beams", "expansions", "context", "k_act", "cdf_act", "k_obs", "cdf_obs",
        "k_rew", "expected_rewards", "objective", "discount",
    )  # fmt: skip

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    @property
    def clip_norm(self) -> float | None:
        """See Algorithm."""
        return self.max_norm

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
        """See Algorithm.

        Raises UserError for more than one task, for more choices than bins, and for settings that
        do not go together.
        """
        signature = only_task(self.name, signatures)
        if self.context > self.window:
            raise UserError(
                f"--algorithm.context is {self.context}, but at most --algorithm.window, which is "
                f"{self.window}, is expected"
            )
        if self.objective == "goal" and self.goal == "none":
            raise UserError(
                "--algorithm.objective goal searches for a goal, but the model is told none; give "
                "--algorithm.goal too"
            )
        if self.objective == "goal" and self.horizon < 2:
            raise UserError(
                "--algorithm.objective goal looks for the goal among the states that a plan leads "
                "to, but --algorithm.horizon 1 leads to none"
            )
        if self.objective == "goal" and not self.discount:
            raise UserError(
                "--algorithm.discount is 0, with which --algorithm.objective goal cannot tell soon "
                "from late; a discount above 0 is expected"
            )
        if self.goal_steps and self.goal != "later":
            raise UserError(
                f"--algorithm.goal-steps is {self.goal_steps}, but --algorithm.goal {self.goal} "
                "draws no later goal; give 0, or --algorithm.goal later"
            )
        if self.width % self.heads:
            raise UserError(
                f"--algorithm.width is {self.width}, but a multiple of --algorithm.heads, which is "
                f"{self.heads}, is expected"
            )
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(
                "--algorithm.positions rotary turns pairs, but the heads are "
                f"{self.width // self.heads} wide; an even width of heads is expected"
            )
        for path, leaf in (*signature.observations.items(), *signature.actions.items()):
            if max(leaf.choices, default=0) > self.bins:
                raise UserError(
                    f"--algorithm.bins is {self.bins}, but the {max(leaf.choices)} choices of "
                    f"{path!r} need as many bins"
                )
        for path, leaf in signature.actions.items():
            if leaf.kind not in ("tensor", "discrete"):
                raise UserError(
                    f"{self.name} acts with numbers and choices, but the action {path!r} is of "
                    f"kind {leaf.kind}"
                )
        if self.goal != "none":
            if GOAL not in signature.observations or len(signature.observations) < 2:
                raise UserError(
                    f"--algorithm.goal {self.goal} asks for what the observation's leaf {GOAL!r} "
                    "says, but there is none beside others"
                )
            model = TrajectoryModel(signature, self)
            if model.asked is None or model.asked.choices != model.seen.choices:
                raise UserError(
                    f"--algorithm.goal {self.goal} expects the leaf {GOAL!r} to be such as the "
                    f"rest of the observation, which has {model.seen.width} elements"
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
        """Weighted cross-entropy of every token of a window from those before it, a mean over the
        tokens of a transition (section 3.1).

        Behind the end of an episode that terminated, stop tokens are learned (not without `stop`);
        they count into the sum, not into the weight. A window ends where its goal is reached.
        """
        assert isinstance(model, TrajectoryModel)
        seen = select_leaves(batch, "observations")
        acted = select_leaves(batch, "actions")
        mask, rewards = batch["mask"], batch["rewards"]
        ends = batch["terminated"] & mask
        if self.termination_penalty is not None:
            rewards = torch.where(ends, self.termination_penalty, rewards)
        tokens = model.bins.encode(model.rows(seen, acted, rewards, batch["value"]))
        tokens = torch.where(mask.unsqueeze(-1), tokens, model.bins.count if self.stop else 0)
        reached = select_leaves(batch, "goals")
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
        """AdamW that decays the weights of linear layers, heads among them, and nothing else."""
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
        """With the schedule in learner steps.

        An epoch has as many windows as officially: they begin at any step of an episode but its
        last.
        """
        warm_up, decay = self._schedule(max(1, steps - episodes))
        return dataclasses.replace(self, warm_up_steps=warm_up, decay_steps=decay)

    def _schedule(self, windows: int) -> tuple[int, int]:
        """Learner steps of the rise and of the cosine, where an epoch has so many windows: 1 and 19
        epochs, where they are not set.
        """
        epoch = windows / self.batch_size
        return (
            max(1, round(epoch)) if self.warm_up_steps is None else self.warm_up_steps,
            max(1, round(19 * epoch)) if self.decay_steps is None else self.decay_steps,
        )

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """A straight rise, then a cosine that stays at a tenth once it is there (the official one
        climbs again, see the module).
        """
        warm_up, decay = self._schedule(REFERENCE_WINDOWS)
        if step < warm_up:
            return (step + 1) / warm_up
        if not decay:
            return 1.0
        progress = min(1.0, (step - warm_up) / decay)
        return max(0.1, 0.5 * (1 + math.cos(math.pi * progress)))

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`plan` searches; `sample` draws the next action's tokens from the model, `mean` takes the
        most likely ones.
        """
        assert isinstance(model, TrajectoryModel)
        return TtPolicy(model, self, mode)
