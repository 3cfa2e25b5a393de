"""Suite `keydoor`: Key-to-Door, where what is done in the first room pays a hundred steps later or
never.

The task is the one on which the Decision Transformer paper measures long-term credit assignment
(Chen et al. 2021, arXiv:2106.01345, section 5), a variant of Mesnard et al. 2020
(arXiv:2011.09464). Its authors released neither environment nor data; layout, lengths of the phases
and the 5x5 view are those of the public Key-to-Door of Hung et al. 2019 (Nature Communications 10,
5223), without its apples.

An episode passes three rooms on a grid of 7 by 11 cells, one after the other:

1. 15 steps in the key room. A key lies at one of 10 cells of its upper part, the player starts at
   one of 10 cells of its lower part, both drawn uniformly; a gap of 3 cells joins the parts.
   Entering the key's cell picks it up.
2. 90 steps in the empty room, 5 by 9 cells, from the middle of its bottom row. Nothing can be
   gained there.
3. 15 steps in the door room, 3 by 3 cells, from its centre. The door, in the middle of the top
   wall, lets nobody in without the key. Entering it pays 1 and ends the episode.

Every other step pays 0, so the mean return is the share of successes. Actions: 0 up, 1 down, 2
left, 3 right; a wall, or the door without the key, leaves the player where it is. Uniformly random
actions pick up the key in 10.28 % and succeed in 2.81 % of the episodes; the paper reports 3.1 % of
its random ones. The length of a phase is the number of actions taken in its room. All ends are
terminations: the phases' clock is a rule of the task, and after it there is nothing to gain.

Observed is the 5x5 neighbourhood of the player, one-hot: for each cell, row by row from the top
left, whether it is wall, key or door; floor, and whatever lies beyond the walls, is three zeros.
The player, always in the middle, is left out. **Whether it carries the key cannot be seen**:
neither a flag nor the door's look tells, only the key's vanishing at the moment that it is picked
up, where the next step still shows the key room. What the paper's own variant shows is not
published; the public environment draws the crop in colours and shows no carried key either, but
flashes a mark in the wall for the one frame of the picking up, which is left out here. Nor can the
clock be seen. The observation is a float vector because every algorithm here reads one, those of
other libraries included.

`key-to-door-room` is the same game with the whole room in view: for each of the 77 cells of the
grid whether it is wall, key, door or player. There, too, nobody sees whether the key is carried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import ArrayRows, Arrays, Step, reset_step

if TYPE_CHECKING:
    import gymnasium

PHASES = (15, 90, 15)
"""Steps in the key room, the empty room and the door room."""
LENGTH = sum(PHASES)
FLOOR, WALL, KEY, DOOR, PLAYER = range(5)
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
"""Rows and columns that the actions go: up, down, left, right."""
REACH = 2
"""Cells that are seen on each side of the player."""
WIDTH = (2 * REACH + 1) ** 2 * 3
GRID = (7, 11)
ROOM_WIDTH = GRID[0] * GRID[1] * 4
KEY_CELLS = np.array([(row, column) for row in (1, 2) for column in range(3, 8)])
START_CELLS = np.array([(row, column) for row in (4, 5) for column in range(3, 8)])
"""Where the key may lie, and where the player may start, in the key room."""
ENTRANCES = {PHASES[0]: (5, 5), PHASES[0] + PHASES[1]: (3, 5)}
"""The steps at which the empty room and the door room begin, and the player's cell there."""


def _rooms() -> np.ndarray:
    """Key room, empty room and door room `[3, 7, 11]` of FLOOR, WALL and DOOR; walls are cut out of
    floor and floor out of walls."""
    rooms = np.full((3, *GRID), FLOOR)
    rooms[0, :, 2:9] = WALL
    rooms[0, 1:3, 3:8] = FLOOR
    rooms[0, 3, 4:7] = FLOOR
    rooms[0, 4:6, 3:8] = FLOOR
    rooms[1] = WALL
    rooms[1, 1:6, 1:10] = FLOOR
    rooms[2, 1:6, 3:8] = WALL
    rooms[2, 2:5, 4:7] = FLOOR
    rooms[2, 1, 5] = DOOR
    return rooms


