"""Agent: a trained run that acts in somebody's own gymnasium loop.

    policy = bigdm_ray.load("runs/mine", "best").act()
    action = policy(observation, reward)         # the first step of an episode has no reward
    policy.reset(desired_return=200)             # before each other episode

Memory, chance and the rest of the command are kept inside. The chance is that of the first part of
`evaluate` with the same seed, so one environment that is seeded alike brings the same episode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from bigdm_ray.algorithms.base import Columns, Mode, device_of
from bigdm_ray.envs import Leaf, Signature
from bigdm_ray.envs.batches import rows_reader, values_of
from bigdm_ray.envs.values import SpaceMismatch, kind, reward_of
from bigdm_ray.errors import UserError, quote_value, suggest_names
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.training.acting import TrainedRun, command_from, run_as
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.streams import rng


class Agent:
    """See the module; `Loaded.act` makes one."""

    def __init__(
        self,
        loaded: TrainedRun,
        n: int | None = None,
        mode: Mode | Literal["own"] = "own",
        seed: int | None = None,
        device: str = "cpu",
        spaces: tuple[Any, Any] | None = None,
    ) -> None:
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise UserError(
                f"n is {quote_value(n)}, but a number of environments is expected, or None"
            )
        if mode not in OWN_OR_MODES:
            near = suggest_names(str(mode), list(OWN_OR_MODES))
            raise UserError(f"mode is {quote_value(mode)}, but how to act is expected{near}")
        seed = loaded.run.seed if seed is None else seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            raise UserError(
                f"seed is {quote_value(seed)}, but an integer from 0 to 2147483647 is expected"
            )
        where, model = pick_device(device), loaded.model
        if device_of(model) != where:
            model = copy.deepcopy(model).to(where)  # others may act with the one that was loaded
        run = run_as(loaded, mode)
        self._policy = run.algorithm.policy_in(
            model, cast(Mode, run.evaluations.mode), loaded.signature, run.task
        )
        self._loaded, self._n, self._count = loaded, n, n or 1
        self._chance = rng(seed, "evaluate", 0)
        seen, self._action_space = (
            _own_spaces(loaded) if spaces is None else match_spaces(loaded, spaces)
        )
        self._read = rows_reader(seen, n)
        self._shapes = loaded.signature.observations, Signature.of(seen, self._action_space).actions
        self._state = self._policy.start(self._count)
        self._remembers = bool(self._state or run.algorithm.commands)
        self._first = np.ones(self._count, bool)
        self._commands: Columns = {}
        self._asked = np.zeros(self._count, bool)
        """Which rows have a command: none where none lies beside the weights, until `reset`."""
        if all(name in loaded.command for name in run.algorithm.commands):
            self.reset()

    @property
    def command(self) -> dict[str, Any]:
        """What the action of the last call was asked for: numbers by name, or arrays `[n]`."""
        return {
            name: float(v[0]) if self._n is None else v.copy() for name, v in self._commands.items()
        }

    def reset(self, rows: Any = None, **command: Any) -> None:
        """A new episode begins: forget the one before, and ask for what `command` says.

        `command` are the algorithm's own names (`desired_return`, `desired_horizon`), numbers or
        arrays of one for each row; what is not named is what the run was evaluated with. `rows`, of
        an agent of n rows, is a mask `[n]` of those that begin anew; the others go on. Raises
        UserError, and has then changed nothing.
        """
        mask = self._mask(rows)
        known = self._loaded.run.algorithm.commands
        for name in command:
            if name not in known:
                takes = suggest_names(name, list(known)) if known else "; it takes no command"
                raise UserError(f"{self._whose} takes no {name!r}{takes}")
        columns = {name: self._column(name, value) for name, value in command.items()}
        made: list[Mapping[str, float]] = [
            command_from(
                self._loaded, {name: float(v[k]) for name, v in columns.items()}, lambda name: name
            )
            for k in np.flatnonzero(mask)
        ]
        for name in known:
            column = self._commands.setdefault(name, np.zeros(self._count, np.float32)).copy()
            column[mask] = [one[name] for one in made]
            self._commands[name] = column
        self._first = self._first | mask
        self._asked = self._asked | mask
        if mask.all():
            self._state = self._policy.start(self._count)

    def __call__(self, observation: Any, reward: Any = None) -> Any:
        """The action for an observation, both as gymnasium's spaces say.

        `reward` is what the step before brought; none at the first step of an episode, where it is
        ignored. Raises UserError for values that do not fit, and has then changed nothing.
        """
        try:
            seen = _shaped(self._read(observation), self._shapes[0])
            self._loaded.signature.check(seen)
            rewards = self._rewards(reward)
        except SpaceMismatch as error:
            raise UserError(
                f"what {self._whose} was given does not fit {self._loaded.run.task}: {error}"
            ) from None
        if not self._asked.all():
            names = " and ".join(self._loaded.run.algorithm.commands)
            raise UserError(
                f"{self._whose} holds no command beside its weights; give {names} to reset"
            )
        if not self._first.all():
            left = self._policy.after(self._commands, rewards, self._loaded.task.max_return)
            self._commands = {
                name: np.where(self._first, self._commands[name], values)
                for name, values in left.items()
            }
        chance = self._chance.random((self._count, self._policy.uniforms), np.float32)
        actions, self._state = self._policy.act(
            self._state, seen, rewards, self._commands, self._first, chance
        )
        self._first = np.zeros(self._count, bool)
        return values_of(self._action_space, _shaped(actions, self._shapes[1]), self._n)

    @property
    def _whose(self) -> str:
        return f"the {self._loaded.run.algorithm.name} policy of {self._loaded.folder}"

    def _mask(self, rows: Any) -> np.ndarray:
        if rows is None:
            return np.ones(self._count, bool)
        mask = np.asarray(rows)
        if self._n is None or mask.shape != (self._n,) or mask.dtype != bool:
            expected = "none, as it acts for one environment," if self._n is None else "a mask"
            shape = "" if self._n is None else f" of shape ({self._n},) and type bool"
            raise UserError(f"rows is {quote_value(rows)}, but {expected}{shape} is expected")
        return mask

    def _column(self, name: str, value: Any) -> np.ndarray:
        """A number, or one for each row, as float64 `[rows]`. Raises UserError."""
        try:
            column = np.broadcast_to(np.asarray(value, np.float64), (self._count,))
        except (TypeError, ValueError):
            column = np.array([np.nan])
        if not np.isfinite(column).all():
            each = "" if self._n is None else f", or {self._n} of them,"
            raise UserError(
                f"{name} is {quote_value(value)}, but a finite number{each} is expected"
            )
        return column

    def _rewards(self, reward: Any) -> np.ndarray:
        """Rewards `[rows]` float32, 0 at first steps.

        Raises SpaceMismatch, UserError for a missing one.
        """
        if reward is None:
            if self._remembers and not self._first.all():
                raise UserError(
                    f"{self._whose} must know the reward of the step before: call it with "
                    "(observation, reward), or reset it where a new episode has begun"
                )
            return np.zeros(self._count, np.float32)
        if self._n is None:
            rewards = np.array([reward_of(reward)], np.float32)
        else:
            rewards = np.asarray(reward)
            if rewards.shape != (self._n,) or rewards.dtype.kind not in "biuf":
                raise SpaceMismatch(
                    f"its rewards are {kind(reward)} of shape {rewards.shape}, "
                    f"but {self._n} numbers are expected"
                )
            rewards = rewards.astype(np.float32)
        rewards[self._first] = 0
        if not np.isfinite(rewards).all():
            raise SpaceMismatch(f"its reward is {rewards[~np.isfinite(rewards)][0]}")
        return rewards


def _own_spaces(loaded: TrainedRun) -> tuple[Any, Any]:
    """The spaces of the run's task. Raises UserError where its environment cannot be made here."""
    try:
        loaded.task.require()
        env = loaded.task.env(None)
    except UserError as error:
        give = "act(spaces=(env.observation_space, env.action_space))"
        raise UserError(f"{error}; or give those of your own environment: {give}") from None
    env.close()
    return env.observation_space, env.action_space


