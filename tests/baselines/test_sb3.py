"""A2C, DQN and PPO of Stable-Baselines3: our run folder, their training, the same actions, of
vectors and of pictures."""

import os
import re
import signal
import sys

import numpy as np
import pytest
import torch
from external import FEW, built, context, evaluated, reports, trained, whole
from making import same_arrays

from bigdm_ray.baselines import sb3
from bigdm_ray.baselines.actor import FrameView
from bigdm_ray.baselines.sb3 import Sb3A2c, Sb3Dqn, Sb3Ppo
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError, install
from bigdm_ray.run import main as run
from bigdm_ray.training.external import ExternalExecutor

SIGHT = {"frame_stack": 2, "shrink": 2, "channels": (4,), "features": 16}
SMALL = {
    "a2c": Sb3A2c(hidden=(16, 16), environments=3, **SIGHT),
    "dqn": Sb3Dqn(
        hidden=(16, 16), learning_starts=20, buffer_size=150, exploration_steps=100, **SIGHT
    ),
    "sb3-ppo": Sb3Ppo(hidden=(), environments=3, n_steps=20, batch_size=30, epochs=2, **SIGHT),
}
NAMES = list(SMALL)
CASES = [
    ("a2c", "toy-vector"),
    ("a2c", "toy-continuous"),
    ("dqn", "toy-vector"),
    ("a2c", "lunarlander"),
    ("dqn", "lunarlander"),
]
CASES += [
    ("sb3-ppo", "toy-vector"),
    ("sb3-ppo", "toy-continuous"),
    *((name, "toy-image") for name in NAMES),
]


def trainer_of(name, task, steps=0, seed=1):
    made = SMALL[name].trainer(context(task, seed))
    if steps:
        made.step(steps)
    return made


@pytest.mark.parametrize(("name", "task"), CASES)
def test_our_network_does_what_the_librarys_does(name, task):
    trainer = trainer_of(name, task, 300)
    model, policy = built(SMALL[name], task, trainer), trainer._learner.policy
    path, seen, action_path, action = sb3.plain_leaves(
        find_task(task).signature(), name, pictures=True
    )
    chance = np.random.default_rng(0)
    if task == "toy-image":
        frames = chance.integers(0, 256, (64, *seen.shape)).astype(np.uint8)
        # two alike: the first is all that was seen
        observations = np.repeat(frames.reshape(64, 1, 16, 2, 16, 2).max((3, 5)), 2, axis=1)
    else:
        frames = observations = chance.normal(size=(64, seen.size)).astype(np.float32)
    tensor = torch.from_numpy(observations)
    with torch.no_grad():
        ours = model(tensor)
        if name == "dqn":
            theirs = policy.q_net(tensor)
        else:
            inner = policy.get_distribution(tensor).distribution
            theirs = (
                inner.logits
                if action.kind == "discrete"
                else torch.cat([inner.mean, inner.stddev.log()], -1)
            )
            ours = torch.log_softmax(ours, -1) if action.kind == "discrete" else ours
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    expected, _ = trainer._learner.predict(observations, deterministic=True)
    acting = SMALL[name].policy(model, "mean")
    done, _ = acting.act(
        acting.start(64),
        {path: frames},
        np.zeros(64),
        {},
        np.ones(64, bool),
        np.zeros((64, 9), np.float32),
    )
    np.testing.assert_allclose(done[action_path], expected, atol=1e-5)
    trainer.close()


def test_a_gaussian_is_sampled_with_its_own_deviation():
    trainer = trainer_of("a2c", "toy-continuous", 300)
    trainer._learner.policy.log_std.data[:] = torch.tensor([-3.0, -2.0])
    policy = SMALL["a2c"].policy(built(SMALL["a2c"], "toy-continuous", trainer), "sample")
    chance = np.random.default_rng(0).random((4000, policy.uniforms), np.float32)
    done, _ = policy.act(
        {}, {"": np.zeros((4000, 3), np.float32)}, np.zeros(4000), {}, np.ones(4000, bool), chance
    )
    np.testing.assert_allclose(done[""].std(0), np.exp([-3.0, -2.0]), rtol=0.05)
    trainer.close()


