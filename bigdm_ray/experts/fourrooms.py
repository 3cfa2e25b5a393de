"""A planner for `four-rooms`: straight to the goal where it is in the same room, else to the
middle of the next door on the shortest way there.

A point moves first along x, then along y, and is stopped before a wall unless it stands within a
door; so a door is crossed by a step straight at the wall, once the point is level with the door.
"""

from __future__ import annotations

import numpy as np

from bigdm_ray.envs.fourrooms import BEFORE, DOOR, HALF_DOOR, STEP
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import Arrays
from bigdm_ray.experts.base import Expert, Scripted

WITHIN = HALF_DOOR / 3
"""How near to the middle of a door the point must be to go through."""


def towards(at: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The displacement `[2]`, in parts of a step, by which a point at `at [2]` comes nearer to
    `goal [2]` on the shortest way through the doors."""
    side, there = np.sign(at + (at == 0)), np.sign(goal + (goal == 0))
    apart = np.flatnonzero(side != there)
    if not len(apart):
        straight: np.ndarray = np.clip((goal - at) / STEP, -1.0, 1.0)
        return straight
    if len(apart) == 1:
        first = int(apart[0])
    else:  # the opposite room: by way of the nearer of the two others
        first = int(np.argmin([_length(at, goal, side, there, axis) for axis in (0, 1)]))
    return _through(at, first, side)


def _door(axis: int, side: np.ndarray) -> np.ndarray:
    """The middle of the door in the wall across `axis`, on the point's side of the other axis."""
    middle = np.zeros(2)
    middle[1 - axis] = DOOR * side[1 - axis]
    return middle


def _length(
    at: np.ndarray, goal: np.ndarray, side: np.ndarray, there: np.ndarray, axis: int
) -> float:
    """Of the way through the wall across `axis` first, then through the other."""
    after = side.copy()
    after[axis] = there[axis]
    one, two = _door(axis, side), _door(1 - axis, after)
    return float(np.hypot(*(one - at)) + np.hypot(*(two - one)) + np.hypot(*(goal - two)))


def _through(at: np.ndarray, axis: int, side: np.ndarray) -> np.ndarray:
    """To the door in the wall across `axis`, and through it where the point is level with it."""
    off = _door(axis, side)[1 - axis] - at[1 - axis]
    move = np.zeros(2)
    move[1 - axis] = np.clip(off / STEP, -1.0, 1.0)
    if abs(off) < WITHIN:
        move[axis] = -side[axis]
    else:  # up to the wall meanwhile
        move[axis] = np.clip((BEFORE * side[axis] - at[axis]) / STEP, -1.0, 1.0)
    return move


def expert(task: Task) -> Expert | None:
    """The planner, for four-rooms."""
    if task.full_name != "fourrooms/four-rooms":
        return None

    def choose(observations: Arrays) -> Arrays:
        at, goal = (observations[name].astype(np.float64) for name in ("position", "goal"))
        return {"": np.array([*map(towards, at, goal)], np.float32)}

    return Expert("four-rooms-planner", lambda rows: Scripted(choose))
