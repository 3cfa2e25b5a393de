"""Decision Transformer: what its tokens are, what it may see, and that acting is training's forward
pass."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from making import dataset_of, played

from bigdm_ray import weights
from bigdm_ray.algorithms.dt import Dt
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.evaluate import main
from bigdm_ray.formats.writer import Writer
from bigdm_ray.models.continuous import SquashedHead, squashed_log_prob
from bigdm_ray.models.lamb import Lamb
from bigdm_ray.replay import Store
from bigdm_ray.replay.store import Table
from bigdm_ray.training.config import configure
from bigdm_ray.training.loop import train_local

TINY = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "context": 4,
    "timesteps": 12,
    "dropout": 0.0,
    "warm_up_steps": 0,
    "return_scale": 0.1,
}
VARIANTS = {
    "gym": {},
    "atari": {"positions": "window"},
    "odt": {"positions": "none", "stochastic": True},
    "newest": {"returns": "newest"},
    "newest, atari": {"returns": "newest", "positions": "window"},
}


def built(task="toy-continuous", **more):
    torch.manual_seed(0)
    algorithm = Dt(**(TINY | more))
    model = algorithm.build({task: find_task(task).signature()}).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.5)
    return algorithm, model


def window_of(episode, start, length, returns):
    """Steps `start` to `start + length` of an episode as a batch of one, unpadded."""
    span = slice(start, start + length)
    seen = {p: torch.from_numpy(np.array(v[span]))[None] for p, v in episode.observations.items()}
    actions = {p: torch.from_numpy(np.array(v[span]))[None] for p, v in episode.actions.items()}
    return (
        seen,
        actions,
        torch.from_numpy(returns[span])[None],
        torch.arange(start, start + length)[None],
    )


def acted(policy, episode, commands):
    """Play an episode's observations to a policy that repeats the episode's own actions; its
    parameters at each step."""
    state, noted = policy.start(1), []
    head = policy.model.head
    made = head.act
    for t in range(episode.length):
        own = {p: torch.from_numpy(np.array(v[t : t + 1])) for p, v in episode.actions.items()}
        head.act = lambda parameters, _, own=own: (noted.append(parameters), own)[1]
        seen = {p: np.array(v[t : t + 1]) for p, v in episode.observations.items()}
        _, state = policy.act(
            state,
            seen,
            np.zeros(1, np.float32),
            {"desired_return": commands[t : t + 1]},
            np.array([t == 0]),
            np.full((1, policy.uniforms), 0.5, np.float32),
        )
    head.act = made
    return noted


@pytest.mark.parametrize("variant", VARIANTS)
def test_acting_is_the_forward_pass_over_the_last_steps(variant):
    algorithm, model = built(**VARIANTS[variant])
    (episode,) = played("toy-continuous", 1, 3).episodes
    returns = np.linspace(5, 1, episode.length).astype(np.float32)
    with torch.no_grad():
        for t, parameters in enumerate(acted(algorithm.policy(model, "sample"), episode, returns)):
            start = max(0, t - algorithm.context + 1)
            whole = model(*window_of(episode, start, t + 1 - start, returns))
            torch.testing.assert_close(parameters, whole[:, -1], atol=1e-5, rtol=1e-5)


def test_the_cached_policy_is_exact_until_the_window_slides_and_close_to_nothing_it_never_saw():
    algorithm, model = built(context=5)
    (episode,) = played("toy-continuous", 1, 3).episodes
    assert episode.length > 7
    returns = np.linspace(5, 1, episode.length).astype(np.float32)
    exact = acted(algorithm.policy(model, "sample"), episode, returns)
    cached = acted(
        Dt(**(TINY | {"context": 5, "cached": True})).policy(model, "sample"), episode, returns
    )
    for t in range(5):
        torch.testing.assert_close(exact[t], cached[t], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(exact[6], cached[6], atol=1e-5)
    assert all(bool(p.isfinite().all()) for p in cached)


@pytest.mark.parametrize("told", ["each", "newest"])
def test_with_one_layer_the_cached_policy_is_exact_for_ever(told):
    """Keys and values of the first layer depend on their own token alone, so only the ring can be
    wrong."""
    one = {"layers": 1, "returns": told}
    algorithm, model = built(**one)
    (episode,) = played("toy-continuous", 1, 3).episodes
    returns = np.linspace(5, 1, episode.length).astype(np.float32)
    exact = acted(algorithm.policy(model, "sample"), episode, returns)
    cached = acted(Dt(**(TINY | one | {"cached": True})).policy(model, "sample"), episode, returns)
    torch.testing.assert_close(torch.cat(exact), torch.cat(cached), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prediction_sees_its_state_and_return_but_not_its_action(variant):
    _, model = built(**VARIANTS[variant])
    (episode,) = played("toy-continuous", 1, 3).episodes
    seen, actions, returns, times = window_of(
        episode, 0, 4, np.linspace(5, 1, episode.length).astype(np.float32)
    )
    base = model(seen, actions, returns, times)

    def changed(**more):
        given = {"seen": seen, "actions": actions, "returns": returns} | more
        out = model(given["seen"], given["actions"], given["returns"], times)
        return ((out - base).abs().amax(-1)[0] > 1e-6).tolist()

    at = torch.tensor([0.0, 0, 3, 0])
    assert changed(
        actions={p: v + at.view(1, 4, *([1] * (v.ndim - 2))) for p, v in actions.items()}
    ) == [False, False, False, True]
    assert changed(seen={p: v + at.view(1, 4, *([1] * (v.ndim - 2))) for p, v in seen.items()}) == [
        False,
        False,
        True,
        True,
    ]
    # without tokens for them a return counts at its own step alone
    assert changed(returns=returns + at) == [False, False, True, "newest" not in variant]


def test_without_tokens_for_returns_a_network_begins_as_a_clone():
    torch.manual_seed(0)
    algorithm = Dt(**(TINY | {"returns": "newest"}))
    model = algorithm.build({"toy-continuous": find_task("toy-continuous").signature()}).eval()
    (episode,) = played("toy-continuous", 1, 3).episodes
    seen, actions, returns, times = window_of(
        episode, 0, 4, np.linspace(5, 1, episode.length).astype(np.float32)
    )
    window = model.window(seen, actions, returns, times)
    assert window.shape == (1, 8, 16)  # two tokens a step
    torch.testing.assert_close(
        model.embed(seen, actions, returns + 9, times),
        model.transformer(window)[:, 0::2],
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("told", ["each", "newest"])
def test_a_scale_of_zero_hides_the_returns(told):
    _, model = built(return_scale=0.0, returns=told)
    (episode,) = played("toy-continuous", 1, 3).episodes
    seen, actions, returns, times = window_of(
        episode, 0, 4, np.linspace(5, 1, episode.length).astype(np.float32)
    )
    torch.testing.assert_close(
        model(seen, actions, returns + 100, times),
        model(seen, actions, returns, times),
        atol=0,
        rtol=0,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_weighs_nothing(variant, tmp_path):
    algorithm, model = built(**VARIANTS[variant], context=30)
    store = Store(tmp_path)
    store.add(played("toy-continuous", 3, 3).episodes)
    windows = store.draw(algorithm.view(), np.random.default_rng(0), 8)
    assert not windows.mask.all()
    batch = {
        name: torch.from_numpy(v)
        for name, v in algorithm.collate({"toy-continuous": windows}).items()
    }
    torch.manual_seed(0)
    loss = algorithm.loss(model, batch, 0)
    assert loss.weight == windows.mask.sum()
    for name, values in batch.items():
        if values.is_floating_point() and name != "mask":
            values[~batch["mask"]] = 0.7
    torch.manual_seed(0)
    torch.testing.assert_close(algorithm.loss(model, batch, 0).sum, loss.sum, rtol=1e-4, atol=1e-4)


def test_the_squared_error_is_the_mean_over_elements():
    algorithm, model = built()
    (episode,) = played("toy-continuous", 1, 3).episodes
    seen, actions, returns, times = window_of(episode, 0, 4, np.ones(episode.length, np.float32))
    batch = {f"observations/{p}": v for p, v in seen.items()} | {
        f"actions/{p}": v for p, v in actions.items()
    }
    loss = algorithm.loss(
        model,
        batch
        | {
            "returns_to_go": returns,
            "timesteps": times,
            "mask": torch.ones(1, 4, dtype=torch.bool),
        },
        0,
    )
    means = model.head.act(model(seen, actions, returns, times)[0], None)
    errors = []
    for path, leaf in model.head.leaves.items():
        half = (np.array(leaf.high) - np.array(leaf.low)) / 2
        errors.append(
            ((means[path] - actions[path][0]).detach().numpy().reshape(4, -1) / half) ** 2
        )
    np.testing.assert_allclose(
        float((loss.sum / loss.weight).detach()), np.concatenate(errors, 1).mean(), rtol=1e-4
    )


def test_delayed_rewards_are_the_episode_s_return_and_the_command_is_held(tmp_path):
    algorithm, model = built(delayed_reward=True)
    store = Store(tmp_path)
    store.add(played("toy-continuous", 3, 3).episodes)
    windows = store.draw(algorithm.view(), np.random.default_rng(0), 8)
    returns = windows.columns["episode_return"][windows.mask]
    assert all(np.isclose(store.table.returns, value, atol=1e-4).any() for value in returns)
    policy = algorithm.policy(model, "sample")
    command = {"desired_return": np.array([7.0], np.float32)}
    assert policy.after(command, np.array([3.0], np.float32), None) == command


def test_the_entropy_is_held_above_its_bound():
    """The temperature rises where the entropy is below minus the number of action elements, and
    falls where it is above."""
    algorithm, model = built(stochastic=True, positions="none")
    head = model.head
    assert isinstance(head, SquashedHead)
    for raw, sign in ((-9.0, -1), (0.0, 1)):  # deviations of e^-5, and of e^-1.5
        with torch.no_grad():
            head.log_std.weight.zero_()
            head.log_std.bias.fill_(raw)
        (episode,) = played("toy-continuous", 1, 3).episodes
        seen, actions, returns, times = window_of(
            episode, 0, 4, np.ones(episode.length, np.float32)
        )
        batch = {f"observations/{p}": v for p, v in seen.items()} | {
            f"actions/{p}": v for p, v in actions.items()
        }
        model.log_temperature.grad = None
        loss = algorithm.loss(
            model,
            batch
            | {
                "returns_to_go": returns,
                "timesteps": times,
                "mask": torch.ones(1, 4, dtype=torch.bool),
            },
            0,
        )
        loss.sum.backward()
        assert np.sign(float(model.log_temperature.grad)) == sign
    assert set(algorithm.optimizers(model)) == {"adamw", "temperature"}
    assert algorithm.learning_rate_factor(0, "temperature") == 1.0


def test_the_loss_of_the_stochastic_policy_is_the_likelihood_with_its_entropy_weighed():
    """Online Decision Transformer, equations 3 to 5, written out; the entropy's gradient reaches
    the policy, the temperature's the temperature alone."""
    algorithm, model = built(stochastic=True, positions="none", initial_temperature=0.7)
    (episode,) = played("toy-continuous", 1, 3).episodes
    seen, actions, returns, times = window_of(episode, 0, 4, np.ones(episode.length, np.float32))
    batch = {f"observations/{p}": v for p, v in seen.items()} | {
        f"actions/{p}": v for p, v in actions.items()
    }
    torch.manual_seed(5)
    loss = algorithm.loss(
        model,
        batch
        | {
            "returns_to_go": returns,
            "timesteps": times,
            "mask": torch.ones(1, 4, dtype=torch.bool),
        },
        0,
    )
    loss.sum.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(5)
    parameters = model(seen, actions, returns, times)
    likelihood, entropy = (
        model.head.log_prob(parameters, actions).sum(),
        model.head.entropy(parameters).sum(),
    )
    (-likelihood - 0.7 * entropy).backward()
    for name, value in got.items():
        if name != "log_temperature":
            torch.testing.assert_close(value, dict(model.named_parameters())[name].grad, msg=name)
    torch.testing.assert_close(
        got["log_temperature"], 0.7 * (entropy + model.head.acted * 4).detach()
    )