def test_values_are_acted_on_with_the_last_share_of_random_actions():
    trainer = trainer_of("dqn", "toy-vector")
    algorithm = Sb3Dqn(hidden=(16, 16), exploration_final=0.3)
    policy = algorithm.policy(built(algorithm, "toy-vector", trainer), "sample")
    chance = np.random.default_rng(0).random((4000, policy.uniforms), np.float32)
    done, _ = policy.act(
        {}, {"": np.ones((4000, 3), np.float32)}, np.zeros(4000), {}, np.ones(4000, bool), chance
    )
    shares = np.sort(np.bincount(done[""], minlength=3) / 4000)
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.8], atol=0.02)
    trainer.close()


def test_its_environments_keep_the_two_ends_of_an_episode_apart():
    task, ended = find_task("toy-vector"), []
    rows, env = sb3.make_vector_env(task.make(2, 5), SMALL["a2c"], ended), task.make(2, 5)
    seen = [rows.reset()]
    env.reset(np.arange(2))
    both = set()
    totals = np.zeros(2)
    for t in range(60):
        actions = np.full(2, t % 3)
        observations, rewards, done, infos = rows.step(actions)
        step = env.step(np.arange(2), {"": actions.astype(np.int32)})
        np.testing.assert_array_equal(rewards, step.rewards)
        np.testing.assert_array_equal(done, step.terminated | step.truncated)
        totals += rewards
        for k in range(2):
            if done[k]:
                np.testing.assert_array_equal(
                    infos[k]["terminal_observation"], step.observations[""][k]
                )
                assert infos[k]["TimeLimit.truncated"] == (not step.terminated[k])
                both.add(bool(step.terminated[k]))
                begun = env.reset(np.array([k])).observations[""][0]
                np.testing.assert_array_equal(observations[k], begun)
            else:
                np.testing.assert_array_equal(observations[k], step.observations[""][k])
                assert not infos[k]
        seen.append(observations)
    assert both == {True, False}
    assert len(ended) >= 8 and all(8 <= length <= 12 for _, length in ended)
    assert sum(total for total, _ in ended) == pytest.approx(totals.sum(), abs=12.0)
    rows.close()


def test_the_library_is_shown_the_stacks_that_the_policy_sees(monkeypatch):
    """A policy that acts in the same rows with its own memory sees the same pictures, over the ends
    of episodes too."""
    task, algorithm, ended = find_task("toy-image"), SMALL["sb3-ppo"], []
    rows, env = sb3.make_vector_env(task.make(3, 5), algorithm, ended), task.make(3, 5)
    policy = algorithm.policy(algorithm.build({task.name: task.signature()}), "mean")
    told = []
    monkeypatch.setattr(
        policy,
        "_choose",
        lambda seen, chance: (
            told.append(seen[""].numpy()) or {"": torch.zeros(len(seen[""]), dtype=torch.int32)}
        ),
    )
    everyone, none = np.arange(3), np.zeros(3, np.float32)
    observed, shown = env.reset(everyone).observations, rows.reset()
    first, state, lasts = np.ones(3, bool), policy.start(3), 0
    for t in range(40):
        _, state = policy.act(
            state, observed, none, {}, first, np.zeros((3, policy.uniforms), np.float32)
        )
        np.testing.assert_array_equal(told[-1], shown)
        assert shown.shape == (3, 2, 16, 16) and shown.dtype == np.uint8
        actions = np.full(3, t % 3)
        shown, _, done, infos = rows.step(actions)
        step = env.step(everyone, {"": actions.astype(np.int32)})
        observed, first = step.observations, done
        for k in np.flatnonzero(done):
            frame = algorithm.frame_view.shrink_frames(step.observations[""][k : k + 1])[0, 0]
            np.testing.assert_array_equal(
                infos[k]["terminal_observation"], [state["frames"][k, -1, 0], frame]
            )
            observed[""][k] = env.reset(np.array([k])).observations[""][0]
            lasts += 1
    assert lasts > 6
    rows.close()


