"""Values: everything that decides a run, as frozen dataclasses, made once and never written to.

Each flag is the path of a field (`--algorithm.learning-rate`), so whatever a dataclass declares can
be typed, is explained by `--help` with its default, and stands in `run.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bigdm_ray.algorithms.base import Algorithm
from bigdm_ray.algorithms.learned import Supervised
from bigdm_ray.algorithms.online import Online
from bigdm_ray.baselines.base import Baseline
from bigdm_ray.envs.task import Task, canonical_name, find_task
from bigdm_ray.errors import UserError, suggest_names
from bigdm_ray.formats.behaviour import MODES
from bigdm_ray.formats.dataset import references
from bigdm_ray.formats.signatures import sound_signature
from bigdm_ray.replay.table import Retention
from bigdm_ray.settings import check_settings, convert, flag, setting, to_json

SCHEMA_VERSION = 2
"""Of a run of several tasks; that of one task is written as version 1 wrote it."""


@dataclass(frozen=True)
class DatasetOrigin:
    """The dataset that a run learns from: where it lies, and what it was when the run began."""

    folder: str
    name: str
    sha256: str
    source: str
    episodes: int
    steps: int
    return_mean: float
    versions: dict[str, str] = field(default_factory=dict)
    signature: str | None = None  # JSON of what its arrays look like, where no environment tells
    reference_returns: tuple[float, ...] | None = None  # that its file tells: random, expert


@dataclass(frozen=True)
class TaskUse:
    """A task of a run, where its episodes come from, and how often it is drawn.

    Where there is no dataset the run plays it. Only the ratio of the weights of a run's tasks
    counts. Raises UserError for a weight that is no share.
    """

    name: str
    dataset: DatasetOrigin | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical_name(self.name))
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                f"the weight of task {self.name} is {self.weight:g}, but a number above 0 is"
                " expected"
            )

    @functools.cached_property
    def task(self) -> Task:
        """The task itself, with what its dataset tells where it is silent.

        These are the arrays, where there is no environment, and returns for the normalised score.
        Raises UserError for a name that is not known here.
        """
        task, told = find_task(self.name), self.dataset
        if told is None:
            return task
        if not task.plays:
            seen = sound_signature(told.signature, "run.json")
            return dataclasses.replace(task, seen=seen)
        if task.reference_returns is None and told.reference_returns is not None:
            return dataclasses.replace(task, reference_returns=references(told.reference_returns))
        return task

    def to_json(self) -> dict[str, Any]:
        """What run.json says of it among several."""
        return {"task": self.name, "dataset": to_json(self.dataset), "weight": self.weight}


@dataclass(frozen=True)
class StartingRun:
    """The run that another one starts from: where it lies, and where it stood."""

    folder: str
    algorithm: str
    learner_step: int
    dataset: str | None = None


@dataclass(frozen=True)
class Budget:
    """When a run ends: at the first of these."""

    env_steps: int = setting(10_000_000, "environment steps, warm-up included", low=1)
    learner_steps: int | None = setting(None, "learner steps", low=1)
    minutes: float | None = setting(
        None, "minutes of wall time since the run (or its resume) began", above=0
    )


@dataclass(frozen=True)
class Rollouts:
    """How episodes are played. Groups and environments decide what is played, actors only where."""

    groups: int | None = setting(
        None, "vector environments that share a round's episodes; default: one an actor", low=1
    )
    environments: int = setting(
        32, "environments in a group, at most as many as it plays episodes a round", low=1
    )
    own: bool = setting(
        True, "whether the run plays itself; else it learns from what is sent to --serve alone"
    )


@dataclass(frozen=True)
class Evaluations:
    """How often and how long the policy is scored, on gymnasium's environments."""

    every: int = setting(
        250_000,
        "environment steps between evaluations; learner steps for a run on a dataset",
        low=1,
    )
    episodes: int = setting(20, "episodes of each", low=1)
    final_episodes: int = setting(
        100, "episodes of the last one, and of the re-score of the best weights", low=1
    )
    mode: str = setting("sample", "how the policy acts", choices=MODES)


@dataclass(frozen=True)
class Saves:
    """Checkpoints and reports."""

    every: int = setting(
        500_000,
        "environment steps between checkpoints; learner steps for a run on a dataset",
        low=1,
    )
    report_every: int = setting(
        20_000,
        "environment steps between lines of metrics; learner steps for a run on a dataset",
        low=1,
    )
    flat_mib: int = setting(
        2048,
        "MiB of episodes that are kept in memory for drawing; the rest is drawn from the maps, of a"
        " dataset in turns",
        low=0,
    )
    milestones: bool = setting(
        False,
        "whether the weights of every checkpoint are kept, for `data record RUN --weights"
        " milestones`",
    )
    wandb: str | None = setting(None, "project of Weights & Biases that is told the reports too")
    mlflow: str | None = setting(
        None,
        "tracking URI of MLflow that is told the reports too: sqlite:///FILE, http://HOST:PORT",
    )


