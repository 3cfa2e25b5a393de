"""Model-Based Offline Planning (MBOP; Argenson and Dulac-Arnold 2021, arXiv 2008.05556).

Three ensembles are fitted by squared error: what follows a step and its reward f_m(s, a), what the
data would do f_b(s, a_before), and the return of the next `return_horizon` steps f_R(s, a_before)
(section 3.1). At each step a planner of the MPPI kind (algorithm 2) rolls noisy actions of f_b,
mixed with the plan of the step before, through f_m, adds f_R at the end, and averages the action
sequences with weights exp(kappa R). Nothing bootstraps: the three are one supervised loss. Networks
are those of Acme (google-deepmind/acme, agents/jax/mbop). The paper tunes the planner for each
dataset, with 100 trajectories of 2 to 10 steps, where the defaults lie. Acme's values, in the
preset `acme`, see 25 steps ahead, fewer than a fall takes on Hopper: that planner leans forward and
falls where the data is poor.

Deviations. (1) As in Acme a trajectory's rewards are those of its own ensemble member, not the mean
over all; its final return is the mean. (2) f_m predicts the standardised change of the observation.
(3) As in Acme, noise is in deviations of the data's actions; returns are in deviations of a reward.
(4) The models see actions cut to their bounds, as the environment does; averaged are uncut ones,
since cutting would pull the mean inwards.
(5) f_R is not fitted where a time limit hides part of the return. (6) Chance is a generator for
    each row, seeded from two uniforms.

    python -m bigdm_ray.run mbop DATASET
    python -m bigdm_ray.run mbop DATASET --algorithm.horizon 8 --algorithm.kappa 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import (
    Columns,
    Mode,
    Policy,
    Presets,
    State,
    device_of,
    own_flags,
)
from bigdm_ray.algorithms.learned import Loss, Supervised
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.continuous import ContinuousSpaces, Ensemble
from bigdm_ray.models.networks import Standardise
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting

SEED_BITS = 24
"""Bits of chance in a float32 uniform."""


class MbopModel(nn.Module):
    """The three ensembles, and the statistics that bring their inputs and outputs to one scale."""

    def __init__(self, spaces: ContinuousSpaces, members: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.spaces = spaces
        width = spaces.seen + spaces.acted
        self.dynamics = Ensemble(members, [width, *hidden, spaces.seen + 1])
        self.behaviour = Ensemble(members, [width, *hidden, spaces.acted])
        self.value = Ensemble(members, [width, *hidden, 1])
        self.of_seen = Standardise(spaces.seen)
        self.of_change = Standardise(spaces.seen)
        self.of_action = Standardise(spaces.acted)
        self.of_reward = Standardise(1)
        self.of_return = Standardise(1)

    def next(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised states `[members, n, seen]` and actions to the standardised states that
        follow and the rewards `[members, n]`.

        Rewards are in deviations of a reward, with their mean.
        """
        out = self.dynamics(torch.cat([state, action], -1))
        change = out[..., :-1] * (self.of_change.std + 1e-6) + self.of_change.mean
        return state + change / (self.of_seen.std + 1e-6), out[..., -1] + self.of_reward.mean / (
            self.of_reward.std + 1e-6
        )

    def returns(self, state: Tensor, before: Tensor) -> Tensor:
        """The mean over members of the return of the next steps `[..., n]`, for rows shared by all
        members, in deviations of a reward."""
        rows = torch.cat([state, before], -1)
        mean: Tensor = self.value(rows.flatten(0, -2)).mean(0).reshape(rows.shape[:-1])
        return (mean * (self.of_return.std + 1e-6) + self.of_return.mean) / (
            self.of_reward.std + 1e-6
        )


def weighted_plan(actions: Tensor, returns: Tensor, kappa: float) -> Tensor:
    """The mean of action sequences `[n, samples, H, acted]` with weights exp(kappa R), R
    `[n, samples]`: `[n, H, acted]` (algorithm 2, line 17)."""
    plan: Tensor = torch.einsum("ns,nsha->nha", torch.softmax(kappa * returns, 1), actions)
    return plan


def coming_returns(rewards: np.ndarray, horizon: int) -> np.ndarray:
    """The sum of this and the following rewards, `horizon` of them at most: `[T]` float32, added up
    in float64."""
    sums = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    first = np.arange(len(rewards))
    out: np.ndarray = (sums[np.minimum(first + horizon, len(rewards))] - sums[first]).astype(
        np.float32
    )
    return out


