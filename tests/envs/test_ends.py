"""How episodes end: time limits are not terminations, the last observation is the true one, broken
rows are thrown away."""

import numpy as np
import pytest
from making import origin, played

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.envs import find_task
from bigdm_ray.envs.vector import GymnasiumRows
from bigdm_ray.training.rollout import RandomPolicy, rollout
from bigdm_ray.training.streams import rng


class Balance(Policy):
    """A linear controller that keeps the pole up."""

    uniforms = 0

    def start(self, n):
        return {}

    def act(self, state, observations, rewards, commands, first, uniforms):
        x, v, angle, spin = observations[""].T
        return {"": (0.1 * x + 0.3 * v + 3 * angle + spin > 0).astype(np.int32)}, state


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_a_time_limit_does_not_terminate(backend):
    for name, length, policy in (
        ("pendulum", 200, None),
        ("cartpole", 500, Balance()),
        ("mountaincar", 200, None),
    ):
        episodes = played(name, 3, 1, 2, backend, policy).episodes
        assert [(e.length, e.terminated) for e in episodes] == [(length, False)] * 3, name


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_a_fallen_pole_terminates_and_the_last_observation_shows_it(backend):
    episodes = played("cartpole", 8, 1, 3, backend).episodes
    assert all(e.terminated for e in episodes)
    for e in episodes:
        out = (np.abs(e.observations[""][:, 0]) > 2.4) | (
            np.abs(e.observations[""][:, 2]) > 12 * 2 * np.pi / 360
        )
        assert out.tolist() == [False] * e.length + [True]
        assert e.total_return == e.length


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_a_pendulums_last_observation_follows_from_the_one_before(backend):
    """theta' = theta + dt * omega': so across the time limit, too, where an autoreset row would
    break it."""
    for e in played("pendulum", 2, 1, 1, backend).episodes:
        cos, sin, spin = e.observations[""].T
        turned = np.angle((cos[1:] + 1j * sin[1:]) / (cos[:-1] + 1j * sin[:-1]))
        np.testing.assert_allclose(turned, 0.05 * spin[1:], atol=1e-4)


@pytest.mark.parametrize("name", ["toy-broken", "toy-nan"])
def test_rows_that_fail_are_discarded_counted_and_told_and_the_others_whole(name):
    result = played(name, 40, 1, 6)
    sound = [e.id.number for e in result.episodes]
    assert result.discarded + len(result.episodes) == 40 and result.discarded > 0
    assert sound == sorted(set(sound))
    assert result.env_steps == sum(e.length for e in result.episodes)
    assert 1 <= len(result.problems) == min(10, result.discarded)
    says = (
        "RuntimeError: the simulator stopped answering" if name == "toy-broken" else "reward of nan"
    )
    for sentence in result.problems:
        assert (
            sentence.startswith(f"an episode of {name} is discarded: ")
            and says in sentence
            and "\n" not in sentence
        )
    for e in result.episodes:
        assert e.problem() is None and 8 <= e.length <= 12
        assert e.terminated == (e.length % 2 == 0)
    assert bool(result.episodes) == (name == "toy-broken"), "toy-nan pays NaN in every episode"


class Sick:
    """A toy whose observation is NaN, or which raises, in chosen resets or steps; steps and resets
    are counted over all rows."""

    def __init__(self, moment, how, which):
        self.moment, self.how, self.which = moment, how, which
        self.counted = 0

    def make(self):
        sick, env = self, find_task("toy-vector").env(None)

        class Wrapped(type(env)):
            def reset(self, **given):
                observation, info = super().reset(**given)
                return sick.spoil("reset", observation), info

            def step(self, action):
                observation, *rest = super().step(action)
                return sick.spoil("step", observation), *rest

        env.__class__ = Wrapped
        return env

    def spoil(self, moment, observation):
        if moment != self.moment:
            return observation
        self.counted += 1
        if self.counted not in self.which:
            return observation
        if self.how == "raise":
            raise OSError("gone")
        return observation * np.nan


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize(
    ("moment", "which"),
    [
        ("reset", {1, 2, 6}),
        ("reset", set(range(1, 13))),
        ("step", {1, 30, 31}),
        ("step", {5, 6, 7, 8, 9}),
    ],
)
def test_whatever_goes_wrong_whenever_it_does_only_its_episode_is_lost(moment, how, which):
    env = GymnasiumRows(Sick(moment, how, which).make, 3, 1)
    result = rollout(RandomPolicy(env.signature), env, {}, 12, rng(1, "play"), origin("toy-vector"))
    assert len(result.episodes) + result.discarded == 12
    assert 1 <= result.discarded <= len(which)
    if moment == "reset":
        assert result.discarded == len(which)
    for e in result.episodes:
        assert e.problem() is None and 8 <= e.length <= 12
    env.close()


def test_an_environment_that_raises_is_made_anew_with_a_seed_that_repeats():
    """What follows a failure is as repeatable as what went before."""
    a, b = (played("toy-broken", 30, 4, 3) for _ in range(2))
    assert a.discarded == b.discarded > 2
    assert [e.length for e in a.episodes] == [e.length for e in b.episodes]
    np.testing.assert_array_equal(
        np.concatenate([e.observations[""] for e in a.episodes]),
        np.concatenate([e.observations[""] for e in b.episodes]),
    )
    starts = {e.observations[""][:4].tobytes() for e in a.episodes}
    assert len(starts) > 10, "and still the episodes differ"
