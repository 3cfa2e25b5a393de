"""Suite `fourrooms`: a point in a square of four rooms that has to be where the goal is; a
goal-reaching task that can be drawn.

Four rooms joined by four doors are the layout on which hierarchical learning has been studied since
Sutton, Precup and Singh 1999 (Artificial Intelligence 112), there and in MiniGrid as a grid; the
Trajectory Transformer paper (Janner, Li, Levine 2021, section 4.2) draws goal-reaching on it. This
one is continuous, so that its trajectories are lines, and of our own measures.

The square reaches from -1 to 1 in both directions. Two walls without thickness, x = 0 and y = 0,
cut it into rooms; each has two doors, 0.3 wide, around -0.5 and 0.5. An action is a displacement by
at most 0.25 in each direction: first x moves, then y, and each stops 0.02 before a wall that it
would cross. An episode draws start and goal uniformly, at least 0.5 apart; reaching the goal, to be
within 0.1 of it, pays 1 and ends the episode, and after 100 steps a time limit does. Every other
step pays 0, so the mean return is the share of successes.

The steps are long against the rooms so that random play, which has no momentum, comes through doors
often enough to cover the map: uniformly random actions reach the goal in 21 % of the episodes, and
see 2.4 of the 4 rooms in an episode that does not.

Observed are `position` and `goal`, x and y of each; the goal comes first where leaves are sorted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import ArrayRows, Arrays, Step, reset_step

if TYPE_CHECKING:
    import gymnasium

LENGTH = 100
STEP = 0.25
"""The longest displacement of a step in each direction."""
REACHED = 0.1
"""Nearer to the goal than this is there."""
APART = 0.5
"""The least distance of start and goal."""
DOOR, HALF_DOOR = 0.5, 0.15
"""How far the middle of a door is from the centre of the square, and from its own ends."""
BEFORE = 0.02
"""Where a step stops before a wall."""
_SIDE = 240
_FLOOR, _WALL, _POINT, _GOAL = (236, 232, 222), (70, 72, 84), (44, 110, 190), (226, 110, 30)


def draw_start_and_goal(chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A start and a goal, each `[2]` float64, at least APART from each other."""
    while True:
        start, goal = chance.uniform(-1.0, 1.0, (2, 2))
        if np.hypot(*(start - goal)) >= APART:
            return start, goal


def outline() -> tuple[tuple[tuple[float, float], ...], ...]:
    """The square and the pieces of both walls between the doors, as lines of points (x, y)."""
    ends = (-1.0, -DOOR - HALF_DOOR, -DOOR + HALF_DOOR, DOOR - HALF_DOOR, DOOR + HALF_DOOR, 1.0)
    pieces = [(ends[i], ends[i + 1]) for i in (0, 2, 4)]
    walls = [((a, 0.0), (b, 0.0)) for a, b in pieces] + [((0.0, a), (0.0, b)) for a, b in pieces]
    return (((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0)), *walls)


def pixels(positions: np.ndarray) -> np.ndarray:
    """Where positions `[..., 2]` are in a picture: (column, row) `[..., 2]`."""
    return (np.asarray(positions) * (1, -1) + 1) / 2 * _SIDE - 0.5


