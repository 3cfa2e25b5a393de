"""The return to come that a Decision Transformer with a critic expects (section 5.5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.algorithms.dt.network import DecisionTransformer
from bigdm_ray.algorithms.dt.settings import DtSettings
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.windows import View


@torch.no_grad()
def predict_returns(
    model: DecisionTransformer, settings: DtSettings, episode: Episode
) -> np.ndarray:
    """The return to come that a transformer with a critic expects at each step `[T]` float64.

    It looks back as far as its policy does, and is told no returns.
    """
    length = settings.acting_context or settings.context
    steps = np.arange(episode.length)
    at, mask = View(length, anchor="end").span(steps, np.full(len(steps), episode.length))

    def windows(leaves: dict[str, np.ndarray]) -> dict[str, Tensor]:
        return {path: torch.from_numpy(np.array(values[at])) for path, values in leaves.items()}

    embeddings = model.embed(
        windows(episode.observations),
        windows(episode.actions),
        torch.zeros(at.shape),
        torch.from_numpy(at),
    )
    last = embeddings[torch.arange(len(steps)), torch.from_numpy(mask.sum(1) - 1)]
    values: np.ndarray = (model.criticise(last) / settings.return_scale).double().numpy()
    return values
