"""The imitation family: what is cloned, with which weight, and that it acts."""

import numpy as np
import pytest
import torch
from making import dataset_of, episode, played, small

from bigdm_ray.algorithms.awr import Awr, AwrModel
from bigdm_ray.algorithms.bail import ActorEnvelope, Bail, ratio
from bigdm_ray.algorithms.bc import Actor, Bc
from bigdm_ray.algorithms.rwr import Rwr
from bigdm_ray.envs import find_task
from bigdm_ray.replay import Store
from bigdm_ray.replay.returns import (
    continued_returns,
    discounted_returns,
    episode_groups,
    td_lambda,
)
from bigdm_ray.training.config import configure
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.streams import rng

TASK = "toy-vector"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = Store(tmp_path_factory.mktemp("store"))
    made.add(played(TASK, 120).episodes)
    return made


def learner_of(algorithm):
    return Learner(algorithm, {TASK: find_task(TASK).signature()}, 3)


def test_percent_bc_keeps_the_best_episodes_while_they_hold_no_more_than_that_share_of_time_steps(
    tmp_path,
):
    made = Store(tmp_path)
    lengths, returns = [10, 20, 30, 40], [4.0, 3.0, 2.0, 1.0]
    made.add(
        [
            episode(i, length=n, rewards=np.full(n, r / n))
            for i, (n, r) in enumerate(zip(lengths, returns, strict=True))
        ]
    )
    for fraction, kept in (
        (0.01, {0}),
        (0.1, {0}),
        (0.29, {0}),
        (0.3, {0, 1}),
        (0.4, {0, 1}),
        (0.6, {0, 1, 2}),
        (1.0, {0, 1, 2, 3}),
    ):
        rows, _ = Bc(best_fraction=fraction).view().rows(made.table, rng(0, "draw", 0), 500)
        assert set(rows) == kept, fraction


def test_cloning_draws_every_time_step_alike(store):
    rows, steps = Bc().view().rows(store.table, rng(0, "draw", 0), 20_000)
    share = np.bincount(rows, minlength=len(store.table)) / 20_000
    np.testing.assert_allclose(share, store.table.lengths / store.table.lengths.sum(), atol=0.012)
    assert (steps < store.table.lengths[rows]).all()


def test_observations_are_standardised_with_the_statistics_of_the_data(store):
    learner = learner_of(small(Bc))
    learner.update({TASK: store}, 1)
    seen = np.concatenate(
        [store.episode(i).observations[""][:-1] for i in range(len(store.table))]
    ).astype(np.float64)
    fitted = learner.model.encoder.standardise
    np.testing.assert_allclose(fitted.mean.numpy(), seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.std.numpy(), seen.std(0), rtol=1e-3, atol=1e-5)
    assert "encoder.standardise.mean" in learner.weights(0).arrays, "they travel with the weights"


def test_squared_error_of_squashed_actions_is_within_bounds_and_deterministic():
    torch.manual_seed(0)
    signature = find_task("toy-continuous").signature()
    actor = Actor(signature, (8,))
    policy = Bc().policy(actor, "sample")
    seen = {
        path: np.random.default_rng(0).normal(size=(5, *leaf.shape)).astype(leaf.dtype) * 100
        for path, leaf in signature.observations.items()
    }
    chances = [np.random.default_rng(i).random((5, policy.uniforms), np.float32) for i in (1, 2)]
    first, second = (
        policy.act({}, seen, np.zeros(5, np.float32), {}, np.ones(5, bool), chance)[0]
        for chance in chances
    )
    for path, leaf in signature.actions.items():
        np.testing.assert_array_equal(first[path], second[path])
        assert (first[path].reshape(5, -1) >= np.array(leaf.low)).all() and (
            first[path].reshape(5, -1) <= np.array(leaf.high)
        ).all()


