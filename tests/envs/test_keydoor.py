"""Key-to-Door: three rooms, a key that nobody sees being carried, a door, and the success of random
play to the digit."""

from collections import defaultdict, deque

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from making import played, same_rows

from bigdm_ray.envs import find_task
from bigdm_ray.envs.keydoor import (
    ENTRANCES,
    KEY_CELLS,
    LENGTH,
    MOVES,
    PHASES,
    ROOMS,
    START_CELLS,
    KeyToDoorRoomRows,
    KeyToDoorRows,
)
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.training.evaluation import Score

UP, DOWN, LEFT, RIGHT = range(4)
DRAWN = """
..WWWWWWW..  WWWWWWWWWWW  ...........
..W.....W..  W.........W  ...WWDWW...
..W.....W..  W.........W  ...W...W...
..WW...WW..  W.........W  ...W...W...
..W.....W..  W.........W  ...W...W...
..W.....W..  W.........W  ...WWWWW...
..WWWWWWW..  WWWWWWWWWWW  ...........
"""


@pytest.fixture
def env():
    made = find_task("key-to-door").env("rgb_array")
    made.reset(seed=1)
    return made


def put(env, t, player, key=None, carries=False):
    env.t, env.player, env.carries = t, player, carries
    env.key = env.key if key is None else key
    return env


def shown(observation):
    """The 5x5 view as lines of W, K, D and dots."""
    cells = observation.reshape(5, 5, 3)
    return [
        "".join("WKD"[int(cell.argmax())] if cell.any() else "." for cell in row) for row in cells
    ]


@pytest.mark.parametrize("name", ["key-to-door", "key-to-door-room"])
def test_gymnasium_finds_nothing_wrong_with_it(name):
    check_env(find_task(name).env(None), skip_render_check=True)


def test_the_room_shows_the_key_until_it_is_taken_and_where_the_player_stands():
    env = find_task("key-to-door-room").env(None)
    env.reset(seed=1)

    def lines(observation):
        cells = observation.reshape(7, 11, 4)
        assert cells.sum(-1).max() == 1
        return [
            "".join("WKDP"[int(cell.argmax())] if cell.any() else "." for cell in row)
            for row in cells
        ]

    first = [line.split()[0] for line in DRAWN.split("\n") if line]
    near = lines(put(env, 3, (3, 5), (2, 4)).step(UP)[0])
    assert near[2] == "..W.KP..W.."
    assert [line.replace("K", ".").replace("P", ".") for line in near] == first
    assert lines(env.step(LEFT)[0])[2] == "..W.P...W.." and env.carries
    end = [put(env, 110, (2, 5), carries=carries)._observe() for carries in (True, False)]
    np.testing.assert_array_equal(*end)
    assert lines(end[0])[1:3] == ["...WWDWW...", "...W.P.W..."]


def test_the_rooms_are_those_drawn():
    drawn = [[line.split()[room] for line in DRAWN.split("\n") if line] for room in range(3)]
    assert [["".join(".WKD"[cell] for cell in row) for row in room] for room in ROOMS] == drawn
    assert PHASES == (15, 90, 15) and LENGTH == 120


def test_key_and_player_begin_in_their_parts_all_cells_alike(env):
    begins = []
    for _ in range(4000):
        env.reset()
        begins.append((env.key, env.player))
    for cells, found in zip((KEY_CELLS, START_CELLS), zip(*begins, strict=True), strict=True):
        counted = {tuple(cell): sum(one == tuple(cell) for one in found) for cell in cells.tolist()}
        assert sum(counted.values()) == 4000 and all(
            abs(count - 400) < 4 * 19 for count in counted.values()
        )
    assert len(set(begins)) == 100, "each drawn without regard to the other"
    assert {row for row, _ in KEY_CELLS.tolist()} == {1, 2} and {
        row for row, _ in START_CELLS.tolist()
    } == {4, 5}


def test_the_view_is_centred_on_the_player(env):
    put(env, 0, (4, 3), (2, 4))
    assert shown(env.step(LEFT)[0]) == [".W.K.", ".WW..", ".W...", ".W...", ".WWWW"], (
        "a wall ahead: it stays"
    )
    assert shown(env.step(RIGHT)[0]) == ["W.K..", "WW...", "W....", "W....", "WWWWW"]
    assert shown(env.step(DOWN)[0]) == ["WW...", "W....", "W....", "WWWWW", "....."]
    assert shown(put(env, 105, (3, 5)).step(LEFT)[0]) == [
        ".WWDW",
        ".W...",
        ".W...",
        ".W...",
        ".WWWW",
    ]


