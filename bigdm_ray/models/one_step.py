"""A one-step model of an environment: the change of a state from the state and the action alone, as
a small network of linear layers.

The Markovian model that the Trajectory Transformer's long predictions are compared with (Janner,
Li, Levine 2021, section 4.1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bigdm_ray.models.networks import Standardise


class OneStep(nn.Module):
    """Next states of `width` numbers from states and actions, whose elements have `choices` each, 0
    where they are continuous.

    Inputs are standardised, choices are one-hot, and the network gives the change of the state in
    units of the changes' own deviation, so that an element that moves slowly counts as much as
    another. Two hidden layers with SiLU.
    """

    def __init__(self, width: int, choices: list[int], hidden: int = 256) -> None:
        super().__init__()
        self.choices = choices
        self.acted = sum(max(1, n) for n in choices)
        self.before = Standardise(width + self.acted)
        self.change = Standardise(width)
        self.layers = nn.Sequential(
            nn.Linear(width + self.acted, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
        )
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.full((width,), -torch.inf))
        self.register_buffer("high", torch.full((width,), torch.inf))

    def inputs(self, states: Tensor, actions: Tensor) -> Tensor:
        """States `[..., width]` and actions `[..., elements]` as what the layers see, not yet
        standardised."""
        parts = [
            one_hot(actions[..., j].long(), n).to(states) if n else actions[..., j : j + 1]
            for j, n in enumerate(self.choices)
        ]
        return torch.cat([states, *parts], -1)

    def fit(self, states: Tensor, actions: Tensor, following: Tensor) -> None:
        """Take the statistics and bounds of all steps, `[n, ...]` each."""
        self.before.fit([self.inputs(states, actions)])
        self.change.fit([following - states])
        self.low.copy_(following.amin(0))
        self.high.copy_(following.amax(0))

    def loss(self, states: Tensor, actions: Tensor, following: Tensor) -> Tensor:
        """Mean squared error of the change, in its deviations; an element that never changes counts
        for nothing."""
        moving = self.change.std > 0
        guess = self.layers(self.before(self.inputs(states, actions)))
        out: Tensor = ((guess - self.change(following - states))[..., moving] ** 2).mean()
        return out

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """The states that follow, kept within what the data have shown, so that no open-loop
        prediction runs away."""
        guess = self.layers(self.before(self.inputs(states, actions)))
        return torch.clamp(states + self.change.mean + self.change.std * guess, self.low, self.high)

    @torch.inference_mode()
    def follow(self, states: Tensor, actions: Tensor) -> Tensor:
        """States `[n, H, width]` to come of first states `[n, width]` and H actions
        `[n, H, elements]`, each from the one predicted before."""
        found = []
        for taken in actions.unbind(1):
            states = self(states, taken)
            found.append(states)
        return torch.stack(found, 1)
