"""TakeCover: small grey frames, one point a tic survived, and an end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import played, soon

from bigdm_ray.envs import find_task
from bigdm_ray.envs.vizdoom import TICS, leash_engine, setpriv


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
    # nor does it read what stands there
    np.testing.assert_array_equal(first, env.reset(np.arange(1)).observations[""])
    env.close()


PLAY = """
import os, time
from pathlib import Path
import numpy as np
from bigdm_ray.envs import find_task
env = find_task("takecover").make(2, 1)
env.reset(np.arange(2))
stats = [*Path("/proc").glob("[0-9]*/stat")]
parents = [stat.read_text().rpartition(")")[2].split()[1] for stat in stats]
mine = str(os.getpid())
print(*[s.parent.name for s, p in zip(stats, parents) if p == mine], flush=True)
time.sleep(600)
"""


def running(pid):
    try:
        return "vizdoom" in (Path("/proc") / pid / "cmdline").read_text()
    except OSError:
        return False


def test_engines_end_with_a_player_that_is_killed():
    assert setpriv(), "util-linux's setpriv, which every Debian has, is what ends the engines"
    player = subprocess.Popen([sys.executable, "-c", PLAY], stdout=subprocess.PIPE, text=True)
    engines = player.stdout.readline().split()
    assert len(engines) == 2 and all(running(pid) for pid in engines)
    player.kill()
    player.wait()
    player.stdout.close()
    ended = soon(lambda: not any(map(running, engines)), 120)
    for pid in filter(running, engines):
        os.kill(int(pid), signal.SIGKILL)
    assert ended


def test_where_engines_cannot_be_leashed_they_are_started_as_they_are(tmp_path, monkeypatch):
    engine = tmp_path / "some where" / "vizdoom"
    monkeypatch.setattr("bigdm_ray.envs.vizdoom.setpriv", lambda: "/usr/bin/setpriv")
    assert leash_engine(engine, tmp_path) == engine, "it is missing, as VizDoom then says"
    engine.parent.mkdir()
    engine.touch()
    assert leash_engine(engine, tmp_path) == tmp_path / "engine"
    assert f"setpriv --pdeathsig KILL '{engine}' " in (tmp_path / "engine").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)  # as where the folder is mounted noexec
        assert leash_engine(engine, tmp_path) == engine
    monkeypatch.setattr("bigdm_ray.envs.vizdoom.setpriv", lambda: None)
    assert leash_engine(engine, tmp_path) == engine


@pytest.mark.parametrize(
    ("found", "works"), [(None, False), ("/bin/false", False), ("/bin/true", True)]
)
def test_a_setpriv_that_does_not_know_the_flag_is_none(monkeypatch, found, works):
    monkeypatch.setattr("shutil.which", lambda _: found)
    assert setpriv.__wrapped__() == (found if works else None)


@pytest.mark.slow
def test_a_survivor_is_truncated_at_the_time_limit():
    """Nobody survives so long by chance: the limit is met by playing on after death is switched
    off."""
    env = find_task("takecover").env(None)
    env.reset(seed=1)
    env._game.send_game_command("iddqd")
    for t in range(1, TICS + 1):
        _, reward, terminated, truncated, _ = env.step(0)
        assert reward == 1 and not terminated
        assert truncated == (t == TICS)
    env.close()
