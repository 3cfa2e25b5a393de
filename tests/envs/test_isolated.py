"""Environments in a process of their own are played as here; a crash ends episodes alone."""

import os

import numpy as np
import pytest
from making import origin

from bigdm_ray.envs import find_task, task
from bigdm_ray.envs.isolated import IsolatedRows, pack_message, unpack_message
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.plugins import plugins
from bigdm_ray.training.rollout import RandomPolicy, rollout
from bigdm_ray.training.streams import rng

SUITE = """
import ctypes, os
import gymnasium
from bigdm_ray.envs.task import Suite, Task

SUITE = Suite(needs=("json",), packages=("somepackage==1.2",), isolate=True)


class Crashing(gymnasium.Wrapper):
    steps = 0  # of all episodes

    def step(self, action):
        self.steps += 1
        if self.steps == 40:
            ctypes.string_at(0)
        return self.env.step(action)


def crashing(mode):
    return Crashing(gymnasium.make("CartPole-v1", render_mode=mode))


def never(mode):
    os._exit(3)


def plain(mode):
    return gymnasium.make("CartPole-v1", render_mode=mode)


TASKS = {
    "sound": Task("sound", plain),
    "crashing": Task("crashing", crashing),
    "never": Task("never", never),
    "wanting": Task("wanting", plain, needs=("nothing_of_the_kind",)),
}
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """The suite above as an installed package, here and in the processes that are started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "fallible_suite.py").write_text(SUITE)
    info = tmp_path / "fallible-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fallible\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bigdm_ray.envs]\nfallible = fallible_suite\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    cached = (plugins, task.tasks, task._signature_by_name)
    for function in cached:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


def test_messages_come_back_as_they_were_sent():
    arrays = {
        "a": np.arange(6, dtype=np.int16).reshape(2, 3),
        "b": np.array(2.5, np.float32),
        "": np.zeros((0, 4), np.uint8),
        "c": np.array([True, False]),
    }
    head, back = unpack_message(pack_message({"verb": "x", "n": [1, None]}, arrays))
    assert head == {"verb": "x", "n": [1, None]} and list(back) == list(arrays)
    for name, values in arrays.items():
        assert back[name].dtype == values.dtype and back[name].shape == values.shape
        np.testing.assert_array_equal(back[name], values)


def test_rows_elsewhere_play_as_rows_here_and_a_crash_ends_their_episodes_alone(suite):
    sound, here = find_task("sound"), find_task("cartpole")
    assert sound.isolate and sound.signature() == here.signature()
    env, reference = sound.make(3, 5), here.make(3, 5, "reference")
    assert isinstance(env, IsolatedRows)
    policy = RandomPolicy(env.signature)
    for seed in (5, 6):
        env.reseed(seed), reference.reseed(seed)
        one, other = (rollout(policy, e, {}, 7, rng(1, "a"), origin()) for e in (env, reference))
        for a, b in zip(one.episodes, other.episodes, strict=True):
            np.testing.assert_array_equal(a.observations[""], b.observations[""])
            np.testing.assert_array_equal(a.actions[""], b.actions[""])
            assert a.terminated == b.terminated
    env.close(), reference.close()
    video = sound.video_env(1)
    video.reset(np.arange(1))
    assert video.frame().shape[2] == 3
    video.close()

    env = find_task("crashing").make(3, 5)
    done = rollout(policy, env, {}, 12, rng(1, "a"), origin("crashing"))
    assert done.discarded and len(done.episodes) == 12 - done.discarded
    assert set(done.problems) == {
        "an episode of crashing is discarded: its process was ended by SIGSEGV"
    }
    env.close()


def test_rows_that_were_not_asked_fail_at_their_next_step(suite):
    env, actions = find_task("crashing").make(2, 1), {"": np.zeros(1, np.int32)}
    env.reset(np.arange(2))
    first = np.arange(1)
    for _ in range(100):
        step = env.step(first, actions)
        if step.failures:
            break
        if step.any_ended:
            env.reset(first)
    assert step.failures == {0: "its process was ended by SIGSEGV"}
    env.reset(first)
    both = env.step(np.arange(2), {"": np.zeros(2, np.int32)})
    assert both.failures == {1: "its process was ended by SIGSEGV"}
    assert both.observations[""][0].any() and both.rewards.tolist() == [1.0, 0.0]
    assert env.reset(np.arange(1, 2)).is_sound and env.step(np.arange(1, 2), actions).is_sound
    env.close()


def test_what_cannot_be_made_there_is_said_here(suite):
    with pytest.raises(
        RunFailed, match="of never cannot be made: its process ended with exit code 3"
    ):
        find_task("never").signature()
    with pytest.raises(
        UserError,
        match=r"'nothing_of_the_kind' .* install it with: pip install 'somepackage==1.2'",
    ):
        find_task("wanting").signature()