def test_windows_begin_at_any_step_or_at_the_first_where_they_hold_whole_episodes():
    assert Dt().view().weight == "length"
    door = configure("dt", "key-to-door").algorithm
    assert isinstance(door, Dt) and door.context == 120 and door.view().weight == "whole"


RESTARTING = [
    ("toy-image", {"positions": "window", "frame_stack": 3}),
    ("toy-continuous", {"positions": "window"}),
    ("toy-continuous", {"positions": "window", "acting_context": 2}),
    ("toy-continuous", {"cached": True}),
    ("toy-continuous", {"returns": "newest"}),
    ("toy-continuous", {"returns": "newest", "cached": True}),
    ("toy-image", {"frame_stack": 3, "cached": True}),
]


@pytest.mark.parametrize(("task", "more"), RESTARTING)
def test_rows_that_begin_at_different_times_act_as_if_alone(task, more):
    algorithm, model = built(task, **more)
    leaf = find_task(task).signature().observations[""]
    chance, steps = np.random.default_rng(0), 9
    first = np.zeros((steps, 3), bool)
    first[0] = first[2, 0] = first[5, 1] = True
    shape = (steps, 3, *leaf.shape)
    seen = (
        chance.integers(0, 255, shape).astype(np.uint8)
        if leaf.kind == "image"
        else chance.normal(size=shape).astype(np.float32)
    )
    asked, uniforms = (
        chance.uniform(0, 9, (steps, 3)).astype(np.float32),
        chance.random((steps, 3, 8)).astype(np.float32),
    )

    def parameters(rows):
        policy, noted = algorithm.policy(model, "sample"), []
        made = model.head.act
        model.head.act = lambda given, chances: (noted.append(given), made(given, chances))[1]
        state = policy.start(len(rows))
        for t in range(steps):
            command = {"desired_return": asked[t, rows]}
            _, state = policy.act(
                state,
                {"": seen[t, rows]},
                np.zeros(len(rows), np.float32),
                command,
                first[t, rows],
                uniforms[t, rows, : policy.uniforms],
            )
        model.head.act = made
        return torch.stack(noted)

    together = parameters([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[:, [row]], parameters([row]), atol=1e-3, rtol=1e-3)


def test_the_squashed_density_integrates_to_one():
    mean, log_std = torch.tensor([[0.3]]), torch.tensor([[-0.5]])
    a = torch.linspace(-0.9999, 0.9999, 20001)[:, None]
    density = squashed_log_prob(torch.atanh(a), mean, log_std).exp()
    assert abs(float(torch.trapezoid(density, a[:, 0])) - 1) < 1e-2


def test_actions_of_the_squashed_head_stay_between_their_bounds():
    head = SquashedHead("dt", 4, {"": Leaf("tensor", (2,), "float32", (-2.0, 0.0), (2.0, 1.0))})
    out = head.act(torch.randn(500, 4) * 10, torch.rand(500, 2))[""]
    assert bool((out >= torch.tensor([-2.0, 0.0])).all()) and bool(
        (out <= torch.tensor([2.0, 1.0])).all()
    )


def test_what_cannot_be_built_is_said():
    with pytest.raises(UserError, match="dt needs continuous actions"):
        built("toy-vector", stochastic=True)
    with pytest.raises(UserError, match=r"multiple of --algorithm\.heads 3"):
        built(heads=3)
    with pytest.raises(
        UserError,
        match=r"--algorithm\.acting-context is 100, but at most --algorithm\.context, which is 20",
    ):
        Dt(acting_context=100).build({"toy-continuous": find_task("toy-continuous").signature()})
    algorithm, model = built(positions="window", cached=True)
    with pytest.raises(UserError, match=r"--algorithm\.cached"):
        algorithm.policy(model, "sample")
    with pytest.raises(UserError, match=r"--algorithm\.target-return is nan"):
        configure("dt", "hopper", ["--algorithm.target-return", "nan"])


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_lamb_takes_steps_of_the_size_of_the_weights(size):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(10, 4) * size)
    before = p.detach().clone()
    optimizer = Lamb([p], lr=0.01, weight_decay=1e-4)
    for _ in range(2):
        p.grad = torch.randn_like(p) * 1e-3
        optimizer.step()
        np.testing.assert_allclose(
            float((p.detach() - before).norm() / before.norm()), 0.01, rtol=1e-4
        )
        before = p.detach().clone()


