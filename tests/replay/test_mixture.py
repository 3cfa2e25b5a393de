"""Mixture: shares within chance, the same on all ranks; one source is drawn as it is alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import episode, same_windows

from bigdm_ray.errors import UserError
from bigdm_ray.replay import Mixture, Source, Store, View
from bigdm_ray.training.streams import rng

VIEW = View(3, columns=("returns_to_go",), next_observation=True)


class Noted:
    """A source of which is noted what it is asked for."""

    def __init__(self):
        self.asked = []

    def draw(self, view, rng, size, rank=0, world=1, turn=0):
        self.asked.append((view, rng.random(), size, rank, world, turn))
        return size


def asked(mixture, names, step=0, size=40, rank=0, world=1, seed=1):
    """What each source was asked for, by name."""
    sources = {name: Noted() for name in names}
    views = {name: View(1 + len(name)) for name in names}
    mixture.draw(sources, views, rng(seed, "draw", step), size, rank, world, step)
    return {name: source.asked[0] for name, source in sources.items() if source.asked}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of other leaves and lengths."""
    out: dict[str, Source] = {}
    for number, kind in enumerate(("vector", "nested")):
        out[kind] = Store(tmp_path_factory.mktemp(kind))
        out[kind].add([episode((10 * number + i, 0, 0), 3 + i, kind) for i in range(6)])
    return out


weights = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.floats(0, 100), min_size=1, max_size=8
).filter(lambda found: any(found.values()))


@given(weights, st.integers(0, 300), st.integers(0, 1000))
def test_the_parts_add_up_to_the_batch_and_nothing_comes_of_a_weight_of_zero(given, size, step):
    counts = Mixture(given).counts(given, rng(1, "draw", step), size)
    assert sum(counts.values()) == size and min(counts.values()) >= 0
    assert set(counts) == {name for name, weight in given.items() if weight > 0}
    assert counts == Mixture(given).counts(given, rng(1, "draw", step), size)


@given(weights, st.integers(1, 5), st.integers(0, 1000))
def test_ranks_draw_the_same_with_the_same_chance_and_each_fetches_a_part_of_its_own(
    given, world, step
):
    of_ranks = [asked(Mixture(given), given, step, 17, rank, world) for rank in range(world)]
    for name, (*same, rank, _, turn) in of_ranks[0].items():
        others = [of_rank[name] for of_rank in of_ranks]
        assert all(list(other[:3]) == same and other[5] == turn == step for other in others)
        assert sorted(other[3] for other in others) == list(range(world))
        assert others[-1][3] == (rank + world - 1) % world
    assert of_ranks[0] == asked(Mixture(given), dict(reversed(given.items())), step, 17, 0, world)


def test_many_small_parts_do_not_all_fall_to_one_rank():
    mixture = Mixture.uniform([f"{number:02}" for number in range(30)])
    rows = np.zeros(4, int)
    for rank in range(4):
        for _, _, size, place, world, _ in asked(mixture, mixture.weights, 3, 30, rank, 4).values():
            rows[rank] += (place + 1) * size // world - place * size // world
    assert rows.sum() == 30 and rows.max() <= 12


def test_shares_are_those_of_the_weights_within_chance():
    mixture = Mixture({"a": 3, "b": 1, "none": 0.0})
    drawn = [mixture.counts("ab", rng(5, "draw", step), 64)["a"] for step in range(400)]
    deviation = np.sqrt(64 * 0.75 * 0.25)
    assert abs(np.mean(drawn) - 48) < 4 * deviation / np.sqrt(400)
    assert np.std(drawn) == pytest.approx(deviation, rel=0.2)
    # the ratio alone counts
    assert mixture.counts("ab", rng(5, "draw", 0), 64) == Mixture({"a": 0.3, "b": 0.1}).counts(
        "ba", rng(5, "draw", 0), 64
    )


def test_a_source_draws_with_chance_of_its_own_that_is_named_by_seed_and_step():
    mixture = Mixture.uniform("abc")
    seen = [asked(mixture, "abc", step, seed=seed) for step in range(5) for seed in (1, 2)]
    chances = [chance for found in seen for _, chance, *_ in found.values()]
    assert len(set(chances)) == len(chances) == 30
    assert len({tuple(size for _, _, size, *_ in found.values()) for found in seen}) > 5
    assert [view.length for view, *_ in seen[0].values()] == [2, 2, 2]


@pytest.mark.parametrize("others", [{}, {"nested": 0.0}, {"absent": 7.0}])
def test_one_source_is_drawn_as_it_is_alone(others, stores):
    mixture = Mixture({"vector": 0.2} | others)
    there = {name: store for name, store in stores.items() if name in mixture.weights}
    views = dict.fromkeys(stores, VIEW)
    for rank in range(2):
        (mixed,) = mixture.draw(there, views, rng(3, "draw", 9), 33, rank, 2, 9).values()
        same_windows(mixed, stores["vector"].draw(VIEW, rng(3, "draw", 9), 33, rank, 2, 9))


def test_windows_differ_in_length_by_source_and_ranks_together_draw_the_batch(stores):
    mixture = Mixture({"vector": 1, "nested": 2})
    views = {"vector": VIEW, "nested": View(5)}
    whole = mixture.draw(stores, views, rng(1, "draw", 4), 31)
    parts = [mixture.draw(stores, views, rng(1, "draw", 4), 31, rank, 3) for rank in range(3)]
    assert {name: found.mask.shape[1] for name, found in whole.items()} == {
        "vector": 3,
        "nested": 5,
    }
    assert sum(len(found.mask) for found in whole.values()) == 31
    for name, found in whole.items():
        first = sorted(mixture.weights).index(name)  # which rank comes first goes round
        ordered = [parts[(place - first) % 3][name] for place in range(3)]
        for path, values in found.observations.items():
            np.testing.assert_array_equal(
                values, np.concatenate([part.observations[path] for part in ordered])
            )
    assert max(abs(sum(len(f.mask) for f in part.values()) - 31 / 3) for part in parts) < 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": -1.0}, "the weight of 'a' is -1.0, but a number of at least 0 is expected"),
        ({"a": float("nan")}, "is nan, but a number"),
        ({"a": 1, "b": float("inf")}, "the weight of 'b' is inf"),
        ({}, "nothing to draw from"),
        ({"a": 0, "b": 0.0}, "give at least one source a weight above 0"),
    ],
)
def test_weights_that_are_no_shares_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        Mixture(given)


def test_sources_that_the_mixture_does_not_know_or_never_draws_from_are_told():
    mixture = Mixture({"a": 1, "b": 0})
    with pytest.raises(UserError, match="no weight for 'c', only for a, b"):
        mixture.counts("abc", rng(1, "draw", 0), 8)
    with pytest.raises(UserError, match="no source with a weight above 0 is at hand, only b"):
        mixture.counts("b", rng(1, "draw", 0), 8)
    with pytest.raises(UserError, match="only none at all"):
        mixture.counts([], rng(1, "draw", 0), 8)
