"""Encoders: every kind of leaf becomes numbers that tell its values apart, wherever the axes in
front of it end."""

import pytest
import torch

from bigdm_ray.envs.signature import Leaf
from bigdm_ray.errors import UserError
from bigdm_ray.models.networks import Images, Vector, orthogonal

LEAVES = {
    "body": Leaf("tensor", (2, 2), "float32"),
    "eye": Leaf("image", (3, 9, 6), "uint8"),
    "flags": Leaf("discrete", (2,), "int32", choices=(2, 3)),
    "mission": Leaf("text", (6,), "uint8"),
}


def text(*words):
    return torch.tensor([list(word.encode().ljust(6, b"\0")) for word in words], dtype=torch.uint8)


def test_a_vector_is_its_numbers_its_one_hots_and_the_mean_of_its_bytes():
    torch.manual_seed(0)
    vector = Vector(LEAVES)
    seen = {
        "body": torch.arange(8.0).reshape(2, 2, 2),
        "flags": torch.tensor([[1, 2], [0, 0]]),
        "mission": text("go", ""),
    }
    out = vector(seen)
    assert out.shape == (2, vector.width) == (2, 4 + 5 + 32)
    assert out[0, :9].tolist() == [0, 1, 2, 3, 0, 1, 0, 0, 1]
    assert out[1, 4:9].tolist() == [1, 0, 1, 0, 0]
    (embedding,) = vector.text.values()
    torch.testing.assert_close(out[0, 9:], embedding.weight[[ord("g"), ord("o")]].mean(0))
    assert not out[1, 9:].any(), "no text is no signal, and no division by zero"


def test_a_grid_is_a_one_hot_of_each_symbol_and_is_neither_scaled_nor_convolved():
    grid = Leaf("grid", (2, 1, 2), "uint8", choices=(4, 2, 4, 2))
    vector, images = Vector({"": grid}), Images({"": grid}, (4,))
    assert vector.width == 12 and images.width == 0
    seen = torch.tensor([[[3, 1]], [[0, 0]]], dtype=torch.uint8)
    assert vector({"": seen}).tolist() == [0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0]
    rows = torch.stack([seen] * 6).reshape(2, 3, 2, 1, 2)
    assert torch.equal(vector({"": rows})[1, 2], vector({"": seen}))
    with pytest.raises(UserError, match="grid of symbols, which is not; set"):
        Images({"": grid}, (4,), stack=2)


def test_leading_axes_do_not_matter():
    torch.manual_seed(0)
    vector, images = Vector(LEAVES), Images(LEAVES, (4, 5), 1)
    lead = (2, 3)
    seen = {
        "body": torch.randn(*lead, 2, 2),
        "eye": torch.randint(256, (*lead, 3, 9, 6), dtype=torch.uint8),
        "flags": torch.stack([torch.randint(2, lead), torch.randint(3, lead)], -1),
        "mission": text("a", "bb", "ccc", "d", "", "abcdef").reshape(*lead, 6),
    }
    for network in (vector, images):
        whole = network(seen)
        assert whole.shape == (*lead, network.width)
        for i in range(lead[0]):
            for j in range(lead[1]):
                torch.testing.assert_close(
                    whole[i, j],
                    network({path: value[i, j] for path, value in seen.items()}),
                    rtol=1e-5,
                    atol=1e-6,
                )


def test_pictures_are_scaled_to_one_and_stacks_are_channels():
    images = Images({"": Leaf("image", (2, 8, 8), "uint8")}, (3,), 4)
    (layers,) = images.stacks
    assert layers[0].in_channels == 8 and layers[0].stride == (2, 2) and images.width == 3 * 4 * 4
    orthogonal(images)
    white, black = (
        images({"": torch.full((1, 8, 8, 8), 255, dtype=torch.uint8)}),
        images({"": torch.zeros(1, 8, 8, 8, dtype=torch.uint8)}),
    )
    torch.testing.assert_close(white, layers(torch.ones(1, 8, 8, 8)).reshape(1, -1))
    assert not black.any(), "biases begin at zero"


def test_initial_weights_are_orthogonal_with_gain_root_two():
    layer = orthogonal(torch.nn.Linear(6, 4))
    torch.testing.assert_close(
        layer.weight @ layer.weight.T, 2 * torch.eye(4), rtol=1e-5, atol=1e-5
    )
    assert not layer.bias.any()
