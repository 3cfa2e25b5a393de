"""Best-action imitation learning (BAIL; Chen et al., NeurIPS 2020): clone only actions whose return
is near the best possible.

Static: (1) `envelope_steps` steps fit the upper envelope V of the returns G, an error that counts K
times where G lies above V; (2) the `selected` share of all pairs with the largest G / V is kept;
(3) behaviour cloning on those. Progressive: envelope and policy learn together, and each batch (of
each learner rank) keeps its own best share. G is discounted and, where a time limit cut an episode
off, continued as from the state most like its last (`replay/returns.py`).

Deviations from the official code (lanyavik/BAIL). (1) All pairs fit the envelope: its validation
split serves a restore that does nothing there. (2) The envelope's batches have the policy's size
(800 in the static code). (3) Observations are standardised. (4) The static selection too counts V
below 1 as exp(V - 1), which the code does in the progressive variant alone: its static one ranks by
the raw G / V, so that a negative V turns the order round. (5) Returns are continued from the state
most like the observation after the last action; there from the state most like the last that was
acted on. (6) They are continued from every step; there the first step of an episode gains nothing.
(7) What is continued says the dataset (`terminated`), not a length of 1000, and as many terms
remain as the episode has steps. (8) The envelope takes `envelope_steps` whatever the dataset's
size, and the policy what a run's budget leaves; officially 50 epochs of 800 over 80 % of the pairs
(50,000 steps for a million pairs, 12,500 for 250,000), then 200,000 steps of the policy. (9) The
envelope's learning rate falls to zero over its steps, linearly (static), where theirs stays: an
envelope that still moves lies so far above the returns of some region that none of it is selected.

    python -m bigdm_ray.run bail DATASET
    python -m bigdm_ray.run bail DATASET --algorithm.progressive true
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Columns, Pretraining
from bigdm_ray.algorithms.bc import Actor, Imitation, acted_observations, only_task, single_steps
from bigdm_ray.algorithms.learned import Loss
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.networks import Encoder
from bigdm_ray.replay.returns import continued_returns, episode_groups
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting


class Envelope(nn.Module):
    """The upper envelope V(s) of the returns."""

    def __init__(
        self, signature: Signature, hidden: tuple[int, ...], channels: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.encoder = Encoder(signature.observations, hidden, channels)
        self.out = nn.Linear(self.encoder.width, 1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., *shape]` to V `[...]`."""
        out: Tensor = self.out(self.encoder(observations)).squeeze(-1)
        return out


class ActorEnvelope(nn.Module):
    """The policy and the envelope that selects what it repeats."""

    def __init__(self, actor: Actor, envelope: Envelope) -> None:
        super().__init__()
        self.actor, self.envelope = actor, envelope


def ratio(returns: Tensor, values: Tensor) -> Tensor:
    """G / V in float64, where V below 1 counts as exp(V - 1), so that it is positive.

    (Chen et al., code of the progressive variant; see the module.) Values below -600 count as
    that, so that the ratio is finite.
    """
    values = values.double()
    positive = torch.where(values < 1, torch.exp(torch.clamp(values, -600, 1) - 1), values)
    return returns.double() / positive


