import numpy as np
import pytest
import torch

from bigdm_ray.training.one_step import train_one_step


def linear_system(n, seed, choices):
    """Steps of s' = s + A s + B[a] for a known A and B; the last action element is a choice of
    three where there are choices."""
    chance = np.random.default_rng(seed)
    states, moves = chance.normal(0, (1, 20), (n, 2)), chance.uniform(-1, 1, (n, 1))
    matrix, pushes = (
        np.array([[-0.2, 0.01], [3.0, -0.1]]),
        np.array([[0.5, -4.0], [0.0, 0.0], [-0.3, 9.0]]),
    )
    following = states + states @ matrix.T + moves * (0.2, 5.0)
    actions = moves
    if choices[-1]:
        picked = chance.integers(0, 3, n)
        following, actions = following + pushes[picked], np.concatenate([moves, picked[:, None]], 1)
    return [torch.from_numpy(part.astype(np.float32)) for part in (states, actions, following)]


@pytest.mark.slow
def test_a_known_linear_system_is_learned():
    for choices in ([0], [0, 3]):
        states, actions, following = linear_system(4000, 1, choices)
        model = train_one_step(states, actions, following, choices, 250, 3)
        fresh, taken, truth = linear_system(500, 2, choices)
        error = ((model(fresh, taken) - truth) / (truth - fresh).std(0)).pow(2).mean().sqrt()
        assert error < 0.1, error


def test_an_open_loop_prediction_applies_the_model_to_its_own_states_and_stays_within_the_data():
    states, actions, following = linear_system(500, 1, [0])
    model = train_one_step(states, actions, following, [0], 20, 3)
    taken = torch.rand(7, 5, 1)
    found = model.follow(states[:7], taken)
    by_hand = states[:7]
    for t in range(5):
        by_hand = model(by_hand, taken[:, t])
        torch.testing.assert_close(found[:, t], by_hand)
    far = model.follow(1e6 * states[:7], taken)
    assert (far >= following.amin(0)).all() and (far <= following.amax(0)).all()


def test_the_seed_decides_and_nothing_else_is_touched():
    data = linear_system(300, 1, [0])
    torch.manual_seed(9)
    before = torch.rand(3)
    torch.manual_seed(9)
    one, again, other = (train_one_step(*data, [0], 5, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_an_element_that_never_changes_is_predicted_to_stay():
    states, actions, following = linear_system(300, 1, [0])
    still = torch.full((300, 1), 4.0)
    model = train_one_step(
        torch.cat([states, still], 1), actions, torch.cat([following, still], 1), [0], 5, 3
    )
    assert (
        model.follow(torch.cat([states, still], 1)[:5], torch.rand(5, 4, 1))[..., 2] == 4.0
    ).all()
