"""A policy server beside what it is made of: `python -m tests.benchmarks.serving`.

    python -m tests.benchmarks.serving                           latencies and throughput
    python -m tests.benchmarks.serving --serve-python PYTHON     a Ray Serve deployment too

Sides take turns call by call, so that what else runs on the machine troubles all alike, and that no
side's caches are warmer than another's: a policy that is called in a loop of its own takes a third
of what it takes after a wait, as behind an environment. `--pause 1` waits so many milliseconds
before each call. Sides are the policy in this process
(`Policy.act`, one row), the server, and a plain grpc.aio server that sends back what it is sent, of
the same size, to the same client (one stream, a message there and one back). Servers are processes
of their own on loopback. PYTHON is one that has ray[serve] beside all that this package needs.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "serving")]

import grpc  # noqa: E402  (after the environment is set)
import numpy as np  # noqa: E402
import torch  # noqa: E402
from helpers_serving import loaded_of, run_folder  # noqa: E402

from bigdm_ray import client as client_module  # noqa: E402
from bigdm_ray.algorithms.base import Policy, find_algorithm  # noqa: E402
from bigdm_ray.client import connect  # noqa: E402
from bigdm_ray.training.loaded import Loaded, load  # noqa: E402
from tests.benchmarks.common import header  # noqa: E402

POLICIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "UDRL": ("udrl", "lunarlander", {"hidden": (128, 128)}),
    "DT, K=20": ("dt", "hopper", {"context": 20, "width": 64, "layers": 2, "heads": 1}),
}
"""Algorithm, task and sizes. Weights are drawn: only speed matters."""
SESSIONS = 64


def made(name: str, folder: Path) -> Path:
    """The run folder of one of POLICIES."""
    kind, task, sizes = POLICIES[name]
    whole = loaded_of(find_algorithm(kind), task, folder=folder)
    algorithm = dataclasses.replace(find_algorithm(kind)(), **sizes)
    torch.manual_seed(0)
    model = algorithm.build({task: whole.signature}).eval()
    run = dataclasses.replace(whole.run, algorithm=algorithm)
    return run_folder(folder, dataclasses.replace(whole, run=run, model=model))


class Server:
    """A server in a process of its own that tells its address in its first line."""

    def __init__(self, *words: str, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.address = next(word for word in line.split() if word.startswith("127.0.0.1:"))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def serve_echo() -> None:
    """What `python -m tests.benchmarks.serving echo` is."""

    async def one(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return data

    async def many(_: Any, context: grpc.aio.ServicerContext) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            await context.write(data)

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {
            "One": grpc.unary_unary_rpc_method_handler(one),
            "Many": grpc.stream_stream_rpc_method_handler(many),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()

    asyncio.run(main())


Call = Callable[[], object]


def echo_call(address: str, data: bytes) -> Call:
    """A message there and back on one stream, as the client sends its own."""
    channel = grpc.insecure_channel(address)
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = channel.stream_stream("/Echo/Many")(iter(requests.get, None))

    def call() -> object:
        requests.put(data)
        return next(answers)

    return call


def local_call(loaded: Loaded) -> Call:
    """A step of the policy in this process: the bare contract, nothing checked."""
    policy: Policy = loaded.policy("sample")
    leaf = loaded.signature.observations[""]
    seen = {"": np.zeros((1, *leaf.shape), np.float32)}
    commands = {name: np.array([value], np.float32) for name, value in loaded.command.items()}
    chance = np.zeros((1, policy.uniforms), np.float32)
    rewards, first = np.zeros(1, np.float32), np.zeros(1, bool)
    state = policy.start(1)

    def call() -> object:
        nonlocal state
        left = policy.after(commands, rewards, None)
        actions, state = policy.act(state, seen, rewards, left, first, chance)
        return actions

    return call


def timed(sides: dict[str, Call], calls: int, pause: float) -> dict[str, np.ndarray]:
    """Milliseconds of each call of each side, in turns, each after a pause of so many."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(calls + 100):
        for name, call in sides.items():
            time.sleep(1e-3 * pause)
            began = time.perf_counter()
            call()
            if number >= 100:  # the first warm up
                took[name].append(1e3 * (time.perf_counter() - began))
    return {name: np.array(values) for name, values in took.items()}


def row(name: str, side: str, took: np.ndarray) -> str:
    """A line of a side's milliseconds."""
    low, high = np.quantile(took, [0.5, 0.99])
    return f"{name:<10} {side:<11} p50 {low:7.3f} ms   p99 {high:7.3f}"


def latencies(name: str, folder: Path, echo: str, calls: int, pause: float) -> None:
    """Print the latencies of one policy, and what the server adds."""
    loaded = load(folder)
    server = Server("-m", "bigdm_ray.serve", str(folder), "--address", "0")
    with connect(server.address) as client:
        policy = client.start()
        seen = np.zeros(loaded.signature.observations[""].shape, np.float32)
        policy(seen)
        leaf = client_module._leaf("", seen[None])
        fields = {"sessions": policy._sessions, "observations": [leaf], "rewards": [0.0]}
        data = client_module._message("ActRequest", **fields).SerializeToString()
        sides = {"in process": local_call(loaded), "echo": echo_call(echo, data)}
        sides["served"] = lambda: policy(seen, 0.0)
        took = timed(sides, calls, pause)
    server.close()
    p50 = {side: float(np.median(values)) for side, values in took.items()}
    added = took["served"] - p50["in process"]
    both = p50["echo"] + p50["in process"]
    for side, values in took.items():
        print(
            f"{name:<10} {side:<11} p50 {p50[side]:7.3f} ms   p99 {np.quantile(values, 0.99):7.3f}"
        )
    ratio = f"served / (echo + policy) {p50['served'] / both:.2f}"
    print(f"{row(name, 'added', added)}   {ratio}")


