"""The contracts of Algorithm and Policy, and how algorithms are found.

All of the family maximise E[ m(s, a) log pi(a | s) ]; an algorithm answers four questions: what is
drawn (`view`), what the network is (`build`), what the weight m is (`loss`), how it acts
(`policy`). It is a frozen dataclass whose fields are its hyperparameters, in one file of this
folder, or one package of small ones, with `ALGORITHM = TheClass` at its end.

Here is what all have: `build`, `policy` and the commands that it takes. What learns from windows
(`learned.py`) and what learns online (`online.py`) has more; an algorithm derives from what it is:

    class Udrl(Supervised, Online): ...
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError, suggest_names
from bigdm_ray.formats.behaviour import Mode as Mode
from bigdm_ray.plugins import plugins
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.store import Store, Table

Columns = dict[str, np.ndarray]
"""Commands of n rows: `desired_return`, `desired_horizon`, ... each `[n]` float32."""


State = dict[str, Any]
"""A policy's memory by name: numpy arrays, or tensors on the policy's device, whose first axis is
the row. Rows of it are taken (`take`) and put (`put`), and so they join and leave."""

Prompts = Sequence[Episode | None]
"""What each row is shown before it acts: a demonstration, or nothing."""

Presets = Mapping[str, Mapping[str, dict[str, Any]]]
"""Task -> name -> flags (`algorithm.learning_rate`) that differ from the defaults; the task `*` is
every other one."""

FOLDERS = ("algorithms", "baselines")
"""Where algorithms are found."""


class CriticValues(NamedTuple):
    """What a network thinks of actions, in rewards."""

    values: Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]
    """Q(s, a) `[n]` of observations and actions by leaf `[n, ...]`; where there are two critics,
    the smaller of them."""
    discount: float


class Pretraining(NamedTuple):
    """What a run on a dataset does before its policy learns what the method is about."""

    steps: int
    """Learner steps of it."""
    settings: tuple[str, ...]
    """The hyperparameters that say how many."""
    policy: str = ""
    """What the policy is at its end; nothing where it is untrained."""


def take(state: State, rows: np.ndarray) -> State:
    """Copies of these rows `[m]` (indices) of a memory; tensors stay on their device."""
    return {
        name: values.index_select(0, torch.from_numpy(rows).to(values.device))
        if isinstance(values, Tensor)
        else values[rows]
        for name, values in state.items()
    }


def put(state: State, rows: np.ndarray, part: State) -> None:
    """Write `part`, a memory of m rows, over these rows `[m]` (indices) of `state`, in place."""
    tensors = {}
    for name, values in state.items():
        if isinstance(values, Tensor):
            tensors[name] = values
        else:
            values[rows] = part[name]
    if tensors:
        with torch.inference_mode():  # they were made in it
            for name, values in tensors.items():
                values.index_copy_(0, torch.from_numpy(rows).to(values.device), part[name])


class Policy(ABC):
    """How a model acts, n rows at a time.

    The caller holds the memory; all chance comes from `uniforms`.

    Rows are independent of each other: a memory of many rows may act for some of them at a time
    (`take`, `act`, `put`), and a new row is put where one has left.
    """

    uniforms: int
    """Random numbers a row uses per step."""

    def start(self, n: int, prompts: Prompts | None = None) -> State:
        """Memory of n rows before their first step, of what each was shown in `prompts`, if
        anything.

        Raises UserError for a prompt that the policy cannot read; by default it reads none.
        """
        if prompts is not None and any(prompt is not None for prompt in prompts):
            raise UserError("this policy takes no prompt; leave it out")
        return self.empty(n)

    def empty(self, n: int) -> State:
        """Empty memory of n rows: none by default."""
        return {}

    @abstractmethod
    def act(
        self,
        state: State,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        commands: Columns,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], State]:
        """Actions by leaf `[n, ...]` and the new memory.

        `rewards [n]` are of the step before; where `first [n]` is set the row's memory is dropped
        and its reward ignored. `commands` are those of this step, `uniforms [n, k]` lie in [0, 1).
        The memory that is given is used up: what is not copied before (`take`) may be written over.
        Nothing else that is given changes.
        """

    def show_plans(self, place: str, show: Callable[[np.ndarray], None]) -> bool:
        """Call `show` with each plan: the leaf `place` of the states `[plans, H, size]` it may lead
        to.

        False for a policy that makes none; by default it makes none.
        """
        return False

    def after(self, commands: Columns, rewards: np.ndarray, max_return: float | None) -> Columns:
        """The commands of the next step: what was received is no longer desired, and one step less
        remains.

        Srivastava et al. 2019, Algorithm 2 and section 2.3.2: d_r - r capped at the highest return
        that the task can pay, d_h - 1 but never below 1.
        """
        out = dict(commands)
        if "desired_return" in commands:
            left = commands["desired_return"] - rewards
            out["desired_return"] = (
                left if max_return is None else np.minimum(left, np.float32(max_return))
            )
        if "desired_horizon" in commands:
            out["desired_horizon"] = np.maximum(commands["desired_horizon"] - 1, np.float32(1))
        return out


def device_of(model: nn.Module) -> torch.device:
    """Where a module's arrays are. A policy stays where its model was when it was made."""
    return next(itertools.chain(model.parameters(), model.buffers())).device


