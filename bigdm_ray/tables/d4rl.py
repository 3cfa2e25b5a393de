"""Tables on the locomotion datasets: percentage cloning, the imitation family, value-based methods,
cloning of experts.

Published numbers are normalised scores of Chen et al. 2021 (Decision Transformer), tables 2 and 3,
measured on D4RL's files.
"""

from __future__ import annotations

from bigdm_ray.tables.base import Grid, Scale

BODIES = ("halfcheetah", "hopper", "walker2d")
SETS = tuple(
    f"{body}-{quality}"
    for quality in ("medium", "medium-replay", "medium-expert")
    for body in BODIES
)
NOT_D4RL = (
    "The datasets are laid out like D4RL's but are not D4RL's: other agents recorded them on other"
    " versions of the simulator. Compare the methods of one table with each other, not our numbers"
    " with the published ones."
)

REACHER = tuple(f"reacher-{quality}" for quality in ("medium", "medium-replay", "medium-expert"))
NOT_REACHER_2D = (
    "Reacher: the paper's is an environment of its own (reacher_2d, 100 steps that pay 1 near the"
    " goal, else 0), ours is gymnasium's Reacher-v5 (50 steps, all returns negative), which has no"
    " reference scores. So its rows hold returns beside published scores that they do not compare"
    " with, and are in no average. Its data are recorded with a SAC of our own, a medium one after"
    " 17,000 steps and an expert after 60,000 (one seed returned -10.5, as if it stood still, after"
    " 10,000, -6.7 after 17,500, -4.5 after 60,000; 20 episodes each); what is missing is named"
    " with the commands."
)


def sac_command(task: str, run: str, steps: int, every: int, seed: int = 1) -> str:
    """The command of a SAC that leaves the weights of its stages behind."""
    return (
        f"python -m bigdm_ray.run sac {task} --seed {seed} --budget.env-steps {steps} --saves.every"
        f" {every} --saves.milestones true --folder runs/{run}"
    )


def record_command(run: str, steps: int) -> str:
    """The start of the command that records a SAC as it explores; the folder is to follow."""
    return f"python -m bigdm_ray.data record runs/{run} --mode sample --steps {steps} --folder"


_MEDIUM = sac_command("reacher", "reacher-medium", 17_000, 1_000)
_EXPERT = sac_command("reacher", "reacher-expert", 60_000, 5_000)
RECIPES = {
    **{
        f"{body}-medium-expert": (
            "python -m bigdm_ray.data import SOURCE --folder {folder}, where SOURCE is one file, "
            "or two, of medium and of expert, with --steps N to take the first N steps of each"
        )
        for body in BODIES
    },
    "reacher-medium": f"{_MEDIUM} && {record_command('reacher-medium', 100_000)} {{folder}}",
    "reacher-medium-replay": (
        f"{record_command('reacher-medium', 100_000)} {{folder}} --weights milestones, after the"
        " run that reacher-medium is of"
    ),
    "reacher-medium-expert": (
        f"{_EXPERT} && {record_command('reacher-expert', 100_000)} {{data}}/reacher-expert &&"
        " python -m bigdm_ray.data merge {data}/reacher-medium {data}/reacher-expert --folder"
        " {folder}"
    ),
}
"""How data are made that are more than one file to import. Those of Reacher, like D4RL's of the
other bodies: a run of SAC that is stopped early, its stages, and it together with an expert."""

Made = tuple[str, str, bool, tuple[str, ...]] | None


def learner_flags(
    count: int, *more: str, every: int | None = None, final: int = 100
) -> tuple[str, ...]:
    """Flags of a budget in learner steps, scored five times on the way."""
    period = every or count // 5
    scored = (
        "--evaluations.every",
        str(period),
        "--evaluations.episodes",
        "10",
        "--evaluations.final-episodes",
        str(final),
        "--saves.every",
        str(period),
    )
    return ("--budget.learner-steps", str(count), *scored, *more)


def percent(row: str, column: str, scale: Scale) -> Made:
    """A column of %BC."""
    fraction = int(column.removesuffix(" %")) / 100
    budget = {"quick": (5_000, 20), "paper": (25_000, 100)}[scale]
    return (
        "bc",
        row,
        True,
        learner_flags(
            budget[0],
            "--algorithm.decay-steps",
            str(budget[0]),
            "--algorithm.best-fraction",
            f"{fraction:g}",
            final=budget[1],
        ),
    )


