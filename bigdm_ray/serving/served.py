"""What is served: a version of a run's weights, which acts in its tasks, and where the next comes
from.

A version is never written to: newer weights are a copy of the network beside it, so sessions that
act with the older one are not disturbed, and it goes when the last of them does.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from bigdm_ray.algorithms.base import Mode, Policy
from bigdm_ray.envs.signature import Leaf
from bigdm_ray.envs.values import child_path
from bigdm_ray.errors import UserError, suggest_names
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.formats.spaces import leaf_spaces, task_spaces
from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.training.acting import TrainedRun, command_from, run_as
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.loaded import load, locate_run
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder

NAMELESS = Path("this server")
"""Stands for the run's folder in sentences: no path goes over the wire."""


class Served:
    """A version of weights. Threads may ask it at once."""

    def __init__(self, trained: TrainedRun, mode: str = "own") -> None:
        trained = dataclasses.replace(trained, folder=NAMELESS)
        self._mode = mode
        self._policies: dict[tuple[str, str], Policy] = {}
        self._lock = threading.Lock()
        self.trained = trained
        self.version = trained.version
        self.by_task = {name: trained.of(name) for name in trained.tasks}

    def task(self, name: str) -> str:
        """The task that is meant; the only one where nothing is named. Raises UserError."""
        if not name and len(self.by_task) > 1:
            raise UserError(
                f"a task is expected, one of {', '.join(self.by_task)}; name it when you start"
            )
        return self.trained.run.use(name).name if name else next(iter(self.by_task))

    def source_in(self, task: str) -> str:
        """Who acts in a task, in the words of a store."""
        return self.trained.run.algorithm.name

    def policy(self, task: str, mode: str) -> Policy:
        """How it acts in a task; a mode that is `""` is the server's.

        Raises UserError for a mode that the algorithm has not.
        """
        mode = mode or self._mode
        if mode not in OWN_OR_MODES:
            near = suggest_names(mode, list(OWN_OR_MODES))
            raise UserError(f"the mode is {mode!r}, but how to act is expected{near}")
        with self._lock:
            if (task, mode) not in self._policies:
                self._policies[task, mode] = self._made(task, mode)
            return self._policies[task, mode]

    def _made(self, task: str, mode: str) -> Policy:
        one = self.by_task[task]
        run = run_as(one, mode)
        kind = cast(Mode, run.evaluations.mode)
        return run.algorithm.policy_in(one.model, kind, one.signature, task)

    def command(self, task: str, asked: Mapping[str, float]) -> dict[str, float]:
        """What a session is told to achieve: what is asked for, and the run's own for the rest.

        Raises UserError for what the policy does not take, or has not of its own.
        """
        return command_from(self.by_task[task], asked, lambda name: name)


class Versions(Protocol):
    """Where versions come from."""

    def newest(self) -> Served:
        """The newest that is at hand."""

    def reload(self) -> Served:
        """The newest that there is. Raises UserError where it cannot be had."""


class FolderVersions:
    """Versions of the weights of a run folder."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        which: str = "last",
        mode: str = "own",
        acting: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        """Raises UserError for what is no run, or has no such weights."""
        loaded = load(folder, which, acting)
        self._path = RunFolder(locate_run(folder, which)).weights(which)
        self._mode = mode
        self._seen = self._look()
        self._lock = threading.Lock()
        loaded.model.to(pick_device(device))
        self._newest = Served(loaded, mode)
        for task in self._newest.by_task:  # what the algorithm has against it is said at once
            self._newest.policy(task, "")

    def _look(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def newest(self) -> Served:
        """See Versions."""
        return self._newest

    def has_changed(self) -> bool:
        """Whether the file of the weights is another one than was read last."""
        try:
            return self._look() != self._seen
        except OSError:  # it is being put there
            return False

    def reload(self) -> Served:
        """See Versions. Weights that are read twice are one version."""
        with self._lock:
            try:
                seen = self._look()
            except OSError as error:
                raise UserError(f"{self._path} cannot be read: {error.strerror}") from None
            weights = Weights.load(self._path)
            self._seen = seen
            if weights.version != self._newest.version:
                self._newest = Served(self._newest.trained.with_weights(weights), self._mode)
            return self._newest


def describe(served: Served, takes_episodes: bool) -> pb.Description:
    """What clients are told: tasks, arrays, commands."""
    algorithm = served.trained.run.algorithm
    return pb.Description(
        algorithm=algorithm.name,
        tasks=[_form(name, one) for name, one in served.by_task.items()],
        commands=algorithm.commands,
        version=write_version(served.version),
        takes_episodes=takes_episodes,
    )


def write_version(version: tuple[int, int]) -> pb.Version:
    """A version as a message."""
    return pb.Version(incarnation=version[0], learner_step=version[1])


def _form(name: str, one: TrainedRun) -> pb.TaskForm:
    spaces = task_spaces(name) if one.task.plays else None
    seen, acted = spaces if spaces is not None else (None, None)
    return pb.TaskForm(
        name=name,
        observations=_leaf_forms(one.signature.observations, seen),
        actions=_leaf_forms(one.signature.actions, acted),
        action_tuples=[] if acted is None else list(_tuples(acted)),
    )


def _leaf_forms(leaves: Mapping[str, Leaf], space: Any) -> list[pb.LeafForm]:
    """What is said of leaves; with the environment's `space` also how its own values differ."""
    own = {} if space is None else {path: one for path, _, one in leaf_spaces(space)}
    return [
        pb.LeafForm(
            path=path,
            kind=leaf.kind,
            dtype=leaf.dtype,
            shape=leaf.shape,
            choices=leaf.choices,
            low=leaf.low or (),
            high=leaf.high or (),
            starts=np.ravel(getattr(own.get(path), "start", ())).astype(int).tolist(),
            channels_last=leaf.kind == "image"
            and len(shape := tuple(getattr(own.get(path), "shape", None) or ())) == 3
            and shape != leaf.shape,
            held=leaf.per == "episode",
        )
        for path, leaf in leaves.items()
    ]


def _tuples(space: Any, path: str = "") -> list[str]:
    """The paths of the tuples in a space."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return []
    parts: Any = space.spaces
    found = [path] if isinstance(parts, tuple) else []
    for name, child in enumerate(parts) if found else parts.items():
        found += _tuples(child, child_path(path, name))
    return found
