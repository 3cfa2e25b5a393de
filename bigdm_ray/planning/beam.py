"""Beam search over the tokens of a TrajectoryTransformer (Janner, Li, Levine 2021, section 3.2,
algorithm 1).

Three uses: the plan with the highest reward and reward-to-go (offline reinforcement learning,
`Planner.plan`), the most likely continuation (imitation, `Planner.most_likely_plan`), and either
for a network that is told a goal (goal-reaching). The rules are those of the paper's official
implementation (jannerm/trajectory-transformer, trajectory/search): the model sees `context`
transitions, the one being written included, so when a new one begins the oldest leaves and the
places of all others move by one; cached keys are worth nothing then, for places are embedded. What
remains to be saved without changing what is computed `planning/encoder.py` saves; and a head is
evaluated only where its token is drawn. All chance comes in as numbers, so a plan is a function of
its inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bigdm_ray.models.trajectory import TrajectoryTransformer
from bigdm_ray.planning.cached_encoder import CachedEncoder
from bigdm_ray.planning.encoder import EncodedWindows
from bigdm_ray.planning.sampling import (
    Plan,
    RankedPlans,
    SearchSettings,
    filter_logits,
    sample_tokens,
)
from bigdm_ray.tokens.bins import Bins

SEED_BITS = 24
"""Bits of chance in a float32 uniform."""

BEAMS_ON_CPU, BEAMS = 256, 65_536
"""Beams of several environments that are searched together, on a CPU and elsewhere: enough to keep
it busy, and memory bounded."""

Numbers = dict[str, Tensor]
"""Uniforms in [0, 1) of a plan: `actions [n, H, acted, candidates]`, and, where they are drawn,
`states [n, H, seen, beams]` and `outcomes [n, H, 2, candidates]`."""


class Planner:
    """Searches with one network.

    `bins` say what numbers its tokens stand for; states have `seen` tokens, actions `acted`.
    """

    def __init__(
        self, net: TrajectoryTransformer, bins: Bins, seen: int, acted: int, search: SearchSettings
    ) -> None:
        if not 2 <= search.context <= net.window:
            raise ValueError(
                f"a context of {search.context} transitions is not from 2 to the network's"
                f" {net.window}"
            )
        self.net, self.bins, self.seen, self.acted, self.search = net, bins, seen, acted, search
        self.encoder = CachedEncoder(net)

    @property
    def middles(self) -> Tensor:
        """The numbers that tokens stand for `[dims, bins]`."""
        return self.bins.middles

    def numbers(self, uniforms: np.ndarray) -> Numbers:
        """All chance of plans, of two uniforms a row `[n, 2]` that seed a generator of the row's
        own."""
        search = self.search
        shapes = {"actions": (search.horizon, self.acted, search.beams * search.expansions)}
        if search.k_obs != 1:
            shapes["states"] = (search.horizon, self.seen, search.beams)
        if search.k_rew != 1:
            shapes["outcomes"] = (search.horizon, 2, search.beams * search.expansions)
        rows = []
        for high, low in (uniforms[:, :2] * 2**SEED_BITS).astype(np.int64).tolist():
            generator = torch.Generator().manual_seed((high << SEED_BITS) + low)
            rows.append(
                {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
            )
        return {
            name: torch.stack([row[name] for row in rows]).to(self.middles.device)
            for name in shapes
        }

    def _parts(self, n: int, sequences: int, device: torch.device) -> list[slice]:
        """Of n rows of so many sequences, as many at a time as keep the caches small."""
        each = max(1, (BEAMS_ON_CPU if device.type == "cpu" else BEAMS) // sequences)
        return [slice(start, start + each) for start in range(0, n, each)]

    @torch.inference_mode()
    def fan(
        self, past: Tensor, state: Tensor, numbers: Numbers | None, goal: Tensor | None = None
    ) -> RankedPlans:
        """All beams that `plan` ends with, or, without numbers, those that `most_likely_plan` ends
        with. Arguments as there.

        Where filters leave a row fewer sequences than others have, beams of stop tokens with a
        score of -inf fill it up.
        """
        fans = []
        for part in self._parts(len(state), self.search.beams, state.device):
            told = None if goal is None else goal[part]
            if numbers is None:
                fans.append(self._likely(past[part], state[part], told))
            else:
                fans.append(
                    self._plan(
                        past[part], state[part], {k: v[part] for k, v in numbers.items()}, told
                    )
                )
        most = max(fan.score.shape[1] for fan in fans)
        tokens = [
            pad(fan.tokens, (0, 0, 0, 0, 0, most - fan.score.shape[1]), value=self.net.bins)
            for fan in fans
        ]
        scores = [pad(fan.score, (0, most - fan.score.shape[1]), value=-torch.inf) for fan in fans]
        return RankedPlans(torch.cat(tokens), torch.cat(scores))

    def plan(
        self, past: Tensor, state: Tensor, numbers: Numbers, goal: Tensor | None = None
    ) -> Plan:
        """The plan with the highest sum of discounted rewards, and value after its last step.

        With `reach` its score is the discount to the power of the steps to the goal, 0 for a plan
        that does not come there; of equals it is the one drawn first.

        `past [n, m, dims]` are the last transitions as tokens, of which at most `context` - 1 are
        looked at, `state [n, seen]` the current state, `goal [n, goal]` what a network with goals
        is told. Candidate c of a row continues its beam c modulo `beams`.
        """
        return self.fan(past, state, numbers, goal).best

    def _plan(
        self, past: Tensor, state: Tensor, numbers: Numbers, goal: Tensor | None
    ) -> RankedPlans:
        search = self.search
        n, beams = len(state), search.beams
        written = (CachedBeams if self.net.transformer.rotary else RecomputedBeams)(
            self, self.window(past), state, goal
        )
        states = state[:, None].expand(n, beams, self.seen)
        plans = state.new_zeros(n, beams, 0, self.net.dims)
        earned = score = self.middles.new_zeros(n, beams)
        for t in range(search.horizon):
            tokens, reward, value = self._expand(written, numbers, t)
            if search.reach:
                reward, value = torch.zeros_like(reward), torch.zeros_like(value)
            earned = earned.repeat(1, search.expansions) + search.discount**t * reward
            score, best = (earned + search.discount ** (t + 1) * value).sort(
                dim=1, descending=True, stable=True
            )
            best = best[:, :beams]
            whole = torch.cat([states.repeat(1, search.expansions, 1), tokens], 2)
            plans = torch.cat([_rows(plans, best % beams), _rows(whole, best).unsqueeze(2)], 2)
            if t == search.horizon - 1:
                break
            earned = earned.gather(1, best)
            states = written.go_on(
                best,
                plans[:, :, -1],
                numbers["states"][:, t].transpose(1, 2).flatten(0, 1)
                if search.k_obs != 1
                else None,
            )
            if search.reach and goal is not None:
                there = (states == goal[:, None]).all(2)
                earned = torch.maximum(earned, search.discount ** (t + 1) * there)
        return RankedPlans(plans, score[:, :beams])

    def window(self, transitions: Tensor) -> Tensor:
        """The transitions `[..., m, dims]` that are looked at beside the one being written."""
        return transitions[..., max(0, transitions.shape[-2] - self.search.context + 1) :, :]

    def _expand(
        self, written: RecomputedBeams | CachedBeams, numbers: Numbers, t: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, rewards and values of all candidates: their tokens `[n, candidates, acted + 2]`,
        and two of `[n, candidates]`.

        What is written has one row for each environment, or one for each of its beams.
        """
        search, net = self.search, self.net
        n = len(numbers["actions"])
        beams = len(written.hidden) // n
        each = search.beams * search.expansions // beams

        def by_row(values: Tensor) -> Tensor:
            return values.view(n, each, beams).transpose(1, 2).reshape(n * beams, each)

        def by_candidate(values: Tensor) -> Tensor:
            return values.view(n, beams, each).transpose(1, 2).reshape(n, each * beams)

        written.open(each)
        hidden = written.hidden.unsqueeze(1)
        tokens, numbers_of = [], []
        for j in range(self.acted + 2):
            dim = self.seen + j
            logits = net.logits(hidden, dim)
            if j < self.acted:
                logits = filter_logits(self._acting(logits, t), search.k_act, search.cdf_act)
                token = sample_tokens(
                    logits.expand(-1, each, -1), search.k_act, by_row(numbers["actions"][:, t, j])
                )
            else:
                chance = (
                    by_row(numbers["outcomes"][:, t, j - self.acted]) if search.k_rew != 1 else None
                )
                token = sample_tokens(
                    filter_logits(logits, search.k_rew, 0.0), search.k_rew, chance
                )
                numbers_of.append(self._number(logits, token, dim))
            tokens.append(token)
            if j <= self.acted:
                hidden = written.branch(token, dim, j)
        reward, value = numbers_of
        return (
            torch.stack([by_candidate(token) for token in tokens], 2),
            by_candidate(reward),
            by_candidate(value),
        )

    def _number(self, logits: Tensor, token: Tensor, dim: int) -> Tensor:
        """What a reward or value counts as; a stop token is worth 0."""
        middles = self.middles[dim]
        if self.search.expected:
            return torch.softmax(logits, -1)[..., :-1] @ middles
        return torch.cat([middles, middles.new_zeros(1)])[token]

    def _acting(self, logits: Tensor, t: int) -> Tensor:
        """Logits of an action's token.

        The first action will be taken, so that it cannot be the stop token.
        """
        return (
            logits
            if t
            else torch.cat([logits[..., :-1], torch.full_like(logits[..., -1:], -torch.inf)], -1)
        )

    def next_state(
        self,
        last: Callable[[], Tensor],
        write: Callable[[Tensor, int], None],
        chance: Tensor | None,
    ) -> Tensor:
        """Write the tokens of the next state `[rows, seen]`: `last()` are the outputs
        `[rows, width]` that predict the next of them."""
        search, tokens = self.search, []
        for dim in range(self.seen):
            logits = self.net.logits(last(), dim)
            logits = (
                logits if chance is None else filter_logits(logits, search.k_obs, search.cdf_obs)
            )
            tokens.append(
                sample_tokens(logits, search.k_obs, None if chance is None else chance[:, dim])
            )
            write(tokens[-1], dim)
        return torch.stack(tokens, 1)

    def most_likely_plan(self, past: Tensor, state: Tensor, goal: Tensor | None = None) -> Plan:
        """The most likely continuation for `horizon` transitions under the filtered distributions;
        its score is the log-probability in nats.

        Token by token the `beams` most likely sequences are kept. Arguments as in `plan`.
        """
        return self.fan(past, state, None, goal).best

    def _likely(self, past: Tensor, state: Tensor, goal: Tensor | None) -> RankedPlans:
        search, net, encoder = self.search, self.net, self.encoder
        n = len(state)
        window = self.window(past).unsqueeze(1)
        plans = state.new_zeros(n, 1, 0, net.dims)
        total = self.middles.new_zeros(n, 1)
        for t in range(search.horizon):
            place = window.shape[2]
            trunk, which = encoder.trunk(
                window.flatten(0, 1),
                state if t == 0 else None,
                net.dims,
                _each(goal, window.shape[1]),
            )
            trunk = trunk.take(which)
            written = state[:, None] if t == 0 else state.new_zeros(n, window.shape[1], 0)
            for dim in range(written.shape[2], net.dims):
                logits = net.logits(trunk.last, dim)
                if dim < self.seen:
                    logits = filter_logits(logits, search.k_obs, search.cdf_obs)
                elif dim < self.seen + self.acted:
                    logits = filter_logits(self._acting(logits, t), search.k_act, search.cdf_act)
                else:
                    logits = filter_logits(logits, search.k_rew, 0.0)
                sums = (
                    total.unsqueeze(2) + torch.log_softmax(logits, -1).view(*total.shape, -1)
                ).flatten(1)
                keep = min(search.beams, int((sums > -torch.inf).sum(1).max()))
                total, chosen = sums.topk(keep)
                parents, token = chosen // (net.bins + 1), chosen % (net.bins + 1)
                trunk, order = _grown(trunk, parents)
                total, parents, token = (
                    total.gather(1, order),
                    parents.gather(1, order),
                    token.gather(1, order),
                )
                window, plans = _rows(window, parents), _rows(plans, parents)
                written = torch.cat([_rows(written, parents), token.unsqueeze(2)], 2)
                if dim < net.dims - 1:
                    encoder.step(trunk, token.flatten(), dim, net.dims * place + dim)
            plans = torch.cat([plans, written.unsqueeze(2)], 2)
            window = self.window(torch.cat([window, written.unsqueeze(2)], 2))
        score, order = total.sort(dim=1, descending=True, stable=True)
        return RankedPlans(_rows(plans, order), score)

    @torch.inference_mode()
    def follow(
        self, past: Tensor, state: Tensor, actions: Tensor, goal: Tensor | None = None
    ) -> Tensor:
        """States `[n, H, seen]` that the network predicts to come of H actions given as tokens
        `[n, H, acted]`, each from those predicted before.

        Open loop: nothing of what truly happens is seen. States, rewards and values are the most
        likely tokens. Other arguments as in `plan`.
        """
        parts = self._parts(len(state), 1, state.device)
        return torch.cat(
            [
                self._follow(
                    past[part], state[part], actions[part], None if goal is None else goal[part]
                )
                for part in parts
            ]
        )

    def _follow(self, past: Tensor, state: Tensor, actions: Tensor, goal: Tensor | None) -> Tensor:
        net, encoder = self.net, self.encoder
        window, states = self.window(past), []
        for taken in actions.unbind(1):
            place = window.shape[1]
            trunk, which = encoder.trunk(window, state, net.dims, goal)
            trunk = trunk.take(which)
            written = [*state.unbind(1), *taken.unbind(1)]
            for dim in range(self.seen, net.dims):
                if dim >= net.dims - 2:
                    written.append(net.logits(trunk.last, dim)[..., :-1].argmax(-1))
                if dim < net.dims - 1:
                    encoder.step(trunk, written[dim], dim, net.dims * place + dim)
            window = self.window(torch.cat([window, torch.stack(written, 1).unsqueeze(1)], 1))
            trunk, which = encoder.trunk(window, None, self.seen, goal)
            tokens: list[Tensor] = []
            trunk = trunk.take(which)
            for dim in range(self.seen):
                tokens.append(net.logits(trunk.last, dim)[..., :-1].argmax(-1))
                encoder.step(trunk, tokens[-1], dim, net.dims * window.shape[1] + dim)
            state = torch.stack(tokens, 1)
            states.append(state)
        return torch.stack(states, 1)

    @torch.inference_mode()
    def act(
        self, past: Tensor, state: Tensor, uniforms: Tensor | None, goal: Tensor | None = None
    ) -> Tensor:
        """An action without a plan: tokens `[n, acted]` drawn one after the other with
        `uniforms [n, acted]`, or the most likely ones."""
        window = self.window(past)
        trunk, which = self.encoder.trunk(window, state, self.acted, goal)
        trunk = trunk.take(which)
        tokens = []
        for j in range(self.acted):
            dim = self.seen + j
            logits = self._acting(self.net.logits(trunk.last, dim), 0)
            tokens.append(sample_tokens(logits, 0, None if uniforms is None else uniforms[:, j]))
            if j < self.acted - 1:
                self.encoder.step(trunk, tokens[-1], dim, self.net.dims * window.shape[1] + dim)
        return torch.stack(tokens, 1)


