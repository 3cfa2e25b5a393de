"""Servers of small policies for tests."""

from __future__ import annotations

import contextlib
import socket

import torch
from making import small

from bigdm_ray.client import connect
from bigdm_ray.envs import find_task
from bigdm_ray.serving.served import Served
from bigdm_ray.serving.server import Server
from bigdm_ray.serving.settings import ServerSettings
from bigdm_ray.training.config import Run, TaskUse
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder, save_weights, write_json

COMMAND = {"desired_return": 7.0, "desired_horizon": 9.0}
SEED = 5


def loaded_of(kind, *tasks, stores=None, folder=None, **more):
    """A trained run whose network has drawn weights; with `stores` their statistics."""
    torch.manual_seed(0)
    algorithm = small(kind, **more)
    found = {task: find_task(task) for task in tasks}
    signatures = {name: task.signature() for name, task in found.items()}
    model = algorithm.build(signatures).eval()
    if stores is not None:
        algorithm.fit(model, stores, 0)
    command = {name: COMMAND[name] for name in kind.commands}
    if len(tasks) > 1:
        command = {f"{task}/{name}": v for task in tasks for name, v in command.items()}
    run = Run(algorithm, tuple(map(TaskUse, tasks)), seed=SEED)
    return Loaded(folder, run, found, signatures, model, {"command": command}, (0, 0))


class Fixed:
    """One version, and no other."""

    def __init__(self, loaded, mode="own"):
        self.served = Served(loaded, mode)

    def newest(self):
        return self.served

    def reload(self):
        return self.served


@contextlib.contextmanager
def serving(loaded, takes=None, mode="own", **settings):
    """A client of a server of a trained run."""
    fixed = {"address": "127.0.0.1:0"} | settings
    versions = Fixed(loaded, mode) if isinstance(loaded, Loaded) else loaded
    with (
        Server(ServerSettings(**fixed), versions, takes) as server,
        connect(server.address) as client,
    ):
        yield client


def run_folder(path, loaded, version=(0, 0)):
    """The folder of a run with these weights."""
    (path / "weights").mkdir(parents=True)
    write_json(path / "run.json", loaded.run.to_json())
    write_weights(path, loaded, version)
    return path


def write_weights(path, loaded, version):
    """Its weights, of another version."""
    weights = Weights.of(loaded.model, version)
    save_weights(RunFolder(path), "last", weights, loaded.summary["command"], None)


class Swallowing:
    """Takes episodes, and forgets them."""

    async def put(self, task, episode):
        assert episode.problem() is None and episode.task == task


def free_port():
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