def throughput(name: str, folder: Path, seconds: float, blocks: int) -> None:
    """Print actions a second: of one session, of 64 rows of a client, of 64 clients, in turns."""
    loaded = load(folder)
    server = Server("-m", "bigdm_ray.serve", str(folder), "--address", "0")
    shape = loaded.signature.observations[""].shape
    one_seen = np.zeros(shape, np.float32)
    many_seen = np.zeros((SESSIONS, *shape), np.float32)
    with connect(server.address) as client:
        one, rows = client.start(), client.start(n=SESSIONS)
        one(one_seen)
        rows(many_seen)

        def turn(call: Call, actions: int) -> float:
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                call()
                count += actions
            return count / (time.perf_counter() - began)

        rates: dict[str, list[float]] = {"1 session": [], "64 rows of one client": []}
        rates["64 clients"] = []
        for _ in range(blocks + 1):
            rates["1 session"].append(turn(lambda: one(one_seen, 0.0), 1))
            rates["64 rows of one client"].append(
                turn(lambda: rows(many_seen, np.zeros(SESSIONS)), SESSIONS)
            )
            rates["64 clients"].append(asyncio.run(_clients(server.address, shape, seconds)))
    server.close()
    base = statistics.median(rates["1 session"][1:])
    for what, found in rates.items():
        rate = statistics.median(found[1:])
        print(
            f"{name:<10} {what:<22} {rate:9,.0f} actions/s   {rate / base:5.1f} times one session"
        )


async def _clients(address: str, shape: tuple[int, ...], seconds: float) -> float:
    """Actions a second of 64 clients, each with a stream and a session of its own."""
    act, count = client_module._message("ActRequest"), 0
    async with grpc.aio.insecure_channel(address) as channel:
        start = channel.unary_unary("/bigdm.Policy/Start")
        leaf = client_module._leaf("", np.zeros((1, *shape), np.float32))
        calls = []
        for _ in range(SESSIONS):
            told = client_module._kind("StartAnswer").FromString(await start(b""))
            act = client_module._message(
                "ActRequest", sessions=told.sessions, observations=[leaf], rewards=[0.0]
            )
            calls.append((channel.stream_stream("/bigdm.Policy/Stream")(), act.SerializeToString()))
        until = time.perf_counter() + seconds

        async def play(call: Any, data: bytes) -> int:
            acted = 0
            while time.perf_counter() < until:
                await call.write(data)
                await call.read()
                acted += 1
            call.cancel()
            return acted

        count = sum(await asyncio.gather(*(play(*one) for one in calls)))
    return count / seconds


def _answers(call: Call) -> bool:
    try:
        call()
    except grpc.RpcError:
        return False
    return True


def beside_serve(name: str, folder: Path, python: str, calls: int, pause: float) -> None:
    """Print the latency of a call each of the server and of the same policy in Ray Serve."""
    loaded = load(folder)
    ours = Server("-m", "bigdm_ray.serve", str(folder), "--address", "0")
    theirs = Server("-m", "tests.benchmarks.serve_peer", str(folder), python=python)
    seen = np.zeros(loaded.signature.observations[""].shape, np.float32)
    leaf = client_module._leaf("", seen[None])
    request = client_module._message("ActRequest", observations=[leaf], rewards=[0.0])
    data = request.SerializeToString()
    with connect(ours.address) as client, grpc.insecure_channel(theirs.address) as channel:
        policy = client.start()
        policy(seen)
        serve = channel.unary_unary("/bigdm.Policy/Act")
        sides = {"served": lambda: policy(seen, 0.0)}
        sides["Ray Serve"] = lambda: serve(data, metadata=[("application", "policy")])
        until = time.monotonic() + 60
        while not _answers(sides["Ray Serve"]) and time.monotonic() < until:
            time.sleep(0.2)  # its proxy hears of what is deployed a little later
        took = timed(sides, calls, pause)
    ours.close()
    theirs.close()
    p50 = {side: float(np.median(values)) for side, values in took.items()}
    for side, values in took.items():
        print(
            f"{name:<10} {side:<11} p50 {p50[side]:7.3f} ms   p99 {np.quantile(values, 0.99):7.3f}"
        )
    print(f"{name:<10} Ray Serve takes {p50['Ray Serve'] / p50['served']:.1f} times as long")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__)
    parser.add_argument("part", nargs="?", choices=["echo"], help="used by the script itself")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each side")
    parser.add_argument("--pause", type=float, default=0.0, help="milliseconds before each call")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of throughput")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each of them")
    parser.add_argument("--serve-python", help="a Python that has ray[serve]")
    given = parser.parse_args()
    if given.part == "echo":
        serve_echo()
        return
    header()
    threading.current_thread().name = "benchmark"
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: made(name, Path(folder) / str(k)) for k, name in enumerate(POLICIES)}
        echo = Server("-m", "tests.benchmarks.serving", "echo")
        for name, path in folders.items():
            latencies(name, path, echo.address, given.calls, given.pause)
        echo.close()
        for name, path in folders.items():
            throughput(name, path, given.seconds, given.blocks)
        for name, path in folders.items():
            if given.serve_python:
                beside_serve(name, path, given.serve_python, given.calls // 2, given.pause)


if __name__ == "__main__":
    main()
