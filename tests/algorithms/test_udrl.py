"""Upside-Down RL against its paper: commands, Algorithm 1's counts, the gate, trailing segments,
and obedience on a toy."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import episode, ids, played, small, stored

from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.envs import find_task
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Store, Table, View
from bigdm_ray.training.config import Machines, configure
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.streams import rng

DISCRETE = {"": Leaf("discrete", (), "int32", choices=(3,))}
VECTOR = Signature({"": Leaf("tensor", (3,), "float32")}, DISCRETE)
IMAGE = Signature({"": Leaf("image", (2, 9, 6), "uint8")}, DISCRETE)


def table(*rows):
    """A table of (return, length), ids ascending."""
    n = len(rows)
    returns, lengths = zip(*rows, strict=True)
    return Table(
        np.stack([np.arange(n), np.zeros(n, int), np.zeros(n, int)], 1),
        np.array(returns, float),
        np.array(lengths),
        np.zeros(n),
    )


def model_of(algorithm, signature, seed=0):
    torch.manual_seed(seed)
    return algorithm.build({"made-up": signature}).eval()


# --- commands


def test_a_command_is_what_is_left_to_get_and_the_steps_left_to_get_it():
    """Algorithm 2: subtract, cap at what the task pays, and never fewer than one step."""
    policy = small(Udrl).policy(model_of(small(Udrl), VECTOR), "sample")
    before = {
        "desired_return": np.array([10, 10, 319, -5], np.float32),
        "desired_horizon": np.array([7, 1, 2, 1.5], np.float32),
    }
    copies = {name: values.copy() for name, values in before.items()}
    rewards = np.array([3, 0, -50, -1], np.float32)
    after = policy.after(before, rewards, 320.0)
    assert after["desired_return"].tolist() == [7, 10, 320, -4]
    assert after["desired_horizon"].tolist() == [6, 1, 1, 1]
    assert policy.after(before, rewards, None)["desired_return"].tolist() == [7, 10, 369, -4]
    assert all(values.dtype == np.float32 for values in after.values())
    for name in before:
        np.testing.assert_array_equal(before[name], copies[name])
    assert policy.after({}, rewards, 1.0) == {}


def test_exploratory_commands_come_from_the_best_few():
    """The three best have returns 30, 20, 10 and lengths 6, 4, 8: M = 20, S = sqrt(200 / 3),
    horizon 6."""
    algorithm = small(Udrl, last_few=3)
    commands = algorithm.ask(
        table((5, 90), (30, 6), (-9, 50), (10, 8), (20, 4)), np.random.default_rng(0), 4000
    )
    spread = np.sqrt(200 / 3)
    desired = commands["desired_return"]
    assert desired.shape == (4000,) and desired.dtype == np.float32
    assert 20 <= desired.min() < 20.1 and 20 + spread - 0.1 < desired.max() <= 20 + spread
    assert np.mean(desired) == pytest.approx(20 + spread / 2, abs=0.2)
    assert (
        set(commands["desired_horizon"].tolist()) == {6.0}
        and commands["desired_horizon"].dtype == np.float32
    )
    again = algorithm.ask(
        table((5, 90), (30, 6), (-9, 50), (10, 8), (20, 4)), np.random.default_rng(0), 4000
    )
    np.testing.assert_array_equal(desired, again["desired_return"])


def test_evaluation_asks_for_the_lower_end():
    episodes = table((5, 90), (30, 6), (-9, 50), (10, 8), (20, 4))
    assert small(Udrl, last_few=3).evaluation_command(episodes) == {
        "desired_return": 20.0,
        "desired_horizon": 6.0,
    }
    assert small(Udrl, last_few=99).evaluation_command(episodes) == pytest.approx(
        {"desired_return": 56 / 5, "desired_horizon": 158 / 5}
    )


def test_of_two_equals_the_newer_is_among_the_best():
    assert small(Udrl, last_few=1).evaluation_command(table((7, 3), (7, 5))) == {
        "desired_return": 7.0,
        "desired_horizon": 5.0,
    }


def test_where_a_step_pays_one_the_horizon_is_the_return():
    algorithm = small(Udrl, last_few=2, horizon_equals_return=True)
    episodes = table((10, 3), (21, 5))
    commands = algorithm.ask(episodes, np.random.default_rng(0), 50)
    np.testing.assert_array_equal(commands["desired_horizon"], np.rint(commands["desired_return"]))
    assert algorithm.evaluation_command(episodes) == {
        "desired_return": 15.5,
        "desired_horizon": 16.0,
    }
    assert algorithm.evaluation_command(table((-4, 3)))["desired_horizon"] == 1.0


# --- what is kept and owed


def test_the_best_are_kept_and_a_length_cost_counts_steps(tmp_path):
    rows = {1: (10, 100), 2: (9, 20), 3: (8, 1), 4: (0, 1)}
    for cost, lives, command in (
        (0.0, [1, 2], (9.5, 60.0)),
        (0.05, [2, 3], (8.5, 10.5)),
        (1.0, [3, 4], (4.0, 1.0)),
    ):
        algorithm = small(Udrl, replay_size=2, length_cost=cost, last_few=2)
        store = Store(tmp_path / str(cost), algorithm.retention())
        for number, (total, length) in rows.items():
            store.add([episode(number, length, rewards=np.full(length, total / length))])
        assert [row[0] for row in ids(store.table)] == lives
        asked = algorithm.evaluation_command(store.table)
        assert (asked["desired_return"], asked["desired_horizon"]) == pytest.approx(
            command, rel=1e-5
        )


def algorithm_1(algorithm, iterations):
    """The order of Algorithm 1 as (episodes stored, learner steps taken by then in all)."""
    episodes, steps = algorithm.warm_up_episodes, 0
    for _ in range(iterations):
        steps += algorithm.n_updates_per_iter
        yield episodes, steps
        episodes += algorithm.episodes_per_iteration


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 200))
def test_learner_steps_are_owed_as_algorithm_1_takes_them(warm_up, per_iteration, updates):
    algorithm = small(
        Udrl,
        warm_up_episodes=warm_up,
        episodes_per_iteration=per_iteration,
        n_updates_per_iter=updates,
    )
    assert [algorithm.owed(0, episodes) for episodes, _ in algorithm_1(algorithm, 5)] == [
        steps for _, steps in algorithm_1(algorithm, 5)
    ]
    assert (
        algorithm.owed(0, warm_up - 1) == 0
        and algorithm.owed(0, warm_up + per_iteration - 1) == updates
    )
    assert (algorithm.warm_up(), algorithm.per_iteration(), algorithm.steps_per_call()) == (
        warm_up,
        per_iteration,
        updates,
    )


# --- the network


def test_the_command_multiplies_the_embedding_of_a_vector():
    """Section 3.2 written out: hidden(relu(W s) * sigmoid(U [scale_r d_r, scale_h d_h]))."""
    algorithm = small(Udrl, hidden=(8, 16, 4), return_scale=0.3, horizon_scale=0.7)
    model = model_of(algorithm, VECTOR)
    seen, desired, horizon = torch.randn(5, 3), torch.randn(5), torch.randn(5)
    gate = torch.sigmoid(
        torch.stack([0.3 * desired, 0.7 * horizon], 1) @ model.command.weight.T + model.command.bias
    )
    x = torch.relu(seen @ model.first.weight.T + model.first.bias) * gate
    layers = [layer for layer in model.hidden if isinstance(layer, torch.nn.Linear)]
    assert [layer.weight.shape for layer in layers] == [(16, 8), (4, 16)]
    for layer in layers:
        x = torch.relu(x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(
        model({"": seen}, desired, horizon), x @ model.head.linear.weight.T + model.head.linear.bias
    )
    changed = model({"": seen}, desired + 1, horizon), model({"": seen}, desired, horizon + 1)
    assert all(
        (other - model({"": seen}, desired, horizon)).abs().max() > 1e-3 for other in changed
    ), "both halves of the command are heard"


@pytest.mark.parametrize("signature", [VECTOR, IMAGE], ids=["vector", "image"])
def test_where_the_embedding_is_zero_no_command_is_heard(signature):
    """A gate multiplies; a command that is added or joined on would still come through."""
    model = model_of(small(Udrl), signature)
    for name, parameter in model.named_parameters():
        if name.startswith(("first", "images")):
            torch.nn.init.zeros_(parameter)
    seen = {"": torch.ones(2, *signature.observations[""].shape)}
    one, other = (model(seen, torch.tensor([d, -d]), torch.tensor([3 * d, d])) for d in (0.0, 50.0))
    assert torch.equal(one, other)


def test_pictures_are_gated_after_the_convolutions():
    algorithm = small(Udrl, hidden=(8,), channels=(3, 5), frame_stack=2)
    model = model_of(algorithm, IMAGE)
    seen = torch.randint(256, (4, 4, 9, 6), dtype=torch.uint8)
    (layers,) = model.images.stacks
    features = layers(seen.float() / 255).reshape(4, -1)
    assert features.shape[1] == model.command.out_features == 5 * 3 * 2 and model.first is None
    gate = torch.sigmoid(
        model.command(
            torch.stack([torch.full((4,), 2.0), torch.full((4,), 3.0)], 1)
            * torch.tensor([0.1, 0.1])
        )
    )
    expected = model.head(model.hidden(features * gate))
    torch.testing.assert_close(
        model({"": seen}, torch.full((4,), 2.0), torch.full((4,), 3.0)), expected
    )


def test_the_loss_is_the_negative_log_likelihood_under_the_commands_that_were_fulfilled(tmp_path):
    algorithm = small(Udrl, batch_size=40)
    assert algorithm.view() == View(columns=("returns_to_go", "steps_remaining"))
    store = Store(tmp_path)
    episodes = [
        episode((0, 0, k), 3 + k, actions={"": np.arange(3 + k, dtype=np.int32) % 3})
        for k in range(4)
    ]
    store.add(episodes)
    model = model_of(algorithm, VECTOR)
    windows = store.draw(algorithm.view(), np.random.default_rng(1), 40)
    loss = algorithm.loss(
        model,
        {name: torch.from_numpy(v) for name, v in algorithm.collate({"made-up": windows}).items()},
        0,
    )
    positions, steps = algorithm.view().rows(store.table, np.random.default_rng(1), 40)
    total = 0.0
    for position, t in zip(positions, steps, strict=True):
        e = episodes[position]
        command = torch.tensor([e.rewards[t:].sum()]), torch.tensor([float(e.length - t)])
        logits = model({"": torch.from_numpy(e.observations[""][[t]])}, *command)[0]
        total -= torch.log_softmax(logits, -1)[e.actions[""][t]].item()
    assert loss.sum.item() == pytest.approx(total, rel=1e-4) == loss.metrics["train/loss"].item()
    assert loss.weight.item() == 40


def test_it_has_no_planner():
    with pytest.raises(UserError, match="no planner"):
        small(Udrl).policy(model_of(small(Udrl), VECTOR), "plan")


# --- frames


@pytest.mark.parametrize("stack", [1, 2, 5])
def test_the_policy_stacks_frames_as_the_windows_do(tmp_path, stack):
    """One episode is drawn and acted through: the network is shown the same pictures in both."""
    algorithm = small(Udrl, frame_stack=stack, batch_size=400)
    store = stored(tmp_path, "toy-mixed", 2)
    model = model_of(algorithm, find_task("toy-mixed").signature())
    windows = store.draw(algorithm.view(), np.random.default_rng(0), 400)
    e = store.episode(1)
    drawn = {}
    positions, _ = algorithm.view().rows(store.table, np.random.default_rng(0), 400)
    for row in np.flatnonzero(positions == 1):
        drawn[int(windows.timesteps[row, 0])] = windows.observations["eye"][row, 0]
    assert set(drawn) == set(range(e.length))

    shown = []
    forward = type(model).forward

    class Spy(type(model)):
        def forward(self, observations, *command):
            shown.append(observations["eye"].numpy().copy())
            return forward(self, observations, *command)

    model.__class__ = Spy
    policy = algorithm.policy(model, "mean")
    state = policy.start(2)
    ones = np.ones(2, np.float32)
    # row 0 has another past of three frames, then begins anew; row 1 never sees the episode's first
    for t in range(-3, e.length):
        at = max(t, 0)
        seen = {path: np.stack([values[at], values[-1]]) for path, values in e.observations.items()}
        first = np.array([t in (-3, 0), t == -3])
        _, state = policy.act(
            state,
            seen,
            ones,
            {"desired_return": ones, "desired_horizon": ones},
            first,
            np.zeros((2, policy.uniforms), np.float32),
        )
    for t in range(e.length):
        np.testing.assert_array_equal(shown[3 + t][0], drawn[t])
    assert drawn[0].shape == (3 * stack, 32, 32)


# --- obedience


def test_a_trained_network_does_what_it_is_told(tmp_path):
    """toy-vector, last step: told to get 1 it copies what it sees, told to get 0 it does anything
    else."""
    algorithm = small(Udrl, return_scale=1.0, horizon_scale=1.0, learning_rate=1e-2, batch_size=256)
    learner = Learner(algorithm, {"toy-vector": find_task("toy-vector").signature()}, 1)
    learner.update({"toy-vector": stored(tmp_path, "toy-vector", 300)}, 500)
    policy = algorithm.policy(learner.model.eval(), "sample")
    n = 300
    shown = rng(0, "shown").integers(0, 3, n)
    share = {}
    for desired in (0, 1):
        given = {
            "desired_return": np.full(n, desired, np.float32),
            "desired_horizon": np.ones(n, np.float32),
        }
        uniforms = rng(0, "uniforms").random((n, 1), np.float32)
        actions, _ = policy.act(
            {},
            {"": np.eye(3, dtype=np.float32)[shown]},
            np.zeros(n, np.float32),
            given,
            np.ones(n, bool),
            uniforms,
        )
        share[desired] = (actions[""] == shown).mean()
    assert share[1] > 0.85 and share[0] < 0.1


def test_a_policy_plays_its_commands_in_a_rollout():
    """From command to stored episode: the command that was given is the command that is kept."""
    algorithm = small(Udrl)
    model = model_of(algorithm, find_task("toy-vector").signature())
    commands = {
        "desired_return": np.arange(9, dtype=np.float32),
        "desired_horizon": np.full(9, 10, np.float32),
    }
    episodes = played(
        "toy-vector", 9, policy=algorithm.policy(model, "sample"), commands=commands, environments=4
    ).episodes
    assert [e.command for e in episodes] == [
        {"desired_return": float(k), "desired_horizon": 10.0} for k in range(9)
    ]


def test_rollouts_of_lunarlander_may_lag_by_three_iterations():
    run = configure("udrl", "lunarlander", [])
    assert run.machines.max_staleness == 3 * run.algorithm.n_updates_per_iter
    assert (
        configure("udrl", "lunarlander", ["--machines.max-staleness", "7"]).machines.max_staleness
        == 7
    )
    assert (
        configure("udrl", "lunarlander", ["--preset", "paper"]).machines.max_staleness
        == Machines().max_staleness
    )


# --- observations that are not near 1


def test_tasks_without_a_tuned_preset_standardise_and_the_others_are_as_they_were():
    for task in ("toy-vector", "cartpole", "gymnasium:Acrobot-v1", "hopper"):
        assert configure("udrl", task).algorithm.standardise
    for task in ("lunarlander", "lunarlander-sparse", "lunarlander-continuous", "takecover"):
        for preset in ("default", "paper") if task != "lunarlander-continuous" else ("default",):
            assert not configure("udrl", task, ["--preset", preset]).algorithm.standardise
    assert not Udrl().standardise, "what a run.json from before it means"
    plain, more = (
        model_of(small(Udrl, standardise=on), VECTOR).state_dict() for on in (False, True)
    )
    assert set(more) - set(plain) == {"standardise.mean", "standardise.std"}
    assert all(torch.equal(plain[name], more[name]) for name in plain)
    assert model_of(small(Udrl, standardise=True), IMAGE).standardise is None


def test_what_is_standardised_are_the_numbers_by_the_episodes_before_learning(tmp_path):
    store = stored(tmp_path, "toy-mixed", 12)
    algorithm = small(Udrl, standardise=True)
    learner = Learner(algorithm, {"toy-mixed": find_task("toy-mixed").signature()}, 1)
    learner.update({"toy-mixed": store}, 1)
    vector, scale = learner.model.vector, learner.model.standardise
    where, at = {}, 0
    for path, leaf in vector.leaves.items():
        where[path] = slice(at, at := at + vector.width_of(leaf))
    assert list(where) == ["body/joints", "body/mode", "flags", "mission"]
    joints = np.concatenate(
        [e.observations["body/joints"][:-1] for e in map(store.episode, range(12))]
    )
    np.testing.assert_allclose(scale.mean[where["body/joints"]], joints.mean(0), atol=1e-5)
    np.testing.assert_allclose(scale.std[where["body/joints"]][:2], joints.std(0)[:2], rtol=1e-5)
    assert joints.std(0)[2] == 0 and scale.std[where["body/joints"]][2] == 1, "it never changed"
    for path in ("body/mode", "flags", "mission"):
        assert (scale.mean[where[path]] == 0).all() and (scale.std[where[path]] == 1).all()
    before = scale.mean.clone()
    store.add(played("toy-mixed", 3, seed=5).episodes)
    learner.update({"toy-mixed": store}, 3)
    assert torch.equal(before, scale.mean), "taken once"


@pytest.mark.parametrize(("low", "high"), [(0, 3400), (1000, 1003)])
def test_it_learns_from_observations_far_from_1(low, high, tmp_path):
    """Asked for 1, it copies what it is shown, if that is standardised; else it cannot tell."""
    chance, store = np.random.default_rng(0), Store(tmp_path)

    def shown(targets):
        element = low + targets * (high - low) / 2
        return np.stack([element, np.full(len(targets), low)], 1).astype(np.float32)

    episodes = []
    for number in range(300):
        target, action = chance.integers(0, 3, 2), chance.integers(0, 3, 1, np.int32)
        made = episode((0, 0, number), 1, rewards=np.float32(target[:1] == action))
        leaves = {"observations": {"": shown(target)}, "actions": {"": action}}
        episodes.append(dataclasses.replace(made, **leaves))
    store.add(episodes)
    signature = Signature({"": Leaf("tensor", (2,), "float32")}, DISCRETE)
    asked = {name: np.ones(300, np.float32) for name in ("desired_return", "desired_horizon")}
    targets, right = np.arange(300) % 3, {}
    for on in (True, False):
        algorithm = small(
            Udrl, standardise=on, return_scale=1.0, horizon_scale=1.0, learning_rate=1e-2
        )
        learner = Learner(algorithm, {"made-up": signature}, 1)
        learner.update({"made-up": store}, 200)
        policy = algorithm.policy(learner.model.eval(), "mean")
        nothing = np.zeros((300, 1), np.float32)
        acted, _ = policy.act(
            {}, {"": shown(targets)}, nothing[:, 0], asked, np.ones(300, bool), nothing
        )
        right[on] = float((acted[""] == targets).mean())
    assert right[True] > 0.9 and right[False] < 0.7, right