def test_awr_draws_td_lambda_targets_and_clipped_weights_of_the_frozen_critic(store):
    algorithm = small(Awr, critic_updates=2, actor_updates=3)
    learner = learner_of(algorithm)
    learner.update({TASK: store}, 3)  # the actor's phase has begun: critic and copy agree
    model = learner.model
    assert isinstance(model, AwrModel)
    columns = algorithm.annotate(model, {TASK: store}, 0)[TASK]
    group = next(iter(episode_groups(store)))
    target, value = td_lambda(group, model.frozen.values(group.observations), 0.99, 0.95)
    np.testing.assert_allclose(columns["target"], target, rtol=1e-5)
    advantage = target - value
    want = np.minimum(np.exp((advantage - advantage.mean()) / (advantage.std() + 1e-5)), 20)
    np.testing.assert_allclose(columns["weight"], want, rtol=1e-3)
    windows = store.draw(algorithm.view(3), rng(1, "draw", 3), 64)
    assert set(windows.annotations) == {"target", "weight"}
    assert np.isin(windows.annotations["weight"].ravel(), columns["weight"]).all()


def test_awr_moves_critic_and_actor_in_turn(store):
    learner = learner_of(small(Awr, critic_updates=2, actor_updates=3))
    moved = []
    for _ in range(10):
        before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
        learner.update({TASK: store}, 1)
        moved.append(
            {
                name.split(".")[0]
                for name, p in learner.model.named_parameters()
                if not torch.equal(p, before[name])
            }
        )
    critic, actor = {"critic"}, {"actor"}
    for step, names in enumerate(moved):
        wanted = critic if step % 5 < 2 else actor
        assert names - {"frozen"} == wanted, step
        assert ("frozen" in names) == (step % 5 == 2), step  # at 5 it is equal still


def test_awrs_paper_preset_is_the_official_configuration():
    """Step size, deviation, penalty on logits, samples that the normaliser is fitted on: 2,048 owe
    a turn of 1,200 learner steps."""
    official = {
        "lunarlander": (5e-4, 0.4, 0.001, 100_000),
        "hopper": (1e-4, 0.4, 0.0, 300_000),
        "halfcheetah": (5e-5, 0.4, 0.0, 300_000),
        "walker2d": (2.5e-5, 0.4, 0.0, 300_000),
        "ant": (5e-5, 0.2, 0.0, 300_000),
        "humanoid": (1e-5, 0.4, 0.0, 300_000),
    }
    for task, (rate, deviation, penalty, samples) in official.items():
        run = configure("awr", task, [])
        a = run.algorithm
        assert run.preset == "paper"
        assert (
            a.optimizer,
            a.critic_stepsize,
            a.momentum,
            a.hidden,
            a.batch_size,
            run.evaluations.mode,
        ) == ("sgd", 0.01, 0.9, (128, 64), 256, "mean")
        assert (a.actor_stepsize, a.action_std, a.action_l2_weight) == (rate, deviation, penalty), (
            task
        )
        fitted = [step for step in range(0, 300 * a.turn, a.turn) if step <= a.standardised_steps]
        assert abs(len(fitted) * a.samples_per_iteration - samples) < a.samples_per_iteration, task


def test_awr_descends_with_adam_on_a_dataset_and_where_a_task_has_no_preset_of_the_paper(tmp_path):
    def told(target, *flags):
        run = configure("awr", target, list(flags))
        return run.preset, run.algorithm.optimizer

    dataset = dataset_of(tmp_path / "data", count=2)
    assert (
        told(str(dataset.folder))
        == told(TASK)
        == told("lunarlander", "--preset", "default")
        == ("default", "adam")
    )
    assert told("lunarlander") == ("paper", "sgd") and told("lunarlander", "--preset", "none") == (
        "none",
        "adam",
    )


def test_awrs_losses_are_halves_of_squares_and_its_penalty_is_on_the_logits(store):
    algorithm = small(Awr, critic_updates=1, actor_updates=1, action_l2_weight=0.5)
    model = algorithm.build({TASK: find_task(TASK).signature()})
    torch.nn.init.normal_(model.actor.head.linear.weight)
    batch = {
        name: torch.from_numpy(v)
        for name, v in algorithm.collate({TASK: annotated(algorithm, model, store)}).items()
    }
    seen = {"": batch["observations/"][:, 0]}
    error = (model.critic(seen) - batch["target"][:, 0] / model.critic.scale) ** 2
    torch.testing.assert_close(algorithm.loss(model, batch, 0).sum, 0.5 * error.sum())
    with_penalty, without = (
        algorithm.loss(model, batch, 1),
        small(Awr, critic_updates=1, actor_updates=1).loss(model, batch, 1),
    )
    torch.testing.assert_close(
        with_penalty.sum - without.sum,
        0.5 * 0.5 * (model.actor(seen) ** 2).sum(),
        rtol=1e-4,
        atol=1e-4,
    )


