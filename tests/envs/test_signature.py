"""Signature, flatten, unflatten: whatever gymnasium space there is becomes flat arrays and comes
back whole."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from bigdm_ray.envs import Signature, find_task, tasks
from bigdm_ray.envs.signature import Leaf, SpaceMismatch, leaves
from bigdm_ray.envs.values import flatten, unflatten
from bigdm_ray.errors import UserError
from bigdm_ray.formats.signatures import misfit

shapes = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)
numbers = st.integers(1, 5)
plain = st.one_of(
    st.builds(lambda shape: spaces.Box(-2.0, 3.0, shape, np.float32), shapes),
    st.builds(lambda shape: spaces.Box(-np.inf, np.inf, shape, np.float32), shapes),
    st.builds(lambda shape: spaces.Box(0, 1, shape, bool), shapes),
    st.builds(lambda shape: spaces.Box(-np.inf, np.inf, shape, np.float64), st.just((0,))),
    st.builds(lambda shape: spaces.Box(-5, 9, shape, np.int64), shapes),
    st.builds(
        lambda h, w: spaces.Box(0, 255, (h, w), np.uint8), st.integers(2, 9), st.integers(2, 9)
    ),
    st.builds(
        lambda h, w, c: spaces.Box(0, 255, (h, w, c), np.uint8),
        st.integers(5, 9),
        st.integers(5, 9),
        st.sampled_from([1, 3, 4]),
    ),
    st.builds(
        lambda h, w, c: spaces.Box(0, 255, (c, h, w), np.uint8),
        st.integers(5, 9),
        st.integers(5, 9),
        st.sampled_from([1, 2, 3]),
    ),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), numbers, st.integers(-3, 7)),
    st.builds(lambda n: spaces.MultiDiscrete(n), st.lists(numbers, min_size=1, max_size=3)),
    st.builds(
        lambda n: spaces.MultiDiscrete(n, start=np.arange(len(n)) - 1),
        st.lists(numbers, min_size=1, max_size=3),
    ),
    st.builds(
        lambda n: spaces.MultiDiscrete(np.array(n).reshape(2, 2)),
        st.lists(numbers, min_size=4, max_size=4),
    ),
    st.builds(
        lambda n: spaces.MultiDiscrete(np.array(n).reshape(2, 3, 1), np.uint8),
        st.lists(numbers, min_size=6, max_size=6),
    ),
    st.builds(lambda n: spaces.MultiBinary(n), st.one_of(numbers, st.just([2, 3]))),
    st.builds(lambda n: spaces.Text(n, charset="ab é漢🙂"), st.integers(1, 6)),
)
keys = st.sampled_from(["arm", "eye", "a b", "z", "0"])
nested = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.dictionaries(keys, inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(lambda listed: spaces.Tuple(tuple(listed))),
    ),
    max_leaves=6,
)


LARGE = ("babyai", "metaworld")
"""Suites of which one task stands for all; `test_experts.py` has it."""


def equal(space, a, b):
    if isinstance(space, spaces.Dict):
        return a.keys() == b.keys() and all(
            equal(child, a[k], b[k]) for k, child in space.spaces.items()
        )
    if isinstance(space, spaces.Tuple):
        return len(a) == len(b) and all(
            equal(child, x, y) for child, x, y in zip(space.spaces, a, b, strict=True)
        )
    if isinstance(space, spaces.Text):
        return a == b
    return np.array_equal(a, b) and np.shape(a) == np.shape(b)


@given(nested, st.integers(0, 2**20))
def test_unflatten_is_the_inverse_of_flatten(space, seed):
    space.seed(seed)
    value = space.sample()
    arrays = flatten(space, value)
    back = unflatten(space, arrays)
    assert equal(space, value, back)
    assert space.contains(back)


@given(nested, st.integers(0, 2**20))
def test_flat_arrays_are_what_the_leaves_say(space, seed):
    space.seed(seed)
    arrays, told = flatten(space, space.sample()), leaves(space)
    assert list(told) == sorted(told)
    assert arrays.keys() == told.keys()
    for path, leaf in told.items():
        assert arrays[path].shape == leaf.shape, path
        assert str(arrays[path].dtype) == leaf.dtype, path
        if leaf.kind == "discrete":
            assert len(leaf.choices) == leaf.size
            assert (arrays[path].reshape(-1) >= 0).all() and (
                arrays[path].reshape(-1) < leaf.choices
            ).all()
        if leaf.kind == "image":
            assert len(leaf.shape) == 3
        if leaf.low is not None:
            assert (arrays[path].reshape(-1) >= leaf.low).all() and (
                arrays[path].reshape(-1) <= leaf.high
            ).all()


@given(nested, nested)
def test_a_signature_survives_json(seen, done):
    signature = Signature.of(seen, done)
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if task.suite in LARGE else ())
        for name, task in tasks().items()
        if name not in ("go-to-local", "reach")
    ],
)
def test_the_signature_of_a_task_survives_json(name):
    signature = find_task(name).signature()
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature
    assert signature.observations and signature.actions


def test_a_colour_picture_is_moved_not_reshaped():
    picture = np.zeros((5, 6, 3), np.uint8)
    picture[2, 4, 1] = 9
    flat = flatten(spaces.Box(0, 255, (5, 6, 3), np.uint8), picture)[""]
    assert flat.shape == (3, 5, 6) and flat[1, 2, 4] == 9


def test_a_grid_of_symbols_is_no_picture():
    """Its axes stay as they are, however like colours the last one looks, and so do its symbols."""
    space = spaces.MultiDiscrete(np.full((7, 7, 3), (11, 6, 3)), np.uint8)
    signature = Signature.of(space, space)
    leaf = signature.observations[""]
    assert leaf == Leaf("grid", (7, 7, 3), "uint8", choices=(11, 6, 3) * 49)
    assert signature.actions[""] == Leaf("discrete", (7, 7, 3), "int32", choices=(11, 6, 3) * 49)
    value = space.sample()
    seen = flatten(space, value)[""]
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, value)
    np.testing.assert_array_equal(unflatten(space, {"": seen}), value)
    signature.check({"": seen[None]})
    with pytest.raises(SpaceMismatch, match="has an element 6, but 0 to 5 are expected"):
        signature.check({"": np.full((1, 7, 7, 3), (0, 6, 0), np.uint8)})
    moved = Signature({"": Leaf("grid", (3, 7, 7), "uint8", choices=leaf.choices)}, {})
    assert misfit(moved, signature) is not None
    assert leaves(spaces.MultiDiscrete([[2, 3]]))[""].kind == "discrete"
    assert leaves(spaces.MultiDiscrete([2, 3], np.uint8))[""].kind == "discrete"


CHANNELS = [
    ((64, 64), (1, 64, 64)),
    ((64, 64, 12), (12, 64, 64)),  # the last axis is clearly the shortest
    ((84, 84, 2), (2, 84, 84)),
    ((210, 160, 3), (3, 210, 160)),
    ((7, 7, 3), (3, 7, 7)),
    ((9, 10, 4), (4, 9, 10)),
    ((12, 64, 64), (12, 64, 64)),  # so is the first
    ((2, 84, 84), (2, 84, 84)),
    ((4, 84, 84), (4, 84, 84)),
    ((3, 64, 4), (3, 64, 4)),
    ((5, 6, 3), (3, 5, 6)),  # neither is; one end has the channels of colours
    ((3, 6, 5), (3, 6, 5)),
    ((10, 10, 7), (7, 10, 10)),  # nor that; the two equal axes are a square
    ((10, 10, 12), (12, 10, 10)),
    ((7, 10, 10), (7, 10, 10)),
    ((4, 4, 3), (3, 4, 4)),
    ((3, 4, 4), (3, 4, 4)),
    ((9, 10, 7), (9, 10, 7)),  # nothing tells: the first
    ((4, 5, 3), (4, 5, 3)),
    ((3, 3, 3), (3, 3, 3)),
]


@pytest.mark.parametrize(("shape", "stored"), CHANNELS)
def test_which_axis_is_the_channels(shape, stored):
    space = spaces.Box(0, 255, shape, np.uint8)
    assert leaves(space)[""].shape == stored
    value = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    flat = flatten(space, value)[""]
    moved = value.reshape(1, *shape) if len(shape) == 2 else value
    assert flat.shape == stored
    np.testing.assert_array_equal(
        flat, np.moveaxis(moved, -1, 0) if moved.shape != stored else moved
    )
    np.testing.assert_array_equal(unflatten(space, {"": flat}), value)


def test_pictures_with_their_channels_elsewhere_are_others():
    """Data whose signature was made when Box(64, 64, 12) had 64 channels are refused, not mixed
    up."""
    old, new = (
        Signature({"": Leaf("image", shape, "uint8")}, {}) for shape in ((64, 64, 12), (12, 64, 64))
    )
    assert misfit(old, old) is None
    assert "image [64, 64, 12] where image [12, 64, 64] is expected" in misfit(old, new)
    flat, square = (Signature({"": Leaf("tensor", s, "float32")}, {}) for s in ((4,), (2, 2)))
    assert misfit(flat, square) is None, "numbers may be shaped otherwise"


def test_an_observation_of_python_numbers_takes_the_dtype_of_its_leaf():
    assert flatten(spaces.Box(-1, 1, (2,), np.float32), [1, 0])[""].dtype == np.float32


def test_the_paths_are_the_names_joined():
    space = spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
            "a": spaces.Dict({"x": spaces.Discrete(4)}),
        }
    )
    assert {path: leaf.choices for path, leaf in leaves(space).items()} == {
        "a/x": (4,),
        "b/0": (2,),
        "b/1": (3,),
    }


def test_a_space_without_a_flat_form_is_a_users_mistake():
    with pytest.raises(UserError, match="no flat form"):
        leaves(spaces.Sequence(spaces.Discrete(2)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eye": None}, r"its observation 'eye' is missing, but uint8 \(3, 32, 32\) is expected"),
        ({"nose": np.zeros(2)}, "its observation 'nose' is not known, but 'body/joints', "),
        (
            {"eye": np.zeros((2, 12, 12), np.uint8)},
            r"'eye' has the shape \(12, 12\), but \(3, 32, 32\)",
        ),
        ({"eye": np.zeros((2, 3, 32, 32))}, "'eye' is of type float64, but uint8 is"),
        ({"body/joints": np.full((2, 3), np.nan, np.float32)}, "has an element nan, but finite"),
        (
            {"body/mode": np.array([0, 9], np.int32)},
            "'body/mode' has an element 9, but 0 to ",
        ),
    ],
)
def test_what_does_not_fit_a_signature_is_told_by_leaf(change, says):
    signature = find_task("toy-mixed").signature()
    sound = {
        p: np.zeros((2, *leaf.shape), leaf.dtype) for p, leaf in signature.observations.items()
    }
    signature.check(sound)
    signature.check({path: values[:0] for path, values in sound.items()})
    signature.check(sound | {"body/joints": np.zeros((2, 3))})
    changed = {path: values for path, values in (sound | change).items() if values is not None}
    with pytest.raises(SpaceMismatch, match=says):
        signature.check(changed)
