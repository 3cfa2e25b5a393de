"""Serve a policy: `python -m bigdm_ray.serve RUN` answers clients by gRPC until it is stopped.

python -m bigdm_ray.serve runs/mine                      on 127.0.0.1:50051
python -m bigdm_ray.serve zoo:udrl-lunarlander --weights best --address 0 --watch 5
python -m bigdm_ray.serve RUN --address 0.0.0.0:50051 --token-file t --tls-cert c --tls-key k

Clients are `bigdm_ray.client`, or generated from `bigdm_ray/serving/policy.proto`. SIGHUP has newer
weights loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Iterator

from bigdm_ray import stopping
from bigdm_ray.doors import Parser, door, split_prefixed
from bigdm_ray.errors import UserError
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.serving.served import FolderVersions
from bigdm_ray.serving.server import Server, served_phrase
from bigdm_ray.serving.settings import ServerSettings
from bigdm_ray.settings import convert


def serve_parser() -> Parser:
    """The arguments."""
    parser = Parser(
        prog="python -m bigdm_ray.serve",
        description="Answer clients with the actions of a trained policy, until stopped.",
        epilog="Settings that affect acting alone may be given too, as --algorithm.NAME VALUE.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", help="run folder, or zoo:NAME")
    parser.add_argument(
        "--weights", default="last", help="last, best, or a milestone's (default: last)"
    )
    parser.add_argument(
        "--mode", default="own", choices=OWN_OR_MODES, help="how it acts where clients do not say"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        help="look so often whether the weights have changed, and load them for new sessions",
    )
    parser.add_settings(ServerSettings)
    return parser


def main(arguments: list[str]) -> int:
    """The door."""
    acting, rest = split_prefixed(arguments, "--algorithm.")
    given = serve_parser().parse(rest)
    settings = Parser.settings(ServerSettings, given)
    watch = None if given.watch is None else convert(float, given.watch, "watch")
    if watch is not None and not 0 < watch < 1e6:
        raise UserError(f"--watch is {given.watch}, but a number of seconds above 0 is expected")
    versions = FolderVersions(given.run, given.weights, given.mode, acting, given.device)
    newest = versions.newest()
    run, version = newest.trained.run, "{}.{}".format(*newest.version)
    what = f"{run.algorithm.name} on {run.title} ({given.weights} weights, version {version})"
    asked: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal's handler may put into it
    server = Server(settings, versions)
    try:
        with server, _reload_at_hangup(asked):
            for line in served_phrase(server, what):
                print(
                    line, file=sys.stdout if line.startswith("serving") else sys.stderr, flush=True
                )
            _wait(versions, asked, watch)
    except KeyboardInterrupt:
        print("stopped: what was under way is answered", file=sys.stderr)
        return stopping.code()
    return 0


@contextlib.contextmanager
def _reload_at_hangup(asked: queue.SimpleQueue[None]) -> Iterator[None]:
    """SIGHUP asks for newer weights, in here; below nohup it stays ignored."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGHUP, lambda *_: asked.put(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _wait(versions: FolderVersions, asked: queue.SimpleQueue[None], watch: float | None) -> None:
    """Load newer weights when it is asked for, or seen; for ever."""
    while True:
        try:
            asked.get(timeout=watch)
        except queue.Empty:
            if not versions.has_changed():
                continue
        try:
            before, served = versions.newest(), versions.reload()
        except UserError as error:
            print(f"note: the weights were not reloaded: {error}", file=sys.stderr, flush=True)
            continue
        if served is not before:
            version = "{}.{}".format(*served.version)
            print(f"weights of version {version} for new sessions", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(door(main))