def annotated(algorithm, model, store, n=32):
    """Windows with the columns of an algorithm."""
    store.annotate(algorithm.annotate(model, {TASK: store}, 0)[TASK])
    return store.draw(algorithm.view(0), rng(2, "draw", 0), n)


def test_awr_keeps_the_newest_steps(tmp_path):
    made = Store(tmp_path, Awr(replay_steps=25).retention())
    for i, n in enumerate([10, 10, 10, 4, 30, 3]):
        made.add([episode(i, length=n)])
        assert made.table.lengths.sum() <= 25 or len(made.table) == 1
    assert made.table.ids[:, 0].tolist() == [5]
    assert Store(tmp_path, Awr(replay_steps=25).retention()).open().table.ids[:, 0].tolist() == [5]


def test_rwr_weighs_by_normalised_discounted_returns(store):
    columns = Rwr(temperature=0.5).annotate(learner_of(small(Rwr)).model, {TASK: store}, 0)[TASK]
    returns = np.concatenate(
        [discounted_returns(g.rewards, g.lengths, 0.99) for g in episode_groups(store)]
    )
    want = np.minimum(np.exp((returns - returns.mean()) / (returns.std() + 1e-5) / 0.5), 20)
    np.testing.assert_allclose(columns["weight"], want, rtol=1e-3)


