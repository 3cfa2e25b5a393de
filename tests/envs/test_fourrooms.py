"""Four rooms: walls and doors, the goal, the two backends, and that random play covers the map."""

import itertools

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from making import played, same_rows

from bigdm_ray.envs import find_task
from bigdm_ray.envs.fourrooms import APART, LENGTH, REACHED, FourRoomsRows
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.training.evaluation import Score

RANDOM = 0.208
"""The success of uniformly random actions."""


@pytest.fixture
def env():
    made = find_task("four-rooms").env("rgb_array")
    made.reset(seed=1)
    return made


def put(env, position, goal=(0.9, 0.9), t=0):
    env.position, env.goal, env.t = np.array(position, float), np.array(goal, float), t
    return env


def test_gymnasium_finds_nothing_wrong_with_it():
    check_env(find_task("four-rooms").env(None), skip_render_check=True)


@pytest.mark.parametrize(
    ("begin", "action", "end"),
    [
        ((0.5, 0.3), (0.4, -0.2), (0.6, 0.25)),
        ((0.5, 0.3), (9.0, -9.0), (0.75, 0.05)),  # cut to the longest step
        ((0.9, -0.9), (1.0, -1.0), (1.0, -1.0)),  # the outer walls
        ((0.1, 0.2), (-1.0, 0.0), (0.02, 0.2)),  # stopped by the inner one, from both sides
        ((-0.1, 0.2), (1.0, 0.0), (-0.02, 0.2)),
        ((0.2, -0.1), (0.0, 1.0), (0.2, -0.02)),
        ((-0.1, 0.4), (1.0, 0.0), (0.15, 0.4)),  # through each of the doors
        ((0.1, -0.6), (-1.0, 0.0), (-0.15, -0.6)),
        ((-0.5, 0.1), (0.0, -1.0), (-0.5, -0.15)),
        ((0.4, -0.1), (0.0, 1.0), (0.4, 0.15)),
        ((0.1, 0.3), (-1.0, 0.8), (0.02, 0.5)),  # x moves first: the door is not reached yet
        ((0.3, 0.1), (0.8, -1.0), (0.5, -0.15)),  # and y after it
    ],
)
def test_walls_stop_and_doors_let_through(env, begin, action, end):
    observation, reward, terminated, truncated, _ = put(env, begin).step(np.array(action))
    np.testing.assert_allclose(observation["position"], end, atol=1e-6)
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_the_goal_pays_1_and_ends_and_so_does_time(env):
    assert put(env, (0.61, 0.5), (0.5, 0.5), 5).step(np.zeros(2))[1:4] == (0.0, False, False), (
        "not near enough"
    )
    assert put(env, (0.59, 0.5), (0.5, 0.5), 5).step(np.zeros(2))[1:4] == (1.0, True, False)
    assert put(env, (0.59, 0.5), (0.5, 0.5), LENGTH - 1).step(np.zeros(2))[1:4] == (
        1.0,
        True,
        False,
    ), "in the last step, too"
    assert put(env, (0.1, 0.1), (0.5, 0.5), LENGTH - 1).step(np.zeros(2))[1:4] == (0.0, False, True)


def test_starts_and_goals_are_everywhere_and_apart(env):
    found = [(env.reset(), env.position, env.goal)[1:] for _ in range(2000)]
    for places in map(np.array, zip(*found, strict=True)):
        assert abs(places).max() <= 1
        rooms = np.bincount((places > 0) @ [1, 2], minlength=4)
        assert abs(rooms - 500).max() < 80
    assert min(np.hypot(*(start - goal)) for start, goal in found) >= APART > REACHED


def test_the_fast_rows_play_what_the_reference_plays_whichever_rows_move():
    same_rows(
        "four-rooms",
        FourRoomsRows,
        lambda chance, m: chance.uniform(-1.2, 1.2, (m, 2)).astype(np.float32),
    )


