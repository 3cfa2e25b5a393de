"""Random streams named by counters: the same wherever they are asked for, and different from all
others."""

import numpy as np
import torch

from bigdm_ray.training.streams import derived_seed, rng, seed_torch

COUNTERS = ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**40,))
NAMES = [
    (seed, name, *counters)
    for seed in (0, 1, 2**31 - 1)
    for name in ("draw", "ask", "play")
    for counters in COUNTERS
]


def test_every_name_has_a_stream_of_its_own():
    """Of (seed, purpose, counters): no two begin alike, apart from trailing zeros, which
    SeedSequence pads with."""
    firsts = {key: rng(*key).integers(2**62) for key in NAMES}
    seeds = {key: derived_seed(*key) for key in NAMES}
    padded = {(key[0], key[1], *(list(key[2:]) + [0, 0])[:2]) for key in NAMES}
    assert len(set(firsts.values())) == len(padded) == len(set(seeds.values()))
    assert all(0 <= seed < 2**31 for seed in seeds.values())


def test_streams_are_what_they_were_when_runs_were_saved():
    """Pinned: the same in every process, and a change of these numbers makes every saved run go on
    differently."""
    assert rng(1, "draw", 0).integers(0, 1000, 4).tolist() == [261, 686, 985, 172]
    assert derived_seed(1, "environments", 0, 0, 0) == 766237975


def test_torch_follows_its_name():
    draws = []
    for step in (5, 6, 5):
        seed_torch(1, "dropout", step, 0)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


def test_streams_are_independent_of_what_was_drawn_before():
    first = rng(1, "play", 3, 0)
    first.random(1000)
    np.testing.assert_array_equal(rng(1, "play", 3, 0).random(5), rng(1, "play", 3, 0).random(5))
    assert first.random() != rng(1, "play", 3, 0).random()
