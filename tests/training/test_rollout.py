"""Rollout: every command is played once to its end; what is written down is what happened, as a
slow loop sees it."""

import tracemalloc

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import origin, played, same_episode

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.algorithms.online import Persistence
from bigdm_ray.doors import door
from bigdm_ray.envs import Signature, find_task
from bigdm_ray.envs.signature import PER_EPISODE, Leaf
from bigdm_ray.envs.vector import GymnasiumRows, Step, reset_step
from bigdm_ray.replay import EpisodeId, Store
from bigdm_ray.replay.episode import is_held
from bigdm_ray.replay.shard import encode
from bigdm_ray.run import main
from bigdm_ray.training.rollout import RandomPolicy, rollout
from bigdm_ray.training.streams import rng


class Counting:
    """A vector environment that does as it is told: a row's n-th episode lasts `lengths[n]` steps
    and its observation says (row, n-th episode of the row, step). It refuses to step a row that has
    ended and to reset one that has not."""

    signature = Signature(
        {"": Leaf("tensor", (3,), "float32")}, {"": Leaf("tensor", (), "float32")}
    )

    def __init__(self, n, lengths):
        self.n, self.lengths = n, lengths
        self.episode = np.full(n, -1)
        self.step_of = np.zeros(n, int)
        self.over = np.ones(n, bool)
        self.begun = 0
        self.length_of = np.zeros(n, int)
        self.most = 0

    def _seen(self, rows):
        return {"": np.stack([rows, self.episode[rows], self.step_of[rows]], 1).astype(np.float32)}

    def reset(self, rows):
        assert self.over[rows].all(), "a row in the middle of an episode was reset"
        self.over[rows] = False
        self.episode[rows] += 1
        self.step_of[rows] = 0
        for row in rows:
            self.length_of[row] = self.lengths[self.begun]
            self.begun += 1
        return reset_step(len(rows), self._seen(rows))

    def step(self, rows, actions):
        assert len(rows) and not self.over[rows].any(), "a row that has ended was stepped"
        self.most = max(self.most, len(rows))
        self.step_of[rows] += 1
        ended = self.step_of[rows] == self.length_of[rows]
        self.over[rows] = ended
        odd = self.length_of[rows] % 2 == 1
        return Step(self._seen(rows), actions[""] * 2, ended & odd, ended & ~odd)


class Telling(Policy):
    """Acts with a number that tells what it was given: its own count of steps since `first`, the
    command, the last reward."""

    uniforms = 1

    def start(self, n):
        return {"count": np.full(n, 77, np.int64)}

    def act(self, state, observations, rewards, commands, first, uniforms):
        count = np.where(first, 0, state["count"] + 1)
        assert (count == observations[""][:, 2]).all(), (
            "memory and observation are of the same step of the same episode"
        )
        assert (rewards[first] == 0).all() and uniforms.shape == (len(first), 1)
        action = (
            commands["desired_return"] * 0.25
            + commands["desired_horizon"] * 1000
            + rewards * 0.125
            + uniforms[:, 0]
        ).astype(np.float32)
        return {"": action}, {"count": count}


def commands(count):
    return {
        "desired_return": 100 * np.arange(1, count + 1, dtype=np.float32),
        "desired_horizon": np.arange(count, dtype=np.float32) % 4 + 1,
    }


class Script:
    """A random stream that keeps what it gave."""

    def __init__(self, seed):
        self.stream, self.given = rng(seed, "play"), []

    def random(self, shape, dtype):
        self.given.append(self.stream.random(shape, dtype))
        return self.given[-1]


