"""The contracts of methods that bootstrap: they share task, store, draws, evaluation and run
folder, and take their own steps.

A Baseline draws windows like others, but its `update` takes the learner step itself: several
optimizers in turn, target networks, noise. Target networks are submodules of the network, so that a
checkpoint holds them. Chance comes from torch's global generator, which the learner seeds at every
step.

An ExternalAlgorithm is trained by another library, through a Trainer; `build` and `policy` are
ours, so that a run folder is scored without that library.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Algorithm
from bigdm_ray.algorithms.learned import Learned
from bigdm_ray.envs.signature import Leaf
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import Step
from bigdm_ray.errors import RunFailed, UserError, install
from bigdm_ray.replay.store import Store


@dataclass(frozen=True)
class Baseline(Learned):
    """See the module."""

    @abstractmethod
    def update(
        self,
        model: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        batch: dict[str, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """One learner step on a batch `[B, 1, ...]`; metrics as scalars. On one rank only."""


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move a target network towards the online one: target <- (1 - rate) target + rate online."""
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in online.parameters()], rate)


# --- other libraries


@dataclass(frozen=True)
class TrainerContext:
    """What a Trainer works on."""

    task: Task
    seed: int  # another one for each start of a run
    # environment steps of the whole run, or learner steps on a dataset: what schedules end at
    budget: int
    device: str  # cpu, cuda or cuda:N
    actors: int = 0  # processes that play beside this one; 0 plays here
    store: Store | None = None  # the episodes of a run on a dataset
    patience_s: float | None = None  # how long those processes are waited for; None: for ever


@dataclass(frozen=True)
class TrainerResult:
    """What a call of `Trainer.step` came to; `returns` and `lengths` are of the episodes that ended
    in it."""

    env_steps: int
    learner_steps: int
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # `train/NAME`, means over the call


class Trainer(Protocol):
    """Another library at work."""

    def step(self, steps: int) -> TrainerResult:
        """Train for about so many environment steps, or so many learner steps on a dataset."""

    def weights(self) -> dict[str, np.ndarray]:
        """The state of the network that `ExternalAlgorithm.build` makes, as the library has trained
        it."""

    def state(self) -> dict[str, np.ndarray]:
        """All that training needs to go on, as arrays by name."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state` gave. Environments begin new episodes."""

    def close(self) -> None:
        """Let go of environments and processes."""


@dataclass(frozen=True)
class ExternalAlgorithm(Algorithm):
    """A method that another library trains.

    Its fields are the library's hyperparameters under the papers' names.
    """

    library: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that training needs; scoring does without."""
    on_ray: ClassVar[bool] = False
    """Whether the library itself runs on Ray."""
    stride: ClassVar[int] = 2_000
    """Steps of one call of `Trainer.step`, at most."""

    @abstractmethod
    def trainer(self, context: TrainerContext) -> Trainer:
        """The library, ready to train. Raises UserError for what it cannot do."""

    def require(self) -> None:
        """Raise UserError, naming the extra that helps, where the library is missing."""
        for module in self.needs:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(
                    f"{self.name} is trained by {self.library}, and the package {module!r} is"
                    f" missing ({error}); install it with: {install('baselines')}"
                ) from None


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """The moments of an optimizer, `INDEX/KEY` by name; its settings are those of the run."""
    slots = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value).detach().cpu().numpy().copy()
        for index, kept in slots.items()
        for key, value in kept.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: dict[str, np.ndarray]) -> None:
    """Take over what `optimizer_state` gave."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        index, key = name.split("/")
        slots.setdefault(int(index), {})[key] = torch.from_numpy(np.array(value))
    optimizer.load_state_dict(
        {"state": slots, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def strip_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def add_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `strip_prefix`."""
    return {prefix + name: value for name, value in arrays.items()}


def require_sound(step: Step, name: str) -> None:
    """Raise RunFailed where a row is not sound: the libraries cannot discard an episode."""
    if not step.is_sound:
        why = next(iter(step.problems().values()))
        raise RunFailed(f"an environment failed while {name} played it: {why}")


def spaces_of(leaf: Leaf, unit: bool = False) -> Any:
    """The gymnasium space of one choice or one vector; with `unit`, bounded elements run from -1 to
    1."""
    from gymnasium import spaces

    if leaf.kind == "discrete":
        return spaces.Discrete(sum(leaf.choices))
    if leaf.low is None or leaf.high is None:
        return spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)
    if unit:
        return spaces.Box(-1.0, 1.0, leaf.shape, np.float32)
    return spaces.Box(
        np.array(leaf.low, np.float32), np.array(leaf.high, np.float32), dtype=np.float32
    )


def to_unit(actions: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Continuous actions `[n, size]` with the leaf's bounds at -1 and 1; as they are where there
    are none."""
    if leaf.low is None or leaf.high is None:
        return actions
    low, high = np.array(leaf.low, np.float32), np.array(leaf.high, np.float32)
    return np.asarray(np.clip(2.0 * (actions - low) / (high - low) - 1.0, -1.0, 1.0), np.float32)


def from_unit(actions: np.ndarray, leaf: Leaf) -> np.ndarray:
    """The inverse of `to_unit`, clipped to the bounds."""
    if leaf.low is None or leaf.high is None:
        return actions
    low, high = np.array(leaf.low, np.float32), np.array(leaf.high, np.float32)
    return np.asarray(np.clip(low + (actions + 1.0) * (high - low) / 2.0, low, high), np.float32)