@dataclass(frozen=True)
class Bail(Imitation):
    """Hyperparameters of BAIL; the defaults are the official code's, but for deviation (8)."""

    name: ClassVar[str] = "bail"
    offline_steps: ClassVar[int] = 50_000

    hidden: tuple[int, ...] = setting(
        (400, 300), "widths of the policy's layers", low=1, high=65_536
    )
    envelope_hidden: tuple[int, ...] = setting(
        (128, 128), "widths of the envelope's layers", low=1, high=65_536
    )
    batch_size: int = setting(1000, "steps drawn for one learner step", low=1, high=1_000_000)
    envelope_learning_rate: float = setting(
        3e-3, "Adam's learning rate for the envelope", above=0, high=1
    )
    envelope_decay: float = setting(2e-2, "weight decay of the envelope (lambda)", low=0)
    envelope_k: float = setting(
        1000.0, "K, what an error counts where the return lies above the envelope", low=1
    )
    envelope_steps: int = setting(
        12_500, "learner steps on the envelope before the policy's begin (static)", low=1
    )
    envelope_rate_falls: bool = setting(
        True, "whether the envelope's learning rate falls to zero over its steps (static)"
    )
    selected: float = setting(0.25, "share of the pairs that the policy repeats", above=0, high=1)
    discount: float = setting(0.99, "gamma", low=0, high=0.9999)
    progressive: bool = setting(
        False, "learn envelope and policy together, each batch keeping its own best share"
    )

    def view(self, step: int = 0) -> View:
        """Every time step alike: all of them for the envelope, the selected ones for the policy."""
        if self.progressive or step < self.envelope_steps:
            return View(weight="length", annotations=("return",))
        return View(weight="length", among="selected")

    def pretraining(self) -> Pretraining | None:
        """The envelope's steps, where the policy's come after them."""
        return None if self.progressive else Pretraining(self.envelope_steps, ("envelope_steps",))

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm. Raises UserError for more than one task."""
        signature = only_task(self.name, signatures)
        return ActorEnvelope(
            Actor(signature, self.hidden, self.channels),
            Envelope(signature, self.envelope_hidden, self.channels),
        )

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam for each; the envelope's weights decay as an L2 penalty."""
        assert isinstance(model, ActorEnvelope)
        return {
            "actor": torch.optim.Adam(model.actor.parameters(), lr=self.learning_rate, fused=True),
            "envelope": torch.optim.Adam(
                model.envelope.parameters(),
                lr=self.envelope_learning_rate,
                weight_decay=self.envelope_decay,
                fused=True,
            ),
        }

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """See Algorithm: of the envelope, see the module."""
        if optimizer != "envelope" or self.progressive or not self.envelope_rate_falls:
            return 1.0
        return max(0.0, 1 - step / self.envelope_steps)

    def fits(self, step: int) -> bool:
        """At the beginning; and where the policy's steps begin, for the selection."""
        return step == 0 or (step == self.envelope_steps and not self.progressive)

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Mean and deviation of the observations."""
        assert isinstance(model, ActorEnvelope)
        if step == 0:
            model.actor.encoder.fit(acted_observations(stores))
            model.envelope.encoder.standardise.load_state_dict(
                model.actor.encoder.standardise.state_dict()
            )

    def annotate(
        self, model: nn.Module, stores: Mapping[str, Store], step: int
    ) -> dict[str, Columns]:
        """`return` G of each step; once the policy's steps draw among them, `selected` 1 where G /
        V is among the largest."""
        assert isinstance(model, ActorEnvelope)
        if not self.view(step).among:
            return {
                task: {
                    "return": np.concatenate(
                        [continued_returns(group, self.discount) for group in episode_groups(store)]
                    )
                }
                for task, store in stores.items()
            }
        return {task: self._selection(model.envelope, store) for task, store in stores.items()}

    def weights(self, model: nn.Module, store: Store, step: int) -> np.ndarray:
        """See Imitation; the progressive variant selects as it does in a batch, but of all
        steps."""
        assert isinstance(model, ActorEnvelope)
        if not self.progressive and step < self.envelope_steps:
            raise UserError(
                f"bail has selected nothing after {step:,} learner steps, for the envelope takes "
                f"the first {self.envelope_steps:,}; train it longer"
            )
        return self._selection(model.envelope, store)["selected"].astype(np.float64)

    @torch.no_grad()
    def _selection(self, envelope: Envelope, store: Store) -> Columns:
        device = envelope.out.weight.device
        returns, ratios = [], []
        for group in episode_groups(store):
            returns.append(continued_returns(group, self.discount))
            keep = np.ones(len(group.lengths) + int(group.lengths.sum()), bool)
            keep[np.cumsum(group.lengths + 1) - 1] = False  # the last observation is not acted on
            values = envelope(
                {
                    path: torch.from_numpy(v[keep]).to(device)
                    for path, v in group.observations.items()
                }
            )
            ratios.append(ratio(torch.from_numpy(returns[-1]).to(device), values).cpu().numpy())
        together = np.concatenate(ratios)
        border = np.quantile(together, 1 - self.selected)
        return {
            "return": np.concatenate(returns),
            "selected": (together >= border).astype(np.float32),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """The envelope's error (Chen et al., equation 3), the policy's squared error, or both
        (progressive)."""
        assert isinstance(model, ActorEnvelope)
        seen, actions, mask = single_steps(batch)
        if not self.progressive and step >= self.envelope_steps:
            negative = -(model.actor.head.log_prob(model.actor(seen), actions) * mask).sum()
            return Loss(negative, mask.sum(), {"train/loss": negative.detach()})
        returns = batch["return"].flatten(0, 1)
        values = model.envelope(seen)
        error = (
            (values - returns) ** 2 * torch.where(values >= returns, 1.0, self.envelope_k) * mask
        )
        metrics = {"train/envelope_loss": error.detach().sum()}
        if not self.progressive:
            return Loss(error.sum(), mask.sum(), metrics)
        ratios = ratio(returns, values.detach())
        best = (
            (ratios >= torch.quantile(ratios[mask > 0], 1 - self.selected)).float()
            * mask
            / self.selected
        )
        negative = -(model.actor.head.log_prob(model.actor(seen), actions) * best).sum()
        return Loss(error.sum() + negative, mask.sum(), metrics | {"train/loss": negative.detach()})


ALGORITHM = Bail
