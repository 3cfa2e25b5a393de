"""The network that acts for an ExternalAlgorithm: linear layers equal to those of the library's
policy, and how they act.

Libraries name and nest their layers in their own ways; here a policy is one stack of linear layers,
so that what they trained is copied in order (`layers_of`), stored as safetensors, and acts without
them. A `way` says what the outputs are: logits, action values, a Gaussian, a Gaussian squashed by
tanh, or one whose mean alone is. Pictures pass convolutions first (`ImageLayers`), which the
library trains as its own; `FrameView` says what of them these see.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Columns, Memoryless, Mode, State
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.models.heads import normals
from bigdm_ray.replay.windows import merge_stack, push_frame

Way = Literal["logits", "values", "gaussian", "squashed", "bounded"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
LOG_STD_RANGE = {"gaussian": (-20.0, 20.0), "squashed": (-5.0, 2.0), "bounded": (-5.0, 2.0)}
"""Where RLlib clips the logarithm of a standard deviation; of `bounded`, where IQL's authors do."""


def plain_leaves(
    signature: Signature,
    name: str,
    kinds: tuple[str, ...] = ("discrete", "tensor"),
    pictures: bool = False,
) -> tuple[str, Leaf, str, Leaf]:
    """Path and leaf of the one observation vector (with `pictures`, or the one picture) and of the
    one action. Raises UserError for any other task.

    `kinds` are those of actions: one `discrete` choice, or a vector (`tensor`) with or without
    bounds.
    """
    (seen, *more_seen), (done, *more_done) = (
        signature.observations.items(),
        signature.actions.items(),
    )
    path, leaf = seen
    fits = (leaf.kind == "tensor" and len(leaf.shape) == 1) or (pictures and leaf.kind == "image")
    if more_seen or not fits:
        what = "one vector of numbers or one picture" if pictures else "one vector of numbers"
        raise UserError(
            f"{name} learns from {what}, but this task shows {_told(signature.observations)};"
            " choose another task or algorithm"
        )
    one = done[1].size == 1 if done[1].kind == "discrete" else len(done[1].shape) == 1
    if more_done or done[1].kind not in kinds or not one:
        wanted = " or ".join(
            {"discrete": "one discrete choice", "tensor": "one vector of continuous numbers"}[kind]
            for kind in kinds
        )
        raise UserError(
            f"{name} acts with {wanted}, but this task takes {_told(signature.actions)}; choose"
            " another task or algorithm"
        )
    return path, leaf, *done


def _told(leaves: dict[str, Leaf]) -> str:
    return ", ".join(
        f"{path or 'a leaf'}: {leaf.kind} {list(leaf.shape)}" for path, leaf in leaves.items()
    )