def test_lamb_without_decay_is_adam():
    torch.manual_seed(0)
    a, b = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    lamb, adam = Lamb([a], lr=0.01), torch.optim.Adam([b], lr=0.01)
    for _ in range(5):
        a.grad = torch.randn(7)
        b.grad = a.grad.clone()
        lamb.step()
        adam.step()
    torch.testing.assert_close(a, b)


def test_a_critic_predicts_the_return_that_it_is_not_told():
    algorithm, model = built(critic=True)
    (episode,) = played("toy-continuous", 1, 3).episodes
    seen, actions, returns, times = window_of(
        episode, 0, 4, np.linspace(5, 1, episode.length).astype(np.float32)
    )
    with torch.no_grad():
        predicted = model.criticise(model.embed(seen, actions, returns, times))
        torch.testing.assert_close(
            model.criticise(model.embed(seen, actions, returns + 100, times)),
            predicted,
            atol=0,
            rtol=0,
        )
        batch = {f"observations/{p}": v for p, v in seen.items()} | {
            f"actions/{p}": v for p, v in actions.items()
        }
        batch |= {
            "returns_to_go": returns,
            "timesteps": times,
            "mask": torch.tensor([[True, True, True, False]]),
        }
        loss = algorithm.loss(model, batch, 0)
        missed = ((predicted - TINY["return_scale"] * returns) ** 2)[0, :3].sum()
        torch.testing.assert_close(loss.metrics["train/critic_loss"], missed)
        torch.testing.assert_close(loss.sum, loss.metrics["train/loss"] + missed)
    with pytest.raises(UserError, match="critic is true, but"):
        built(critic=True, return_scale=0.0)


