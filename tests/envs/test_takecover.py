"""TakeCover: small grey frames, one point a tic survived, and an end."""

import numpy as np
import pytest
from making import played

from bigdm_ray.envs import find_task
from bigdm_ray.envs.vizdoom import TICS


@pytest.fixture(scope="module")
def episodes():
    return played("takecover", 3, 1, 2).episodes


def test_every_tic_pays_one_and_every_episode_ends(episodes):
    for e in episodes:
        assert e.terminated and 30 < e.length < TICS
        np.testing.assert_array_equal(e.rewards, np.ones(e.length, np.float32))


def test_frames_are_grey_32x32_and_show_a_moving_picture(episodes):
    assert find_task("takecover").signature().observations[""].shape == (1, 32, 32)
    for e in episodes:
        frames = e.observations[""]
        assert frames.shape == (e.length + 1, 1, 32, 32) and frames.dtype == np.uint8
        assert frames[0].std() > 5, "a picture, not one colour"
        moving = (frames[1:-1] != frames[:-2]).reshape(e.length - 1, -1).any(1)
        assert moving.mean() > 0.5


def test_moving_left_and_right_show_different_pictures():
    seen = []
    for action in (1, 2):
        env = find_task("takecover").make(1, 4)
        env.reset(np.arange(1))
        for _ in range(20):
            step = env.step(np.arange(1), {"": np.array([action], np.int32)})
        seen.append(step.observations[""])
        env.close()
    assert (seen[0] != seen[1]).mean() > 0.1


def test_doom_leaves_nothing_where_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_vizdoom.ini").write_text("[Doom.ConsoleVariables]\nscreenblocks=3\n")
    env = find_task("takecover").make(1, 1)
    first = env.reset(np.arange(1)).observations[""]
    env.close()
    assert [path.name for path in tmp_path.iterdir()] == ["_vizdoom.ini"]
    assert (tmp_path / "_vizdoom.ini").stat().st_size < 100
    monkeypatch.chdir("/")
    env = find_task("takecover").make(1, 1)
    np.testing.assert_array_equal(first, env.reset(np.arange(1)).observations[""])  # nor does it read what stands there
    env.close()


@pytest.mark.slow
def test_a_survivor_is_truncated_at_the_time_limit():
    """Nobody survives so long by chance: the limit is met by playing on after death is switched off."""
    env = find_task("takecover").env(None)
    env.reset(seed=1)
    env._game.send_game_command("iddqd")
    for t in range(1, TICS + 1):
        _, reward, terminated, truncated, _ = env.step(0)
        assert reward == 1 and not terminated
        assert truncated == (t == TICS)
    env.close()
