"""The constants that JAT normalises its scores by, under the names that tasks have here."""

import pytest

from bigdm_ray.envs.jat import _returns, jat_returns


def test_returns_of_jat_are_told_by_the_full_name_of_a_task():
    assert jat_returns("babyai/go-to-local") == pytest.approx((0.1625, 0.9250), abs=1e-3)
    assert jat_returns("metaworld/assembly") == pytest.approx((45.3, 245.99), abs=0.01)
    assert jat_returns("box2d/lunarlander") is None


def test_each_belongs_to_a_suite():
    counts = {
        suite: sum(n.startswith(f"{suite}/") for n in _returns())
        for suite in ("babyai", "metaworld")
    }
    assert counts == {"babyai": 39, "metaworld": 50}
    assert all(low < high for low, high in _returns().values())
