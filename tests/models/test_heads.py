"""ActionHead: its probabilities are those of torch.distributions, and its actions follow them."""

import numpy as np
import pytest
import torch

from bigdm_ray.envs.signature import Leaf
from bigdm_ray.models.heads import LOG_STD_RANGE, ActionHead
from bigdm_ray.models.heads import draw_choice as picked

LEAVES = {
    "arm": Leaf("tensor", (2,), "float32", (-1.0, -0.5), (1.0, 0.5)),
    "free": Leaf("tensor", (1, 2), "float32"),
    "grip": Leaf("discrete", (2,), "int32", choices=(2, 3)),
    "mode": Leaf("discrete", (), "int32", choices=(4,)),
}


@pytest.fixture
def head():
    torch.manual_seed(0)
    return ActionHead(8, LEAVES)


def split(parameters):
    """Parameters as (mean, log_std) of arm and free, logits of grip and mode."""
    arm, free, grip, mode = parameters.split([4, 4, 5, 4], -1)
    gauss = [
        torch.distributions.Normal(p.chunk(2, -1)[0], p.chunk(2, -1)[1].clamp(*LOG_STD_RANGE).exp())
        for p in (arm, free)
    ]
    return *gauss, *(
        torch.distributions.Categorical(logits=logits)
        for logits in (grip[..., :2], grip[..., 2:], mode)
    )


def test_log_probabilities_are_those_of_torch_summed_over_leaves_and_elements(head):
    parameters = 3 * torch.randn(5, 7, sum(head.sizes))
    actions = {
        "arm": torch.randn(5, 7, 2),
        "free": torch.randn(5, 7, 1, 2),
        "grip": torch.stack([torch.randint(2, (5, 7)), torch.randint(3, (5, 7))], -1),
        "mode": torch.randint(4, (5, 7)),
    }
    arm, free, grip0, grip1, mode = split(parameters)
    expected = arm.log_prob(actions["arm"]).sum(-1) + free.log_prob(
        actions["free"].reshape(5, 7, 2)
    ).sum(-1)
    expected = (
        expected
        + grip0.log_prob(actions["grip"][..., 0])
        + grip1.log_prob(actions["grip"][..., 1])
        + mode.log_prob(actions["mode"])
    )
    torch.testing.assert_close(head.log_prob(parameters, actions), expected, rtol=1e-4, atol=1e-4)


def test_sampled_actions_follow_the_probabilities(head):
    """A grid of uniforms is a sample without noise."""
    n = 4000
    parameters = torch.randn(sum(head.sizes)).expand(n, -1)
    arm, free, grip0, grip1, mode = split(parameters[0])
    assert head.uniforms == 7
    grid = (torch.arange(n) + 0.5) / n
    uniforms = torch.stack([grid[torch.randperm(n)] for _ in range(7)], 1)
    actions = head.act(parameters, uniforms)
    for drawn, law in (
        (actions["grip"][:, 0], grip0),
        (actions["grip"][:, 1], grip1),
        (actions["mode"], mode),
    ):
        shares = torch.bincount(drawn, minlength=law.probs.numel()) / n
        torch.testing.assert_close(shares, law.probs, atol=2e-3, rtol=0)
    wide = actions["free"].reshape(n, 2)
    torch.testing.assert_close(wide.mean(0), free.mean, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(wide.std(0), free.stddev, atol=1e-2, rtol=1e-2)
    expected = (
        (arm.mean + arm.stddev * torch.randn(200_000, 2))
        .clamp(torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 0.5]))
        .mean(0)
    )
    torch.testing.assert_close(actions["arm"].mean(0), expected, atol=1e-2, rtol=0)


def test_actions_have_the_shape_dtype_and_bounds_of_their_leaves(head):
    for uniforms in (
        None,
        torch.rand(64, head.uniforms),
        torch.zeros(64, head.uniforms),
        torch.full((64, head.uniforms), np.float32(1 - 2**-24)),
    ):
        actions = head.act(20 * torch.randn(64, sum(head.sizes)), uniforms)
        for path, leaf in LEAVES.items():
            values = actions[path].numpy()
            assert (
                values.shape == (64, *leaf.shape)
                and str(values.dtype) == leaf.dtype
                and np.isfinite(values).all()
            )
            if leaf.choices:
                assert (values.reshape(64, -1) >= 0).all() and (
                    values.reshape(64, -1) < leaf.choices
                ).all()
            if leaf.low is not None:
                assert (values >= leaf.low).all() and (values <= leaf.high).all()


def test_without_chance_the_most_likely_action_is_taken(head):
    parameters = torch.randn(16, sum(head.sizes))
    arm, free, grip0, _, mode = split(parameters)
    actions = head.act(parameters, None)
    assert torch.equal(actions["mode"], mode.probs.argmax(-1).int()) and torch.equal(
        actions["grip"][:, 0], grip0.probs.argmax(-1).int()
    )
    assert torch.equal(actions["free"].reshape(16, 2), free.mean)
    assert torch.equal(actions["arm"][:, 0], arm.mean[:, 0].clamp(-1, 1))


def test_what_follows_from_the_signature_is_no_part_of_the_weights(head):
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("choices", [2, 4, 18, 300])
def test_what_numpy_draws_is_what_torch_draws(choices):
    """Bit for bit, and at the edges of the shares: what is stored must not depend on who adds
    up."""
    chance = torch.Generator().manual_seed(choices)
    for spread in (0.1, 3.0, 20.0):
        shares = torch.softmax(torch.randn(2_000, choices, generator=chance) * spread, -1)
        below = shares.cumsum(-1)
        uniforms = torch.rand(2_000, 1, generator=chance)
        uniforms[::3] = below[::3, : 1 + choices // 2].max(-1, keepdim=True).values
        expected = (below < uniforms).sum(-1).clamp(max=choices - 1).int()
        assert torch.equal(picked(shares, uniforms), expected)