class RecomputedBeams:
    """The beams of a plan as the model's rule has them: where a transition begins the oldest
    leaves, and the windows are encoded anew."""

    def __init__(
        self, planner: Planner, window: Tensor, state: Tensor, goal: Tensor | None
    ) -> None:
        """`window [n, m, dims]` is what the plan begins behind."""
        self._planner, self._goal = planner, goal
        self._window = window[:, None].expand(len(state), planner.search.beams, *window.shape[1:])
        trunk, which = planner.encoder.trunk(window, state, 0, goal)
        self._trunk = trunk.take(which)

    @property
    def hidden(self) -> Tensor:
        """The outputs that predict the next actions, `[n, width]` at first, then
        `[n * beams, width]`."""
        return self._trunk.last

    def open(self, each: int) -> None:
        """Make room for so many continuations of each row."""
        self._own = self._planner.encoder.allocate(len(self.hidden), each, self._planner.acted + 1)

    def branch(self, tokens: Tensor, dim: int, slot: int) -> Tensor:
        """A token of each continuation `[rows, each]`: outputs `[rows, each, width]`."""
        place = self._planner.net.dims * self._window.shape[2] + dim
        return self._planner.encoder.branch(self._trunk, self._own, tokens, dim, place, slot)

    def go_on(self, best: Tensor, transitions: Tensor, chance: Tensor | None) -> Tensor:
        """The next states `[n, beams, seen]` of the candidates `best [n, beams]`, whose transitions
        `[n, beams, dims]` are written."""
        planner, encoder = self._planner, self._planner.encoder
        n, beams = best.shape
        self._window = planner.window(
            torch.cat([_rows(self._window, best % beams), transitions.unsqueeze(2)], 2)
        )
        trunk, which = encoder.trunk(
            self._window.flatten(0, 1), None, planner.seen, _each(self._goal, beams)
        )
        if chance is not None:  # beams that agree may go on to different states
            trunk, which = trunk.take(which), torch.arange(n * beams, device=which.device)
        place = planner.net.dims * self._window.shape[2]
        states = planner.next_state(
            lambda: trunk.last,
            lambda token, dim: encoder.step(trunk, token, dim, place + dim),
            chance,
        )
        self._trunk = trunk.take(which)
        return states[which].view(n, beams, planner.seen)


