"""What every task that is found must hold, on both backends.

A task whose package is missing fails here: nothing is skipped.
"""

import warnings

import numpy as np
import pytest
from making import played, same_arrays, same_episode

from bigdm_ray.envs import find_task, tasks
from bigdm_ray.envs.atari import TASKS as ATARI
from bigdm_ray.envs.babyai import TASKS as BABYAI
from bigdm_ray.envs.metaworld import TASKS as METAWORLD
from bigdm_ray.envs.values import flatten, unflatten
from bigdm_ray.envs.vector import EnvPoolRows, GymnasiumRows
from bigdm_ray.training.rollout import RandomPolicy

UNSOUND = ("toy-broken", "toy-nan")
BOTH = [
    (name, backend)
    for name, task in tasks().items()
    for backend in (("fast", "reference") if task.fast else ("reference",))
]
# in the fast part one game stands for all: they share their code
OTHER_GAMES = [name for name in ATARI if name != "breakout"]
LONG_GAMES = [name for name in OTHER_GAMES if name != "breakout-sticky"]


# one level and one task of the arm stand for all
OTHER_LEVELS = [name for name in (*BABYAI, *METAWORLD) if name not in ("go-to-local", "reach")]


def marked(pairs, slow, long=()):
    marks = {name: pytest.mark.slow for name in slow}
    marks |= {name: pytest.mark.long for name in (*long, *OTHER_LEVELS)}
    return [pytest.param(*pair, marks=marks.get(pair[0], ())) for pair in pairs]


both = pytest.mark.parametrize(("name", "backend"), marked(BOTH, OTHER_GAMES))
both_but_doom_is_slow = pytest.mark.parametrize(
    ("name", "backend"), marked(BOTH, ["takecover", *OTHER_GAMES])
)


def random_actions(env, rows, chance):
    policy = RandomPolicy(env.signature)
    return policy.act(
        {},
        {},
        np.zeros(rows),
        {},
        np.zeros(rows, bool),
        chance.random((rows, policy.uniforms), np.float32),
    )[0]


def check_observations(env, observations, rows):
    assert list(observations) == list(env.signature.observations)
    for path, leaf in env.signature.observations.items():
        values = observations[path]
        assert values.shape == (rows, *leaf.shape), path
        assert str(values.dtype) == leaf.dtype, path
        assert np.isfinite(values).all(), path
        if leaf.kind == "discrete":
            assert (values.reshape(rows, -1) >= 0).all() and (
                values.reshape(rows, -1) < leaf.choices
            ).all()


@both
def test_resets_and_steps_of_any_rows_match_the_signature(name, backend):
    env = find_task(name).make(3, 11, backend)
    assert env.n == 3
    assert env.signature == find_task(name).signature()
    chance = np.random.default_rng(0)
    ended = np.ones(3, bool)
    for rows in ([0, 1, 2], [1], [0, 2], [2, 0], [0, 1, 2], [1, 2], [0, 1, 2]) * (
        1 if name in UNSOUND else 4
    ):
        rows = np.array(rows)
        if ended[rows].any():
            again = rows[ended[rows]]
            fresh = env.reset(again)
            check_observations(env, fresh.observations, len(again))
            assert (
                not fresh.failures
                and not fresh.rewards.any()
                and not fresh.terminated.any()
                and not fresh.truncated.any()
            )
            ended[again] = False
        step = env.step(rows, random_actions(env, len(rows), chance))
        check_observations(env, step.observations, len(rows))
        assert step.rewards.shape == step.terminated.shape == step.truncated.shape == (len(rows),)
        assert (
            step.rewards.dtype == np.float32
            and step.terminated.dtype == bool
            and step.truncated.dtype == bool
        )
        if name not in UNSOUND:
            assert np.isfinite(step.rewards).all() and not step.failures
        ended[rows] = step.terminated | step.truncated
        ended[rows[list(step.failures)]] = True
    env.close()


@both_but_doom_is_slow
def test_rows_that_are_not_stepped_stay_still(name, backend):
    """Row 1 goes the same way, step for step, whether the others move between its steps or not; and
    so does row 0 after it."""
    chance = np.random.default_rng(3)
    task = find_task(name)
    mixed, alone = task.make(2, 5, backend), task.make(2, 5, backend)
    actions = [random_actions(mixed, 2, chance) for _ in range(3)]
    take = lambda k, row: {path: values[[row]] for path, values in actions[k].items()}  # noqa: E731
    zero, one = np.array([0]), np.array([1])
    a, b = mixed.reset(np.array([0, 1])), alone.reset(np.array([0, 1]))
    same_arrays(a.observations, b.observations)
    for k in range(
        3
    ):  # in `mixed` the rows take turns; in `alone` row 1 takes all its steps before row 0 moves
        mixed_0, mixed_1 = mixed.step(zero, take(k, 0)), mixed.step(one, take(k, 1))
        if k == 0:
            alone_1 = [alone.step(one, take(j, 1)) for j in range(3)]
        alone_0 = alone.step(zero, take(k, 0))
        for ours, theirs in ((mixed_0, alone_0), (mixed_1, alone_1[k])):
            same_arrays(ours.observations, theirs.observations)
            np.testing.assert_array_equal(ours.rewards, theirs.rewards)
    mixed.close()
    alone.close()


