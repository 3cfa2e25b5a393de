import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from making import same_episode, soon

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats import writer as writing
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.training import recording as recordings
from bigdm_ray.training.recording import (
    NoisyPolicy,
    RecordingRequest,
    record,
    versions_of_recording,
)
from bigdm_ray.training.rollout import RandomPolicy


class Still(Policy):
    """Always the same action in every leaf."""

    uniforms = 0

    def __init__(self, task, value):
        self.leaves, self.value = find_task(task).signature().actions, value
        self.seen = []

    def start(self, n):
        return {"steps": np.zeros(n)}

    def act(self, state, observations, rewards, commands, first, uniforms):
        self.seen.append(commands)
        return {
            path: np.full((len(rewards), *leaf.shape), self.value, leaf.dtype)
            for path, leaf in self.leaves.items()
        }, {"steps": state["steps"] + 1}


def act(policy, n, seed=0):
    uniforms = np.random.default_rng(seed).random((n, policy.uniforms), np.float32)
    return policy.act(policy.start(n), {}, np.zeros(n, np.float32), {}, np.zeros(n, bool), uniforms)


def noisy(task, value, sigma=0.0, epsilon=0.0):
    return NoisyPolicy(Still(task, value), find_task(task).signature(), sigma, epsilon)


def test_noise_is_gaussian_of_that_deviation_and_clipped():
    actions, _ = act(noisy("toy-continuous", 0.0, sigma=0.2), 20_000)
    assert actions[""].dtype == np.float32 and actions[""].shape == (20_000, 2)
    np.testing.assert_allclose(actions[""].mean(0), 0.0, atol=0.01)
    np.testing.assert_allclose(actions[""].std(0), 0.2, atol=0.01)
    assert abs(np.corrcoef(actions[""].T)[0, 1]) < 0.03
    edge, _ = act(noisy("toy-continuous", 1.0, sigma=0.5), 20_000)
    assert edge[""].max() == 1.0 and edge[""].min() >= -1.0
    assert 0.48 < (edge[""] == 1.0).mean() < 0.52, "half of the noise leads out and is clipped"


def test_sigma_counts_in_boxes_of_minus_one_to_one():
    """Pendulum's torque lies in [-2, 2]: a sigma of 0.1 is a deviation of 0.2."""
    actions, _ = act(noisy("pendulum", 0.0, sigma=0.1), 20_000)
    np.testing.assert_allclose(actions[""].std(), 0.2, atol=0.01)


def test_an_own_action_outside_its_box_is_clipped_before_the_noise():
    actions, _ = act(noisy("toy-continuous", 3.0, sigma=1e-3), 1000)
    assert actions[""].min() > 0.99


def test_epsilon_is_the_share_of_random_actions_of_all_leaves_together():
    actions, state = act(noisy("toy-mixed", 0, epsilon=0.3), 20_000)
    moved = (actions["arm"] != 0).any(1)
    assert abs(moved.mean() - 0.3) < 0.02
    assert (actions["grip"][~moved] == 0).all() and (actions["mode"][~moved] == 0).all()
    np.testing.assert_allclose(np.bincount(actions["mode"][moved]) / moved.sum(), 1 / 3, atol=0.03)
    assert actions["arm"][moved].std() == pytest.approx(1 / np.sqrt(3), abs=0.02)
    assert {path: v.dtype for path, v in actions.items()} == {
        "arm": np.float32,
        "grip": np.int32,
        "mode": np.int32,
    }
    assert (state["steps"] == 1).all(), "the memory is the inner policy's"


def test_noise_and_epsilon_together():
    actions, _ = act(noisy("toy-continuous", 0.0, sigma=0.01, epsilon=0.5), 20_000)
    near = np.abs(actions[""]).max(1) < 0.1
    assert abs(near.mean() - (0.5 + 0.5 * 0.01)) < 0.02