class CachedBeams:
    """The beams of a plan of a model with rotary positions: all that was computed is kept, and
    nothing leaves the view. Offers what `RecomputedBeams` does."""

    def __init__(
        self, planner: Planner, window: Tensor, state: Tensor, goal: Tensor | None
    ) -> None:
        """See RecomputedBeams."""
        self._planner, self._place = planner, planner.net.dims * window.shape[1]
        self._stem = planner.encoder.stem(window, state, goal)
        # which beams agree
        self._which = torch.zeros(len(state), 1, dtype=torch.int64, device=state.device)

    @property
    def hidden(self) -> Tensor:
        """See RecomputedBeams."""
        return self._stem.last

    def open(self, each: int) -> None:
        """See RecomputedBeams."""
        self._own = self._planner.encoder.allocate(len(self.hidden), each, self._planner.acted + 1)

    def branch(self, tokens: Tensor, dim: int, slot: int) -> Tensor:
        """See RecomputedBeams."""
        return self._planner.encoder.fork(
            self._stem, self._own, tokens, dim, self._place + dim, slot
        )

    def go_on(self, best: Tensor, transitions: Tensor, chance: Tensor | None) -> Tensor:
        """See RecomputedBeams. Beams that agree are written on once."""
        planner, encoder = self._planner, self._planner.encoder
        n, beams = best.shape
        rows, dims = len(self._stem.last) // n, planner.net.dims
        parents = best % rows
        same = torch.cat(
            [self._which.gather(1, parents)[..., None], transitions[..., planner.seen :]], 2
        )
        first, self._which = (
            _distinct(same)
            if chance is None
            else (torch.arange(beams, device=best.device).expand(n, -1),) * 2
        )
        base = rows * torch.arange(n, device=best.device)[:, None]
        ahead, chosen = (
            transitions.gather(1, first[..., None].expand(-1, -1, dims)).flatten(0, 1),
            best.gather(1, first),
        )
        stem = self._stem.grow(
            (base + chosen % rows).flatten(),
            self._own,
            (chosen // rows).flatten(),
            self._stem.used + planner.acted + 1 + planner.seen,
        )
        encoder.write(stem, ahead[:, -1], dims - 1, self._place + dims - 1, kept=False)
        self._place += dims
        states = planner.next_state(
            lambda: stem.last,
            lambda token, dim: encoder.write(stem, token, dim, self._place + dim),
            chance,
        )
        which = self._which + first.shape[1] * torch.arange(n, device=best.device)[:, None]
        self._stem = stem.take(which.flatten())
        return states[which]


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows `[n, b, k]` the first of each that agree, by environment `[n, m]`, filled up with the
    first of all; and which of them each is `[n, b]`."""
    n, b, _ = rows.shape
    place = torch.arange(b, device=rows.device)
    # the first row that agrees with each
    first = (rows[:, :, None] == rows[:, None]).all(3).long().argmax(2)
    fresh = first == place
    rank = fresh.long().cumsum(1) - 1
    found = torch.zeros(n, int(rank.max()) + 1, dtype=torch.int64, device=rows.device)
    found[fresh.nonzero()[:, 0], rank[fresh]] = place.expand(n, b)[fresh]
    return found, rank.gather(1, first)


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    """`[n, b, ...]` at `chosen [n, c]`: `[n, c, ...]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], chosen]


def _each(goal: Tensor | None, beams: int) -> Tensor | None:
    """The goal of each row `[n, goal]` for each of its beams `[n * beams, goal]`."""
    return None if goal is None else goal.repeat_interleave(beams, 0)


def _grown(trunk: EncodedWindows, parents: Tensor) -> tuple[EncodedWindows, Tensor]:
    """The trunk of beams whose parents were `parents [n, c]`, and in which order `[n, c]` the beams
    now stand.

    Where their number stays, each parent's first child stands where the parent stood, and only its
    other children are copied, in place, over parents that have none.
    """
    n, count = parents.shape
    beams = len(trunk.last) // n
    flat = (parents + beams * torch.arange(n, device=parents.device)[:, None]).flatten()
    order = torch.arange(count, device=parents.device).repeat(n, 1)
    if count != beams:
        return trunk.take(flat), order
    ranked = flat.argsort(stable=True)
    first = torch.ones_like(flat, dtype=torch.bool)
    first[ranked[1:]] = flat[ranked[1:]] != flat[ranked[:-1]]
    vacant = torch.ones_like(first)
    vacant[flat[first]] = False
    # as many of each environment, in its order
    free, others = (
        vacant.nonzero().flatten(),
        (~first).nonzero().flatten(),
    )
    trunk.move(flat[others], free)
    child = order.flatten()
    place = torch.empty_like(child)
    place[flat[first]] = child[first]
    place[free] = child[others]
    return trunk, place.view(n, count)
