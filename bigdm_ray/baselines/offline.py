"""What the offline methods of this folder share: single steps with what followed them, critics in
pairs, acting without memory.

BCQ, BEAR and BRAC learn a critic on transitions of a dataset and differ in how they keep the policy
near the data. All of them read vectors and act with bounded continuous actions; the networks see
actions in [-1, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import CriticValues, Memoryless, Policy
from bigdm_ray.baselines.base import Baseline
from bigdm_ray.models.continuous import ContinuousSpaces, Ensemble
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting


class Transitions(NamedTuple):
    """Steps as the networks read them."""

    seen: Tensor  # [B, seen]
    action: Tensor  # [B, acted], in [-1, 1]
    reward: Tensor  # [B]
    seen_next: Tensor  # [B, seen]
    # [B], 0 where the episode terminated: there is no value after it. A time limit is no
    # termination
    goes_on: Tensor

    @staticmethod
    def of(spaces: ContinuousSpaces, batch: dict[str, Tensor]) -> Transitions:
        """From a batch of windows of one step `[B, 1, ...]`."""
        parts: dict[str, dict[str, Tensor]] = {
            "observations": {},
            "actions": {},
            "next_observations": {},
        }
        for name, value in batch.items():
            group, _, path = name.partition("/")
            if group in parts:
                parts[group][path] = value[:, 0]
        seen, seen_next = spaces.see(parts["observations"]), spaces.see(parts["next_observations"])
        return Transitions(
            seen,
            spaces.pack(parts["actions"]),
            batch["rewards"][:, 0],
            seen_next,
            1.0 - batch["terminated"][:, 0].float(),
        )


class Critics(nn.Module):
    """Two critics Q(s, a) side by side, and the slow copies that targets are made of."""

    def __init__(self, spaces: ContinuousSpaces, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.online = Ensemble(2, [spaces.seen + spaces.acted, *hidden, 1])
        self.target = frozen_copy(self.online)

    def both_values(self, seen: Tensor, action: Tensor) -> Tensor:
        """Q1 and Q2 of rows: `[2, n]`."""
        out: Tensor = self.online(torch.cat([seen, action], -1)).squeeze(-1)
        return out

    def first(self, seen: Tensor, action: Tensor) -> Tensor:
        """Q1 of rows: `[n]`."""
        return self.online.first(torch.cat([seen, action], -1)).squeeze(-1)

    def target_values(self, seen: Tensor, action: Tensor) -> Tensor:
        """The target networks' Q1 and Q2 of rows: `[2, n]`."""
        out: Tensor = self.target(torch.cat([seen, action], -1)).squeeze(-1)
        return out


def soft_clip(values: Tensor, share: float) -> Tensor:
    """`share` of the smaller and 1 - `share` of the larger of two critics `[2, ...]` (Fujimoto et
    al. 2019, equation 13)."""
    return share * values.amin(0) + (1 - share) * values.amax(0)


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy that no optimizer changes."""
    return copy.deepcopy(network).requires_grad_(False)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of an optimizer; gradients are made for its own parameters only.

    The learner has cleared the old ones.
    """
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()


def repeat_rows(rows: Tensor, times: int) -> Tensor:
    """Each row `times` times, one after another: `[n, w]` to `[n * times, w]`."""
    return rows.repeat_interleave(times, 0)


@dataclass(frozen=True)
class OfflineBaseline(Baseline):
    """See the module."""

    offline_steps: ClassVar[int] = 500_000

    batch_size: int = setting(256, "steps drawn for one learner step", low=1, high=1_000_000)
    discount: float = setting(0.99, "discount factor gamma", low=0, high=1)
    follow_rate: float = setting(
        0.005,
        "share of the online networks that the target networks take over at each learner step"
        " (tau)",
        above=0,
        high=1,
    )

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    def view(self, step: int = 0) -> View:
        """Single steps, every time step alike, with what followed."""
        return View(weight="length", next_observation=True, terminals=True)

    def fit_critics(
        self, critics: Critics, t: Transitions, targets: Tensor, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """One step of both critics towards `targets [B]`; metrics."""
        values = critics.both_values(t.seen, t.action)
        fit = ((values - targets) ** 2).mean(1).sum()
        descend(fit, optimizer)
        return {"loss": fit, "value": values.mean(), "target": targets.mean()}

    def judge(
        self,
        model: nn.Module,
        store: Store | None,
        kept: Callable[[], Mapping[str, np.ndarray]],
    ) -> CriticValues:
        """See Algorithm."""
        spaces, critics = model.get_submodule("spaces"), model.get_submodule("critics")
        assert isinstance(spaces, ContinuousSpaces) and isinstance(critics, Critics)
        return CriticValues(
            lambda seen, acted: critics.both_values(spaces.see(seen), spaces.pack(acted)).amin(0),
            self.discount,
        )

    def adam(self, network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Adam for the parameters of `network` that are trained."""
        return torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad], lr=learning_rate, fused=True
        )


def vector_policy(
    spaces: ContinuousSpaces, choose: Callable[[Tensor, Tensor], Tensor], uniforms: int
) -> Policy:
    """Acts without memory: `choose` makes packed actions `[n, acted]` of rows `[n, seen]` and
    uniforms `[n, k]`."""
    return Memoryless(
        spaces, lambda seen, chance: spaces.unpack(choose(spaces.see(seen), chance)), uniforms
    )


def best_of(critics: Critics, seen: Tensor, candidates: Tensor) -> Tensor:
    """Of `[n, c, acted]` candidates for rows `[n, seen]`, those that the first critic likes best:
    `[n, acted]`."""
    n, count, _ = candidates.shape
    values = critics.first(repeat_rows(seen, count), candidates.flatten(0, 1)).reshape(n, count)
    return candidates[torch.arange(n, device=values.device), values.argmax(1)]
