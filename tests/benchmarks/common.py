"""What the benchmarks share: medians of CPU and wall time, and the machine and versions that they
were taken on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bigdm_ray.replay import Store

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def header() -> None:
    """Print machine, load and versions."""
    import torch

    from bigdm_ray.training.run_folder import versions

    torch.set_num_threads(1)
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    print(
        f"{time.strftime('%Y-%m-%d')}  {model}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f}"
    )
    print("  ".join(f"{name} {version}" for name, version in versions().items()))


def measure(work: Callable[[], float], repeats: int = 5) -> tuple[float, float]:
    """Median units per CPU-second and per wall second of `work`, which returns the units that it
    did; one warm-up."""
    work()
    cpu, wall = [], []
    for _ in range(repeats):
        cpu_began, wall_began = time.process_time(), time.perf_counter()
        units = work()
        cpu.append(units / (time.process_time() - cpu_began))
        wall.append(units / (time.perf_counter() - wall_began))
    return statistics.median(cpu), statistics.median(wall)


def row(what: str, unit: str, rates: tuple[float, float]) -> None:
    """Print one figure."""
    print(
        f"{what:<64} {rates[0]:>12,.0f} {unit} per CPU-second   {rates[1]:>12,.0f} per wall second"
    )


def made_up(folder: Path, episodes: int, length: int) -> Store:
    """A store of made-up Hopper-sized episodes."""
    from bigdm_ray.replay import Episode, EpisodeId, Store

    chance = np.random.default_rng(0)
    store = Store(folder)
    store.add([
        Episode(
            {"": chance.normal(size=(length + 1, 11)).astype(np.float32)},
            {"": chance.uniform(-1, 1, (length, 3)).astype(np.float32)},
            chance.normal(size=length).astype(np.float32),
            True,
            EpisodeId(0, 0, i),
            "hopper",
        )
        for i in range(episodes)
    ])  # fmt: skip
    return store


DATA = """import json, sys, time, warnings
warnings.filterwarnings("ignore")
import numpy as np, torch, d3rlpy, structlog, logging
torch.set_num_threads(1)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
chance = np.random.default_rng(0)
n, t = EPISODES, LENGTH
ends = np.zeros(n * t, np.float32); ends[t - 1 :: t] = 1
data = d3rlpy.dataset.MDPDataset(
    chance.normal(size=(n * t, 11)).astype(np.float32),
    chance.uniform(-1, 1, (n * t, 3)).astype(np.float32),
    chance.normal(size=n * t).astype(np.float32), ends
)"""
"""Episodes like those of made_up, as d3rlpy takes them."""


class Peer:
    """A program in another Python that answers each line which it reads with a JSON list: a number
    of steps, once taken, with `[CPU s, wall s, version]`."""

    def __init__(self, python: str, program: str, **numbers: int) -> None:
        for name, value in numbers.items():
            program = program.replace(name, str(value))
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = ""

    def ask(self, line: str) -> Any:
        """Its answer to a line, which is a list."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = next((line for line in self._process.stdout if line.startswith("[")), None)
        if answer is None:
            raise SystemExit(
                f"the peer ended with {self._process.wait()}; run {self._process.args[0]} by hand"
                " to see why"
            )
        return json.loads(answer)

    def turn(self, steps: int) -> tuple[float, float]:
        """CPU and wall seconds of so many steps."""
        cpu, wall, self.version = self.ask(str(steps))
        return cpu, wall

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def d3rlpy(learner: str, update: str) -> str:
    """The program of a Peer with d3rlpy: EPISODES of LENGTH steps as made_up's, the `learner` made
    on them, and a step of it, `update`."""
    return f"""{DATA}{learner}
for line in sys.stdin:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(int(line)):
        {update}
    took = [time.process_time() - cpu, time.perf_counter() - wall, d3rlpy.__version__]
    print(json.dumps(took), flush=True)
"""


def turn(side: Callable[[], object] | Peer, steps: int) -> tuple[float, float]:
    """CPU and wall seconds of so many calls of one side."""
    if isinstance(side, Peer):
        return side.turn(steps)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        side()
    return time.process_time() - cpu, time.perf_counter() - wall


class Spent:
    """CPU and wall seconds `[repeats]` of one side's turns."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds of a turn, CPU and wall."""
        return statistics.median(self.cpu), statistics.median(self.wall)


def in_turns(
    sides: dict[str, Callable[[], object] | Peer], repeats: int, steps: int
) -> dict[str, Spent]:
    """What each side spent on its turns of `steps` calls.

    They take turns, so that what else runs on the machine troubles all alike; the first warms up.

    Peers among them are ended.
    """
    spent = {name: Spent() for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            cpu, wall = turn(side, steps)
            if repeat:
                spent[name].cpu.append(cpu)
                spent[name].wall.append(wall)
    for side in sides.values():
        if isinstance(side, Peer):
            side.close()
    return spent
