"""What the benchmarks share: medians of CPU and wall time, and the machine and versions that they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def header() -> None:
    """Print machine, load and versions."""
    import torch

    from bigdm_ray.training.run_folder import versions

    torch.set_num_threads(1)
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    print(f"{time.strftime('%Y-%m-%d')}  {model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("  ".join(f"{name} {version}" for name, version in versions().items()))


def measure(work: Callable[[], float], repeats: int = 5) -> tuple[float, float]:
    """Median units per CPU-second and per wall second of `work`, which returns the units that it did; one warm-up."""
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
    print(f"{what:<64} {rates[0]:>12,.0f} {unit} per CPU-second   {rates[1]:>12,.0f} per wall second")