def test_an_action_that_is_not_finite_fails_its_row_on_both_backends():
    for backend in ("fast", "reference"):
        env = find_task("four-rooms").make(3, 1, backend)
        env.reset(np.arange(3))
        step = env.step(np.arange(3), {"": np.array([[0, 0], [np.nan, 0], [1, 1]], np.float32)})
        assert (
            list(step.failures) == [1]
            and "is no action; it is two finite numbers" in step.failures[1]
        )
        env.close()


def test_a_picture_shows_walls_point_and_goal(env):
    picture = put(env, (-0.5, 0.5), (0.5, -0.5)).render()
    assert picture.shape == (240, 240, 3) and picture.dtype == np.uint8
    blue, orange, wall = picture[60, 60], picture[180, 180], picture[120, 120]
    assert len({tuple(colour.tolist()) for colour in (blue, orange, wall)}) == 3
    assert picture[60, 120].tolist() == picture[60, 180].tolist() != wall.tolist(), (
        "a door is floor"
    )
    with pytest.raises(NotImplementedError):
        find_task("four-rooms").make(1, 1).frame()


def test_the_outline_and_the_pixels_of_positions_are_those_of_the_picture(env):
    task = find_task("four-rooms")
    assert task.signature().observations[task.place].shape == (2,)
    picture = put(env, (-0.55, 0.3), (0.9, 0.9)).render()

    def at(position):
        column, row = np.round(task.pixels(np.array(position))).astype(int).clip(0, 239)
        return tuple(picture[row, column].tolist())

    assert (
        at((-0.55, 0.3)) == (44, 110, 190)
        and at((0.9, 0.9)) == (226, 110, 30)
        and at((0.5, -0.5)) == (236, 232, 222)
    )
    walls = [line for line in task.outline if len(line) == 2]
    assert len(walls) == 6 and sum(
        abs(b[0] - a[0]) + abs(b[1] - a[1]) for a, b in walls
    ) == pytest.approx(4 - 4 * 0.3)
    for line in walls:
        for share in (0.05, 0.5, 0.95):
            assert at(line[0] + share * (np.array(line[1]) - line[0])) == (70, 72, 84)
    for x, y in itertools.product((-0.5, 0.5), (-0.5, 0.5)):  # the doors
        assert at((x, 0.0)) == at((0.0, y)) == (236, 232, 222)


def test_random_play_covers_the_map_and_its_success_is_the_score(count=1500):
    episodes = played("four-rooms", count, 1, 300).episodes
    won = np.array([e.total_return for e in episodes])
    assert abs(won.mean() - RANDOM) < 4 * np.sqrt(RANDOM * (1 - RANDOM) / count)
    assert all(
        e.terminated == (e.total_return == 1) and (e.length == LENGTH or e.terminated)
        for e in episodes
    )
    places = np.concatenate([e.observations["position"] for e in episodes])
    cells = np.histogram2d(*places.T, bins=8, range=[(-1, 1)] * 2)[0] / len(places)
    assert cells.min() > 0.4 / 64
    rooms = [
        len(np.unique((e.observations["position"] > 0) @ [1, 2]))
        for e in episodes
        if e.length == LENGTH
    ]
    assert np.mean(rooms) > 2
    assert Score(won, np.array([e.length for e in episodes]), {}).summary(find_task("four-rooms"))[
        "normalized_score"
    ] == pytest.approx(100 * won.mean())


def test_random_episodes_are_recorded_as_a_dataset(tmp_path):
    from bigdm_ray import data

    assert (
        data.main(
            [
                "record",
                "--random",
                "four-rooms",
                "--episodes",
                "30",
                "--quiet",
                "--folder",
                str(tmp_path / "set"),
            ]
        )
        == 0
    )
    made = Dataset.open(tmp_path / "set")
    assert (
        made.task == "four-rooms"
        and made.episodes == 30
        and list(made.signature.observations) == ["goal", "position"]
    )
