"""Conservative Q-learning for discrete actions (CQL(H); Kumar et al. 2020, arXiv 2006.04779,
equation 4), on double Q-learning.

The temporal-difference error of a Q-network gets a penalty: alpha times the log of the summed exp
of all actions' values less the value of the action that the data took. So actions that the data
lack look bad. It acts greedily. `cql` is the method for continuous actions.

Deviations. (1) One Q-value an action, by Huber loss (as in DQN), where the paper's Atari
experiments use quantiles. (2) Bootstrapping stops at terminations only, not at time limits.

    python -m bigdm_ray.run dcql DATASET
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from bigdm_ray.algorithms.base import CriticValues, Memoryless, Mode, Policy
from bigdm_ray.algorithms.bc import acted_observations, only_task
from bigdm_ray.algorithms.learned import select_leaves
from bigdm_ray.baselines.base import Baseline, follow
from bigdm_ray.baselines.offline import descend, frozen_copy
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.networks import Encoder
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting


class QNetwork(nn.Module):
    """Q(s, a) of all actions."""

    def __init__(
        self,
        leaves: dict[str, Leaf],
        hidden: tuple[int, ...],
        channels: tuple[int, ...],
        stack: int,
        choices: int,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(leaves, hidden, channels, stack)
        self.head = nn.Linear(self.encoder.width, choices)

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        """Leaves `[n, *shape]` to `[n, choices]`."""
        out: Tensor = self.head(self.encoder(seen))
        return out


class DcqlModel(nn.Module):
    """The Q-network and its slow copy."""

    def __init__(self, signature: Signature, settings: Dcql) -> None:
        super().__init__()
        ((self.path, leaf),) = signature.actions.items()
        self.online = QNetwork(
            signature.observations, settings.hidden, settings.channels, 1, leaf.choices[0]
        )
        self.target = frozen_copy(self.online)


@dataclass(frozen=True)
class Dcql(Baseline):
    """Hyperparameters."""

    name: ClassVar[str] = "dcql"
    offline_steps: ClassVar[int] = 100_000

    hidden: tuple[int, ...] = setting(
        (256, 256), "widths of the fully connected layers", low=1, high=65_536
    )
    channels: tuple[int, ...] = setting(
        (32, 48, 96, 128),
        "channels of the convolutions over image observations",
        low=1,
        high=65_536,
    )
    batch_size: int = setting(64, "steps drawn for one learner step", low=1, high=1_000_000)
    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    discount: float = setting(0.99, "discount", low=0, high=1)
    penalty: float = setting(1.0, "weight of the conservative penalty (alpha)", low=0)
    follow_rate: float = setting(
        0.005, "how far the slow copy moves towards the network in a step", above=0, high=1
    )

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    def view(self, step: int = 0) -> View:
        """Every time step alike, with what followed."""
        return View(weight="length", next_observation=True, terminals=True)

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm.

        Raises UserError for what is not one task with a single choice as its action.
        """
        signature = only_task(self.name, signatures)
        leaves = list(signature.actions.values())
        if len(leaves) != 1 or leaves[0].kind != "discrete" or leaves[0].size != 1:
            raise UserError(
                "dcql needs a single discrete choice as the action; take cql for continuous"
                " actions, or bc for any"
            )
        return DcqlModel(signature, self)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam."""
        assert isinstance(model, DcqlModel)
        return {
            "adam": torch.optim.Adam(model.online.parameters(), lr=self.learning_rate, fused=True)
        }

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Mean and deviation of the observations."""
        assert isinstance(model, DcqlModel)
        model.online.encoder.fit(acted_observations(stores))
        model.target.load_state_dict(model.online.state_dict())

    def judge(
        self,
        model: nn.Module,
        store: Store | None,
        kept: Callable[[], Mapping[str, np.ndarray]],
    ) -> CriticValues:
        """See Algorithm."""
        assert isinstance(model, DcqlModel)

        def values(seen: dict[str, Tensor], acted: dict[str, Tensor]) -> Tensor:
            taken = acted[model.path].reshape(-1, 1).long()
            chosen: Tensor = model.online(seen).gather(1, taken)[:, 0]
            return chosen

        return CriticValues(values, self.discount)

    def update(
        self,
        model: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        batch: dict[str, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """One step on the penalised error; the slow copy follows."""
        assert isinstance(model, DcqlModel)
        steps = {name: values[:, 0] for name, values in batch.items()}
        seen, after = (
            select_leaves(steps, "observations"),
            select_leaves(steps, "next_observations"),
        )
        taken = batch[f"actions/{model.path}"].reshape(-1, 1).long()
        with torch.no_grad():
            best = model.online(after).argmax(1, keepdim=True)
            value = model.target(after).gather(1, best)[:, 0]
            targets = (
                batch["rewards"][:, 0]
                + self.discount * (1 - batch["terminated"][:, 0].float()) * value
            )
        values = model.online(seen)
        chosen = values.gather(1, taken)[:, 0]
        error = smooth_l1_loss(chosen, targets)
        gap = (values.logsumexp(1) - chosen).mean()
        descend(error + self.penalty * gap, optimizers["adam"])
        follow(model.target, model.online, self.follow_rate)
        return {
            "train/loss": error.detach(),
            "train/gap": gap.detach(),
            "train/value": chosen.mean().detach(),
        }

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """The action of the highest value, in `sample` and `mean` alike."""
        assert isinstance(model, DcqlModel)
        if mode == "plan":
            raise UserError("dcql has no planner; its modes are sample and mean")
        return Memoryless(
            model, lambda seen, chance: {model.path: model.online(seen).argmax(1).int()}, 1
        )


ALGORITHM = Dcql
