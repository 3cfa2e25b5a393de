"""Who listens to reports: TensorBoard's files, what becomes of a full disk, and the line on a
terminal."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import struct
import termios
import threading

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from bigdm_ray import progress
from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed
from bigdm_ray.progress import span
from bigdm_ray.run import main
from bigdm_ray.training import metrics
from bigdm_ray.training.config import parse
from bigdm_ray.training.loop import FEWEST, LocalExecutor, train_local
from bigdm_ray.training.metrics import TensorBoard, TerminalReporter

TINY = (
    "--local --quiet --budget.env-steps 300 --algorithm.hidden 8 --algorithm.batch-size 16"
    " --algorithm.n-updates-per-iter 2"
)
TINY += (
    " --algorithm.warm-up-episodes 10 --algorithm.episodes-per-iteration 10 --evaluations.episodes"
    " 2 --evaluations.final-episodes 2"
)


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
    # on a full disk a thread would print a traceback that nobody can catch
    assert threading.active_count() == before
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


def test_a_run_s_settings_and_scores_are_in_the_tab_that_compares_runs(tmp_path):
    """What TensorBoard's HParams tab reads; it takes no lists, and `hidden` is one."""
    assert main(["udrl", "toy-vector", *TINY.split(), "--folder", str(tmp_path / "run")]) == 0
    hparams = {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(tmp_path / "run" / "tensorboard")
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    shown = hparams["_hparams_/session_start_info"].session_start_info.hparams
    assert shown["hidden"].string_value == "8"
    assert shown["batch_size"].number_value == 16
    assert (shown["name"].string_value, shown["task"].string_value) == ("udrl", "toy-vector")
    told = hparams["_hparams_/experiment"].experiment.metric_infos
    values = (event.summary.value for event in events(tmp_path / "run" / "tensorboard"))
    tags = {value.tag for one in values for value in one}
    assert [one.name.tag for one in told] == ["evaluation/return_mean", "train/loss"]
    assert {one.name.tag for one in told} <= tags


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
        (None, 100.0, 250, 25, "5 min"),  # 750 steps at 2.5 a second
        (None, 999.0, 900, 90, "111 s"),
        (10.0, 240.0, 250, 40, "6 min"),
        (10.0, 100.0, 500, 50, "100 s"),  # the steps are spent first
        (100.0, 60.0, 0, 1, "99 min"),
    ],
)
def test_the_bar_is_of_the_budget_that_ends_first(
    minutes, passed_s, steps, percent, left, monkeypatch
):
    clock = 1000.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock)
    terminal = TerminalReporter(1000, stream(False), minutes=minutes)
    terminal.close()
    now = metrics.CurrentActivity()
    terminal.watch(now)
    assert terminal.status().text == "starting, 0:00" and terminal.status().share is None
    now.doing = ""
    clock = 2000.0  # everybody is in place
    terminal.begin()
    clock += passed_s
    now.env_steps, now.episodes, now.played, now.staleness = steps, 7, 1.25, 3
    status = terminal.status()
    assert round(100 * status.share) == percent
    assert f"{left} left" in status.text
    of = "" if minutes is None else f" of {span(60 * minutes)}"
    shown = f"{steps:,} steps, 7 episodes, return 1.2, staleness 3, {span(passed_s)}{of}, "
    assert status.text.startswith(shown)
    with now.busy("learner step", 20):
        now.advance()
        assert terminal.status().text.endswith("left, learner step 1 of 20")
    assert now.doing == ""
    now.env_steps = 1000
    with now.busy("final evaluation: episode", 7):
        assert terminal.status().text.endswith(
            f"{span(passed_s)}{of}, final evaluation: episode 0 of 7"
        )


