"""View: which episodes and steps are drawn, and how windows lie in them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdm_ray.replay import Table, View
from bigdm_ray.replay.windows import merge_stack, stacked_steps


def table(returns, lengths):
    n = len(lengths)
    return Table(
        np.stack([np.arange(n), np.zeros(n, int), np.zeros(n, int)], 1),
        np.array(returns, np.float64),
        np.array(lengths, np.int64),
    )


tables = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), min_size=1, max_size=8).map(
    lambda rows: table(*zip(*rows, strict=True))
)


@given(
    tables, st.sampled_from([0.05, 0.3, 0.5, 0.999, 1.0]), st.one_of(st.none(), st.integers(-3, 3))
)
def test_eligible_is_what_a_loop_would_pick(episodes, best, above):
    """`best`: from the best return down (the newer of two equals first) while they hold no more
    than that share of all steps, the best always."""
    picked, held = [], 0
    for row in sorted(range(len(episodes)), key=lambda row: (-episodes.returns[row], -row)):
        held += episodes.lengths[row]
        if picked and held > int(best * episodes.lengths.sum()):
            break
        picked.append(row)
    expected = sorted(row for row in picked if above is None or episodes.returns[row] >= above)
    assert View(best=best, above=above).eligible_episodes(episodes).tolist() == expected


@given(
    tables, st.sampled_from(["episode", "length"]), st.sampled_from([0.4, 1.0]), st.integers(0, 99)
)
def test_drawn_steps_lie_in_eligible_episodes(episodes, weight, best, seed):
    view = View(weight=weight, best=best)
    positions, steps = view.rows(episodes, np.random.default_rng(seed), 200)
    assert set(positions.tolist()) <= set(view.eligible_episodes(episodes).tolist())
    assert (steps >= 0).all() and (steps < episodes.lengths[positions]).all()
    again = view.rows(episodes, np.random.default_rng(seed), 200)
    np.testing.assert_array_equal(np.stack([positions, steps]), np.stack(again))


@pytest.mark.parametrize(
    ("weight", "expected"), [("episode", [1 / 3, 1 / 9, 1 / 3]), ("length", [1 / 6, 1 / 6, 1 / 6])]
)
def test_every_episode_alike_or_every_step_alike(weight, expected):
    """Episodes of 1, 3 and 2 steps, the last two left out in turn: shares of (episode 0, one step
    of 1, one step of 2's half)."""
    drawn = 60_000
    positions, steps = View(weight=weight).rows(
        table([0, 0, 0], [1, 3, 2]), np.random.default_rng(0), drawn
    )
    shares = [
        ((positions == 0) & (steps == 0)).mean(),
        ((positions == 1) & (steps == 1)).mean(),
        (positions == 2).mean() * (1 if weight == "episode" else 0.5),
    ]
    np.testing.assert_allclose(shares, expected, atol=5 * 0.5 / np.sqrt(drawn))


@pytest.mark.parametrize("view", [View(), View(best=0.5), View(above=1.0), View(weight="length")])
def test_an_empty_table_cannot_be_drawn_from(view):
    with pytest.raises(ValueError, match="no episode may be drawn"):
        view.rows(Table(), np.random.default_rng(0), 3)


def test_nothing_above_a_bound_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="no episode may be drawn"):
        View(above=9).rows(table([1, 2], [3, 4]), np.random.default_rng(0), 3)


@given(
    st.integers(1, 6),
    st.sampled_from(["start", "end"]),
    st.sampled_from(["left", "right"]),
    st.integers(1, 8),
    st.integers(0, 7),
)
def test_windows_never_look_past_an_episodes_end(length, anchor, pad, steps, step):
    step = step % steps
    times, mask = View(length=length, anchor=anchor, pad=pad).span(
        np.array([step]), np.array([steps])
    )
    assert times.shape == mask.shape == (1, length)
    assert (times >= 0).all() and (times < steps).all()
    real = times[mask].tolist()
    expected = (
        list(range(step, min(step + length, steps)))
        if anchor == "start"
        else list(range(max(0, step - length + 1), step + 1))
    )
    assert real == expected
    empty = length - len(real)
    assert mask[0].tolist() == (
        [False] * empty + [True] * len(real)
        if pad == "left"
        else [True] * len(real) + [False] * empty
    )


@pytest.mark.parametrize(
    "wrong",
    [{"columns": ("returns_to_come",)}, {"length": 0}, {"stack": 0}, {"best": 0}, {"best": 1.5}],
)
def test_a_view_that_cannot_be_drawn_is_refused_when_made(wrong):
    with pytest.raises(ValueError, match="cannot be drawn"):
        View(**wrong)


def test_stacks_repeat_the_first_frame_and_lie_oldest_first():
    assert stacked_steps(np.array([0, 1, 5]), 3).tolist() == [[0, 0, 0], [0, 0, 1], [3, 4, 5]]
    frames = np.arange(2 * 3 * 2 * 1 * 1).reshape(2, 3, 2, 1, 1)
    assert merge_stack(frames).reshape(2, 6).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_whole_episodes_are_drawn_from_their_first_step_each_alike():
    table = Table(
        np.array([[i, 0, 0] for i in range(3)], np.int64), np.zeros(3), np.array([2, 9, 40])
    )
    positions, steps = View(length=40, weight="whole").rows(table, np.random.default_rng(0), 3000)
    assert (steps == 0).all()
    np.testing.assert_allclose(np.bincount(positions) / 3000, 1 / 3, atol=0.04)