def test_whoever_plays_without_chance_is_told():
    for task, more, told in (
        ("hopper", [], True),
        ("hopper", ["--algorithm.stochastic", "true"], False),
        ("key-to-door", [], False),
    ):
        run = configure("dt", task, more)
        assert (run.algorithm.remark(find_task(task).signature()) is not None) == told
    assert configure("udrl", "cartpole").algorithm.remark(find_task("cartpole").signature()) is None


def test_games_with_sticky_actions_have_the_games_settings():
    presets = Dt.presets
    assert all(
        presets[f"{game}-sticky"] == presets[game]
        for game in ("breakout", "qbert", "pong", "seaquest")
    )
    assert presets["reacher"]["online"]["algorithm.return_scale"] == 0.1, (
        "ODT's network keeps the arm's scale"
    )


@pytest.mark.parametrize("value", ["1e39", "1e300", "-2e9"])
def test_a_target_return_that_no_network_can_be_told_is_refused(value):
    with pytest.raises(UserError, match="target-return"):
        configure("dt", "hopper", ["--algorithm.target-return", value])


def test_exploring_asks_for_more_whatever_the_sign():
    table = Table(np.zeros((1, 3), np.int64), np.array([5.0]), np.array([3]))
    asked = [
        Dt(target_return=target).ask(table, np.random.default_rng(0), 1)["desired_return"][0]
        for target in (10.0, -10.0, None)
    ]
    assert asked == [20.0, 0.0, 10.0]


