"""Ray itself: joined or started, with the settings that it needs before it is imported.

A run starts a Ray of its own on this machine unless it is told an address: a bare `ray.init` would join whatever
cluster happens to run here. Token authentication is on; actors without a GPU see none; one thread an actor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from bigdm_ray.errors import UserError
from bigdm_ray.training.config import Run

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DEDUP_LOGS": "1",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def prepare_environment() -> None:
    """Set what Ray reads when it is imported, where the user has not."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def cluster(run: Run) -> Iterator[Any]:
    """The connected `ray` module; what was started here is stopped at the end. Raises UserError where it cannot join."""
    prepare_environment()
    import ray

    if ray.is_initialized():  # inside a Tune trial, or a user's own session
        yield ray
        return
    machines = run.machines
    parts = machines.actors + machines.learners + 1
    local = machines.address == "local"
    options: dict[str, Any] = {"num_cpus": max(os.cpu_count() or 1, parts), "include_dashboard": False} if local else {}
    try:
        ray.init(address=machines.address, log_to_driver=False, logging_level="error", configure_logging=True, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"--address {machines.address!r} cannot be joined ({text}); expected is `local`, `auto` on a node of a cluster, or HOST:PORT of its head"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def learner_options(run: Run) -> dict[str, Any]:
    """What a learner rank asks of Ray: one CPU, and one GPU where it is to train on one."""
    import ray

    device = run.machines.device
    wants_gpu = device.startswith("cuda") or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= run.machines.learners)
    threads = {name: str(run.machines.threads) for name in ONE_THREAD}
    return {"num_cpus": 1, "num_gpus": 1 if wants_gpu else 0, "runtime_env": {"env_vars": threads}}


def cpu_options(num_cpus: float = 1) -> dict[str, Any]:
    """What an actor asks of Ray that needs no GPU: rollout actors one CPU each, spread over the nodes."""
    return {"num_cpus": num_cpus, "num_gpus": 0, "scheduling_strategy": "SPREAD", "runtime_env": {"env_vars": dict(ONE_THREAD)}}