def test_a_terminal_sees_it_move_and_a_pipe_sees_lines(tmp_path, monkeypatch):
    """Also inside one long call; evaluations and notes stay whole above the bar."""
    monkeypatch.setattr(progress, "DRAW_S", 0.01)
    monkeypatch.setattr(progress, "FIRST_S", 0.01)
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    for tty in (True, False):
        shown, drawn = stream(tty), threading.Event()
        now = metrics.CurrentActivity("starting Ray")
        terminal = TerminalReporter(1000, shown)
        terminal.watch(now)
        terminal.begin()
        with now.busy("learner step", 9):
            for step in range(9):
                now.advance()
                while f"learner step {step + 1} of 9" not in shown.getvalue():
                    assert not drawn.wait(0.01)
        score = {"evaluation/return_mean": 0.7, "evaluation/return_std": 0.4}
        terminal({"time/env_steps": 500.0, **score, "evaluation/desired_return": 0.9})
        terminal.close()
        terminal.close()
        words = "evaluation at         500 env steps: return      0.7 +- 0.4, asked 0.9\n"
        assert words in shown.getvalue()
        assert ("\r" in shown.getvalue()) is tty
        if not tty:
            lines = shown.getvalue().splitlines()
            assert all(re.match(r"evaluation|\d+ %, |starting", line) for line in lines)


def test_the_minutes_of_the_bar_are_those_of_the_run(tmp_path, monkeypatch):
    """`--budget.minutes` reaches the bar, whose clock starts with the run's."""
    shown, began = stream(True), []
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(progress, "DRAW_S", 0.01)
    begin = TerminalReporter.begin
    monkeypatch.setattr(TerminalReporter, "begin", lambda self: (began.append(1), begin(self)))
    words = [word for word in TINY.split() if word != "--quiet"]
    given = ["--budget.env-steps", "10000000", "--budget.minutes", "0.02"]
    arguments = ["udrl", "toy-vector", *words, *given, "--folder", str(tmp_path / "run")]
    assert door(main, arguments) == 0
    percents = [int(text) for text in re.findall(r"(\d+) %", shown.getvalue())]
    assert percents == sorted(percents) and percents[-1] == 100 and began == [1]
    assert "0.02 minutes, at most 10,000,000 environment steps" in shown.getvalue()
    assert "plays toy-vector and learns from it, beginning from nothing" in shown.getvalue()


def test_a_run_says_what_it_does_from_its_start_to_its_end(tmp_path, monkeypatch):
    seen, made, played = [], LocalExecutor.__init__, LocalExecutor.play

    class Looks:
        def watch(self, now):
            self.now = now

        def __call__(self, report):
            return False

    looks = Looks()

    def making(*arguments):
        seen.append(looks.now.doing)
        made(*arguments)

    def playing(*arguments, **more):
        seen.append(looks.now.doing)
        return played(*arguments, **more)

    monkeypatch.setattr(LocalExecutor, "__init__", making)
    monkeypatch.setattr(LocalExecutor, "play", playing)
    train_local(parse(["udrl", "toy-vector", *TINY.split()]).run, tmp_path / "run", False, [looks])
    assert seen[:2] == ["making network, optimizers and environments", "warm-up: random episode"]
    assert looks.now.doing == "ending environments and actors"


def test_a_quiet_run_says_nothing_on_the_way(tmp_path, capsys):
    given = ["--saves.report-every", "20", "--folder", str(tmp_path / "run")]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 0
    assert capsys.readouterr().err == ""


def test_a_short_run_has_some_evaluations_on_its_curve(tmp_path, capsys):
    """Also where the preset evaluates after more steps than there are; and says what it asked
    for."""
    folder = tmp_path / "run"
    given = ["--budget.env-steps", "1000", "--folder", str(folder)]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 0
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    at = [one["time/env_steps"] for one in reports if "evaluation/return_mean" in one]
    assert FEWEST - 1 <= len(at) <= FEWEST and at[0] >= 250 and at[-1] < 1000
    summary = json.loads((folder / "summary.json").read_text())
    asked = summary["command"]["desired_return"]
    assert f"over 2 episodes, asked for {asked:.1f} (" in capsys.readouterr().out
    assert summary["best_command"]["desired_return"] > 0
    again = ["--evaluations.every", "1000000", "--folder", str(tmp_path / "other")]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *again]) == 0
    assert "evaluation/return_mean" not in (tmp_path / "other" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("size", [(0, 0), (30, 90)])
def test_a_terminal_sees_the_bar_also_where_it_has_no_size(size):
    """As those of containers and of `expect` have none: tqdm would draw nothing there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with open(theirs, "w", closefd=False) as stream:
        live = progress.LiveDisplay(lambda: progress.Status("at work", 0.3), stream=stream)
        live.draw()
        live.close(leave=True)
    os.set_blocking(ours, False)
    shown = os.read(ours, 9999).decode()
    os.close(ours), os.close(theirs)
    assert "\r 30 %|" in shown and "at work" in shown
