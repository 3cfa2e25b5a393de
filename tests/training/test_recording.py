import numpy as np
import pytest
from making import same_episode

from bigdm_ray.algorithms.base import Policy
from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.training.recording import NoisyPolicy, Recording, record
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
        return {path: np.full((len(rewards), *leaf.shape), self.value, leaf.dtype) for path, leaf in self.leaves.items()}, {"steps": state["steps"] + 1}


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
    assert {path: v.dtype for path, v in actions.items()} == {"arm": np.float32, "grip": np.int32, "mode": np.int32}
    assert (state["steps"] == 1).all(), "the memory is the inner policy's"


def test_noise_and_epsilon_together():
    actions, _ = act(noisy("toy-continuous", 0.0, sigma=0.01, epsilon=0.5), 20_000)
    near = np.abs(actions[""]).max(1) < 0.1
    assert abs(near.mean() - (0.5 + 0.5 * 0.01)) < 0.02


def test_noise_on_discrete_actions_is_a_users_mistake():
    with pytest.raises(UserError, match=r"--action-noise is 0.1, but this task has no continuous actions"):
        noisy("toy-vector", 0, sigma=0.1)


def recording(task="toy-continuous", **more):
    found = find_task(task)
    return Recording(RandomPolicy(found.signature()), found, "random", **more)


@pytest.mark.parametrize("episodes", [1, 5, 32, 70])
def test_as_many_episodes_as_asked_for(tmp_path, episodes):
    made, problems = record([recording(episodes=episodes)], tmp_path / "set", "a test")
    assert made == Dataset.open(tmp_path / "set") and problems == []
    assert made.episodes == episodes and made.source == "a test" and made.task == "toy-continuous"
    assert made.content_hash() == made.sha256
    assert {e.source for e in made.stream()} == {"random"}
    assert "numpy" in made.versions


def test_whole_episodes_until_they_reach_the_steps(tmp_path):
    made, _ = record([recording(steps=500)], tmp_path / "set", "a test")
    lengths = [e.length for e in made.stream()]
    assert sum(lengths) == made.steps >= 500 > sum(lengths[:-1])


def test_the_same_seed_records_the_same_episodes(tmp_path):
    one, two, other = (record([recording(episodes=40, seed=seed)], tmp_path / name, "")[0] for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert one.sha256 == two.sha256 != other.sha256
    for mine, theirs in zip(one.stream(), two.stream(), strict=True):
        same_episode(mine, theirs)
    assert len({e.observations[""].tobytes() for e in one.stream()}) == 40, "every episode is another"


def test_the_command_is_given_and_stored(tmp_path):
    task = find_task("toy-vector")
    still = Still("toy-vector", 1)
    made, _ = record([Recording(still, task, "still", (2, 7), {"desired_return": 5.0, "desired_horizon": 9.0}, episodes=3)], tmp_path / "set", "")
    first = next(made.stream())
    assert first.command == {"desired_return": 5.0, "desired_horizon": 9.0} and first.version == (2, 7)
    np.testing.assert_array_equal(still.seen[0]["desired_return"], [5.0] * 3)
    assert still.seen[1]["desired_horizon"][0] == 8.0
    assert (first.actions[""] == 1).all()


def test_episodes_that_break_are_told_and_replaced(tmp_path):
    made, problems = record([recording("toy-broken", episodes=20)], tmp_path / "set", "")
    assert made.episodes == 20 and problems and "the simulator stopped answering" in problems[0]


def test_a_task_that_never_ends_well_leaves_nothing(tmp_path):
    with pytest.raises(RunFailed, match="no episode of toy-nan could be played to its end in 3 rounds"):
        record([recording("toy-nan", episodes=4)], tmp_path / "set", "")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bigdm_ray.training.recording.rollout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record([recording(episodes=4)], tmp_path / "set", "")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_anything_is_played(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists already"):
        record([recording(episodes=4)], tmp_path / "set", "")
