"""Obedience: the return asked for against the return obtained, Figure 6 of Srivastava et al. 2019.

It plays episodes.

Grey markers are the values of that paper; a dotted line is the best return of the run's dataset.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.pictures.base import (
    COLOURS,
    GREY,
    PUBLISHED,
    Picture,
    SweepFlags,
    dataset_of,
    label_axes,
    make_panels,
    make_picture,
    mark_published,
)
from bigdm_ray.progress import say
from bigdm_ray.training.acting import command_of, policy_of, report_head
from bigdm_ray.training.config import read_run
from bigdm_ray.training.evaluation import play
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.run_folder import metrics_of, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def default_returns(loaded: Loaded) -> tuple[float, ...]:
    """Nine returns from what random episodes get to what the task can pay (the paper's for its
    tasks), or those of the data. Raises UserError."""
    task = loaded.task
    if task.name in PUBLISHED:
        return PUBLISHED[task.name].asked
    reports = metrics_of(loaded.folder)
    played = [report["play/return_mean"] for report in reports if "play/return_mean" in report]
    scored = [
        report["evaluation/return_max"] for report in reports if "evaluation/return_max" in report
    ]
    low = task.reference_returns[0] if task.reference_returns else min(played, default=math.nan)
    high = task.max_return if task.max_return is not None else max(scored, default=math.nan)
    if not low < high and (dataset := source_dataset(loaded)) is not None:
        low, high = dataset.return_min, dataset.return_max
    if not low < high:
        raise UserError(
            f"what {task.name} pays is not known from {loaded.folder}; give --returns, as in"
            " --returns 0,50,100"
        )
    return tuple(float(f"{value:.3g}") for value in np.linspace(low, high, 9))


def play_sweep(loaded: Loaded, asked: SweepFlags) -> dict[str, Any]:
    """Play the episodes of a sweep; its numbers.

    Raises UserError, and RunFailed where a return's episodes all fail.
    """
    if not loaded.run.algorithm.commands:
        raise UserError(
            f"{loaded.run.algorithm.name} takes no command, so {loaded.folder} has no obedience to"
            " draw"
        )
    policy, mode = policy_of(loaded, asked.mode)
    seed = loaded.run.seed if asked.seed is None else asked.seed
    commands = [
        command_of(loaded, value) for value in sorted(set(asked.returns or default_returns(loaded)))
    ]
    count = len(commands) * asked.episodes
    columns = {
        name: np.repeat(
            np.array([command[name] for command in commands], np.float32), asked.episodes
        )
        for name in commands[0]
    }
    say(f"playing {count:,} episodes of {loaded.run.task}")
    played = play(policy, loaded.task, columns, count, seed, "obedience", 0)
    obtained: list[list[float]] = [[] for _ in commands]
    for episode in played.episodes:
        obtained[episode.id.number // asked.episodes].append(episode.total_return)
    if not all(obtained):
        raise RunFailed(
            f"no episode of {loaded.run.task} could be played to its end for one of the returns:"
            f" {played.problems[0]}"
        )
    return {
        "folder": str(loaded.folder),
        **report_head(loaded, asked.weights, mode, seed),
        "data_best": best_return_of_data(loaded),
        "points": [
            point(command, np.array(returns))
            for command, returns in zip(commands, obtained, strict=True)
        ],
        "versions": versions(),
    }


def source_dataset(loaded: Loaded) -> Dataset | None:
    """The dataset that a run, or the one that it started from, learned from, where it still lies
    there."""
    before = loaded.run.start
    return dataset_of(
        read_run(Path(before.folder))
        if before and (Path(before.folder) / "run.json").is_file()
        else loaded.run
    )


def best_return_of_data(loaded: Loaded) -> float | None:
    """The best return of that dataset."""
    dataset = source_dataset(loaded)
    return None if dataset is None else dataset.return_max


def point(command: dict[str, float], returns: np.ndarray) -> dict[str, Any]:
    """One point of a sweep."""
    return {
        **command,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_episodes": len(returns),
        "returns": returns.tolist(),
    }


def draw_obedience(sweeps: list[dict[str, Any]]) -> Figure:
    """Asked return against obtained return, a panel for each run."""
    figure, panels = make_panels(len(sweeps), 5.4, 5.0)
    for axes, here in zip(panels, sweeps, strict=True):
        asked, mean, spread = (
            np.array([p[name] for p in here["points"]])
            for name in ("desired_return", "return_mean", "return_std")
        )
        low, high = asked.min(), asked.max()
        axes.plot(
            [low, high],
            [low, high],
            color=GREY,
            linewidth=1.2,
            linestyle="--",
            label="obtained = asked",
        )
        text = f"mean ± std of {here['points'][0]['return_episodes']} episodes"
        axes.errorbar(
            asked,
            mean,
            spread,
            color=COLOURS[0],
            marker="o",
            markersize=5,
            capsize=3,
            elinewidth=1.2,
            label=text,
        )
        if here.get("data_best") is not None:
            axes.axvline(
                here["data_best"],
                color=GREY,
                linewidth=1.2,
                linestyle=":",
                label="best of the data",
            )
        published = PUBLISHED[here["task"]].obedience if here["task"] in PUBLISHED else ()
        mark_published(
            axes,
            [pair for pair in published if low <= pair[0] <= high],
            "UDRL, Srivastava et al. 2019 (digitised)",
        )
        label_axes(
            axes,
            f"{here['algorithm']} on {here['task']}, seed {here['run_seed']}",
            "desired return",
            "return obtained",
        )
    for task in {here["task"] for here in sweeps}:  # panels of one task have one scale
        same = [axes for axes, here in zip(panels, sweeps, strict=True) if here["task"] == task]
        ends = [axes.get_ylim() for axes in same]
        for axes in same:
            axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    return figure


def obedience(folders: list[Path], out: Path | None, asked: SweepFlags) -> None:
    """Play and draw the sweeps of run folders. Raises UserError and RunFailed."""
    for here in make_picture(
        folders, out, asked, "obedience", "sweeps", play_sweep, draw_obedience
    ):
        for p in here["points"]:
            print(
                f"  {here['task']}, seed {here['run_seed']}: asked {p['desired_return']:,.1f},"
                f" obtained {p['return_mean']:,.1f} +- {p['return_std']:,.1f}"
            )


PICTURE = Picture("obedience", "draw asked return against obtained return", obedience, SweepFlags)