def test_bail_fits_an_upper_envelope_and_then_clones_the_best_quarter(store):
    algorithm = small(
        Bail, envelope_steps=300, batch_size=128, envelope_hidden=(64, 64), envelope_decay=0.0
    )
    learner = learner_of(algorithm)
    learner.update({TASK: store}, 300)
    model = learner.model
    assert isinstance(model, ActorEnvelope)
    untouched = model.actor.head.linear.weight.detach().clone()
    group = next(iter(episode_groups(store)))
    returns = continued_returns(group, 0.99)
    columns = algorithm.annotate(model, {TASK: store}, 300)[TASK]
    np.testing.assert_allclose(columns["return"], returns, rtol=1e-5)
    seen = np.concatenate([store.episode(i).observations[""][:-1] for i in range(len(store.table))])
    values = model.envelope({"": torch.from_numpy(seen)}).detach().numpy()
    assert (values >= returns).mean() > 0.9, "it lies above nearly all returns"
    ratios = ratio(torch.from_numpy(returns), torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(columns["selected"] > 0, ratios >= np.quantile(ratios, 0.75))
    learner.update({TASK: store}, 50)
    assert not torch.equal(model.actor.head.linear.weight, untouched)
    # it learns no more
    np.testing.assert_array_equal(
        values, model.envelope({"": torch.from_numpy(seen)}).detach().numpy()
    )
    drawn = store.draw(algorithm.view(310), rng(1, "draw", 310), 400)
    chosen = {tuple(np.round(row, 5)) for row in seen[columns["selected"] > 0]}
    assert all(tuple(np.round(row, 5)) in chosen for row in drawn.observations[""][:, 0])


@pytest.mark.parametrize("progressive", [False, True])
def test_bail_selects_only_where_it_draws_among_the_selected(store, progressive):
    algorithm = small(Bail, envelope_steps=3, progressive=progressive)
    learner = learner_of(algorithm)
    passes = []
    learner.model.envelope.register_forward_hook(
        lambda module, given, made: passes.append(torch.is_grad_enabled())
    )
    learner.update({TASK: store}, 3)
    assert passes == [True] * 3, "the envelope's own steps, and no pass over the data"
    learner.update({TASK: store}, 3)
    selecting = len(list(episode_groups(store)))
    assert passes[3:] == ([True] * 3 if progressive else [False] * selecting)
    for step, names in (
        (0, {"return"}),
        (3, {"return"} if progressive else {"return", "selected"}),
    ):
        assert algorithm.annotate(learner.model, {TASK: store}, step)[TASK].keys() == names


def test_progressive_bail_weighs_only_the_best_share_of_a_batch():
    signature = find_task(TASK).signature()
    algorithm = small(Bail, progressive=True, selected=0.25)
    torch.manual_seed(0)
    model = algorithm.build({TASK: signature})
    n = 8
    batch = {
        "observations/": torch.randn(n, 1, *signature.observations[""].shape),
        "actions/": torch.zeros(n, 1, dtype=torch.int32),
        "mask": torch.ones(n, 1, dtype=torch.bool),
        "return": torch.arange(n, dtype=torch.float32)[:, None],
    }
    values = model.envelope({"": batch["observations/"][:, 0]}).detach()
    best = torch.topk(ratio(batch["return"][:, 0], values), 2).indices
    algorithm.loss(model, batch, 0).sum.backward()
    whole = model.actor.head.linear.weight.grad.clone()
    model.zero_grad()
    negative = (
        -model.actor.head.log_prob(
            model.actor({"": batch["observations/"][best, 0]}), {"": batch["actions/"][best, 0]}
        ).sum()
        / 0.25
    )
    negative.backward()
    np.testing.assert_allclose(
        whole.numpy(), model.actor.head.linear.weight.grad.numpy(), rtol=1e-4, atol=1e-6
    )


def test_weights_below_one_keep_the_ratio_positive():
    got = ratio(torch.tensor([2.0, 2.0, -1.0]), torch.tensor([4.0, -3.0, 0.0]))
    np.testing.assert_allclose(got.numpy(), [0.5, 2 / np.exp(-4), -1 / np.exp(-1)], rtol=1e-5)


def test_ratios_of_very_negative_returns_are_finite_and_go_by_envelope_and_return():
    """Rewards of -10 a step: exp(V - 1) underflows in float32, and so nothing could be selected."""
    values = torch.tensor([-500.0, -500.0, -200.0, -1000.0])
    got = ratio(torch.tensor([-600.0, -550.0, -900.0, -1000.0]), values)
    assert torch.isfinite(got).all()
    assert got.argsort(descending=True).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("name", ["awr", "rwr"])
def test_the_weighted_forms_also_learn_from_what_they_play(name, tmp_path):
    flags = (
        "--budget.env-steps 1500 --algorithm.hidden 16 --algorithm.batch-size 32"
        " --evaluations.episodes 4 --evaluations.final-episodes 4"
    )
    flags += (
        " --algorithm.critic-updates 5 --algorithm.actor-updates 10"
        " --algorithm.samples-per-iteration 300"
        if name == "awr"
        else " --algorithm.n-updates-per-iter 10"
    )
    summary = train_local(configure(name, TASK, flags.split()), tmp_path / "run")
    assert summary["env_steps"] >= 1500 and summary["learner_steps"] >= 30


@pytest.mark.slow
def test_cloning_recovers_what_a_task_pays_for(tmp_path):
    """Episodes of the best 5 % of random play on a toy, cloned, return more than the data."""
    dataset = dataset_of(tmp_path / "data", count=800)
    flags = (
        "--budget.learner-steps 600 --algorithm.hidden 32,32 --algorithm.best-fraction 0.05"
        " --evaluations.episodes 4 --evaluations.final-episodes 100"
    )
    summary = train_local(configure("bc", str(dataset.folder), flags.split()), tmp_path / "run")
    assert summary["return_mean"] > dataset.return_mean + 0.5 * dataset.return_std


def test_the_rate_of_a_static_envelope_falls_to_zero_and_that_of_the_policy_stays():
    steps = range(0, 7)
    static = small(Bail, envelope_steps=4)
    assert [static.learning_rate_factor(n, "envelope") for n in steps] == [
        *(1.0, 0.75, 0.5, 0.25),
        *(0.0, 0.0, 0.0),
    ]
    assert {static.learning_rate_factor(n, "actor") for n in steps} == {1.0}
    for other in ({"progressive": True}, {"envelope_rate_falls": False}):
        algorithm = small(Bail, envelope_steps=4, **other)
        assert {algorithm.learning_rate_factor(n, "envelope") for n in steps} == {1.0}
