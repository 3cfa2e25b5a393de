"""Retrieve and play: the action of the nearest demonstration state of the task. Nothing is trained.

The column without learning that Sridhar et al. 2024 (REGENT, arXiv 2412.04759, "retrieve and play")
compare generalists with. Of each task up to `states` states of its dataset are kept, drawn
uniformly over all time steps without repetition, with the actions that were taken in them; they are
the network's buffers, so a run folder needs no dataset to act.

What is nearest: (1) where the task has texts (a mission), only states with the same texts count;
where there is none, those whose words differ least (word by word, through 256 buckets). (2) Of
these the smallest sum of: squared differences of `tensor` elements, in deviations of the kept
states (elements that do not vary there are left out); the number of symbols that differ, of
`discrete` leaves and grids; squared differences of pixels from 0 to 1, of pictures that are
averaged down to at most 16 pixels a side. Of states that are equally near one is drawn: who always
takes the first walks in circles, where an observation does not tell all. Acting is brute force in
torch.

    python -m bigdm_ray.run retrieve DATASET
    python -m bigdm_ray.run retrieve DATASET DATASET --evaluations.final-episodes 10
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Columns, Mode, Policy, Presets, State
from bigdm_ray.baselines.base import Baseline
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting

BUCKETS = 256
"""Places that the words of a text are hashed into."""
SIDE = 16
"""Pixels that a picture has on a side, at most, when it is compared."""


class Memory(nn.Module):
    """The kept states of a task and their actions, as buffers of a fixed size."""

    vectors: Tensor  # [states, V] float32: tensors in deviations, pixels from 0 to 1
    symbols: Tensor  # [states, S] of `discrete` leaves and grids
    texts: Tensor  # [states] int64, a hash of all texts
    words: Tensor  # [states, BUCKETS] uint8, 1 where a word of them falls
    mean: Tensor
    scale: Tensor
    count: Tensor  # [] int64, how many of `states` there are

    def __init__(self, signature: Signature, states: int) -> None:
        super().__init__()
        self.signature = signature
        leaves = signature.observations.items()
        self._tensors = {path: leaf for path, leaf in leaves if leaf.kind == "tensor"}
        self._images = {path: leaf for path, leaf in leaves if leaf.kind == "image"}
        self._texts = [path for path, leaf in leaves if leaf.kind == "text"]
        other = {*self._tensors, *self._images, *self._texts}
        self._symbols = {path: leaf for path, leaf in leaves if path not in other}
        width = sum(leaf.size for leaf in self._tensors.values())
        pixels = sum(np.prod(_shrunk(leaf)) for leaf in self._images.values())
        count = sum(leaf.size for leaf in self._symbols.values())
        small = all(
            leaf.dtype == "uint8" or max(leaf.choices, default=257) <= 256
            for leaf in self._symbols.values()
        )
        text = states if self._texts else 0
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("vectors", torch.zeros(states, width + int(pixels)))
        kind = torch.uint8 if small else torch.int32
        self.register_buffer("symbols", torch.zeros(states, count, dtype=kind))
        self.register_buffer("texts", torch.zeros(text, dtype=torch.int64))
        self.register_buffer("words", torch.zeros(text, BUCKETS, dtype=torch.uint8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for number, leaf in enumerate(signature.actions.values()):
            made = torch.zeros(states, *leaf.shape, dtype=getattr(torch, leaf.dtype))
            self.register_buffer(f"action{number}", made)

    @torch.no_grad()
    def fill(self, store: Store) -> None:
        """Keep states of a store: all of them, or so many drawn with torch's chance."""
        total, most = int(store.table.lengths.sum()), len(self.vectors)
        picks = torch.randperm(total)[:most].sort().values.numpy()
        ends = np.cumsum(store.table.lengths)
        parts: list[dict[str, np.ndarray]] = []
        for position in np.unique(np.searchsorted(ends, picks, side="right")):
            first = ends[position] - store.table.lengths[position]
            mine = picks[(picks >= first) & (picks < ends[position])] - first
            episode = store.episode(int(position))
            own = {f"observations/{p}": v[mine] for p, v in episode.observations.items()}
            parts.append(own | {f"actions/{p}": v[mine] for p, v in episode.actions.items()})
        kept = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        seen = {path: kept[f"observations/{path}"] for path in self.signature.observations}
        n = len(picks)
        self.count.fill_(n)
        flat = self._flat(seen)
        if len(self.mean):
            mean, std = flat.double().mean(0), flat.double().std(0, correction=0)
            self.mean.copy_(mean)
            still = std <= 1e-6 * (1 + mean.abs())
            self.scale.copy_(torch.where(still, 0.0, 1 / std.clamp(min=1e-30)))
        vectors, symbols = self.read(seen)
        self.vectors[:n] = vectors.to(self.vectors.device)
        self.symbols[:n] = symbols.to(self.symbols.device)
        if self._texts:
            texts, words = self.read_texts(seen)
            self.texts[:n] = texts.to(self.texts.device)
            self.words[:n] = words.to(self.words.device)
        for number, path in enumerate(self.signature.actions):
            buffer = self.get_buffer(f"action{number}")
            buffer[:n] = torch.from_numpy(kept[f"actions/{path}"]).to(buffer.device)

    def _flat(self, seen: Mapping[str, np.ndarray]) -> Tensor:
        n = len(next(iter(seen.values())))
        parts = [
            torch.from_numpy(np.asarray(seen[path], np.float32).reshape(n, -1))
            for path in self._tensors
        ]
        return torch.cat(parts, 1) if parts else torch.zeros(n, 0)

    def read(self, seen: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Observations by leaf `[n, ...]` as vectors `[n, V]` and symbols `[n, S]`, where the
        memory is."""
        where = self.vectors.device
        parts = [(self._flat(seen).to(where) - self.mean) * self.scale]
        for path, leaf in self._images.items():
            pixels = torch.from_numpy(np.asarray(seen[path])).to(where).float() / 255
            size = _shrunk(leaf)[1:]
            parts.append(nn.functional.adaptive_avg_pool2d(pixels, size).flatten(1))
        n = len(parts[0])
        rows = [np.asarray(seen[path]).reshape(n, -1) for path in self._symbols]
        symbols = np.concatenate(rows, 1) if rows else np.zeros((n, 0), np.uint8)
        return torch.cat(parts, 1), torch.from_numpy(symbols).to(where, self.symbols.dtype)

    def read_texts(self, seen: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Hash `[n]` and words `[n, BUCKETS]` of the texts of observations, where the memory is."""
        columns = [np.asarray(seen[path]) for path in self._texts]
        texts = [
            b"\0".join(column[row].tobytes().rstrip(b"\0") for column in columns)
            for row in range(len(columns[0]))
        ]
        hashes = {text: hashlib.blake2b(text, digest_size=8).digest() for text in {*texts}}
        words = {text: np.zeros(BUCKETS, np.uint8) for text in hashes}
        for text, row in words.items():
            for word in text.lower().replace(b"\0", b" ").replace(b",", b" ").split():
                row[zlib.crc32(word) % BUCKETS] = 1
        told = np.array([int.from_bytes(hashes[text], "little", signed=True) for text in texts])
        where = self.vectors.device
        bags = np.stack([words[text] for text in texts])
        return torch.from_numpy(told).to(where), torch.from_numpy(bags).to(where)

    def nearest(self, seen: Mapping[str, np.ndarray], chance: np.ndarray | None = None) -> Tensor:
        """The place `[n]` of the nearest kept state of each observation `[n, ...]`: of those that
        are equally near the one that `chance` `[n]` in [0, 1) names, the first without it."""
        count = int(self.count)
        vectors, symbols = self.read(seen)
        told = self.read_texts(seen) if self._texts else None
        found = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        for row in range(len(vectors)):
            rows = None if told is None else self._alike(told[0][row], told[1][row], count)
            kept, marks = self.vectors[:count], self.symbols[:count]
            if rows is not None:
                kept, marks = kept[rows], marks[rows]
            far = ((kept - vectors[row]) ** 2).sum(1) + (marks != symbols[row]).sum(1)
            at = far.argmin()
            if chance is not None:
                equal = (far == far[at]).nonzero().flatten()
                at = equal[int(chance[row] * len(equal))]
            found[row] = at if rows is None else rows[at]
        return found

    def _alike(self, text: Tensor, words: Tensor, count: int) -> Tensor | None:
        """The places of the states that were told the same, else what is nearest to it; None for
        all."""
        same = self.texts[:count] == text
        if not bool(same.any()):
            apart = (self.words[:count] != words).sum(1)
            same = apart == apart.min()
        return None if bool(same.all()) else same.nonzero().flatten()


def _shrunk(leaf: Leaf) -> tuple[int, int, int]:
    """The shape of a picture as it is compared."""
    channels, height, width = leaf.shape
    return channels, min(height, SIDE), min(width, SIDE)


class Memories(nn.Module):
    """A memory for each task, by its name."""

    def __init__(self, signatures: Mapping[str, Signature], states: int) -> None:
        super().__init__()
        self.tasks = list(signatures)
        self.parts = nn.ModuleList(Memory(signature, states) for signature in signatures.values())

    def of(self, task: str) -> Memory:
        """The memory of a task."""
        part = self.parts[self.tasks.index(task)]
        assert isinstance(part, Memory)
        return part


class RetrievePolicy(Policy):
    """Acts as was done in the nearest kept state, and remembers nothing."""

    def __init__(self, memory: Memory, draws: bool) -> None:
        """`draws`: one of those that are equally near, else the first."""
        self._memory, self._draws = memory, draws
        self.uniforms = 1

    @torch.inference_mode()
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
        places = self._memory.nearest(observations, uniforms[:, 0] if self._draws else None)
        return {
            path: self._memory.get_buffer(f"action{number}")[places].cpu().numpy()
            for number, path in enumerate(self._memory.signature.actions)
        }, state


@dataclass(frozen=True)
class Retrieve(Baseline):
    """Settings of retrieve and play."""

    name: ClassVar[str] = "retrieve"
    several: ClassVar[bool] = True
    offline_steps: ClassVar[int] = 1
    fixed: ClassVar[tuple[str, ...]] = ("states",)
    presets: ClassVar[Presets] = {"*": {"default": {"evaluations.episodes": 1}}}

    states: int = setting(
        20_000,
        "states that are kept of each task, at most, drawn uniformly over its time steps",
        low=1,
        high=10_000_000,
    )

    @property
    def batch(self) -> int:
        """One step: it is not looked at."""
        return 1

    def view(self, step: int = 0) -> View:
        """See Learned."""
        return View()

    def build(self, signatures: Mapping[str, Signature]) -> nn.Module:
        """See Algorithm: empty memories."""
        return Memories(signatures, self.states)

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """None: nothing is trained."""
        return {}

    def fit(self, model: nn.Module, stores: Mapping[str, Store], step: int) -> None:
        """Fill the memories, once."""
        assert isinstance(model, Memories)
        for task, store in stores.items():
            model.of(task).fill(store)

    def update(
        self,
        model: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        batch: dict[str, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """See Baseline: nothing, but that it tells how many states are kept."""
        assert isinstance(model, Memories)
        counts = [model.of(task).count.double() for task in model.tasks]
        return {"train/states": torch.stack(counts).sum()}

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """Of the only task; see `policy_in`. `sample` draws one of the states that are equally
        near, `mean` takes the first."""
        assert isinstance(model, Memories)
        if len(model.tasks) > 1:
            raise UserError("retrieve keeps states of several tasks; name the one to act in")
        return self._policy(model, mode, model.tasks[0])

    def policy_in(self, model: nn.Module, mode: Mode, signature: Signature, task: str) -> Policy:
        """See Algorithm."""
        assert isinstance(model, Memories)
        return self._policy(model, mode, task)

    def _policy(self, model: Memories, mode: Mode, task: str) -> Policy:
        if mode == "plan":
            raise UserError("retrieve has no planner; its modes are sample and mean")
        return RetrievePolicy(model.of(task), mode == "sample")


ALGORITHM = Retrieve
