"""One network over tasks of any observations and actions (Reed et al. 2022, with one vector a leaf
in place of a token an element).

A sequence is what the task is, in words (the mission, or the task's name), then, sometimes, a
prompt: steps of another episode with their actions, then the steps of a window. What the
transformer says at the last token of a step's observations makes the action (`actions.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.gato.actions import ActionTokens, bounds_of, choices_of
from bigdm_ray.algorithms.gato.leaves import CLIP, ElementTokens, LeafTokens, count_tokens
from bigdm_ray.algorithms.gato.settings import GatoSettings
from bigdm_ray.algorithms.gato.words import PAD, Pieces
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.models.transformer import Packing, Transformer
from bigdm_ray.tokens.text import words_of

ALIKE = 0.8
"""Sequences attend together where the shorter is at least this much of the longer: what is padded
costs less than another call."""


@dataclass(frozen=True)
class Form:
    """What a task reads and does."""

    name: str
    signature: Signature
    leaves: dict[str, Leaf]
    """What is seen at each step."""
    texts: tuple[str, ...]
    """Texts that hold for an episode: its mission."""

    @staticmethod
    def of(name: str, signature: Signature) -> Form:
        """The form of a task."""
        seen = signature.observations.items()
        texts = tuple(path for path, leaf in seen if leaf.kind == "text" and leaf.per == "episode")
        return Form(name, signature, {p: leaf for p, leaf in seen if p not in texts}, texts)

    @property
    def words(self) -> bytes:
        """The task's name in words: what it is, where no mission tells it."""
        return words_of(self.name).encode()

    def instructions(self, observations: Mapping[str, np.ndarray]) -> list[bytes]:
        """What each of n rows is told, of texts `[n, bytes]`."""
        if not self.texts:
            return [self.words] * len(next(iter(observations.values())))
        columns = [np.ascontiguousarray(observations[path]) for path in self.texts]
        return [
            b" ".join(column[row].tobytes().rstrip(b"\0") for column in columns)
            for row in range(len(columns[0]))
        ]


class Scales(nn.Module):
    """What a task's numbers are measured in: deviations of its data, bounds of its actions."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.sizes = {p: leaf.size for p, leaf in form.leaves.items() if leaf.kind == "tensor"}
        width = sum(self.sizes.values())
        low, high, free = bounds_of(form.signature.actions)
        self.free = torch.from_numpy(free)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("low", torch.from_numpy(low))
        self.register_buffer("high", torch.from_numpy(high))

    @torch.no_grad()
    def fit(self, episodes: Iterable[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> None:
        """Take mean and deviation of the observations, and the least and greatest of actions that
        have no bounds, over observations and actions by leaf, `[T, ...]` of each episode."""
        count, width = 0, len(self.mean)
        total, squares = np.zeros(width), np.zeros(width)
        least, most = np.full(len(self.low), np.inf), np.full(len(self.low), -np.inf)
        for seen, done in episodes:
            if width:
                rows = np.concatenate(
                    [np.asarray(seen[p], np.float64).reshape(-1, n) for p, n in self.sizes.items()],
                    1,
                )
                count, total, squares = (
                    count + len(rows),
                    total + rows.sum(0),
                    squares + (rows**2).sum(0),
                )
            if self.free.any():
                acted = np.concatenate(
                    [np.asarray(v).reshape(len(v), -1) for v in done.values()], 1
                )
                least, most = np.minimum(least, acted.min(0)), np.maximum(most, acted.max(0))
        if count:
            mean = total / count
            self.mean.copy_(torch.from_numpy(mean))
            self.std.copy_(torch.from_numpy(np.sqrt(np.maximum(squares / count - mean**2, 0))))
        free = self.free.to(self.low.device) & torch.from_numpy(np.isfinite(least)).to(
            self.low.device
        )
        if bool(free.any()):
            low, high = (torch.from_numpy(v).float().to(self.low.device) for v in (least, most))
            self.low.copy_(torch.where(free, low, self.low))
            self.high.copy_(torch.where(free, torch.maximum(high, low + 1e-6), self.high))

    def scale(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leaves of numbers `[B, K, ...]` in deviations `[B, K, size]`; an element that does not
        vary is 0."""
        out, at = {}, 0
        for path, size in self.sizes.items():
            flat = values[path].flatten(2) if values[path].ndim > 2 else values[path][..., None]
            mean, std = self.mean[at : at + size], self.std[at : at + size]
            still = std <= 1e-6 * (1 + mean.abs())
            far = (flat.float() - mean) / std.clamp(min=1e-12)
            out[path] = torch.where(still, 0.0, far).clamp(-CLIP, CLIP)
            at += size
        return out


