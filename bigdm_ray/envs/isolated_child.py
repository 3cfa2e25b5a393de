"""The process of isolated environments: python -m bigdm_ray.envs.isolated_child FD"""

from __future__ import annotations

import contextlib
import sys
from multiprocessing.connection import Connection
from typing import Any

from bigdm_ray.envs.isolated import answer_of, pack_message, unpack_message
from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import find_task
from bigdm_ray.envs.vector import Arrays, VectorEnv
from bigdm_ray.errors import RunFailed, UserError


class HostedRows:
    """What is held here, and what is answered about it."""

    def __init__(self) -> None:
        self._env: VectorEnv | None = None

    def answer(self, verb: str, head: dict[str, Any], arrays: Arrays) -> bytes:
        """The answer to a message. Raises UserError, RunFailed."""
        if verb in ("make", "signature"):
            return pack_message({"signature": self._made(verb, head).to_json()}, {})
        assert self._env is not None
        if verb == "reset":
            return answer_of(self._env.reset(arrays["rows"]))
        if verb == "step":
            actions = {name[2:]: v for name, v in arrays.items() if name.startswith("a/")}
            return answer_of(self._env.step(arrays["rows"], actions))
        if verb == "frame":
            return pack_message({}, {"frame": self._env.frame()})
        self._env.reseed(head["seed"])
        return pack_message({}, {})

    def _made(self, verb: str, head: dict[str, Any]) -> Signature:
        task = find_task(head["task"])
        if verb == "signature":
            return task.signature_here()
        seed, backend = head["seed"], head["backend"]
        self._env = (
            task.video_here(seed) if head["render"] else task.make_here(head["n"], seed, backend)
        )
        return self._env.signature


def main(descriptor: int) -> None:
    """Answer until nobody asks any more."""
    line, rows = Connection(descriptor), HostedRows()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            head, arrays = unpack_message(line.recv_bytes())
            try:
                answer = rows.answer(head.pop("verb"), head, arrays)
            except (UserError, RunFailed) as error:
                answer = pack_message({"raised": type(error).__name__, "why": str(error)}, {})
            line.send_bytes(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
