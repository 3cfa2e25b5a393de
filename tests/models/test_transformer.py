"""The transformer: causal, its cache equal to the full forward, and only what is asked for
computed."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from bigdm_ray.models.parallel import use_bfloat16
from bigdm_ray.models.transformer import DropoutAttention, Packing, Transformer, dropout_mask

KINDS = [
    {"positions": "none"},
    {"positions": "learned"},
    {"positions": "rotary", "norm": "rms", "gated": True, "activation": "silu"},
    {"positions": "learned", "hidden_keys": torch.tensor([False, False, True] * 8)},
]


def made(**more):
    torch.manual_seed(0)
    model = Transformer(16, 3, 2, 24, **more)
    if model.table is not None:
        torch.nn.init.normal_(model.table)
    for p in model.parameters():
        # norms stay near 1, biases are drawn
        p.data = torch.randn(p.shape) * 0.3 + (0 if p.ndim > 1 else p.data)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_later_is_seen(kind):
    model, x = made(**kind), torch.randn(2, 12, 16)
    y = x.clone()
    y[:, 7:] += torch.randn(5, 16)
    a, b = model(x), model(y)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert (a[:, 7:] - b[:, 7:]).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [slice(1, None, 3), slice(-1, None), torch.tensor([0, 5, 11])])
def test_outputs_at_some_tokens_are_those_of_all(kind, at):
    model, x = made(**kind), torch.randn(2, 12, 16)
    torch.testing.assert_close(model(x, at), model(x)[:, at], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[1] * 24, [5, 1, 1, 3, 14], [24]])
def test_decoding_with_the_cache_equals_the_full_forward(kind, pieces):
    model, x = made(**kind), torch.randn(3, 24, 16)
    full, cache = model(x), model.empty(3)
    for end, t in zip(itertools.accumulate(pieces), pieces, strict=True):
        torch.testing.assert_close(
            model.extend(x[:, end - t : end], cache, end - t),
            full[:, end - t : end],
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_can_be_indexed(kind):
    model, x = made(**kind), torch.randn(3, 12, 16)
    cache = model.empty(3)
    model.extend(x[:, :8], cache, 0)
    rows = torch.tensor([2, 2, 0, 1])
    out = model.extend(x[rows, 8:], cache.take(rows), 8, wanted=1)
    torch.testing.assert_close(out, model(x)[rows, -1:], atol=1e-5, rtol=1e-5)


def test_rows_at_different_places_decode_as_the_full_forward():
    model, x = made(), torch.randn(2, 12, 16)
    cache = model.empty(2)
    full = model(x)
    # the first row has seen five tokens, the second two
    model.extend(x[:1, :5], one := model.empty(1), 0)
    cache.keys[:, 0], cache.values[:, 0] = one.keys[:, 0], one.values[:, 0]
    model.extend(x[1:, :2], one := model.empty(1), 0)
    cache.keys[:, 1], cache.values[:, 1] = one.keys[:, 0], one.values[:, 0]
    slots = torch.tensor([[5, 6], [2, 3]])
    new = torch.stack([x[0, 5:7], x[1, 2:4]])
    out = model.scatter(new, cache, slots, torch.arange(24) <= slots[..., None])
    torch.testing.assert_close(out, torch.stack([full[0, 5:7], full[1, 2:4]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_token_alone_is_as_among_all_of_them_whatever_is_padded(kind):
    model, x = made(**kind), torch.randn(3, 12, 16)
    mask = torch.arange(12) >= torch.tensor([0, 4, 11])[:, None]
    torch.testing.assert_close(
        model(x, slice(-1, None), mask), model(x, mask=mask)[:, -1:], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS[:3])
def test_padding_on_either_side_changes_nothing(kind):
    model, x = made(**kind), torch.randn(2, 10, 16)
    right = torch.cat([x, 9 * torch.randn(2, 4, 16)], 1)
    torch.testing.assert_close(model(right)[:, :10], model(x), atol=1e-5, rtol=1e-5)
    if kind["positions"] == "learned":
        return
    left = torch.cat([9 * torch.randn(2, 4, 16), x], 1)
    mask = torch.arange(14).expand(2, 14) >= 4
    torch.testing.assert_close(model(left, mask=mask)[:, 4:], model(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model(left, slice(-1, None), mask), model(x)[:, -1:], atol=1e-5, rtol=1e-5
    )


def test_hidden_keys_are_known_to_themselves_alone_and_by_no_attention():
    model, x = (
        made(positions="learned", hidden_keys=torch.tensor([False, False, True] * 8)),
        torch.randn(1, 12, 16),
    )
    y = x.clone()
    y[:, 5] += torch.randn(16)
    a, b = model(x), model(y)
    changed = (a - b).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [5]
    looked = model._look(torch.arange(12), torch.arange(12), None)
    assert looked[5].tolist() == [True, True, False, True, True, False] + [False] * 6
    with pytest.raises(ValueError, match="first place is hidden"):
        made(hidden_keys=torch.tensor([True] + [False] * 23))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="25 tokens do not fit a context of 24"):
        made(positions="learned")(torch.randn(1, 25, 16))
    with pytest.raises(ValueError, match="width of 10 cannot be shared by 3 heads"):
        Transformer(10, 1, 3, 8)


@torch.no_grad()
def test_each_dropout_changes_what_comes_out_and_leaves_its_mean():
    """Embeddings, attention and residuals one at a time, the rest kept; what follows is linear
    here, so that the mean is that without dropout."""
    torch.manual_seed(0)
    x, p, draws = torch.randn(1, 6, 16), 0.25, 4000
    block = Transformer(16, 1, 2, 8, dropout=p).blocks[0]
    torch.nn.init.normal_(block.qkv.weight, std=0.3)
    queries, keys, values = (
        part.expand(draws, -1, -1, -1) for part in block.eval().project(x, None)
    )
    look = torch.ones(6, 6, dtype=torch.bool).tril()

    def gathered(mask):
        return block.attend(queries, keys, values, mask, mask is None)

    still = gathered(None)[0]
    for mask in (None, look, look.expand(1, 1, 6, 6)):
        block.train()
        out = gathered(mask)
        assert (out[:50] != still).any(-1).all() and (out[0] - out[1]).abs().max() > 1e-3
        torch.testing.assert_close(out.mean(0), still, atol=0.15, rtol=0)
        block.eval()
        torch.testing.assert_close(gathered(mask)[0], still)

    model = Transformer(16, 1, 2, 8, dropout=p)
    place = torch.arange(6)
    entered = model.train()._enter(x.expand(draws, -1, -1), place)
    torch.testing.assert_close(
        torch.unique((entered / x).round(decimals=3)), torch.tensor([0.0, 1.333])
    )
    torch.testing.assert_close(entered.mean(0), x[0], atol=0.15, rtol=0)
    assert model.eval()._enter(x, place) is x

    block = Transformer(16, 1, 2, 8, dropout=p).blocks[0].train()
    for name in (
        "out",
        "down",
    ):  # what one of the two residuals adds is constant, the other adds nothing
        for layer in (block.out, block.down):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.constant_(layer.bias, 3.0 if layer is getattr(block, name) else 0.0)
        added = block.finish(x.expand(draws, -1, -1), x.expand(draws, -1, -1)) - x
        assert set(added.round(decimals=3).unique().tolist()) == {0.0, 4.0} and float(
            added.mean()
        ) == pytest.approx(3.0, abs=0.05)
        assert (block.eval().finish(x, x) - x).round(decimals=3).unique().tolist() == [3.0]
        block.train()


def test_attention_with_dropout_has_the_gradients_of_the_plain_formula():
    torch.manual_seed(0)
    look = torch.ones(70, 70).tril().bool()
    look[:, 3::4] = False
    for queries, mask in ((70, look), (40, look[30:])):
        parts = [
            torch.randn(2, 3, t, 8, dtype=torch.float64, requires_grad=True)
            for t in (queries, 70, 70)
        ]
        torch.manual_seed(1)
        out = DropoutAttention.apply(*parts, mask, 0.25)
        torch.manual_seed(1)
        share = torch.zeros(6, queries, 70, dtype=torch.float64)
        for a in range(0, queries, DropoutAttention.ROWS):
            seen = int(mask[a : a + DropoutAttention.ROWS].any(0).nonzero()[-1]) + 1
            share[:, a : a + DropoutAttention.ROWS, :seen] = dropout_mask(
                torch.Size((6, min(DropoutAttention.ROWS, queries - a), seen)), 0.25
            )
        weights = (
            (parts[0] @ parts[1].transpose(2, 3) / 8**0.5)
            .masked_fill(~mask, float("-inf"))
            .softmax(-1)
        )
        plain = (weights * share.view(2, 3, queries, 70)) @ parts[2]
        torch.testing.assert_close(out, plain)
        direction = torch.randn_like(out)
        for mine, want in zip(
            torch.autograd.grad(out, parts, direction),
            torch.autograd.grad(plain, parts, direction),
            strict=True,
        ):
            torch.testing.assert_close(mine, want)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("at", [None, slice(1, None, 3), slice(-1, None)])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32_in_outputs_and_gradients(kind, at, dropout):
    plain = made(**kind, dropout=dropout).train()
    other = copy.deepcopy(plain)
    assert use_bfloat16(other) == 1
    x, answers = torch.randn(2, 12, 16), []
    for model in (plain, other):
        torch.manual_seed(1)  # the same is dropped
        out = model(x, at)
        model.blocks[0].up.register_forward_hook(
            lambda module, given, out: answers.append(out.dtype)
        )
        model(x, at)
        (out**2).mean().backward()
        answers.append(out)
    assert (
        answers[0] == torch.float32
        and answers[2] == torch.bfloat16
        and answers[3].dtype == torch.float32
    )
    torch.testing.assert_close(answers[3], answers[1], atol=0.15, rtol=0.1)
    for (name, mine), theirs in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert theirs.dtype == theirs.grad.dtype == torch.float32
        assert (mine.grad - theirs.grad).norm() <= 0.1 * mine.grad.norm() + 1e-3, name


def test_a_copy_of_what_multiplies_in_bfloat16_has_weights_of_its_own():
    model, x = made(), torch.randn(2, 12, 16)
    use_bfloat16(model)
    other = copy.deepcopy(model)
    for p in other.parameters():
        torch.nn.init.zeros_(p)
    assert not other(x).any() and model(x).any()


@pytest.mark.parametrize("half", [False, True])
def test_packed_sequences_are_read_as_each_would_be_alone(half: bool) -> None:
    """Outputs and gradients, of groups with padding and without; in bfloat16 to its rounding."""
    model = made(norm="rms", gated=True, activation="silu")
    lengths = [7, 7, 6, 3, 3, 1]
    parts = [torch.randn(length, 16) for length in lengths]
    alone = torch.cat([model(part[None])[0] for part in parts])
    direction = torch.randn_like(alone)
    wanted = torch.autograd.grad((alone * direction).sum(), list(model.blocks.parameters()))
    if half:
        use_bfloat16(model)
    groups = [torch.tensor([7, 7, 6]), torch.tensor([3, 3]), torch.tensor([1])]
    packed = model(torch.cat(parts), packing=Packing(groups))
    assert packed.dtype == torch.float32
    tolerance = 0.05 if half else 1e-5
    torch.testing.assert_close(packed, alone, atol=tolerance, rtol=tolerance)
    found = torch.autograd.grad((packed * direction).sum(), list(model.blocks.parameters()))
    for mine, want in zip(found, wanted, strict=True):
        assert (mine - want).norm() <= tolerance * want.norm() + 1e-4
