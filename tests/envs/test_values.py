"""What an environment returns, held against its spaces: what is taken, what is refused, and what
becomes of it."""

import re
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from making import origin

from bigdm_ray.baselines.base import require_sound
from bigdm_ray.doors import door
from bigdm_ray.envs.signature import leaves
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.values import SpaceMismatch, flag_of, flatten, reward_of
from bigdm_ray.envs.vector import GymnasiumRows, Step
from bigdm_ray.errors import RunFailed
from bigdm_ray.run import main
from bigdm_ray.training.evaluation import evaluate
from bigdm_ray.training.rollout import RandomPolicy, rollout

THREE = spaces.Box(-1, 1, (3,), np.float32)
PICTURE = spaces.Box(0, 255, (8, 9, 3), np.uint8)
GRID = spaces.MultiDiscrete(np.full((2, 2, 3), 3), np.uint8)
DEEP = spaces.Dict({"arm": spaces.Tuple([spaces.Discrete(3, start=2), THREE])})

REFUSED = [
    (THREE, np.zeros(2, np.float32), "its observation has the shape (2,), but (3,) is expected"),
    (THREE, [[0.0], [0.0], [0.0]], "has the shape (3, 1), but (3,) is expected"),
    (THREE, 1.0, "has the shape (), but (3,) is expected"),
    (THREE, [0.0, [1.0], 2.0], "is a ragged list, but the shape (3,) is expected"),
    (THREE, ["a", "b", "c"], "is of type list, but float32 is expected"),
    (THREE, np.zeros(3, complex), "is of type complex128, but float32 is expected"),
    (THREE, np.array([None, 1.0, 2.0]), "is of type object, but float32 is expected"),
    (THREE, None, "has the shape (), but (3,) is expected"),
    (PICTURE, np.full((8, 9, 3), 0.5), "is of type float64, but uint8 is expected"),
    (PICTURE, np.zeros((8, 9, 3), np.float32), "is of type float32, but uint8 is expected"),
    (PICTURE, np.zeros((3, 8, 9), np.uint8), "has the shape (3, 8, 9), but (8, 9, 3) is expected"),
    (PICTURE, np.full((8, 9, 3), 256), "has an element 256, but 0 to 255 are expected"),
    (PICTURE, np.full((8, 9, 3), -1), "has an element -1, but 0 to 255 are expected"),
    (spaces.Box(0, 9, (2,), np.int8), [1, 300], "has an element 300, but -128 to 127"),
    (spaces.Box(0, 1, (2,), bool), [0, 2], "has an element 2, but 0 to 1 are expected"),
    (spaces.Discrete(5), 7, "its observation is 7, but 0 to 4 are expected"),
    (spaces.Discrete(5, start=2), 1, "its observation is 1, but 2 to 6 are expected"),
    (spaces.Discrete(5), np.int64(-1), "its observation is -1, but 0 to 4 are expected"),
    (spaces.Discrete(5), 2.5, "is of type float64, but whole numbers are expected"),
    (spaces.Discrete(5), np.array([1]), "has the shape (1,), but () is expected"),
    (spaces.MultiDiscrete([2, 3]), [1, 3], "has an element 3, but 0 to 2 are expected"),
    (spaces.MultiDiscrete([2, 3], start=[1, 1]), [0, 1], "element 0, but 1 to 2 are expected"),
    (spaces.MultiDiscrete([2, 3]), [1], "has the shape (1,), but (2,) is expected"),
    (spaces.MultiBinary(2), [0, 2], "has an element 2, but 0 to 1 are expected"),
    (spaces.MultiBinary(2), [0.0, 1.0], "is of type float64, but whole numbers are expected"),
    (spaces.Text(4), b"abc", "is of type bytes, but text is expected"),
    (spaces.Text(1), "abcde", "is a text of 5 bytes, but at most 4 are expected"),
    (GRID, np.full((2, 2, 3), 3), "has an element 3, but 0 to 2 are expected"),
    (GRID, np.full((2, 2, 3), 0.5), "is of type float64, but whole numbers are expected"),
    (GRID, np.zeros((3, 2, 2), np.uint8), "has the shape (3, 2, 2), but (2, 2, 3) is expected"),
    (DEEP, {"arm": (5, np.zeros(3))}, "its observation 'arm/0' is 5, but 2 to 4 are expected"),
    (DEEP, {"arm": (2, np.zeros(4))}, "its observation 'arm/1' has the shape (4,), but (3,)"),
    (DEEP, {"arm": (2,)}, "its observation 'arm/1' is missing in what is of type tuple"),
    (DEEP, {"leg": 1}, "its observation 'arm' is missing in what is of type dict"),
    (DEEP, np.zeros(3), "its observation 'arm' is missing in what is of type float64"),
]

