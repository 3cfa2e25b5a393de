"""How a Decision Transformer acts: on its last K steps, read anew at each step or kept as keys and
values.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.algorithms.base import Columns, Policy, State, device_of
from bigdm_ray.algorithms.dt.network import DecisionTransformer
from bigdm_ray.models.transformer import Cache
from bigdm_ray.replay.windows import merge_stack, push_frame


class DtPolicy(Policy):
    """Acts on the last K steps, whose tokens it remembers and reads anew at each step."""

    def __init__(
        self, model: DecisionTransformer, stack: int, context: int, greedy: bool, held: bool
    ) -> None:
        """`held`: the desired return stays what it was, for rewards that come at the end only
        (section 5.6).
        """
        self.model = model
        self.device = device_of(model)
        self.context = context
        self.greedy = greedy
        self.held = held
        self.uniforms = model.head.uniforms
        self.width, self.tokens = model.width, model.tokens
        self._frames = {
            path: leaf for path, leaf in model.embed_state.images.leaves.items() if stack > 1
        }
        self._stack = stack

    def empty(self, n: int) -> State:
        """See Policy.

        Memory is the tokens of the window (the newest step last), how many steps it holds, and the
        time.
        """
        frames = {
            f"frames/{path}": np.zeros((n, self._stack, *leaf.shape), np.uint8)
            for path, leaf in self._frames.items()
        }
        return frames | {
            "tokens": torch.zeros(n, self.tokens * self.context, self.width, device=self.device),
            "count": np.zeros(n, np.int64),
            "time": np.zeros(n, np.int64),
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
        state = state | {
            "time": np.where(first, 0, state["time"] + 1),
            "count": np.where(first, 1, np.minimum(state["count"] + 1, self.context)),
        }
        moment = self.model.moment(self._tensor(state["time"]))
        desired = self._tensor(commands["desired_return"])
        tokens = torch.stack(
            self.model.seen_tokens(desired, self._see(state, observations, first)), 1
        )
        embedding = self.model.modulate(
            self.read(state, self.model.add_time(tokens, moment)), desired
        )
        actions = self.model.head.act(
            self.model.head(embedding), None if self.greedy else self._tensor(uniforms)
        )
        self.remember(
            state, self.model.add_time(self.model.embed_action(actions)[:, None], moment)[:, 0]
        )
        return {path: value.cpu().numpy() for path, value in actions.items()}, state

    def after(self, commands: Columns, rewards: np.ndarray, max_return: float | None) -> Columns:
        """See Policy."""
        return commands if self.held else super().after(commands, rewards, max_return)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _see(self, state: State, observations: dict[str, np.ndarray], first: np.ndarray) -> Tensor:
        seen = {path: self._tensor(values) for path, values in observations.items()}
        for path in self._frames:
            state[f"frames/{path}"] = push_frame(state[f"frames/{path}"], observations[path], first)
            seen[path] = self._tensor(merge_stack(state[f"frames/{path}"]))
        out: Tensor = self.model.embed_state(seen)
        return out

    def read(self, state: State, tokens: Tensor) -> Tensor:
        """Take in return and state of this step `[n, 2, width]`, or the state alone `[n, 1,
        width]`; what the transformer makes of the state's token `[n, width]`.
        """
        count = state["count"]
        window = torch.cat(
            [
                state["tokens"][:, self.tokens :],
                tokens,
                tokens.new_zeros(len(tokens), 1, self.width),
            ],
            1,
        )
        state["tokens"] = window
        most = int(count.max())
        held = window[:, window.shape[1] - self.tokens * most : -1]
        if self.model.place is not None:
            return self._read_placed(state, held, most)
        mask = None
        if count.min() < most:
            mask = (
                torch.arange(self.tokens * most - 1, device=self.device)
                >= self._tensor(self.tokens * (most - count))[:, None]
            )
        out: Tensor = self.model.transformer(held, slice(-1, None), mask)[:, 0]
        return out

    def _read_placed(self, state: State, held: Tensor, most: int) -> Tensor:
        """With places in the window, which begin where the row's window begins: the rows go by the
        number of steps they hold.
        """
        out = held.new_empty(len(held), held.shape[-1])
        for count in np.unique(state["count"]):
            rows = self._tensor(np.flatnonzero(state["count"] == count))
            first = self._tensor(state["time"])[rows] - int(count) + 1
            whole = self.model.add_positions(held[rows, self.tokens * (most - int(count)) :], first)
            out[rows] = self.model.transformer(whole, slice(-1, None))[:, 0]
        return out

    def remember(self, state: State, token: Tensor) -> None:
        """Note the action's token `[n, width]` in the memory, which is this step's own."""
        state["tokens"][:, -1] = token


class CachedPolicy(DtPolicy):
    """Keeps the keys and values of the window in place of its tokens, so that a step costs its own
    tokens alone.

    Equal to DtPolicy until the window slides; from then on tokens remember what has left the
    window, which training never showed.
    """

    def empty(self, n: int) -> State:
        """See Policy.

        Memory is a ring of keys and values, the last action's token, how many steps are held, and
        the time.
        """
        cache = self.model.transformer.empty(n, self.tokens * self.context)
        state = super().empty(n)
        del state["tokens"]
        return state | {
            "action": torch.zeros(n, self.width, device=self.device),
            "keys": cache.keys.transpose(0, 1).contiguous(),
            "values": cache.values.transpose(0, 1).contiguous(),
        }

    def read(self, state: State, tokens: Tensor) -> Tensor:
        """See DtPolicy. Keys and values of what is new are written into the given memory."""
        slots = self.tokens * self.context
        cache = Cache(*(state[name].transpose(0, 1) for name in ("keys", "values")))
        new = torch.cat([state["action"][:, None], tokens], 1)
        time = self._tensor(state["time"])[:, None]
        # which tokens of the episode these are
        index = self.tokens * time + torch.arange(-1, self.tokens - 1, device=self.device)
        newest = index[:, -1:]
        # which token of the episode a slot holds
        held = newest - (newest - torch.arange(slots, device=self.device)) % slots
        oldest = self.tokens * (time + 1 - self._tensor(state["count"])[:, None])
        look = (held[:, None, :] <= index[..., None]) & (held >= oldest)[:, None, :]
        # the token before the first looks at itself alone
        look |= held[:, None, :] == index[..., None]
        out: Tensor = self.model.transformer.scatter(new, cache, index % slots, look)[:, -1]
        return out

    def remember(self, state: State, token: Tensor) -> None:
        """See DtPolicy."""
        state["action"] = token