class WindowSteps(NamedTuple):
    """Windows of one task, as the network reads them."""

    observations: dict[str, Tensor]  # [B, K, ...]
    actions: dict[str, Tensor]  # [B, K, ...]
    mask: Tensor  # [B, K] bool

    def trim(self) -> WindowSteps:
        """Without the steps behind the last that is real in any window."""
        most = max(
            1,
            int(
                (self.mask * torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)).max()
            ),
        )
        if most == self.mask.shape[1]:
            return self
        seen = {path: values[:, :most] for path, values in self.observations.items()}
        done = {path: values[:, :most] for path, values in self.actions.items()}
        return WindowSteps(seen, done, self.mask[:, :most])


class Sequences(NamedTuple):
    """Embedded sequences of one task."""

    tokens: Tensor  # [B, T, width]
    real: Tensor  # [B, T] bool
    at: Tensor  # [K], where the steps' actions are said


class Generalist(nn.Module):
    """See the module."""

    def __init__(self, signatures: Mapping[str, Signature], settings: GatoSettings) -> None:
        super().__init__()
        width = settings.width
        self.settings = settings
        self.forms = {name: Form.of(name, one) for name, one in signatures.items()}
        self.numbers_of = {name: number for number, name in enumerate(self.forms)}
        self.scales = nn.ModuleList(Scales(form) for form in self.forms.values())
        self.pieces = Pieces(settings.vocabulary, settings.text_pieces)
        self.words = nn.Embedding(self.pieces.size, width)
        self.word_place = nn.Embedding(settings.text_pieces, width)
        seen = [form.leaves for form in self.forms.values()]
        self.leaves: LeafTokens | ElementTokens
        if settings.input == "tokens":
            self.leaves = ElementTokens(seen, width, settings.mu_law)
        else:
            self.leaves = LeafTokens(seen, settings.elements, width)
        most = max(settings.context, settings.prompt_steps)
        self.step_place = nn.Embedding(most, width)
        self.kind = nn.Embedding(3, width)  # words, steps of a prompt, steps
        choices = [
            count for form in self.forms.values() for count in choices_of(form.signature.actions)
        ]
        self.actions = ActionTokens(settings.bins, max([1, *choices]), width)
        self.transformer = Transformer(
            width,
            settings.layers,
            settings.heads,
            1,  # places are embedded here
            inner=8 * width // 3 // 16 * 16,
            activation="silu",
            dropout=settings.dropout,
            norm="rms",
            gated=True,
        )
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def scale_of(self, task: str) -> Scales:
        """The scales of a task."""
        found = self.scales[self.numbers_of[task]]
        assert isinstance(found, Scales)
        return found

    def step_tokens(self, task: str, acted: bool) -> int:
        """Tokens of a step, with its action where that is read."""
        return count_tokens(self.forms[task].leaves, self.settings) + acted

    # --- what is read

    def read_words(self, texts: list[bytes]) -> tuple[Tensor, Tensor, Tensor]:
        """Texts as tokens `[n, p, width]`, which of them are real `[n, p]`, and the mean of each
        text's pieces `[n, width]`."""
        device = self.words.weight.device
        pieces = torch.from_numpy(self.pieces.rows(texts)).to(device)
        real = pieces != PAD
        found = self.words(pieces.clamp(min=0)) * real[..., None]
        mean = found.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        place = self.word_place.weight[: pieces.shape[1]]
        return found + place + self.kind.weight[0], real, mean

    def read_steps(self, task: str, steps: WindowSteps, told: Tensor, acted: bool) -> Tensor:
        """Steps of windows `[B, K, ...]` as tokens `[B, K, tokens, width]`, their actions among
        them where they are `acted`; without places in time."""
        form, scales = self.forms[task], self.scale_of(task)
        texts = {
            path: self._mean_text(steps.observations[path])
            for path, leaf in form.leaves.items()
            if leaf.kind == "text"
        }
        tokens: Tensor = self.leaves(
            form.leaves, steps.observations, scales.scale(steps.observations), told, texts
        )
        if acted:
            said = self.actions.tokens(
                form.signature.actions, steps.actions, scales.low, scales.high
            )
            tokens = torch.cat([tokens, self.actions.read(said)[:, :, None]], 2)
        return tokens

    def _mean_text(self, values: Tensor) -> Tensor:
        rows = values.flatten(0, 1).cpu().numpy()
        _, _, mean = self.read_words([row.tobytes() for row in rows])
        return mean.view(*values.shape[:2], -1)

    def sequences(
        self, task: str, steps: WindowSteps, prompt: WindowSteps | None = None
    ) -> Sequences:
        """Windows of a task, all behind a prompt or none, as sequences."""
        form, fed = self.forms[task], self.settings.feed_actions
        seen = {path: steps.observations[path][:, 0].cpu().numpy() for path in form.texts}
        rows = len(steps.mask)
        texts = form.instructions(seen) if form.texts else [form.words] * rows
        words, real, told = self.read_words(texts)
        parts, reals = [words], [real]
        if prompt is not None:
            shown = self.place(self.read_steps(task, prompt, told, True), 1)
            parts.append(shown.flatten(1, 2))
            reals.append(prompt.mask.repeat_interleave(shown.shape[2], 1))
        before = sum(part.shape[1] for part in parts)
        tokens = self.place(self.read_steps(task, steps, told, fed), 2)
        parts.append(tokens.flatten(1, 2))
        reals.append(steps.mask.repeat_interleave(tokens.shape[2], 1))
        each, last = tokens.shape[2], tokens.shape[2] - 1 - fed
        at = before + last + each * torch.arange(tokens.shape[1], device=tokens.device)
        return Sequences(torch.cat(parts, 1), torch.cat(reals, 1), at)

    def place(self, tokens: Tensor, kind: int) -> Tensor:
        """Tokens of the first steps of a window, or of a prompt, `[B, K, t, width]` with their
        places in time."""
        places = self.step_place.weight[: tokens.shape[1]]
        out: Tensor = tokens + places[:, None] + self.kind.weight[kind]
        return out

    # --- what is said

    def forward(self, found: list[Sequences]) -> tuple[list[Tensor], int]:
        """What the transformer says where actions are said, `[B, K, width]` of each, and how many
        tokens were read, padding included.

        What is not real is left out first; then sequences of all tasks go through the transformer
        together, the longest first, so that those which are nearly as long are padded to one length
        where it attends.
        """
        counts = torch.cat([one.real.sum(1) for one in found])
        flat = torch.cat([one.tokens[one.real] for one in found])  # row after row
        lengths, order = counts.sort(descending=True)
        ends = lengths.cumsum(0)
        shifts = (counts.cumsum(0) - counts)[order] - (ends - lengths)
        place = torch.arange(len(flat), device=flat.device)
        groups = _groups_of(lengths)
        packed = flat[place + shifts.repeat_interleave(lengths)]
        said = self.transformer(packed, packing=Packing(groups))
        starts = torch.empty_like(counts)
        starts[order] = ends - lengths
        out, row = [], 0
        for one in found:
            behind = one.real.cumsum(1)[:, one.at] - 1
            first = starts[row : row + len(one.real), None]
            out.append(said[(first + behind).clamp(0, len(said) - 1)])
            row += len(one.real)
        return out, sum(len(group) * int(group[0]) for group in groups)


def _groups_of(lengths: Tensor) -> list[Tensor]:
    """Descending lengths, those together that are padded to one length."""
    lengths = lengths[lengths > 0]
    known, cuts, begin = lengths.tolist(), [], 0
    for row, length in enumerate(known):
        if length < ALIKE * known[begin]:
            cuts.append(row)
            begin = row
    return list(lengths.tensor_split(cuts))
