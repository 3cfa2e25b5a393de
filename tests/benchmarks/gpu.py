"""Every figure that needs a GPU, at once: `make gpu`, or python -m tests.benchmarks.gpu --out
gpu.json

Neither Ray nor a simulator is needed: numpy, torch, pyarrow, safetensors, gymnasium and tqdm are.
Each row runs for --seconds after a warm-up; with 20 it all takes less than 10 minutes. What fails
is a row that says why. The JSON is written after each row, so that a run which is cut short leaves
what it has.

    peak      a bf16 product of two 8192 x 8192 matrices: what the others are a share of
    dt        learner steps of the paper's size (0.73 M parameters, windows of 20), batches of 64
              and 4,096
    large     12 layers of width 768 at a context of 1,024 tokens: tokens a second, share of the
              peak
    tt        learner steps of the official size (windows of 10 transitions of 16 tokens)
    tt plan   a planned action of Hopper (15 ahead, 128 beams), for one environment and for 64
    dt act    an action with a full window of 20, exact and cached, for one environment and for 64
    udrl      learner steps of batch 512
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.common import made_up

SIZES = {
    "full": {"matrix": 8192, "large": (12, 768, 12, 1024, 8), "batches": (64, 4096), "plan": 64},
    "tiny": {"matrix": 64, "large": (1, 16, 2, 16, 2), "batches": (4,), "plan": 2},
}
BLOCK = 10
"""Learner steps between two looks at the clock, as a run takes many in one call."""


def signature() -> Any:
    """Hopper's, without its simulator."""
    from bigdm_ray.envs.signature import Leaf, Signature

    ones = (1.0,) * 3
    return Signature(
        {"": Leaf("tensor", (11,), "float32")},
        {"": Leaf("tensor", (3,), "float32", tuple(-one for one in ones), ones)},
    )


def timed(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, after a warm-up of three."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        work()
    wait()
    took, end = [], time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def peak(device: torch.device, size: dict[str, Any], seconds: float) -> dict[str, float]:
    """Multiply-adds of bfloat16 a second, as two operations each."""
    n = size["matrix"]
    one, other = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"flops": 2 * n**3 / timed(lambda: one @ other, device, seconds)}


def learning(
    algorithm: Any, store: Any, device: torch.device, seconds: float, **how: Any
) -> dict[str, float]:
    """Learner steps a second, drawing included, as `run ... --local` takes them."""
    from bigdm_ray.training.learner import Learner

    learner = Learner(algorithm, {"hopper": signature()}, 1, str(device), **how)
    one = timed(lambda: learner.update({"hopper": store}, BLOCK), device, seconds) / BLOCK
    return {
        "steps_per_s": 1 / one,
        "windows_per_s": algorithm.batch / one,
        "parameters": sum(p.numel() for p in learner.model.parameters()),
    }


def large(device: torch.device, size: dict[str, Any], seconds: float) -> dict[str, float]:
    """Tokens a second, forward and backward in bfloat16, and the operations that they take."""
    from bigdm_ray.models.parallel import use_bfloat16
    from bigdm_ray.models.transformer import Transformer

    layers, width, heads, context, rows = size["large"]
    net = Transformer(width, layers, heads, context).to(device)
    use_bfloat16(net)
    x = torch.randn(rows, context, width, device=device)

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(x).square().mean().backward()

    tokens = rows * context
    took = timed(step, device, seconds)
    parameters = sum(p.numel() for p in net.parameters())
    flops = tokens * (6 * parameters + 6 * layers * width * context)  # causal: half of 12
    return {"tokens_per_s": tokens / took, "flops": flops / took, "parameters": parameters}