class MbopPolicy(Policy):
    """Plans anew at each step; its memory is the last plan, whose first action was taken."""

    def __init__(self, model: MbopModel, settings: Mbop, plans: bool) -> None:
        self._model, self._settings, self._plans = model, settings, plans
        self._device = device_of(model)
        self.uniforms = 2

    def empty(self, n: int) -> State:
        """See Policy.

        The plan before the first is zero: the middle of the actions' range (algorithm 1).
        """
        return {"plan": np.zeros((n, self._settings.horizon, self._model.spaces.acted), np.float32)}

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
        model = self._model
        seen = model.of_seen(
            model.spaces.see(
                {
                    path: torch.from_numpy(values).to(self._device)
                    for path, values in observations.items()
                }
            )
        )
        before = torch.from_numpy(np.where(first[:, None, None], np.float32(0), state["plan"])).to(
            self._device
        )
        if self._plans:
            plan = self.plan(seen, before, self.noise(uniforms))
        else:
            imitated = model.behaviour(torch.cat([seen, before[:, 0].clamp(-1.0, 1.0)], -1)).mean(0)
            plan = torch.cat([imitated.unsqueeze(1), before[:, 1:]], 1)
        actions = model.spaces.unpack(plan[:, 0])
        return {path: values.cpu().numpy() for path, values in actions.items()}, {
            "plan": plan.cpu().numpy()
        }

    def noise(self, uniforms: np.ndarray) -> Tensor:
        """Standard normals `[H, members, n, samples a member, acted]`, those of each row from a
        generator of its own."""
        settings = self._settings
        shape = (
            settings.horizon,
            settings.members,
            settings.samples // settings.members,
            self._model.spaces.acted,
        )
        rows = []
        for high, low in (uniforms * 2**SEED_BITS).astype(np.int64).tolist():
            rows.append(
                torch.randn(
                    shape, generator=torch.Generator().manual_seed((high << SEED_BITS) + low)
                )
            )
        return torch.stack(rows, 2).to(self._device)

    def plan(self, seen: Tensor, before: Tensor, noise: Tensor) -> Tensor:
        """Algorithm 2 for rows `[n, seen]` (standardised), their last plans `[n, H, acted]` and
        noise: the new plans `[n, H, acted]`."""
        model, settings = self._model, self._settings
        horizon, members, n, each, acted = noise.shape
        state = seen.repeat_interleave(each, 0).expand(members, n * each, -1)
        action = (
            before[:, 0].clamp(-1.0, 1.0).repeat_interleave(each, 0).expand(members, n * each, -1)
        )
        total = torch.zeros(members, n * each, device=seen.device)
        chosen = []
        for h in range(horizon):
            imitated = model.behaviour(torch.cat([state, action], -1))
            tried = imitated + settings.sigma * model.of_action.std * noise[h].reshape(
                members, n * each, acted
            )
            kept = before[:, min(h + 1, horizon - 1)].repeat_interleave(each, 0)
            mixed = (1 - settings.beta) * tried + settings.beta * kept
            chosen.append(mixed)
            action = mixed.clamp(-1.0, 1.0)
            state, reward = model.next(state, action)
            total = total + reward
        total = total + model.returns(state, action)
        sequences = (
            torch.stack(chosen, 2)
            .reshape(members, n, each, horizon, acted)
            .transpose(0, 1)
            .flatten(1, 2)
        )
        return weighted_plan(
            sequences, total.reshape(members, n, each).transpose(0, 1).flatten(1), settings.kappa
        )


VALUES: dict[str, Any] = {
    "return_horizon": 10,
    "samples": 1000,
    "horizon": 15,
    "sigma": 0.8,
    "beta": 0.2,
    "kappa": 0.5,
}
PRESETS: Presets = {"*": {"acme": own_flags(VALUES)}}
"""`acme`: the planner and the return horizon of Acme's defaults."""


