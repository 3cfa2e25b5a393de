"""Weights: what is saved is loaded, and everything else is told in a sentence."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import same_arrays
from safetensors.numpy import save

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training import params
from bigdm_ray.training.params import Weights


def network(width=4):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width))
    net.register_buffer("odd", torch.tensor(3, dtype=torch.int64))
    return net


def test_weights_come_back_bit_for_bit_buffers_included(tmp_path):
    weights = Weights.of(network(), (2, 2**40))
    weights.save(tmp_path / "w.safetensors")
    loaded = Weights.load(tmp_path / "w.safetensors")
    assert loaded.version == (2, 2**40)
    same_arrays(loaded.arrays, weights.arrays)
    assert loaded.arrays["odd"] == 3 and loaded.arrays["odd"].dtype == np.int64
    other = network()
    for parameter in other.parameters():
        torch.nn.init.ones_(parameter)
    loaded.into(other)
    same_arrays(Weights.of(other, (0, 0)).arrays, weights.arrays)
    assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.filterwarnings("error")
def test_weights_share_no_memory_with_a_network_and_may_be_read_only():
    """Arrays that came by Ray are. What lies in another order in memory is put into C order."""
    net = network()
    net[0].weight.data = net[0].weight.data.t().contiguous().t()
    weights = Weights.of(net, (0, 0))
    assert all(values.flags.c_contiguous for values in weights.arrays.values())
    before = {name: values.copy() for name, values in weights.arrays.items()}
    for values in weights.arrays.values():
        values.flags.writeable = False
    other = network(4)
    weights.into(other)
    with torch.no_grad():
        for values in (*net.parameters(), *other.parameters()):
            values.fill_(7)
    same_arrays(weights.arrays, before)
    weights.into(other)
    same_arrays(Weights.of(other, (0, 0)).arrays, before)


def test_weights_and_their_command_are_one_file(tmp_path):
    path, command = tmp_path / "w.safetensors", {"desired_return": 0.1, "desired_horizon": 3.0}
    weights = Weights.of(network(), (0, 1))
    (tmp_path / "w.json").write_text('{"command": {"desired_return": 7}, "return_mean": 8}')
    replace(weights, command=command, score=2 / 3).save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["w.safetensors"]
    (tmp_path / "w.json").write_text('{"command": {"desired_return": 7}, "return_mean": 8}')
    loaded = Weights.load(path)
    assert (loaded.command, loaded.score) == (command, 2 / 3), "what is in the file wins"
    replace(weights, command={}).save(path)
    assert (Weights.load(path).command, Weights.load(path).score) == ({}, None)


def test_a_command_beside_the_weights_is_read_where_they_have_none(tmp_path):
    path = tmp_path / "w.safetensors"
    Weights.of(network(), (0, 1)).save(path)
    assert (Weights.load(path).command, Weights.load(path).score) == (None, None)
    (tmp_path / "w.json").write_text(
        '{"version": [0, 1], "command": {"desired_return": 7}, "return_mean": null}'
    )
    assert (Weights.load(path).command, Weights.load(path).score) == ({"desired_return": 7.0}, None)
    for wrong in ("{", "[]", '{"command": [1]}', '{"command": {"x": "high"}}', "{}"):
        (tmp_path / "w.json").write_text(wrong)
        with pytest.raises(UserError, match=r"w\.json is broken"):
            Weights.load(path)


def test_loading_copies(tmp_path):
    weights, net = Weights.of(network(), (0, 1)), network()
    weights.into(net)
    with torch.no_grad():
        net[0].weight.add_(1)
    assert not np.array_equal(weights.arrays["0.weight"], net[0].weight.detach().numpy())


def test_weights_that_do_not_fit_are_refused_by_name():
    weights = Weights.of(network(5), (0, 0))
    with pytest.raises(UserError, match=r"'0\.weight' is \[5, 3\] where \[4, 3\] is expected"):
        weights.into(network(4))
    with pytest.raises(UserError, match="'odd' stands on one side only"):
        Weights(
            (0, 0), {name: values for name, values in weights.arrays.items() if name != "odd"}
        ).into(network(5))


def test_files_that_hold_no_weights_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="there are no weights at"):
        Weights.load(path)
    weights = Weights.of(network(), (0, 0))
    weights.save(path)
    data = path.read_bytes()
    torch.save(network().state_dict(), tmp_path / "foreign.pt")
    foreign = (tmp_path / "foreign.pt").read_bytes()
    foreign_metas = [
        {"schema_version": "1", "version": version}
        for version in ("[1]", "7", "null", '["a", "b"]', "[0, Infinity]", "[0, 1e+308]", "[-1, 0]")
    ] + [{"version": "[0, 1]"}]
    right = {"schema_version": "1", "version": "[0, 1]"}
    foreign_metas += [
        right | {"command": command, "return_mean": score}
        for command, score in (("[]", "null"), ('{"a": "high"}', "1"), ("{}", '"high"'), ("{", "1"))
    ] + [right | {"command": "{}"}]
    foreign_files = [save({"a": np.zeros(2)}, meta) for meta in (None, *foreign_metas)]
    for wrong in (b"", data[:20], data[:-8], foreign, b"\x80\x04hello", *foreign_files):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="does not hold weights of this project"):
            Weights.load(path)


def test_weights_of_a_newer_version_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(params, "SCHEMA_VERSION", params.SCHEMA_VERSION + 1)
        Weights.of(network(), (0, 1)).save(tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=f"schema version {params.SCHEMA_VERSION + 1}.*update bigdm_ray"
    ):
        Weights.load(tmp_path / "w.safetensors")


def test_a_full_disk_leaves_the_weights_that_were_there(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    Weights.of(network(), (0, 1)).save(path)

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left"):
        Weights.of(network(), (0, 2)).save(path)
    assert Weights.load(path).version == (0, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