def planned(device: torch.device, rows: int, seconds: float) -> dict[str, float]:
    """Seconds of a plan for so many environments at once."""
    from bigdm_ray.models.trajectory import TrajectoryTransformer
    from bigdm_ray.planning.beam import Planner
    from bigdm_ray.planning.sampling import SearchSettings
    from bigdm_ray.tokens.bins import Bins

    dims, chance = 16, np.random.default_rng(0)
    torch.manual_seed(0)
    net = TrajectoryTransformer([0] * dims, 100, 10, 128, 4, 4).eval().requires_grad_(False)
    search = SearchSettings(15, 128, 2, k_act=0, cdf_act=0.6)
    planner = Planner(net.to(device), Bins([0] * dims).to(device), 11, 3, search)
    past = torch.randint(0, 100, (rows, 4, dims), device=device)
    state = torch.randint(0, 100, (rows, 11), device=device)

    def plan() -> None:
        planner.plan(past, state, planner.numbers(chance.random((rows, 2), np.float32)))

    return {"ms": 1000 * timed(plan, device, seconds)}


def acted(device: torch.device, rows: int, cached: bool, seconds: float) -> dict[str, float]:
    """Milliseconds of an action for so many environments at once."""
    from bigdm_ray.algorithms.dt import Dt

    algorithm = Dt(cached=cached)
    model = algorithm.build({"hopper": signature()}).eval().to(device)
    policy = algorithm.policy(model, "sample", signature())
    state, chance = policy.start(rows), np.random.default_rng(0)
    command = {"desired_return": np.full(rows, 3600.0, np.float32)}
    rewards, uniforms = np.zeros(rows, np.float32), np.zeros((rows, policy.uniforms), np.float32)
    first = np.full(rows, True)

    def act() -> None:
        nonlocal state, first
        seen = {"": chance.normal(size=(rows, 11)).astype(np.float32)}
        _, state = policy.act(state, seen, rewards, command, first, uniforms)
        first = np.full(rows, False)

    for _ in range(algorithm.context):
        act()
    return {"ms": 1000 * timed(act, device, seconds)}


Row = tuple[str, Callable[[], dict[str, float]]]


def rows(device: torch.device, size: dict[str, Any], store: Any, seconds: float) -> Iterator[Row]:
    """What is measured, by name."""
    from bigdm_ray.algorithms.dt import Dt
    from bigdm_ray.algorithms.tt import Tt
    from bigdm_ray.algorithms.udrl import Udrl

    def learns(algorithm: Any, **how: Any) -> Callable[[], dict[str, float]]:
        return lambda: learning(algorithm, store, device, seconds, **how)

    yield "peak", lambda: peak(device, size, seconds)
    for batch in size["batches"]:
        yield f"dt {batch}", learns(Dt(batch_size=batch))
        yield f"dt {batch} bf16", learns(Dt(batch_size=batch), precision="bf16")
        if device.type == "cuda":  # on a CPU dropout is not compiled
            yield (
                f"dt {batch} bf16 compiled",
                learns(Dt(batch_size=batch), precision="bf16", compile=True),
            )
    yield "large bf16", lambda: large(device, size, seconds)
    yield "tt", learns(Tt(batch_size=size["batches"][0], termination_penalty=-100.0))
    yield (
        "tt bf16",
        learns(Tt(batch_size=size["batches"][0], termination_penalty=-100.0), precision="bf16"),
    )
    yield "udrl", learns(Udrl(batch_size=512))
    for many in (1, size["plan"]):
        yield f"tt plan {many}", lambda many=many: planned(device, many, seconds)
        for cached in (False, True):
            yield (
                f"dt act {many}{' cached' if cached else ''}",
                lambda many=many, cached=cached: acted(device, many, cached, seconds),
            )


def main() -> int:
    """Print and write each row; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "error: this machine has no usable GPU; --device cpu --size tiny tries it out",
            file=sys.stderr,
        )
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    told: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": name,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": {},
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        store = made_up(Path(folder), *((100, 1000) if given.size == "full" else (4, 40)))
        for what, measure in rows(device, SIZES[given.size], store, given.seconds):
            try:
                told["rows"][what] = measure()
            except Exception as error:  # noqa: BLE001, one row is not all
                told["rows"][what] = {"failed": f"{type(error).__name__}: {error}"[:300]}
                failed = True
            if (top := told["rows"]["peak"].get("flops")) and "flops" in told["rows"][what]:
                told["rows"][what]["share_of_peak"] = told["rows"][what]["flops"] / top
            print(f"{what:<24}{told['rows'][what]}", flush=True)
            given.out.write_text(json.dumps(told, indent=1))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
