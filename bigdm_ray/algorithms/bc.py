"""Behaviour cloning, plain and filtered: repeat what the episodes of a dataset did, or what the
best of them did.

`best_fraction` 0.1, 0.25, 0.4 and 1 are the columns of percentage behaviour cloning (%BC; Chen et
al. 2021, section 5.1): the episodes are ranked by return and kept while they hold no more than that
share of all time steps, as the official code counts (the best one always). The network is the
paper's: three layers of 256 with ReLU on standardised observations, 25,000 learner steps of 64;
continuous actions are a squashed mean trained on the squared error, discrete ones categorical.

Deviations from the official code (mlp_bc.py), which the paper's text does not name: it reads the
last 20 states side by side, drops out a tenth, and trains with AdamW at 1e-4 after 10,000 steps of
warm-up; here one state, no dropout, Adam from 1e-3 falling to 1e-4.

    python -m bigdm_ray.run bc DATASET
    python -m bigdm_ray.run bc DATASET --algorithm.best-fraction 0.1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Memoryless, Mode, Policy
from bigdm_ray.algorithms.learned import Loss, Supervised, of_tasks, select_leaves
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.heads import ActionHead
from bigdm_ray.models.networks import Encoder, MultiTaskNetwork, SharedTrunk, network_for
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting


class Actor(nn.Module):
    """Observations to the parameters of an action head. The whole imitation family acts with it."""

    def __init__(
        self,
        signature: Signature,
        hidden: tuple[int, ...],
        channels: tuple[int, ...] = (),
        dropout: float = 0.0,
        std: float | None = 0.0,
        squash: bool = True,
        trunk: SharedTrunk | None = None,
    ) -> None:
        """`trunk`, where there is one, takes the place of the layers behind the first."""
        super().__init__()
        own = hidden if trunk is None else (trunk.width,)
        self.trunk = trunk
        self.encoder = Encoder(signature.observations, own, channels, dropout=dropout)
        wide = self.encoder.width if trunk is None else trunk.out
        self.head = ActionHead(wide, signature.actions, std, squash)
        nn.init.orthogonal_(self.head.linear.weight, 0.01)
        nn.init.zeros_(self.head.linear.bias)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Leaves `[..., *shape]` to parameters `[..., P]`."""
        rows = self.encoder(observations)
        out: Tensor = self.head(rows if self.trunk is None else self.trunk(rows))
        return out


def only_task(name: str, signatures: Mapping[str, Signature]) -> Signature:
    """The signature of the only task. Raises UserError for more than one."""
    if len(signatures) != 1:
        raise UserError(f"{name} trains on one task, but {len(signatures)} were given")
    return next(iter(signatures.values()))


def acted_observations(stores: Mapping[str, Store]) -> Iterator[dict[str, np.ndarray]]:
    """The observations of each living episode that were acted on, by leaf: `[T, ...]`."""
    for store in stores.values():
        for position in range(len(store.table)):
            yield {
                path: values[:-1] for path, values in store.episode(position).observations.items()
            }


def observations_by_network(
    model: nn.Module, stores: Mapping[str, Store]
) -> Iterator[tuple[nn.Module, Iterator[dict[str, np.ndarray]]]]:
    """Each network of a model, and `acted_observations` of the tasks that it acts in, where they
    have episodes."""
    if not isinstance(model, MultiTaskNetwork):
        yield model, acted_observations(stores)
        return
    for number, part in enumerate(model.parts):
        mine = {task: store for task, store in stores.items() if model.tasks[task] == number}
        if any(len(store.table) for store in mine.values()):
            yield part, acted_observations(mine)


