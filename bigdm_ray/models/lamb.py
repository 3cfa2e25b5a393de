"""LAMB: Adam's step, scaled for each tensor by the ratio of its norm to the step's (You et al.
2020, arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch


class Lamb(torch.optim.Optimizer):
    """With Adam's correction of the moments' bias, and plain Adam where nothing decays, as Online
    Decision Transformer uses it."""

    def __init__(
        self,
        parameters: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it by whether there is a closure
        """Take one step along the gradients."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = (
                        torch.zeros_like(parameter),
                        torch.zeros_like(parameter),
                    )
                state["step"] += 1
                steps = float(state["step"])
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(parameter.grad, 1 - first)
                square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                step = (mean / (1 - first**steps)) / (
                    (square / (1 - second**steps)).sqrt() + group["eps"]
                )
                if group["weight_decay"]:
                    step += group["weight_decay"] * parameter
                    size, length = parameter.norm(), step.norm()
                    step *= torch.where(
                        (size > 0) & (length > 0), size / length, torch.ones_like(size)
                    )
                parameter.sub_(group["lr"] * step)