@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 7), min_size=1, max_size=14),
    st.sampled_from([None, 40.0]),
)
def test_every_command_is_played_once_to_its_end(n, lengths, max_return):
    """Against a loop over single steps that knows nothing of rows taken and put."""
    count = len(lengths)
    env, script, ticks = Counting(n, lengths), Script(1), []
    result = rollout(
        Telling(),
        env,
        commands(count),
        count,
        script,
        origin(max_return=max_return),
        lambda: ticks.append(1),
    )
    assert [e.id.number for e in result.episodes] == list(range(count))
    assert result.discarded == 0 and result.problems == []
    assert result.env_steps == sum(lengths) == sum(e.length for e in result.episodes)
    assert env.begun == count and env.most == min(n, count) and env.over.all()
    assert len(ticks) == len(script.given)

    # who plays what, by hand: rows take the next command, in the order of rows, as they end
    rows = {row: row for row in range(min(n, count))}  # environment row -> command
    begun = dict.fromkeys(range(n), -1)
    waiting, t = min(n, count), {command: 0 for command in rows.values()}
    for row in rows:
        begun[row] += 1
    asked, paid, expected = commands(count), {}, {}
    left = {k: [asked["desired_return"][k], asked["desired_horizon"][k]] for k in range(count)}
    for uniforms in script.given:
        assert len(uniforms) == len(rows)
        for place, (row, k) in enumerate(sorted(rows.items())):
            action = np.float32(
                left[k][0] * 0.25
                + left[k][1] * 1000
                + paid.get(k, np.float32(0)) * 0.125
                + uniforms[place, 0]
            )
            paid[k] = np.float32(action * 2)
            expected.setdefault(k, []).append((row, begun[row], t[k], action, paid[k]))
            left[k][0] = np.float32(left[k][0] - paid[k])
            if max_return is not None:
                left[k][0] = min(left[k][0], np.float32(max_return))
            left[k][1] = max(left[k][1] - 1, 1)
            t[k] += 1
        for row, k in sorted(rows.items()):
            if t[k] == lengths[k]:
                del rows[row]
                if waiting < count:
                    rows[row], t[waiting] = waiting, 0
                    begun[row] += 1
                    waiting += 1
    for k, e in enumerate(result.episodes):
        steps = np.array(expected[k], np.float64)
        np.testing.assert_array_equal(e.observations[""][:-1], steps[:, :3])
        assert e.observations[""][-1].tolist() == [steps[0, 0], steps[0, 1], lengths[k]], (
            "the last observation is of this episode, not of the next"
        )
        np.testing.assert_allclose(e.actions[""], steps[:, 3], rtol=1e-5)
        np.testing.assert_allclose(e.rewards, steps[:, 4], rtol=1e-5)
        assert e.terminated == (lengths[k] % 2 == 1)
        assert e.command == {"desired_return": 100.0 * (k + 1), "desired_horizon": float(k % 4 + 1)}


class Rolling(Policy):
    """Acts with the random number that it was given."""

    uniforms = 1

    def start(self, n):
        return {}

    def act(self, state, observations, rewards, commands, first, uniforms):
        return {"": uniforms[:, 0]}, state


def test_persistent_episodes_hold_on_to_their_chance_and_no_others():
    """Rows are given up and taken again on the way; a new episode never begins with the chance of
    the one before."""
    lengths = [400, 1, 300, 2, 350, 400, 3, 300, 380, 400]
    given = {}
    for probability, every in ((0.9, 3), (1.0, 1), (0.0, 3)):
        env = Counting(3, lengths)
        episodes = rollout(
            Rolling(),
            env,
            {},
            len(lengths),
            rng(0, "play"),
            origin(),
            persistence=Persistence(probability, every),
        ).episodes
        drawn = given[probability, every] = [e.actions[""] for e in episodes]
        for number, (values, length) in enumerate(zip(drawn, lengths, strict=True)):
            repeated = np.mean(values[1:] == values[:-1]) if length > 3 else 0.0
            held = probability if number % every == 0 and length > 3 else 0.0
            assert abs(repeated - held) < 0.07, (number, repeated, held)
        assert len({values[0] for values in drawn}) == len(lengths)
    plain = rollout(
        Rolling(), Counting(3, lengths), {}, len(lengths), rng(0, "play"), origin()
    ).episodes
    for values, e in zip(given[0.0, 3], plain, strict=True):
        np.testing.assert_array_equal(values, e.actions[""])


def test_where_it_comes_from_is_written_into_every_episode():
    told = origin("toy-vector", round=7, group=3, version=(2, 400), source="somebody", seed=99)
    env = find_task("toy-vector").make(3, 1)
    result = rollout(RandomPolicy(env.signature), env, {}, 5, rng(1, "play"), told)
    for number, e in enumerate(result.episodes):
        assert e.id == EpisodeId(7, 3, number)
        assert (e.task, e.version, e.source, e.seed, e.command) == (
            "toy-vector",
            (2, 400),
            "somebody",
            99,
            {},
        )
    env.close()


def test_every_episode_carries_the_mean_return_of_those_played_with_it():
    episodes = played("toy-vector", 7, environments=3).episodes
    assert {episode.merit for episode in episodes} == {
        float(np.mean([episode.total_return for episode in episodes]))
    }


def test_an_environment_is_taken_up_again_where_no_episode_is_in_flight():
    """Two calls on one environment: nothing of the first is left in the second."""
    env = Counting(3, [2, 3, 4, 1, 5, 2, 3])
    first = rollout(Telling(), env, commands(4), 4, rng(1, "a"), origin())
    second = rollout(Telling(), env, commands(3), 3, rng(1, "b"), origin(round=1))
    assert [e.length for e in first.episodes + second.episodes] == [2, 3, 4, 1, 5, 2, 3]
    for e in second.episodes:
        assert e.observations[""][:, 2].tolist() == list(range(e.length + 1))


