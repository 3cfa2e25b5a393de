"""Ray itself: joined or started, with the settings that it needs before it is imported.

A run starts a Ray of its own on this machine unless it is told an address: a bare `ray.init` would
join whatever cluster happens to run here. It can be reached from this machine alone, and with its
token alone. Actors without a GPU see none; one thread an actor.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import (
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bigdm_ray import stopping
from bigdm_ray.distributed.session_folder import SessionFolder
from bigdm_ray.distributed.watch import hush_ray, shut_down, watch_ray
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.progress import say
from bigdm_ray.training.config import Run
from bigdm_ray.training.learner import pick_device

START_ATTEMPTS = 3
SIOCGIFADDR = 0x8915
"""Linux's request for the address of a network interface."""
TOKEN = (
    "copy it from ~/.ray/auth_token of a node of the cluster to the same place here, "
    "or give it in RAY_AUTH_TOKEN"
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextlib.contextmanager
def cluster(run: Run, dashboard: bool = False) -> Iterator[Any]:
    """The connected `ray` module; what was started here is stopped at the end.

    With `dashboard` the address of Ray's web page is told: that of the cluster, or of the Ray that
    is started here, which has none otherwise. Raises UserError where it cannot join.
    """
    check_device(run)
    if ray.is_initialized():  # inside a Tune trial, or a user's own session
        if dashboard:
            there = _page() or "this Ray has none; ray.init(include_dashboard=True) starts one"
            say(f"dashboard: {there}")
        yield ray
        return
    machines = run.machines
    if machines.address == "local":
        with own_ray(machines.actors + machines.learners + 1, dashboard):
            yield ray
    else:
        _join(machines.address)
        try:
            if dashboard:
                say(_dashboard_of_a_cluster())
            with hush_ray():
                yield ray
        finally:
            ray.shutdown()


def check_device(run: Run) -> None:
    """Raise UserError where learner actors would wait for a GPU that never comes.

    A cluster that is joined may still add nodes.
    """
    name, ranks = run.machines.device, run.machines.learners
    if name.startswith("cuda:"):
        raise UserError(
            f"--device {name} picks a GPU for --local; with Ray say --device cuda: each learner is"
            " given a GPU of its own"
        )
    if (
        run.machines.address == "local"
        and pick_device(name).type == "cuda"
        and name != "auto"
        and ranks > (count := torch.cuda.device_count())
    ):
        raise UserError(
            f"--learners is {ranks}, but this machine has {count} GPU(s); give at most so many"
            " learners, or --device cpu"
        )


def _join(address: str) -> None:
    expected = "expected is `local`, `auto` on a node of a cluster, or HOST:PORT of its head"
    _look_again()
    try:
        with stopping.keep_handlers():
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except AuthenticationError:
        raise UserError(
            f"--address {address!r} cannot be joined without the token of the cluster; {TOKEN}"
        ) from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        if "InvalidAuthToken" in f"{error.__cause__}":
            raise UserError(
                f"--address {address!r} cannot be joined: the token of this user is not that of "
                f"the cluster; {TOKEN}"
            ) from None
        raise UserError(
            f"--address {address!r} cannot be joined ({_one_line(error)}); {expected}"
        ) from None


@contextlib.contextmanager
def own_ray(cpus: int, dashboard: bool = False) -> Iterator[None]:
    """A Ray of this process's own on this machine, with at least so many (logical) CPUs.

    It listens on loopback only, has a token and a folder of its own, and is stopped at the end.
    With `dashboard` it has a web page too, whose address and token are told. Raises RunFailed.
    """
    _check_loopback()
    token = {} if _named_token() else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _environment(token):
        _look_again()
        folder = _started(max(os.cpu_count() or 1, cpus), dashboard)
        try:
            if dashboard:
                say(f"dashboard: {_page()}, which asks for a token: {_answer(token)}")
            with watch_ray(folder.remove):
                yield
        finally:
            _stop(folder)


def _check_loopback() -> None:
    """Raise RunFailed where this machine does not reach itself: Ray would wait for minutes."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as here:
            socket.create_connection(here.getsockname(), timeout=30).close()
    except OSError as error:
        raise RunFailed(
            f"Ray needs 127.0.0.1, which cannot be reached here ({error.strerror or error}); "
            "bring it up (ip link set lo up); --local trains without Ray"
        ) from None


def _named_token() -> bool:
    """Whether the user has chosen a token for this process; that of ~/.ray is for clusters."""
    return "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ


def _page() -> str:
    """The address of the web page of the Ray that is connected; empty where it has none."""
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else ""


def _answer(token: dict[str, str]) -> str:
    """What to type where the web page of a Ray of one's own asks for a token."""
    if not token:
        return "the one that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH says"
    return f"{token['RAY_AUTH_TOKEN']} (it ends with this command)"


def _dashboard_of_a_cluster() -> str:
    """Where its web page is, in one line."""
    if not (page := _page()):
        return "dashboard: the cluster has none; start its head with --include-dashboard=true"
    return (
        f"dashboard: {page} on the head, whose token it asks for; `ray dashboard FILE` brings it "
        "here, with the file of the cluster"
    )


def _started(cpus: int, dashboard: bool) -> SessionFolder:
    """The folder of a Ray that runs.

    A busy machine, or a port that another took first, is worth another try.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        folder = SessionFolder()
        try:
            with stopping.keep_handlers(), _alone(), _apart():
                ray.init(
                    address="local",
                    log_to_driver=False,
                    logging_level="critical",  # what fails is told once, below
                    num_cpus=cpus,
                    include_dashboard=dashboard,
                    _temp_dir=str(folder.path),
                    _system_config={"enable_metrics_collection": False},
                )
            logging.getLogger("ray").setLevel(logging.ERROR)
            return folder
        except Exception as error:  # Ray raises a bare one where a process does not come up
            why = " ".join(filter(None, [_one_line(error), folder.complaint()]))
            _stop(folder)
            if attempt == START_ATTEMPTS:
                raise RunFailed(
                    f"Ray could not be started on this machine ({why}); --local trains without it"
                ) from error
        except BaseException:
            _stop(folder)
            raise
    raise AssertionError


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Variables that this process and those that it starts have inside the block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _look_again() -> None:
    """Let Ray read again whether there is a token, and which.

    It does so once, with what the environment held when it was imported.
    """
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A Ray that starts inside the block has the node 127.0.0.1, and tells its metrics to nobody.

    Ray puts every socket on loopback where its node has that address, which it takes only where it
    forms no cluster: a constant, read from the environment at import and meant for other systems.
    The autoscaler and the dashboard serve metrics without a token, unless their port cannot be.
    """
    ports = dict.fromkeys(["AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"], "-1")
    forms_clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(ports | {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = forms_clusters


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """The processes of a Ray that starts inside the block are no part of this one's process group.

    A signal to the group (a terminal's, `timeout`'s, `kill -- -PGID`) would end them while what is
    under way is still being saved. They end with this process all the same: Linux sees to it.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(subprocess.Popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _stop(folder: SessionFolder) -> None:
    """End Ray with all its processes, also those of a start that failed, and remove its folder."""
    shut_down()
    for pid in _below(folder.path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    folder.remove()


def _below(folder: Path) -> list[int]:
    """The processes whose command lines name `folder`: Ray forgets those of a start that failed."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def _one_line(error: Exception) -> str:
    """What went wrong, without the files that Ray goes on to name: they go with its folder."""
    told = re.split(r"Last \d+ lines|Last connection error|Please check", str(error))[0]
    return " ".join(told.split())[:300]


def learner_options(run: Run) -> dict[str, Any]:
    """What a learner rank asks of Ray: one CPU, and one GPU where it is to train on one.

    Nodes that a cluster file labels `bigdm/role: rollout` are left to the rollout actors.
    """
    device = run.machines.device
    wants_gpu = device.startswith("cuda") or (
        device == "auto" and ray.cluster_resources().get("GPU", 0) >= run.machines.learners
    )
    settings = {name: str(run.machines.threads) for name in ONE_THREAD}
    return {
        "num_cpus": 1,
        "num_gpus": 1 if wants_gpu else 0,
        "label_selector": {"bigdm/role": "!rollout"},
        "runtime_env": {"env_vars": settings},
    }


def loopback() -> bool:
    """Whether the Ray that runs is one of this machine alone."""
    return ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address, for gloo, which asks for its name.

    None where there is none, or on another system than Linux.
    """
    if sys.platform != "linux":
        return None
    if ipaddress.ip_address(address).is_loopback:
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # it has no address
                told = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, asked)
                if socket.inet_ntoa(told[20:24]) == address:
                    return name
    return None


def pinned_options() -> dict[str, Any]:
    """What an actor asks of Ray that stands on the driver's machine, where the run's folder is."""
    node = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "num_gpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        "runtime_env": {"env_vars": dict(ONE_THREAD)},
    }


def cpu_options(num_cpus: float = 1) -> dict[str, Any]:
    """What an actor asks of Ray that needs no GPU: rollout actors one CPU each, spread over the
    nodes.

    Nodes that a cluster file labels `bigdm/role: learner` are left to the learners.
    """
    return {
        "num_cpus": num_cpus,
        "num_gpus": 0,
        "scheduling_strategy": "SPREAD",
        "label_selector": {"bigdm/role": "!learner"},
        "runtime_env": {"env_vars": dict(ONE_THREAD)},
    }
