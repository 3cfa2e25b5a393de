"""What stands around a transformer, put on from outside of its code: compilation.

A transformer is written for one device. Its gradients are summed over learner ranks by the learner, whatever the network is;
every rank holds the whole network, so parameters are not sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bigdm_ray.models.transformer import Transformer


def compiled(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Have torch.compile compile every Transformer in `model` at its first call; how many there are.

    It is done in place: names, shapes and values of parameters stay, so weights and checkpoints know nothing of it. Numbers change by rounding,
    and dropout draws other masks than without.
    """
    found = [module for module in model.modules() if isinstance(module, Transformer)]
    for module in found:
        module.compile(backend=backend)
    return len(found)