def test_schedules():
    algorithm = Dt(warm_up_steps=10, cosine_steps=110)
    factors = [algorithm.learning_rate_factor(step, "adamw") for step in (0, 4, 9, 60, 110, 500)]
    np.testing.assert_allclose(factors, [0.1, 0.5, 1.0, 0.5, 0.1, 0.1], atol=0.01)


@pytest.mark.parametrize("lengths", [1, 5])
def test_windows_longer_than_any_episode_train(lengths, tmp_path):
    from making import episode

    signature = Signature(
        {"": Leaf("tensor", (3,), "float32")}, {"": Leaf("discrete", (), "int32", choices=(4,))}
    )
    algorithm = Dt(**(TINY | {"context": 20}))
    model = algorithm.build({"made-up": signature})
    store = Store(tmp_path)
    store.add([episode((k, 0, 0), lengths) for k in range(4)])
    algorithm.fit(model, {"made-up": store}, 0)
    windows = store.draw(algorithm.view(), np.random.default_rng(0), 8)
    loss = algorithm.loss(
        model,
        {n: torch.from_numpy(v) for n, v in algorithm.collate({"made-up": windows}).items()},
        0,
    )
    assert bool(loss.sum.isfinite())


def test_the_standardisation_is_of_the_data(tmp_path):
    algorithm, model = built()
    dataset = dataset_of(tmp_path / "d", "toy-continuous", 20)
    algorithm.fit(model, {"toy-continuous": dataset.store()}, 0)
    seen = np.concatenate([dataset.store().episode(i).observations[""][:-1] for i in range(20)])
    np.testing.assert_allclose(
        model.embed_state.standardise.mean.numpy(),
        seen.reshape(len(seen), -1).mean(0),
        rtol=1e-4,
        atol=1e-4,
    )


