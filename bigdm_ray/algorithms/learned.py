"""Algorithms that learn from windows of episodes, which the learner draws, step by step.

`Learned` says what is drawn, what is made of it before (`fit`, `annotate`) and which optimizers
there are. `Supervised` descends on a loss; a method that takes its own steps is a `Baseline`
(`baselines/base.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Algorithm, Columns
from bigdm_ray.envs.signature import Signature
from bigdm_ray.models.networks import MultiTaskNetwork
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View, Windows

Batch = dict[str, np.ndarray]
"""What a loss reads: arrays by name; leaves are `observations/PATH` and `actions/PATH`."""


def select_leaves(batch: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """The leaves of a batch by path: those of `observations`, `actions`, `next_observations` or
    `goals`; or what it has of a task."""
    return {
        name.removeprefix(f"{group}/"): values
        for name, values in batch.items()
        if name.startswith(f"{group}/")
    }


class Loss(NamedTuple):
    """A loss as a sum and its weight: the learner divides by the weight summed over ranks and
    micro-batches."""

    sum: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]  # sums of the same weight, reported as means
    counts: Mapping[str, Tensor] = MappingProxyType({})  # reported as sums over ranks


def of_tasks(
    model: MultiTaskNetwork,
    batch: dict[str, Tensor],
    loss: Callable[[nn.Module, dict[str, Tensor]], Loss],
) -> Loss:
    """The loss of a batch of `collate_several`: the sum over the tasks, each with its part of the
    network.

    Beside the metrics of all there are those of each task, `TASK/NAME`, and `TASK/train/share`, its
    share of the weight (see `metrics.by_task`).
    """
    nothing = next(iter(batch.values())).new_zeros((), dtype=torch.float32)
    total, weight, metrics = nothing, nothing, dict[str, Tensor]()
    for task in model.tasks:
        share, own = nothing, select_leaves(batch, task)
        if own:
            one = loss(model.part(task), own)
            total, weight, share = total + one.sum, weight + one.weight, one.weight
            for name, value in one.metrics.items():
                metrics[name] = metrics.get(name, nothing) + value
                metrics[f"{task}/{name}"] = value
        metrics[f"{task}/train/share"] = share.detach()
    return Loss(total, weight, metrics)


@dataclass(frozen=True)
class Learned(Algorithm):
    """See the module. What is drawn first, then what has a default."""

    @abstractmethod
    def view(self, step: int = 0) -> View:
        """What is drawn for a learner step."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Windows drawn for one learner step, all ranks together."""

    @abstractmethod
    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by name; each steps at every learner step."""

    def views(self, signatures: Mapping[str, Signature], step: int) -> dict[str, View]:
        """What is drawn for a learner step of each task: `view`, unless their windows differ."""
        return dict.fromkeys(signatures, self.view(step))

    def collate(self, windows: Mapping[str, Windows]) -> Batch:
        """Windows of each task as one batch. The default takes those of the only task as they are.

        Of several tasks, those that give no window to this batch are missing, and windows of a
        learner rank may have no rows.
        """
        (only,) = windows.values()
        batch = {f"observations/{path}": v for path, v in only.observations.items()}
        batch |= {f"actions/{path}": v for path, v in only.actions.items()}
        batch |= {f"next_observations/{path}": v for path, v in only.next_observations.items()}
        batch |= {f"goals/{path}": v for path, v in only.goals.items()}
        if only.terminated is not None:
            batch["terminated"] = only.terminated
        return (
            batch
            | only.columns
            | only.annotations
            | {"rewards": only.rewards, "mask": only.mask, "timesteps": only.timesteps}
        )

    def collate_several(self, windows: Mapping[str, Windows]) -> Batch:
        """Windows of some of a run's several tasks as one batch.

        The default names each array `TASK/NAME`: see `of_tasks`.
        """
        return {
            f"{task}/{name}": values
            for task, own in windows.items()
            for name, values in self.collate({task: own}).items()
        }

    def fits(self, step: int) -> bool:
        """Whether `fit` is called before this learner step."""
        return step == 0

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Whole passes over the living episodes, for what becomes buffers of the network:
        statistics, copies, thresholds."""
        return None

    def annotate(
        self, model: nn.Module, stores: Mapping[str, Store], step: int
    ) -> dict[str, Columns]:
        """Columns `[steps]` float32 by task, in the order of the tables, for a View's
        `annotations`.

        A pure function of the network, the episodes and the learner step that comes next, computed
        after each `fit` and after a resume. Columns that no View asks for before the next `fit` may
        be missing.
        """
        return {}

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """What the learning rates of an optimizer are multiplied by at a learner step: its
        schedule."""
        return 1.0


@dataclass(frozen=True)
class Supervised(Learned):
    """Descends on a loss of the batch: E[ m(s, a) log pi(a | s) ] and its kin."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """The loss of one batch of windows `[B, K, ...]`."""

    @property
    def clip_norm(self) -> float | None:
        """Norm that the gradients of the first optimizer's parameters together are cut down to;
        None leaves them."""
        return None