@dataclass(frozen=True)
class Mbop(Supervised):
    """Hyperparameters of MBOP; those of the planner have the letters of algorithm 2."""

    name: ClassVar[str] = "mbop"
    presets: ClassVar[Presets] = PRESETS
    offline_steps: ClassVar[int] = 100_000
    acting: ClassVar[tuple[str, ...]] = ("horizon", "samples", "sigma", "beta", "kappa")

    batch_size: int = setting(64, "steps drawn for one learner step", low=1, high=1_000_000)
    hidden: tuple[int, ...] = setting((64, 64), "widths of each network", low=1, high=65_536)
    members: int = setting(10, "networks in each ensemble (K)", low=1)
    learning_rate: float = setting(1e-3, "Adam's learning rate", above=0, high=1)
    return_horizon: int = setting(50, "steps whose return the value network predicts", low=1)
    horizon: int = setting(4, "steps planned ahead (H)", low=1)
    samples: int = setting(100, "trajectories of a plan, a multiple of the members (N)", low=1)
    sigma: float = setting(
        0.2, "noise on tried actions, in standard deviations of the data's actions", low=0
    )
    beta: float = setting(0.2, "share of the last plan in a tried action", low=0, high=1)
    kappa: float = setting(
        0.5,
        "how much a trajectory's weight grows with its return, in standard deviations of a reward",
        low=0,
    )

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    def view(self, step: int = 0) -> View:
        """Each time step alike, with the action before it and what followed."""
        return View(
            2,
            weight="length",
            anchor="end",
            pad="left",
            next_observation=True,
            annotations=("coming_return", "return_known"),
        )

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Raises UserError for what is not one task of vectors and bounded continuous actions.
        """
        if self.samples % self.members:
            raise UserError(
                f"--algorithm.samples is {self.samples}, but a multiple of --algorithm.members,"
                f" which is {self.members}, is expected"
            )
        return MbopModel(ContinuousSpaces(self.name, signatures), self.members, self.hidden)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam for all three: their parameters are apart."""
        return {"adam": torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)}

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Means and deviations of observations, their changes, actions, rewards and returns."""
        assert isinstance(model, MbopModel)
        spaces, device = model.spaces, model.of_seen.mean.device

        def each() -> Iterator[
            Episode
        ]:  # read anew for each statistic: a dataset may be larger than memory
            for store in stores.values():
                for position in range(len(store.table)):
                    yield store.episode(position)

        def seen() -> Iterator[Tensor]:
            for episode in each():
                yield spaces.see(
                    {
                        path: torch.tensor(values, device=device)
                        for path, values in episode.observations.items()
                    }
                )

        def done() -> Iterator[Tensor]:
            for episode in each():
                yield spaces.pack(
                    {
                        path: torch.tensor(values, device=device)
                        for path, values in episode.actions.items()
                    }
                )

        model.of_seen.fit(part[:-1] for part in seen())
        model.of_change.fit(part[1:] - part[:-1] for part in seen())
        model.of_action.fit(done())
        model.of_reward.fit(torch.tensor(episode.rewards)[:, None] for episode in each())
        model.of_return.fit(
            torch.from_numpy(coming_returns(episode.rewards, self.return_horizon))[:, None]
            for episode in each()
        )

    def annotate(
        self, model: nn.Module, stores: Mapping[str, Store], step: int
    ) -> dict[str, Columns]:
        """The return of the next steps, and 0 where a time limit ended the episode before they were
        over."""
        out = {}
        for task, store in stores.items():
            coming, known = [], []
            for position in range(len(store.table)):
                episode = store.episode(position)
                coming.append(coming_returns(episode.rewards, self.return_horizon))
                left = np.arange(episode.length, 0, -1)
                known.append(
                    ((left >= self.return_horizon) | episode.terminated).astype(np.float32)
                )
            out[task] = {
                "coming_return": np.concatenate(coming),
                "return_known": np.concatenate(known),
            }
        return out

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Squared errors of the three ensembles, each a mean over members and elements."""
        assert isinstance(model, MbopModel)
        spaces = model.spaces
        leaves: dict[str, dict[str, Tensor]] = {
            "observations": {},
            "actions": {},
            "next_observations": {},
        }
        for name, value in batch.items():
            group, _, path = name.partition("/")
            if group in leaves:
                leaves[group][path] = value if group == "actions" else value[:, 1]
        raw, raw_next = spaces.see(leaves["observations"]), spaces.see(leaves["next_observations"])
        # no action before the first step: zero, as the first plan
        actions = spaces.pack(leaves["actions"]) * batch["mask"].unsqueeze(-1)
        state, before, action = model.of_seen(raw), actions[:, 0], actions[:, 1]
        followed = torch.cat(
            [model.of_change(raw_next - raw), model.of_reward(batch["rewards"][:, 1:])], -1
        )
        returned = model.of_return(batch["coming_return"][:, 1:])

        context = torch.cat([state, before], -1)
        weight = batch["mask"][:, 1].float()
        errors = {
            "dynamics_loss": (
                (model.dynamics(torch.cat([state, action], -1)) - followed) ** 2
            ).mean((0, 2)),
            "behaviour_loss": ((model.behaviour(context) - action) ** 2).mean((0, 2)),
            "return_loss": ((model.value(context) - returned) ** 2).mean((0, 2))
            * batch["return_known"][:, 1],
        }
        total = (torch.stack(list(errors.values())).sum(0) * weight).sum()
        parts = {f"train/{name}": (error.detach() * weight).sum() for name, error in errors.items()}
        return Loss(total, weight.sum(), {"train/loss": total.detach(), **parts})

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`sample` and `plan` are the paper's planner; `mean` acts on the behaviour ensemble alone
        (Acme's horizon of 0)."""
        assert isinstance(model, MbopModel)
        return MbopPolicy(model, self, plans=mode != "mean")


ALGORITHM = Mbop
