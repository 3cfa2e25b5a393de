"""Deaths: what a run has lost of processes and machines, by kind and cause.

Each is mended where it is met; here it is told, so that nobody reads `problems: []` after a night
in which half of the machines went.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayTaskError

from bigdm_ray.training.parallel import PeerLost

Tell = Callable[[str, str], None]
"""Is told kind and cause of a death."""

NODE = "machine"
PAYLOAD = "payload"
"""Kinds beside those of actors: a machine; what was on its way."""


def cause_of(error: BaseException) -> str:
    """Why a process is gone, or what it was sent, by the error of a call; alike for like deaths."""
    told = str(error)
    if isinstance(error, RayTaskError):
        return "it was sent what is lost, with the machine that held it"
    if isinstance(error, ObjectLostError):
        return "what it answered is lost, with the machine that held it"
    if isinstance(error, OutOfMemoryError):
        return "Ray ended it, for its machine had no memory left"
    if "node has died" in told or "node was terminated" in told or "node died" in told:
        return "its machine is gone"
    if "ray.kill" in told:
        return "it was ended"
    return "its process has ended"


def peer_or_cause(error: BaseException) -> str:
    """`cause_of`, for a learner rank."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, PeerLost):
        return "it lost another rank"
    return cause_of(error)


class Nodes:
    """The machines of the cluster, and which of them are gone."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._gone = {node["NodeID"] for node in self._dead()}

    @staticmethod
    def _dead() -> list[dict[str, Any]]:
        return [node for node in ray.nodes() if not node["Alive"]]

    def look(self) -> None:
        """Tell of each that is gone since."""
        for node in self._dead():
            if node["NodeID"] not in self._gone:
                self._gone.add(node["NodeID"])
                self._tell(NODE, f"{node['NodeManagerAddress']} is gone")
