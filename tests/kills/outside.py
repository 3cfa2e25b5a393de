"""Kills of a run that takes episodes from outside: `python tests/kills/outside.py --kills 30`.

A client sends episodes without a pause to `run udrl toy-vector --serve`, which is killed with -9
after a random number of acknowledgements, and resumed. At the end every episode that was
acknowledged must be in the store once, none twice, and the counters must say as many.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).parents[2]),
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[1] / "serving"),
]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402  (after the environment is set)
from helpers_serving import free_port  # noqa: E402

from bigdm_ray import client as client_module  # noqa: E402
from bigdm_ray.client import Client, PolicyError, connect  # noqa: E402
from bigdm_ray.replay import Store  # noqa: E402
from bigdm_ray.training import checkpoint  # noqa: E402
from tests.fuzz.wire import episode_message  # noqa: E402

FLAGS = (
    "--local --quiet --rollouts.own false --budget.env-steps 100000000 --algorithm.hidden 8"
    " --algorithm.batch-size 16 --algorithm.n-updates-per-iter 2 --algorithm.warm-up-episodes 10"
    " --algorithm.episodes-per-iteration 20 --algorithm.replay-size 100000 --saves.every 1000"
    " --evaluations.every 100000000 --evaluations.final-episodes 1"
)


def begin(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The run, or its resume."""
    resume = ["--resume"] if (folder / "run.json").is_file() else []
    command = [sys.executable, "-m", "bigdm_ray.run", "udrl", "toy-vector", *FLAGS.split()]
    command += ["--serve", f"127.0.0.1:{port}", "--folder", str(folder), *resume]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def connected(port: int, process: subprocess.Popen[bytes]) -> Client:
    """A client, once the server is there."""
    until = time.monotonic() + 600
    while True:
        try:
            return connect(f"127.0.0.1:{port}")
        except PolicyError:
            assert process.poll() is None and time.monotonic() < until, "the run has not begun"
            time.sleep(0.05)


def numbered(number: int) -> Any:
    """An episode that its number tells from others, as the client has its messages."""
    message = episode_message(1 + number % 5, command={"desired_return": float(number)})
    return client_module._kind("Episode").FromString(message.SerializeToString())


def kill_and_count(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill a run so often, and count: what was sent, acknowledged, is stored, is stored twice."""
    chance, port = np.random.default_rng(seed), free_port()
    process = begin(folder, port)
    client = connected(port, process)
    sender, sent = None, 0
    try:
        for kill in range(kills + 1):
            goal = (sender._stored if sender else 0) + int(chance.integers(1, 60))
            while (sender._stored if sender else 0) < goal:
                client.put(numbered(sent))
                sender, sent = client._sender, sent + 1
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended with {process.returncode}")
            time.sleep(float(chance.random()) * 0.02)
            if kill < kills:
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = begin(folder, port)
        acknowledged = client.flush(600)
        number = sender._client
        process.send_signal(signal.SIGTERM)
        process.wait(600)
    finally:
        process.kill()
        process.wait()
        client.close()
    ids = Store(folder / "store").open().table.ids
    stored = [tuple(one) for one in ids.tolist()]
    wanted = {(number, -1, k) for k in range(sent)}
    saved = checkpoint.complete_checkpoints(folder / "checkpoints")[-1]
    counters = json.loads((saved / "state.json").read_text())["counters"]
    return {
        "sent": sent,
        "acknowledged": acknowledged,
        "stored": len(stored),
        "twice": len(stored) - len(set(stored)),
        "missing": len(wanted - set(stored)),
        "foreign": len(set(stored) - wanted),
        "counted": counters["episodes"],
    }


def main() -> int:
    """Print the counts; 1 where they do not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_and_count(Path(folder) / "run", given.kills, given.seed)
    print(f"{given.kills} kills, {time.monotonic() - began:.0f} s: {found}")
    return int(not agrees(found))


def agrees(found: dict[str, int]) -> bool:
    """Whether everything that was acknowledged is there once, and is counted once."""
    same = found["sent"] == found["acknowledged"] == found["stored"] == found["counted"]
    return same and not (found["twice"] or found["missing"] or found["foreign"])


if __name__ == "__main__":
    sys.exit(main())
