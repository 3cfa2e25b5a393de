"""Decision Transformer: actions as the continuation of returns-to-go, states and actions (Chen et
al. 2021, arXiv 2106.01345).

A causal transformer reads the last K steps as three tokens each (return-to-go, state, action) and
predicts the action at the state's token. With `stochastic` it is the policy of Online Decision
Transformer (Zheng et al. 2022, arXiv 2202.05607): a squashed Gaussian whose entropy is kept above
minus the number of action elements. Online it is UDRL's loop with this network: episodes are played
at a commanded return, stored, and learnt from with the return that they really got.

Deviations. (1) Windows are padded on the right, where causal attention never looks, in place of
padding on the left with a mask; without positions inside the window the two are equal. With them
(`positions` window, Atari) the last steps of an episode stand at the first places, where the
official code moves the window back until it is full. (2) Only the state tokens pass the last block,
which changes no number. (3) The entropy of `stochastic` is averaged over real steps only. (4) While
acting, the return that is left to ask for never exceeds what the task can pay. (5) Atari: the head
has a bias, rewards are not clipped, and returns-to-go are told in units of the game's target, as
the tanh over them is all but flat from 5 on, where the official code tells sums of clipped rewards
as they are. The code and the paper's table 9 disagree about the warm-up (10,000 steps, 100,000);
the default is the code's.

    python -m bigdm_ray.run dt DATASET
    python -m bigdm_ray.run dt DATASET --preset online
    python -m bigdm_ray.run dt hopper --from RUN
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Columns, Mode, Policy, Presets
from bigdm_ray.algorithms.bc import acted_observations, only_task
from bigdm_ray.algorithms.dt.critic import predict_returns
from bigdm_ray.algorithms.dt.network import DecisionTransformer
from bigdm_ray.algorithms.dt.policy import CachedPolicy, DtPolicy
from bigdm_ray.algorithms.dt.presets import PRESETS
from bigdm_ray.algorithms.dt.settings import DtSettings
from bigdm_ray.algorithms.learned import Loss, Supervised, select_leaves
from bigdm_ray.algorithms.online import Online
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.continuous import SquashedHead
from bigdm_ray.models.lamb import Lamb
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.store import Retention, Store, Table
from bigdm_ray.replay.windows import View


@dataclass(frozen=True)
class Dt(DtSettings, Supervised, Online):
    """See the module; its hyperparameters are those of `DtSettings`."""

    name: ClassVar[str] = "dt"
    commands: ClassVar[tuple[str, ...]] = ("desired_return",)
    offline_steps: ClassVar[int] = 100_000
    fixed: ClassVar[tuple[str, ...]] = (
        "width", "layers", "heads", "positions", "timesteps", "context", "returns",
        "frame_stack", "stochastic", "critic", "optimizer", "decay_matrices_only",
    )  # fmt: skip
    acting: ClassVar[tuple[str, ...]] = ("acting_context", "cached")
    presets: ClassVar[Presets] = PRESETS

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
        """Windows that begin at any step of any episode, each alike, or with whole episodes; what
        hangs over the end is padding.
        """
        weight: Literal["length", "whole"] = "whole" if self.whole_episodes else "length"
        return View(
            self.context,
            weight,
            columns=(self._column,),
            best=self.best_fraction,
            stack=self.frame_stack,
        )

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Raises UserError for more than one task, and for `stochastic` where actions are not
        continuous and bounded.
        """
        if self.acting_context > self.context:
            raise UserError(
                f"--algorithm.acting-context is {self.acting_context}, but at most "
                f"--algorithm.context, which is {self.context}, is expected"
            )
        if self.width % self.heads:
            raise UserError(
                f"--algorithm.width is {self.width}, but a multiple of --algorithm.heads "
                f"{self.heads} is expected"
            )
        if self.critic and not self.return_scale:
            raise UserError(
                "--algorithm.critic is true, but --algorithm.return-scale is 0: what it predicts "
                "are returns times that; more is expected"
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
                    for seen in acted_observations(stores)
                )
                state.standardise.fit(state.vector(part) for part in parts)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Squared error (continuous), cross-entropy (discrete), or ODT's constrained likelihood
        (equations 3 to 5), over real steps.
        """
        assert isinstance(model, DecisionTransformer)
        seen = select_leaves(batch, "observations")
        actions = select_leaves(batch, "actions")
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
        """`sample` draws from the head (its mean, where it is trained on the squared error), `mean`
        takes the most likely action.
        """
        assert isinstance(model, DecisionTransformer)
        if mode == "plan":
            raise UserError("dt has no planner; its modes are sample and mean")
        if self.cached and self.positions == "window":
            raise UserError(
                "--algorithm.cached is true, but with --algorithm.positions window every token "
                "changes its place at each step; leave it out"
            )
        kind = CachedPolicy if self.cached else DtPolicy
        return kind(
            model,
            self.frame_stack,
            self.acting_context or self.context,
            mode == "mean",
            self.delayed_reward,
        )

    def return_estimator(self, model: nn.Module) -> Callable[[Episode], np.ndarray] | None:
        """What the critic expects, where there is one."""
        assert isinstance(model, DecisionTransformer)
        if model.critic is None:
            return None
        if self.frame_stack > 1 and model.embed_state.images.width:
            raise UserError(
                "the critic of dt reads stacks of pictures, which are not made here; give a run "
                "with --algorithm.frame-stack 1"
            )
        return functools.partial(predict_returns, model, self)

    @property
    def whole_returns(self) -> bool:
        """See Algorithm: of `delayed_reward`."""
        return self.delayed_reward

    @property
    def cache(self) -> bool | None:
        """See Algorithm."""
        return self.cached

    # --- online

    def retention(self) -> Retention:
        """The newest episodes; those of a dataset count as older, the worst of them as the oldest
        (ODT, section 4.3).
        """
        return Retention("newest", self.replay_size)

    def remark(self, signature: Signature) -> str | None:
        """See Algorithm: the squared error leaves no chance to actions."""
        if self.stochastic or all(leaf.kind == "discrete" for leaf in signature.actions.values()):
            return None
        return (
            "dt plays its mean actions and explores by the returns that it asks for alone; "
            "--algorithm.stochastic true, "
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
        """More than the target (ODT, section 4.3).

        `explore_factor` times a positive one, and as far above a negative one.
        """
        target = self._target(table)
        return {
            "desired_return": np.full(
                n, target + (self.explore_factor - 1) * abs(target), np.float32
            )
        }

    def evaluation_command(self, table: Table) -> dict[str, float]:
        """The target return."""
        return {"desired_return": self._target(table)}
