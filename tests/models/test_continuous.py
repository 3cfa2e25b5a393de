"""Bounded continuous actions as one vector, ensembles against their members, squashed Gaussians
against torch's distributions."""

import numpy as np
import pytest
import torch

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.continuous import (
    ContinuousSpaces,
    DiagonalGaussian,
    Ensemble,
    squashed_log_prob,
)
from bigdm_ray.models.heads import normals

SEEN = {"a": Leaf("tensor", (2, 2), "float32"), "b": Leaf("discrete", (), "int32", choices=(3,))}
ACTED = {
    "arm": Leaf("tensor", (2,), "float32", (-1.0, 0.0), (1.0, 4.0)),
    "grip": Leaf("tensor", (), "float64", (2.0,), (6.0,)),
}


def spaces(seen=SEEN, acted=ACTED):
    return ContinuousSpaces("this", {"t": Signature(seen, acted)})


def test_leaves_become_one_vector_and_come_back():
    made = spaces()
    assert (made.seen, made.acted) == (7, 3)
    packed = made.pack(
        {"arm": torch.tensor([[-1.0, 4.0], [0.0, 2.0]]), "grip": torch.tensor([2.0, 5.0])}
    )
    assert packed.tolist() == [[-1, 1, -1], [0, 0, 0.5]]
    back = made.unpack(torch.tensor([[-1.0, 1.0, -1.0], [0.0, -7.0, 0.5]]))
    assert back["arm"].tolist() == [[-1, 4], [0, 0]] and back["grip"].tolist() == [2, 5], (
        "cut to the bounds"
    )
    assert {path: (v.shape, v.dtype) for path, v in back.items()} == {
        "arm": ((2, 2), torch.float32),
        "grip": ((2,), torch.float64),
    }
    windows = made.pack({"arm": torch.zeros(5, 2, 2), "grip": torch.zeros(5, 2)})
    assert windows.shape == (5, 2, 3)
    seen = made.see({"a": torch.arange(4.0).reshape(1, 2, 2), "b": torch.tensor([2])})
    assert seen.tolist() == [[0, 1, 2, 3, 0, 0, 1]]


@pytest.mark.parametrize(
    ("seen", "acted", "told"),
    [
        (
            {"": Leaf("image", (3, 4, 4), "uint8")},
            ACTED,
            "this reads vectors, but the observation is of kind image",
        ),
        ({"words": Leaf("text", (8,), "uint8")}, ACTED, "the observation 'words' is of kind text"),
        (SEEN, {"": Leaf("discrete", (), "int32", choices=(3,))}, "the action is discrete"),
        (SEEN, {"arm": Leaf("tensor", (2,), "float32")}, "the action 'arm' is unbounded"),
    ],
)
def test_other_leaves_are_refused(seen, acted, told):
    with pytest.raises(UserError, match=told):
        spaces(seen, acted)


def test_an_ensemble_is_its_members_side_by_side():
    torch.manual_seed(0)
    ensemble = Ensemble(3, [4, 8, 5, 2])
    shared, own = torch.randn(6, 4), torch.randn(3, 6, 4)

    def alone(member, rows):
        layers = [torch.nn.Linear(w.shape[1], w.shape[2]) for w in ensemble.weights]
        for layer, weight, bias in zip(layers, ensemble.weights, ensemble.biases, strict=True):
            layer.weight.data, layer.bias.data = weight[member].T.clone(), bias[member, 0].clone()
        return torch.nn.Sequential(
            layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]
        )(rows)

    for member in range(3):
        torch.testing.assert_close(ensemble(shared)[member], alone(member, shared))
        torch.testing.assert_close(ensemble(own)[member], alone(member, own[member]))
    torch.testing.assert_close(ensemble.first(shared), alone(0, shared))


def test_an_ensemble_begins_as_linear_layers_do():
    torch.manual_seed(0)
    weights = [weight.detach() for weight in Ensemble(2, [100, 400, 1]).weights]
    assert weights[0].abs().max() <= 0.1 and weights[0].std() == pytest.approx(
        torch.nn.Linear(100, 400).weight.std().item(), rel=0.02
    )
    assert not torch.equal(weights[0][0], weights[0][1])


def test_the_squashed_density_is_torchs():
    mean, log_std, raw = torch.randn(4, 3), torch.randn(4, 3) * 0.3, torch.randn(4, 3)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(
        normal, [torch.distributions.TanhTransform()]
    )
    torch.testing.assert_close(
        squashed_log_prob(raw, mean, log_std),
        squashed.log_prob(torch.tanh(raw)).sum(-1),
        rtol=1e-3,
        atol=1e-3,
    )
    assert torch.isfinite(
        squashed_log_prob(torch.full((1, 3), 50.0), torch.zeros(1, 3), torch.zeros(1, 3))
    ).all()


@pytest.mark.parametrize("soft", [True, False])
def test_the_log_of_the_deviation_keeps_to_its_range(soft):
    policy = DiagonalGaussian(3, (8,), 2, (-5.0, 0.0), soft)
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([0.0, 0.0, 90.0, -90.0]))
    mean, log_std = policy(torch.randn(4, 3))
    assert mean.shape == (4, 2)
    torch.testing.assert_close(log_std, torch.tensor([[0.0, -5.0]]).expand(4, 2))


def test_normals_of_uniforms():
    made = normals(torch.from_numpy(np.random.default_rng(0).random(100_000, np.float32)))
    assert abs(made.mean()) < 0.02 and abs(made.std() - 1) < 0.02
    assert torch.isfinite(normals(torch.tensor([0.0, 1 - 2**-24]))).all()
