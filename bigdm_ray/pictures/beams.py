"""Beams: what the Trajectory Transformer's search considers at some states of a played episode,
drawn over two elements of the state.

The episode is played with sampled actions, without a search; at STATES of its steps, evenly apart,
a plan is made after what truly came before. Every beam is a thin line, coloured by its score, the
chosen one a thick one. A plan of H transitions names H states, the current one included; one that
was searched for a goal is drawn to the first of them that is there. Where the task has a map, the
two elements are by default those that it is of, and it is drawn beneath.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdm_ray.algorithms.tt import GOAL, TrajectoryModel, Tt, plan_at
from bigdm_ray.envs.task import Task, find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    Numbers,
    Picture,
    PictureFlags,
    make_panels,
    make_picture,
)
from bigdm_ray.settings import setting
from bigdm_ray.tokens.bins import Elements
from bigdm_ray.training.evaluation import constant, play
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.run_folder import versions
from bigdm_ray.training.streams import rng

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = {
    "reward": "rewards and value",
    "likelihood": "log-probability, nats",
    "goal": "discount to the power of the steps to the goal",
}
"""What a plan's score is, by the objective that it was searched with."""

STATES = 3
"""States of the episode at which a plan is drawn."""


@dataclass(frozen=True)
class BeamFlags(PictureFlags):
    """The flags of beams."""

    axes: tuple[int, ...] = setting(
        (),
        "of --beams: the two elements of the state that are drawn; default: those of the task's"
        " map, without one 0,1",
        low=0,
    )


def map_elements(task: Task, seen: Elements) -> list[int]:
    """The two elements of a state that the task's map is of; none where it has no map, or the state
    not that leaf."""
    place = seen.columns(task.place) if task.outline or task.pixels else None
    return [] if place is None or place.stop - place.start < 2 else [place.start, place.start + 1]


def plans(loaded: Loaded, asked: BeamFlags) -> dict[str, Any]:
    """Play an episode and plan at some of its states: numbers of the picture.

    Raises UserError for a run that plans nothing in two elements, and RunFailed.
    """
    model, algorithm = loaded.model, loaded.run.algorithm
    if not isinstance(model, TrajectoryModel) or not isinstance(algorithm, Tt):
        raise UserError(
            f"the {algorithm.name} policy of {loaded.folder} searches no beams to draw; a tt run is"
            " expected"
        )
    of_map = map_elements(loaded.task, model.seen)
    axes = list(asked.axes) or of_map or [0, 1]
    if len(set(axes)) != 2 or len(axes) != 2 or max(axes) >= model.seen.width:
        given = ",".join(str(axis) for axis in axes)
        raise UserError(
            f"--axes is {given}, but two of the elements 0 to {model.seen.width - 1} of the state"
            f" of {loaded.run.task} are expected"
        )
    if algorithm.horizon < 2:
        raise UserError(
            f"{loaded.folder} plans with a horizon of 1, which leads to no other state, so there is"
            " nothing to draw"
        )
    seed = loaded.run.seed if asked.seed is None else asked.seed
    played = play(
        loaded.policy("sample"), loaded.task, constant(loaded.command, 1), 1, seed, "beams", 0
    )
    if not played.episodes:
        raise RunFailed(
            f"no episode of {loaded.run.task} could be played to its end: {played.problems[0]}"
        )
    (episode,) = played.episodes
    chance = rng(seed, "beams", 1)
    drawn = []
    for step in np.unique(
        np.linspace(0, episode.length, STATES, endpoint=False).astype(int)
    ).tolist():
        beams = plan_at(model, algorithm, episode, step, chance.random(2, np.float32))
        states = beams.states[..., axes]
        drawn.append(
            {
                "step": step,
                "states": np.where(np.isnan(states), np.array(None), states).tolist(),
                "scores": beams.scores.tolist(),
            }
        )
    rows = model.seen.rows(
        {name: torch.from_numpy(np.array(values)) for name, values in episode.observations.items()}
    )
    goal = (
        None
        if model.asked is None
        else model.asked.rows({GOAL: torch.from_numpy(np.array(episode.observations[GOAL][:1]))})[
            0, axes
        ].tolist()
    )
    return {
        "folder": str(loaded.folder),
        "task": loaded.run.task,
        "run_seed": loaded.run.seed,
        "seed": seed,
        "version": list(loaded.version),
        "objective": algorithm.objective,
        "axes": axes,
        "map": axes == of_map,  # whether the task's map is of these
        "path": rows[:, axes].tolist(),  # of the episode: [step][element]
        "goal": goal,
        "return": episode.total_return,
        # states: [beam][step of the plan][element], the chosen beam first; null behind its end
        "plans": drawn,
        "versions": versions(),
    }


def draw_beams(found: Numbers) -> Figure:
    """Beams over two elements of the state, a panel for each state at which a plan was made."""
    from matplotlib.collections import LineCollection

    figure, panels = make_panels(sum(len(here["plans"]) for here in found), 4.6, 4.4)
    shown = [(here, plan) for here in found for plan in here["plans"]]
    for axes, (here, plan) in zip(panels, shown, strict=True):
        lines, scores, path = (
            np.array(plan["states"], np.float64),
            np.array(plan["scores"]),
            np.array(here["path"]),
        )
        outline = find_task(here["task"]).outline if here["map"] else ()
        for line in outline:
            axes.plot(*np.array(line).T, color="#464854", linewidth=2.5)
        axes.plot(*path.T, color=GREY, linewidth=0.8, linestyle=":", label="episode")
        fan = LineCollection(list(lines[::-1]), cmap="viridis", linewidths=1.1, alpha=0.75)
        fan.set_array(scores[::-1])
        axes.add_collection(fan)
        axes.plot(*lines[0].T, color=COLOURS[1], linewidth=2.8, marker=".", label="chosen")
        axes.plot(
            *path[plan["step"]],
            linestyle="none",
            marker="o",
            color=COLOURS[0],
            markersize=8,
            label="state",
        )
        if here["goal"] is not None:
            axes.plot(
                *here["goal"],
                linestyle="none",
                marker="*",
                color=COLOURS[5],
                markeredgecolor="black",
                markersize=15,
                label="goal",
            )
        axes.set_title(f"{here['task']}, step {plan['step']}: {len(lines)} beams")
        axes.set_xlabel(f"element {here['axes'][0]} of the state")
        axes.set_ylabel(f"element {here['axes'][1]} of the state")
        if outline:
            axes.set_aspect("equal")
            axes.grid(visible=False)
        figure.colorbar(fan, ax=axes, label=SCORES[here["objective"]], shrink=0.8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def beams(folders: list[Path], out: Path | None, asked: BeamFlags) -> None:
    """Draw the beams of the plans of run folders. Raises UserError and RunFailed."""
    for here in make_picture(folders, out, asked, "beams", "fans", plans, draw_beams):
        for plan in here["plans"]:
            text = (
                f"{len(plan['scores'])} beams, scores {plan['scores'][0]:.3f} to"
                f" {plan['scores'][-1]:.3f}"
            )
            print(f"  {here['task']}, seed {here['run_seed']}: step {plan['step']}, {text}")


PICTURE = Picture(
    "beams",
    "draw all beams of some plans of a tt run over two elements of the state",
    beams,
    BeamFlags,
)