ROOMS = _rooms()
ROOM_AT = np.repeat((0, 1, 2, 2), (*PHASES, 1))
"""The room of each step `[121]`; the last observation still shows the door room."""
_PADDED = np.pad(ROOMS, ((0, 0), (REACH, REACH), (REACH, REACH)), constant_values=FLOOR)
# [3, 7, 11, 5, 5]
_VIEWS = sliding_window_view(_PADDED, (2 * REACH + 1, 2 * REACH + 1), axis=(1, 2))
_ONE_HOT = np.eye(5, dtype=np.float32)[:, 1:]
"""Of a cell: wall, key, door, player."""
_COLOURS = np.array([(236, 232, 222), (70, 72, 84), (214, 158, 30), (126, 84, 52)], np.uint8)
_PLAYER, _CARRIER = (44, 110, 190), (226, 110, 30)
_PIXELS = 16


def key_to_door_room(render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Key-to-Door with the whole room in view; see `key_to_door`."""
    return key_to_door(render_mode, whole=True)


def key_to_door(render_mode: str | None, whole: bool = False) -> gymnasium.Env[Any, Any]:
    """Key-to-Door as a gymnasium environment; see the module.

    Observations are `[75]` float32, `[308]` of the `whole` room, actions 0 to 3.

    Its state is `t` (steps taken), `player` and `key` (row and column) and `carries`. A picture is
    `[112, 176, 3]` uint8, the whole grid at 16 pixels a cell; there, for people, a player that
    carries the key has another colour. Raises ValueError for an action that is none.
    """
    import gymnasium

    class KeyToDoor(gymnasium.Env[np.ndarray, int]):
        """The plain one, a step at a time: the reference of `KeyToDoorRows`."""

        metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (gymnasium declares it so)

        def __init__(self) -> None:
            self.render_mode = render_mode
            self.observation_space = gymnasium.spaces.Box(
                0.0, 1.0, (ROOM_WIDTH if whole else WIDTH,), np.float32
            )
            self.action_space = gymnasium.spaces.Discrete(len(MOVES))

        def reset(
            self, *, seed: int | None = None, options: Any = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            key, start = self.np_random.integers(len(KEY_CELLS), size=2)
            self.t, self.carries = 0, False
            self.key: tuple[int, int] = tuple(KEY_CELLS[key].tolist())
            self.player: tuple[int, int] = tuple(START_CELLS[start].tolist())
            return self._observe(), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            if not self.action_space.contains(action):
                raise ValueError(f"{action!r} is no action; they are 0 to {len(MOVES) - 1}")
            room = ROOM_AT[self.t]
            row, column = (
                self.player[0] + int(MOVES[action, 0]),
                self.player[1] + int(MOVES[action, 1]),
            )
            ahead = ROOMS[room, row, column]
            opened = bool(ahead == DOOR and self.carries)
            if ahead == FLOOR or opened:
                self.player = (row, column)
            if room == 0 and self.player == self.key:
                self.carries = True
            self.t += 1
            self.player = ENTRANCES.get(self.t, self.player)
            return self._observe(), float(opened), opened or self.t == LENGTH, False, {}

        def _grid(self) -> np.ndarray:
            grid: np.ndarray = ROOMS[ROOM_AT[self.t]].copy()
            if self.t < PHASES[0] and not self.carries:
                grid[self.key] = KEY
            return grid

        def _observe(self) -> np.ndarray:
            row, column = self.player
            kinds, seen = [WALL, KEY, DOOR], self._grid()
            if whole:
                kinds.append(PLAYER)
                seen[row, column] = PLAYER
            else:
                seen = np.pad(seen, REACH, constant_values=FLOOR)[
                    row : row + 2 * REACH + 1, column : column + 2 * REACH + 1
                ]
            shown: np.ndarray = (
                np.stack([seen == kind for kind in kinds], -1).astype(np.float32).reshape(-1)
            )
            return shown

        def render(self) -> np.ndarray:  # type: ignore[override]  # gymnasium types a frame as its own generic
            picture = _COLOURS[self._grid()]
            picture[self.player] = _CARRIER if self.carries else _PLAYER
            return np.asarray(picture.repeat(_PIXELS, 0).repeat(_PIXELS, 1))

    return KeyToDoor()


class KeyToDoorRows(ArrayRows):
    """n games of Key-to-Door stepped as arrays; row i plays what a `key_to_door` seeded with
    `seed + i` plays. See VectorEnv."""

    def __init__(self, n: int, seed: int, signature: Signature) -> None:
        super().__init__(n, seed, signature)
        self._player = np.zeros((n, 2), np.int64)
        self._key = np.zeros((n, 2), np.int64)
        self._carries = np.zeros(n, bool)

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        drawn = np.array([self._chance[i].integers(len(KEY_CELLS), size=2) for i in rows])
        self._t[rows], self._carries[rows] = 0, False
        self._key[rows], self._player[rows] = KEY_CELLS[drawn[:, 0]], START_CELLS[drawn[:, 1]]
        return reset_step(len(rows), self._observe(rows))

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv. A row whose action is none fails."""
        action, room, at, carries = (
            actions[""],
            ROOM_AT[self._t[rows]],
            self._player[rows],
            self._carries[rows],
        )
        wrong = np.flatnonzero((action < 0) | (action >= len(MOVES)))
        to = at + MOVES.take(action, axis=0, mode="clip")
        ahead = ROOMS[room, to[:, 0], to[:, 1]]
        opened = (ahead == DOOR) & carries
        at = np.where(((ahead == FLOOR) | opened)[:, None], to, at)
        self._carries[rows] = carries | ((room == 0) & (at == self._key[rows]).all(1))
        t = self._t[rows] + 1
        for begin, cell in ENTRANCES.items():
            at[t == begin] = cell
        self._t[rows], self._player[rows] = t, at
        failures = {
            k: f"ValueError: {action[k]} is no action; they are 0 to {len(MOVES) - 1}"
            for k in wrong.tolist()
        }
        return Step(
            self._observe(rows),
            opened.astype(np.float32),
            opened | (t == LENGTH),
            np.zeros(len(rows), bool),
            failures,
        )

    def _observe(self, rows: np.ndarray) -> Arrays:
        t, at = self._t[rows], self._player[rows]
        seen = _VIEWS[ROOM_AT[t], at[:, 0], at[:, 1]]
        key = self._key[rows] - at + REACH  # in the view
        near = np.flatnonzero(
            (t < PHASES[0]) & ~self._carries[rows] & (key >= 0).all(1) & (key <= 2 * REACH).all(1)
        )
        seen[near, key[near, 0], key[near, 1]] = KEY
        return {"": _ONE_HOT[seen, :3].reshape(len(rows), WIDTH)}


class KeyToDoorRoomRows(KeyToDoorRows):
    """The same with the whole room in view."""

    def _observe(self, rows: np.ndarray) -> Arrays:
        t, at, key = self._t[rows], self._player[rows], self._key[rows]
        seen = ROOMS[ROOM_AT[t]]
        lies = np.flatnonzero((t < PHASES[0]) & ~self._carries[rows])
        seen[lies, key[lies, 0], key[lies, 1]] = KEY
        seen[np.arange(len(rows)), at[:, 0], at[:, 1]] = PLAYER
        return {"": _ONE_HOT[seen].reshape(len(rows), ROOM_WIDTH)}


def _task(
    name: str,
    env: Callable[[str | None], gymnasium.Env[Any, Any]],
    rows: type[KeyToDoorRows],
    about: str,
) -> Task:
    return Task(
        name,
        env,
        rows,
        max_return=1.0,
        reference_returns=(0.0, 1.0),  # so that the normalised score is the success rate in percent
        about=about,
    )


ABOUT = "take a key, cross an empty room for 90 steps, open a door: 1 for the door, 120 steps"
TASKS = {
    "key-to-door": _task("key-to-door", key_to_door, KeyToDoorRows, ABOUT),
    "key-to-door-room": _task(
        "key-to-door-room", key_to_door_room, KeyToDoorRoomRows, f"{ABOUT}; the room in view"
    ),
}
