"""BCQ: its targets, perturbation and auto-encoder against slow computations, and that it takes the
best candidate."""

import numpy as np
import pytest
import torch
from toy_data import SIGNATURE, TASK, act, batch_of, made, small

from bigdm_ray.baselines.bcq import Bcq
from bigdm_ray.baselines.offline import Transitions
from bigdm_ray.errors import UserError
from bigdm_ray.training.learner import Learner


@pytest.fixture
def learnt(tmp_path):
    learner, stores = made(Bcq, tmp_path, target_actions=4)
    learner.update(stores, 8)
    return (
        learner.algorithm,
        learner.model,
        Transitions.of(learner.model.spaces, batch_of(learner.algorithm, stores)),
    )


def test_targets_are_the_best_of_the_generated_actions_under_75_percent_min_and_25_percent_max(
    learnt,
):
    algorithm, model, t = learnt
    torch.manual_seed(5)
    with torch.no_grad():
        targets = algorithm.targets(model, t)
        torch.manual_seed(5)
        noise = torch.randn(len(t.seen) * 4, 4).clamp(-0.5, 0.5)
        for row in range(len(t.seen)):
            found = []
            for k in range(4):
                seen = t.seen_next[row]
                action = torch.tanh(
                    model.autoencoder.decoder(torch.cat([seen, noise[4 * row + k]]))
                )
                moved = (
                    action
                    + 0.05 * torch.tanh(model.perturbation_target.layers(torch.cat([seen, action])))
                ).clamp(-1, 1)
                q = [
                    member(model.critics.target, which, torch.cat([seen, moved]))
                    for which in (0, 1)
                ]
                found.append(0.75 * min(q) + 0.25 * max(q))
            torch.testing.assert_close(
                targets[row],
                t.reward[row] + 0.99 * t.goes_on[row] * max(found),
                rtol=1e-4,
                atol=1e-5,
            )


def member(ensemble, which, row):
    """One network of an ensemble on one row, a layer after the other."""
    for layer, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        row = (torch.relu(row) if layer else row) @ weight[which] + bias[which, 0]
    return row[0]


def test_the_perturbation_moves_actions_by_at_most_phi_and_not_over_the_bounds(learnt):
    _, model, t = learnt
    with torch.no_grad():
        for layer in model.perturbation.layers[-1:]:
            layer.bias.fill_(50.0)
        moved = model.perturbation(t.seen, t.action)
    torch.testing.assert_close(moved, (t.action + 0.05).clamp(max=1.0))
    assert (t.action > 0.95).any() and (moved <= 1).all()


def test_the_auto_encoders_loss_is_squared_error_plus_half_the_divergence(learnt):
    _, model, t = learnt
    coder = model.autoencoder
    torch.manual_seed(3)
    with torch.no_grad():
        loss = coder.loss(t.seen, t.action, 0.5)
        torch.manual_seed(3)
        mean, log_std = coder.encoder(torch.cat([t.seen, t.action], 1)).chunk(2, -1)
        prior, posterior = (
            torch.distributions.Normal(0.0, 1.0),
            torch.distributions.Normal(mean, log_std.exp()),
        )
        divergence = torch.distributions.kl_divergence(posterior, prior).mean()
        repeated = torch.tanh(coder.decode(t.seen, mean + log_std.exp() * torch.randn_like(mean)))
    torch.testing.assert_close(loss, ((repeated - t.action) ** 2).mean() + 0.5 * divergence)


def test_it_takes_the_candidate_that_the_first_critic_likes_best(learnt):
    _, model, t = learnt
    seen = t.seen.numpy()
    one, many = (act(small(Bcq, candidates=n).policy(model, "sample"), seen)[0] for n in (1, 60))
    with torch.no_grad():
        values = [model.critics.first(t.seen, torch.from_numpy(actions)) for actions in (one, many)]
    assert values[1].mean() > values[0].mean()
    with torch.no_grad():
        torch.testing.assert_close(
            model.critics.first(t.seen, t.action), model.critics.both_values(t.seen, t.action)[0]
        )


def test_other_modes_are_refused(learnt):
    algorithm, model, _ = learnt
    for mode in ("mean", "plan"):
        with pytest.raises(UserError, match=f"bcq has no mode {mode}"):
            algorithm.policy(model, mode)


@pytest.mark.slow
def test_it_learns_the_toy_from_random_play(tmp_path):
    """The reward is 1 - the mean distance from the shown point: random play gets about 4.7 of 10,
    and only values tell the good from the bad."""
    from making import played, stored

    stores = {TASK: stored(tmp_path, TASK, 300)}
    learner = Learner(
        Bcq(hidden=(64, 64), vae_hidden=(64, 64), perturbation=0.3, discount=0.0),
        {TASK: SIGNATURE},
        1,
    )
    learner.update(stores, 1500)
    policy = learner.algorithm.policy(learner.model, "sample")
    returns = np.mean([e.rewards.mean() for e in played(TASK, 40, policy=policy).episodes])
    random = np.mean([e.rewards.mean() for e in played(TASK, 40).episodes])
    assert random < 0.5 < 0.8 < returns
