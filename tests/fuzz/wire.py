"""Malformed messages on the wire of a policy server: `python -m tests.fuzz.wire --count 10000`.

Valid requests of every rpc are changed as files are (`mutate.py`), or are random bytes, and go out
as bytes through stubs that know nothing of messages. Each must be answered in one of the ways that
a client's mistake is, within a minute, and the server must act as before at the end.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.serving.wire import write_array
from tests.fuzz.mutate import of_bytes

ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
PATIENCE_S = 60.0


def leaf(values: Any, path: str = "", held: bool = False) -> pb.Leaf:
    """An array as a message."""
    return pb.Leaf(path=path, values=write_array(np.asarray(values)), held=held)


def episode_message(steps: int = 6, **more: Any) -> pb.Episode:
    """A sound episode of `toy-vector`."""
    chance = np.random.default_rng(steps)
    fixed = {
        "observations": [leaf(chance.normal(size=(steps + 1, 3)).astype(np.float32))],
        "actions": [leaf(chance.integers(0, 3, steps).astype(np.int32))],
        "rewards": write_array(chance.normal(size=steps).astype(np.float32)),
        "command": {"desired_return": 3.0},
        "version": pb.Version(incarnation=0, learner_step=1),
    }
    return pb.Episode(**(fixed | more))


class Wire:
    """Stubs that send bytes."""

    def __init__(self, channel: grpc.Channel) -> None:
        methods = pb.DESCRIPTOR.services_by_name["Policy"].methods_by_name
        self._streams = {name: method.client_streaming for name, method in methods.items()}
        self._calls = {
            name: (channel.stream_stream if streams else channel.unary_unary)(
                f"/bigdm.Policy/{name}"
            )
            for name, streams in self._streams.items()
        }
        self.sessions: list[bytes] = []

    def send(self, name: str, data: bytes) -> list[bytes]:
        """The answers of an rpc. Raises grpc.RpcError."""
        if self._streams[name]:
            return list(self._calls[name](iter([data]), timeout=PATIENCE_S))
        return [self._calls[name](data, timeout=PATIENCE_S)]

    def begin(self) -> None:
        """Have sessions to act with, where those of before have ended."""
        request = pb.StartRequest(rows=2).SerializeToString()
        self.sessions = list(pb.StartAnswer.FromString(self.send("Start", request)[0]).sessions)

    def samples(self, number: int) -> dict[str, Any]:
        """A valid request of each rpc."""
        act = pb.ActRequest(
            sessions=self.sessions,
            observations=[leaf(np.zeros((2, 3), np.float32))],
            rewards=[0, 1],
        )
        start = pb.StartRequest(task="toy-vector", rows=1, mode="mean", seed=3)
        start.command["desired_return"].values.append(3)
        again = pb.StartRequest(sessions=self.sessions, newest=True)
        shown = pb.StartRequest(prompt=episode_message(), goal=[leaf(np.zeros((1, 3), np.float32))])
        upload = pb.EpisodeUpload(client=7, sequence=number, episode=episode_message())
        kinds = [("Act", act), ("Stream", act), ("PutEpisodes", upload), ("Start", start)]
        kinds += [
            ("Start", again),
            ("Start", shown),
            ("End", pb.EndRequest(sessions=self.sessions)),
        ]
        kinds += [("Describe", pb.DescribeRequest()), ("Reload", pb.ReloadRequest())]
        name, message = kinds[number % len(kinds)]
        return {"name": name, "data": message.SerializeToString()}

    def outcome(self, name: str, data: bytes) -> str:
        """How a request ended: the name of a status."""
        try:
            answers = self.send(name, data)
        except grpc.RpcError as error:
            return str(error.code().name)
        kind = {"Stream": pb.ActAnswer, "PutEpisodes": pb.Acknowledgement}.get(name)
        told = kind.FromString(answers[0]) if kind and answers else None
        if told is None or not told.HasField("refusal"):
            return "OK"
        return next(one.name for one in grpc.StatusCode if one.value[0] == told.refusal.code)


def fuzz(
    channel: grpc.Channel, numbers: range, seed: int
) -> Iterator[tuple[int, str, str, str, bytes]]:
    """Number, rpc, mutation and outcome of each malformed request, and what was sent."""
    wire = Wire(channel)
    wire.begin()
    for number in numbers:
        chance = np.random.default_rng([seed, number])
        sample = wire.samples(number)
        data, what = sample["data"], "random bytes"
        if chance.random() < 0.15:
            data = chance.bytes(int(chance.integers(0, 400)))
        else:
            for _ in range(int(chance.integers(1, 4))):
                data, what = of_bytes(data, chance)
        outcome = wire.outcome(sample["name"], data)
        if sample["name"] in ("Start", "End") and outcome == "OK":
            wire.begin()
        yield number, sample["name"], what, outcome, data


def main() -> int:
    """Print how often each rpc was answered how; 1 where an answer may not be."""
    from helpers_serving import Fixed, Swallowing, loaded_of

    from bigdm_ray.algorithms.base import find_algorithm
    from bigdm_ray.serving.server import Server
    from bigdm_ray.serving.settings import ServerSettings

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.wire", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one request, to send it again")
    given = parser.parse_args()
    numbers = range(given.count) if given.only is None else range(given.only, given.only + 1)
    began, counts, faults = time.monotonic(), collections.Counter[tuple[str, str]](), 0
    settings = ServerSettings(address="0", max_sessions=1_000_000, max_idle=5.0)
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    with (
        Server(settings, Fixed(loaded), Swallowing()) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for number, name, what, outcome, data in fuzz(channel, numbers, given.seed):
            counts[name, outcome] += 1
            if outcome not in ALLOWED:
                faults += 1
                print(f"--only {number}: {name} {outcome}: {what}: {data[:60].hex()}")
        wire = Wire(channel)
        wire.begin()
        assert wire.outcome("Act", wire.samples(0)["data"]) == "OK", "it acts no more"
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:<12} {outcome:<20} {count:>7}")
    print(f"{len(numbers)} malformed requests, {faults} faults, {time.monotonic() - began:.0f} s")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
