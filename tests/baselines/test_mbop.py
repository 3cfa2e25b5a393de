"""MBOP: the planner against algorithm 2 written out, its weights, what the ensembles are fitted to,
and chance by row."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from making import episode, played, stored
from toy_data import SIGNATURE, TASK, act, batch_of, made, small

from bigdm_ray.baselines.mbop import Mbop, coming_returns, weighted_plan
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Store
from bigdm_ray.training.learner import Learner


@pytest.fixture
def learnt(tmp_path):
    learner, stores = made(Mbop, tmp_path)
    learner.update(stores, 20)
    return learner.algorithm, learner.model.eval(), stores


def test_plans_are_averaged_with_weights_exp_kappa_r():
    # exp(500) is infinite: weights are taken relative to each other
    actions, returns = (
        torch.randn(2, 5, 3, 2),
        torch.randn(2, 5) + 500,
    )
    plan = weighted_plan(actions, returns, 0.5)
    for row in range(2):
        weights = np.exp(0.5 * (returns[row] - 500).double().numpy())
        expected = (
            sum(w * a for w, a in zip(weights, actions[row].double().numpy(), strict=True))
            / weights.sum()
        )
        np.testing.assert_allclose(plan[row], expected, atol=1e-4)


def test_the_plan_is_that_of_algorithm_2(learnt):
    _, model, _ = learnt
    policy = small(Mbop, sigma=0.7).policy(model, "plan")
    h_max, members, each = 4, 3, 10
    generator = torch.Generator().manual_seed(0)
    seen, before = (
        torch.randn(2, 3, generator=generator) * 0.3,
        3 * torch.rand(2, h_max, 2, generator=generator) - 1.5,
    )
    noise = torch.randn(h_max, members, 2, each, 2, generator=generator)
    with torch.inference_mode():
        found = policy.plan(seen, before, noise)
        for row in range(2):
            total, weighted = 0.0, torch.zeros(h_max, 2)
            for member in range(members):
                for n in range(each):
                    state, action, gained, taken = seen[row], before[row, 0].clamp(-1, 1), 0.0, []
                    for h in range(h_max):
                        tried = (
                            one(model.behaviour, member, torch.cat([state, action]))
                            + 0.7 * model.of_action.std * noise[h, member, row, n]
                        )
                        mixed = 0.8 * tried + 0.2 * before[row, min(h + 1, h_max - 1)]
                        action = mixed.clamp(-1, 1)
                        out = one(model.dynamics, member, torch.cat([state, action]))
                        change = out[:-1] * (model.of_change.std + 1e-6) + model.of_change.mean
                        state = state + change / (model.of_seen.std + 1e-6)
                        gained = (
                            gained
                            + out[-1]
                            + (model.of_reward.mean / (model.of_reward.std + 1e-6))[0]
                        )
                        taken.append(mixed)
                    ends = torch.stack(
                        [one(model.value, k, torch.cat([state, action]))[0] for k in range(members)]
                    ).mean()
                    ends = (ends * (model.of_return.std + 1e-6) + model.of_return.mean) / (
                        model.of_reward.std + 1e-6
                    )
                    weight = torch.exp(0.5 * (gained + ends[0])).double()
                    total, weighted = total + weight, weighted + weight * torch.stack(taken)
            torch.testing.assert_close(found[row], (weighted / total).float(), rtol=1e-3, atol=1e-3)


def one(ensemble, member, row):
    for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        row = (torch.relu(row) if layer else row) @ weight[member] + bias[member, 0]
    return row


def test_noise_does_not_pull_actions_to_the_middle_where_the_clone_is_at_a_bound(learnt):
    _, model, _ = learnt
    with torch.no_grad():
        for parameters in (model.behaviour.weights[-1], model.behaviour.biases[-1]):
            parameters.fill_(0.0)
        model.behaviour.biases[-1].fill_(1.0)
    noise = torch.randn(4, 3, 2, 2000, 2, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plan = (
            small(Mbop, kappa=0.0, beta=0.0)
            .policy(model, "plan")
            .plan(torch.zeros(2, 3), torch.zeros(2, 4, 2), noise)
        )
    torch.testing.assert_close(plan, torch.ones(2, 4, 2), rtol=0, atol=0.03)


def test_the_first_action_of_the_plan_is_taken_and_remembered(learnt):
    algorithm, model, stores = learnt
    seen = stores[TASK].episode(0).observations[""][:4]
    policy = algorithm.policy(model, "plan")
    actions, state = act(policy, seen)
    np.testing.assert_array_equal(np.clip(state["plan"][:, 0], -1, 1), actions)
    assert state["plan"].shape == (4, 4, 2)
    carried, _ = act(policy, seen, 0, state, first=False)
    assert not np.array_equal(carried, actions), "the last plan takes part in the next"


def test_each_row_has_chance_of_its_own(learnt):
    algorithm, model, _ = learnt
    policy = algorithm.policy(model, "sample")
    assert policy.uniforms == 2
    chance = np.random.default_rng(0).random((3, 2), np.float32)
    whole = policy.noise(chance)
    assert whole.shape == (4, 3, 3, 10, 2)
    torch.testing.assert_close(policy.noise(chance[1:2])[:, :, 0], whole[:, :, 1])
    assert not torch.equal(whole[:, :, 0], whole[:, :, 1])
    assert abs(float(whole.mean())) < 0.15 and abs(float(whole.std()) - 1) < 0.1


def test_coming_returns():
    assert coming_returns(np.array([1, 2, 4, 8], np.float32), 2).tolist() == [3, 6, 12, 8]
    assert coming_returns(np.array([1, 2], np.float32), 5).tolist() == [3, 2]
    assert coming_returns(np.array([1e8, 1, -1e8], np.float32), 3)[0] == 1, "added up in float64"


def test_a_return_that_a_time_limit_hides_is_not_fitted(tmp_path):
    store = Store(tmp_path)
    store.add(
        [
            episode(0, 5, terminated=False),
            episode(1, 5, terminated=True),
            episode(2, 2, terminated=False),
        ]
    )
    noted = small(Mbop, return_horizon=3).annotate(torch.nn.Module(), {"t": store}, 0)["t"]
    assert noted["return_known"].tolist() == [1, 1, 1, 0, 0, *[1] * 5, 0, 0]
    rewards = [store.episode(i).rewards for i in range(3)]
    np.testing.assert_array_equal(
        noted["coming_return"], np.concatenate([coming_returns(r, 3) for r in rewards])
    )


def test_statistics_are_those_of_the_data(learnt):
    _, model, stores = learnt
    episodes = [stores[TASK].episode(i) for i in range(len(stores[TASK].table))]
    seen = np.concatenate([e.observations[""][:-1] for e in episodes])
    change = np.concatenate([np.diff(e.observations[""], axis=0) for e in episodes])
    rewards, returns = (
        np.concatenate([e.rewards for e in episodes]),
        np.concatenate([coming_returns(e.rewards, 3) for e in episodes]),
    )
    actions = np.concatenate([e.actions[""] for e in episodes])
    pairs = [
        (model.of_seen, seen),
        (model.of_change, change),
        (model.of_action, actions),
        (model.of_reward, rewards[:, None]),
        (model.of_return, returns[:, None]),
    ]
    for fitted, values in pairs:
        np.testing.assert_allclose(fitted.mean, values.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fitted.std, values.std(0), rtol=1e-3, atol=1e-4)


def test_statistics_hold_one_episode_at_a_time(tmp_path, monkeypatch):
    """A dataset may be larger than memory."""
    learner, stores = made(Mbop, tmp_path)
    store, begun, most = stores[TASK], [], []

    def episode(position, inner=store.episode):
        found = inner(position)
        found = dataclasses.replace(found, rewards=found.rewards.copy())
        begun.append(weakref.ref(found.rewards))
        most.append(sum(one() is not None for one in begun))
        return found

    monkeypatch.setattr(store, "episode", episode)
    learner.algorithm.fit(learner.model, stores, 0)
    assert len(store.table) == 30 and max(most) <= 3


def test_the_three_errors_of_a_batch_are_those_of_a_loop(learnt):
    algorithm, model, stores = learnt
    batch = batch_of(algorithm, stores)
    assert (
        not batch["mask"].all()
        and batch["mask"][:, 1].all()
        and (batch["return_known"][:, 1] == 0).any()
    )
    with torch.no_grad():
        loss = algorithm.loss(model, batch, 0)
        sums = {"dynamics": 0.0, "behaviour": 0.0, "return": 0.0}
        for b in range(len(batch["rewards"])):
            raw, after = batch["observations/"][b, 1], batch["next_observations/"][b, 1]
            state, action = (
                (raw - model.of_seen.mean) / (model.of_seen.std + 1e-6),
                batch["actions/"][b, 1],
            )
            before = batch["actions/"][b, 0] if batch["mask"][b, 0] else torch.zeros(2)
            change = (after - raw - model.of_change.mean) / (model.of_change.std + 1e-6)
            reward = (batch["rewards"][b, 1:] - model.of_reward.mean) / (model.of_reward.std + 1e-6)
            coming = (batch["coming_return"][b, 1:] - model.of_return.mean) / (
                model.of_return.std + 1e-6
            )
            for k in range(3):
                sums["dynamics"] += (
                    (
                        one(model.dynamics, k, torch.cat([state, action]))
                        - torch.cat([change, reward])
                    )
                    ** 2
                ).mean() / 3
                sums["behaviour"] += (
                    (one(model.behaviour, k, torch.cat([state, before])) - action) ** 2
                ).mean() / 3
                sums["return"] += (
                    ((one(model.value, k, torch.cat([state, before])) - coming) ** 2).mean()
                    / 3
                    * batch["return_known"][b, 1]
                )
    for name, value in sums.items():
        torch.testing.assert_close(
            loss.metrics[f"train/{name}_loss"], torch.as_tensor(value), rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(loss.sum, torch.as_tensor(sum(sums.values())), rtol=1e-3, atol=1e-3)
    assert loss.weight == len(batch["rewards"])


def test_the_preset_of_acmes_planner():
    values = {
        path.removeprefix("algorithm."): value for path, value in Mbop.presets["*"]["acme"].items()
    }
    assert Mbop(**values) == Mbop(
        return_horizon=10, samples=1000, horizon=15, sigma=0.8, beta=0.2, kappa=0.5
    )


def test_samples_that_the_members_cannot_share_are_told():
    with pytest.raises(
        UserError,
        match=(
            r"--algorithm.samples is 31, but a multiple of --algorithm.members, which is 3, is"
            r" expected"
        ),
    ):
        small(Mbop, samples=31).build({TASK: SIGNATURE})


@pytest.mark.slow
def test_planning_beats_the_behaviour_that_it_learnt_from(tmp_path):
    """Random play: its clone gets half of what there is; the model knows what a reward is paid
    for."""
    stores = {TASK: stored(tmp_path, TASK, 300)}
    learner = Learner(
        Mbop(members=4, samples=400, horizon=2, return_horizon=2, kappa=4.0, beta=0.0, sigma=1.0),
        {TASK: SIGNATURE},
        1,
    )
    learner.update(stores, 1500)
    scores = {}
    for mode in ("plan", "mean"):
        scores[mode] = np.mean(
            [
                e.rewards.mean()
                for e in played(
                    TASK, 40, policy=learner.algorithm.policy(learner.model, mode)
                ).episodes
            ]
        )
    assert scores["plan"] > scores["mean"] + 0.1 and scores["plan"] > 0.75
