"""Table 1 of BAIL (Chen et al. 2020): returns on the training batches of DDPG and SAC agents.

The rows of DDPG and of other bodies are there to be filled by whoever has the batches; import them
under the row's dataset name.
"""

from __future__ import annotations

from bigdm_ray.tables.base import Grid, Scale
from bigdm_ray.tables.d4rl import Made, learner_flags, record_command, sac_command

BATCH = 100_000
"""Environment steps of a batch, and of the SAC that it is of; the paper's have a million."""
COLUMNS = ("BAIL", "BCQ", "BEAR", "BC", "MARWIL")
PUBLISHED = """
0.1 Hopper B1|2173 291|1219 114|505 285|626 112|827 220
0.1 Hopper B2|2078 180|1178 87|985 3|579 141|620 336
0.1 Walker B1|1125 113|576 309|610 212|514 17|436 24
0.1 Walker B2|3141 300|2338 388|2707 425|1741 239|1810 200
0.1 HC B1|5746 29|5883 43|0 0|5546 29|5573 35
0.1 HC B2|7212 43|7562 31|0 0|6765 108|6828 111
0.5 Hopper B1|2054 158|1145 300|203 42|919 52|946 103
0.5 Hopper B2|2623 282|1823 555|241 239|694 64|818 112
0.5 Walker B1|2522 51|1552 455|1248 181|2178 178|2111 52
0.5 Walker B2|3115 133|2785 123|2302 630|2483 94|2364 228
0.5 HC B1|1055 9|1222 38|924 579|570 35|512 43
0.5 HC B2|7173 120|5807 249|-114 140|6545 171|6668 93
SAC Hopper B1|3296 105|2681 438|1000 110|2853 318|2897 227
SAC Hopper B2|1831 915|2134 917|1139 317|2240 367|2063 168
SAC Walker B1|2455 211|2408 84|-3 5|1674 277|1484 140
SAC Walker B2|4767 130|3794 398|325 75|2599 145|2651 268
SAC HC B1|10143 77|8607 473|7392 257|8874 221|9105 90
SAC HC B2|10772 59|10106 134|7217 273|9523 164|9488 136
SAC Ant B1|4284 64|4042 113|3452 128|3986 112|4033 130
SAC Ant B2|4946 148|4640 76|3712 236|4618 111|4589 130
SAC Humanoid B1|3852 430|1411 250|0 0|543 378|589 121
SAC Humanoid B2|3565 153|1221 207|0 0|1216 826|1033 257
"""


def published_bail() -> dict[tuple[str, str], tuple[float, float | None]]:
    """(row, column) -> (mean, deviation)."""
    out: dict[tuple[str, str], tuple[float, float | None]] = {}
    for line in PUBLISHED.strip().splitlines():
        row, *cells = line.split("|")
        for column, cell in zip(COLUMNS, cells, strict=True):
            mean, deviation = cell.split()
            out[row, column] = (float(mean), float(deviation))
    return out


def make_bail(row: str, column: str, scale: Scale) -> Made:
    """A method on a batch; the batch is the dataset `bail-sac-hopper-b1` and so on.

    BC trains BAIL's policy, as long, on all of it.
    """
    short = scale == "quick"
    budget = {"BAIL": 35_000 if short else 212_500, "BC": 30_000 if short else 200_000}.get(
        column, 20_000 if short else 100_000
    )
    batch = ("--algorithm.batch-size", "256" if short else "1000")
    more = {
        "BAIL": ("--algorithm.envelope-steps", "5000" if short else "12500", *batch),
        "BC": ("--algorithm.hidden", "400,300", *batch, "--algorithm.decay-steps", "0"),
        "BEAR": ("--algorithm.warm-start", str(budget // 10)),
    }.get(column, ())
    return (
        column.lower(),
        "bail-" + row.lower().replace(" ", "-"),
        True,
        learner_flags(budget, *more, final=20 if short else 100),
    )


def batches() -> dict[str, str]:
    """How a training batch of SAC is made here: its stages play, the oldest first, for equal shares
    of as many steps as it was trained for."""
    bodies = {"hopper": "hopper", "walker": "walker2d", "hc": "halfcheetah"}
    out = {}
    for short, task in bodies.items():
        for seed in (1, 2):
            run = f"sac-{short}-b{seed}"
            out[f"bail-{run}"] = (
                f"{sac_command(task, run, BATCH, BATCH // 20, seed)} &&"
                f" {record_command(run, BATCH)} {{folder}} --weights milestones"
            )
    return out


GRIDS = (
    Grid(
        "bail",
        "Imitation of the best actions on training batches",
        "return",
        tuple(line.split("|")[0] for line in PUBLISHED.strip().splitlines()),
        COLUMNS,
        3,
        make_bail,
        {
            "quick": (
                "learner steps: BAIL 5,000 + 30,000 of 256, BC 30,000 of 256, BCQ and BEAR 20,000"
                " of 100, MARWIL 20,000 of 256; 20 final episodes"
            ),
            "paper": (
                "learner steps: BAIL 12,500 + 200,000 of 1,000, BC 200,000 of 1,000, BCQ and BEAR"
                " 100,000 of 100, MARWIL 100,000 of 256; 100 final episodes"
            ),
        },
        "Chen et al. 2020, table 1",
        published_bail(),
        averages=False,
        notes=(
            (
                "The batches are not the paper's: those of SAC on Hopper, Walker and HalfCheetah"
                f" are recorded with an agent of our own, {BATCH:,} steps of its 20 stages, trained"
                " for as many; the others were not to be had."
            ),
        ),
        recipes=batches(),
    ),
)
