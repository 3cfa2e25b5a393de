"""Who listens to reports: TensorBoard's files, and what becomes of a full disk."""

from __future__ import annotations

import errno
import struct
import threading

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed
from bigdm_ray.run import main
from bigdm_ray.training.metrics import TensorBoard

TINY = "--local --quiet --budget.env-steps 300 --algorithm.hidden 8 --algorithm.batch-size 16 --algorithm.n-updates-per-iter 2"
TINY += " --algorithm.warm-up-episodes 10 --algorithm.episodes-per-iteration 10 --evaluations.episodes 2 --evaluations.final-episodes 2"


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def events(folder):
    (path,) = folder.iterdir()
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("Q", data[:8])
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_numbers_of_a_report_become_scalars_at_its_step(tmp_path):
    before = threading.active_count()
    board = TensorBoard(tmp_path / "tensorboard")
    board({"time/env_steps": 20.0, "train/loss": 0.5, "play/return_mean": float("nan")})
    board({"time/env_steps": 40.0, "train/loss": 0.25})
    assert threading.active_count() == before  # on a full disk a thread would print a traceback that nobody can catch
    board.close()
    version, *told = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert [(event.step, [(value.tag, value.simple_value) for value in event.summary.value]) for event in told] == [
        (20, [("train/loss", 0.5)]),
        (40, [("train/loss", 0.25)]),
    ]


def test_a_full_disk_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(EventsWriter, "flush", full)
    board = TensorBoard(tmp_path / "tensorboard")
    board({"time/env_steps": 20.0, "train/loss": 0.5})
    with pytest.raises(RunFailed, match="free some space"):
        board.close()
    board.close()


@pytest.mark.parametrize("where", ["tensorboardX.event_file_writer.EventsWriter.flush", "bigdm_ray.training.loop.drop_later"])
def test_a_full_disk_is_one_sentence_whatever_meets_it(where, tmp_path, monkeypatch, capsys):
    """At the end of a run, in TensorBoard's files; and in a place that does not expect it."""
    monkeypatch.setattr(where, full)
    assert door(main, ["udrl", "toy-vector", *TINY.split(), "--folder", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ") and "free some space" in error and error.count("\n") == 1
