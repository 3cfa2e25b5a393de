"""LunarLander: both engines are one game, and the sparse one pays the same in the end."""

import numpy as np
import pytest
from making import played

from bigdm_ray.envs import find_task


@pytest.mark.slow
def test_the_two_engines_agree_in_distribution():
    """Mean return and mean length of a random policy, 150 episodes each, within four standard
    errors."""
    fast, slow = (
        played("lunarlander", 150, 3, 16, backend).episodes for backend in ("fast", "reference")
    )
    for of in (
        lambda e: e.total_return,
        lambda e: e.length,
        lambda e: e.observations[""][0, 2],
        lambda e: np.abs(e.observations[""]).max(0)[3],
    ):
        a, b = (np.array([of(e) for e in episodes]) for episodes in (fast, slow))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error
        assert 0.5 < a.std() / b.std() < 2
    assert [e.terminated for e in fast] == [True] * 150


def test_the_continuous_lander_obeys_both_engines_alike():
    """Full main engine: both climb."""
    for backend in ("fast", "reference"):
        env = find_task("lunarlander-continuous").make(4, 1, backend)
        rows = np.arange(4)
        start = env.reset(rows).observations[""]
        for _ in range(25):
            step = env.step(rows, {"": np.tile(np.array([1.0, 0.0], np.float32), (4, 1))})
        assert (step.observations[""][:, 3] > start[:, 3] + 0.2).all()
        env.close()


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_the_sparse_lander_pays_at_the_end_what_the_dense_one_pays_on_the_way(backend):
    """The random policy's actions depend on the stream alone, so both play the same episodes."""
    sparse, dense = (
        played(name, 9, 5, 4, backend).episodes for name in ("lunarlander-sparse", "lunarlander")
    )
    for s, d in zip(sparse, dense, strict=True):
        np.testing.assert_array_equal(s.actions[""], d.actions[""])
        np.testing.assert_array_equal(s.observations[""], d.observations[""])
        assert not s.rewards[:-1].any()
        assert s.rewards[-1] == pytest.approx(d.total_return, rel=1e-5, abs=1e-4)
        assert np.count_nonzero(d.rewards) > 10
