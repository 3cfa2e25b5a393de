"""Returns over whole episodes equal their definitions, written as slow loops."""

import numpy as np
import pytest
from making import episode

from bigdm_ray.replay import Store
from bigdm_ray.replay.returns import (
    continued_returns,
    discounted_returns,
    episode_groups,
    normalised_weights,
    pad_episodes,
    td_lambda,
    unpad_episodes,
)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    chance = np.random.default_rng(0)
    made.add(
        [
            episode(i, length=int(n), rewards=chance.normal(size=n), terminated=bool(i % 2))
            for i, n in enumerate([1, 7, 3, 12, 5, 2])
        ]
    )
    return made


def test_groups_hold_every_step_in_the_order_of_the_table(store):
    whole = next(iter(episode_groups(store)))
    parts = list(episode_groups(store, steps=8))
    assert len(parts) > 2
    np.testing.assert_array_equal(whole.rewards, np.concatenate([p.rewards for p in parts]))
    np.testing.assert_array_equal(whole.lengths, store.table.lengths)
    np.testing.assert_array_equal(
        whole.observations[""], np.concatenate([p.observations[""] for p in parts])
    )
    assert len(whole.observations[""]) == store.table.lengths.sum() + len(store.table)


def test_flattened_inverts_padded():
    values, lengths = np.arange(9, dtype=np.float32), np.array([2, 4, 3])
    np.testing.assert_array_equal(unpad_episodes(pad_episodes(values, lengths), lengths), values)


def test_discounted_returns_are_the_sums_that_define_them(store):
    got, start = (
        discounted_returns(next(iter(episode_groups(store))).rewards, store.table.lengths, 0.9),
        0,
    )
    for position in range(len(store.table)):
        rewards = store.episode(position).rewards.astype(np.float64)
        want = [
            sum(0.9 ** (k - t) * rewards[k] for k in range(t, len(rewards)))
            for t in range(len(rewards))
        ]
        np.testing.assert_allclose(got[start : start + len(want)], want, rtol=1e-5)
        start += len(want)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_td_lambda_follows_its_recursion_and_stops_where_an_episode_terminated(store, lam):
    group = next(iter(episode_groups(store)))
    values = np.random.default_rng(1).normal(size=len(group.observations[""])).astype(np.float32)
    got, here = td_lambda(group, values, 0.9, lam)
    out, at, start = [], [], 0
    for position in range(len(store.table)):
        e = store.episode(position)
        v = values[start : start + e.length + 1].astype(np.float64)
        v[-1] *= not e.terminated
        running, returns = v[-1], []
        for t in reversed(range(e.length)):
            running = e.rewards[t] + 0.9 * ((1 - lam) * v[t + 1] + lam * running)
            returns.append(running)
        out += returns[::-1]
        at += list(v[:-1])
        start += e.length + 1
    np.testing.assert_allclose(got, out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(here, at, rtol=1e-5)


def test_weights_are_normalised_and_clipped():
    weights = normalised_weights(np.array([-1.0, 0.0, 1.0, 40.0] * 5), 1.0, 3.0)
    assert weights.dtype == np.float32 and weights.max() == 3.0
    assert weights[0] < weights[1] < weights[2] < 1
    scaled = (np.array([-1.0, 0, 1, 40]) - 10) / (np.array([-1.0, 0, 1, 40] * 5).std() + 1e-5)
    np.testing.assert_allclose(weights[:3], np.exp(scaled[:3]), rtol=1e-5)


def slow_gain(returns, states, gamma):
    """The definition, step by step."""
    length, out = len(returns), []
    for t in range(length):
        n = length - t
        candidates = range(min(n, length - 1) + 1)
        match = min(candidates, key=lambda i: ((states[i] - states[-1]) ** 2).sum())
        later = match + t
        cut = gamma**length * returns[later] if later < length else 0.0
        out.append(gamma**n * returns[match] - cut)
    return np.array(out)


def test_an_episode_that_was_cut_off_goes_on_from_the_state_most_like_its_last(tmp_path):
    """Whatever its length; one that terminated does not, however long it was."""
    chance = np.random.default_rng(2)
    made = Store(tmp_path)
    lengths, terminated = (20, 1200, 7, 1), (False, True, False, False)
    states = [chance.normal(size=(n + 1, 2)).astype(np.float32) for n in lengths]
    rewards = [chance.normal(size=n).astype(np.float32) for n in lengths]
    made.add(
        [
            episode(i, length=n, rewards=r, observations={"": s}, terminated=t)
            for i, (n, r, s, t) in enumerate(zip(lengths, rewards, states, terminated, strict=True))
        ]
    )
    group = next(iter(episode_groups(made)))
    got, plain = (
        continued_returns(group, 0.9),
        discounted_returns(group.rewards, group.lengths, 0.9),
    )
    start = 0
    for n, seen, ended in zip(lengths, states, terminated, strict=True):
        here = slice(start, start + n)
        gain = (
            0.0
            if ended
            else slow_gain(plain[here].astype(np.float64), seen.astype(np.float64), 0.9)
        )
        assert ended or n == 1 or np.abs(gain).max() > 0.01
        np.testing.assert_allclose(got[here], plain[here] + gain, rtol=1e-4, atol=1e-5)
        start += n


def test_a_constant_reward_continues_to_the_sum_of_all_terms(tmp_path):
    made = Store(tmp_path)
    made.add(
        [
            episode(
                0,
                length=50,
                rewards=np.ones(50),
                observations={"": np.random.default_rng(0).normal(size=(51, 3)).astype(np.float32)},
            )
        ]
    )
    got = continued_returns(next(iter(episode_groups(made))), 0.9)
    # 50 terms remain from everywhere
    np.testing.assert_allclose(got, (1 - 0.9**50) / (1 - 0.9), rtol=1e-4)