def test_noise_on_discrete_actions_is_a_users_mistake():
    with pytest.raises(
        UserError, match=r"--action-noise is 0.1, but this task has no continuous actions"
    ):
        noisy("toy-vector", 0, sigma=0.1)


def recording(task="toy-continuous", **more):
    found = find_task(task)
    return RecordingRequest(RandomPolicy(found.signature()), found, "random", **more)


@pytest.mark.parametrize("episodes", [1, 5, 32, 70])
def test_as_many_episodes_as_asked_for(tmp_path, episodes):
    made, problems = record([recording(episodes=episodes)], tmp_path / "set", "a test")
    assert made == Dataset.open(tmp_path / "set") and problems == []
    assert made.episodes == episodes and made.source == "a test" and made.task == "toy-continuous"
    assert made.content_hash() == made.sha256
    assert {e.source for e in made.stream()} == {"random"}
    assert set(made.versions) == {"backend", "python", "bigdm-ray", "torch", "numpy", "gymnasium"}


@pytest.mark.parametrize(
    ("task", "environment", "backend", "packages"),
    [
        ("hopper", "Hopper-v5", "EnvPool", {"mujoco", "envpool"}),
        ("lunarlander-sparse", "LunarLander-v3", "EnvPool", {"box2d", "envpool"}),
        ("cartpole", "CartPole-v1", "EnvPool", {"envpool"}),
        ("pendulum", "Pendulum-v1", "gymnasium", set()),
        ("gymnasium:Walker2d-v5", "Walker2d-v5", "gymnasium", {"mujoco"}),
        ("key-to-door", None, "bigdm-ray", set()),
    ],
)
def test_the_card_tells_the_environment_and_who_took_part(
    tmp_path, monkeypatch, task, environment, backend, packages
):
    made, _ = record([recording(task, episodes=1)], tmp_path / "set", "a test")
    always = {"python", "bigdm-ray", "torch", "numpy", "gymnasium"}
    assert made.versions.get("environment") == environment and made.versions["backend"] == backend
    assert set(made.versions) - {"environment", "backend"} == always | packages
    assert (
        Dataset.open(tmp_path / "set").versions
        == made.versions
        == import_dataset([str(tmp_path / "set")], tmp_path / "again").versions
    )
    monkeypatch.setitem(sys.modules, "envpool", None)
    alone = versions_of_recording(find_task(task))
    assert alone["backend"] == ("gymnasium" if "envpool" in packages else backend) and set(
        alone
    ) == set(made.versions) - {"envpool"}


def test_whole_episodes_until_they_reach_the_steps(tmp_path):
    made, _ = record([recording(steps=500)], tmp_path / "set", "a test")
    lengths = [e.length for e in made.stream()]
    assert sum(lengths) == made.steps >= 500 > sum(lengths[:-1])