TAKEN = [
    (GRID, np.full((2, 2, 3), 2, np.int64), np.full((2, 2, 3), 2)),
    (spaces.Text(2), "abcde", [*b"abcde", 0, 0, 0]),  # of more characters, but they fit
    (THREE, [1, 0, 1], [1, 0, 1]),
    (THREE, (0.5, np.float64(0.25), True), [0.5, 0.25, 1]),
    (THREE, np.array([0.5, 1, 2], object), [0.5, 1, 2]),
    (THREE, np.array([1.0001, -7.0, 0.0]), [1.0001, -7, 0]),  # bounds of floats are overstepped
    (spaces.Box(-1, 1, (), np.float32), 0.5, 0.5),
    (spaces.Box(0, 9, (2,), np.int8), np.array([3, 12], np.int64), [3, 12]),
    (spaces.Box(0, 9, (2,), np.int32), [True, False], [1, 0]),
    (spaces.Box(0, 1, (2,), bool), [0, 1], [0, 1]),
    (PICTURE, np.full((8, 9, 3), 255), np.full((3, 8, 9), 255)),
    (PICTURE, np.zeros((8, 9, 3), np.uint8).tolist(), np.zeros((3, 8, 9))),
    (spaces.Discrete(5), np.array(3, np.int8), 3),
    (spaces.Discrete(5, start=2), 6, 4),
    (spaces.Discrete(2), np.True_, 1),
    (spaces.MultiBinary(2), np.array([True, False]), [1, 0]),
    (spaces.Text(4), np.str_("äö"), [*"äö".encode(), *[0] * 12]),
]


@pytest.mark.parametrize(("space", "value", "told"), REFUSED)
def test_what_does_not_fit_is_named_with_what_was_expected(space, value, told):
    with pytest.raises(SpaceMismatch, match=re.escape(told)):
        flatten(space, value)


@pytest.mark.parametrize(("space", "value", "stored"), TAKEN)
def test_what_loses_nothing_is_taken(space, value, stored):
    ((path, leaf),) = leaves(space).items()
    array = flatten(space, value)[path]
    assert array.dtype == leaf.dtype and array.shape == leaf.shape
    np.testing.assert_allclose(array, stored, rtol=1e-6)


def test_rewards_and_ends_are_single_values():
    for reward in (2, 2.0, np.float32(2), np.array(2), np.int8(2), np.array(2, object)):
        assert reward_of(reward) == 2 and type(reward_of(reward)) is float
    for reward, told in (
        (np.ones(2), "its reward has the shape (2,), but one number is expected"),
        (np.ones(1), "its reward has the shape (1,)"),
        ([1.0], "its reward has the shape (1,)"),
        (None, "its reward is of type NoneType, but one number is expected"),
        ("2", "its reward is of type str"),
        (1j, "its reward is of type complex"),
    ):
        with pytest.raises(SpaceMismatch, match=re.escape(told)):
            reward_of(reward)
    assert flag_of(1, "terminated") is True and flag_of(np.array(False), "truncated") is False
    with pytest.raises(SpaceMismatch, match=r"its flag 'truncated' has the shape \(2,\)"):
        flag_of([True, False], "truncated")


