"""BabyAI's bot (Chevalier-Boisvert et al. 2019, section 3), as MiniGrid ships it.

It reads the level itself, not what is observed, so it plays on MiniGrid's own environments. It
raises in some levels, and in a few plans without end; from then on it does nothing until the limit
ends the episode, which pays nothing and so is not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.algorithms.base import Columns, Policy, State
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import GymnasiumRows, VectorEnv
from bigdm_ray.experts.base import Expert

if TYPE_CHECKING:
    import gymnasium

THOUGHTS = 1_000
"""Subgoals of one step, at most: a plan that needs more has no end."""
IDLE = 6
"""The action `done`, which changes nothing."""


class EndlessPlan(RuntimeError):
    """The bot goes round in circles."""


class _Subgoals(list[Any]):
    """The bot's stack of subgoals, which counts what is put on it."""

    left = THOUGHTS

    def append(self, subgoal: Any) -> None:
        """Raises EndlessPlan after too many."""
        self.left -= 1
        if self.left < 0:
            raise EndlessPlan("the bot goes round in circles")
        super().append(subgoal)


class BotPolicy(Policy):
    """A bot for each row of the environments that it is made for."""

    uniforms = 0

    def __init__(self, rows: VectorEnv) -> None:
        if not isinstance(rows, GymnasiumRows):
            raise TypeError("BabyAI's bot acts in MiniGrid's own environments")
        self._rows = rows
        self._bots: dict[int, Any] = {}

    def empty(self, n: int) -> State:
        """See Policy: which environment each row is."""
        return {"row": np.arange(n)}

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
        actions = np.full(len(first), IDLE, np.int32)
        for k, row in enumerate(state["row"].tolist()):
            if first[k]:
                self._bots[row] = _bot(self._rows.env(row))
            actions[k] = self._next(row)
        return {"": actions}, state

    def _next(self, row: int) -> int:
        """What the bot of a row does; nothing any more once it has raised."""
        if (bot := self._bots[row]) is None:
            return IDLE
        bot.stack.left = THOUGHTS
        try:
            return int(bot.replan())
        except Exception:  # noqa: BLE001  (it is foreign code, which gives up in many ways)
            self._bots[row] = None
            return IDLE


def _bot(env: gymnasium.Env[Any, Any]) -> Any:
    """A bot at the beginning of an episode; None where it does not know what is meant."""
    from minigrid.utils.baby_ai_bot import BabyAIBot

    try:
        bot = BabyAIBot(env.unwrapped)
    except Exception:  # noqa: BLE001  (as above)
        return None
    bot.stack = _Subgoals(bot.stack)
    return bot


def expert(task: Task) -> Expert | None:
    """The bot, for levels of BabyAI."""
    if task.suite != "babyai":
        return None
    return Expert("babyai-bot", BotPolicy, backend="reference")
