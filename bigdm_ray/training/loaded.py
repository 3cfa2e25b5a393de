"""Opening a run folder: the trained run, ready to act in somebody's own loop."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, Literal

from bigdm_ray.algorithms.base import Mode
from bigdm_ray.errors import UserError
from bigdm_ray.settings import to_json
from bigdm_ray.training.acting import TrainedRun
from bigdm_ray.training.agent import Agent
from bigdm_ray.training.config import read_run, with_acting_settings
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder, summary_of
from bigdm_ray.training.zoo import locate


def locate_run(folder: str | os.PathLike[str], which: str = "last") -> Path:
    """The run folder that is meant, if it holds these weights.

    Raises UserError, which says what there is in their place.
    """
    path = locate(folder)
    if not (path / "run.json").is_file():
        if has_magic(os.fspath(folder)) and not path.exists():
            raise UserError(f"nothing is called {os.fspath(folder)}; a run folder is expected")
        raise UserError(f"there is no run in {path}: it holds no run.json")
    home = RunFolder(path)
    if home.weights(which).is_file():
        return path
    others = [name for name in ("last", "best") if home.weights(name).is_file()]
    if which not in ("last", "best") or not (others or not home.summary_file.is_file()):
        return path  # the reader of weights tells
    if others:
        have = f"its {others[0]} ones are there: take --weights {others[0]}"
    else:
        have = "nor any others: let it go on (`run --folder FOLDER --resume` if it was stopped)"
    why = "it has not come to its first save" if which == "last" else "it has not been scored"
    raise UserError(f"the run in {path} has no {which} weights yet ({why}), {have}")


@dataclass(frozen=True)
class Loaded(TrainedRun):
    """A trained run that `load` opened."""

    def act(
        self,
        n: int | None = None,
        *,
        mode: Mode | Literal["own"] = "own",
        seed: int | None = None,
        device: str = "cpu",
        spaces: tuple[Any, Any] | None = None,
        task: str | None = None,
    ) -> Agent:
        """How it acts in one's own loop: `action = policy(observation, reward)`; see Agent.

        Values are those of one gymnasium environment; with `n`, those of a vector environment of n.
        `mode` is sample, mean, plan, or own: as in the run's own evaluations. `seed` is that of the
        chance in actions, by default the run's. `device`: auto, cpu, cuda or cuda:N. `spaces` are
        observation and action space of one environment, by default those of the run's task. `task`
        is the one to act in, of a run of several. Raises UserError.
        """
        if task is None and self.run.several:
            raise UserError(
                f"{self.folder} acts in several tasks ({self.run.title}); name one:"
                f" act(task={self.run.tasks[0].name!r})"
            )
        return Agent(self if task is None else self.of(task), n, mode, seed, device, spaces)


def load(
    folder: str | os.PathLike[str], which: str = "last", acting: Mapping[str, Any] | None = None
) -> Loaded:
    """Open a run folder: `bigdm_ray.load(FOLDER)`, or a policy that ships, `zoo:udrl-cartpole`.

    `which` weights: `last`, `best`, or a milestone's.

    `acting` are settings of the algorithm, by name, that stand in place of the run's own:
    `{"horizon": 5}`. They must be such as affect acting alone (`Algorithm.acting`), and go together
    with the others. Raises UserError.
    """
    path = locate_run(folder, which)
    run = read_run(path)
    if acting:
        run = dataclasses.replace(run, algorithm=with_acting_settings(run.algorithm, acting))
    tasks = {use.name: use.task for use in run.tasks}
    weights = Weights.load(RunFolder(path).weights(which))
    signatures = {name: task.signature() for name, task in tasks.items()}
    model = run.algorithm.build(signatures)
    weights.into(model)
    model.eval()
    command = {} if weights.command is None else {"command": weights.command}
    changed = {name: to_json(getattr(run.algorithm, name)) for name in acting or ()}
    told = summary_of(path) | command
    return Loaded(path, run, tasks, signatures, model, told, weights.version, changed)