class Wrong(gymnasium.Env):
    """Five steps of the observation 3.0, but for the step of a fault; episodes count from 0."""

    made = 0

    def __init__(self, fault, at=3, every=2):
        self.observation_space, self.action_space = THREE, spaces.Discrete(2)
        self.fault, self.at, self.every, self.episode = fault, at, every, -1
        Wrong.made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self.answer()[0], {}

    def step(self, action):
        self.t += 1
        return *self.answer(), self.t == 5, False, {}

    def answer(self):
        right = np.full(3, 3.0, np.float32), 1.0
        if self.t != self.at or self.episode % self.every:
            return right
        return {
            "observation": (np.zeros(2, np.float32), 1.0),
            "reward": (right[0], np.ones(2)),
            "nan": (np.array([0, np.nan, 0]), 1.0),
            "large": (np.array([0, 1e300, 0]), 1.0),
        }[self.fault]


CAUSES = {
    "observation": "its observation has the shape (2,), but (3,) is expected",
    "reward": "its reward has the shape (2,), but one number is expected",
    "nan": "its observation is not finite (it has nan as float32)",
    "large": "its observation is not finite (it has inf as float32)",
}


@pytest.mark.parametrize("fault", CAUSES)
def test_a_misfit_is_a_failed_row_and_the_other_episodes_are_whole(fault):
    before = Wrong.made
    env = GymnasiumRows(lambda: Wrong(fault), 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = rollout(RandomPolicy(env.signature), env, {}, 8, np.random.default_rng(0), origin())
    assert done.discarded == 4 and len(done.episodes) == 4 and len(done.problems) == 4
    assert all(problem.endswith(f"is discarded: {CAUSES[fault]}") for problem in done.problems)
    for episode in done.episodes:
        assert episode.length == 5 and (episode.observations[""] == 3).all()
    assert Wrong.made == before + 2, "it is not made anew"


@pytest.mark.parametrize("at", [0, 5])
def test_the_first_and_the_last_observation_are_held_against_the_space_too(at):
    env = GymnasiumRows(lambda: Wrong("observation", at), 2, 0)
    done = rollout(RandomPolicy(env.signature), env, {}, 8, np.random.default_rng(0), origin())
    assert done.discarded == 4 and len(done.episodes) == 4


def test_a_score_of_nothing_names_the_cause():
    task = Task("wrong", lambda mode: Wrong("observation", every=1))
    policy = RandomPolicy(GymnasiumRows(lambda: task.env(None), 1, 0).signature)
    with pytest.raises(RunFailed, match=r"no evaluation episode of wrong .* has the shape \(2,\)"):
        evaluate(policy, task, {}, 3, 1, "validation", 0)


def test_what_a_library_plays_is_held_against_the_space_too():
    good = Step({"": np.zeros((2, 3))}, np.zeros(2), np.zeros(2, bool), np.zeros(2, bool))
    require_sound(good, "dqn")
    for step in (
        Step(good.observations, np.array([0, np.nan]), good.terminated, good.truncated),
        Step({"": np.full((2, 3), np.inf)}, good.rewards, good.terminated, good.truncated),
        Step(good.observations, good.rewards, good.terminated, good.truncated, {1: "its reward"}),
    ):
        with pytest.raises(RunFailed, match="an environment failed while dqn played it: it"):
            require_sound(step, "dqn")


def test_a_run_that_ends_for_want_of_sound_episodes_names_the_cause(monkeypatch, tmp_path, capsys):
    gymnasium.register("Wrong-v0", lambda: Wrong("observation", every=1))
    try:
        flags = ["--local", "--folder", str(tmp_path / "run"), "--algorithm.warm-up-episodes", "4"]
        flags += ["--algorithm.episodes-per-iteration", "4", "--quiet"]
        assert door(main, ["udrl", "gymnasium:Wrong-v0", *flags]) == 1
    finally:
        del gymnasium.registry["Wrong-v0"]
    said = capsys.readouterr().err
    assert "brought no whole episode in 3 rounds" in said and CAUSES["observation"] in said
