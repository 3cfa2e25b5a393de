"""How `evaluate` plays a run in a task: what is asked for, what follows from it, and the report.

The parts of an evaluation are planned (`plan_task`), played in this process or on actors of Ray,
of one task or of several side by side, and told (`report_of`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.errors import UserError
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.progress import Progress
from bigdm_ray.settings import setting
from bigdm_ray.training.acting import command_of, policy_of, report_head, run_as
from bigdm_ray.training.evaluation import (
    ROWS,
    PlannedTask,
    Score,
    evaluate_in_parts,
    join_scores,
    split_episodes,
)
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import versions

SCHEMA_VERSION = 1
PLANNED_ROWS = 8
"""Episodes that plan together: a larger batch is hardly cheaper, and a part is what an actor
plays."""


@dataclass(frozen=True)
class EvaluateFlags:
    """The flags. None stands for what the run itself has used."""

    tasks: tuple[str, ...] = setting(
        (),
        "of a run of several, those to score: names, or patterns as babyai/*, joined by commas;"
        " default: all",
    )
    episodes: int | None = setting(
        None,
        "episodes to play; default: 100, where the mode is plan as many as in the run's own final"
        " evaluation",
        low=1,
        high=1_000_000,
    )
    rows: int | None = setting(
        None,
        f"episodes that are played together, in one batch; default: {ROWS}, where the mode is plan"
        f" {PLANNED_ROWS}",
        low=1,
        high=10_000,
    )
    actors: int = setting(
        1,
        "actors of Ray that play; 1 plays in this process, without Ray; the returns are the same",
        low=1,
        high=10_000,
    )
    device: str = setting(
        "cpu",
        "where the policy acts: auto (the first GPU where there is one), cpu, cuda or cuda:N;"
        " actors act on CPUs",
    )
    address: str = setting(
        "local", "Ray cluster to join for --actors; `local` starts one on this machine"
    )
    desired_return: float | None = setting(
        None,
        "return to ask for; default: what the run's own evaluation asked for",
        low=-1e9,
        high=1e9,
    )
    desired_horizon: float | None = setting(
        None, "steps to ask for; default: what the run's own evaluation asked for", low=1, high=1e9
    )
    mode: str = setting(
        "own", "how the policy acts; own: as in the run's own evaluations", choices=OWN_OR_MODES
    )
    weights: str = setting("last", "which weights", choices=("last", "best"))
    cached: bool | None = setting(
        None,
        "of dt, default as the run says: keep keys and values when acting: faster, and exact only"
        " until the window slides",
    )
    seed: int | None = setting(
        None, "seed of environments and actions; default: the run's", low=0, high=2**31 - 1
    )


@dataclass(frozen=True)
class TaskPlan(PlannedTask):
    """How a task is played: see PlannedTask; and what else decides its returns."""

    loaded: Loaded
    policy: Policy
    mode: str
    cached: bool
    seed: int
    device: str

    @property
    def episodes(self) -> int:
        """How many are asked for."""
        return sum(self.parts)

    def decided_by(self, weights: str) -> dict[str, Any]:
        """What its returns follow from, with this hash of the weights."""
        told = {name: getattr(self, name) for name in ("mode", "cached", "seed", "device")}
        told |= {"command": self.command, "parts": self.parts, "weights": weights}
        return told | {"acting": self.loaded.acting, "versions": versions()}


def plan_task(loaded: Loaded, asked: EvaluateFlags) -> TaskPlan:
    """What is to be played of a run in one task. Raises UserError for what it cannot do."""
    device = pick_device(asked.device)
    loaded.model.to(device)
    policy, mode = policy_of(loaded, asked.mode, asked.cached)
    planned = mode == "plan"
    episodes = asked.episodes or (loaded.run.evaluations.final_episodes if planned else 100)
    return TaskPlan(
        command=command_of(loaded, asked.desired_return, asked.desired_horizon),
        parts=split_episodes(episodes, asked.rows or (PLANNED_ROWS if planned else ROWS)),
        loaded=loaded,
        policy=policy,
        mode=mode,
        cached=asked.cached if asked.cached is not None else bool(loaded.run.algorithm.cache),
        seed=loaded.run.seed if asked.seed is None else asked.seed,
        device=str(device),
    )


def play_here(plan: TaskPlan) -> Score:
    """Play what is planned in this process. Raises UserError, RunFailed where no episode ends well,
    and KeyboardInterrupt where none has ended."""
    task = plan.loaded.task
    with Progress(task.name, plan.episodes, units="episodes") as bar:
        bar.advance(0)
        return evaluate_in_parts(
            plan.policy, task, plan.command, plan.parts, plan.seed, "evaluate", bar.advance
        )


def play_on_actors(
    plans: Mapping[str, TaskPlan],
    asked: EvaluateFlags,
    on_task: Callable[[str, Score], None],
) -> None:
    """Play what is planned of tasks of a run on actors of Ray.

    `on_task` hears the score of each task whose last part has ended, and, where Ctrl-C came, of
    those that some episodes of have. Raises UserError, RunFailed, and KeyboardInterrupt where no
    episode has ended.
    """
    from bigdm_ray.distributed.evaluation import evaluate_on_actors

    first = next(iter(plans.values()))
    loaded, whole = first.loaded, first.loaded.trained
    run = run_as(loaded, asked.mode, asked.cached)
    run = dataclasses.replace(run, tasks=run.tasks if whole is None else whole.tasks)
    count, told = sum(plan.episodes for plan in plans.values()), set[str]()
    title = loaded.run.task if len(plans) == 1 else f"{len(plans)} tasks"
    heard: dict[str, dict[int, Score]] = {task: {} for task in plans}
    with Progress(title, count, units="episodes") as bar:
        bar.advance(0)

        def on_part(task: str, number: int, score: Score) -> None:
            heard[task][number] = score
            bar.advance(plans[task].parts[number])
            if len(heard[task]) == len(plans[task].parts):
                told.add(task)
                on_task(task, join_scores(_in_order(heard[task]), plans[task].command))

        evaluate_on_actors(
            dataclasses.replace(run, seed=first.seed),
            Weights.of(loaded.model, loaded.version),
            plans,
            "evaluate",
            asked.actors,
            asked.address,
            on_part,
        )
    begun = [t for t in plans if t not in told and any(len(s.returns) for s in heard[t].values())]
    for task in begun:
        on_task(task, join_scores(_in_order(heard[task]), plans[task].command, stopped=True))
    if not begun and not told:
        raise KeyboardInterrupt


def _in_order(parts: Mapping[int, Score]) -> list[Score]:
    return [parts[number] for number in sorted(parts)]


def check_actors(asked: EvaluateFlags) -> None:
    """Raise UserError where actors are asked for beside a device of this process."""
    if asked.actors > 1 and asked.device != "cpu":
        raise UserError(
            f"--device is {asked.device!r}, but actors act on CPUs; leave --actors out, or --device"
        )


def note_parts(parts: list[int], actors: int) -> None:
    """Say where there are fewer parts than actors that could play them."""
    if len(parts) < actors:
        print(
            f"note: there are {len(parts)} parts of at most {max(parts)} episodes, for as many"
            " actors; a smaller --rows makes more",
            file=sys.stderr,
        )


def report_of(plan: TaskPlan, asked: EvaluateFlags, result: Score) -> dict[str, Any]:
    """What evaluation.json says of a task that was played."""
    loaded = plan.loaded
    return {
        "schema_version": SCHEMA_VERSION,
        **report_head(loaded, asked.weights, plan.mode, plan.seed),
        "acting": loaded.acting,
        "cached": plan.cached,
        "command": plan.command,
        **result.summary(loaded.task),
        **result.latency(),
        "partial": result.stopped,
        "episodes": len(result.returns),
        "episodes_asked": plan.episodes,
        "episodes_discarded": result.discarded,
        "rows": max(plan.parts),
        "device": plan.device,
        "returns": result.returns.tolist(),
        "lengths": result.lengths.tolist(),
        "versions": versions(),
    }