def test_pictures_are_shrunk_to_the_brightest_and_a_first_frame_fills_the_stack():
    frame_view = FrameView(3, 2, (4,), 8)
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 6)).astype(np.uint8)
    small = frame_view.shrink_frames(frames)
    np.testing.assert_array_equal(small[:, 0], frames.reshape(2, 2, 2, 3, 2).max((2, 4)))
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(FrameView(1, 1, (4,), 8).shrink_frames(frames), frames)
    before = np.arange(2 * 3 * 6, dtype=np.uint8).reshape(2, 3, 1, 2, 3)
    after = frame_view.push(before, frames, np.array([True, False]))
    np.testing.assert_array_equal(after[0], np.repeat(small[:1], 3, 0))
    np.testing.assert_array_equal(after[1], [before[1, 1], before[1, 2], small[1]])


def test_rewards_are_clipped_in_training_and_returns_are_not():
    ended = []
    rows = sb3.make_vector_env(
        find_task("lunarlander").make(2, 5), Sb3Dqn(clip_rewards=True), ended
    )
    rows.reset()
    seen = {float(reward) for _ in range(150) for reward in rows.step(np.zeros(2, np.int64))[1]}
    assert seen <= {-1.0, 0.0, 1.0} and ended and all(total != int(total) for total, _ in ended)
    rows.close()


def test_ppo_counts_minibatches_as_learner_steps():
    trainer = trainer_of("sb3-ppo", "toy-image")
    turn = trainer.step(100)
    # two bouts of two passes over two minibatches
    assert (turn.env_steps, turn.learner_steps) == (
        120,
        2 * 2 * 2,
    )
    trainer.close()


@pytest.mark.parametrize(
    ("name", "task"),
    [("a2c", "toy-vector"), ("dqn", "toy-vector"), ("dqn", "toy-image"), ("sb3-ppo", "toy-image")],
)
def test_a_saved_state_is_all_of_it(name, task):
    one, other = trainer_of(name, task, 260), trainer_of(name, task, seed=2)
    state = one.state()
    copies = {path: values.copy() for path, values in state.items()}
    other.restore(state)
    same_arrays(other.state(), state)
    assert other._learner.num_timesteps == one._learner.num_timesteps >= 260
    for path, values in one._learner.policy.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(
                other._learner.policy.optimizer.state_dict()["state"][path][key], value
            )
    if name == "dqn":
        assert (
            one._learner.replay_buffer.full
            and other._learner.replay_buffer.pos == one._learner.replay_buffer.pos
        )
        assert (
            other._learner.exploration_rate == one._learner.exploration_rate == pytest.approx(0.05)
        )
    turn = other.step(120)
    assert turn.env_steps >= 120 and turn.learner_steps > 0 and turn.returns
    same_arrays(
        {path: values for path, values in state.items() if path.startswith("policy/")},
        {p: v for p, v in copies.items() if p.startswith("policy/")},
    )
    one.close()
    other.close()


def test_rates_that_fall_do_so_over_the_whole_run():
    trainer = Sb3A2c(environments=2, decay=True, learning_rate=1e-3).trainer(
        context("toy-vector", budget=400)
    )
    rates = [trainer.step(100).metrics["train/learning_rate"] for _ in range(4)]
    np.testing.assert_allclose(
        rates, [1e-3 * (1 - share) for share in (0.25, 0.5, 0.75, 1.0)], atol=3e-5
    )
    trainer.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a2c toy-vector --algorithm.learning-rate 3e-3", 12_000),
        ("dqn toy-vector --algorithm.learning-rate 1e-3", 4_000),
        (
            (
                "sb3-ppo toy-image --algorithm.learning-rate 2e-3 --algorithm.n-steps 32"
                " --algorithm.epochs 4 --algorithm.shrink 2 --algorithm.hidden ,"
            ),
            6_000,
        ),
    ],
)
def test_it_learns_and_leaves_an_ordinary_run_folder(text, steps, tmp_path):
    more = (
        f"--budget.env-steps {steps} --evaluations.every {steps // 2} --saves.every {steps // 2}"
        f" --saves.report-every {steps // 4}".split()
    )
    if text.startswith("dqn"):
        more += [
            "--algorithm.exploration-steps",
            "1000",
            "--algorithm.target-update-interval",
            "100",
            "--algorithm.gamma",
            "0.5",
        ]
    summary = trained(tmp_path / "run", text, *more)
    assert summary["return_mean"] > 7 and summary["mode"] == "mean"  # random: 3.3, best: 10
    loaded = whole(tmp_path / "run", text.split()[0], steps)
    assert [report for report in reports(tmp_path / "run") if "evaluation/return_mean" in report]
    assert loaded.summary["episodes"] > 100


