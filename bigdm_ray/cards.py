"""What is said of a dataset: its card, its score in words, and how its returns and lengths are
spread."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.replay.shard import write_failure

if TYPE_CHECKING:
    pass

BARS = 20
BAR_WIDTH = 50


def count_noun(n: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def card(dataset: Dataset) -> str:
    """What a dataset is, for a terminal."""
    rows = {
        "task": dataset.task,
        "source": dataset.source,
        "episodes": f"{dataset.episodes:,}",
        "steps": f"{dataset.steps:,}",
        "return mean": f"{dataset.return_mean:,.2f}",
        "return std": f"{dataset.return_std:,.2f}",
        "return min, max": f"{dataset.return_min:,.2f}, {dataset.return_max:,.2f}",
        "normalised score": score_in_words(dataset),
        "versions": ", ".join(f"{name} {version}" for name, version in dataset.versions.items())
        or "not told",
        "sha256": dataset.sha256,
    }
    return "\n".join(
        [f"dataset {dataset.folder}", *(f"  {name:<18}{value}" for name, value in rows.items())]
    )


def score_in_words(dataset: Dataset) -> str:
    """The normalised score of the mean return, in words."""
    try:
        task = find_task(dataset.task)
        references = task.reference_returns or dataset.reference_returns
        task = dataclasses.replace(task, reference_returns=references)
        found = task.normalized_score(dataset.return_mean)
    except UserError:
        return "the task is not known here"
    return "none for this task" if found is None else f"{found:.1f}"


def histogram(values: np.ndarray) -> list[str]:
    """Bins of equal width, one line each, with a bar and the number in it.

    Labels have the digits that tell the bins apart.
    """
    low, high = float(values.min()), float(values.max())
    bins = bins_of(values, BARS)
    counts, edges = np.histogram(values, bins=bins)
    step = (high - low if bins > 1 else abs(low)) / BARS
    digits = max(1, math.ceil(-math.log10(step))) if step else 1
    labels = (
        [f"{a:,.{digits}f} to {b:,.{digits}f}" for a, b in itertools.pairwise(edges)]
        if bins > 1
        else [f"{low:,.{digits}f}"]
    )
    width = max(map(len, labels))
    most = int(counts.max())
    return [
        f"  {label:>{width}}  {'#' * -(-BAR_WIDTH * int(n) // most):<{BAR_WIDTH}} {int(n):,}"
        for label, n in zip(labels, counts, strict=True)
    ]


def bins_of(values: np.ndarray, most: int) -> int:
    """How many bins of equal width: `most`, or 1 where all values are equal or differ by rounding
    only."""
    low, high = float(values.min()), float(values.max())
    return most if high - low > 1e-9 * max(abs(low), abs(high)) else 1


def plot(dataset: Dataset, returns: np.ndarray, lengths: np.ndarray, path: Path) -> None:
    """A picture of the distribution of returns and lengths.

    Raises RunFailed where it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(returns, bins=bins_of(returns, 50))
    left.axvline(dataset.return_mean, color="black", linewidth=1)
    left.set(
        xlabel="return (line: mean)",
        ylabel="episodes",
        title=f"{dataset.name}: {count_noun(dataset.episodes, 'episode')}",
    )
    right.hist(lengths, bins=bins_of(lengths, 50))
    right.set(
        xlabel="length in steps",
        ylabel="episodes",
        title=f"{count_noun(dataset.steps, 'step')} of {dataset.task}",
    )
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise write_failure(path, error) from None
