"""Predictions: trajectories that a Trajectory Transformer predicts against the real ones of its
dataset (Janner, Li, Levine 2021, section 4.1).

A prediction is open loop: the model is told the first state and the actions of an episode, and goes
on from what it predicted before. Beside it stand a one-step model, which is trained for the picture
on the same dataset (`training/one_step.py`), and a prediction that nothing moves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.algorithms.tt import TrajectoryModel, Tt
from bigdm_ray.errors import UserError
from bigdm_ray.models.one_step import OneStep
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    EpisodeFlags,
    Picture,
    label_axes,
    make_picture,
    require_dataset,
)
from bigdm_ray.planning.beam import Planner
from bigdm_ray.progress import say
from bigdm_ray.replay.store import Store
from bigdm_ray.settings import setting
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.one_step import train_one_step
from bigdm_ray.training.run_folder import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 100
"""Steps that are predicted: those of the paper's figure of long horizons."""
SHOWN = 4
"""Elements of the state that are drawn."""


@dataclass(frozen=True)
class PredictionFlags(EpisodeFlags):
    """The flags of predictions."""

    one_step: int = setting(
        10_000,
        "of --prediction: learner steps of the one-step model that is drawn beside; 0 leaves"
        " it out",
        low=0,
        high=10_000_000,
    )


def episode_states(model: TrajectoryModel, store: Store) -> Iterator[Tensor]:
    """The states of each episode of a store `[T + 1, seen]`, the last included."""
    for position in range(len(store.table)):
        episode = store.episode(position)
        yield model.seen.rows(
            {
                path: torch.from_numpy(np.array(values))
                for path, values in episode.observations.items()
            }
        )


def deviations(parts: Iterable[Tensor]) -> np.ndarray:
    """Standard deviation of each element over all rows of the parts `[m, d]`: `[d]` float64, 0
    where an element never changes.

    Moments are taken about the first row and added in float64, part by part, so that the data need
    not be held.
    """
    count, first, total, squares = 0, None, np.float64(0), np.float64(0)
    for part in parts:
        rows = part.double().numpy()
        first = rows[0] if first is None else first
        count, total, squares = (
            count + len(rows),
            total + (rows - first).sum(0),
            squares + ((rows - first) ** 2).sum(0),
        )
    out: np.ndarray = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    return out


def one_step_of(model: TrajectoryModel, store: Store, steps: int, seed: int) -> OneStep:
    """A one-step model of all steps of a store, over the same elements of states and actions as
    `model`."""
    states, actions, following = [], [], []
    for position, seen in enumerate(episode_states(model, store)):
        states.append(seen[:-1])
        following.append(seen[1:])
        actions.append(
            model.acted.rows(
                {
                    path: torch.from_numpy(np.array(values))
                    for path, values in store.episode(position).actions.items()
                }
            )
        )
    return train_one_step(
        torch.cat(states),
        torch.cat(actions),
        torch.cat(following),
        model.acted.choices,
        steps,
        seed,
    )


