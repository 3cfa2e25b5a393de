"""Signals that ask a command to stop: one way out, its exit code, and nobody else's handlers."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TINY

from bigdm_ray import stopping
from bigdm_ray.doors import door

DOOR = """
import sys, time
from bigdm_ray.doors import door
from bigdm_ray.stopping import hold_signals

def main(arguments):
    {body}
    return 0

sys.exit(door(main, []))
"""
SLEEP = """
    print("ready", flush=True)
    time.sleep(60)
"""
SLOW_TO_END = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("ending", flush=True)
        time.sleep(60)
"""
HELD = """
    with hold_signals() as asked:
        print("ready", flush=True)
        while not asked():
            time.sleep(0.05)
        print("saved", flush=True)
"""


def begun(body: str, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    """A command that has said `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOR.format(body=body.strip())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_every_signal_ends_a_command_with_one_word_and_its_own_exit_code(number: int) -> None:
    process = begun(SLEEP)
    process.send_signal(number)
    _, told = process.communicate(timeout=600)
    assert (process.returncode, told) == (128 + number, "stopped\n")


def test_a_module_that_swallows_what_its_import_meets_does_not_swallow_a_signal(
    tmp_path: Path,
) -> None:
    """As compiled ones do: they turn KeyboardInterrupt into an ImportError of their own."""
    (tmp_path / "greedy.py").write_text(
        "import time\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(2)\n"
        "except BaseException:\n"
        "    raise ImportError('initialization failed') from None\n"
    )
    body = f"""
    sys.path.insert(0, {str(tmp_path)!r})
    try:
        import greedy
    except ImportError:
        pass
    time.sleep(60)
"""
    process = begun(body)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (143, "stopped\n")


def test_a_second_signal_ends_it_at_once_and_two_in_a_moment_are_one() -> None:
    process = begun(SLOW_TO_END)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    time.sleep(stopping.ONE_REQUEST_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=600)
    assert (process.returncode, told) == (143, "")


def test_what_belongs_together_is_done_before_a_stop() -> None:
    process = begun(HELD)
    process.send_signal(signal.SIGTERM)
    out, told = process.communicate(timeout=600)
    assert (process.returncode, out) == (143, "saved\n")
    assert told.splitlines()[1:] == ["stopped"]
    assert told.startswith("stopping: ")


def test_a_terminal_that_closes_is_a_hangup_and_what_is_printed_then_does_no_harm(
    tmp_path: Path,
) -> None:
    ours, theirs = pty.openpty()
    body = f"""
    with hold_signals() as asked:
        print("here", flush=True)
        while not asked():
            time.sleep(0.05)
        print("told to nobody", flush=True)
        print("told to nobody", file=sys.stderr, flush=True)
        open({str(tmp_path / "saved")!r}, "w").close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOR.format(body=body.strip())],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = b""
    while b"here" not in shown:
        shown += os.read(ours, 100)
    os.close(ours)
    assert process.wait(timeout=600) == 129
    assert (tmp_path / "saved").is_file()


def test_below_nohup_a_hangup_is_ignored() -> None:
    process = begun(SLEEP, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert (process.returncode, told) == (143, "stopped\n")


def test_a_program_keeps_its_own_handlers() -> None:
    """Those it had before a command of ours ran in it; in a thread none are touched at all."""
    seen: list[object] = []

    def main(arguments: list[str]) -> int:
        seen.append([signal.getsignal(number) for number in stopping.SIGNALS])
        return 0

    own = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        before = [signal.getsignal(number) for number in stopping.SIGNALS]
        assert door(main, []) == 0
        assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
        assert seen.pop() != before
        thread = threading.Thread(target=door, args=(main, []))
        thread.start()
        thread.join()
        assert seen.pop() == before
    finally:
        signal.signal(signal.SIGTERM, own)


def test_a_library_that_takes_sigterm_for_itself_does_not_keep_it() -> None:
    """As the start of Ray does: ours is in force again, and what came meanwhile counts."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(number)

    with stopping.heed_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with stopping.keep_handlers():
            signal.signal(signal.SIGTERM, end)
        assert signal.getsignal(signal.SIGTERM) == ours
        with pytest.raises(KeyboardInterrupt), stopping.keep_handlers():
            signal.signal(signal.SIGTERM, end)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        assert stopping.code() == 143


def test_a_run_that_is_terminated_tells_how_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = f"udrl toy-vector {TINY} --budget.env-steps 1000000 --saves.every 500 --local"
    command = [sys.executable, "-m", "bigdm_ray.run", *flags.split(), "--folder", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("checkpoints/save-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 143
    assert told.splitlines()[-1].startswith("stopped; ")
    assert "Traceback" not in told


@pytest.mark.parametrize("ignored", [False, True])
def test_a_thread_breaks_off_what_is_held(ignored: bool) -> None:
    """As the watch over Ray does, also in the background of a script, where Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    with (
        stopping.heed_signals(),
        pytest.raises(KeyboardInterrupt),
        stopping.hold_signals() as asked,
    ):
        threading.Timer(0.2, stopping.break_off).start()
        time.sleep(60)  # from which it is woken
        pytest.fail("it was not broken off")
    if ignored:
        signal.signal(signal.SIGINT, before)
    assert not asked(), "no signal has come"
