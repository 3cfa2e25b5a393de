"""Rows of environments in a process of their own: what ends that process does not end the worker.

For suites that say so (`Suite.isolate`): simulators that may crash, or that must not share
a process with other libraries. Messages are JSON and plain arrays, over a pair of sockets.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.vector import Arrays, Step, reset_step, zero_step
from bigdm_ray.errors import RunFailed, UserError

END_S = 10.0
"""Seconds that a process is given to end by itself."""


class EnvProcessEnded(Exception):
    """The process of the environments is no more: one clause why."""


def pack_message(head: dict[str, Any], arrays: Arrays) -> bytes:
    """A message: values of JSON, and arrays by name."""
    told = [[name, values.dtype.str, values.shape] for name, values in arrays.items()]
    text = json.dumps([head, told]).encode()
    return b"".join(
        (struct.pack("<I", len(text)), text, *(values.tobytes() for values in arrays.values()))
    )


def unpack_message(message: bytes) -> tuple[dict[str, Any], Arrays]:
    """The inverse of `pack_message`; the arrays may be written to."""
    (size,) = struct.unpack_from("<I", message)
    head, told = json.loads(message[4 : 4 + size])
    arrays, at = {}, 4 + size
    for name, dtype, shape in told:
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(message, dtype, count, at).reshape(shape)
        arrays[name] = values.copy()
        at += values.nbytes
    return head, arrays


class EnvProcess:
    """A process that holds environments, and answers (`envs/isolated_child.py`)."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bigdm_ray.envs.isolated_child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the worker, which ends it
            )
        self._line = Connection(ours.detach())

    def ask(
        self, verb: str, arrays: Arrays | None = None, **head: Any
    ) -> tuple[dict[str, Any], Arrays]:
        """Its answer. Raises EnvProcessEnded, and what it says was raised: UserError, RunFailed."""
        try:
            self._line.send_bytes(pack_message({"verb": verb, **head}, arrays or {}))
            answer, values = unpack_message(self._line.recv_bytes())
        except (EOFError, OSError):
            raise EnvProcessEnded(f"its process {self._end()}") from None
        if "raised" in answer:
            raise (UserError if answer["raised"] == "UserError" else RunFailed)(answer["why"])
        return answer, values

    def _end(self) -> str:
        """How it ended."""
        self.close()
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def close(self) -> None:
        """End it: it ends when nobody can ask it any more."""
        self._line.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def signature_of(task: str) -> Signature:
    """The signature of a task, of an environment elsewhere. Raises UserError, RunFailed."""
    child = EnvProcess()
    try:
        return Signature.from_json(child.ask("signature", task=task)[0]["signature"])
    except EnvProcessEnded as end:
        raise RunFailed(f"an environment of {task} cannot be made: {end}") from None
    finally:
        child.close()


class IsolatedRows:
    """n rows of a task in a process of their own; see VectorEnv.

    Where it ends, the rows that were asked fail, and so does each other row at its next step, whose
    episode is lost with it. A new process then holds all rows, with a seed that follows from the
    first one and the number of deaths. Raises RunFailed where that cannot make them.
    """

    def __init__(
        self, task: str, n: int, seed: int, backend: str = "fast", render: bool = False
    ) -> None:
        self.n = n
        self._task, self._seed, self._backend, self._render = task, seed, backend, render
        self._deaths = 0
        self._lost: dict[int, str] = {}  # rows whose episodes ended with the process, and why
        self._begin()

    def _begin(self) -> None:
        self._child = EnvProcess()
        made_of: dict[str, Any] = {"task": self._task, "n": self.n, "seed": self._reseeded()}
        made_of |= {"backend": self._backend, "render": self._render}
        try:
            answer, _ = self._child.ask("make", **made_of)
        except EnvProcessEnded as end:
            raise RunFailed(f"environments of {self._task} cannot be made: {end}") from None
        self.signature = Signature.from_json(answer["signature"])

    def _reseeded(self) -> int:
        if not self._deaths:
            return self._seed
        chance = np.random.SeedSequence([self._seed, self._deaths])
        return int(chance.generate_state(1)[0] & 0x7FFFFFFF)

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        for row in rows.tolist():
            self._lost.pop(row, None)
        return self._asked("reset", rows, {})

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv."""
        lost = {k: self._lost[i] for k, i in enumerate(rows.tolist()) if i in self._lost}
        if not lost:
            return self._asked("step", rows, actions)
        whole, rest = self._nothing(len(rows), lost), np.setdiff1d(np.arange(len(rows)), [*lost])
        if len(rest):
            part = self._asked("step", rows[rest], {p: v[rest] for p, v in actions.items()})
            for path, values in part.observations.items():
                whole.observations[path][rest] = values
            for name in ("rewards", "terminated", "truncated"):
                getattr(whole, name)[rest] = getattr(part, name)
            whole.failures.update({int(rest[k]): why for k, why in part.failures.items()})
        return whole

    def _asked(self, verb: str, rows: np.ndarray, actions: Arrays) -> Step:
        try:
            head, arrays = self._child.ask(verb, {"rows": rows, **_under("a/", actions)})
        except EnvProcessEnded as end:
            self._deaths += 1
            self._lost = dict.fromkeys(set(range(self.n)) - set(rows.tolist()), str(end))
            self._begin()
            return self._nothing(len(rows), dict.fromkeys(range(len(rows)), str(end)))
        return Step(
            {name[2:]: values for name, values in arrays.items() if name.startswith("o/")},
            arrays["rewards"],
            arrays["terminated"],
            arrays["truncated"],
            {int(k): why for k, why in head["failures"].items()},
        )

    def _nothing(self, m: int, failures: dict[int, str]) -> Step:
        empty = zero_step(self.signature.observations)
        return reset_step(m, {path: np.stack([v] * m) for path, v in empty.items()}, failures)

    def reseed(self, seed: int) -> None:
        """See VectorEnv."""
        self._seed, self._deaths = seed, 0
        self._child.ask("reseed", seed=seed)

    def frame(self) -> np.ndarray:
        """See VectorEnv."""
        return self._child.ask("frame")[1]["frame"]

    def close(self) -> None:
        """See VectorEnv."""
        self._child.close()


def answer_of(step: Step) -> bytes:
    """A Step as a message."""
    return pack_message(
        {"failures": {str(k): why for k, why in step.failures.items()}},
        {
            **_under("o/", step.observations),
            "rewards": step.rewards,
            "terminated": step.terminated,
            "truncated": step.truncated,
        },
    )


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}{name}": values for name, values in arrays.items()}
