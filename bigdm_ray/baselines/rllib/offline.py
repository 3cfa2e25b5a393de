"""What CQL, IQL and MARWIL have in common: our Store draws, RLlib's Learner learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.algorithms.base import Presets
from bigdm_ray.baselines.base import TrainerContext, TrainerResult, to_unit
from bigdm_ray.baselines.rllib.base import MEAN, Rllib
from bigdm_ray.baselines.rllib.trainer import RllibTrainer
from bigdm_ray.errors import UserError
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting


@dataclass(frozen=True)
class RllibOffline(Rllib):
    """Algorithms that learn from a dataset."""

    stride: ClassVar[int] = 50
    presets: ClassVar[Presets] = {"*": {"default": MEAN}}

    batch_size: int = setting(256, "steps drawn for one learner step", low=1, high=1_000_000)

    def trainer(self, context: TrainerContext) -> RllibTrainer:
        """See ExternalAlgorithm."""
        return RllibOfflineTrainer(self, context)

    def view(self, step: int = 0) -> View:
        """See Algorithm: every step alike, with the observation that followed it."""
        return View(weight="length", next_observation=True, terminals=True)

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    def reward_scale(self, store: Store) -> float:
        """What rewards are multiplied by."""
        return 1.0

    def told_scale(self, store: Store | None) -> float:
        """See Rllib."""
        if store is None:
            raise UserError(
                f"what {self.name} multiplies rewards by comes from its dataset, which does "
                "not lie where the run found it; put it there"
            )
        return self.reward_scale(store)

    def begin(self, learner: Any, steps: int) -> None:
        """What RLlib's learner must be told before its next bout, after so many learner steps."""

    def prepare(self, context: TrainerContext, path: str, learner: Any) -> Any:
        """What is computed once from the episodes, for `targets`.

        `path` is that of the observation, `learner` RLlib's.
        """
        return None

    def targets(
        self, prepared: Any, annotations: dict[str, np.ndarray], module: Any
    ) -> dict[str, Tensor]:
        """More columns of a batch of n rows."""
        return {}


class RllibOfflineTrainer(RllibTrainer):
    """CQL, IQL and MARWIL: our Store draws, RLlib's Learner learns."""

    algorithm: RllibOffline

    def __init__(self, algorithm: RllibOffline, context: TrainerContext) -> None:
        super().__init__(algorithm, context)
        assert context.store is not None
        self._scale = algorithm.reward_scale(context.store)
        self._prepared = algorithm.prepare(context, self.path, self.learner)

    def step(self, steps: int) -> TrainerResult:
        """See Trainer: so many learner steps."""
        self.algorithm.begin(self.learner, self.learner_steps)
        for _ in range(steps):
            self.learn_batch(self.batch())
        return TrainerResult(0, steps, metrics=self.metrics())

    def batch(self) -> dict[str, torch.Tensor]:
        """The columns of RLlib for one learner step: a pure function of the seed and the learner
        step."""
        store, algorithm = self.context.store, self.algorithm
        assert store is not None
        chance = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.context.seed, self.learner_steps]))
        )
        windows = store.draw(algorithm.view(), chance, algorithm.batch)
        actions = windows.actions[self.action_path][:, 0]
        columns = {
            "obs": windows.observations[self.path][:, 0].astype(np.float32, copy=False),
            "actions": actions.astype(np.int64)
            if self.action.kind == "discrete"
            else to_unit(actions, self.action),
            "rewards": windows.rewards[:, 0] * np.float32(self._scale),
        }
        if windows.terminated is not None:
            columns |= {
                "new_obs": windows.next_observations[self.path][:, 0].astype(
                    np.float32, copy=False
                ),
                "terminateds": windows.terminated[:, 0],
            }
        batch = {
            name: torch.from_numpy(np.ascontiguousarray(values)).to(self.context.device)
            for name, values in columns.items()
        }
        return batch | algorithm.targets(self._prepared, windows.annotations, self.module)
