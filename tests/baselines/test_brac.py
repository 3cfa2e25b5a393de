"""BRAC: the closed divergence against samples, the penalty in targets and objective, and the order
clone, warm start, actor-critic."""

import numpy as np
import pytest
import torch
from making import played, stored
from toy_data import SIGNATURE, TASK, act, batch_of, made

from bigdm_ray.baselines.brac import Brac, gaussian_kl
from bigdm_ray.baselines.offline import Transitions
from bigdm_ray.errors import UserError
from bigdm_ray.models.continuous import squashed_log_prob
from bigdm_ray.training.learner import Learner


def test_the_divergence_is_the_mean_log_ratio_of_the_squashed_densities():
    generator = torch.Generator().manual_seed(0)
    mean, other_mean = (
        torch.randn(2, 3, generator=generator),
        torch.randn(2, 3, generator=generator),
    )
    log_std, other_log_std = (
        -torch.rand(2, 3, generator=generator),
        -torch.rand(2, 3, generator=generator),
    )
    closed = gaussian_kl(mean, log_std, other_mean, other_log_std)
    raw = mean + log_std.exp() * torch.randn(200_000, 2, 3, generator=generator)
    ratios = squashed_log_prob(raw, mean, log_std) - squashed_log_prob(
        raw, other_mean, other_log_std
    )
    torch.testing.assert_close(closed, ratios.mean(0), rtol=0.02, atol=0.02)
    assert torch.equal(gaussian_kl(mean, log_std, mean, log_std), torch.zeros(2))


@pytest.mark.parametrize("value_penalty", [True, False])
def test_targets_are_the_smaller_critic_less_alpha_times_the_divergence(tmp_path, value_penalty):
    learner, stores = made(Brac, tmp_path, alpha=0.7, value_penalty=value_penalty)
    learner.update(stores, 9)
    algorithm, model = learner.algorithm, learner.model
    t = Transitions.of(model.spaces, batch_of(algorithm, stores))
    with torch.no_grad():
        torch.manual_seed(2)
        targets = algorithm.targets(model, t)
        torch.manual_seed(2)
        noise = torch.randn(len(t.seen), 2)
        for row in range(len(t.seen)):
            (mean, log_std), (b_mean, b_log_std) = (
                model.actor(t.seen_next[row]),
                model.clone(t.seen_next[row]),
            )
            action = torch.tanh(mean + log_std.exp() * noise[row])
            policy, clone = (
                torch.distributions.Normal(m, s.exp())
                for m, s in ((mean, log_std), (b_mean, b_log_std))
            )
            divergence = torch.distributions.kl_divergence(policy, clone).sum()
            assert divergence > 0
            value = model.critics.target_values(t.seen_next[row : row + 1], action[None]).min()
            value = value - 0.7 * divergence if value_penalty else value
            torch.testing.assert_close(
                targets[row], t.reward[row] + 0.99 * t.goes_on[row] * value, rtol=1e-4, atol=1e-4
            )


def test_first_the_clone_then_the_critics_alone_then_both(tmp_path):
    learner, stores = made(Brac, tmp_path, clone_steps=4, warm_start=3)
    model = learner.model

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    critics = [p.clone() for p in model.critics.parameters()]
    assert set(learner.update(stores, 4).metrics) == {"train/clone_loss"}
    assert same(model.actor, model.clone) and all(
        torch.equal(a, b) for a, b in zip(critics, model.critics.parameters(), strict=True)
    )
    clone = [p.clone() for p in model.clone.parameters()]
    moments = learner.optimizers["actor"].state_dict()["state"][0]["exp_avg_sq"].clone()
    metrics = learner.update(stores, 3).metrics
    assert same(model.actor, model.clone) and "train/policy_value" not in metrics
    assert torch.equal(
        moments, learner.optimizers["actor"].state_dict()["state"][0]["exp_avg_sq"]
    ), "Adam's memory is not worn away"
    assert not all(
        torch.equal(a, b) for a, b in zip(critics, model.critics.parameters(), strict=True)
    )
    assert "train/policy_value" in learner.update(stores, 3).metrics
    assert not same(model.actor, model.clone) and all(
        torch.equal(a, b) for a, b in zip(clone, model.clone.parameters(), strict=True)
    )


def test_cloning_fits_the_density_of_the_actions(tmp_path):
    """Random play draws actions uniformly from a square: density 1/4, log-density -1.39.

    The mean is near 0, whatever is seen.
    """
    stores = {TASK: stored(tmp_path, TASK, 200)}
    learner = Learner(Brac(policy_hidden=(32, 32), policy_learning_rate=3e-3), {TASK: SIGNATURE}, 1)
    learner.update(stores, 300)
    assert learner.update(stores, 50).metrics["train/clone_loss"] == pytest.approx(
        -np.log(1 / 4), abs=0.1
    )


def test_a_large_alpha_keeps_the_policy_at_the_clone(tmp_path):
    free, stores = made(Brac, tmp_path / "a", alpha=0.01, policy_learning_rate=3e-3)
    bound, _ = made(Brac, tmp_path / "b", alpha=100.0, policy_learning_rate=3e-3)
    distances = []
    for learner in (free, bound):
        learner.update(stores, 100)
        distances.append(learner.update(stores, 10).metrics["train/divergence"])
    assert distances[1] < 0.1 * distances[0]


@pytest.mark.slow
def test_it_learns_the_toy_from_random_play(tmp_path):
    stores = {TASK: stored(tmp_path, TASK, 300)}
    settings = {
        "hidden": (64, 64),
        "policy_hidden": (64, 64),
        "clone_steps": 200,
        "warm_start": 100,
        "policy_learning_rate": 1e-3,
        "alpha": 0.01,
    }
    learner = Learner(Brac(**settings, discount=0.0), {TASK: SIGNATURE}, 1)
    learner.update(stores, 1500)
    returns = np.mean(
        [
            e.rewards.mean()
            for e in played(
                TASK, 40, policy=learner.algorithm.policy(learner.model, "mean")
            ).episodes
        ]
    )
    assert returns > 0.8


def test_modes_and_the_preset(tmp_path):
    learner, stores = made(Brac, tmp_path)
    learner.update(stores, 9)
    seen = Transitions.of(learner.model.spaces, batch_of(learner.algorithm, stores)).seen
    with torch.no_grad():
        mean = torch.tanh(learner.model.actor(seen)[0])
    np.testing.assert_allclose(
        act(learner.algorithm.policy(learner.model, "mean"), seen.numpy())[0], mean, atol=1e-6
    )
    with pytest.raises(UserError, match="brac has no planner"):
        learner.algorithm.policy(learner.model, "plan")
    assert Brac.presets["*"]["default"] == {"evaluations.mode": "mean"}
