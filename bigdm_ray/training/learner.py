"""Learner: a model, its optimizers, and the learner steps; one rank of as many as there are.

Every rank draws the same global indices and fetches its share. How the ranks share a network is
`parallel.py`; the next step's windows may be drawn while a step is taken (`prefetch.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.learned import Supervised
from bigdm_ray.baselines.base import Baseline
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import RunFailed, UserError, full_memory
from bigdm_ray.models.parallel import compile_transformers, drops, use_bfloat16
from bigdm_ray.replay.mixture import Mixture, Source
from bigdm_ray.replay.store import Store
from bigdm_ray.training.cpu import cpu_seconds
from bigdm_ray.training.memory import keep_freed_memory
from bigdm_ray.training.parallel import Parallel, Replicated
from bigdm_ray.training.params import Weights
from bigdm_ray.training.prefetch import Prefetcher
from bigdm_ray.training.streams import rng, seed_torch


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. Raises UserError for a device that
    is not there."""
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
            f"--device is {name!r}, but the last GPU of this machine is cuda:{count - 1}; use that,"
            " or one before it"
        )
    return device


@dataclass(frozen=True)
class LearnerProgress:
    """What a call of `update` did: the learner step it reached, how many it took, and means of the
    metrics over them."""

    step: int
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    busy_s: float = 0.0
    cpu_s: float = 0.0  # CPU seconds of the learner