@pytest.mark.parametrize(
    ("name", "task"), [("a2c", "toy-vector"), ("dqn", "toy-vector"), ("sb3-ppo", "toy-image")]
)
@pytest.mark.slow
def test_a_run_is_taken_up_again(name, task, tmp_path):
    small = [
        "--algorithm.hidden",
        "16,16",
        "--saves.report-every",
        "100",
        "--saves.every",
        "200",
        "--evaluations.every",
        "200",
    ]
    small += (
        ["--algorithm.n-steps", "10", "--algorithm.batch-size", "40"] if name == "sb3-ppo" else []
    )
    first = trained(tmp_path / "run", f"{name} {task} --local --budget.env-steps 400", *small)
    second = trained(
        tmp_path / "run", f"{name} {task} --local --resume --budget.env-steps 800", *small
    )
    assert second["env_steps"] >= 800 and second["incarnation"] == 1
    assert (
        second["learner_steps"] > first["learner_steps"] and second["episodes"] > first["episodes"]
    )
    counted = [
        report["time/env_steps"] for report in reports(tmp_path / "run") if "time/wall_s" in report
    ]
    assert counted == sorted(counted) and counted[0] <= 160
    # nothing is left to do
    again = trained(
        tmp_path / "run", f"{name} {task} --local --resume --budget.env-steps 800", *small
    )
    assert again["env_steps"] == second["env_steps"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a2c toy-vector --learners 2", "on one learner, but --learners is 2"),
        ("dqn toy-vector --actors 3", "in one process, but --actors is 3"),
        ("dqn toy-continuous", "dqn acts with one discrete choice, but this task takes"),
        ("a2c toy-mixed", "one vector of numbers or one picture, but this task shows"),
        ("dqn toy-image --algorithm.shrink 3", "a divisor of both"),
        (
            "a2c toy-image --algorithm.channels 4,4,4,4",
            "32x32 pixels are too small for the 4 convolutions",
        ),
        ("sb3-ppo toy-vector --algorithm.batch-size 100", "a divisor of the 2,048 steps of a bout"),
        ("dqn toy-vector --evaluations.mode plan", "dqn has no planner"),
    ],
)
def test_what_it_cannot_do_is_said_before_a_folder_is_made(text, told, tmp_path):
    with pytest.raises(UserError, match=told):
        run([*text.split(), "--quiet", "--folder", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_told_to_stop_saves_where_its_turn_ends(tmp_path, capsys, monkeypatch):
    folder, turn = tmp_path / "run", ExternalExecutor.turn

    def struck(executor, session):
        os.kill(os.getpid(), signal.SIGTERM)
        turn(executor, session)

    monkeypatch.setattr(ExternalExecutor, "turn", struck)
    words = ["a2c", "toy-vector", "--env-steps", "3000", *FEW, "--folder", str(folder)]
    assert door(run, words) == 143
    monkeypatch.undo()
    told = capsys.readouterr().err
    found = re.search(r"goes on from the last checkpoint, at environment step ([\d,]+)", told)
    assert found is not None
    assert door(run, [*words, "--resume"]) == 0
    lines = reports(folder)
    at = int(found[1].replace(",", ""))
    assert 0 < at < 3000 <= lines[-1]["time/env_steps"]
    assert min(line["time/env_steps"] for line in lines) > at, "what was played is not played again"


def test_without_the_library_a_run_is_scored_but_not_trained(tmp_path, monkeypatch):
    trained(tmp_path / "run", "dqn toy-vector --budget.env-steps 200")
    for module in [name for name in sys.modules if name.split(".")[0] == "stable_baselines3"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert len(evaluated(tmp_path / "run")["returns"]) == 4
    with pytest.raises(UserError, match=re.escape(install("baselines"))):
        run(["dqn", "toy-vector", "--quiet", "--folder", str(tmp_path / "other")])
