"""Tables of agents that play: Upside-Down RL beside DQN, A2C and PPO, and advantage-weighted
regression."""

from __future__ import annotations

from bigdm_ray.tables.base import Grid, Scale
from bigdm_ray.tables.d4rl import Made

MILLION = {"quick": 1_000_000, "paper": 10_000_000}


def online_flags(steps: int, *more: str) -> tuple[str, ...]:
    """Flags of a budget in environment steps, scored twenty times on the way."""
    return (
        "--budget.env-steps",
        str(steps),
        "--evaluations.every",
        str(steps // 20),
        "--evaluations.episodes",
        "20",
        *more,
    )


def udrl(row: str, column: str, scale: Scale) -> Made:
    """A column of the learning curves."""
    algorithm, _, preset = column.lower().partition(" ")
    if row == "takecover" and algorithm == "ppo":
        algorithm = "sb3-ppo"  # RLlib's sees vectors alone
    return (
        algorithm,
        row,
        False,
        online_flags(MILLION[scale], *(("--preset", "paper") if preset else ())),
    )


def awr(row: str, column: str, scale: Scale) -> Made:
    """Online AWR, and with the settings that it has on datasets."""
    return (
        "awr",
        row,
        False,
        online_flags(MILLION[scale], *(() if column == "AWR" else ("--preset", "default"))),
    )


GRIDS = (
    Grid(
        "udrl-lunarlander",
        "Upside-Down RL beside DQN, A2C and PPO",
        "return",
        ("lunarlander", "lunarlander-sparse", "takecover"),
        ("UDRL", "UDRL paper", "DQN", "A2C", "PPO"),
        5,
        udrl,
        {"quick": "1 million environment steps", "paper": "10 million environment steps"},
        "Srivastava et al. 2019, figures 4 and 5, read off the curves at 10 million steps",
        {
            ("lunarlander", "UDRL paper"): (141, None),
            ("lunarlander", "DQN"): (213, None),
            ("lunarlander", "A2C"): (272, None),
            ("lunarlander-sparse", "UDRL paper"): (162, None),
            ("lunarlander-sparse", "DQN"): (-250, None),
            ("lunarlander-sparse", "A2C"): (158, None),
            ("takecover", "UDRL paper"): (546, None),
            ("takecover", "DQN"): (313, None),
            ("takecover", "A2C"): (399, None),
        },
        averages=False,
        notes=("DQN here is neither double nor multi-step; the paper's had both options.",),
    ),
    Grid(
        "awr",
        "Advantage-weighted regression, online",
        "return",
        ("lunarlander", "hopper", "halfcheetah", "walker2d", "ant", "humanoid"),
        ("AWR", "AWR Adam"),
        2,
        awr,
        {"quick": "1 million environment steps", "paper": "10 million environment steps"},
        "Peng et al. 2019: logs of the official repository, 10 seeds, 12 to 32 million samples",
        {
            ("lunarlander", "AWR"): (235, 4),
            ("hopper", "AWR"): (3339, 401),
            ("halfcheetah", "AWR"): (9166, 192),
            ("walker2d", "AWR"): (6115, 493),
            ("ant", "AWR"): (5337, 205),
            ("humanoid", "AWR"): (6173, 204),
        },
        averages=False,
    ),
)
