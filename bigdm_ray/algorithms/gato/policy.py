"""How a generalist acts: on what the task is, a prompt, and its last steps.

A row's memory is the tokens of its sequence, and the keys and values that the transformer made of
them. When the window is full the older half of its steps goes, and what is left is read anew: the
cache always equals what the whole window would give.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.algorithms.base import Columns, Policy, Prompts, State, device_of
from bigdm_ray.algorithms.gato.network import Generalist, WindowSteps
from bigdm_ray.envs.signature import SpaceMismatch
from bigdm_ray.envs.task import canonical_name
from bigdm_ray.errors import UserError
from bigdm_ray.models.transformer import Cache
from bigdm_ray.replay.episode import Episode


class GatoPolicy(Policy):
    """Acts in one task."""

    def __init__(
        self, model: Generalist, task: str, greedy: bool, cached: bool, context: int
    ) -> None:
        """`context` are the steps that are looked back on, this one included."""
        self.model, self.task, self.greedy = model, task, greedy
        self.device = device_of(model)
        self.form, self.scales = model.forms[task], model.scale_of(task)
        settings = model.settings
        self.fed, self.cached = int(settings.feed_actions), cached
        self.context = context
        self.each = model.step_tokens(task, settings.feed_actions)
        self.shown = settings.prompt_steps * model.step_tokens(task, True)
        self.head = settings.text_pieces + self.shown
        self.slots = self.head + self.context * self.each
        self.uniforms = 0 if greedy else len(self.scales.low)

    def start(self, n: int, prompts: Prompts | None = None) -> State:
        """See Policy. A prompt is an episode of this task; its first steps are read, and so that a
        demonstration tells how it ends, as many of its last ones as there is room for are taken
        where it is longer (Reed et al. 2022, section 2.3, takes either).

        Raises UserError for an episode of another task, by its name or by its spaces.
        """
        state = self.empty(n)
        for row, prompt in enumerate(prompts or ()):
            if prompt is not None:
                self._show(state, row, prompt)
        return state

    def _show(self, state: State, row: int, prompt: Episode) -> None:
        played = canonical_name(prompt.task)
        if played not in ("", self.task, canonical_name(self.task)):
            raise UserError(
                f"the prompt is no episode of {self.task}, but of {played}; give one that was"
                " played there"
            )
        most = self.model.settings.prompt_steps
        taken = slice(max(0, prompt.length - most), prompt.length)
        signature = self.form.signature
        try:
            signature.check({p: v[:-1][taken] for p, v in prompt.observations.items()})
        except SpaceMismatch as error:
            raise UserError(
                f"the prompt is no episode of {self.task}: {error}; give one that was played there"
            ) from None
        if prompt.actions.keys() != signature.actions.keys() or any(
            prompt.actions[path].shape[1:] != leaf.shape for path, leaf in signature.actions.items()
        ):
            raise UserError(
                f"the prompt is no episode of {self.task}: its actions are other ones; give one"
                " that was played there"
            )
        count = min(most, prompt.length)
        for path in self.form.leaves:
            shown = prompt.observations[path][:-1][taken]
            state[f"prompt/observations/{path}"][row, :count] = shown
        for path in signature.actions:
            state[f"prompt/actions/{path}"][row, :count] = prompt.actions[path][taken]
        state["prompted"][row] = count

    def empty(self, n: int) -> State:
        """See Policy."""
        width = self.model.settings.width
        steps = self.model.settings.prompt_steps
        cache = self.model.transformer.empty(n, self.slots)
        groups = {"observations": self.form.leaves, "actions": self.form.signature.actions}
        shown: State = {
            f"prompt/{group}/{path}": np.zeros((n, steps, *leaf.shape), leaf.dtype)
            for group, leaves in groups.items()
            for path, leaf in leaves.items()
        }
        return shown | {
            "tokens": torch.zeros(n, self.context * self.each, width, device=self.device),
            "front": torch.zeros(n, self.head, width, device=self.device),
            "real": np.zeros((n, self.head), bool),
            "told": torch.zeros(n, width, device=self.device),
            "count": np.zeros(n, np.int64),
            "prompted": np.zeros(n, np.int64),  # steps of the prompt
            "keys": cache.keys.transpose(0, 1).contiguous(),
            "values": cache.values.transpose(0, 1).contiguous(),
        }

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
        self._begin(state, observations, np.flatnonzero(first))
        again = first.copy()
        again |= self._slide(state)
        now = state["count"]  # the place of this step in the window
        steps = WindowSteps(
            {
                p: torch.from_numpy(np.ascontiguousarray(observations[p]))[:, None].to(self.device)
                for p in self.form.leaves
            },
            {},
            torch.ones(len(first), 1, dtype=torch.bool, device=self.device),
        )
        raw = self.model.read_steps(self.task, steps, state["told"], False)[:, 0]
        rows = np.arange(len(first))
        at = torch.from_numpy(now[:, None] * self.each + np.arange(raw.shape[1]))
        state["tokens"][torch.from_numpy(rows)[:, None], at] = raw
        said = self._read(state, again | (not self.cached))
        chance = None if self.greedy else torch.from_numpy(uniforms).to(self.device)
        actions, told = self.model.actions.act(
            self.form.signature.actions, said, self.scales.low, self.scales.high, chance
        )
        if self.fed:
            place = torch.from_numpy((now + 1) * self.each - 1)
            state["tokens"][torch.from_numpy(rows), place] = self.model.actions.read(told)
        state["count"] = now + 1
        return {path: value.cpu().numpy() for path, value in actions.items()}, state

    def _begin(self, state: State, observations: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """The rows whose first step this is: what they are told and shown."""
        if not len(rows):
            return
        state["count"][rows] = 0
        here = torch.from_numpy(rows).to(self.device)
        texts = (
            self.form.instructions({path: observations[path][rows] for path in self.form.texts})
            if self.form.texts
            else [self.form.words] * len(rows)
        )
        words, real, told = self.model.read_words(texts)
        state["front"][here, : words.shape[1]] = words
        state["told"][here] = told
        state["real"][rows] = False
        state["real"][rows, : words.shape[1]] = real.cpu().numpy()
        for row in rows[state["prompted"][rows] > 0].tolist():
            self._read_prompt(state, row)

    def _read_prompt(self, state: State, row: int) -> None:
        """Put the tokens of a row's prompt before its steps."""
        count = int(state["prompted"][row])

        def shown(group: str) -> dict[str, Tensor]:
            held = f"prompt/{group}/"
            return {
                name.removeprefix(held): torch.from_numpy(values[row, :count])[None].to(self.device)
                for name, values in state.items()
                if name.startswith(held)
            }

        real = torch.ones(1, count, dtype=torch.bool, device=self.device)
        steps = WindowSteps(shown("observations"), shown("actions"), real)
        told = state["told"][row : row + 1]
        tokens = self.model.place(self.model.read_steps(self.task, steps, told, True), 1)
        begin = self.model.settings.text_pieces
        end = begin + tokens.shape[1] * tokens.shape[2]
        state["front"][row, begin:end] = tokens.flatten(1, 2)[0]
        state["real"][row, begin:end] = True

    def _slide(self, state: State) -> np.ndarray:
        """Drop the older half of full windows; which rows these were."""
        full = state["count"] >= self.context
        if full.any():
            rows, kept = torch.from_numpy(np.flatnonzero(full)), self.context // 2
            gone = (self.context - kept) * self.each
            moved = state["tokens"][rows, gone:].clone()
            state["tokens"][rows, : kept * self.each] = moved
            state["count"][full] = kept
        return np.asarray(full)

    def _read(self, state: State, again: np.ndarray) -> Tensor:
        """What the transformer says of this step `[n, width]`; rows that are read `again` are read
        whole, of the others only what is new."""
        out: Tensor = state["tokens"].new_zeros(len(again), state["tokens"].shape[-1])
        for whole in (True, False):
            rows = np.flatnonzero(again == whole)
            if len(rows):
                out[torch.from_numpy(rows)] = self._read_rows(state, rows, whole)
        return out

    def _read_rows(self, state: State, rows: np.ndarray, whole: bool) -> Tensor:
        here = torch.from_numpy(rows).to(self.device)
        now = torch.from_numpy(state["count"][rows]).to(self.device)
        last = (
            self.head + (now + 1) * self.each - 1 - self.fed
        )  # the newest observation's last token
        seen = self.each - self.fed
        most = int(now.max()) + 1
        steps = state["tokens"][here, : most * self.each].unflatten(1, (most, self.each))
        placed = self.model.place(steps, 2).flatten(1, 2)
        if whole:
            tokens = torch.cat([state["front"][here], placed], 1)
            slots = torch.arange(tokens.shape[1], device=self.device).expand(len(rows), -1)
        else:  # with the action of the step before, where actions are read
            offsets = torch.arange(-self.fed, seen, device=self.device)
            slots = self.head + now[:, None] * self.each + offsets
            tokens = placed.gather(
                1, (slots - self.head)[..., None].expand(-1, -1, placed.shape[-1])
            )
        keys, values = (state[name][here].transpose(0, 1) for name in ("keys", "values"))
        cache = Cache(keys.contiguous(), values.contiguous())
        real = torch.ones(len(rows), self.slots, dtype=torch.bool, device=self.device)
        real[:, : self.head] = torch.from_numpy(state["real"][rows]).to(self.device)
        place = torch.arange(self.slots, device=self.device)
        look = (place <= slots[..., None]) & real[:, None]
        look |= place == slots[..., None]
        said: Tensor = self.model.transformer.scatter(tokens, cache, slots, look)
        for name, made in (("keys", cache.keys), ("values", cache.values)):
            state[name][here] = made.transpose(0, 1)
        at = (slots == last[:, None]).long().argmax(1)
        return said[torch.arange(len(rows), device=self.device), at]