def test_each_phase_lasts_as_long_as_it_should(env):
    rooms = []
    for t in range(LENGTH):
        rooms.append(
            int(np.flatnonzero([np.array_equal(env._grid() == 1, room == 1) for room in ROOMS])[0])
        )
        _, reward, terminated, truncated, _ = env.step(DOWN)
        assert reward == 0 and not truncated and terminated == (t == LENGTH - 1)
        if t + 1 in ENTRANCES:
            assert env.player == {15: (5, 5), 105: (3, 5)}[t + 1]
    assert [rooms.count(room) for room in range(3)] == [15, 90, 15] and rooms == sorted(rooms)


def test_the_key_is_picked_up_where_it_lies_and_nowhere_else(env):
    put(env, 3, (3, 5), (2, 4))
    assert "K" in "".join(shown(env.step(UP)[0])) and not env.carries, "beside it"
    observation = env.step(LEFT)[0]
    assert env.carries and "K" not in "".join(shown(observation))
    assert put(env, 14, (2, 5), (2, 4)).step(LEFT) and env.carries, (
        "in the last step of the phase, too"
    )
    put(env, 50, (2, 5), (2, 4)).step(LEFT)
    assert env.player == (2, 4) and not env.carries, (
        "the empty room holds none, not even at the same cell"
    )


@pytest.mark.parametrize("carries", [True, False])
def test_the_door_opens_with_the_key_only(env, carries):
    put(env, 110, (2, 5), carries=carries)
    observation, reward, terminated, truncated, _ = env.step(UP)
    assert (reward, terminated, truncated) == (float(carries), carries, False)
    assert env.player == ((1, 5) if carries else (2, 5))
    assert shown(observation)[2 if carries else 1][2] == "D"
    _, reward, terminated, _, _ = put(env, 119, (2, 5), carries=carries).step(UP)
    assert reward == carries and terminated, "in the last step, too"


def test_whether_the_key_is_carried_is_never_seen(env):
    for room, t in ((1, 15), (1, 104), (2, 105), (2, 120)):
        for player in zip(*np.nonzero(ROOMS[room] != 1), strict=True):
            one, other = (
                put(env, t, player, carries=carries)._observe() for carries in (True, False)
            )
            np.testing.assert_array_equal(one, other)


def test_the_same_seed_is_the_same_game_and_the_next_episode_another():
    def begins(seed):
        env = find_task("key-to-door").env(None)
        env.reset(seed=seed)
        return [(env.reset()[0].tobytes(), env.key, env.player) for _ in range(20)]

    assert begins(4) == begins(4) != begins(5) and len(set(begins(4))) > 10


def shortest(room, begin, end):
    """Actions from one cell to another, the door being open."""
    waiting, seen = deque([(begin, [])]), {begin}
    while waiting:
        cell, taken = waiting.popleft()
        if cell == end:
            return taken
        for action, move in enumerate(MOVES.tolist()):
            there = (cell[0] + move[0], cell[1] + move[1])
            if ROOMS[room][there] != 1 and there not in seen:
                seen.add(there)
                waiting.append((there, [*taken, action]))
    raise AssertionError(f"no way from {begin} to {end}")


def test_who_fetches_the_key_first_always_earns_1(env):
    for key in map(tuple, KEY_CELLS.tolist()):
        for start in map(tuple, START_CELLS.tolist()):
            put(env, 0, start, key)
            way = shortest(0, start, key)
            actions = way + [DOWN] * (105 - len(way)) + [UP, UP]
            ends = [env.step(action)[1:3] for action in actions]
            assert len(way) <= 9 and ends[-1] == (1.0, True) and set(ends[:-1]) == {(0.0, False)}