def test_the_same_seed_records_the_same_episodes(tmp_path):
    one, two, other = (
        record([recording(episodes=40, seed=seed)], tmp_path / name, "")[0]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one.sha256 == two.sha256 != other.sha256
    for mine, theirs in zip(one.stream(), two.stream(), strict=True):
        same_episode(mine, theirs)
    assert len({e.observations[""].tobytes() for e in one.stream()}) == 40, (
        "every episode is another"
    )


def test_the_command_is_given_and_stored(tmp_path):
    task = find_task("toy-vector")
    still = Still("toy-vector", 1)
    made, _ = record(
        [
            RecordingRequest(
                still,
                task,
                "still",
                (2, 7),
                {"desired_return": 5.0, "desired_horizon": 9.0},
                episodes=3,
            )
        ],
        tmp_path / "set",
        "",
    )
    first = next(made.stream())
    assert first.command == {"desired_return": 5.0, "desired_horizon": 9.0} and first.version == (
        2,
        7,
    )
    np.testing.assert_array_equal(still.seen[0]["desired_return"], [5.0] * 3)
    assert still.seen[1]["desired_horizon"][0] == 8.0
    assert (first.actions[""] == 1).all()


def test_episodes_that_break_are_told_and_replaced(tmp_path):
    made, problems = record([recording("toy-broken", episodes=20)], tmp_path / "set", "")
    assert made.episodes == 20 and problems and "the simulator stopped answering" in problems[0]


def test_a_task_that_never_ends_well_leaves_nothing(tmp_path):
    with pytest.raises(
        RunFailed, match="no episode of toy-nan could be played to its end in 3 rounds"
    ):
        record([recording("toy-nan", episodes=4)], tmp_path / "set", "")
    assert list(tmp_path.iterdir()) == []


# --- interruptions


class Interrupted(BaseException):
    """Like Ctrl-C or kill -9, at a moment of the test's choice."""


@pytest.fixture
def short(monkeypatch):
    """A round or two a stretch, each saved; about six episodes a shard."""
    monkeypatch.setattr(recordings, "STRETCH_STEPS", 60)
    monkeypatch.setattr(recordings, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(writing, "SHARD_EPISODES", 6)


def interrupt_at(monkeypatch, round, recording=0, played=None):
    """Stop before a round of a recording, and note in `played` which rounds were played."""
    noted = [] if played is None else played
    inner = recordings.rollout

    def rollout(policy, env, commands, count, chance, origin):
        noted.append((origin.version[1], origin.round))
        if noted[-1] == (recording, round):
            raise Interrupted
        return inner(policy, env, commands, count, chance, origin)

    monkeypatch.setattr(recordings, "rollout", rollout)


def rounds_of(monkeypatch, asked, folder):
    """Record to the end; the rounds that were played for it."""
    played = []
    with monkeypatch.context() as patch:
        interrupt_at(patch, -1, played=played)
        made, _ = record(asked, folder, "a test")
    return made, played


def same_dataset(mine, theirs):
    assert [mine.to_json() | {"name": ""}, len(mine.shards())] == [
        theirs.to_json() | {"name": ""},
        len(theirs.shards()),
    ]
    for one, other in zip(mine.stream(), theirs.stream(), strict=True):
        same_episode(one, other)
        assert (one.id, one.seed, one.merit, one.version) == (
            other.id,
            other.seed,
            other.merit,
            other.version,
        )


@pytest.mark.parametrize(
    ("task", "limit"),
    [
        ("toy-continuous", {"episodes": 42}),
        ("lunarlander", {"steps": 4000}),
        ("toy-broken", {"episodes": 30}),
    ],
)
@pytest.mark.parametrize("moment", ["early", "late", "twice"])
def test_an_interrupted_recording_goes_on_and_equals_an_uninterrupted_one(
    tmp_path, short, monkeypatch, task, limit, moment
):
    asked = [recording(task, rows=4, seed=5, **limit)]
    whole, rounds = rounds_of(monkeypatch, asked, tmp_path / "whole")
    last = len(rounds) - 1
    assert last > 5
    for round in {"early": [5], "late": [last], "twice": [5, last]}[moment]:
        with monkeypatch.context() as patch:
            interrupt_at(patch, round)
            with pytest.raises(Interrupted):
                record(asked, tmp_path / "set", "a test")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".set.importing", "whole"]
    made, again = rounds_of(monkeypatch, asked, tmp_path / "set")
    assert 0 < len(again) < len(rounds) and again == rounds[-len(again) :], (
        "what is on disk was not played again"
    )
    same_dataset(made, whole)
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "dataset.json",
        *(path.name for path in made.shards()),
    ]