def match_spaces(loaded: TrainedRun, spaces: tuple[Any, Any]) -> tuple[Any, Any]:
    """Observation and action space, if the network reads and writes such values. Raises UserError.

    Bounds may differ, and so may shapes of the same size but of pictures: a dataset without an
    environment may hold its only action as `[T, 1]`.
    """
    given, known = Signature.of(*spaces), loaded.signature
    for what in ("observations", "actions"):
        here, there = (
            {path: _told(leaf) for path, leaf in leaves.items()}
            for leaves in (getattr(given, what), getattr(known, what))
        )
        for path in [*there, *here]:
            if here.get(path) != there.get(path):
                mine, own = (_said(leaves.get(path)) for leaves in (here, there))
                leaf = f" {path!r}" if path else ""
                raise UserError(
                    f"the spaces given do not fit {loaded.folder}: of {what}{leaf} they have"
                    f" {mine}, but {own} is expected"
                )
    return spaces


def _shaped(arrays: Columns, leaves: Mapping[str, Leaf]) -> Columns:
    """Rows of leaves in their shapes, which may be others of the same size."""
    return {path: v.reshape(len(v), *leaves[path].shape) for path, v in arrays.items()}


def _told(leaf: Leaf) -> tuple[Any, ...]:
    return leaf.kind, leaf.shape if leaf.kind in ("grid", "image") else leaf.size, leaf.choices


def _said(leaf: tuple[Any, ...] | None) -> str:
    """A leaf in words: its kind, its size (a picture's shape), its choices."""
    if leaf is None:
        return "nothing"
    kind, size, choices = leaf
    return f"{kind} of {size}" + (f" with {choices} choices" if choices else "")
