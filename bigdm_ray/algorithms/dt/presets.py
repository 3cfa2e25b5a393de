"""Settings of the Decision Transformer for known tasks.

Gym's target returns and Reacher's context are the paper's, Atari's are those of its code; `online`
is the network of Online Decision Transformer and its settings for pretraining and fine-tuning.
"""

from __future__ import annotations

from typing import Any

from bigdm_ray.algorithms.base import Presets, own_flags

MEAN = {"evaluations.mode": "mean"}
"""ODT explores with sampled actions and is scored with the mean."""

ODT: dict[str, Any] = {
    "stochastic": True,
    "positions": "none",
    "width": 512,
    "layers": 4,
    "heads": 4,
    "acting_context": 5,
    "optimizer": "lamb",
    "batch_size": 256,
    "weight_decay": 5e-4,
    "learning_rate": 1e-4,
}
BODIES = {
    "hopper": (3600.0, 1e-4, 5e-4),
    "halfcheetah": (6000.0, 1e-4, 5e-4),
    "walker2d": (5000.0, 1e-3, 1e-3),
    "ant": (5000.0, 1e-4, 1e-4),
}
"""Target return; learning rate and weight decay of ODT."""

ATARI: dict[str, Any] = {
    "context": 30,
    "layers": 6,
    "heads": 8,
    "positions": "window",
    "frame_stack": 4,
    "batch_size": 128,
    "learning_rate": 6e-4,
    "adam_beta2": 0.95,
    "weight_decay": 0.1,
    "decay_matrices_only": True,
    "max_norm": 1.0,
    "warm_up_steps": 3,
    "cosine_steps": 23_437,
    "timesteps": 27_000,
}
PONG = {"context": 50, "batch_size": 512, "warm_up_steps": 1, "cosine_steps": 5_859}
POINTS = {"breakout": 90.0, "qbert": 2500.0, "pong": 20.0, "seaquest": 1450.0}
"""Targets of the games in their points, which are the unit of returns."""

DOOR = {
    "context": 120,
    "timesteps": 120,
    "return_scale": 1.0,
    "target_return": 1.0,
    "whole_episodes": True,
}
REACHER: dict[str, Any] = {"context": 5, "return_scale": 0.1}
"""gymnasium's, whose returns are negative tens."""


def _body(target: float, rate: float, decay: float) -> dict[str, dict[str, Any]]:
    named = {"target_return": target}
    online = ODT | named | {"learning_rate": rate, "weight_decay": decay}
    return {"default": own_flags(named), "online": own_flags(online) | MEAN}


def _game(target: float, more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "default": own_flags(ATARI | more | {"target_return": target, "return_scale": 1 / target})
    }


GAMES = {game: _game(target, PONG if game == "pong" else {}) for game, target in POINTS.items()}

PRESETS: Presets = {
    **{body: _body(*told) for body, told in BODIES.items()},
    **GAMES,
    **{f"{game}-sticky": presets for game, presets in GAMES.items()},
    "key-to-door": {"default": own_flags(DOOR)},
    "key-to-door-room": {"default": own_flags(DOOR)},
    "reacher": {"default": own_flags(REACHER), "online": own_flags(ODT | REACHER) | MEAN},
    "*": {"online": own_flags(ODT) | MEAN},
}