def test_episodes_do_not_share_memory_that_changes():
    """What a rollout has brought back stays as it is when the environment goes on."""
    env = find_task("cartpole").make(3, 1)
    policy = RandomPolicy(env.signature)
    first = rollout(policy, env, {}, 6, rng(1, "a"), origin("cartpole"))
    copies = [e.observations[""].copy() for e in first.episodes]
    rollout(policy, env, {}, 6, rng(1, "b"), origin("cartpole"))
    for e, copy in zip(first.episodes, copies, strict=True):
        np.testing.assert_array_equal(e.observations[""], copy)
    env.close()


@pytest.mark.parametrize("task", ["toy-mixed", "lunarlander-continuous", "cartpole"])
def test_more_commands_than_rows_and_more_rows_than_commands(task):
    for count, environments in ((1, 4), (9, 2)):
        result = played(task, count, 3, environments)
        assert [e.id.number for e in result.episodes] == list(range(count))
        assert all(e.problem() is None for e in result.episodes)


def test_taking_all_that_were_begun_is_not_biased_towards_the_short():
    """Lengths 1 and 9 in turn: with four rows, half of the episodes are long, as they were asked
    for."""
    lengths = [1, 9] * 20
    result = rollout(Telling(), Counting(4, lengths), commands(40), 40, rng(1, "play"), origin())
    assert [e.length for e in result.episodes] == lengths


class Endless(Counting):
    """Lets rows be reset in the middle of an episode."""

    def reset(self, rows):
        self.over[rows] = True
        return super().reset(rows)


def test_an_episode_without_an_end_is_given_up_and_the_remedy_named(monkeypatch):
    monkeypatch.setattr("bigdm_ray.training.rollout.LONGEST", 30)
    lengths = [10**9, 4, 30, 31, 10**9, 7, 29]
    ticks = []
    result = rollout(
        Telling(),
        Endless(2, lengths),
        commands(7),
        7,
        rng(1, "play"),
        origin(),
        lambda: ticks.append(1),
    )
    assert [(e.id.number, e.length) for e in result.episodes] == [(1, 4), (2, 30), (5, 7), (6, 29)]
    assert result.discarded == 3 and result.env_steps == 70
    assert len(ticks) == 4 + 30 + 30 + 29, "a row that is given up takes the next command at once"
    assert set(result.problems) == {
        "an episode of toy-vector is discarded: it did not end in 30 steps; give its environment a"
        " time limit (gymnasium.wrappers.TimeLimit)"
    }
    only = rollout(Telling(), Endless(3, [10**9] * 3), commands(3), 3, rng(1, "play"), origin())
    assert only.episodes == [] and only.discarded == 3


def test_a_run_whose_environment_never_ends_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("bigdm_ray.training.rollout.LONGEST", 40)  # Pendulum ends at 200 steps
    flags = (
        "--algorithm.hidden 16,16 --algorithm.warm-up-episodes 5 --budget.env-steps 500 --local"
        " --quiet"
    )
    assert (
        door(
            main,
            ["udrl", "gymnasium:Pendulum-v1", *flags.split(), "--folder", str(tmp_path / "run")],
        )
        == 1
    )
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "did not end in 40 steps; give its environment a" in told
    assert "a time limit (gymnasium.wrappers.TimeLimit)" in told


# --- the random policy


def test_random_actions_are_uniform_over_what_is_allowed():
    leaves = {
        "bounded": Leaf("tensor", (2,), "float32", (-1.0, 3.0), (1.0, 4.0)),
        "free": Leaf("tensor", (1,), "float32"),
        "many": Leaf("discrete", (2,), "int32", choices=(2, 5)),
        "one": Leaf("discrete", (), "int32", choices=(3,)),
    }
    policy = RandomPolicy(Signature({}, leaves))
    assert policy.uniforms == 6
    n = 30_000
    actions, _ = policy.act(
        {}, {}, np.zeros(n), {}, np.zeros(n, bool), rng(1, "u").random((n, 6), np.float32)
    )
    for path, leaf in leaves.items():
        assert actions[path].shape == (n, *leaf.shape) and str(actions[path].dtype) == leaf.dtype
    for values, low, high in (
        (actions["bounded"][:, 0], -1, 1),
        (actions["bounded"][:, 1], 3, 4),
        (actions["free"][:, 0], -1, 1),
    ):
        assert values.min() >= low and values.max() <= high
        np.testing.assert_allclose(
            np.quantile(values, [0.25, 0.5, 0.75]),
            low + (high - low) * np.array([0.25, 0.5, 0.75]),
            atol=0.02 * (high - low),
        )
    for values, choices in (
        (actions["many"][:, 0], 2),
        (actions["many"][:, 1], 5),
        (actions["one"], 3),
    ):
        np.testing.assert_allclose(
            np.bincount(values, minlength=choices) / n, np.full(choices, 1 / choices), atol=0.015
        )


