"""A generalist: one network, one set of weights, many tasks (Reed et al. 2022, arXiv 2205.06175).

Sequences of steps are continued with actions. What the task is stands before them in words: the
mission that the environment tells, or the task's name; a quarter of the sequences begin with a
prompt, steps of another episode that the same source played in the same task (section 2.3), whose
actions are read and not learned.

Departures, which open reproductions had to make too: an observation's leaf is one vector and not a
token an element (a grid of 147 symbols would fill the window in six steps), numbers are
standardised by the task's data in place of mu-law, the actions of earlier steps are not read unless
`feed_actions` says so, for a policy that is shown them repeats them, and each step counts alike
however many elements its action has. Actions are tokens, drawn element by element: cross-entropy
keeps tasks of other scales from drowning one another.

    python -m bigdm_ray.run gato MIXTURE
    python -m bigdm_ray.run gato DATASET DATASET
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Mode, Policy
from bigdm_ray.algorithms.gato.actions import choices_of
from bigdm_ray.algorithms.gato.leaves import count_tokens
from bigdm_ray.algorithms.gato.network import Form, Generalist, WindowSteps
from bigdm_ray.algorithms.gato.policy import GatoPolicy
from bigdm_ray.algorithms.gato.settings import GatoSettings
from bigdm_ray.algorithms.learned import Batch, Loss, Supervised, select_leaves
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View, Windows


@dataclass(frozen=True)
class Gato(GatoSettings, Supervised):
    """See the module; its hyperparameters are those of `GatoSettings`."""

    name: ClassVar[str] = "gato"
    several: ClassVar[bool] = True
    offline_steps: ClassVar[int] = 20_000
    fixed: ClassVar[tuple[str, ...]] = (
        "input", "mu_law", "context", "window_tokens", "text_pieces", "width", "layers", "heads",
        "bins", "elements", "vocabulary", "feed_actions", "prompt_steps",
    )  # fmt: skip
    acting: ClassVar[tuple[str, ...]] = ("cached",)

    @property
    def batch(self) -> int:
        """See Learned."""
        return self.batch_size

    @property
    def clip_norm(self) -> float | None:
        """See Supervised."""
        return self.max_norm

    @property
    def cache(self) -> bool | None:
        """See Algorithm."""
        return self.cached

    def view(self, step: int = 0) -> View:
        """Windows of as many steps as there are, of each episode as often as it is long; some with
        a prompt."""
        return View(
            self.context,
            "full",
            prompts=self.prompts,
            prompt_length=self.prompt_steps,
        )

    def views(self, signatures: Mapping[str, Signature], step: int) -> dict[str, View]:
        """See Learned: as many steps as `window_tokens` has room for."""
        return {
            task: dataclasses.replace(self.view(step), length=self.steps_of(signature))
            for task, signature in signatures.items()
        }

    def steps_of(self, signature: Signature) -> int:
        """Steps in a window of a task."""
        each = count_tokens(Form.of("", signature).leaves, self) + self.feed_actions
        return max(1, min(self.context, self.window_tokens // each))

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm. Raises UserError for a vocabulary that is not there."""
        if self.width % self.heads:
            raise UserError(
                f"--algorithm.width is {self.width}, but a multiple of --algorithm.heads "
                f"{self.heads} is expected"
            )
        return Generalist(signatures, self)

    def collate(self, windows: Mapping[str, Windows]) -> Batch:
        """See Learned. With prompts there are `prompts/NAME` `[B, prompt steps, ...]`, and
        `prompted` `[B]` says which windows have one."""
        (own,) = windows.values()
        batch = super().collate(windows)
        if own.prompts is not None and own.prompted is not None:
            prompted = np.zeros(len(own.mask), bool)
            prompted[own.prompted] = True
            for name, values in super().collate({"": own.prompts}).items():
                if name.startswith(("observations/", "actions/")) or name == "mask":
                    whole = np.zeros((len(prompted), *values.shape[1:]), values.dtype)
                    whole[prompted] = values
                    batch[f"prompts/{name}"] = whole
            batch["prompted"] = prompted
        return batch

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Deviations of the observations of each task."""
        assert isinstance(model, Generalist)
        for task, store in stores.items():
            model.scale_of(task).fit(_episodes(store))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> Loss:
        """Cross-entropy of the actions' tokens, over real steps: the mean over the elements of an
        action (equation 2, but for that)."""
        assert isinstance(model, Generalist)
        one = "mask" in batch
        found, steps_of, tasks = [], [], []
        for task in model.forms:
            for steps, prompt in _groups(batch if one else select_leaves(batch, task)):
                if len(steps.mask):
                    steps = steps.trim()
                    found.append(model.sequences(task, steps, prompt and prompt.trim()))
                    steps_of.append(steps)
                    tasks.append(task)
        nothing = next(iter(batch.values())).new_zeros((), dtype=torch.float32)
        known = [] if one else [*model.forms]  # on all ranks, whatever each has drawn
        names = [f"{task}/train/{name}" for task in known for name in ("loss", "share")]
        metrics = dict.fromkeys(names, nothing)
        if not found:
            return Loss(
                nothing + sum(p.sum() * 0 for p in model.parameters()),
                nothing,
                metrics,
                {"train/tokens": nothing, "train/padding": nothing},
            )
        said, read = model(found)
        missed = _missed(model, said, steps_of, tasks)
        total = weight = nothing
        for task, steps, lost in zip(tasks, steps_of, missed, strict=True):
            real = steps.mask.sum().float()
            total, weight = total + lost.sum(), weight + real
            if not one:
                name, share = f"{task}/train/loss", f"{task}/train/share"
                metrics[name] = metrics[name] + lost.sum().detach()
                metrics[share] = metrics[share] + real
        real_tokens = sum(float(part.real.sum()) for part in found)
        metrics["train/loss"] = total.detach()
        counts = {
            "train/tokens": nothing + real_tokens,
            "train/padding": nothing + (read - real_tokens),
        }
        return Loss(total, weight, metrics, counts)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """AdamW, whose weight decay spares embeddings, norms and biases."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        decayed: list[nn.Parameter] = []
        spared: list[nn.Parameter] = []
        for parameter in model.parameters():
            plain = parameter.ndim < 2 or id(parameter) in tables
            (spared if plain else decayed).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": spared, "weight_decay": 0.0},
        ]
        return {
            "adamw": torch.optim.AdamW(
                groups,
                self.learning_rate,
                (0.9, 0.95),
                weight_decay=self.weight_decay,
                fused=True,
            )
        }

    def learning_rate_factor(self, step: int, optimizer: str) -> float:
        """A linear rise, then a cosine where one is asked for."""
        if step < self.warm_up_steps:
            return (step + 1) / self.warm_up_steps
        if not self.cosine_steps:
            return 1.0
        whole = max(1, self.cosine_steps - self.warm_up_steps)
        share = min(1.0, (step - self.warm_up_steps) / whole)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * share))

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """Of the only task; see `policy_in`."""
        assert isinstance(model, Generalist)
        if len(model.forms) > 1:
            raise UserError("gato acts in several tasks; name the one to act in")
        return self._policy(model, mode, next(iter(model.forms)))

    def policy_in(self, model: nn.Module, mode: Mode, signature: Signature, task: str) -> Policy:
        """See Algorithm: `sample` draws actions, `mean` takes the most likely ones."""
        assert isinstance(model, Generalist)
        return self._policy(model, mode, task)

    def _policy(self, model: Generalist, mode: Mode, task: str) -> Policy:
        if mode == "plan":
            raise UserError("gato has no planner; its modes are sample and mean")
        if task not in model.forms:
            raise UserError(
                f"gato was not trained on {task}, but on {', '.join(model.forms)}; name one of"
                " these"
            )
        model.pieces.check()
        steps = self.steps_of(model.forms[task].signature)
        return GatoPolicy(model, task, mode == "mean", self.cached, steps)


