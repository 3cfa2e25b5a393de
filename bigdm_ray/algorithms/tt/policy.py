"""How a Trajectory Transformer acts: by planning, or by the most likely tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigdm_ray.algorithms.base import Columns, Mode, Policy, State
from bigdm_ray.algorithms.tt.network import TrajectoryModel
from bigdm_ray.algorithms.tt.settings import TtSettings
from bigdm_ray.planning.beam import Planner
from bigdm_ray.planning.sampling import RankedPlans
from bigdm_ray.replay.episode import Episode


@dataclass(frozen=True)
class BeamStates:
    """All beams of a row's plan as numbers: their states `[beams, H, seen]`, from the current one
    on, and scores `[beams]`, the best first.

    Elements are NaN where a beam has stopped, and behind the first predicted state that is at the
    goal, where the goal was searched for.
    """

    states: np.ndarray
    scores: np.ndarray


def beams_of(
    model: TrajectoryModel, fan: RankedPlans, sought: Tensor | None = None
) -> list[BeamStates]:
    """The beams of each row of a search; `sought [n, seen]` are the goals of one that was after
    them, which scored no state behind them.
    """
    seen = model.seen.width
    tokens = fan.tokens[..., :seen]
    shown = tokens < model.bins.count
    if sought is not None:
        there = (tokens[:, :, 1:] == sought[:, None, None]).all(-1).long().cumsum(2)
        shown[:, :, 2:] &= (there[:, :, :-1] == 0).unsqueeze(-1)
    states = torch.where(shown, model.bins.decode(tokens, slice(0, seen)), torch.nan).cpu().numpy()
    return [BeamStates(*row) for row in zip(states, fan.score.cpu().numpy(), strict=True)]


class TtPolicy(Policy):
    """Remembers the last transitions as tokens; the reward of the last one comes with the next
    call.

    `watch`, where it is set, is called with the beams of each row that is planned for.
    """

    watch: Callable[[BeamStates], None] | None = None

    def __init__(self, model: TrajectoryModel, settings: TtSettings, mode: Mode) -> None:
        self._model, self._mode, self._objective = model, mode, settings.objective
        self._planner = Planner(
            model.net, model.bins, model.seen.width, model.acted.width, settings.search
        )
        self._kept = settings.context - 1
        self.uniforms = 2 if mode == "plan" else model.acted.width

    def empty(self, n: int) -> State:
        """See Policy. Memory is the tokens of past transitions, and how many of them there are."""
        shape = n, self._kept, self._model.net.dims
        device = self._model.bins.edges.device
        return {
            "past": torch.zeros(shape, dtype=torch.int16, device=device),
            "held": np.zeros(n, np.int64),
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
        """See Policy.

        Rows are planned in one batch; those whose episodes are younger than the context in batches
        of their age.
        """
        model, bins = self._model, self._model.bins
        device, seen, dims = bins.edges.device, model.seen.width, model.net.dims
        held = np.where(first, 0, state["held"])
        past = state["past"].long()
        past[:, -1, dims - 2] = bins.encode(
            torch.from_numpy(rewards)[:, None].to(device), slice(dims - 2, dims - 1)
        )[:, 0]
        now = {path: torch.from_numpy(v).to(device) for path, v in observations.items()}
        tokens, goal = model.states(now), model.goals(now)
        chosen = tokens.new_empty(len(tokens), model.acted.width)
        for age in np.unique(held).tolist():
            rows = np.flatnonzero(held == age)
            chosen[rows] = self._choose(
                past[rows, self._kept - age :],
                tokens[rows],
                uniforms[rows],
                None if goal is None else goal[rows],
            )
        numbers = bins.decode(chosen, slice(seen, dims - 2))
        transition = torch.cat(
            [
                tokens,
                chosen,
                torch.zeros_like(tokens[:, :1]),
                torch.full_like(tokens[:, :1], bins.count - 1),
            ],
            1,
        )
        past = torch.cat([past[:, 1:], transition[:, None]], 1)
        memory = {"past": past.short(), "held": np.minimum(held + 1, self._kept)}
        return {
            path: values.cpu().numpy() for path, values in model.acted.values(numbers).items()
        }, memory

    def show_plans(self, place: str, show: Callable[[np.ndarray], None]) -> bool:
        """See Policy. The states of all beams, NaN where one has stopped."""
        columns = self._model.seen.columns(place)
        if self._mode != "plan" or columns is None:
            return False
        self.watch = lambda beams: show(beams.states[..., columns])
        return True

    def _choose(
        self, past: Tensor, tokens: Tensor, uniforms: np.ndarray, goal: Tensor | None
    ) -> Tensor:
        planner, seen = self._planner, self._model.seen.width
        if self._mode != "plan":
            return planner.act(
                past,
                tokens,
                None if self._mode == "mean" else torch.from_numpy(uniforms).to(tokens.device),
                goal,
            )
        fan = planner.fan(
            past,
            tokens,
            None if self._objective == "likelihood" else planner.numbers(uniforms),
            goal,
        )
        if self.watch is not None:
            for beams in beams_of(self._model, fan, goal if self._objective == "goal" else None):
                self.watch(beams)
        return fan.best.tokens[:, 0, seen:-2]


def plan_at(
    model: TrajectoryModel, settings: TtSettings, episode: Episode, step: int, uniforms: np.ndarray
) -> BeamStates:
    """The beams of a plan at a step of an episode, after what truly came before it; its chance is
    `uniforms [2]`, see `Planner.numbers`.
    """
    bins, seen = model.bins, model.seen.width
    first = max(0, step - settings.context + 1)
    observed = {
        path: torch.from_numpy(np.array(values[first : step + 1]))
        for path, values in episode.observations.items()
    }
    acted = {
        path: torch.from_numpy(np.array(values[first:step]))
        for path, values in episode.actions.items()
    }
    states = model.seen.rows(observed)
    rewards = torch.from_numpy(np.array(episode.rewards[first:step]))
    whole = torch.cat(
        [
            states[:-1],
            model.acted.rows(acted),
            rewards[:, None],
            torch.zeros_like(rewards[:, None]),
        ],
        1,
    )
    now = {path: values[-1:] for path, values in observed.items()}
    planner = Planner(model.net, bins, seen, model.acted.width, settings.search)
    numbers = None if settings.objective == "likelihood" else planner.numbers(uniforms[None])
    goal = model.goals(now)
    fan = planner.fan(bins.encode(whole)[None], model.states(now), numbers, goal)
    return beams_of(model, fan, goal if settings.objective == "goal" else None)[0]
