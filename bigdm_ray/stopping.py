"""Signals that ask a command to stop, each in the one way of Ctrl-C.

Ctrl-C itself, SIGTERM (Slurm, Kubernetes, notices of spot machines, `timeout`) and SIGHUP (a
terminal that closes) raise KeyboardInterrupt in the main thread, and `code` is what the process
shall end with. Passages whose steps belong together are held (`hold_signals`): they are told, and
end at a place of their own choice. A second signal ends the process at once. Commands install this
(`doors.py`); a program that imports the package keeps its own handlers.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ONE_REQUEST_S = 0.5
"""Signals within so many seconds are one request: `timeout` and terminals send several."""

IMPORT_S = 0.05
"""Seconds between two looks whether an import has ended."""


class _State:
    """What has come so far. There is one: signals are the process's."""

    installed = False
    number: int | None = None
    at = 0.0
    held = 0
    broken = False
    again = False


def code() -> int:
    """The exit code of a process that was stopped: 128 and the number of the signal."""
    return 128 + (_State.number or signal.SIGINT)


def is_heeding() -> bool:
    """Whether a command heeds signals."""
    return _State.installed


def is_stop_asked() -> bool:
    """Whether one has come."""
    return _State.installed and _State.number is not None


@contextlib.contextmanager
def heed_signals() -> Iterator[None]:
    """Heed the signals in here. One that is ignored, as SIGHUP is below nohup, stays so.

    Without effect in another thread than the main one, and where it is in effect already.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _State.installed, _State.number = True, None
    try:
        _install()
        yield
    finally:
        _State.installed, _State.number = False, None
        for number, handler in before.items():
            if handler is not None:  # None is one that was not installed from Python
                signal.signal(number, handler)


def _install() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _come)


def _come(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.broken:
        _State.broken = False
        raise KeyboardInterrupt
    if _State.again:
        _State.again = False
        _interrupt(frame)
    elif _State.number is None:
        _State.number, _State.at = number, now
        if number == signal.SIGHUP:
            _without_terminal()
        if _State.held:
            os.write(
                2, b"stopping: what is under way is saved first; a second signal stops at once\n"
            )
        _interrupt(frame)
    elif now - _State.at > ONE_REQUEST_S:
        os._exit(code())


def _interrupt(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, unless it is held; within an import a little later.

    Compiled modules take one for the failure of their import, and the command would go on.
    """
    if _State.held:
        return
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            threading.Timer(IMPORT_S, _come_again).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _come_again() -> None:
    if _State.installed:
        _State.again = True
        _reach_main()


def _reach_main() -> None:
    """Call the handler in the main thread, by a signal that ends what it waits for.

    Not every signal will do: below nohup and in the background of a script some are ignored.
    """
    heard = [number for number in SIGNALS if signal.getsignal(number) == _come]
    _State.broken &= bool(heard)
    if heard:
        signal.pthread_kill(threading.main_thread().ident or 0, heard[0])
    else:
        _thread.interrupt_main(signal.SIGINT)


def _without_terminal() -> None:
    """Where the terminal is gone, what is still to be told goes nowhere, instead of failing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def hold_signals() -> Iterator[Callable[[], bool]]:
    """In here a signal only changes the answer of the function, and is raised at the end.

    Without effect (the answer stays False) where no command heeds signals.
    """
    _State.held += 1
    try:
        yield is_stop_asked
    finally:
        _State.held -= 1
    if is_stop_asked() and not _State.held:
        raise KeyboardInterrupt


@contextlib.contextmanager
def release_signals() -> Iterator[None]:
    """Inside `hold_signals`: a signal is raised here at once, also one that has come before."""
    before, _State.held = _State.held, 0
    try:
        if is_stop_asked():
            raise KeyboardInterrupt
        yield
    finally:
        _State.held = before


def break_off() -> None:
    """From another thread: raise KeyboardInterrupt in the main one, also where it is held."""
    _State.broken = True
    _reach_main()


@contextlib.contextmanager
def keep_handlers() -> Iterator[None]:
    """Around the start of Ray, which takes SIGTERM for itself: it is as before."""
    try:
        yield
    except SystemExit as end:
        if not _State.installed or end.code != signal.SIGTERM:
            raise
        _State.number, _State.at = signal.SIGTERM, time.monotonic()
        raise KeyboardInterrupt from None
    finally:
        if _State.installed and threading.current_thread() is threading.main_thread():
            _install()
