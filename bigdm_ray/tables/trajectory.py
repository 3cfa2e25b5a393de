"""The table of Trajectory Transformer: nine locomotion sets (Janner, Li, Levine 2021, table 1;
quantile bins: the official repository)."""

from __future__ import annotations

from bigdm_ray.algorithms.tt import Tt
from bigdm_ray.tables.base import Grid, Scale
from bigdm_ray.tables.d4rl import NOT_D4RL, RECIPES, SETS, Made, percent, value_based
from bigdm_ray.tables.transformers import ONE_STEP_HEADINGS, QUICK_DT, transformer

COLUMNS = ("BC", "MBOP", "BRAC", "CQL", "DT", "TT uniform", "TT quantile")
ROTARY = "TT rotary"
"""A model of our own, with quantile bins, whose plans keep what they have computed."""
PUBLISHED = """
halfcheetah-medium 43.1 44.6 46.3 44.0 42.6 44.0/0.31 46.9/0.4
hopper-medium 63.9 48.8 31.3 58.5 67.6 67.4/2.9 61.1/3.6
walker2d-medium 77.3 41.0 81.1 72.5 74.0 81.3/2.1 79.0/2.8
halfcheetah-medium-replay 4.3 42.3 47.7 45.5 36.6 44.1/0.9 41.9/2.5
hopper-medium-replay 27.6 12.4 0.6 95.0 82.7 99.4/3.2 91.5/3.6
walker2d-medium-replay 36.9 9.7 0.9 77.2 66.6 79.4/3.3 82.6/6.9
halfcheetah-medium-expert 59.9 105.9 41.9 91.6 86.8 40.8/2.3 95.0/0.2
hopper-medium-expert 79.6 55.1 0.9 105.4 107.6 106.0/0.28 110.0/2.7
walker2d-medium-expert 36.6 70.2 81.6 108.8 108.1 91.0/2.8 101.9/6.8
"""


def published_trajectory() -> dict[tuple[str, str], tuple[float, float | None]]:
    """(row, column) -> (mean, standard error of it or None)."""
    out: dict[tuple[str, str], tuple[float, float | None]] = {}
    for line in PUBLISHED.strip().splitlines():
        row, *cells = line.split()
        for column, cell in zip(COLUMNS, cells, strict=True):
            mean, _, error = cell.partition("/")
            out[row, column] = (float(mean), float(error) if error else None)
    return out


def trajectory(row: str, column: str, scale: Scale) -> Made:
    """TT on a set, scored at the end alone, since plans are dear.

    `paper` is the preset of the set; `quick` trains a smaller network for less, on windows of as
    many transitions as the planner sees, and plans less.
    """
    body, _, quality = row.partition("-")
    flags: tuple[str, ...] = (
        "--preset",
        quality,
        "--algorithm.discretiser",
        "uniform" if column == "TT uniform" else "quantile",
    )
    if scale == "paper":
        count = int(Tt.presets[body][quality].get("budget.learner_steps", Tt.offline_steps))
        if column == ROTARY:
            flags += (
                "--algorithm.positions",
                "rotary",
                "--algorithm.window",
                "20",
                "--algorithm.batch-size",
                "128",
            )
        return (
            "tt",
            row,
            True,
            (*flags, "--evaluations.every", str(count + 1), "--saves.every", str(count // 20)),
        )
    # as many transitions as a plan sees
    window, batch = ("9", "36") if column == ROTARY else ("5", "64")
    flags += (
        "--algorithm.width",
        "64",
        "--algorithm.layers",
        "3",
        "--algorithm.window",
        window,
        "--algorithm.dropout",
        "0",
        "--algorithm.batch-size",
        batch,
    )
    flags += ("--algorithm.positions", "rotary") if column == ROTARY else ()
    flags += (
        "--algorithm.learning-rate",
        "3e-3",
        "--algorithm.warm-up-steps",
        "200",
        "--algorithm.decay-steps",
        "4800",
    )
    flags += (
        "--algorithm.horizon",
        "5",
        "--algorithm.beams",
        "32",
        "--evaluations.final-episodes",
        "10",
    )
    return (
        "tt",
        row,
        True,
        (
            *flags,
            "--budget.learner-steps",
            "5000",
            "--evaluations.every",
            "5001",
            "--saves.every",
            "500",
        ),
    )


def make_trajectory(row: str, column: str, scale: Scale) -> Made:
    """A column's method, with the settings that it has in its own table."""
    if column == "BC":
        return percent(row, "100 %", scale)
    if column == "DT":
        return transformer(row, column, scale)
    return (
        trajectory(row, column, scale)
        if column.startswith("TT")
        else value_based(row, column, scale)
    )


GRIDS = (
    Grid(
        "tt",
        "Trajectory Transformer, planned, beside what it was compared with",
        "normalised score",
        SETS,
        (*COLUMNS, ROTARY),
        3,
        make_trajectory,
        {
            "quick": (
                "TT 3 layers of width 64 without dropout, 5,000 learner steps of 64 windows of 5"
                " with a rate of 3e-3 (a 300th of what is official), planned with horizon 5 and 32"
                f" beams, 10 final episodes; {QUICK_DT}; BC 5,000 of 64, the others 20,000 learner"
                " steps, 20 final episodes"
            ),
            "paper": (
                "TT 195,000 learner steps of 256 windows of 10 (medium-replay of hopper and"
                " walker2d 312,500) and the official planner of each set, 15 final episodes; DT"
                " 100,000 of 64 windows of 20; BC 25,000 of 64; the others 100,000; 100 final"
                " episodes"
            ),
        },
        "Janner et al. 2021, table 1, and the official repository (quantile bins, and CQL on the"
        " sets' second version); its ± are errors of the mean of 15",
        published_trajectory(),
        notes=(
            NOT_D4RL,
            (
                "Budgets differ: at scale quick DT learns from 12.8 million drawn time steps (some"
                " 25 minutes of a core), TT from 1.6 million (some 15, without planning); at scale"
                " paper DT from 128 million, TT from 499 million."
            ),
            (
                "TT rotary is a model of our own: quantile bins, rotary positions, windows of as"
                " many transitions as a plan sees (at scale quick 2.9 million)."
            ),
        ),
        recipes=RECIPES,
        headings=ONE_STEP_HEADINGS,
    ),
)