class Memoryless(Policy):
    """Acts on the observation alone: `choose` makes actions by leaf, of observations by leaf
    `[n, ...]` and uniforms `[n, k]`, where `model` is."""

    def __init__(
        self,
        model: nn.Module,
        choose: Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]],
        uniforms: int,
    ) -> None:
        self._device = device_of(model)
        self._choose = choose
        self.uniforms = uniforms

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
        seen = {
            path: torch.from_numpy(values).to(self._device) for path, values in observations.items()
        }
        actions = self._choose(seen, torch.from_numpy(uniforms).to(self._device))
        return {path: values.cpu().numpy() for path, values in actions.items()}, state


@dataclass(frozen=True)
class Algorithm(ABC):
    """What all algorithms have: a network, a policy, and the commands that it takes."""

    name: ClassVar[str]
    commands: ClassVar[tuple[str, ...]] = ()
    """The columns of a command that tell the policy what to achieve, if any."""
    online: ClassVar[bool] = False
    """Whether it can learn from what it plays itself (`online.py`; other libraries play by
    themselves)."""
    offline: ClassVar[bool] = True
    """Whether it can learn from a dataset."""
    several: ClassVar[bool] = False
    """Whether one network can learn several tasks, of different signatures."""
    offline_steps: ClassVar[int] = 100_000
    """Learner steps of a run on a dataset that is given no budget."""
    fixed: ClassVar[tuple[str, ...]] = ("hidden", "channels", "frame_stack")
    """Hyperparameters that a run which starts from another must share with it: those that shape
    network and optimizers."""
    acting: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a trained network can be given other values of when it acts."""
    presets: ClassVar[Presets] = {}
    """Settings for known tasks: a table beside the algorithm."""
    played_preset: ClassVar[str] = "default"
    """The preset of a run that plays and names none, where the task has it; on a dataset that is
    always `default`."""

    @abstractmethod
    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """The network for these tasks, initialised from torch's global random state."""

    @abstractmethod
    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """How `model` acts in a task of this signature, which a model of one task need not be told.

        Raises UserError for a mode that the algorithm does not have.
        """

    def policy_in(self, model: nn.Module, mode: Mode, signature: Signature, task: str) -> Policy:
        """How `model` acts in one of its tasks, by name; see `policy`, which is all that most need:
        for what tells tasks of one signature apart."""
        return self.policy(model, mode, signature)

    def judge(
        self,
        model: nn.Module,
        store: Store | None,
        kept: Callable[[], Mapping[str, np.ndarray]],
    ) -> CriticValues | None:
        """What the method thinks of actions; None where nothing of it judges them.

        `store` holds the dataset, where the run had one and it is at hand; `kept` gives the arrays
        of the run's last checkpoint, for critics that do not act. Raises UserError where either is
        needed and missing.
        """
        return None

    def return_estimator(self, model: nn.Module) -> Callable[[Episode], np.ndarray] | None:
        """What the network expects to be paid yet at each step of an episode `[T]`, where it says
        so.

        Raises UserError where it cannot be asked for with these settings.
        """
        return None

    @property
    def whole_returns(self) -> bool:
        """Whether commands and expectations are of the whole return at every step."""
        return False

    @property
    def cache(self) -> bool | None:
        """Whether the policy keeps what it computed of earlier steps; None where it has no
        choice."""
        return None

    def complete_command(self, asked: Mapping[str, float]) -> dict[str, float]:
        """What is asked for, with what follows from it."""
        return dict(asked)

    def for_data(self, steps: int, episodes: int) -> Algorithm:
        """These hyperparameters for a dataset of so many steps and episodes: a run on it has what
        they leave to its size as numbers."""
        return self

    def remark(self, signature: Signature) -> str | None:
        """What surprises of these settings where episodes are played for training, in one
        sentence."""
        return None

    def pretraining(self) -> Pretraining | None:
        """The learner steps that a budget must pass to be of use, if there are any."""
        return None

    def evaluation_command(self, table: Table) -> dict[str, float]:
        """The command that the policy is scored with. None by default."""
        return {}


def own_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An algorithm's settings by the names that they have as flags of a run, for presets: `beams`
    -> `algorithm.beams`."""
    return {f"algorithm.{name}": value for name, value in settings.items()}


def algorithms(folders: tuple[str, ...] = FOLDERS) -> dict[str, type[Algorithm]]:
    """Every algorithm of these folders, and without a choice of them of installed packages, by
    name.

    A file is found by being there; one that holds several has `ALGORITHMS`. Raises UserError for a
    package whose algorithms cannot be had.
    """
    found: dict[str, type[Algorithm]] = {}
    for folder in folders:
        package = importlib.import_module(f"bigdm_ray.{folder}")
        for _, name, _ in pkgutil.iter_modules(package.__path__):
            found |= _held(importlib.import_module(f"bigdm_ray.{folder}.{name}"))
    for place, plugin in plugins("bigdm_ray.algorithms").items() if folders == FOLDERS else ():
        own = _held(plugin.module)
        for kind in own.values():
            if hasattr(kind, "prelude"):
                raise UserError(
                    f"{place} has {kind.__name__}.prelude(), which is pretraining() now; rename it"
                )
        if twice := found.keys() & own.keys():
            raise UserError(
                f"{place} has an algorithm {min(twice)!r}, which there is already; rename it"
            )
        found |= own
    return dict(sorted(found.items()))


def _held(module: ModuleType) -> dict[str, type[Algorithm]]:
    kinds = getattr(module, "ALGORITHMS", (getattr(module, "ALGORITHM", None),))
    return {kind.name: kind for kind in kinds if kind is not None}


def find_algorithm(name: str) -> type[Algorithm]:
    """The class of an algorithm. Raises UserError with the nearest names."""
    known = algorithms()
    if name not in known:
        raise UserError(f"unknown algorithm {name!r}{suggest_names(name, list(known))}")
    return known[name]
