"""Returns of JAT's random and expert policies on 39 BabyAI levels and 50 Meta-World tasks.

JAT (Gallouédec et al. 2024, "Jack of All Trades, Master of Some") normalises its scores by them:
`jat.json` is the part of its `jat/eval/rl/scores_dict.json` on these two suites (huggingface/jat,
commit 834b49c, Apache-2.0), its `put-next` under the name of the level that it is, `put-next-s7n4`.
Its Meta-World episodes last 100 steps. Ours, of the same tasks as they are played here, are
`Task.reference_returns`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from bigdm_ray.jsons import read_json


@functools.cache
def _returns() -> dict[str, list[float]]:
    told: dict[str, list[float]] = read_json(Path(__file__).with_suffix(".json"))["returns"]
    return told


def jat_returns(task: str) -> tuple[float, float] | None:
    """The mean returns (random, expert) of a task by its full name (`babyai/go-to-local`); None
    where JAT has none."""
    pair = _returns().get(task)
    return None if pair is None else (pair[0], pair[1])