def _episodes(store: Store) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Observations that were acted on and actions of each living episode."""
    for position in range(len(store.table)):
        episode = store.episode(position)
        seen = {path: values[:-1] for path, values in episode.observations.items()}
        yield seen, dict(episode.actions)


def _groups(own: dict[str, Tensor]) -> Iterator[tuple[WindowSteps, WindowSteps | None]]:
    """The windows of a task: those without a prompt, and those with one."""

    def steps(part: dict[str, Tensor], rows: Tensor | None = None) -> WindowSteps:
        seen, done = select_leaves(part, "observations"), select_leaves(part, "actions")
        if rows is None:
            return WindowSteps(seen, done, part["mask"])
        return WindowSteps(
            {path: values[rows] for path, values in seen.items()},
            {path: values[rows] for path, values in done.items()},
            part["mask"][rows],
        )

    if not own:
        return
    if "prompted" not in own:
        yield steps(own), None
        return
    yield steps(own, (~own["prompted"]).nonzero().flatten()), None
    prompted = own["prompted"].nonzero().flatten()
    yield steps(own, prompted), steps(select_leaves(own, "prompts"), prompted)


def _missed(
    model: Generalist, said: list[Tensor], steps_of: list[WindowSteps], tasks: list[str]
) -> list[Tensor]:
    """-log p of the actions of each task's windows at each real step, `[real steps]`: the mean over
    an action's elements."""
    steps_in, tokens_in, before_in, place_in, choices_in, counts = [], [], [], [], [], []
    for out, steps, task in zip(said, steps_of, tasks, strict=True):
        leaves, scales = model.forms[task].signature.actions, model.scale_of(task)
        real = steps.mask
        acted = {path: values[real] for path, values in steps.actions.items()}
        told = model.actions.said(model.actions.tokens(leaves, acted, scales.low, scales.high))
        rows, each = told.tokens.shape
        choices = torch.tensor(choices_of(leaves), device=out.device)
        steps_in.append(out[real].repeat_interleave(each, 0))
        tokens_in.append(told.tokens.flatten())
        before_in.append(told.before.flatten(0, 1))
        place_in.append(model.actions.places(each).repeat(rows, 1))
        choices_in.append(choices.repeat(rows))
        counts.append((rows, each))
    thought = model.actions.think(torch.cat(steps_in), torch.cat(before_in), torch.cat(place_in))
    missed = model.actions.losses(thought, torch.cat(tokens_in), torch.cat(choices_in))
    parts = missed.split([rows * each for rows, each in counts])
    return [part.view(shape).mean(1) for part, shape in zip(parts, counts, strict=True)]