def test_recordings_that_follow_each_other_go_on_in_the_one_that_was_interrupted(
    tmp_path, short, monkeypatch
):
    asked = [recording(version=(0, stage), steps=200, rows=4, seed=stage) for stage in range(3)]
    whole, rounds = rounds_of(monkeypatch, asked, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, recording=1)
        with pytest.raises(Interrupted):
            record(asked, tmp_path / "set", "a test")
    made, again = rounds_of(monkeypatch, asked, tmp_path / "set")
    assert again[0][0] == 1 and again == rounds[-len(again) :]
    same_dataset(made, whole)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"made_of": (0.2,)},
        {"command": {"desired_return": 1.0}},
        {"episodes": 41},
        {"version": (0, 1)},
    ],
)
def test_another_recording_begins_anew(tmp_path, short, monkeypatch, other):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(Interrupted):
            record([recording(rows=4, episodes=42, seed=5)], tmp_path / "set", "a test")
    asked = [recording(rows=4, **({"episodes": 42, "seed": 5} | other))]
    whole, rounds = rounds_of(monkeypatch, asked, tmp_path / "whole")
    made, again = rounds_of(monkeypatch, asked, tmp_path / "set")
    assert again == rounds
    same_dataset(made, whole)


def test_what_was_written_behind_the_last_save_is_played_again(tmp_path, short, monkeypatch):
    """A full shard holds rounds of a stretch that is not over: only those before it count."""
    monkeypatch.setattr(recordings, "STRETCH_STEPS", 150)
    asked = [recording(rows=4, episodes=42, seed=5)]
    whole, rounds = rounds_of(monkeypatch, asked, tmp_path / "whole")
    for round in range(2, len(rounds)):
        folder = tmp_path / f"set-{round}"
        with monkeypatch.context() as patch:
            interrupt_at(patch, round)
            with pytest.raises(Interrupted):
                record(asked, folder, "a test")
        made, again = rounds_of(monkeypatch, asked, folder)
        assert again == rounds[-len(again) :]
        same_dataset(made, whole)


def test_environments_are_made_anew_for_each_stretch(tmp_path, short):
    made, _ = record([recording(rows=4, episodes=42)], tmp_path / "set", "a test")
    assert len({episode.seed for episode in made.stream()}) > 3
    assert len({episode.observations[""].tobytes() for episode in made.stream()}) == 42, (
        "every episode is another"
    )


def test_a_shard_that_decayed_meanwhile_is_recorded_anew(tmp_path, short, monkeypatch):
    asked = [recording(rows=4, episodes=42, seed=5)]
    whole, rounds = rounds_of(monkeypatch, asked, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, len(rounds) - 1)
        with pytest.raises(Interrupted):
            record(asked, tmp_path / "set", "a test")
    first = tmp_path / ".set.importing" / "episodes-0000000.arrow"
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 1
    first.write_bytes(data)
    made, again = rounds_of(monkeypatch, asked, tmp_path / "set")
    assert again == rounds
    same_dataset(made, whole)


@pytest.mark.slow
def test_a_killed_recording_leaves_no_half_dataset_and_goes_on(tmp_path):
    code = (
        "import sys; from bigdm_ray.training import recording; recording.STRETCH_STEPS,"
        " recording.SAVE_EVERY_S = 500, 0.0\nfrom bigdm_ray.data import main; main(['record',"
        " '--random', 'lunarlander', '--steps', '20000', '--folder', sys.argv[1]])"
    )
    folder, hidden = tmp_path / "set", tmp_path / ".set.importing"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.DEVNULL)
    assert soon(lambda: (hidden / "progress.json").is_file() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not folder.exists()
    taken = sum(json.loads((hidden / "progress.json").read_text())["taken"])
    assert taken > 0
    for place in (folder, tmp_path / "whole"):
        subprocess.run(
            [sys.executable, "-c", code, str(place)], check=True, stdout=subprocess.DEVNULL
        )
    same_dataset(Dataset.open(folder), Dataset.open(tmp_path / "whole"))
    assert not hidden.exists()


def test_an_existing_folder_is_refused_before_anything_is_played(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists already"):
        record([recording(episodes=4)], tmp_path / "set", "")
