"""Classic control: a step of the rows that are trained on is the step that gymnasium's environment
takes from the same state."""

import numpy as np
import pytest

from bigdm_ray.envs import find_task


def angle(cos, sin):
    return np.arctan2(sin, cos)


STATE = {
    "cartpole": lambda o: o,
    "mountaincar": lambda o: o,
    "pendulum": lambda o: np.array([angle(o[0], o[1]), o[2]]),
    "acrobot": lambda o: np.array([angle(o[0], o[1]), angle(o[2], o[3]), o[4], o[5]]),
}
"""What gymnasium keeps, of what it shows."""


@pytest.mark.parametrize("name", STATE)
def test_both_engines_take_the_same_step(name):
    task = find_task(name)
    fast, reference = task.make(4, 3), task.env(None)
    leaf = task.signature().actions[""]
    chance, rows, ended, ends, fastest = (
        np.random.default_rng(1),
        np.arange(4),
        np.ones(4, bool),
        0,
        0.0,
    )
    before = np.zeros((4, *task.signature().observations[""].shape), np.float32)
    for _ in range(600):
        if ended.any():
            before[ended] = fast.reset(rows[ended]).observations[""]
        if leaf.kind == "discrete":
            taken = chance.integers(0, leaf.choices[0], 4).astype(np.int32)
        else:
            taken = chance.uniform(-2, 2, (4, *leaf.shape)).astype(np.float32)
        step = fast.step(rows, {"": taken})
        for row in rows:
            reference.reset(seed=0)
            reference.unwrapped.state = STATE[name](before[row].astype(np.float64))
            seen, reward, terminated, _, _ = reference.unwrapped.step(taken[row])
            np.testing.assert_allclose(step.observations[""][row], seen, atol=2e-5)
            assert step.rewards[row] == pytest.approx(reward, abs=2e-5)
            assert step.terminated[row] == terminated
        before = step.observations[""].copy()
        ended = step.terminated | step.truncated
        ends += int(ended.sum())
        fastest = max(fastest, float(np.abs(before[:, -1]).max()))
    assert ends >= (50 if name == "cartpole" else 4)
    assert name != "pendulum" or fastest == 8, (
        "its speed came to the limit, where engines have differed"
    )
    fast.close()
    reference.close()
