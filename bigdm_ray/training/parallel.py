"""How one network stands on several learner ranks: how gradients meet, and what is saved.

A `Parallel` value has these verbs; the learner takes its steps with them and knows nothing of ranks
beside. `Replicated` is data parallelism: every rank holds the whole network, and gradients are sums
that are added over ranks and then divided by the weight added over ranks, so that two ranks equal
one to rounding. With one rank there is no communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigdm_ray.algorithms.learned import Loss
from bigdm_ray.errors import UserError, full_memory
from bigdm_ray.training.params import Weights, array_of

Optimizers = Mapping[str, torch.optim.Optimizer]
Arrays = dict[str, np.ndarray]


class PeerLost(RuntimeError):
    """Another rank of the group is gone, or has left it: the step could not be taken."""


class Parallel(Protocol):
    """What a learner does with its network where there are other ranks."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network as this rank holds it; its optimizers are made after this."""

    def reduce(self, parameters: Sequence[nn.Parameter], loss: Loss) -> dict[str, Tensor]:
        """Put the gradients of the mean loss over all ranks into `parameters`; mean metrics.

        Raises PeerLost where another rank is gone.
        """

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> None:
        """Cut the gradients down to at most this norm, that of all these parameters together."""

    def state(self, model: nn.Module, optimizers: Optimizers) -> Arrays:
        """Copies of all there is, on the CPU: `model/NAME` and `optimizer/WHICH/INDEX/KEY`."""

    def load(self, state: Arrays, model: nn.Module, optimizers: Optimizers) -> None:
        """Take over what `state` gave. Raises UserError for arrays that do not fit."""


@dataclass(frozen=True)
class Replicated:
    """See the module."""

    world: int = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """See Parallel: as it is."""
        return model

    def reduce(self, parameters: Sequence[nn.Parameter], loss: Loss) -> dict[str, Tensor]:
        """See Parallel: gradients, weight and metrics are added in one message, after one that
        tells which parameters any rank has used: ranks may have drawn other tasks."""
        weight, metrics, counts = loss.weight.detach(), loss.metrics, loss.counts
        if self.world == 1:
            (loss.sum / weight).backward()
            return {name: value / weight for name, value in metrics.items()} | dict(counts)
        loss.sum.backward()
        mine = [int(p.grad is not None) for p in parameters]
        used_anywhere = torch.tensor(mine, device=weight.device)
        self._add(used_anywhere)
        used_parameters = [
            p for p, count in zip(parameters, used_anywhere.tolist(), strict=True) if count
        ]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used_parameters]
        flat = torch.cat(
            [g.reshape(-1) for g in gradients]
            + [torch.stack([weight, *metrics.values(), *counts.values()]).float()]
        )
        self._add(flat)
        used = len(flat) - 1 - len(metrics) - len(counts)
        total = flat[used]
        for parameter, part in zip(
            used_parameters, flat[:used].split([p.numel() for p in used_parameters]), strict=True
        ):
            parameter.grad = (part / total).view_as(parameter)
        means = {name: flat[used + 1 + i] / total for i, name in enumerate(metrics)}
        first = used + 1 + len(metrics)
        return means | {name: flat[first + i] for i, name in enumerate(counts)}

    @staticmethod
    def _add(values: Tensor) -> None:
        """Add what all ranks have, in place. Raises PeerLost."""
        try:
            dist.all_reduce(values)
        except RuntimeError as error:  # gloo has no class for a connection that is gone
            if full_memory(error):
                raise
            raise PeerLost(f"a learner cannot reach another one: {error}") from None

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> None:
        """See Parallel: all ranks hold the same gradients, and cut them down alike."""
        nn.utils.clip_grad_norm_(parameters, norm)

    def state(self, model: nn.Module, optimizers: Optimizers) -> Arrays:
        """See Parallel: the ranks are alike, so that any of them can be asked."""
        out = {f"model/{name}": array_of(value) for name, value in model.state_dict().items()}
        for which, optimizer in optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                for key, value in slots.items():
                    out[f"optimizer/{which}/{index}/{key}"] = array_of(torch.as_tensor(value))
        return out

    def load(self, state: Arrays, model: nn.Module, optimizers: Optimizers) -> None:
        """See Parallel."""
        arrays = {name[6:]: v for name, v in state.items() if name.startswith("model/")}
        Weights((0, 0), arrays).into(model)
        for which, optimizer in optimizers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                kind, *rest = name.split("/")
                if kind == "optimizer" and rest[0] == which:
                    slots.setdefault(int(rest[1]), {})[rest[2]] = torch.from_numpy(np.array(value))
            _check_slots(which, optimizer, slots)
            whole = optimizer.state_dict()
            optimizer.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})


def _check_slots(
    which: str, optimizer: torch.optim.Optimizer, slots: dict[int, dict[str, Tensor]]
) -> None:
    """Raise UserError unless all parameters have the same slots, scalars or of their shape."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fit = len({frozenset(slot) for slot in slots.values()}) <= 1 and all(
        0 <= index < len(parameters) and (not value.ndim or value.shape == parameters[index].shape)
        for index, slot in slots.items()
        for value in slot.values()
    )
    if not fit:
        raise UserError(
            f"the state of the optimizer {which!r} does not fit the network: it is damaged, or "
            "belongs to another algorithm, task or size; remove that checkpoint"
        )