@dataclass(frozen=True)
class Machines:
    """Where the parts stand."""

    actors: int = setting(1, "rollout actors (--actors)", low=1, high=10_000)
    learners: int = setting(1, "data-parallel learner ranks (--learners)", low=1, high=1_024)
    device: str = setting("auto", "where the learner trains: auto, cpu, cuda or cuda:N (--device)")
    address: str = setting(
        "local", "Ray cluster to join; `local` starts one on this machine (--address)"
    )
    lock_step: bool = setting(
        False, "play, store and learn in turn, equal to --local bit for bit; else side by side"
    )
    max_staleness: int = setting(
        200,
        "learner steps that may be owed when a rollout starts, so that its weights are not far"
        " behind",
        low=1,
    )
    threads: int = setting(1, "torch threads of the learner", low=1, high=512)
    precision: str = setting(
        "float32",
        "what the learner's transformer computes in; its weights are float32",
        choices=("float32", "bf16"),
    )
    compile: bool = setting(
        False,
        "have torch.compile compile the learner's transformer; equal to rounding where nothing is"
        " dropped out",
    )
    patience: float | None = setting(
        30.0,
        "minutes that a run waits for a machine, or for one answer of one (for each episode or"
        " learner step that it is to do), before it ends; it says every half minute what for; none"
        " waits for ever",
        above=0,
    )

    @property
    def patience_s(self) -> float | None:
        """`patience` in seconds."""
        return None if self.patience is None else 60 * self.patience


SETTINGS = ("budget", "rollouts", "evaluations", "saves", "machines")
"""The groups of a run's settings beside the algorithm's."""


