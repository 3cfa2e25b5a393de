"""Atari: single frames, idle starts, points as they are, whole games; EnvPool shows what gymnasium
and ale-py show."""

import numpy as np
import pytest
from making import played

from bigdm_ray.envs import atari, find_task

GAMES = ("breakout", "qbert", "pong", "seaquest")
BACKENDS = ("fast", "reference")
others_are_slow = pytest.mark.parametrize(
    "name",
    [
        "breakout",
        "qbert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("pong", "seaquest")),
    ],
)


class Idle:
    """In place of an environment's generator: the next start idles for this number of frames."""

    def __init__(self, frames):
        self.frames = frames

    def integers(self, low, high):
        assert (low, high) == (1, 31), "1 to 30"
        return self.frames


def start(env, frames, seed=None):
    """The first frame of an episode that idled so long; `seed` is that of the console's own
    chance."""
    if seed is not None:
        env.reset(seed=seed)
    env.unwrapped.np_random = Idle(frames)
    return env.reset()[0]


def chosen(env, steps, rows=1, seed=0):
    return (
        np.random.default_rng(seed).integers(0, env.action_space.n, (steps, rows)).astype(np.int32)
    )


@pytest.mark.parametrize(
    ("name", "actions"), [("breakout", 4), ("qbert", 6), ("pong", 6), ("seaquest", 18)]
)
@pytest.mark.parametrize("variant", ["", "-sticky"])
def test_one_grey_frame_is_seen_and_the_minimal_set_of_actions_played(name, actions, variant):
    signature = find_task(name + variant).signature()
    (seen,), (done,) = signature.observations.values(), signature.actions.values()
    assert (seen.kind, seen.shape, seen.dtype) == ("image", (1, 84, 84), "uint8")
    assert (done.kind, done.shape, done.choices) == ("discrete", (), (actions,))