@dataclass(frozen=True)
class FrameView:
    """How a picture is seen: the last `stack` frames, through convolutions.

    They are made smaller by the brightest of each square of `shrink` pixels a side: a mean would
    all but put out a ball of two pixels.
    """

    stack: int
    shrink: int
    channels: tuple[int, ...]
    features: int  # width of the layer after the convolutions

    def shape(self, leaf: Leaf) -> tuple[int, int, int]:
        """What the network sees of a picture: `[stack * channels, height, width]`.

        Raises UserError where it cannot be shrunk so.
        """
        channels, height, width = leaf.shape
        if height % self.shrink or width % self.shrink:
            raise UserError(
                f"--algorithm.shrink is {self.shrink}, but the pictures of this task have"
                f" {height}x{width} pixels; give a divisor of both"
            )
        return self.stack * channels, height // self.shrink, width // self.shrink

    def shrink_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames `[n, channels, height, width]` uint8, smaller by `shrink`."""
        parts = [
            frames[..., row :: self.shrink, column :: self.shrink]
            for row, column in itertools.product(range(self.shrink), repeat=2)
        ]
        return functools.reduce(np.maximum, parts)

    def empty(self, n: int, leaf: Leaf) -> np.ndarray:
        """Stacks of n rows that have seen nothing: `[n, stack, channels, height, width]` uint8,
        shrunk."""
        channels, height, width = self.shape(leaf)
        return np.zeros((n, self.stack, channels // self.stack, height, width), np.uint8)

    def push(self, stacks: np.ndarray, frames: np.ndarray, first: np.ndarray) -> np.ndarray:
        """The stacks with new frames `[n, channels, height, width]` at their ends; where
        `first [n]`, a stack is filled with its frame."""
        return push_frame(stacks, self.shrink_frames(frames), first)


class ImageLayers(nn.Module):
    """Convolutions with ReLU, then one layer with ReLU. The first are 6x6 with stride 3, the others
    4x4 with stride 2."""

    def __init__(
        self, shape: tuple[int, int, int], channels: tuple[int, ...], features: int
    ) -> None:
        """`shape`: `[channels, height, width]` of what comes in.

        Raises UserError where it is too small for so many convolutions.
        """
        super().__init__()
        narrow, height, width = shape
        layers: list[nn.Module] = []
        for k, wide in enumerate(channels):
            kernel, stride = (4, 2) if k else (6, 3)
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
            if min(height, width) < 1:
                raise UserError(
                    f"pictures of {shape[1]}x{shape[2]} pixels are too small for the"
                    f" {len(channels)} convolutions of --algorithm.channels; give fewer"
                )
            layers += [nn.Conv2d(narrow, wide, kernel, stride), nn.ReLU()]
            narrow = wide
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(narrow * height * width, features), nn.ReLU()
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """`[n, channels, height, width]` of 0 to 255 to `[n, features]`."""
        out: Tensor = self.layers(
            (pixels.float() / 255.0).contiguous(memory_format=torch.channels_last)
        )
        return out


class LayeredActor(nn.Module):
    """Linear layers with an activation between them; with `free_std`, a Gaussian's deviations are
    parameters of their own.

    A Gaussian's outputs are its means and, without `free_std`, the logarithms of its deviations.
    `scaled`: the mean -1..1 stands for the bounds of the action, as RLlib has it; else it is the
    action itself, as Stable-Baselines3 has it. With a `frame_view` the task may show a picture in
    place of a vector.
    """

    def __init__(
        self,
        signature: Signature,
        name: str,
        hidden: tuple[int, ...],
        activation: str,
        way: Way,
        free_std: bool = False,
        scaled: bool = False,
        frame_view: FrameView | None = None,
    ) -> None:
        super().__init__()
        kinds = ("discrete",) if way in ("logits", "values") else ("tensor",)
        self.path, self.leaf, self.action_path, self.action = plain_leaves(
            signature, name, kinds, frame_view is not None
        )
        if way in ("squashed", "bounded") and self.action.low is None:
            raise UserError(
                f"{name} squashes its actions between bounds, but this task states none; choose"
                " another task or algorithm"
            )
        self.way, self.scaled, self.name = way, scaled, name
        size = (
            sum(self.action.choices)
            if self.action.kind == "discrete"
            else self.action.size * (1 if free_std else 2)
        )
        self.frame_view = frame_view if self.leaf.kind == "image" else None
        self.pictures = (
            ImageLayers(
                self.frame_view.shape(self.leaf), self.frame_view.channels, self.frame_view.features
            )
            if self.frame_view
            else None
        )
        widths = (self.frame_view.features if self.frame_view else self.leaf.size, *hidden)
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Linear(narrow, wide), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], size))
        self.log_std = nn.Parameter(torch.zeros(self.action.size)) if free_std else None

    def forward(self, observations: Tensor) -> Tensor:
        """`[n, width]`, or what is seen of pictures, to logits or values `[n, choices]`, or means
        and log deviations `[n, 2 * size]`."""
        out: Tensor = self.layers(
            observations.float() if self.pictures is None else self.pictures(observations)
        )
        out = torch.tanh(out) if self.way == "bounded" else out
        return (
            out
            if self.log_std is None
            else torch.cat([out, self.log_std.clamp(*LOG_STD_RANGE[self.way]).expand_as(out)], -1)
        )


def layers_of(*modules: nn.Module, log_std: Tensor | None = None) -> dict[str, np.ndarray]:
    """The state of a LayeredActor whose layers are the linear layers of these modules, in their
    order."""
    linear = [
        layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)
    ]
    out = {
        f"layers.{2 * i}.{part}": getattr(layer, part).detach().cpu().numpy().copy()
        for i, layer in enumerate(linear)
        for part in ("weight", "bias")
    }
    return out if log_std is None else {"log_std": log_std.detach().cpu().numpy().copy()} | out


def stack_linear_layers(arrays: Mapping[str, np.ndarray], *prefixes: str) -> nn.Sequential:
    """The linear layers that a library's modules of these prefixes hold, ReLU between them.

    `arrays` are parameters by name; within a prefix the layers follow the order of their names.
    """
    layers: list[nn.Module] = []
    for prefix in prefixes:
        names = [n for n in arrays if n.startswith(prefix) and n.endswith(".weight")]
        for name in sorted(names, key=lambda n: (len(n), n)):  # 10 comes after 8
            weight, bias = arrays[name], arrays[name.removesuffix("weight") + "bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict(
                {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
            )
            layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolution_state(module: nn.Module) -> dict[str, np.ndarray]:
    """The state of the convolutions of a LayeredActor out of the one ImageLayers below a library's
    module; empty where it has none."""
    found = next((part for part in module.modules() if isinstance(part, ImageLayers)), None)
    return (
        {}
        if found is None
        else {
            f"pictures.{name}": value.detach().cpu().numpy().copy()
            for name, value in found.state_dict().items()
        }
    )


class LayeredActorPolicy(Memoryless):
    """Acts with a LayeredActor.

    `sample` draws (from action values: with probability `epsilon` any action), `mean` takes the
    likeliest.

    Its memory is the frames that it sees of pictures, if any.
    """

    def __init__(self, model: nn.Module, mode: Mode, epsilon: float = 0.0) -> None:
        assert isinstance(model, LayeredActor)
        if mode == "plan":
            raise UserError(f"{model.name} has no planner; its modes are sample and mean")
        self._model, self._greedy, self._epsilon = model, mode == "mean", epsilon
        super().__init__(
            model, self._act, {"logits": 1, "values": 2}.get(model.way, model.action.size)
        )

    def empty(self, n: int) -> State:
        """See Policy."""
        return (
            {}
            if self._model.frame_view is None
            else {"frames": self._model.frame_view.empty(n, self._model.leaf)}
        )

    def act(
        self,
        state: State,
        observations: dict[str, np.ndarray],
        rewards: np.ndarray,
        commands: Columns,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], State]:
        """See Policy."""
        model = self._model
        if model.frame_view is not None:
            state = {
                "frames": model.frame_view.push(state["frames"], observations[model.path], first)
            }
            observations = {model.path: merge_stack(state["frames"])}
        return super().act(state, observations, rewards, commands, first, uniforms)

    def _act(self, observations: dict[str, Tensor], uniforms: Tensor) -> dict[str, Tensor]:
        model = self._model
        out = model(observations[model.path])
        chance = None if self._greedy else uniforms
        picked = (
            self._chosen(out, chance)
            if model.action.kind == "discrete"
            else self._moved(out, chance)
        )
        return {
            model.action_path: picked.to(getattr(torch, model.action.dtype)).reshape(
                len(out), *model.action.shape
            )
        }

    def _chosen(self, out: Tensor, chance: Tensor | None) -> Tensor:
        best = out.argmax(-1)
        if chance is None:
            return best
        count = out.shape[-1]
        if self._model.way == "values":
            return torch.where(
                chance[:, 0] < self._epsilon,
                (chance[:, 1] * count).long().clamp(max=count - 1),
                best,
            )
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
        low, high = (
            torch.tensor(bounds, device=move.device)
            for bounds in (model.action.low, model.action.high)
        )
        if model.scaled:
            move = low + (move + 1.0) * (high - low) / 2.0
        return torch.minimum(torch.maximum(move, low), high)
