import json

import numpy as np
import pytest
from gymnasium import spaces
from sources import raw

from bigdm_ray.envs.signature import Signature, leaves
from bigdm_ray.envs.values import flatten
from bigdm_ray.errors import UserError
from bigdm_ray.formats.spaces import (
    flatten_leaf,
    flatten_texts,
    layout,
    leaf_spaces,
    plain_space,
    space_from_json,
    space_to_json,
    unflatten_leaf,
)

SPACES = {
    "box": spaces.Box(-2.0, np.array([1.0, 2.0, 3.0], np.float32), (3,), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "whole": spaces.Box(-3, 5, (2,), np.int16),
    "picture": spaces.Box(0, 255, (40, 32, 3), np.uint8),
    "grey": spaces.Box(0, 255, (40, 32), np.uint8),
    "choice": spaces.Discrete(4, start=-1),
    "choices": spaces.MultiDiscrete([2, 3], start=[5, 0]),
    "grid": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "symbols": spaces.MultiDiscrete(np.full((3, 3, 2), (4, 5)), np.uint8),
    "flags": spaces.MultiBinary(3),
    "text": spaces.Text(6),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(0.0, 1.0, (2,), np.float32)]),
    "dict": spaces.Dict(
        {"b": spaces.Dict({"c": spaces.Discrete(3)}), "a": spaces.Box(0.0, 1.0, (), np.float32)}
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_comes_back_from_json_and_minari_reads_it_too(name):
    from minari.serialization import deserialize_space, serialize_space

    space = SPACES[name]
    text = json.dumps(space_to_json(space))
    assert space_from_json(text, "here") == space == deserialize_space(text)
    assert space_from_json(serialize_space(space), "here") == space


@pytest.mark.parametrize("name", SPACES)
def test_many_values_at_once_are_flattened_as_one_is(name):
    space = SPACES[name]
    space.seed(1)
    values = [space.sample() for _ in range(5)]
    single = [flatten(space, value) for value in values]
    found = leaves(space)
    for path, file, leaf in leaf_spaces(space, tuple_name="{}"):
        assert path == file
        picked = values
        for part in path.split("/") if path else []:
            picked = [value[int(part) if isinstance(value, tuple) else part] for value in picked]
        flat = flatten_leaf(leaf, picked if isinstance(leaf, spaces.Text) else np.array(picked))
        expected = np.stack([one[path] for one in single])
        np.testing.assert_array_equal(flat.reshape(expected.shape).astype(expected.dtype), expected)
        assert expected.shape[1:] == found[path].shape
        back = unflatten_leaf(leaf, expected)
        for k, value in enumerate(picked):
            np.testing.assert_array_equal(
                back[k], value if isinstance(value, str) else np.asarray(value, expected.dtype)
            )
        assert (
            leaf.contains(back[0])
            or leaf.contains(np.asarray(back[0], leaf.dtype))
            or isinstance(leaf, spaces.Discrete)
        )


@pytest.mark.parametrize("name", SPACES)
def test_a_plain_space_looks_like_its_leaves(name):
    signature = Signature(leaves(SPACES[name]), leaves(spaces.Discrete(2)))
    plain = plain_space(signature.observations)
    again = leaves(plain)
    assert again.keys() == signature.observations.keys()
    for path, leaf in signature.observations.items():
        assert (again[path].size, again[path].choices) == (leaf.size, leaf.choices)
        if leaf.kind in ("grid", "image", "tensor"):
            assert again[path].shape == leaf.shape and again[path].dtype == leaf.dtype
    assert layout("gymnasium:NotThere-v0", signature)[0] == plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "null",
        "{}",
        '{"type": "Dict"}',
        '{"type": "Tuple", "subspaces": 3}',
        '{"type": "Discrete", "n": "x"}',
        '{"type": "Discrete", "n": -4}',
        "[" * 5000,
    ],
)
def test_what_is_no_space_is_one_sentence(text):
    with pytest.raises(UserError, match="here describes no space") as caught:
        space_from_json(text, "here")
    assert "\n" not in str(caught.value)


def test_a_graph_cannot_be_written_down():
    with pytest.raises(UserError, match="cannot be written down"):
        space_to_json(spaces.Sequence(spaces.Discrete(2)))


def test_the_helper_of_other_tests_undoes_flatten():
    space = SPACES["dict"]
    value = space.sample()
    arrays = {path: values[None] for path, values in flatten(space, value).items()}
    assert raw(space, arrays, 0)["b"]["c"] == value["b"]["c"]


def test_a_text_that_is_too_long_is_refused():
    space = spaces.Text(2)
    same = flatten_texts(space, ["abc", "äöü"], "words", lambda k: f"row {k}")
    np.testing.assert_array_equal(same, flatten_leaf(space, ["abc", "äöü"]))
    with pytest.raises(
        UserError, match="row 1, field 'words': a text of 9 bytes where at most 8 are expected"
    ):
        flatten_texts(space, ["abc", "abcdefghi"], "words", lambda k: f"row {k}")
