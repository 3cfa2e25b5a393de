"""Reward-weighted regression (Peters and Schaal 2007, as Peng et al. 2019 compare it): clone
actions with weights exp(R / beta).

R is the discounted return that followed the action, normalised over the stored episodes; there is
no critic. On a dataset the behaviour policy's episodes are weighted; online only the episodes of
the last iteration are kept, since RWR is on-policy.

    python -m bigdm_ray.run rwr DATASET
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Columns, Presets
from bigdm_ray.algorithms.bc import Actor, Imitation, acted_observations, only_task, single_steps
from bigdm_ray.algorithms.learned import Loss
from bigdm_ray.algorithms.online import Online
from bigdm_ray.envs.signature import Signature
from bigdm_ray.replay.returns import discounted_returns, episode_groups, normalised_weights
from bigdm_ray.replay.store import Retention, Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting

PRESETS: Presets = {"*": {"default": {"evaluations.mode": "mean"}}}
"""The fixed deviation is for exploring: scores are those of the mean."""


@dataclass(frozen=True)
class Rwr(Imitation, Online):
    """Hyperparameters of RWR."""

    name: ClassVar[str] = "rwr"
    presets: ClassVar[Presets] = PRESETS
    offline_steps: ClassVar[int] = 50_000

    hidden: tuple[int, ...] = setting(
        (128, 64), "widths of the fully connected layers", low=1, high=65_536
    )
    batch_size: int = setting(256, "steps drawn for one learner step", low=1, high=1_000_000)
    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    discount: float = setting(0.99, "gamma", low=0, high=0.9999)
    temperature: float = setting(1.0, "beta, what normalised returns are divided by", above=0)
    weight_clip: float = setting(20.0, "largest weight of an action", above=0)
    action_std: float = setting(
        0.4, "fixed deviation of continuous actions, in units of half their range", above=0
    )
    n_updates_per_iter: int = setting(1000, "learner steps owed for each iteration", low=1)
    episodes_per_iteration: int = setting(20, "episodes played in each iteration", low=1)

    def view(self, step: int = 0) -> View:
        """Every stored time step alike."""
        return View(weight="length", annotations=("weight",))

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm. Raises UserError for more than one task."""
        return Actor(
            only_task(self.name, signatures), self.hidden, self.channels, std=self.action_std
        )

    def fits(self, step: int) -> bool:
        """At the beginning of each iteration; on a dataset the weights come out the same each
        time."""
        return step % self.n_updates_per_iter == 0

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Mean and deviation of the observations."""
        assert isinstance(model, Actor)
        model.encoder.fit(acted_observations(stores))

    def annotate(
        self, model: nn.Module, stores: Mapping[str, Store], step: int
    ) -> dict[str, Columns]:
        """The weight of each action."""
        return {task: {"weight": self._weights(store)} for task, store in stores.items()}

    def _weights(self, store: Store) -> np.ndarray:
        returns = np.concatenate(
            [
                discounted_returns(group.rewards, group.lengths, self.discount)
                for group in episode_groups(store)
            ]
        )
        return normalised_weights(returns, self.temperature, self.weight_clip)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Weighted negative log-likelihood of the stored actions."""
        assert isinstance(model, Actor)
        seen, actions, mask = single_steps(batch)
        negative = -(
            model.head.log_prob(model(seen), actions) * batch["weight"].flatten(0, 1) * mask
        ).sum()
        return Loss(negative, mask.sum(), {"train/loss": negative.detach()})

    def retention(self) -> Retention:
        """The newest iteration."""
        return Retention("newest", self.episodes_per_iteration)

    def warm_up(self) -> int:
        """One iteration."""
        return self.episodes_per_iteration

    def per_iteration(self) -> int:
        """See Algorithm."""
        return self.episodes_per_iteration

    def steps_per_call(self) -> int:
        """An iteration's worth."""
        return self.n_updates_per_iter

    def owed(self, env_steps: int, episodes: int) -> int:
        """n_updates_per_iter after each iteration."""
        return self.n_updates_per_iter * (episodes // self.episodes_per_iteration)


ALGORITHM = Rwr
