"""RLlib at work: its Learner and its environment runners, without the Algorithm that usually drives
them.

An Algorithm of RLlib starts a Ray even for one process, samples its replay as objects (39 to 78
environment steps a second were measured for DQN), and reads datasets through Ray Data. Here its two
parts are called directly: the Learner (RLModule, loss, optimizers, target networks, connectors) and
SingleAgentEnvRunners, in this process or as actors (`online.py`). PPO's iteration is RLlib's own.
SAC's replay is a ring of steps drawn alike, and batches of datasets are drawn by our Store
(`offline.py`). Where RLlib's networks are not the papers', `modules.py` has others.

Nothing is pickled into files: modules, optimizers and what a learner holds beside them are saved as
arrays.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from bigdm_ray.baselines.actor import plain_leaves
from bigdm_ray.baselines.base import (
    TrainerContext,
    TrainerResult,
    add_prefix,
    load_optimizer,
    optimizer_state,
    spaces_of,
    strip_prefix,
)
from bigdm_ray.baselines.rllib import inner
from bigdm_ray.baselines.rllib.base import Rllib, RllibSquashed
from bigdm_ray.baselines.rllib.inner import MODULE
from bigdm_ray.baselines.rllib.modules import joint_catalog
from bigdm_ray.errors import RunFailed, UserError


def silence_warnings() -> None:
    """Keep RLlib from warning of its own defaults and deprecations.

    It sets its loggers up when it is imported.
    """
    import ray.rllib  # noqa: F401

    for name in ("ray", "ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)


class RllibTrainer(ABC):
    """See Trainer: what all have in common, which is the Learner."""

    def __init__(self, algorithm: Rllib, context: TrainerContext) -> None:
        silence_warnings()
        self.algorithm, self.context = algorithm, context
        self.path, self.seen, self.action_path, self.action = plain_leaves(
            context.task.signature(), algorithm.name
        )
        self.config = make_config(algorithm, context, self.action.kind == "discrete")
        spaces = (spaces_of(self.seen), spaces_of(self.action, unit=True))
        self.learner = self.config.build_learner(spaces={MODULE: spaces})
        self.module = self.learner.module[MODULE].unwrapped()
        self.learner_steps = 0

    @abstractmethod
    def step(self, steps: int) -> TrainerResult:
        """See Trainer."""

    def learn_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """One learner step of RLlib on a batch of n rows."""
        inner.learn(self.learner, batch)
        self.learner_steps += 1

    def metrics(self) -> dict[str, float]:
        """The newest losses, and the learner's own record of them forgotten."""
        told = inner.take_metrics(self.learner)
        out = {}
        for name, value in told.items():
            if name.startswith(
                ("num_", "weights_seq", "diff_", "last_", "module_train")
            ) or isinstance(value, list | dict):
                continue
            number = float(
                value.detach().float().mean() if isinstance(value, torch.Tensor) else np.mean(value)
            )
            if math.isfinite(number):
                out[f"train/{'loss' if name == self.learner.TOTAL_LOSS_KEY else name}"] = number
            elif name == self.learner.TOTAL_LOSS_KEY:
                raise RunFailed(
                    f"the loss of {self.algorithm.name} is {number} after {self.learner_steps:,}"
                    " learner steps: training has diverged"
                )
        return out

    def weights(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        return self.algorithm.export_state(self.module)

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        state = {
            f"module/{name}": value.detach().cpu().numpy().copy()
            for name, value in self.module.state_dict().items()
        }
        for name, optimizer in self.learner.get_optimizers_for_module(MODULE):
            state |= add_prefix(f"optimizer/{name}/", optimizer_state(optimizer))
        state |= {
            f"memory/{name}": value.detach().cpu().numpy().copy()
            for name, value in self.algorithm.memory(self.learner).items()
        }
        return state | {"count/learner_steps": np.array(self.learner_steps)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        kept, mine = strip_prefix(state, "module/"), self.module.state_dict()
        if {name: value.shape for name, value in kept.items()} != {
            name: tuple(value.shape) for name, value in mine.items()
        }:
            raise UserError(
                f"this checkpoint holds other networks than {self.algorithm.name} trains now; begin"
                " a run in another folder"
            )
        self.module.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in kept.items()}
        )
        for name, optimizer in self.learner.get_optimizers_for_module(MODULE):
            load_optimizer(optimizer, strip_prefix(state, f"optimizer/{name}/"))
        for name, value in self.algorithm.memory(self.learner).items():
            value.data.copy_(torch.from_numpy(np.array(state[f"memory/{name}"])))
        self.learner_steps = int(state["count/learner_steps"])

    def close(self) -> None:
        """See Trainer."""
        self.learner.shutdown()


def make_config(algorithm: Rllib, context: TrainerContext, discrete: bool) -> Any:
    """RLlib's AlgorithmConfig for a run."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    config = algorithm.settings().framework("torch").debugging(seed=context.seed, log_level="ERROR")
    config.learners(
        num_learners=0, num_gpus_per_learner=1 if context.device.startswith("cuda") else 0
    )
    network = DefaultModelConfig(**algorithm.network(discrete))
    if isinstance(algorithm, RllibSquashed):
        return config.rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=algorithm.module(config),
                catalog_class=joint_catalog(),
                model_config=network,
            )
        )
    return config.rl_module(model_config=network)