@pytest.mark.slow
def test_random_play_succeeds_in_2_81_percent_exactly_computed(env):
    """All states of all 120 steps with their probabilities, moved by the environment's own
    `step`."""
    chance = {
        ((key, start), False): 0.01
        for key in map(tuple, KEY_CELLS.tolist())
        for start in map(tuple, START_CELLS.tolist())
    }
    won = 0.0
    for t in range(LENGTH):
        after = defaultdict(float)
        for ((key, player), carries), p in chance.items():
            for action in range(4):
                _, reward, terminated, _, _ = put(env, t, player, key, carries).step(action)
                won += p / 4 * reward
                if not terminated:
                    # where it lay does not matter any more
                    left = env.key if env.t < 15 and not env.carries else (0, 0)
                    after[(left, env.player), env.carries] += p / 4
        chance = after
        if t + 1 in (15, 105):
            carried = sum(p for (_, carries), p in chance.items() if carries)
            assert carried == pytest.approx(0.1028, abs=5e-5) and sum(
                chance.values()
            ) == pytest.approx(1)
    assert won == pytest.approx(0.0281, abs=5e-5) and won / carried == pytest.approx(
        0.2738, abs=5e-5
    )


@pytest.mark.slow
def test_random_play_succeeds_in_2_81_percent_of_a_sample(count=6000):
    episodes = played("key-to-door", count, 1, 1000).episodes
    returns = np.array([e.total_return for e in episodes])
    assert len(episodes) == count and set(returns.tolist()) == {0.0, 1.0}
    assert abs(returns.mean() - 0.0281) < 3 * np.sqrt(0.0281 * 0.9719 / count)
    for e in episodes:
        assert e.terminated and (e.length == 120 if e.total_return == 0 else 107 <= e.length <= 120)
        assert e.rewards[:-1].sum() == 0


@pytest.mark.parametrize(
    ("name", "rows"), [("key-to-door", KeyToDoorRows), ("key-to-door-room", KeyToDoorRoomRows)]
)
def test_the_fast_rows_play_what_the_reference_plays_whichever_rows_move(name, rows):
    upwards = 0.5  # there is more to see
    same_rows(
        name,
        rows,
        lambda chance, m: np.where(chance.random(m) < upwards, UP, chance.integers(0, 4, m)).astype(
            np.int32
        ),
    )


@pytest.mark.parametrize("action", [-1, 4])
def test_an_action_that_is_none_fails_its_row_on_both_backends(action):
    for backend in ("fast", "reference"):
        env = find_task("key-to-door").make(3, 1, backend)
        env.reset(np.arange(3))
        step = env.step(np.arange(3), {"": np.array([0, action, 3], np.int32)})
        assert (
            list(step.failures) == [1]
            and f"ValueError: {action} is no action; they are 0 to 3" in step.failures[1]
        )
        env.close()


def test_a_video_shows_the_room_and_who_carries_the_key(env):
    pictures = [put(env, 20, (3, 3), carries=carries).render() for carries in (False, True)]
    for picture in pictures:
        assert picture.shape == (112, 176, 3) and picture.dtype == np.uint8
    different = (pictures[0] != pictures[1]).any(-1)
    assert different.sum() == 16 * 16 and different[48:64, 48:64].all()
    with pytest.raises(NotImplementedError):
        find_task("key-to-door").make(1, 1).frame()


def test_the_normalised_score_is_the_success_rate_in_percent():
    task = find_task("key-to-door")
    summary = Score(np.array([1.0, 0.0, 0.0, 1.0]), np.array([110, 120, 120, 108]), {}).summary(
        task
    )
    assert (
        summary["return_mean"] == 0.5
        and summary["normalized_score"] == 50.0
        and task.max_return == 1.0
    )


def test_random_episodes_are_recorded_as_a_dataset(tmp_path, capsys):
    from bigdm_ray import data

    asked = [
        "record",
        "--random",
        "key-to-door",
        "--episodes",
        "200",
        "--seed",
        "1",
        "--quiet",
        "--folder",
        str(tmp_path / "set"),
    ]
    assert data.main(asked) == 0
    made = Dataset.open(tmp_path / "set")
    assert (
        made.task == "key-to-door" and made.episodes == 200 and made.content_hash() == made.sha256
    )
    assert (
        0 < made.return_mean < 0.1
        and f"normalised score  {100 * made.return_mean:.1f}" in capsys.readouterr().out
    )
    actions = np.concatenate([e.actions[""] for e in made.stream()])
    np.testing.assert_allclose(np.bincount(actions) / len(actions), 0.25, atol=0.01)
    with pytest.raises(UserError, match="exists already"):
        data.main(asked)
