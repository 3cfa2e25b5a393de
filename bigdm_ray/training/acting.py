"""A trained run, and how it is made to act: with which command, and in which mode."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn

from bigdm_ray.algorithms.base import Mode, Policy
from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import Task
from bigdm_ray.errors import UserError
from bigdm_ray.settings import flag
from bigdm_ray.training.config import Run, with_acting_settings
from bigdm_ray.training.params import Weights, commands_of_task


@dataclass(frozen=True)
class TrainedRun:
    """A trained run: its settings, its network with the weights, and how its policy acts."""

    folder: Path
    run: Run
    tasks: Mapping[str, Task]
    signatures: Mapping[str, Signature]
    model: nn.Module
    summary: dict[str, Any]
    version: tuple[int, int]
    acting: dict[str, Any] = field(default_factory=dict)
    """The settings of `run` that are not those it was trained with: some that affect acting
    alone."""
    trained: Run | None = None
    """The whole run, where this is one of its several tasks."""

    @property
    def task(self) -> Task:
        """The only task. Raises UserError where there are several: see `of`."""
        return self.tasks[self.run.task]

    @property
    def signature(self) -> Signature:
        """What the arrays of the only task look like. Raises UserError: see `task`."""
        return self.signatures[self.run.task]

    def of(self, task: str) -> Self:
        """It in one of its tasks. Raises UserError for one that it has not."""
        run = self.run.of(task)
        if not self.run.several:
            return self
        command = commands_of_task(self.command, run.task)
        summary = self.summary | self.summary.get("tasks", {}).get(run.task, {})
        return dataclasses.replace(
            self,
            run=run,
            tasks={run.task: self.tasks[run.task]},
            signatures={run.task: self.signatures[run.task]},
            summary=summary | {"command": command, "task": run.task},
            trained=self.run,
        )

    def with_weights(self, weights: Weights) -> Self:
        """It with a network of its own that holds other weights, and their command.

        Raises UserError where they do not fit.
        """
        model = copy.deepcopy(self.model)
        weights.into(model)
        model.eval()
        told = {} if weights.command is None else {"command": weights.command}
        version, summary = weights.version, self.summary | told
        return dataclasses.replace(self, model=model, version=version, summary=summary)

    def policy(self, mode: Mode = "sample") -> Policy:
        """How the network acts."""
        return self.run.algorithm.policy_in(self.model, mode, self.signature, self.run.task)

    @property
    def command(self) -> dict[str, float]:
        """The command that the run's own evaluations used last."""
        command: dict[str, float] = self.summary.get("command", {})
        return command


def report_head(loaded: TrainedRun, weights: str, mode: str, seed: int) -> dict[str, Any]:
    """What every report of played episodes begins with: who played, with which weights, how."""
    run = loaded.run
    who = {
        "algorithm": run.algorithm.name,
        "task": run.title,
        "preset": run.preset,
        "run_seed": run.seed,
    }
    return who | {"weights": weights, "version": list(loaded.version), "mode": mode, "seed": seed}


def command_of(
    loaded: TrainedRun, desired_return: float | None = None, desired_horizon: float | None = None
) -> dict[str, float]:
    """`command_from` of the two that flags ask for."""
    asked = {"desired_return": desired_return, "desired_horizon": desired_horizon}
    return command_from(loaded, {name: v for name, v in asked.items() if v is not None})


def command_from(
    loaded: TrainedRun, asked: Mapping[str, float], spelt: Callable[[str], str] = flag
) -> dict[str, float]:
    """The run's own command with what is asked for put in its place.

    `spelt` is how messages name a part of it. Raises UserError where the policy takes no such
    command, or where a part of it is neither asked for nor lies beside the weights.
    """
    algorithm, own = loaded.run.algorithm, loaded.command
    refused = [name for name in asked if name not in algorithm.commands]
    if refused:
        raise UserError(
            f"the {algorithm.name} policy of {loaded.folder} takes no "
            f"{refused[0].replace('_', ' ')}; leave {spelt(refused[0])} out"
        )
    wanted = algorithm.complete_command(asked)
    if missing := [
        spelt(name) for name in algorithm.commands if name not in own and name not in wanted
    ]:
        raise UserError(
            f"{loaded.folder} holds no command beside its weights; give {' and '.join(missing)}"
        )
    return {**own, **wanted}


def run_as(loaded: TrainedRun, mode: str, cached: bool | None = None) -> Run:
    """The run with this mode in its evaluations (`own`: its own), and this cache.

    Raises UserError for a cache that the algorithm lacks.
    """
    run = loaded.run
    if cached is not None:
        if run.algorithm.cache is None:
            raise UserError(
                f"the {run.algorithm.name} policy of {loaded.folder} has no cache; leave"
                " --cached out"
            )
        changed = with_acting_settings(run.algorithm, {"cached": cached})
        run = dataclasses.replace(run, algorithm=changed)
    return (
        run
        if mode == "own"
        else dataclasses.replace(run, evaluations=dataclasses.replace(run.evaluations, mode=mode))
    )


def policy_of(loaded: TrainedRun, mode: str, cached: bool | None = None) -> tuple[Policy, str]:
    """How the network acts, and the mode with `own` resolved.

    Raises UserError for a mode or a cache that the algorithm lacks.
    """
    run = run_as(loaded, mode, cached)
    torch.set_num_threads(run.machines.threads)
    return run.algorithm.policy_in(
        loaded.model, cast(Mode, run.evaluations.mode), loaded.signature, run.task
    ), run.evaluations.mode