def imitation(row: str, column: str, scale: Scale) -> Made:
    """A method of the imitation family."""
    if column == "BC":
        return percent(row, "100 %", scale)
    short = scale == "quick"
    flags = {
        "BAIL": learner_flags(
            15_000 if short else 212_500,
            "--algorithm.envelope-steps",
            "5000" if short else "12500",
            final=20 if short else 100,
        ),
        "AWR": learner_flags(12_000 if short else 120_000, final=20 if short else 100),
        "RWR": learner_flags(10_000 if short else 100_000, final=20 if short else 100),
        "MARWIL": learner_flags(10_000 if short else 100_000, final=20 if short else 100),
    }
    if column == "BAIL" and short:
        flags["BAIL"] += ("--algorithm.batch-size", "256")
    return column.lower(), row, True, flags[column]


NARROW = ("--algorithm.hidden", "256,256", "--algorithm.vae-hidden", "256,256")


def value_based(row: str, column: str, scale: Scale) -> Made:
    """A method that bootstraps.

    What it does before its critics lead is shortened to a tenth of the budget.
    """
    short = scale == "quick"
    budget = 20_000 if short else 100_000
    tenth = str(budget // 10)
    more: dict[str, tuple[str, ...]] = {
        "CQL": (
            "--algorithm.clone-steps",
            tenth,
            *(("--algorithm.batch-size", "64") if short else ()),
        ),
        "BCQ": NARROW if short else (),
        "BEAR": ("--algorithm.warm-start", tenth, *(NARROW if short else ())),
        "BRAC": ("--algorithm.clone-steps", tenth, "--algorithm.warm-start", tenth),
    }
    return (
        column.lower(),
        row,
        True,
        learner_flags(budget, *more.get(column, ()), final=20 if short else 100),
    )


def static(row: str, column: str, scale: Scale) -> Made:
    """A method on what one policy recorded: the cells of `imitation` and `value-based`."""
    return (
        value_based(row, column, scale) if column in VALUE_BASED else imitation(row, column, scale)
    )


def experts(row: str, column: str, scale: Scale) -> Made:
    """Cloning of an expert."""
    return percent(row, "100 %", scale)


def read_scores(
    columns: tuple[str, ...], values: str
) -> dict[tuple[str, str], tuple[float, float | None]]:
    """Published numbers, a line a row: the row's name, then its columns (`-` where there is
    none)."""
    out: dict[tuple[str, str], tuple[float, float | None]] = {}
    for line in values.strip().splitlines():
        row, *numbers = line.split()
        out |= {
            (row, column): (float(n), None)
            for column, n in zip(columns, numbers, strict=True)
            if n != "-"
        }
    return out


PERCENT = ("10 %", "25 %", "40 %", "100 %")
PERCENT_BC = read_scores(
    PERCENT,
    """
    halfcheetah-medium 42.9 43.0 43.1 43.1
    hopper-medium 65.9 65.2 65.3 63.9
    walker2d-medium 78.8 80.9 78.8 77.3
    halfcheetah-medium-replay 40.8 40.9 41.1 4.3
    hopper-medium-replay 70.6 58.6 31.0 27.6
    walker2d-medium-replay 70.4 67.8 67.2 36.9
    reacher-medium 51.0 48.9 58.2 58.4
    reacher-medium-replay 33.1 16.2 10.7 5.4
    """,
)
IMITATION = ("BC", "BAIL", "AWR", "RWR", "MARWIL")
PUBLISHED_IMITATION = read_scores(
    ("BC", "AWR"),
    """
    halfcheetah-medium 43.1 37.4
    hopper-medium 63.9 35.9
    walker2d-medium 77.3 17.4
    halfcheetah-medium-replay 4.3 40.3
    hopper-medium-replay 27.6 28.4
    walker2d-medium-replay 36.9 15.5
    halfcheetah-medium-expert 59.9 52.7
    hopper-medium-expert 79.6 27.1
    walker2d-medium-expert 36.6 53.8
    """,
)
VALUE_BASED = ("CQL", "IQL", "BCQ", "BEAR", "BRAC", "MBOP")
PUBLISHED_VALUE_BASED = read_scores(
    ("CQL", "BEAR", "BRAC"),
    """
    halfcheetah-medium 44.4 41.7 46.3
    hopper-medium 58.0 52.1 31.1
    walker2d-medium 79.2 59.1 81.1
    halfcheetah-medium-replay 46.2 38.6 47.7
    hopper-medium-replay 48.6 33.7 0.6
    walker2d-medium-replay 26.7 19.2 0.9
    halfcheetah-medium-expert 62.4 53.4 41.9
    hopper-medium-expert 111.0 96.3 0.8
    walker2d-medium-expert 98.7 40.1 81.6
    reacher-medium 26.0 - -
    reacher-medium-replay 19.0 - -
    reacher-medium-expert 30.6 - -
    """,
)

GRIDS = (
    Grid(
        "percent-bc",
        "Behaviour cloning of the best episodes that hold 10, 25, 40, 100 % of all time steps",
        "normalised score",
        (*SETS, *REACHER[:2]),
        PERCENT,
        3,
        percent,
        {
            "quick": "5,000 learner steps of 64, 20 final episodes",
            "paper": "25,000 learner steps of 64, 100 final episodes",
        },
        "Chen et al. 2021, table 3",
        PERCENT_BC,
        apart=REACHER[:2],
        notes=(NOT_D4RL, NOT_REACHER_2D),
        recipes=RECIPES,
    ),
    Grid(
        "imitation",
        "The imitation family on the nine locomotion sets",
        "normalised score",
        SETS,
        IMITATION,
        3,
        imitation,
        {
            "quick": (
                "learner steps: BC 5,000 of 64, BAIL 5,000 + 10,000 of 256, AWR 12,000 of 256, RWR"
                " 10,000 of 256, MARWIL 10,000; 20 final episodes"
            ),
            "paper": (
                "learner steps: BC 25,000 of 64, BAIL 12,500 + 200,000 of 1,000, AWR 120,000, RWR"
                " 100,000, MARWIL 100,000 of 256; 100 final episodes"
            ),
        },
        "Chen et al. 2021, table 2 (BC and AWR)",
        PUBLISHED_IMITATION,
        recipes=RECIPES,
        notes=(
            NOT_D4RL,
            (
                "Each method has its own paper's budget, so BAIL's policy sees more: at scale paper"
                " 200,000 x 1,000 samples, 125 times BC's 25,000 x 64; at scale quick 10,000 x 256,"
                " 8 times BC's 5,000 x 64. The table `bail` trains both on as many."
            ),
        ),
    ),
    Grid(
        "value-based",
        "Methods that bootstrap, on the locomotion sets",
        "normalised score",
        (*SETS, *REACHER),
        VALUE_BASED,
        3,
        value_based,
        {
            "quick": (
                "20,000 learner steps, 20 final episodes, CQL with batches of 64 instead of 256,"
                " BCQ and BEAR with layers of 256-256"
            ),
            "paper": (
                "100,000 learner steps, 100 final episodes; cloning and warm starts a tenth of that"
            ),
        },
        "Chen et al. 2021, table 2 (CQL, BEAR, BRAC-v)",
        PUBLISHED_VALUE_BASED,
        apart=REACHER,
        recipes=RECIPES,
        notes=(NOT_D4RL, NOT_REACHER_2D),
    ),
    Grid(
        "awr-static",
        "Advantage-weighted regression on what one policy recorded",
        "normalised score",
        SETS[:3],
        ("AWR", "RWR", "BC", "BCQ", "BEAR"),
        3,
        static,
        {
            "quick": (
                "learner steps: AWR 12,000 of 256, RWR 10,000 of 256, BC 5,000 of 64, BCQ and BEAR"
                " 20,000 with layers of 256-256; 20 final episodes"
            ),
            "paper": (
                "learner steps: AWR 120,000, RWR 100,000 of 256, BC 25,000 of 64, BCQ and BEAR"
                " 100,000; 100 final episodes"
            ),
        },
        "Peng et al. 2019, the figure of static datasets, whose bars have no numbers; AWR comes to"
        " the policy that recorded, or passes it, on most tasks",
        notes=(
            "Each of these sets was recorded by one policy, whose mean return is that of the data.",
            NOT_D4RL,
        ),
    ),
    Grid(
        "expert-bc",
        "Behaviour cloning of experts",
        "normalised score",
        tuple(f"{body}-expert" for body in BODIES),
        ("BC",),
        3,
        experts,
        {
            "quick": "5,000 learner steps of 64, 20 final episodes",
            "paper": "25,000 learner steps of 64, 100 final episodes",
        },
        "none; asked is 95 % of the data's mean return",
        notes=(NOT_D4RL,),
    ),
)
