"""Who listens to reports: TensorBoard's files, what becomes of a full disk, and the line on a terminal."""

from __future__ import annotations

import errno
import io
import re
import struct
import threading

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed
from bigdm_ray.run import main
from bigdm_ray.training import metrics
from bigdm_ray.training.metrics import TensorBoard, Terminal

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
    assert (
        threading.active_count() == before
    )  # on a full disk a thread would print a traceback that nobody can catch
    board.close()
    version, *told = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert [
        (event.step, [(value.tag, value.simple_value) for value in event.summary.value])
        for event in told
    ] == [
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


@pytest.mark.parametrize(
    "where",
    ["tensorboardX.event_file_writer.EventsWriter.flush", "bigdm_ray.training.loop.drop_later"],
)
def test_a_full_disk_is_one_sentence_whatever_meets_it(where, tmp_path, monkeypatch, capsys):
    """At the end of a run, in TensorBoard's files; and in a place that does not expect it."""
    monkeypatch.setattr(where, full)
    assert door(main, ["udrl", "toy-vector", *TINY.split(), "--folder", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: cannot write ")
        and "free some space" in error
        and error.count("\n") == 1
    )


def stream(tty):
    made = io.StringIO()
    made.isatty = lambda: tty
    return made


@pytest.mark.parametrize(
    ("minutes", "passed_s", "steps", "percent", "left"),
    [
        (None, 999.0, 250.0, 25, 5),  # 750 steps at 2.5 a second
        (None, 999.0, 1050.0, 100, 0),
        (10.0, 240.0, 250.0, 40, 5),  # the steps are spent first
        (5.0, 240.0, 250.0, 80, 1),
        (5.0, 315.0, 250.0, 100, 0),
        (0.1, 315.0, 2000.0, 100, 0),
    ],
)
def test_the_bar_is_of_the_budget_that_ends_first(
    minutes, passed_s, steps, percent, left, monkeypatch
):
    now = 1000.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    terminal = Terminal(1000, shown := stream(True), minutes=minutes)
    now = 2000.0  # everybody is in place
    terminal.begin()
    now += passed_s
    terminal({"time/env_steps": steps, "time/env_steps_per_s": 2.5})
    assert f"] {percent:3d} % " in shown.getvalue() and shown.getvalue().endswith(
        f" about {left} min left"
    )
    assert shown.getvalue().count("#") == int(24 * percent / 100)


def test_the_minutes_of_the_bar_are_those_of_the_run(tmp_path, monkeypatch):
    """`--budget.minutes` reaches the bar, whose clock starts with the run's."""
    shown, began = stream(True), []
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(Terminal, "begin", lambda _: began.append(1))
    words = [word for word in TINY.split() if word != "--quiet"]
    arguments = [
        "udrl",
        "toy-vector",
        *words,
        "--budget.env-steps",
        "10000000",
        "--budget.minutes",
        "0.02",
        "--saves.report-every",
        "20",
    ]
    assert door(main, [*arguments, "--folder", str(tmp_path / "run")]) == 0
    percents = [int(text) for text in re.findall(r"(\d+) %", shown.getvalue())]
    assert percents == sorted(percents) and percents[-1] == 100 and began == [1]


def test_a_terminal_sees_the_final_evaluation_going_on(tmp_path, monkeypatch):
    """Nobody else is asked to watch, and a terminal that is none shows nothing."""
    monkeypatch.setattr("bigdm_ray.formats.progress.EVERY_S", 0.0)
    monkeypatch.setattr("sys.stderr", shown := stream(True))
    words = [word for word in TINY.split() if word != "--quiet"]
    assert (
        door(
            main,
            [
                "udrl",
                "toy-vector",
                *words,
                "--evaluations.final-episodes",
                "7",
                "--folder",
                str(tmp_path / "run"),
            ],
        )
        == 0
    )
    counts = [
        int(text)
        for text in re.findall(r"final evaluation: .*?(\d+) of 7 episodes", shown.getvalue())
    ]
    assert counts[0] == 0 and counts[-1] == 7 and counts == sorted(counts) and len(set(counts)) > 2
    assert Terminal(1000, stream(False)).watch("final evaluation", 7) is None


def test_it_is_quiet_where_standard_error_is_no_terminal(tmp_path, capsys):
    terminal = Terminal(1000, shown := stream(False))
    terminal({"time/env_steps": 500.0})
    terminal({"time/env_steps": 500.0, "evaluation/return_mean": 0.7, "evaluation/return_std": 0.4})
    terminal.close()
    assert shown.getvalue() == ""
    words = [word for word in TINY.split() if word != "--quiet"]
    assert (
        door(
            main,
            [
                "udrl",
                "toy-vector",
                *words,
                "--saves.report-every",
                "20",
                "--folder",
                str(tmp_path / "run"),
            ],
        )
        == 0
    )
    assert re.fullmatch(r"udrl on toy-vector, [^\n\r\x1b]*\n", capsys.readouterr().err)