def single_steps(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Observations, actions and mask of single steps: `[B, 1, ...]` to `[B, ...]`."""
    steps = {name: value.flatten(0, 1) for name, value in batch.items()}
    seen = select_leaves(steps, "observations")
    actions = select_leaves(steps, "actions")
    return seen, actions, steps["mask"].float()


@dataclass(frozen=True)
class Imitation(Supervised):
    """What behaviour cloning and its weighted forms share: the network, Adam, single steps drawn
    uniformly over time."""

    offline_steps: ClassVar[int] = 25_000

    hidden: tuple[int, ...] = setting(
        (256, 256, 256), "widths of the fully connected layers", low=1, high=65_536
    )
    channels: tuple[int, ...] = setting(
        (32, 48, 96, 128),
        "channels of the convolutions over image observations",
        low=1,
        high=65_536,
    )
    batch_size: int = setting(64, "steps drawn for one learner step", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "Adam's learning rate at the beginning", above=0, high=1)

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    def weights(self, model: nn.Module, store: Store, step: int) -> np.ndarray:
        """m(s, a): what each step of the store counts at a learner step, `[steps]` float64 from 0
        up.

        In the order of the table; what all of them are multiplied by means nothing. Raises
        UserError where it is not settled yet.
        """
        view, table = self.view(step), store.table
        columns = self.annotate(model, {"": store}, step).get("", {})
        drawn = np.zeros(len(table))
        drawn[view.eligible_episodes(table)] = 1.0
        weights: np.ndarray = np.repeat(drawn, table.lengths)
        if view.among:
            weights = weights * (columns[view.among] > 0)
        return weights * columns["weight"] if "weight" in view.annotations else weights

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """Adam."""
        return {"adam": torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)}

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """`sample` draws from the head (its mean, where it is trained on the squared error), `mean`
        takes the most likely action."""
        if mode == "plan":
            raise UserError(f"{self.name} has no planner; its modes are sample and mean")
        model = network_for(model, signature)
        actor = model if isinstance(model, Actor) else model.get_submodule("actor")
        assert isinstance(actor, Actor)
        return Memoryless(
            actor,
            lambda seen, chance: actor.head.act(actor(seen), None if mode == "mean" else chance),
            actor.head.uniforms,
        )


@dataclass(frozen=True)
class Bc(Imitation):
    """Hyperparameters of behaviour cloning."""

    name: ClassVar[str] = "bc"
    several: ClassVar[bool] = True

    best_fraction: float = setting(
        1.0,
        "only the best episodes by return that hold at most this share of all time steps; at"
        " least one",
        above=0,
        high=1,
    )
    dropout: float = setting(
        0.0, "share of activations that are dropped in training", low=0, high=0.9
    )
    decay_steps: int = setting(
        25_000,
        "learner steps over which the learning rate falls to a tenth, along a straight line; 0"
        " keeps it",
        low=0,
    )

    def view(self, step: int = 0) -> View:
        """Every time step alike, of the best episodes."""
        return View(weight="length", best=self.best_fraction)

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm. Several tasks share all layers but the first."""

        def network(signature: Signature, trunk: SharedTrunk | None = None) -> Actor:
            return Actor(signature, self.hidden, self.channels, self.dropout, trunk=trunk)

        if len(signatures) == 1:
            return network(next(iter(signatures.values())))
        return MultiTaskNetwork(signatures, SharedTrunk([*self.hidden], self.dropout), network)

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """See Algorithm."""
        return max(0.1, 1 - 0.9 * step / self.decay_steps) if self.decay_steps else 1.0

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Mean and deviation of the observations, over all episodes as the official Decision
        Transformer code takes them."""
        for part, seen in observations_by_network(model, stores):
            assert isinstance(part, Actor)
            part.encoder.fit(seen)

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Negative log-likelihood of the stored actions; squared error for continuous ones."""
        if isinstance(model, MultiTaskNetwork):
            return of_tasks(model, batch, lambda part, own: self.loss(part, own, step))
        assert isinstance(model, Actor)
        seen, actions, mask = single_steps(batch)
        negative = -(model.head.log_prob(model(seen), actions) * mask).sum()
        return Loss(negative, mask.sum(), {"train/loss": negative.detach()})


ALGORITHM = Bc
