"""The transformer of a Trajectory Transformer, the bins of its tokens, and the leaves that they are
made of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.tt.settings import TtSettings
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.trajectory import TrajectoryTransformer
from bigdm_ray.tokens.bins import Bins, Elements

GOAL = "goal"
"""The leaf of observations that says which state is asked for."""


class TrajectoryModel(nn.Module):
    """The transformer, the bins of its tokens, and the leaves that they are made of."""

    def __init__(self, signature: Signature, settings: TtSettings) -> None:
        super().__init__()
        state = {
            path: leaf
            for path, leaf in signature.observations.items()
            if not (settings.goal != "none" and path == GOAL)
        }
        if settings.observed > (
            elements := Elements(state, settings.cells, settings.letters).width
        ):
            raise UserError(
                f"--algorithm.observed is {settings.observed}, but an observation has {elements} "
                "elements; give at most as many, or 0 for all"
            )
        self.seen = Elements(state, settings.cells, settings.letters, settings.observed)
        self.asked = (
            Elements(
                {GOAL: signature.observations[GOAL]},
                settings.cells,
                settings.letters,
                settings.observed,
            )
            if len(state) < len(signature.observations)
            else None
        )
        self.acted = Elements(signature.actions)
        choices = [*self.seen.choices, *self.acted.choices, 0, 0]
        self.bins = Bins(choices, settings.bins)
        size = (settings.bins, settings.window, settings.width, settings.layers, settings.heads)
        goal = self.seen.width if self.asked is not None else 0
        self.net = TrajectoryTransformer(
            choices,
            *size,
            settings.dropout,
            settings.stop,
            goal,
            "rotary" if settings.positions == "rotary" else "learned",
        )

    def rows(
        self,
        observations: dict[str, Tensor],
        actions: dict[str, Tensor],
        rewards: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Transitions as numbers `[..., dims]`: state, action, reward, value."""
        return torch.cat(
            [
                self.seen.rows(observations),
                self.acted.rows(actions),
                rewards.unsqueeze(-1),
                values.unsqueeze(-1),
            ],
            -1,
        )

    def states(self, observations: dict[str, Tensor]) -> Tensor:
        """Observations as tokens of the state `[..., seen]`."""
        return self.bins.encode(self.seen.rows(observations), slice(0, self.seen.width))

    def goals(self, observations: dict[str, Tensor]) -> Tensor | None:
        """What observations ask for, as tokens of a state `[..., seen]`; None for a model that is
        told no goal.
        """
        return (
            None
            if self.asked is None
            else self.bins.encode(self.asked.rows(observations), slice(0, self.seen.width))
        )
