"""What a search keeps of a TrajectoryTransformer with rotary positions, for which only the
distances between tokens count.

Keys stay true when a plan goes on: nothing leaves the view, and no window is encoded anew. All
beams of an environment look at the keys of its past from one matrix, which is computed once and
never copied. What a beam has written since is its own; it is re-indexed where beams are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bigdm_ray.planning.encoder import WindowEncoder

OwnCache = list[tuple[Tensor, Tensor]]


@dataclass
class SharedPrefix:
    """Rows that are written on, equally many for each of n environments, behind the past that the
    rows of an environment share.

    `shared` are keys and values `[n, heads, past, head width]` of each layer, `own` those of what
    each row has written since `[n * rows, heads, slots, head width]`, of which `used` are in use;
    `last` are the outputs of the last tokens `[n * rows, width]`.
    """

    shared: OwnCache
    own: OwnCache
    last: Tensor
    used: int = 0

    def grow(self, rows: Tensor, branches: OwnCache, each: Tensor, slots: int) -> SharedPrefix:
        """The rows `[m]` (equally many of each environment), behind each the tokens of its branch
        `each [m]`, with so many slots in all.

        `branches` are as of `WindowEncoder.allocate`; the outputs are those of the rows of before.
        """
        own = []
        more = branches[0][0].shape[3]
        for before, written in zip(self.own, branches, strict=True):
            pair = []
            for old, new in zip(before, written, strict=True):
                room = old.new_empty(len(rows), old.shape[1], slots, old.shape[3])
                room[:, :, : self.used] = old[rows, :, : self.used]
                room[:, :, self.used : self.used + more] = new[rows, :, each]
                pair.append(room)
            own.append((pair[0], pair[1]))
        return SharedPrefix(self.shared, own, self.last[rows], self.used + more)

    def take(self, rows: Tensor) -> SharedPrefix:
        """These rows `[m]`, equally many of each environment, which may repeat: copies of what is
        their own and in use."""
        own = [
            (keys[rows, :, : self.used], values[rows, :, : self.used]) for keys, values in self.own
        ]
        return SharedPrefix(self.shared, own, self.last[rows], self.used)


class CachedEncoder(WindowEncoder):
    """A WindowEncoder that writes on behind what was encoded once. For rotary positions."""

    def stem(self, past: Tensor, state: Tensor, goal: Tensor | None) -> SharedPrefix:
        """The past and the state of each environment, encoded: arguments as of `trunk`.

        A row for each environment.
        """
        trunk, which = self.trunk(past, state, 0, goal)
        trunk = trunk.take(which)
        shared = [
            (k[:, :, : trunk.used], v[:, :, : trunk.used])
            for k, v in zip(trunk.keys, trunk.values, strict=True)
        ]
        return SharedPrefix(shared, [(k[:, :, :0], v[:, :, :0]) for k, v in shared], trunk.last)

    def fork(
        self,
        stem: SharedPrefix,
        branches: OwnCache,
        tokens: Tensor,
        dim: int,
        place: int,
        slot: int,
    ) -> Tensor:
        """A token of each branch `[rows, each]`, of dimension `dim`: outputs `[rows, each, width]`;
        its keys take `slot` of the branch."""
        x, where = self._one(tokens, dim, place)
        n, each, _ = x.shape
        for layer, (block, (mine, worth)) in enumerate(zip(self.blocks, branches, strict=True)):
            query, key, value = (
                block.project(x).view(n, each, 3, self.split, -1).permute(2, 0, 3, 1, 4)
            )
            mine[:, :, :, slot], worth[:, :, :, slot] = self.turn(key, where), value
            gathered = self._gather(
                stem,
                layer,
                self.turn(query, where),
                (mine[:, :, :, : slot + 1], worth[:, :, :, : slot + 1]),
            )
            x = block.finish(x, gathered.transpose(1, 2).flatten(2))
        out: Tensor = self.net.transformer.norm(x)
        return out

    def write(
        self, stem: SharedPrefix, tokens: Tensor, dim: int, place: int, kept: bool = True
    ) -> None:
        """One more token of each row `[rows]`, of dimension `dim`: its keys take the next slot,
        unless it is not `kept`; its output becomes `last`."""
        x, where = self._one(tokens, dim, place)
        slot = stem.used
        stem.used += kept
        for layer, (block, (keys, values)) in enumerate(zip(self.blocks, stem.own, strict=True)):
            query, key, value = block.project(x).view(len(x), 3, self.split, 1, -1).unbind(1)
            if kept:
                keys[:, :, slot : slot + 1], values[:, :, slot : slot + 1] = (
                    self.turn(key, where),
                    value,
                )
            x = block.finish(x, self._gather(stem, layer, self.turn(query, where)).flatten(1))
        stem.last = self.net.transformer.norm(x)

    def _gather(
        self,
        stem: SharedPrefix,
        layer: int,
        query: Tensor,
        apart: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """What queries `[rows, heads, each, head width]` gather from the shared past, from their
        row's own tokens, and from those of each `apart`.

        The past is multiplied with all queries of an environment at once.
        """
        (past, worth), (keys, values) = (
            stem.shared[layer],
            (part[:, :, : stem.used] for part in stem.own[layer]),
        )
        rows, heads, each, width = query.shape
        n, seen, used = len(past), past.shape[2], stem.used

        def together(of_rows: Tensor) -> Tensor:
            return (
                of_rows.view(n, rows // n, heads, each, -1)
                .transpose(1, 2)
                .reshape(n, heads, rows // n * each, -1)
            )

        def by_row(joined: Tensor) -> Tensor:
            return (
                joined.view(n, heads, rows // n, each, -1)
                .transpose(1, 2)
                .reshape(rows, heads, each, -1)
            )

        query = query * width**-0.5
        scores = [by_row(together(query) @ past.transpose(2, 3)), query @ keys.transpose(2, 3)]
        if apart is not None:
            scores.append((query.unsqueeze(3) * apart[0]).sum(-1))
        looks = torch.softmax(torch.cat(scores, -1), -1)
        gathered = (
            by_row(together(looks[..., :seen].contiguous()) @ worth)
            + looks[..., seen : seen + used] @ values
        )
        if apart is not None:
            gathered = gathered + (looks[..., seen + used :].unsqueeze(-1) * apart[1]).sum(3)
        return gathered