class Learner:
    """Holds the network.

    What it knows beside the network is the learner step, so that a checkpoint of both is all of it.
    """

    def __init__(
        self,
        algorithm: Supervised | Baseline,
        signatures: dict[str, Signature],
        seed: int,
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
        compile: bool = False,
        precision: str = "float32",
        mixture: Mixture | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        """`mixture` says how often each source is drawn from; without it all are drawn from alike.

        `parallel` is how the ranks share the network; without it each of them holds all of it.
        """
        self.algorithm = algorithm
        self._signatures = signatures
        self._mixture = mixture
        self.seed = seed
        self.rank, self.world = rank, world
        self._parallel = parallel or Replicated(world)
        self._prefetcher = Prefetcher[dict[str, Tensor]]()
        self.device = pick_device(device)
        keep_freed_memory()
        seed_torch(seed, "initial weights")
        self.model: nn.Module = algorithm.build(signatures).to(self.device)
        if compile and self.device.type == "cpu" and drops(self.model):
            raise UserError(
                "--machines.compile is true, but on a CPU dropout is drawn by code that is not"
                " compiled; give --algorithm.dropout 0 or a GPU"
            )
        if precision == "bf16" and not use_bfloat16(self.model):
            raise UserError(
                f"--machines.precision is bf16, but {algorithm.name} has no transformer that could"
                " gain by it; leave it out"
            )
        if compile and not compile_transformers(self.model):
            raise UserError(
                f"--machines.compile is true, but {algorithm.name} has no transformer to compile;"
                " leave it out"
            )
        self.model = self._parallel.wrap(self.model)
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
        if world > 1 and isinstance(algorithm, Baseline):
            raise UserError(f"{algorithm.name} trains on one learner; leave --learners out")

    def update(
        self,
        sources: Mapping[str, Source],
        steps: int,
        on_step: Callable[[], None] | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> LearnerProgress:
        """Take `steps` learner steps on windows of the sources; `on_step` is called after each.

        Where `enough` says so after one of them, it is the last. Raises RunFailed when the loss is
        no longer finite, or memory runs out.
        """
        began, first, cpu = time.perf_counter(), self.step, cpu_seconds()
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        try:
            for left in reversed(range(steps)):
                self._prepare(sources)
                for name, value in self._take_step(sources, last=not left).items():
                    totals[name] = totals[name] + value if name in totals else value
                    counts[name] = counts.get(name, 0) + 1
                self.step += 1
                if on_step is not None:
                    on_step()
                if enough is not None and enough():
                    break
        finally:
            self._prefetcher.settle()
        means = {name: float(value) / counts[name] for name, value in totals.items()}
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:
            raise RunFailed(
                f"{bad[0]} is {means[bad[0]]} at learner step {self.step}: training has diverged;"
                " lower --algorithm.learning-rate and go on from the last checkpoint, or start"
                " anew"
            )
        busy_s, cpu_s = time.perf_counter() - began, cpu_seconds() - cpu
        return LearnerProgress(self.step, self.step - first, means, busy_s, cpu_s)

    def _take_step(self, sources: Mapping[str, Source], last: bool) -> dict[str, Tensor]:
        """One learner step; but for the `last` of a bout, the next draw may begin beside it."""
        now, following = self.step, self.step + 1
        seed_torch(self.seed, "dropout", now, self.rank)
        try:
            batch = self._prefetcher.take(lambda: self._draw(sources, now))
            if not last and self._prefetcher.should_prefetch and self._ready(sources, following):
                self._prefetcher.begin(lambda: self._draw(sources, following))
            metrics = self._step(batch)
        except RuntimeError as error:
            if full_memory(error):
                raise RunFailed(
                    f"a learner step of {self.algorithm.batch} windows does not fit into the "
                    f"memory of {self.device}; start anew with a smaller --algorithm.batch-size "
                    "or network"
                ) from None
            raise
        self._prefetcher.note_step()
        return metrics

    def _ready(self, sources: Mapping[str, Source], step: int) -> bool:
        """Whether a step can be drawn as things are: nothing is fitted or noted before it."""
        views = self.algorithm.views(self._signatures, step)
        return (
            self._annotated
            and not self.algorithm.fits(step)
            and all(store.has_annotations(views[name]) for name, store in _stores(sources).items())
        )

    def _prepare(self, sources: Mapping[str, Source]) -> None:
        """Whole passes over the data, where they are due or what they noted holds no longer."""
        if self._ready(sources, self.step):
            return
        stores = _stores(sources)
        if self.algorithm.fits(self.step):
            seed_torch(self.seed, "fit", self.step)
            self.algorithm.fit(self.model, stores, self.step)
        for name, columns in self.algorithm.annotate(self.model, stores, self.step).items():
            stores[name].annotate(columns)
        self._annotated = True

    def _draw(self, sources: Mapping[str, Source], step: int) -> dict[str, Tensor]:
        """The batch of a step, on the CPU; in pinned memory if it goes to a GPU."""
        mixture = self._mixture or Mixture.uniform(sources)
        windows = mixture.draw(
            sources,
            self.algorithm.views(self._signatures, step),
            rng(self.seed, "draw", step),
            self.algorithm.batch,
            self.rank,
            self.world,
            step,
        )
        several = len(self._signatures) > 1
        batch = (self.algorithm.collate_several if several else self.algorithm.collate)(windows)
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        if self.device.type != "cuda":
            return tensors
        return {name: values.pin_memory() for name, values in tensors.items()}

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {
            name: values.to(self.device, non_blocking=True) for name, values in batch.items()
        }
        for name, optimizer in self.optimizers.items():
            factor = self.algorithm.learning_rate_factor(self.step, name)
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        if isinstance(self.algorithm, Baseline):
            return self.algorithm.update(self.model, self.optimizers, tensors, self.step)
        try:
            loss = self.algorithm.loss(self.model, tensors, self.step)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            why = str(error).strip().partition("\n")[0]
            raise RunFailed(
                f"torch.compile cannot compile the network here ({why}); leave --machines.compile"
                " out, or install a C++ compiler"
            ) from None
        metrics = self._parallel.reduce(self._parameters, loss)
        if self.algorithm.clip_norm is not None:
            self._parallel.clip(self._clipped, self.algorithm.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return metrics

    def weights(self, incarnation: int) -> Weights:
        """The network as arrays, for actors and files."""
        arrays = self._parallel.state(self.model, {})
        return Weights((incarnation, self.step), {name[6:]: v for name, v in arrays.items()})

    # --- saving and loading

    def state(self) -> dict[str, np.ndarray]:
        """Network and optimizers as arrays by name: `model/NAME` and
        `optimizer/WHICH/INDEX/KEY`."""
        return self._parallel.state(self.model, self.optimizers)

    def load(self, state: dict[str, np.ndarray], step: int) -> None:
        """Take over what `state` gave, at learner step `step`.

        Raises UserError for arrays that do not fit.
        """
        self._parallel.load(state, self.model, self.optimizers)
        self.step = step
        self._annotated = False


def _stores(sources: Mapping[str, Source]) -> dict[str, Store]:
    """Those of the sources that hold episodes, over which there can be whole passes."""
    return {name: source for name, source in sources.items() if isinstance(source, Store)}
