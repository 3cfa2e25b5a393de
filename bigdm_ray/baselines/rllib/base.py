"""What the algorithms of RLlib have in common: their networks, here and there, and how they
judge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import CriticValues, Mode, Policy
from bigdm_ray.baselines.actor import (
    LayeredActor,
    LayeredActorPolicy,
    layers_of,
    plain_leaves,
    stack_linear_layers,
)
from bigdm_ray.baselines.base import ExternalAlgorithm, strip_prefix, to_unit
from bigdm_ray.baselines.rllib import inner
from bigdm_ray.envs.signature import Signature
from bigdm_ray.replay.store import Store
from bigdm_ray.settings import setting

MEAN = {"evaluations.mode": "mean"}
"""Policies are scored without their noise, as in the papers."""


@dataclass(frozen=True)
class Rllib(ExternalAlgorithm):
    """What all of them have in common."""

    library: ClassVar[str] = "RLlib"
    needs: ClassVar[tuple[str, ...]] = ("ray.rllib",)

    hidden: tuple[int, ...] = setting(
        (256, 256), "widths of the layers of the policy, and of each critic", low=1, high=65_536
    )

    @abstractmethod
    def settings(self) -> Any:
        """RLlib's AlgorithmConfig with these hyperparameters."""

    @abstractmethod
    def network(self, discrete: bool) -> dict[str, Any]:
        """What RLlib's DefaultModelConfig is made with."""

    @abstractmethod
    def export_state(self, module: Any) -> dict[str, np.ndarray]:
        """The state of our network, out of RLlib's module."""

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """What a learner of RLlib holds beside its module and its optimizers."""
        return {}

    def told_scale(self, store: Store | None) -> float:
        """What the critics' rewards were multiplied by.

        Raises UserError where that is not known.
        """
        return 1.0

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """See Algorithm."""
        return LayeredActorPolicy(model, mode)


class RllibGaussian(Rllib):
    """Layers to logits, or to the means of a Gaussian whose deviations depend on nothing; the
    critic has layers of its own."""

    activation: ClassVar[str] = "tanh"

    def build(self, signatures: Mapping[str, Signature]) -> LayeredActor:
        """See Algorithm."""
        (signature,) = signatures.values()
        discrete = plain_leaves(signature, self.name)[3].kind == "discrete"
        return LayeredActor(
            signature,
            self.name,
            self.hidden,
            self.activation,
            "logits" if discrete else "gaussian",
            free_std=not discrete,
            scaled=True,
        )

    def network(self, discrete: bool) -> dict[str, Any]:
        """See Rllib."""
        return {
            "fcnet_hiddens": list(self.hidden),
            "fcnet_activation": self.activation,
            "vf_share_layers": False,
            "free_log_std": not discrete,
        }

    def export_state(self, module: Any) -> dict[str, np.ndarray]:
        """See Rllib."""
        return layers_of(
            module.encoder.actor_encoder, module.pi, log_std=getattr(module.pi, "log_std", None)
        )


class RllibSquashed(Rllib):
    """ReLU layers to a Gaussian squashed by tanh; two critics of action and observation."""

    gamma: float

    def module(self, config: Any) -> Any:
        """The class of the RLModule that learns; RLlib's own for its AlgorithmConfig."""
        return config.get_default_rl_module_spec().module_class

    def build(self, signatures: Mapping[str, Signature]) -> LayeredActor:
        """See Algorithm."""
        (signature,) = signatures.values()
        return LayeredActor(signature, self.name, self.hidden, "relu", "squashed", scaled=True)

    def network(self, discrete: bool) -> dict[str, Any]:
        """See Rllib: the first layer is its encoder, the others are its head."""
        first, *others = self.hidden
        return {
            "fcnet_hiddens": [first],
            "fcnet_activation": "relu",
            "head_fcnet_hiddens": others,
            "head_fcnet_activation": "relu",
        }

    def export_state(self, module: Any) -> dict[str, np.ndarray]:
        """See Rllib."""
        return layers_of(module.pi_encoder, module.pi)

    def judge(
        self,
        model: nn.Module,
        store: Store | None,
        kept: Callable[[], Mapping[str, np.ndarray]],
    ) -> CriticValues:
        """See Algorithm: RLlib's critics, out of the checkpoint."""
        assert isinstance(model, LayeredActor)
        arrays, scale = strip_prefix(dict(kept()), "foreign/module/"), self.told_scale(store)
        critics = [
            stack_linear_layers(arrays, f"{name}_encoder.", f"{name}.")
            for name in ("qf", "qf_twin")
        ]

        def values(seen: dict[str, Tensor], acted: dict[str, Tensor]) -> Tensor:
            packed = torch.from_numpy(to_unit(acted[model.action_path].numpy(), model.action))
            rows = torch.cat([seen[model.path].float(), packed], -1)
            return torch.minimum(*(critic(rows)[:, 0] for critic in critics)) / scale

        return CriticValues(values, self.gamma)


class RllibTempered(RllibSquashed):
    """RllibSquashed, with a temperature that is learned."""

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """See Rllib."""
        return {"log_alpha": inner.temperature(learner)}
