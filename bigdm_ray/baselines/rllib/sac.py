"""SAC of RLlib: `python -m bigdm_ray.run sac hopper --local`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bigdm_ray.algorithms.base import Presets
from bigdm_ray.baselines.base import TrainerContext, TrainerResult, add_prefix, strip_prefix
from bigdm_ray.baselines.rllib.base import MEAN, RllibTempered
from bigdm_ray.baselines.rllib.online import SEED_STRIDE, RllibOnline, RllibOnlineTrainer
from bigdm_ray.settings import setting

BODY = {
    "default": MEAN
    | {
        "budget.env_steps": 1_000_000,
        "evaluations.every": 25_000,
        "saves.every": 100_000,
        "saves.report_every": 2_000,
    }
}
PRESETS: Presets = {
    **dict.fromkeys(("hopper", "halfcheetah", "walker2d", "reacher"), BODY),
    "*": {"default": MEAN},
}
"""The defaults are those of the paper's MuJoCo runs."""


@dataclass(frozen=True)
class RllibSac(RllibTempered, RllibOnline):
    """Hyperparameters of soft actor-critic (Haarnoja et al. 2018) with a temperature that is
    learned."""

    name: ClassVar[str] = "sac"
    presets: ClassVar[Presets] = PRESETS
    stride: ClassVar[int] = 500

    environments: int = setting(1, "environments that each runner plays side by side", low=1)
    fragment: int = setting(32, "environment steps between two bouts of learning", low=1)
    updates: float = setting(1.0, "learner steps for each environment step", above=0)
    batch_size: int = setting(256, "steps drawn for one learner step", low=1, high=1_000_000)
    buffer_size: int = setting(1_000_000, "steps that are kept, drawn alike", low=1)
    learning_starts: int = setting(
        10_000, "steps that are played at random before learning begins", low=0
    )
    actor_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the policy", above=0, high=1
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics", above=0, high=1
    )
    alpha_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the temperature", above=0, high=1
    )
    gamma: float = setting(0.99, "discount", low=0, high=1)
    tau: float = setting(
        0.005,
        "share of the critics that their targets take over at each learner step",
        above=0,
        high=1,
    )
    initial_alpha: float = setting(1.0, "temperature at the start", above=0)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.sac import SACConfig

        return SACConfig().training(
            actor_lr=self.actor_learning_rate,
            critic_lr=self.critic_learning_rate,
            alpha_lr=self.alpha_learning_rate,
            gamma=self.gamma,
            tau=self.tau,
            initial_alpha=self.initial_alpha,
            train_batch_size_per_learner=self.batch_size,
        )

    def trainer(self, context: TrainerContext) -> RllibSacTrainer:
        """See ExternalAlgorithm."""
        return RllibSacTrainer(self, context)


class RllibSacTrainer(RllibOnlineTrainer):
    """Play a fragment, keep its steps, take learner steps on steps drawn alike from all that are
    kept."""

    algorithm: RllibSac

    def __init__(self, algorithm: RllibSac, context: TrainerContext) -> None:
        super().__init__(algorithm, context)
        self._kept = RingBuffer(
            min(algorithm.buffer_size, context.budget + SEED_STRIDE),
            self.seen.size,
            self.action.size,
        )
        self._chance = np.random.default_rng(context.seed)

    def step(self, steps: int) -> TrainerResult:
        """See Trainer."""
        algorithm = self.algorithm
        before, learned = self.env_steps, self.learner_steps
        returns: list[float] = []
        lengths: list[int] = []
        metrics: dict[str, float] = {}
        while self.env_steps - before < steps:
            pieces, ended, long = self.play_episodes(
                algorithm.fragment, random=self.env_steps < algorithm.learning_starts
            )
            returns, lengths = returns + ended, lengths + long
            self._kept.add(pieces)
            owed = (
                algorithm.updates * max(0, self.env_steps - algorithm.learning_starts)
                - self.learner_steps
            )
            for _ in range(math.floor(owed)):
                self.learn_batch(
                    self._kept.draw(self._chance, algorithm.batch_size, self.context.device)
                )
            if owed >= 1:
                self._sync()
                # here, because RLlib keeps the graphs of all errors until they are reported
                metrics = self.metrics()
        return TrainerResult(
            self.env_steps - before, self.learner_steps - learned, returns, lengths, metrics
        )

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer: with the steps that are kept."""
        return super().state() | add_prefix("kept/", self._kept.state())

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        super().restore(state)
        self._kept.restore(strip_prefix(state, "kept/"))


class RingBuffer:
    """The newest steps: arrays `[capacity, ...]`, of which `count` rows are filled and `position`
    is written next."""

    def __init__(self, capacity: int, seen: int, done: int) -> None:
        self.capacity, self.count, self.position = capacity, 0, 0
        widths = {
            "obs": (seen,),
            "new_obs": (seen,),
            "actions": (done,),
            "rewards": (),
            "terminateds": (),
        }
        self.columns = {
            name: np.zeros((capacity, *width), np.float32) for name, width in widths.items()
        }

    def add(self, pieces: list[Any]) -> None:
        """Take in the steps of some episodes of RLlib, the oldest first."""
        for piece in pieces:
            if not len(piece):
                continue
            seen, last = piece.get_observations(), np.zeros(len(piece), np.float32)
            last[-1] = float(piece.is_terminated)
            rows = (self.position + np.arange(len(piece))) % self.capacity
            new = {
                "obs": seen[:-1],
                "new_obs": seen[1:],
                "actions": piece.get_actions(),
                "rewards": piece.get_rewards(),
                "terminateds": last,
            }
            for name, values in new.items():
                self.columns[name][rows] = values
            self.position = int(rows[-1] + 1) % self.capacity
            self.count = min(self.capacity, self.count + len(piece))

    def draw(self, chance: np.random.Generator, size: int, device: str) -> dict[str, torch.Tensor]:
        """`size` rows, each as likely as every other, as RLlib's learner of SAC wants them."""
        rows = chance.integers(0, self.count, size)
        batch = {
            name: torch.from_numpy(values[rows]).to(device) for name, values in self.columns.items()
        }
        return batch | {
            "n_step": torch.ones(size, device=device),
            "weights": torch.ones(size, device=device),
        }

    def state(self) -> dict[str, np.ndarray]:
        """The filled rows, the oldest first."""
        turn = -self.position if self.count == self.capacity else 0
        return {
            name: np.roll(values[: self.count], turn, 0) for name, values in self.columns.items()
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state` gave; of more rows than there is room for, the newest."""
        for name, values in state.items():
            newest = values[-self.capacity :]
            self.columns[name][: len(newest)] = newest
            self.count = len(newest)
        self.position = self.count % self.capacity