def test_the_actions_mean_what_ale_says():
    meanings = {
        name: find_task(name).env(None).unwrapped.get_action_meanings()
        for name in ("breakout", "pong")
    }
    assert meanings == {
        "breakout": ["NOOP", "FIRE", "RIGHT", "LEFT"],
        "pong": ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"],
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_starts_differ_by_row_and_by_seed(backend):
    def starts(seed):
        env = find_task("qbert").make(3, seed, backend)
        frames = env.reset(np.arange(3)).observations[""]
        env.close()
        return frames

    first, other = starts(1), starts(101)
    assert (first != other).any()
    assert len({frame.tobytes() for frame in first}) >= 2
    assert first.std() > 10, "a picture, not one colour"


@pytest.mark.slow
def test_without_sticky_actions_the_console_knows_no_chance():
    """The same start and the same actions, another seed: the same game.

    With sticky actions it is another one.
    """

    def game(name, seed):
        env = find_task(name).env(None)
        frames = [start(env, 5, seed), *(env.step(a)[0] for a in chosen(env, 80)[:, 0])]
        env.close()
        return np.stack(frames)

    plain, sticky = [
        [game(name, seed) for seed in (1, 2, 1)] for name in ("breakout", "breakout-sticky")
    ]
    np.testing.assert_array_equal(plain[0], plain[1])
    assert (sticky[0] != sticky[1]).any() and (plain[0] != sticky[0]).any()
    np.testing.assert_array_equal(sticky[0], sticky[2])  # chance is seeded


@pytest.mark.parametrize("backend", BACKENDS)
def test_points_are_paid_as_they_are(backend):
    """Qbert pays 25 for a cube; a clipped reward would be 1."""
    env = find_task("qbert").make(2, 1, backend)
    env.reset(np.arange(2))
    actions = np.random.default_rng(0).integers(0, 6, (200, 2)).astype(np.int32)
    paid = np.concatenate([env.step(np.arange(2), {"": action}).rewards for action in actions])
    env.close()
    assert 25 in paid and set(np.unique(paid)) <= {0, 25, 50, 75, 100, 300, 325, 500, 525}


def test_a_lost_life_does_not_end_the_game_and_the_last_one_does():
    env = find_task("breakout").env(None)
    env.reset(seed=3)
    lives = [env.unwrapped.ale.lives()]
    while lives[-1]:
        _, _, terminated, truncated, _ = env.step(1)  # FIRE serves, and the paddle rests
        lives.append(env.unwrapped.ale.lives())
        assert terminated == (lives[-1] == 0) and not truncated
    env.close()
    assert list(dict.fromkeys(lives)) == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_breakout_the_player_serves(backend):
    """No FIRE is pressed at the start: without one nothing moves, and no life is lost."""
    env = find_task("breakout").make(1, 1, backend)
    row, idle = np.arange(1), {"": np.zeros(1, np.int32)}
    frames = [
        env.reset(row).observations[""],
        *(env.step(row, idle).observations[""] for _ in range(60)),
    ]
    env.close()
    assert all((frame[:, :, 20:70] == frames[1][:, :, 20:70]).all() for frame in frames[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_time_limit_truncates(backend, monkeypatch):
    assert (
        atari.STEPS * atari.SKIP == 108_000
        and find_task("pong").env(None).spec.max_episode_steps == atari.STEPS
    )
    monkeypatch.setattr(atari, "STEPS", 40)
    env = atari.game("breakout", "Breakout", 0.0, None, None, "").make(1, 1, backend)
    row = np.arange(1)
    env.reset(row)
    steps = [env.step(row, {"": np.zeros(1, np.int32)}) for _ in range(40)]
    env.close()
    assert [bool(s.truncated[0]) for s in steps] == [False] * 39 + [True]
    assert not any(s.terminated[0] for s in steps)


@others_are_slow
def test_envpool_plays_the_very_games_of_the_reference(name):
    """For each of EnvPool's starts there is a number of idle frames from which the reference shows
    and pays the same, step for step."""
    rows, steps = 2, 500 if name == "breakout" else 150
    fast, env = find_task(name).make(rows, 3), find_task(name).env(None)
    actions = chosen(env, steps, rows)
    games = []  # of each row: frames, points, whether it ended
    for row in range(rows):
        frames, points, ended = [fast.reset(np.array([row])).observations[""][0, 0]], [], False
        while not ended and len(points) < steps:
            step = fast.step(np.array([row]), {"": actions[len(points), [row]]})
            frames.append(step.observations[""][0, 0])
            points.append(step.rewards[0])
            ended = bool(step.terminated[0])
        games.append((frames, points, ended))
    fast.close()

    def agrees(row, idle):
        frames, points, ended = games[row]
        seen = start(env, idle)
        for t, paid in enumerate(points):
            if not np.array_equal(seen, frames[t]):
                return False
            seen, reward, terminated, _, _ = env.step(actions[t, row])
            if reward != paid or terminated != (ended and t + 1 == len(points)):
                return False
        # the frame in which a game ends the reference does not show
        return ended or np.array_equal(seen, frames[-1])

    env.reset(seed=0)
    for row in range(rows):
        tries = 8 if name == "seaquest" else 1  # it begins a frame off or not
        assert any(agrees(row, idle) for idle in range(1, 31) for _ in range(tries)), (
            f"row {row} agrees with no start"
        )
        assert games[row][2] or name != "breakout", "whole games, all lives"
    env.close()


@pytest.mark.slow
def test_envpool_too_sticks_where_it_is_told_to():
    """Six rows take the same actions.

    Idle frames alone make few different games of Breakout, which waits to be served.
    """

    def games(name):
        env = find_task(name).make(6, 1)
        rows, frames = np.arange(6), []
        env.reset(rows)
        for action in chosen(env._env, 60)[:, 0]:
            frames.append(env.step(rows, {"": np.full(6, action)}).observations[""])
        env.close()
        return len({np.stack([frame[row] for frame in frames]).tobytes() for row in rows})

    assert games("breakout") <= 4 < games("breakout-sticky")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["breakout", pytest.param("breakout-sticky", marks=pytest.mark.long)]
)
def test_random_play_earns_and_lasts_alike_on_both(name):
    """Mean return, length and brightness, 12 episodes each, within four standard errors."""
    fast, slow = (played(name, 12, 5, 4, backend).episodes for backend in BACKENDS)
    for of in (lambda e: e.total_return, lambda e: e.length, lambda e: e.observations[""].mean()):
        a, b = (np.array([of(e) for e in episodes]) for episodes in (fast, slow))
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    for episodes in (fast, slow):
        assert all(e.terminated for e in episodes)


@pytest.mark.parametrize(
    ("name", "score", "normalised"),
    [
        ("breakout", 76.9, 267.5),
        ("qbert", 14012.0, 104.2),
        ("pong", 19.3, 111.9),
        ("seaquest", 1129.3, 2.5),
        ("breakout-sticky", 61.1, 211.1),
    ],
)
def test_the_normalised_score_is_the_papers(name, score, normalised):
    """Raw and normalised scores of Decision Transformer and CQL, Chen et al. 2021."""
    assert find_task(name).normalized_score(score) == pytest.approx(normalised, abs=0.06)


def test_a_video_shows_the_games_own_colours_at_its_own_pace():
    env = find_task("pong").video_env(1)
    env.reset(np.arange(1))
    frame = env.frame()
    env.close()
    assert (
        frame.shape == (210, 160, 3)
        and frame.dtype == np.uint8
        and len(np.unique(frame.reshape(-1, 3), axis=0)) > 3
    )
    assert find_task("pong").env(None).metadata["render_fps"] == 15