@pytest.mark.parametrize(
    ("name", "backend"),
    marked(BOTH, ["takecover", "ant", "halfcheetah", "breakout", *OTHER_GAMES], LONG_GAMES),
)
def test_the_same_seed_plays_the_same_episodes(name, backend):
    count = 1 if name in ATARI else 3 if name == "takecover" else 5
    first, again = (played(name, count, 21, 3, backend) for _ in range(2))
    other = played(name, 1, 22, 3, backend)
    assert len(first.episodes) == len(again.episodes) and first.problems == again.problems
    for a, b in zip(first.episodes, again.episodes, strict=True):
        same_episode(a, b)
    if first.episodes and other.episodes:
        assert first.episodes[0].length != other.episodes[0].length or any(
            not np.array_equal(a, b)
            for a, b in zip(
                *(list(p.episodes[0].observations.values()) for p in (first, other)), strict=True
            )
        )


@pytest.mark.parametrize(
    ("name",),
    marked([(name,) for name in tasks() if name not in UNSOUND], OTHER_GAMES, LONG_GAMES),
)
def test_the_reference_is_gymnasiums_environment_step_for_step(name):
    """Two episodes of one row, played again in a bare environment: every observation, the last ones
    included, and every reward."""
    task = find_task(name)
    env = task.env(None)
    total = 0.0
    for number, episode in enumerate(played(name, 2, 31, 1, "reference").episodes):
        observation, _ = env.reset(seed=31 if number == 0 else None)
        for t in range(episode.length + 1):
            for path, values in flatten(env.observation_space, observation).items():
                np.testing.assert_array_equal(
                    episode.observations[path][t], values, err_msg=f"{path} at {t}"
                )
            if t == episode.length:
                break
            observation, reward, terminated, truncated, _ = env.step(
                unflatten(env.action_space, {p: v[t] for p, v in episode.actions.items()})
            )
            total = reward if task.wrap is None else total + reward
            if task.wrap is None or terminated or truncated:
                assert episode.rewards[t] == pytest.approx(total, rel=1e-6)
            else:
                assert episode.rewards[t] == 0
            assert (terminated or truncated) == (t == episode.length - 1)
        assert episode.terminated == terminated
        total = 0.0
    env.close()


@pytest.mark.parametrize("name", [name for name, backend in BOTH if backend == "fast"])
def test_the_fast_backend_is_another_engine_with_the_same_signature(name):
    fast, reference = find_task(name).make(1, 0), find_task(name).make(1, 0, "reference")
    inner = [getattr(env, "_inner", env) for env in (fast, reference)]
    assert not isinstance(inner[0], GymnasiumRows) and isinstance(inner[1], GymnasiumRows)
    assert fast.signature == reference.signature
    if isinstance(inner[0], EnvPoolRows):
        with pytest.raises(NotImplementedError):
            fast.reseed(1)
    fast.close()
    reference.close()


@pytest.mark.parametrize(
    "name",
    [
        "cartpole",
        "toy-mixed",
        "lunarlander",
        "lunarlander-sparse",
        "breakout-sticky",
        pytest.param("takecover", marks=pytest.mark.slow),
    ],
)
def test_a_reference_seeded_anew_is_as_if_new(name):
    env, fresh = find_task(name).make(2, 1, "reference"), find_task(name).make(2, 8, "reference")
    rows, chance = np.arange(2), np.random.default_rng(0)
    env.reset(rows)
    for _ in range(5):
        env.step(rows, random_actions(env, 2, chance))
    env.reseed(8)
    same_arrays(env.reset(rows).observations, fresh.reset(rows).observations)
    for _ in range(5):
        actions = random_actions(env, 2, chance)
        same_arrays(env.step(rows, actions).observations, fresh.step(rows, actions).observations)
    env.close()
    fresh.close()


@pytest.mark.parametrize(
    "name", ["cartpole", "lunarlander", "takecover", "breakout", "toy-image", "key-to-door"]
)
def test_videos_show_frames(name):
    env = find_task(name).video_env(1)
    env.reset(np.arange(1))
    env.step(np.arange(1), random_actions(env, 1, np.random.default_rng(0)))
    frame = env.frame()
    assert frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8
    env.close()


@pytest.mark.parametrize(
    ("name", "backend"), marked([pair for pair in BOTH if pair[1] == "fast"], OTHER_GAMES)
)
def test_the_fast_backend_warns_of_nothing(name, backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        played(name, 1, 1, 1, backend)


def test_rows_of_one_environment_differ():
    for backend in ("fast", "reference"):
        env = find_task("cartpole").make(4, 1, backend)
        assert len(np.unique(env.reset(np.arange(4)).observations[""], axis=0)) == 4
        env.close()


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_every_seed_that_a_run_can_ask_for_is_taken(backend, seed):
    env = find_task("cartpole").make(3, seed, backend)
    assert np.isfinite(env.reset(np.arange(3)).observations[""]).all()
    env.close()


def test_a_picture_task_sees_what_a_picture_is():
    leaf = find_task("toy-mixed").signature().observations["eye"]
    assert leaf.kind == "image" and leaf.shape == (3, 32, 32)
    eye = played("toy-mixed", 1, 1, 1).episodes[0].observations["eye"]
    assert np.array_equal(eye[:, 0], eye[:, 2])
    columns = eye[0, 0].any(axis=0)
    assert columns.sum() == 10, "one bright stripe of ten columns"