@dataclass(frozen=True)
class Run:
    """Algorithm, tasks, seed and settings. The folder is not part of it: a run may be moved.

    A name in place of `tasks` is that of the only task, which the run plays.
    """

    algorithm: Algorithm
    tasks: tuple[TaskUse, ...]
    preset: str = "default"
    seed: int = 1
    budget: Budget = field(default_factory=Budget)
    rollouts: Rollouts = field(default_factory=Rollouts)
    evaluations: Evaluations = field(default_factory=Evaluations)
    saves: Saves = field(default_factory=Saves)
    machines: Machines = field(default_factory=Machines)
    start: StartingRun | None = None
    typed: tuple[str, ...] | None = field(default=None, compare=False)
    """Paths of the settings that were typed, here or for the run whose --config this took; None of
    a run that was not made from a command line."""

    def __post_init__(self) -> None:
        named: object = self.tasks
        if isinstance(named, str):
            object.__setattr__(self, "tasks", (TaskUse(named),))
        if not 0 <= self.seed < 2**31:
            raise UserError(
                f"--seed is {self.seed}, but an integer from 0 to 2147483647 is expected"
            )
        self._check_tasks()
        check_settings(self.algorithm, "algorithm.")
        for name in SETTINGS:
            check_settings(getattr(self, name), f"{name}.")

    def _check_tasks(self) -> None:
        names = [use.name for use in self.tasks]
        if not names:
            raise UserError("a run has no task; at least one is expected")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"the task {twice[0]} is given twice; give it once, and --weights for its share"
            )
        if len({use.dataset is None for use in self.tasks}) > 1:
            here, there = (
                next(use.name for use in self.tasks if (use.dataset is None) == played)
                for played in (True, False)
            )
            raise UserError(
                f"the run would play {here} and learn {there} from a dataset; give tasks that are "
                "all played, or datasets of all of them"
            )

    @property
    def several(self) -> bool:
        """Whether there is more than one task."""
        return len(self.tasks) > 1

    @property
    def only(self) -> TaskUse:
        """The only task. Raises UserError where there are several."""
        if self.several:
            raise UserError(f"one task is expected here, but the run has several: {self.title}")
        return self.tasks[0]

    @property
    def task(self) -> str:
        """The name of the only task. Raises UserError where there are several."""
        return self.only.name

    @property
    def dataset(self) -> DatasetOrigin | None:
        """The dataset of the only task; None where it is played. Raises UserError: see `only`."""
        return self.only.dataset

    @property
    def offline(self) -> bool:
        """Whether it learns from datasets, and not from what it plays."""
        return self.tasks[0].dataset is not None

    @property
    def title(self) -> str:
        """Its tasks in words."""
        return ", ".join(use.name for use in self.tasks)

    def use(self, task: str) -> TaskUse:
        """The task of this name, of any of its names. Raises UserError for one that it has not."""
        names = [use.name for use in self.tasks]
        if (name := canonical_name(task)) not in names:
            raise UserError(f"the run has no task {task!r}{suggest_names(task, names)}")
        return self.tasks[names.index(name)]

    def of(self, task: str) -> Run:
        """The run with this one of its tasks alone, for what is about one task."""
        return dataclasses.replace(self, tasks=(self.use(task),))

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint of this run must be of."""
        return {"algorithm": self.algorithm.name, "task": self.title}

    @property
    def learned_algorithm(self) -> Supervised | Baseline:
        """The algorithm, of a run whose learner is ours."""
        assert isinstance(self.algorithm, Supervised | Baseline)
        return self.algorithm

    @property
    def online_algorithm(self) -> Online:
        """The algorithm, of a run that learns from what it plays itself."""
        assert isinstance(self.algorithm, Online)
        return self.algorithm

    @property
    def retention(self) -> Retention:
        """What a store of this run keeps; one on datasets stores nothing."""
        return Retention() if self.offline else self.online_algorithm.retention()

    @property
    def clock(self) -> str:
        """What the budget, evaluations, saves and reports are counted in."""
        return "time/learner_steps" if self.offline else "time/env_steps"

    @property
    def learner_budget(self) -> int:
        """Learner steps of a run on a dataset."""
        return self.budget.learner_steps or self.algorithm.offline_steps

    @property
    def total(self) -> int:
        """The whole budget, in what `clock` counts."""
        return self.learner_budget if self.offline else self.budget.env_steps

    @property
    def groups(self) -> int:
        """Vector environments that share a round."""
        return self.rollouts.groups or self.machines.actors

    def share(self, count: int, group: int) -> slice:
        """Which of a round's `count` commands a group plays."""
        return slice(group * count // self.groups, (group + 1) * count // self.groups)

    def to_json(self) -> dict[str, Any]:
        """The content of run.json; `run_from_json` reads it back."""
        told: dict[str, Any] = {
            f.name: to_json(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("algorithm", "tasks")
        }
        head = {"algorithm": {"name": self.algorithm.name, **to_json(self.algorithm)}}
        return with_tasks(head | told, self.tasks)


def with_tasks(data: Mapping[str, Any], uses: tuple[TaskUse, ...]) -> dict[str, Any]:
    """The content of a run.json with these tasks in place of its own.

    One task is told as `task` and `dataset`, as before there could be several.
    """
    dropped = ("schema_version", "task", "dataset", "tasks")
    rest = {name: value for name, value in data.items() if name not in dropped}
    algorithm = {"algorithm": rest.pop("algorithm")}
    if len(uses) > 1:
        told = {"tasks": [use.to_json() for use in uses]}
        return {"schema_version": SCHEMA_VERSION} | algorithm | told | rest
    (use,) = uses
    late = {name: rest.pop(name) for name in ("start", "typed") if name in rest}
    head = {"schema_version": 1} | algorithm | {"task": use.name}
    return head | rest | {"dataset": to_json(use.dataset)} | late


def settings_of(kind: type[Algorithm]) -> Iterator[tuple[str, Any, Any, str]]:
    """Path, type, default and help of every flag of a run of this algorithm, in the order of the
    dataclasses."""
    for prefix, owner in [
        ("algorithm", kind),
        *((f.name, typing.get_type_hints(Run)[f.name]) for f in dataclasses.fields(Run)),
    ]:
        if not dataclasses.is_dataclass(owner) or owner is Algorithm:
            continue
        hints = typing.get_type_hints(owner)
        for f in dataclasses.fields(owner):
            if "help" in f.metadata:
                choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
                yield f"{prefix}.{f.name}", hints[f.name], f.default, f.metadata["help"] + choices


def with_acting_settings(algorithm: Algorithm, given: Mapping[str, Any]) -> Algorithm:
    """A trained algorithm with other values, as text too, of settings that affect acting alone.

    Raises UserError for another setting, and one out of range.
    """
    may = [flag(f"algorithm.{name}") for name in algorithm.acting]
    hints = typing.get_type_hints(type(algorithm))
    known = {f.name for f in dataclasses.fields(algorithm)}
    for name in given:
        path = f"algorithm.{name}"
        if name not in known:
            raise UserError(
                f"{algorithm.name} has no setting {flag(path)}{suggest_names(flag(path), may)}"
            )
        if name not in algorithm.acting:
            rest = (
                f"those that affect acting alone are {', '.join(may)}"
                if may
                else f"{algorithm.name} has none that affect acting alone"
            )
            raise UserError(f"{flag(path)} was settled when the run was trained; {rest}")
    made = dataclasses.replace(
        algorithm,
        **{name: convert(hints[name], value, f"algorithm.{name}") for name, value in given.items()},
    )
    check_settings(made, "algorithm.")
    return made


def describe_run(run: Run) -> str:
    """One line that says what is about to be trained."""
    data = ", ".join(use.dataset.name for use in run.tasks if use.dataset)
    budget = (
        f"{run.learner_budget:,} learner steps on {data}"
        if run.offline
        else f"{run.budget.env_steps:,} environment steps"
    )
    if not run.offline and run.budget.learner_steps is not None:
        budget += f" or {run.budget.learner_steps:,} learner steps"
    if run.budget.minutes is not None:
        budget = f"{run.budget.minutes:g} minutes, at most {budget}"
    return textwrap.shorten(
        f"{run.algorithm.name} on {run.title}, preset {run.preset}, seed {run.seed}, {budget}", 240
    )