# --- whole runs on data and with commands that are hard to take

RUN = (
    "--algorithm.width 16 --algorithm.layers 1 --algorithm.batch-size 8 --budget.learner-steps 4"
    " --evaluations.every 2 --evaluations.episodes 2"
)
RUN += " --evaluations.final-episodes 2 --algorithm.context 200"


@pytest.fixture(scope="module", params=["one step each", "whole"])
def short_run(request, tmp_path_factory):
    """A run whose window is longer than any episode; its episodes have one step each, or are the
    task's own."""
    home = tmp_path_factory.mktemp("short")
    episodes = played("toy-continuous", 12, 3).episodes
    if request.param == "one step each":
        episodes = [
            dataclasses.replace(
                e,
                observations={p: v[:2] for p, v in e.observations.items()},
                actions={p: v[:1] for p, v in e.actions.items()},
                rewards=e.rewards[:1],
            )
            for e in episodes
        ]
    writer = Writer(
        home / "data", {"made": 1}, "toy-continuous", find_task("toy-continuous").signature()
    )
    writer.add(episodes)
    dataset = writer.finish("data", "made for a test", {})
    assert (
        max(dataset.store().table.lengths)
        == (1 if request.param == "one step each" else max(e.length for e in episodes))
        < 200
    )
    summary = train_local(configure("dt", str(home / "data"), RUN.split()), home / "run")
    assert summary["learner_steps"] == 4 and np.isfinite(summary["return_mean"])
    return home / "run"


def test_windows_longer_than_any_episode_and_episodes_of_one_step_train_and_act(short_run, capsys):
    for more in ([], ["--cached", "true"]):
        assert door(main, [str(short_run), "--episodes", "3", *more]) == 0
        report = json.loads((short_run / "evaluation.json").read_text())
        assert len(report["returns"]) == 3 and np.isfinite(report["returns"]).all()
    assert capsys.readouterr().err.count("error") == 0


def test_a_network_without_tokens_for_returns_trains_and_acts_but_fits_no_other_layout(
    short_run, tmp_path
):
    flags = [*RUN.split(), "--algorithm.returns", "newest"]
    train_local(configure("dt", str(short_run.parent / "data"), flags), tmp_path / "run")
    for more in ([], ["--cached", "true"]):
        assert door(main, [str(tmp_path / "run"), "--episodes", "3", *more]) == 0
    with pytest.raises(UserError, match="no tokens for returns"):
        weights.main(["export", str(tmp_path / "run"), "--folder", str(tmp_path / "out")])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_return_that_is_not_finite_is_refused_in_one_sentence(short_run, value, capsys):
    assert door(main, [str(short_run), "--desired-return", value]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: ")
        and said.count("\n") == 1
        and f"--desired-return is {value}" in said
        and "finite" in said
    )
    with pytest.raises(
        UserError, match=rf"--algorithm\.target-return is {value}, but a finite number"
    ):
        configure("dt", "hopper", ["--algorithm.target-return", value])


def test_weights_of_another_shape_are_refused_in_one_sentence(short_run, tmp_path, capsys):
    """Of another task, another width, another depth."""
    for number, (key, value, name) in enumerate(
        [("task", "toy-vector", "embed_"), ("width", 32, "embed_"), ("layers", 2, "blocks.1")]
    ):
        folder = shutil.copytree(short_run, tmp_path / str(number))
        settings = json.loads((folder / "run.json").read_text())
        (settings if key == "task" else settings["algorithm"])[key] = value
        (folder / "run.json").write_text(json.dumps(settings))
        assert door(main, [str(folder), "--episodes", "1"]) == 2
        said = capsys.readouterr().err
        assert (
            said.startswith("error: ")
            and said.count("\n") == 1
            and "do not fit the network" in said
            and name in said
        )
