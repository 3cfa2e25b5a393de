"""BEAR: the discrepancy against a double loop, targets, the warm start, and the multiplier that
follows the constraint."""

import math

import numpy as np
import pytest
import torch
from toy_data import TASK, act, batch_of, made, small

from bigdm_ray.baselines.bear import LOG_MULTIPLIER_RANGE, Bear, mmd
from bigdm_ray.baselines.offline import Transitions
from bigdm_ray.errors import UserError
from bigdm_ray.training.config import configure


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_the_discrepancy_equals_a_double_loop(kernel):
    generator = torch.Generator().manual_seed(0)
    one, other = (
        torch.randn(4, 5, 3, generator=generator),
        torch.randn(4, 6, 3, generator=generator) + 1,
    )

    def affinity(x, y):
        total = 0.0
        for a in x.tolist():
            for b in y.tolist():
                distance = sum(
                    abs(i - j) if kernel == "laplacian" else (i - j) ** 2
                    for i, j in zip(a, b, strict=True)
                )
                total += math.exp(-distance / (2 * 1.5))
        return total / (len(x) * len(y))

    expected = [
        math.sqrt(affinity(x, x) + affinity(y, y) - 2 * affinity(x, y) + 1e-6)
        for x, y in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(mmd(one, other, 1.5, kernel), expected, rtol=1e-4)
    np.testing.assert_allclose(mmd(one, one, 1.5, kernel), np.full(4, 1e-3), atol=1e-3)


def test_the_discrepancy_has_a_gradient_even_between_equal_sets():
    one = torch.zeros(2, 3, 2, requires_grad=True)
    mmd(one, torch.zeros(2, 3, 2), 10.0, "laplacian").sum().backward()
    assert torch.isfinite(one.grad).all()


def test_targets_are_the_best_of_the_target_policys_actions(tmp_path):
    learner, stores = made(Bear, tmp_path, target_actions=3)
    learner.update(stores, 8)
    algorithm, model = learner.algorithm, learner.model
    t = Transitions.of(model.spaces, batch_of(algorithm, stores))
    with torch.no_grad():
        torch.manual_seed(2)
        targets = algorithm.targets(model, t)
        torch.manual_seed(2)
        noise = torch.randn(len(t.seen) * 3, 2)
        for row in range(len(t.seen)):
            mean, log_std = model.actor_target(t.seen_next[row])
            found = []
            for k in range(3):
                action = torch.tanh(mean + log_std.exp() * noise[3 * row + k])
                low, high = (
                    model.critics.target_values(t.seen_next[row : row + 1], action[None])[:, 0]
                    .sort()
                    .values
                )
                found.append(0.75 * low + 0.25 * high)
            torch.testing.assert_close(
                targets[row],
                t.reward[row] + 0.99 * t.goes_on[row] * max(found),
                rtol=1e-4,
                atol=1e-5,
            )


def test_before_the_warm_start_is_over_the_critics_do_not_move_the_policy(tmp_path):
    """Two learners whose critics differ train equal policies until then, and not after."""
    learner, stores = made(Bear, tmp_path / "a", warm_start=4)
    other, _ = made(Bear, tmp_path / "b", warm_start=4)
    with torch.no_grad():
        other.model.critics.online.weights[0].mul_(3.0)

    def actors():
        return [
            torch.cat([p.reshape(-1) for p in each.model.actor.parameters()])
            for each in (learner, other)
        ]

    for each in (learner, other):
        metrics = each.update(stores, 4).metrics
        assert "train/policy_value" not in metrics
    assert torch.equal(*actors())
    for each in (learner, other):
        assert "train/policy_value" in each.update(stores, 1).metrics
    assert not torch.equal(*actors())


@pytest.mark.parametrize(("threshold", "grows"), [(1e-6, True), (100.0, False)])
def test_the_multiplier_grows_where_the_constraint_is_broken_and_shrinks_where_it_holds(
    tmp_path, threshold, grows
):
    learner, stores = made(Bear, tmp_path, threshold=threshold, multiplier_learning_rate=0.5)
    learner.update(stores, 3)
    assert (learner.model.multiplier.log.item() > 0) is grows
    learner.update(stores, 40)
    assert learner.model.multiplier.log.item() == LOG_MULTIPLIER_RANGE[1 if grows else 0]


@pytest.mark.slow
def test_the_warm_start_brings_the_policy_to_the_data(tmp_path):
    learner, stores = made(Bear, tmp_path, warm_start=10**6, policy_learning_rate=3e-3)
    with torch.no_grad():
        learner.model.actor.head.bias[:2] = 2.0
    first = learner.update(stores, 5).metrics["train/mmd"]
    learner.update(stores, 300)
    assert learner.update(stores, 20).metrics["train/mmd"] < 0.3 * first


def test_it_acts_on_the_best_of_its_samples_or_on_the_mean(tmp_path):
    learner, stores = made(Bear, tmp_path)
    learner.update(stores, 8)
    model = learner.model
    seen = Transitions.of(model.spaces, batch_of(learner.algorithm, stores)).seen
    one, many = (
        act(small(Bear, candidates=n).policy(model, "sample"), seen.numpy())[0] for n in (1, 50)
    )
    with torch.no_grad():
        assert (
            model.critics.first(seen, torch.from_numpy(many)).mean()
            > model.critics.first(seen, torch.from_numpy(one)).mean()
        )
        mean = torch.tanh(model.actor(seen)[0])
    np.testing.assert_allclose(
        act(learner.algorithm.policy(model, "mean"), seen.numpy())[0], mean, atol=1e-6
    )
    with pytest.raises(UserError, match="bear has no planner"):
        learner.algorithm.policy(model, "plan")


def test_the_preset_of_d4rls_evaluations():
    values = Bear.presets["*"]["d4rl"]
    made_with = Bear(**{path.removeprefix("algorithm."): value for path, value in values.items()})
    assert (made_with.batch_size, made_with.kernel, made_with.sigma, made_with.matched) == (
        256,
        "gaussian",
        50.0,
        100,
    )
    with pytest.raises(UserError, match="learns from a dataset"):
        configure("bear", TASK, ["--preset", "d4rl"])