def four_rooms(render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Four rooms as a gymnasium environment; see the module.

    Observations are a dict of `position` and `goal`, `[2]` float32 each; actions `[2]` from -1 to
    1, to which they are cut.

    Its state is `t` (steps taken), `position` and `goal`, `[2]` float64 each. A picture is
    `[240, 240, 3]` uint8, y upwards. Raises ValueError for an action that is not two finite
    numbers.
    """
    import gymnasium

    class FourRooms(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
        """The plain one, a step at a time: the reference of `FourRoomsRows`."""

        metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (gymnasium declares it so)

        def __init__(self) -> None:
            self.render_mode = render_mode
            place = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
            self.observation_space = gymnasium.spaces.Dict({"goal": place, "position": place})
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

        def reset(
            self, *, seed: int | None = None, options: Any = None
        ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            super().reset(seed=seed)
            self.t = 0
            self.position, self.goal = draw_start_and_goal(self.np_random)
            return self._observe(), {}

        def step(
            self, action: np.ndarray
        ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
            if np.shape(action) != (2,) or not np.isfinite(action).all():
                raise ValueError(f"{action!r} is no action; it is two finite numbers")
            at = [float(value) for value in self.position]
            for axis in (0, 1):
                to = at[axis] + STEP * min(1.0, max(-1.0, float(action[axis])))
                to = min(1.0, max(-1.0, to))
                in_door = abs(abs(at[1 - axis]) - DOOR) < HALF_DOOR
                if (to < 0) != (at[axis] < 0) and not in_door:
                    to = -BEFORE if at[axis] < 0 else BEFORE
                at[axis] = to
            self.position = np.array(at)
            self.t += 1
            there = bool(np.hypot(*(self.position - self.goal)) < REACHED)
            return self._observe(), float(there), there, self.t == LENGTH and not there, {}

        def _observe(self) -> dict[str, np.ndarray]:
            return {
                "goal": self.goal.astype(np.float32),
                "position": self.position.astype(np.float32),
            }

        def render(self) -> np.ndarray:  # type: ignore[override]  # gymnasium types a frame as its own generic
            across = (np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
            x, y = np.meshgrid(across, -across)
            picture = np.full((_SIDE, _SIDE, 3), _FLOOR, np.uint8)
            for along, beside in ((x, y), (y, x)):
                picture[
                    (np.abs(along) < BEFORE / 2) & (np.abs(np.abs(beside) - DOOR) >= HALF_DOOR)
                ] = _WALL
            picture[np.hypot(x - self.goal[0], y - self.goal[1]) < REACHED] = _GOAL
            picture[np.hypot(x - self.position[0], y - self.position[1]) < 0.05] = _POINT
            return picture

    return FourRooms()


class FourRoomsRows(ArrayRows):
    """n points stepped as arrays; row i plays what a `four_rooms` seeded with `seed + i` plays.

    See VectorEnv.
    """

    def __init__(self, n: int, seed: int, signature: Signature) -> None:
        super().__init__(n, seed, signature)
        self._position = np.zeros((n, 2))
        self._goal = np.zeros((n, 2))

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        self._t[rows] = 0
        for i in rows.tolist():
            self._position[i], self._goal[i] = draw_start_and_goal(self._chance[i])
        return reset_step(len(rows), self._observe(rows))

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv. A row whose action is not finite fails."""
        action, at = actions[""].astype(np.float64), self._position[rows]
        wrong = np.flatnonzero(~np.isfinite(action).all(1))
        moved = STEP * np.clip(np.nan_to_num(action), -1.0, 1.0)
        for axis in (0, 1):
            before, to = at[:, axis].copy(), np.clip(at[:, axis] + moved[:, axis], -1.0, 1.0)
            in_door = np.abs(np.abs(at[:, 1 - axis]) - DOOR) < HALF_DOOR
            stopped = ((to < 0) != (before < 0)) & ~in_door
            at[:, axis] = np.where(stopped, np.where(before < 0, -BEFORE, BEFORE), to)
        t = self._t[rows] + 1
        self._t[rows], self._position[rows] = t, at
        there = np.hypot(*(at - self._goal[rows]).T) < REACHED
        failures = {
            k: f"ValueError: {actions[''][k]!r} is no action; it is two finite numbers"
            for k in wrong.tolist()
        }
        return Step(
            self._observe(rows), there.astype(np.float32), there, (t == LENGTH) & ~there, failures
        )

    def _observe(self, rows: np.ndarray) -> Arrays:
        return {
            "goal": self._goal[rows].astype(np.float32),
            "position": self._position[rows].astype(np.float32),
        }


TASKS = {
    "four-rooms": Task(
        "four-rooms",
        four_rooms,
        FourRoomsRows,
        max_return=1.0,
        reference_returns=(0.0, 1.0),  # so that the normalised score is the success rate in percent
        outline=outline(),
        pixels=pixels,
        place="position",
        success=0.0,
        about=(
            "a point in four rooms that has to reach a goal: 1 for reaching it, at most 100 steps"
        ),
    )
}
