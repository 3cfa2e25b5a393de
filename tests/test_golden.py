"""Files that version 1 of the formats wrote are read for ever: they are stored here and never written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigdm_ray.replay import EpisodeId
from bigdm_ray.replay.shard import Shard
from bigdm_ray.training.params import Weights

GOLDEN = Path(__file__).parent / "golden"


def test_a_shard_of_version_1_is_read() -> None:
    shard = Shard.open(GOLDEN / "shard-v1.arrow", verify=True)
    assert shard.task == "toy-vector" and shard.ids == [EpisodeId(7, 0, 0), EpisodeId(7, 0, 1)]
    second = shard.episode(1)
    assert (second.length, second.terminated, second.version, second.source, second.seed) == (
        3,
        False,
        (1, 20),
        "udrl",
        5,
    )
    assert second.command == {"desired_return": 3.0}
    np.testing.assert_array_equal(
        second.observations[""], np.arange(8, dtype=np.float32).reshape(4, 2)
    )
    np.testing.assert_array_equal(second.observations["eye"], np.full((4, 1, 2, 2), 3, np.uint8))
    np.testing.assert_array_equal(second.actions[""], np.arange(3))


def test_weights_of_version_1_are_read() -> None:
    weights = Weights.load(GOLDEN / "weights-v1.safetensors")
    assert weights.version == (1, 20)
    np.testing.assert_array_equal(
        weights.arrays["a.weight"], np.arange(6, dtype=np.float32).reshape(2, 3)
    )
