"""Ray itself: joined or started, with the settings that it needs before it is imported.

A run starts a Ray of its own on this machine unless it is told an address: a bare `ray.init` would join whatever
cluster happens to run here. Token authentication is on; actors without a GPU see none; one thread an actor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
import torch

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training.config import Run
from bigdm_ray.training.learner import pick_device

START_ATTEMPTS = 3
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextlib.contextmanager
def cluster(run: Run) -> Iterator[Any]:
    """The connected `ray` module; what was started here is stopped at the end. Raises UserError where it cannot join."""
    check_device(run)
    if ray.is_initialized():  # inside a Tune trial, or a user's own session
        yield ray
        return
    _connect(ray, run)
    try:
        yield ray
    finally:
        ray.shutdown()


def check_device(run: Run) -> None:
    """Raise UserError where learner actors would wait for a GPU that never comes. A cluster that is joined may still add nodes."""
    name, ranks = run.machines.device, run.machines.learners
    if name.startswith("cuda:"):
        raise UserError(
            f"--device {name} picks a GPU for --local; with Ray say --device cuda: each learner is given a GPU of its own"
        )
    if (
        run.machines.address == "local"
        and pick_device(name).type == "cuda"
        and name != "auto"
        and ranks > (count := torch.cuda.device_count())
    ):
        raise UserError(
            f"--learners is {ranks}, but this machine has {count} GPU(s); give at most so many learners, or --device cpu"
        )


def _connect(ray: Any, run: Run) -> None:
    machines = run.machines
    if machines.address != "local":
        try:
            ray.init(address=machines.address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--address {machines.address!r} cannot be joined ({_one_line(error)}); expected is `local`, `auto` on a node of a cluster, "
                "or HOST:PORT of its head"
            ) from None
        return
    start_here(machines.actors + machines.learners + 1)


def start_here(cpus: int) -> None:
    """Start a Ray on this machine with at least so many (logical) CPUs: what is asked for fits. Raises RunFailed."""
    cpus = max(os.cpu_count() or 1, cpus)
    for attempt in range(
        START_ATTEMPTS
    ):  # another Ray that starts at the same moment may take the port that this one has picked
        try:
            ray.init(
                address="local",
                log_to_driver=False,
                logging_level="error",
                num_cpus=cpus,
                include_dashboard=False,
            )
            return
        except (ConnectionError, ValueError, RuntimeError) as error:
            ray.shutdown()
            if attempt == START_ATTEMPTS - 1:
                raise RunFailed(
                    f"Ray could not be started on this machine ({_one_line(error)}); --local trains without it"
                ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def learner_options(run: Run) -> dict[str, Any]:
    """What a learner rank asks of Ray: one CPU, and one GPU where it is to train on one."""
    device = run.machines.device
    wants_gpu = device.startswith("cuda") or (
        device == "auto" and ray.cluster_resources().get("GPU", 0) >= run.machines.learners
    )
    threads = {name: str(run.machines.threads) for name in ONE_THREAD}
    return {"num_cpus": 1, "num_gpus": 1 if wants_gpu else 0, "runtime_env": {"env_vars": threads}}


def cpu_options(num_cpus: float = 1) -> dict[str, Any]:
    """What an actor asks of Ray that needs no GPU: rollout actors one CPU each, spread over the nodes.

    Nodes that a cluster file labels `bigdm/role: learner` are left to the learners.
    """
    return {
        "num_cpus": num_cpus,
        "num_gpus": 0,
        "scheduling_strategy": "SPREAD",
        "label_selector": {"bigdm/role": "!learner"},
        "runtime_env": {"env_vars": dict(ONE_THREAD)},
    }