def test_the_same_streams_play_the_same_episodes_another_stream_others():
    a, b = played("toy-mixed", 5, 1).episodes, played("toy-mixed", 5, 1).episodes
    for one, other in zip(a, b, strict=True):
        same_episode(one, other)
    env = find_task("toy-mixed").make(8, 1)
    other = rollout(
        RandomPolicy(env.signature), env, {}, 5, rng(2, "play"), origin("toy-mixed")
    ).episodes
    assert not np.array_equal(a[0].actions["arm"], other[0].actions["arm"])
    np.testing.assert_array_equal(a[0].observations["eye"][0], other[0].observations["eye"][0])


# --- what is kept while it plays


@pytest.mark.parametrize("task", ["toy-mixed", "toy-image"])
def test_episodes_are_the_same_however_often_the_log_is_emptied(task, monkeypatch):
    whole = played(task, 11, 3, 4).episodes
    for steps in (1, 3):
        monkeypatch.setattr("bigdm_ray.training.rollout.LOG_STEPS", steps)
        for one, other in zip(whole, played(task, 11, 3, 4).episodes, strict=True):
            same_episode(one, other)


class Filming(Counting):
    """Shows a picture of 10,000 bytes, which tells row and step."""

    signature = Signature(
        {"": Leaf("image", (1, 100, 100), "uint8")}, {"": Leaf("tensor", (), "float32")}
    )

    def _seen(self, rows):
        frames = np.empty((len(rows), 1, 100, 100), np.uint8)
        frames[:] = (rows + self.step_of[rows])[:, None, None, None]
        return {"": frames}


def test_frames_do_not_pile_up_while_a_long_episode_lasts(monkeypatch):
    """Beside the episodes that it brings back, a rollout holds a copy of the longest, a quarter of
    all."""
    monkeypatch.setattr("bigdm_ray.training.rollout.LOG_BYTES", 400_000)
    lengths = [300] + [5] * 150
    tracemalloc.start()
    try:
        episodes = rollout(
            Rolling(), Filming(4, lengths), {}, len(lengths), rng(1, "play"), origin()
        ).episodes
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [e.length for e in episodes] == lengths
    assert episodes[0].observations[""][:, 0, 0, 0].tolist() == [t % 256 for t in range(301)]
    brought = sum(e.observations[""].nbytes for e in episodes)
    assert most < 1.6 * brought


class Told(gymnasium.Env):
    """An environment with a mission for each episode, of which one part changes although it says
    that none does."""

    metadata = {PER_EPISODE: ["mission"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Dict(
        {
            "at": gymnasium.spaces.Box(0, 9, (1,), np.float32),
            "mission": gymnasium.spaces.Dict(
                {"false": gymnasium.spaces.Discrete(9), "text": gymnasium.spaces.Text(5)}
            ),
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def _seen(self):
        mission = {"false": self._t, "text": f"go {self._goal}"}
        return {"at": np.array([self._t], np.float32), "mission": mission}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t, self._goal = 0, int(self.np_random.integers(9))
        return self._seen(), {}

    def step(self, action):
        self._t += 1
        return self._seen(), 1.0, self._t == 4, False, {}


def test_a_mission_is_kept_once_an_episode(tmp_path):
    env = GymnasiumRows(Told, 3, 0)
    assert env.signature.per_episode == {"mission/false", "mission/text"}
    episodes = rollout(RandomPolicy(env.signature), env, {}, 8, rng(0, "play"), origin()).episodes
    store = Store(tmp_path)
    store.add_encoded(encode(episodes))
    missions = set()
    for row, e in enumerate(episodes):
        again = store.episode(row)
        same_episode(again, e)
        for seen in (e.observations, again.observations):
            assert [path for path, v in seen.items() if is_held(v)] == ["mission/text"]
            assert seen["mission/false"].tolist() == seen["at"][:, 0].tolist() == [0, 1, 2, 3, 4]
        missions.add(bytes(e.observations["mission/text"][0]).rstrip(b"\0"))
    assert len(missions) > 1 and all(text.startswith(b"go ") for text in missions)
