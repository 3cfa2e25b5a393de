"""MARWIL of RLlib: `python -m bigdm_ray.run marwil DATASET`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.baselines.base import TrainerContext
from bigdm_ray.baselines.rllib import inner
from bigdm_ray.baselines.rllib.base import RllibGaussian
from bigdm_ray.baselines.rllib.offline import RllibOffline
from bigdm_ray.replay.returns import discounted_returns, episode_groups
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting


@dataclass(frozen=True)
class RllibMarwil(RllibGaussian, RllibOffline):
    """Hyperparameters of monotonic advantage re-weighted imitation learning (Wang et al. 2018);
    beta 0 is behaviour cloning."""

    name: ClassVar[str] = "marwil"
    activation: ClassVar[str] = "relu"

    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    gamma: float = setting(0.99, "discount of the returns", low=0, high=1)
    beta: float = setting(1.0, "how much the advantages weigh", low=0)
    value_coefficient: float = setting(1.0, "weight of the value loss", low=0)
    norm_start: float | None = setting(
        None,
        "mean square that advantages are divided by the root of, at the start; default: that of the"
        " returns",
        above=0,
    )
    norm_rate: float = setting(1e-3, "how fast that follows the advantages", low=0, high=1)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.marwil import MARWILConfig

        return MARWILConfig().training(
            lr=self.learning_rate,
            gamma=self.gamma,
            beta=self.beta,
            vf_coeff=self.value_coefficient,
            moving_average_sqd_adv_norm_start=self.norm_start or 1.0,
            moving_average_sqd_adv_norm_update_rate=self.norm_rate,
            train_batch_size_per_learner=self.batch_size,
        )

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """See Rllib."""
        return {"squared_advantage": inner.squared_advantage(learner)}

    def view(self, step: int = 0) -> View:
        """See Algorithm."""
        return View(weight="length", annotations=("discounted_return", "discount_left", "episode"))

    def prepare(self, context: TrainerContext, path: str, learner: Any) -> Tensor:
        """Annotate the steps with what their value targets are made of; the last observation of
        each episode `[e, width]`.

        The first weights are exp(beta R / c): with RLlib's own c of 10 and returns in the hundreds
        they would fill Adam's second moments for good, so c begins as the root mean square of the
        returns.

        RLlib's targets are generalised advantages with lambda 1 plus the value: the discounted
        return to the episode's end and, where a time limit ended it, the discounted value of its
        last observation.
        """
        store = context.store
        assert store is not None
        lengths = store.table.lengths
        returns, last, ends = [], [], []
        for group in episode_groups(store):
            returns.append(discounted_returns(group.rewards, group.lengths, self.gamma))
            last.append(
                group.observations[path][np.cumsum(group.lengths + 1) - 1].astype(np.float32)
            )
            ends.append(group.terminated)
        which = np.repeat(np.arange(len(lengths)), lengths)
        remaining = store.table.ends[which] - np.arange(len(which))
        left = np.where(np.concatenate(ends)[which], 0.0, self.gamma**remaining).astype(np.float32)
        together = np.concatenate(returns)
        if self.norm_start is None:
            self.memory(learner)["squared_advantage"].fill_(float(np.mean(np.square(together))))
        store.annotate(
            {
                "discounted_return": together,
                "discount_left": left,
                "episode": which.astype(np.float32),
            }
        )
        return torch.from_numpy(np.concatenate(last)).to(context.device)

    def targets(
        self, prepared: Any, annotations: dict[str, np.ndarray], module: Any
    ) -> dict[str, Tensor]:
        """See RllibOffline: `value_targets` with the value as it is now."""
        returns, left, which = (
            torch.from_numpy(annotations[name][:, 0]).to(prepared.device)
            for name in self.view().annotations
        )
        open_ended = left > 0
        if bool(open_ended.any()):
            with torch.no_grad():
                values = module.compute_values({"obs": prepared[which[open_ended].long()]})
            returns[open_ended] += left[open_ended] * values
        return {"value_targets": returns}
