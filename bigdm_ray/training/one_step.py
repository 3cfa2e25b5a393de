"""Training of a one-step model: a pass over drawn steps, on one core, for pictures that compare
with it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.models.one_step import OneStep

BATCH = 256
LEARNING_RATE = 1e-3


def train_one_step(
    states: Tensor, actions: Tensor, following: Tensor, choices: list[int], steps: int, seed: int
) -> OneStep:
    """A model of these steps, `[n, width]`, `[n, elements]`, `[n, width]`: `steps` of Adam on BATCH
    of them, the rate falling to 0 as a cosine.

    The same seed gives the same model. The caller's generators are left as they are.
    """
    chance = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = OneStep(states.shape[1], choices)
    model.fit(states, actions, following)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        rows = torch.from_numpy(chance.integers(0, len(states), BATCH))
        optimizer.param_groups[0]["lr"] = (
            LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(model.loss(states[rows], actions[rows], following[rows]))
        optimizer.step()
    return model.eval()
