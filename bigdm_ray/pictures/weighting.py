"""Weights: m(s, a), what each step of a dataset counts for runs of the imitation family on it.

They maximise E[ m(s, a) log pi(a | s) ] and differ in m alone: behaviour cloning takes every step
alike, its filtered form those of the best episodes, RWR exp(return), AWR exp(advantage), BAIL what
comes near the best return of its state. A panel for each run has the same steps, over an element of
the state and the return that followed, in the colour of their weight; the last has the mean weight
by that return. Weights are scaled to a mean of 1 over the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigdm_ray.algorithms.bc import Imitation
from bigdm_ray.errors import UserError
from bigdm_ray.pictures.base import (
    COLOURS,
    Picture,
    PictureFlags,
    label_axes,
    make_panels,
    make_picture,
    require_dataset,
)
from bigdm_ray.progress import say
from bigdm_ray.replay.returns import discounted_returns, episode_groups
from bigdm_ray.settings import setting
from bigdm_ray.tokens.bins import Elements
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.run_folder import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 2000
"""Steps that are drawn."""
GROUPS = 25
"""Groups of steps by their return, each of equally many."""
COLOURED = (0.1, 10.0)
"""The weights at the ends of the colours."""


@dataclass(frozen=True)
class WeightingFlags(PictureFlags):
    """The flags of weights."""

    element: int = setting(
        0, "of --weighting: the element of the state that is drawn, counted from 0", low=0
    )
    discount: float = setting(
        0.99, "of --weighting: gamma of the returns that are drawn", low=0, high=1
    )


def weigh(loaded: Loaded, asked: WeightingFlags) -> dict[str, Any]:
    """What each step of the run's dataset counts: numbers of the picture.

    Raises UserError for a run that has no such weights, or whose dataset is gone.
    """
    run, algorithm = loaded.run, loaded.run.algorithm
    if not isinstance(algorithm, Imitation):
        raise UserError(
            f"{algorithm.name} of {loaded.folder} clones no steps by weights; "
            "a run of bc, rwr, awr or bail on a dataset is expected"
        )
    dataset = require_dataset(loaded, "there are no steps to weigh")
    store = dataset.store()
    elements = Elements(loaded.signature.observations)
    if asked.element >= elements.width:
        raise UserError(
            f"--element is {asked.element}, but the state of {run.task} has the elements "
            f"0 to {elements.width - 1}"
        )
    say(f"weighing {dataset.steps:,} steps for {loaded.folder}")
    weights = algorithm.weights(loaded.model, store, loaded.version[1])
    if not weights.any():
        raise UserError(f"no step of {dataset.folder} counts for {loaded.folder}")
    weights = weights / weights.mean()
    followed, seen = [], []
    for group in episode_groups(store):
        followed.append(discounted_returns(group.rewards, group.lengths, asked.discount))
        acted = np.ones(int((group.lengths + 1).sum()), bool)
        acted[np.cumsum(group.lengths + 1) - 1] = False  # nothing is done in the last state
        states = {path: torch.from_numpy(v[acted]) for path, v in group.observations.items()}
        seen.append(elements.rows(states)[:, asked.element].numpy())
    returns, element = np.concatenate(followed), np.concatenate(seen)
    groups = np.array_split(np.argsort(returns, kind="stable"), min(GROUPS, len(returns)))
    seed = run.seed if asked.seed is None else asked.seed
    shown = np.random.default_rng(seed).permutation(len(returns))[:SHOWN]
    return {
        "folder": str(loaded.folder),
        "label": f"{algorithm.name}, {loaded.folder.name}",
        "algorithm": algorithm.name,
        "task": run.task,
        "dataset": dataset.name,
        "sha256": dataset.sha256,
        "run_seed": run.seed,
        "seed": seed,
        "version": list(loaded.version),
        "element": asked.element,
        "discount": asked.discount,
        "steps": len(weights),
        "counted": float((weights > 0).mean()),
        "effective": float(1 / (weights**2).mean()),
        "largest": float(weights.max()),
        "return_mean": float(returns.mean()),
        "return_weighted": float((weights * returns).mean()),
        "returns": [float(returns[group].mean()) for group in groups],
        "weights": [float(weights[group].mean()) for group in groups],
        "drawn": {
            "state": element[shown].tolist(),
            "return": returns[shown].tolist(),
            "weight": weights[shown].tolist(),
        },
        "versions": versions(),
    }


def draw_weights(found: list[dict[str, Any]]) -> Figure:
    """A panel of coloured steps for each run, and one of the mean weight by return for all."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    figure, panels = make_panels(len(found) + 1, 4.6, 3.8)
    colours = ScalarMappable(LogNorm(*COLOURED), "viridis")
    for axes, here in zip(panels, found, strict=False):
        state, followed, weight = (
            np.array(here["drawn"][name]) for name in ("state", "return", "weight")
        )
        counted = weight > 0
        axes.scatter(state[~counted], followed[~counted], s=3, color="#d8d8d8", rasterized=True)
        axes.scatter(
            state[counted],
            followed[counted],
            s=3,
            c=colours.to_rgba(np.clip(weight[counted], *COLOURED)),
            rasterized=True,
        )
        axes.set_title(f"{here['label']}: {here['counted']:.0%} of the steps count")
        axes.set_xlabel(f"element {here['element']} of the state")
        axes.set_ylabel(f"return that followed, discount {here['discount']:g}")
    bar = figure.colorbar(colours, ax=panels, shrink=0.6, extend="both")
    bar.set_label("weight of a step, 1 on the mean; grey: none")
    last = panels[-1]
    for number, here in enumerate(found):
        last.plot(
            here["returns"],
            here["weights"],
            color=COLOURS[number % len(COLOURS)],
            label=here["label"],
        )
    label_axes(last, f"{found[0]['dataset']}", "return that followed", "mean weight")
    return figure


def weighting(folders: list[Path], out: Path | None, asked: WeightingFlags) -> None:
    """Draw what the steps of one dataset count for some runs on it. Raises UserError."""
    first: dict[str, Any] = {}

    def of(loaded: Loaded, flags: WeightingFlags) -> dict[str, Any]:
        here = weigh(loaded, flags)
        if here["sha256"] != first.setdefault("sha256", here["sha256"]):
            raise UserError(
                f"{loaded.folder} learned from {here['dataset']}, {folders[0]} from another "
                "dataset; give runs on one dataset"
            )
        return here

    found = make_picture(folders, out, asked, "weighting", "weighings", of, draw_weights)
    width = max(len(here["label"]) for here in found)
    print(f"  {'m(s, a)':<{width}}  steps that count  effective  largest  return, weighted")
    for here in found:
        print(
            f"  {here['label']:<{width}}  {here['counted']:>15.1%}  {here['effective']:>9.1%}"
            f"  {here['largest']:>7.2f}  {here['return_weighted']:>16,.2f}"
        )


PICTURE = Picture(
    "weighting",
    "draw what each step of a dataset counts for bc, rwr, awr and bail runs on it: m(s, a)",
    weighting,
    WeightingFlags,
)
