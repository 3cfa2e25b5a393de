"""Learner: a model, its optimizers, and the learner steps; one rank of as many as there are.

Every rank draws the same global indices and fetches its share; gradients are sums that are added over ranks and then
divided by the weight added over ranks, so two ranks equal one to rounding. With one rank there is no communication.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Algorithm, Batch
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import RunFailed, UserError, full_memory
from bigdm_ray.models.parallel import compiled, mixed
from bigdm_ray.replay.mixture import Mixture, Source
from bigdm_ray.replay.store import Store
from bigdm_ray.training.params import Weights
from bigdm_ray.training.streams import rng, seed_torch


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device is {name!r}, but auto, cpu, cuda or cuda:N is expected"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device is {name!r}, but this machine has no usable GPU; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}, but auto, cpu, cuda or cuda:N is expected")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(
            f"--device is {name!r}, but the last GPU of this machine is cuda:{count - 1}; use that, or one before it"
        )
    return device


class PeerLost(RuntimeError):
    """Another rank of the group is gone, or has left it: the step could not be taken."""


@dataclass(frozen=True)
class Progress:
    """What a call of `update` did: the learner step it reached, how many it took, and means of the metrics over them."""

    step: int
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    busy_s: float = 0.0


class Learner:
    """Holds the network. What it knows beside the network is the learner step, so that a checkpoint of both is all of it."""

    def __init__(
        self,
        algorithm: Algorithm,
        signatures: dict[str, Signature],
        seed: int,
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
        compile: bool = False,
        precision: str = "float32",
        mixture: Mixture | None = None,
    ) -> None:
        """`mixture` says how often each source is drawn from; without it all are drawn from alike."""
        self.algorithm = algorithm
        self._signatures = signatures
        self._mixture = mixture
        self.seed = seed
        self.rank, self.world = rank, world
        self.device = pick_device(device)
        seed_torch(seed, "initial weights")
        self.model: nn.Module = algorithm.build(signatures).to(self.device)
        if compile and self.device.type == "cpu" and getattr(algorithm, "dropout", 0.0) > 0:
            raise UserError(
                "--machines.compile is true, but on a CPU dropout is drawn by code that is not compiled; give --algorithm.dropout 0 or a GPU"
            )
        if precision == "bf16" and not mixed(self.model):
            raise UserError(
                f"--machines.precision is bf16, but {algorithm.name} has no transformer that could gain by it; leave it out"
            )
        if compile and not compiled(self.model):
            raise UserError(
                f"--machines.compile is true, but {algorithm.name} has no transformer to compile; leave it out"
            )
        self.optimizers = algorithm.optimizers(self.model)
        self._rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        self.step = 0
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        main = next(iter(self.optimizers.values()), None)
        self._clipped = [p for group in main.param_groups for p in group["params"]] if main else []
        self._annotated = False
        if world > 1 and algorithm.own_update:
            raise UserError(f"{algorithm.name} trains on one learner; leave --learners out")

    def update(
        self,
        sources: Mapping[str, Source],
        steps: int,
        on_step: Callable[[], None] | None = None,
    ) -> Progress:
        """Take `steps` learner steps on windows of the sources; `on_step` is called after each.

        Raises RunFailed when the loss is no longer finite, or memory runs out.
        """
        began = time.perf_counter()
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for _ in range(steps):
            self._prepare(sources)
            seed_torch(self.seed, "dropout", self.step, self.rank)
            try:
                metrics = self._step(self._draw(sources))
            except RuntimeError as error:
                if full_memory(error):
                    raise RunFailed(
                        f"a learner step of {self.algorithm.batch} windows does not fit into the memory of {self.device}; "
                        "start anew with a smaller --algorithm.batch-size or network"
                    ) from None
                raise
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
                counts[name] = counts.get(name, 0) + 1
            self.step += 1
            if on_step is not None:
                on_step()
        means = {name: float(value) / counts[name] for name, value in totals.items()}
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:
            raise RunFailed(
                f"{bad[0]} is {means[bad[0]]} at learner step {self.step}: training has diverged; lower --algorithm.learning-rate "
                "and go on from the last checkpoint, or start anew"
            )
        return Progress(self.step, steps, means, time.perf_counter() - began)

    def _prepare(self, sources: Mapping[str, Source]) -> None:
        """Whole passes over the data, where they are due or what they noted holds no longer."""
        stores = {name: source for name, source in sources.items() if isinstance(source, Store)}
        due = self.algorithm.fits(self.step)
        if due:
            seed_torch(self.seed, "fit", self.step)
            self.algorithm.fit(self.model, stores, self.step)
        views = self.algorithm.views(self._signatures, self.step)
        if (
            due
            or not self._annotated
            or not all(store.annotated(views[name]) for name, store in stores.items())
        ):
            for name, columns in self.algorithm.annotate(self.model, stores, self.step).items():
                stores[name].annotate(columns)
            self._annotated = True

    def _draw(self, sources: Mapping[str, Source]) -> Batch:
        mixture = self._mixture or Mixture.even(sources)
        views = self.algorithm.views(self._signatures, self.step)
        chance = rng(self.seed, "draw", self.step)
        windows = mixture.draw(
            sources, views, chance, self.algorithm.batch, self.rank, self.world, self.step
        )
        return self.algorithm.collate(windows)

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        tensors = {
            name: torch.from_numpy(values).to(self.device, non_blocking=True)
            for name, values in batch.items()
        }
        for name, optimizer in self.optimizers.items():
            factor = self.algorithm.learning_rate_factor(self.step, name)
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        if self.algorithm.own_update:
            return self.algorithm.update(self.model, self.optimizers, tensors, self.step)
        try:
            loss = self.algorithm.loss(self.model, tensors, self.step)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            why = str(error).strip().partition("\n")[0]
            raise RunFailed(
                f"torch.compile cannot compile the network here ({why}); leave --machines.compile out, or install a C++ compiler"
            ) from None
        if self.world == 1:
            weight = loss.weight.detach()
            (loss.sum / weight).backward()
            metrics = {name: value / weight for name, value in loss.metrics.items()}
        else:
            loss.sum.backward()
            metrics = self._reduce(loss.weight.detach(), loss.metrics)
        if self.algorithm.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._clipped, self.algorithm.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return metrics

    def _reduce(self, weight: Tensor, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add gradients, weight and metrics over ranks in one message; divide by the weight."""
        used_parameters = [p for p in self._parameters if p.grad is not None]
        gradients = [p.grad for p in used_parameters if p.grad is not None]
        flat = torch.cat(
            [g.reshape(-1) for g in gradients] + [torch.stack([weight, *metrics.values()]).float()]
        )
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:  # gloo has no class for a connection that is gone
            if full_memory(error):
                raise
            raise PeerLost(f"a learner cannot reach another one: {error}") from None
        used = len(flat) - 1 - len(metrics)
        total = flat[used]
        for parameter, part in zip(
            used_parameters, flat[:used].split([p.numel() for p in used_parameters]), strict=True
        ):
            parameter.grad = (part / total).view_as(parameter)
        return {name: flat[used + 1 + i] / total for i, name in enumerate(metrics)}

    def weights(self, incarnation: int) -> Weights:
        """The network as arrays, for actors and files."""
        return Weights.of(self.model, (incarnation, self.step))

    # --- saving and loading

    def state(self) -> dict[str, np.ndarray]:
        """Network and optimizers as arrays by name: `model/NAME` and `optimizer/WHICH/INDEX/KEY`."""
        out = {
            f"model/{name}": value.detach().cpu().numpy().copy()
            for name, value in self.model.state_dict().items()
        }
        for which, optimizer in self.optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                for key, value in slots.items():
                    out[f"optimizer/{which}/{index}/{key}"] = (
                        torch.as_tensor(value).detach().cpu().numpy().copy()
                    )
        return out

    def load(self, state: dict[str, np.ndarray], step: int) -> None:
        """Take over what `state` gave, at learner step `step`. Raises UserError for arrays that do not fit."""
        Weights(
            (0, step), {name[6:]: v for name, v in state.items() if name.startswith("model/")}
        ).into(self.model)
        for which, optimizer in self.optimizers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                kind, *rest = name.split("/")
                if kind == "optimizer" and rest[0] == which:
                    slots.setdefault(int(rest[1]), {})[rest[2]] = torch.from_numpy(np.array(value))
            _check_slots(which, optimizer, slots)
            whole = optimizer.state_dict()
            optimizer.load_state_dict({"state": slots, "param_groups": whole["param_groups"]})
        self.step = step
        self._annotated = False


def _check_slots(
    which: str, optimizer: torch.optim.Optimizer, slots: dict[int, dict[str, Tensor]]
) -> None:
    """Raise UserError unless all parameters have the same slots, each a scalar or of their shape."""
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