def predict(loaded: Loaded, asked: PredictionFlags) -> dict[str, Any]:
    """What the model predicts of some episodes of the run's dataset, and what really happened:
    numbers of the picture.

    Each of `asked.episodes` starts is a step drawn from those that STEPS more follow, or from the
    longest episodes' beginnings where there is none. Errors are root mean squares over the elements
    of the state, each in units of its standard deviation over all states of the dataset; `still` is
    the error of a prediction that nothing moves, `one_step_error` of the one-step model, None where
    it is left out. Raises UserError for a run that is no tt run, or whose dataset is gone.
    """
    model, algorithm = loaded.model, loaded.run.algorithm
    if not isinstance(model, TrajectoryModel) or not isinstance(algorithm, Tt):
        raise UserError(
            f"the {algorithm.name} policy of {loaded.folder} predicts no states to draw; a tt run"
            " is expected"
        )
    store = require_dataset(loaded, "there is nothing to compare predictions with").store()
    seed = loaded.run.seed if asked.seed is None else asked.seed
    steps = min(STEPS, int(store.table.lengths.max()))
    chance = np.random.default_rng(seed)
    where = np.flatnonzero(store.table.lengths >= steps)
    free = store.table.lengths[where] - steps + 1
    drawn = np.sort(
        chance.choice(int(free.sum()), min(asked.episodes, int(free.sum())), replace=False)
    )
    chosen = np.searchsorted(np.cumsum(free), drawn, side="right")
    begins = drawn - (np.cumsum(free) - free)[chosen]
    states, actions, goals = [], [], []
    for position, begin in zip(where[chosen].tolist(), begins.tolist(), strict=True):
        episode = store.episode(position)
        seen = {
            path: torch.from_numpy(np.array(values[begin : begin + steps + 1]))
            for path, values in episode.observations.items()
        }
        acted = {
            path: torch.from_numpy(np.array(values[begin : begin + steps]))
            for path, values in episode.actions.items()
        }
        states.append(model.seen.rows(seen))
        actions.append(model.acted.rows(acted))
        last = {
            path: torch.from_numpy(np.array(values[-1]))
            for path, values in episode.observations.items()
        }
        goals.append(model.states(last))
    real, bins, width = torch.stack(states), model.bins, model.seen.width
    tokens = bins.encode(torch.stack(actions), slice(width, width + model.acted.width))
    planner = Planner(
        model.net,
        bins,
        width,
        model.acted.width,
        dataclasses.replace(algorithm.search, context=algorithm.window),
    )
    past = tokens.new_zeros(len(real), 0, model.net.dims)
    found = planner.follow(
        past,
        bins.encode(real[:, 0], slice(0, width)),
        tokens,
        torch.stack(goals) if model.asked is not None else None,
    )
    told = bins.decode(found, slice(0, width)).numpy()
    truth = real[:, 1:].numpy()
    simple = None
    if asked.one_step:
        say(f"training a one-step model on {int(store.table.lengths.sum()):,} steps")
        simple = (
            one_step_of(model, store, asked.one_step, seed)
            .follow(real[:, 0], torch.stack(actions))
            .numpy()
        )
    spread = deviations(episode_states(model, store))
    moving = np.flatnonzero(spread > 0)

    def error(guess: np.ndarray) -> list[float]:
        apart = ((guess - truth)[..., moving] / spread[moving]) ** 2
        return [float(value) for value in np.sqrt(apart.mean((0, 2)))]

    shown = moving[:: max(1, -(-len(moving) // SHOWN))][:SHOWN]
    return {
        "folder": str(loaded.folder),
        "task": loaded.run.task,
        "run_seed": loaded.run.seed,
        "seed": seed,
        "version": list(loaded.version),
        # [position of the episode in the dataset, step]
        "starts": [[int(p), int(b)] for p, b in zip(where[chosen], begins, strict=True)],
        "elements": shown.tolist(),
        "real": truth[0][:, shown].T.tolist(),  # of the first start: [element][step]
        "predicted": told[0][:, shown].T.tolist(),
        "one_step_predicted": None if simple is None else simple[0][:, shown].T.tolist(),
        "error": error(told),  # [step]
        "one_step_error": None if simple is None else error(simple),
        "one_step_steps": asked.one_step,
        "still": error(np.broadcast_to(real[:, :1].numpy(), truth.shape)),
        "versions": versions(),
    }


def draw_prediction(predictions: list[dict[str, Any]]) -> Figure:
    """Real and predicted elements of the state, and the error by step: a row of panels for each
    run."""
    from matplotlib.figure import Figure

    across = max(len(here["elements"]) for here in predictions) + 1
    figure = Figure(figsize=(3.8 * across, 3.2 * len(predictions)), layout="constrained")
    for row, here in enumerate(predictions):
        steps = np.arange(1, len(here["error"]) + 1)
        for column, element in enumerate(here["elements"]):
            axes = figure.add_subplot(len(predictions), across, row * across + column + 1)
            axes.plot(steps, here["real"][column], color=GREY, label="real")
            axes.plot(steps, here["predicted"][column], color=COLOURS[0], label="predicted")
            if here["one_step_predicted"] is not None:
                axes.plot(
                    steps,
                    here["one_step_predicted"][column],
                    color=COLOURS[1],
                    linewidth=1.2,
                    label="one-step model",
                )
            label_axes(axes, f"{here['task']}: element {element} of the state", "steps ahead", "")
        axes = figure.add_subplot(
            len(predictions), across, row * across + len(here["elements"]) + 1
        )
        axes.plot(steps, here["still"], color=GREY, linestyle="--", label="nothing moves")
        axes.plot(
            steps, here["error"], color=COLOURS[0], label=f"predicted, {len(here['starts'])} starts"
        )
        if here["one_step_error"] is not None:
            axes.plot(
                steps,
                here["one_step_error"],
                color=COLOURS[1],
                label=f"one-step model, {here['one_step_steps']:,} learner steps",
            )
        label_axes(axes, f"seed {here['run_seed']}: error", "steps ahead", "standard deviations")
    return figure


def prediction(folders: list[Path], out: Path | None, asked: PredictionFlags) -> None:
    """Draw what the models of run folders predict of their datasets.

    Raises UserError and RunFailed.
    """
    for here in make_picture(
        folders, out, asked, "prediction", "predictions", predict, draw_prediction
    ):
        print(
            f"  {here['task']}, seed {here['run_seed']}: error after 1 and {len(here['error'])}"
            " steps, in standard deviations of the data"
        )
        for name, text in (
            ("error", "predicted"),
            ("one_step_error", "one-step model"),
            ("still", "nothing moves"),
        ):
            if here[name] is not None:
                print(f"    {text:<16}{here[name][0]:.3f}  {here[name][-1]:.3f}")


PICTURE = Picture(
    "prediction",
    "draw the trajectories that a tt run and a one-step model predict against the real ones of its"
    " dataset",
    prediction,
    PredictionFlags,
)
