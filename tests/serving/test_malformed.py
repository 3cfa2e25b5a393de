"""Malformed messages are refused, and nothing else comes of them; by hand `tests.fuzz.wire`."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from helpers_serving import Fixed, Swallowing, loaded_of

from bigdm_ray.algorithms.base import find_algorithm
from bigdm_ray.replay.episode import FOREIGN, EpisodeId
from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.serving import wire
from bigdm_ray.serving.server import Server
from bigdm_ray.serving.settings import ServerSettings
from tests.fuzz.wire import ALLOWED, Wire, episode_message, fuzz, leaf

ID = EpisodeId(7, FOREIGN, 0)


@pytest.fixture(scope="module")
def loaded():
    return loaded_of(find_algorithm("udrl"), "toy-vector")


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_no_malformed_message_is_answered_otherwise_than_it_may(loaded, count, capsys):
    settings = ServerSettings(address="0", max_sessions=1_000_000)
    with (
        Server(settings, Fixed(loaded), Swallowing()) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        found = list(fuzz(channel, range(count), 0))
        again = Wire(channel)
        again.begin()
        assert again.outcome("Act", again.samples(0)["data"]) == "OK"
    assert len(found) == count
    assert not [one for one in found if one[3] not in ALLOWED]
    assert {one[3] for one in found} >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert "fault" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "why"),
    [
        ({"dtype": "float32", "shape": [3], "data": b"12345678"}, "has 8 bytes, but 12 belong"),
        ({"dtype": "float32", "shape": [2**40], "data": b""}, "the longest of 1099511627776"),
        ({"dtype": "float32", "shape": [2**30] * 9, "data": b""}, f"but {4 * 2**270} belong"),
        ({"dtype": "float32", "shape": [0, 2**30, 2**30], "data": b""}, "is empty, but of"),
        ({"dtype": "float32", "shape": [1] * 17, "data": b"1234"}, "has 17 axes"),
        ({"dtype": "object", "shape": [1], "data": b"12345678"}, "is of the type 'object'"),
        ({"dtype": "", "shape": [], "data": b""}, "is of the type ''"),
    ],
)
def test_what_an_array_claims_is_held_against_its_bytes(array, why):
    with pytest.raises(wire.Malformed) as told:
        wire.read_array(pb.Array(**array), "it")
    assert why in str(told.value)


def test_arrays_come_out_as_they_went_in():
    chance = np.random.default_rng(0)
    for name in wire.DTYPES:
        for shape in ((), (0, 3), (5,), (2, 3, 4)):
            values = chance.integers(0, 100, shape).astype(name)
            back = wire.read_array(wire.write_array(values), "it")
            assert back.dtype == values.dtype
            np.testing.assert_array_equal(back, values)


ZEROS = np.zeros((7, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"rewards": wire.write_array(np.array([1.0, np.nan] * 3))},
            "reward at step 1 is not finite",
        ),
        ({"rewards": wire.write_array(np.zeros(0, np.float32))}, "1 to 1,000,000 of them"),
        ({"rewards": wire.write_array(np.zeros(6, np.int32))}, "but floats of one axis"),
        ({"observations": [leaf(ZEROS[1:])]}, "but 7 rows are expected"),
        ({"observations": [leaf(ZEROS), leaf(ZEROS)]}, "is there twice"),
        ({"observations": [leaf(ZEROS[:1], held=True), leaf(ZEROS, "eye")]}, "'eye' is not known"),
        ({"observations": []}, "its observation is missing"),
        ({"observations": [leaf(ZEROS[:, :2])]}, "has the shape (2,), but (3,)"),
        ({"observations": [leaf(ZEROS[:2], held=True)]}, "but 1 rows are expected"),
        ({"actions": [leaf(np.full(6, 3, np.int32))]}, "its action has an element 3, but 0 to 2"),
        ({"actions": [leaf(np.zeros(6, np.float32))]}, "its action is of type float32"),
        ({"command": {"desired_return": float("inf")}}, "number that is not finite"),
        ({"version": pb.Version(learner_step=2**63)}, "its version is 0."),
    ],
)
def test_an_episode_that_must_not_be_stored_is_told_why(loaded, change, why):
    with pytest.raises(wire.Malformed) as told:
        message = episode_message()
        for name in change:
            message.ClearField(name)
        message.MergeFrom(pb.Episode(**change))
        wire.read_episode(message, loaded.signature, ID, "toy-vector", "outside")
    assert why in str(told.value)


def test_a_held_leaf_takes_no_memory_for_its_steps(loaded):
    steps = 1_000_000
    message = episode_message(
        observations=[leaf(np.ones((1, 3), np.float32), held=True)],
        actions=[leaf(np.zeros(steps, np.int8))],
        rewards=wire.write_array(np.zeros(steps, np.float16)),
    )
    made = wire.read_episode(message, loaded.signature, ID, "toy-vector", "outside")
    assert made.length == steps and made.observations[""].strides[0] == 0
    assert made.actions[""].dtype == np.int32
