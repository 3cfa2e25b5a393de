"""Networks of RLlib's learners where its own are not the papers': critics' first layers, and the
RLModules of CQL and IQL.

Each is made on first use, for importing RLlib takes seconds.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from bigdm_ray.baselines.actor import LOG_STD_RANGE
from bigdm_ray.models.networks import mlp


@functools.lru_cache(maxsize=1)
def joint_catalog() -> Any:
    """RLlib's catalog of SAC, but a critic's first layer takes observation and action together."""
    from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
    from ray.rllib.core.models.base import ENCODER_OUT

    class Joint(torch.nn.Module):
        """See `joint_catalog`."""

        def __init__(self, width: int, out: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, out)

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {
                ENCODER_OUT: torch.relu(self.layer(torch.cat([batch["obs"], batch["actions"]], -1)))
            }

    class JointCatalog(SACCatalog):  # type: ignore[misc]  # mypy does not look into RLlib
        """See `joint_catalog`."""

        def _build_qf_encoder_continuous(self, framework: str) -> Joint:
            return Joint(
                self.observation_space.shape[0] + self.action_space.shape[0], self.latent_dims[0]
            )

    return JointCatalog


@functools.lru_cache(maxsize=1)
def conservative_module() -> Any:
    """RLlib's module of CQL, but the critics judge the policy's actions of the next state in this
    state, as in the authors' code.

    RLlib's own judges them in the next state, though the data's action and the random ones are
    judged in this one.
    """
    from ray.rllib.algorithms.cql.torch.default_cql_torch_rl_module import DefaultCQLTorchRLModule
    from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule

    class Conservative(DefaultCQLTorchRLModule):  # type: ignore[misc]  # mypy does not look into RLlib
        """See `conservative_module`."""

        def _forward_train(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """What SAC's loss takes, and of `num_actions` actions at random, of here and of there:
            actions, logarithms of densities, values `[B, n, 1]`."""
            out: dict[str, torch.Tensor] = DefaultSACTorchRLModule._forward_train(self, batch)
            seen, count = batch["obs"], self.model_config["num_actions"]
            low, high = (
                torch.from_numpy(bound).to(seen.device)
                for bound in (self.action_space.low, self.action_space.high)
            )
            actions = {
                "rand": low
                + (high - low) * torch.rand((len(seen), count, len(low)), device=seen.device)
            }
            with torch.no_grad():
                for name, logits in (
                    ("curr", out["action_dist_inputs"]),
                    ("next", out["action_dist_inputs_next"]),
                ):
                    drawn = self.get_train_action_dist_cls().from_logits(
                        logits[:, None].expand(-1, count, -1)
                    )
                    actions[name], densities = drawn.sample_and_logp()
                    out[f"logps_{name}_repeat"] = densities[..., None]
            together = {
                "obs": seen[:, None].expand(-1, 3 * count, -1),
                "actions": torch.cat(list(actions.values()), 1),
            }
            for critic, encoder, head in (
                ("q", self.qf_encoder, self.qf),
                ("q_twin", self.qf_twin_encoder, self.qf_twin),
            ):
                values = self._qf_forward_train_helper(
                    together, encoder, head, squeeze=False
                ).split(count, 1)
                out |= {
                    f"{critic}_{name}_repeat": part
                    for name, part in zip(actions, values, strict=True)
                }
            return out | {f"actions_{name}_repeat": drawn for name, drawn in actions.items()}

    return Conservative


@functools.lru_cache(maxsize=1)
def implicit_module() -> Any:
    """RLlib's module of IQL with the paper's policy: a Gaussian whose mean alone is squashed, its
    deviations parameters of their own.

    What IQL's loss takes is all that is computed: RLlib's own computes what SAC's takes, too.
    """
    from ray.rllib.algorithms.iql.torch.default_iql_torch_rl_module import DefaultIQLTorchRLModule
    from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian

    class Head(torch.nn.Module):
        """See `implicit_module`."""

        def __init__(self, hidden: list[int], size: int) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(mlp(hidden), torch.nn.Linear(hidden[-1], size))
            self.log_std = torch.nn.Parameter(torch.zeros(size))

        def forward(self, embedding: torch.Tensor) -> torch.Tensor:
            mean = torch.tanh(self.layers(embedding))
            return torch.cat(
                [mean, self.log_std.clamp(*LOG_STD_RANGE["bounded"]).expand_as(mean)], -1
            )

    class Implicit(DefaultIQLTorchRLModule):  # type: ignore[misc]  # mypy does not look into RLlib
        """See `implicit_module`."""

        def setup(self) -> None:
            super().setup()
            self.pi = Head(
                [*self.catalog.latent_dims, *self.model_config["head_fcnet_hiddens"]],
                self.action_space.shape[0],
            )
            self.action_dist_cls = TorchDiagGaussian

        def _forward_train(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """The policy here; the critics of the data's actions and the smaller of their targets;
            the value here and there: `[B]` each."""
            judge = self._qf_forward_train_helper
            out: dict[str, torch.Tensor] = self._forward_inference(batch)
            out |= {
                "qf_preds": judge(batch, self.qf_encoder, self.qf),
                "qf_twin_preds": judge(batch, self.qf_twin_encoder, self.qf_twin),
            }
            with torch.no_grad():
                targets = (
                    judge(batch, self.target_qf_encoder, self.target_qf),
                    judge(batch, self.target_qf_twin_encoder, self.target_qf_twin),
                )
                out |= {
                    "qf_target_preds": torch.min(*targets),
                    "vf_preds_next": self.compute_values({"obs": batch["new_obs"]}),
                }
            return out | {"vf_preds": self.compute_values(batch)}

    return Implicit
