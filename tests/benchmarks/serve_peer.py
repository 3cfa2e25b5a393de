"""The policy of a run folder in Ray Serve, whose gRPC proxy answers `/bigdm.Policy/Act`: what
`tests.benchmarks.serving --serve-python` compares with. Takes a Python that has ray[serve].
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a Ray of this machine, that ends with us

import grpc
import numpy as np
import ray
from ray import serve

from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.serving import wire
from bigdm_ray.training.loaded import load


def add_policy(servicer: Any, server: Any) -> None:
    """What generated code of gRPC has for a service; Serve asks for its name."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.Act, pb.ActRequest.FromString, pb.ActAnswer.SerializeToString
    )
    handlers = grpc.method_handlers_generic_handler("bigdm.Policy", {"Act": handler})
    server.add_generic_rpc_handlers((handlers,))


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Deployed:
    """One session of the policy."""

    def __init__(self, folder: str) -> None:
        loaded = load(folder)
        self._policy = loaded.policy("sample")
        self._state = self._policy.start(1)
        command = loaded.command
        self._command = {name: np.array([v], np.float32) for name, v in command.items()}
        self._signature = loaded.signature

    def Act(self, request: pb.ActRequest) -> pb.ActAnswer:
        """As the server's own."""
        seen = wire.read_leaves(request.observations, 1, "its observation")
        observations = wire.fit_observations(self._signature, seen)
        rewards = np.array(request.rewards, np.float32)
        chance = np.zeros((1, self._policy.uniforms), np.float32)
        first = np.zeros(1, bool)
        actions, self._state = self._policy.act(
            self._state, observations, rewards, self._command, first, chance
        )
        return pb.ActAnswer(actions=wire.write_leaves(actions))


def main(folder: str) -> None:
    """Serve until it is stopped."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
    )
    port = 9_000 + os.getpid() % 1_000
    function = "tests.benchmarks.serve_peer.add_policy"
    serve.start(grpc_options={"port": port, "grpc_servicer_functions": [function]})
    serve.run(Deployed.bind(folder), name="policy", route_prefix="/policy")
    print(f"127.0.0.1:{port}", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1])
