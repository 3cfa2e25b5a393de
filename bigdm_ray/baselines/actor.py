"""The network that acts for a Foreign algorithm: linear layers equal to those of the library's policy, and how they act.

Libraries name and nest their layers in their own ways; here a policy is one stack of linear layers, so that what they
trained is copied in order (`layers_of`), stored as safetensors, and acts without them. A `way` says what the outputs
are: logits, action values, a Gaussian, or a Gaussian squashed by tanh.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Memoryless, Mode
from bigdm_ray.envs.task import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.heads import normals

Way = Literal["logits", "values", "gaussian", "squashed"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
LOG_STD_RANGE = {"gaussian": (-20.0, 20.0), "squashed": (-5.0, 2.0)}
"""Where RLlib clips the logarithm of a standard deviation."""


def plain_leaves(signature: Signature, name: str, kinds: tuple[str, ...] = ("discrete", "tensor")) -> tuple[str, Leaf, str, Leaf]:
    """Path and leaf of the one observation vector and of the one action. Raises UserError for any other task.

    `kinds` are those of actions: one `discrete` choice, or a vector (`tensor`) with or without bounds.
    """
    (seen, *more_seen), (done, *more_done) = signature.observations.items(), signature.actions.items()
    path, leaf = seen
    if more_seen or leaf.kind != "tensor" or len(leaf.shape) != 1:
        raise UserError(f"{name} learns from one vector of numbers, but this task shows {_told(signature.observations)}; choose another task or algorithm")
    one = done[1].size == 1 if done[1].kind == "discrete" else len(done[1].shape) == 1
    if more_done or done[1].kind not in kinds or not one:
        wanted = " or ".join({"discrete": "one discrete choice", "tensor": "one vector of continuous numbers"}[kind] for kind in kinds)
        raise UserError(f"{name} acts with {wanted}, but this task takes {_told(signature.actions)}; choose another task or algorithm")
    return path, leaf, *done


def _told(leaves: dict[str, Leaf]) -> str:
    return ", ".join(f"{path or 'a leaf'}: {leaf.kind} {list(leaf.shape)}" for path, leaf in leaves.items())


class Actor(nn.Module):
    """Linear layers with an activation between them; with `free_std`, a Gaussian's deviations are parameters of their own.

    A Gaussian's outputs are its means and, without `free_std`, the logarithms of its deviations. `scaled`: the mean -1..1 stands
    for the bounds of the action, as RLlib has it; else it is the action itself, as Stable-Baselines3 has it.
    """

    def __init__(
        self, signature: Signature, name: str, hidden: tuple[int, ...], activation: str, way: Way, free_std: bool = False, scaled: bool = False
    ) -> None:
        super().__init__()
        kinds = ("discrete",) if way in ("logits", "values") else ("tensor",)
        self.path, seen, self.action_path, self.action = plain_leaves(signature, name, kinds)
        if way == "squashed" and self.action.low is None:
            raise UserError(f"{name} squashes its actions between bounds, but this task states none; choose another task or algorithm")
        self.way, self.scaled, self.name = way, scaled, name
        size = sum(self.action.choices) if self.action.kind == "discrete" else self.action.size * (1 if free_std else 2)
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise((seen.size, *hidden)):
            layers += [nn.Linear(narrow, wide), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], size))
        self.log_std = nn.Parameter(torch.zeros(self.action.size)) if free_std else None

    def forward(self, observations: Tensor) -> Tensor:
        """`[n, width]` to logits or values `[n, choices]`, or means and log deviations `[n, 2 * size]`."""
        out: Tensor = self.layers(observations)
        return out if self.log_std is None else torch.cat([out, self.log_std.expand_as(out)], -1)


def layers_of(*modules: nn.Module, log_std: Tensor | None = None) -> dict[str, np.ndarray]:
    """The state of an Actor whose layers are the linear layers of these modules, in their order."""
    linear = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
    out = {f"layers.{2 * i}.{part}": getattr(layer, part).detach().cpu().numpy().copy() for i, layer in enumerate(linear) for part in ("weight", "bias")}
    return out if log_std is None else {"log_std": log_std.detach().cpu().numpy().copy()} | out


class ActorPolicy(Memoryless):
    """Acts with an Actor. `sample` draws (from action values: with probability `epsilon` any action), `mean` takes the likeliest."""

    def __init__(self, model: nn.Module, mode: Mode, epsilon: float = 0.0) -> None:
        assert isinstance(model, Actor)
        if mode == "plan":
            raise UserError(f"{model.name} has no planner; its modes are sample and mean")
        self._model, self._greedy, self._epsilon = model, mode == "mean", epsilon
        super().__init__(self._act, {"logits": 1, "values": 2}.get(model.way, model.action.size))

    def _act(self, observations: dict[str, Tensor], uniforms: Tensor) -> dict[str, Tensor]:
        model = self._model
        out = model(observations[model.path].float())
        chance = None if self._greedy else uniforms
        picked = self._chosen(out, chance) if model.action.kind == "discrete" else self._moved(out, chance)
        return {model.action_path: picked.to(getattr(torch, model.action.dtype)).reshape(len(out), *model.action.shape)}

    def _chosen(self, out: Tensor, chance: Tensor | None) -> Tensor:
        best = out.argmax(-1)
        if chance is None:
            return best
        count = out.shape[-1]
        if self._model.way == "values":
            return torch.where(chance[:, 0] < self._epsilon, (chance[:, 1] * count).long().clamp(max=count - 1), best)
        return (torch.softmax(out, -1).cumsum(-1) < chance).sum(-1).clamp(max=count - 1)

    def _moved(self, out: Tensor, chance: Tensor | None) -> Tensor:
        model = self._model
        move, log_std = out.chunk(2, -1)
        if chance is not None:
            move = move + torch.exp(log_std.clamp(*LOG_STD_RANGE[model.way])) * normals(chance)
        if model.way == "squashed":
            move = torch.tanh(move)
        if model.action.low is None or model.action.high is None:
            return move
        low, high = torch.tensor(model.action.low), torch.tensor(model.action.high)
        if model.scaled:
            move = low + (move + 1.0) * (high - low) / 2.0
        return torch.minimum(torch.maximum(move, low), high)
