"""What stands around a transformer, put on from outside of its code: compilation and mixed
precision.

A transformer is written for one device. How a network of any kind stands on several learner ranks
is `training/parallel.py`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bigdm_ray.models.transformer import Dropout, Transformer


def transformers(model: nn.Module) -> list[Transformer]:
    """Every Transformer in `model`."""
    return [module for module in model.modules() if isinstance(module, Transformer)]


def drops(model: nn.Module) -> bool:
    """Whether a Transformer in `model` drops anything when it is trained."""
    inside = (module for found in transformers(model) for module in found.modules())
    return any(isinstance(module, Dropout) and module.p > 0 for module in inside)


def use_bfloat16(model: nn.Module) -> int:
    """Have every Transformer in `model` multiply in bfloat16; how many there are.

    Weights, the residual stream, what goes in and what comes out stay float32, so embeddings, heads
    and losses are as before. Only `forward` is changed, in place; what acts with a cache is not.
    """
    found = transformers(model)
    for module in found:
        module.forward = types.MethodType(_in_bfloat16, module)  # type: ignore[method-assign]  # a method of this instance, and of copies of it
    return len(found)


def _in_bfloat16(self: Transformer, x: Tensor, *more: Any, **named: Any) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return Transformer.forward(self, x, *more, **named).float()


def compile_transformers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Have torch.compile compile every Transformer in `model` at its first call; how many there
    are.

    It is done in place: names, shapes and values of parameters stay, so weights and checkpoints
    know nothing of it. Numbers change by rounding, and dropout draws other masks than without.
    """
    found = transformers(model)
    for module in found:
        module.compile(backend=backend)
    return len(found)
