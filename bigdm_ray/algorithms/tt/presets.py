"""Settings of the Trajectory Transformer for known tasks.

`cdf` and the bodies' presets are settings of the official repository, which differ by data set and
have its quality's name; a body's default is its `medium`. Which of them a run has is said by who
starts it: no name of a dataset is looked at. They score 15 episodes, as published, and only at the
end; `--evaluations.mode mean` scores without planning. `four-rooms` has settings of our own: a
small model that is told goals, for data of random play, whose bins are so small that a state in
the goal's has reached it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bigdm_ray.algorithms.base import Presets, own_flags

NEVER = 1_000_000_000
"""An `--evaluations.every` that no run comes to: it is scored at its end alone."""

PLANNED: dict[str, Any] = {
    "evaluations.mode": "plan",
    "evaluations.every": NEVER,
    "evaluations.episodes": 1,
    "evaluations.final_episodes": 15,
}
CDF = PLANNED | {"algorithm.k_act": 0, "algorithm.cdf_act": 0.6}
BODY = CDF | {"algorithm.termination_penalty": -100.0}
LONGER = {"budget.learner_steps": 312_500}
QUICK = {"algorithm.horizon": 5}
FAR = {"algorithm.horizon": 15}
NARROW = {"algorithm.beams": 32}
REPLAYED = {
    **NARROW,
    **LONGER,
    "algorithm.horizon": 20,
    "algorithm.k_act": 40,
    "algorithm.cdf_act": 0.0,
}
ANT = {
    **BODY,
    **QUICK,
    "algorithm.batch_size": 128,
    "algorithm.observed": 27,
    "budget.learner_steps": 390_600,
}
SMALL: dict[str, Any] = {
    "goal": "later",
    "goal_steps": 16,
    "objective": "goal",
    "horizon": 10,
    "beams": 32,
    "expansions": 1,
    "k_act": 0,
    "discretiser": "uniform",
    "bins": 32,
    "window": 2,
    "context": 2,
    "width": 64,
    "layers": 2,
    "dropout": 0.0,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "warm_up_steps": 50,
    "decay_steps": 4_000,
    "value_weight": 0.0,
}
ROOMS = {
    **PLANNED,
    "evaluations.final_episodes": 40,
    "budget.learner_steps": 4_000,
    **own_flags(SMALL),
}


def _qualities(
    medium: dict[str, Any],
    replay: Mapping[str, Any] = MappingProxyType({}),
    expert: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """A body's presets by quality of the data: those of `medium`, and in what the two others
    differ.
    """
    return {
        "default": medium,
        "medium": medium,
        "medium-replay": {**medium, **replay},
        "medium-expert": {**medium, **expert},
    }


PRESETS: Presets = {
    "hopper": _qualities(BODY, replay=LONGER),
    "halfcheetah": _qualities({**BODY, **QUICK, **NARROW}, expert=FAR),
    "walker2d": _qualities(BODY, replay=REPLAYED, expert=QUICK),
    "ant": _qualities(ANT, expert=FAR) | {"random": ANT},
    "four-rooms": {"default": ROOMS},
    "*": {"default": PLANNED, "cdf": CDF},
}
