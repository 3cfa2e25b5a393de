"""Algorithms that learn online, from what they play themselves: what a run keeps, asks for and
owes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigdm_ray.algorithms.base import Algorithm, Columns
from bigdm_ray.replay.table import Retention, Table


@dataclass(frozen=True)
class Persistence:
    """Exploration that holds on to its choices, after temporally extended exploration (Dabney,
    Ostrovski, Barreto 2020).

    In one of `every` episodes of a round each step repeats the random numbers of the step before
    with this `probability`: every action is still drawn from the policy, but an unlikely one lasts
    1 / (1 - probability) steps.
    """

    probability: float = 0.0
    every: int = 1


@dataclass(frozen=True)
class Online(Algorithm):
    """See the module. Only `owed` has no default worth having."""

    online: ClassVar[bool] = True

    @abstractmethod
    def owed(self, env_steps: int, episodes: int) -> int:
        """Learner steps owed in total once so much has been played and stored, the warm-up
        included."""

    def retention(self) -> Retention:
        """Which episodes a run keeps."""
        return Retention()

    def warm_up(self) -> int:
        """Episodes that are played at random before learning begins."""
        return 0

    def per_iteration(self) -> int:
        """Episodes that are played between two bouts of learning."""
        return 1

    def ask(self, table: Table, rng: np.random.Generator, n: int) -> Columns:
        """Commands of n new episodes, made from the living episodes. None by default."""
        return {}

    def persistence(self) -> Persistence:
        """How the episodes that are trained on explore."""
        return Persistence()

    def steps_per_call(self) -> int:
        """Learner steps after which new weights are published, where the learner runs beside the
        rollouts."""
        return 100
