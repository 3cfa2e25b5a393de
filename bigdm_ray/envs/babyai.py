"""Suite `babyai`: the 96 levels of BabyAI (Chevalier-Boisvert et al. 2019) as MiniGrid registers
them: an agent in rooms of a grid is told in words what to do.

Observed are `direction` (0 east, 1 south, 2 west, 3 north), `image`, the 7x7 fields in front of the
agent as symbols, and `mission`, the words, which hold for the whole episode. A field is three
symbols: what is there (11 kinds), its colour (6), and whether a door is open, closed or locked (3);
`image` is a grid of them, `[7, 7, 3]` uint8, no picture. An action is one of seven: left, right,
forward, pick up, drop, toggle, done. Reaching the goal at step t pays 1 - 0.9 t / limit, nothing
else pays, so a return above 0 is a success; the limit follows from the level and its mission.

MiniGrid's environments are the reference; EnvPool's, which draw other levels of the same seeds
from the same distributions, play, but for `synth-s5r2`, of which EnvPool draws some levels without
end. Missions are the same bytes in both.

Names are MiniGrid's in lower case, `BabyAI-GoToLocalS5N2-v0` being `go-to-local-s5n2`.
`reference_returns` (`babyai.json`) are mean returns of a random policy over 100 episodes, played on
EnvPool, and of BabyAI's bot over 32 on the reference, or over 3,000 and more where the bot's
episodes were recorded; levels that the bot cannot do have none. JAT's, for 39 of the levels, are in
`jat.py`.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.signature import PER_EPISODE
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import envpool_rows
from bigdm_ray.jsons import read_json

if TYPE_CHECKING:
    import gymnasium

SYMBOLS = (11, 6, 3)
"""Kinds of things, colours, and states of doors."""
VIEW = 7
MISSION_BYTES = 512

LEVELS = {
    "go to the red ball; all else is grey": "GoToRedBallGrey",
    "go to the red ball": "GoToRedBall",
    "go to the red ball; nothing else is there": "GoToRedBallNoDists",
    "go to the only object": "GoToObj GoToObjS4 GoToObjS6",
    "go to one of several objects in a room": (
        "GoToLocal GoToLocalS5N2 GoToLocalS6N2 GoToLocalS6N3 GoToLocalS6N4 GoToLocalS7N4"
        " GoToLocalS7N5 GoToLocalS8N2 GoToLocalS8N3 GoToLocalS8N4 GoToLocalS8N5 GoToLocalS8N6"
        " GoToLocalS8N7"
    ),
    "go to an object in a maze of nine rooms": "GoTo",
    "go to an object in a maze whose doors are open": "GoToOpen",
    "go to the only object of a maze": (
        "GoToObjMaze GoToObjMazeS4R2 GoToObjMazeS4 GoToObjMazeS5 GoToObjMazeS6 GoToObjMazeS7"
    ),
    "go to the only object of a maze whose doors are open": "GoToObjMazeOpen",
    "go to an object that may be behind a locked door": "GoToImpUnlock",
    "go to several objects in a given order": "GoToSeq GoToSeqS5R2",
    "go to the red or the blue ball": "GoToRedBlueBall",
    "go to a door of the room": "GoToDoor",
    "go to an object or a door": "GoToObjDoor",
    "open a door in a maze": "Open",
    "open the red door": "OpenRedDoor",
    "open a door of the room, told by its colour or place": "OpenDoor OpenDoorDebug",
    "open a door of the room, told by its colour": "OpenDoorColor",
    "open a door of the room, told by its place": "OpenDoorLoc",
    "open two doors in a given order": "OpenTwoDoors",
    "open the red door, then the blue one": "OpenRedBlueDoors OpenRedBlueDoorsDebug",
    "open two doors in the order that is told": (
        "OpenDoorsOrderN2 OpenDoorsOrderN4 OpenDoorsOrderN2Debug OpenDoorsOrderN4Debug"
    ),
    "pick up an object in a maze": "Pickup",
    "pick up an object in a maze where others may stand in the way": "UnblockPickup",
    "pick up an object of the room, told by its looks or place": "PickupLoc",
    "pick up an object of the room, told by kind, colour or both": "PickupDist PickupDistDebug",
    "pick up the object in the room above": "PickupAbove",
    "put one object of the room next to another": (
        "PutNextLocal PutNextLocalS5N3 PutNextLocalS6N4"
    ),
    "put an object of one room next to one of the other": (
        "PutNextS4N1 PutNextS5N2 PutNextS5N1 PutNextS6N3 PutNextS7N4"
    ),
    "put the object that is carried next to another": (
        "PutNextS5N2Carrying PutNextS6N3Carrying PutNextS7N4Carrying"
    ),
    "open a locked door in a maze, whose key lies in another room": "Unlock",
    "open the locked door of the room": "UnlockLocal UnlockLocalDist",
    "open a locked door whose key lies in a box": "KeyInBox",
    "pick up what is behind a locked door": "UnlockPickup UnlockPickupDist",
    "pick up what is behind a locked door that is blocked": "BlockedUnlockPickup",
    "unlock a door to reach the key of another": "UnlockToUnlock",
    "go to, pick up or open an object or a door": "ActionObjDoor",
    "find an object that may be in any of nine rooms": "FindObjS5 FindObjS6 FindObjS7",
    "find the key of the locked room in a corridor's rooms, and pick up what is in it": (
        "KeyCorridor KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3 KeyCorridorS4R3"
        " KeyCorridorS5R3 KeyCorridorS6R3"
    ),
    "pick up the ball of a single room": "OneRoomS8 OneRoomS12 OneRoomS16 OneRoomS20",
    "put two objects next to two others in the other room": "MoveTwoAcrossS5N2 MoveTwoAcrossS8N9",
    "do any one thing that a mission may be, in a maze": "Synth SynthS5R2",
    "do any one thing, places being told, too": "SynthLoc",
    "do several things in a given order": "SynthSeq",
    "do anything that can be told, in four rooms": "MiniBossLevel",
    "do anything that can be told, in a maze": "BossLevel",
    "do anything that can be told, in a maze without locked doors": "BossLevelNoUnlock",
}
"""What is to be done, and MiniGrid's names of the levels where it is."""


def short_name(level: str) -> str:
    """`GoToLocalS5N2` as `go-to-local-s5n2`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "-", level).lower()


def _environment(env_id: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """A level of MiniGrid with the observations of this suite."""
    import gymnasium
    import minigrid  # noqa: F401  (it registers its levels)
    from gymnasium import spaces

    class Told(gymnasium.Wrapper[dict[str, Any], int, dict[str, Any], int]):
        """Says which observations are a grid of symbols, and text."""

        metadata = {  # noqa: RUF012  (gymnasium declares it so)
            "render_modes": ["rgb_array"],
            "render_fps": 10,
            PER_EPISODE: ["mission"],
        }

        def __init__(self) -> None:
            super().__init__(
                gymnasium.make(env_id, render_mode=render_mode, disable_env_checker=True)
            )
            letters = "abcdefghijklmnopqrstuvwxyz, "
            self.observation_space = spaces.Dict(
                {
                    "direction": spaces.Discrete(4),
                    "image": spaces.MultiDiscrete(np.full((VIEW, VIEW, 3), SYMBOLS), np.uint8),
                    "mission": spaces.Text(MISSION_BYTES // 4, charset=letters),
                }
            )

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[dict[str, Any], dict[str, Any]]:
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of every draw that failed
                return super().reset(seed=seed, options=options)

    return Told()


_RETURNS: dict[str, list[float]] = read_json(Path(__file__).with_suffix(".json"))


def level(camel: str, about: str) -> Task:
    """One of MiniGrid's levels by its name there."""
    env_id = f"BabyAI-{camel}-v{1 if camel == 'GoToObjS6' else 0}"
    name = short_name(camel)
    pooled = camel != "SynthS5R2"
    returns = _RETURNS.get(name)
    return Task(
        name,
        lambda render_mode: _environment(env_id, render_mode),
        envpool_rows(env_id) if pooled else None,
        extra="babyai",
        needs=("minigrid",),
        fast_needs=("envpool",) if pooled else (),
        max_return=1.0,
        reference_returns=None if returns is None else (returns[0], returns[1]),
        about=about,
        success=0.0,
    )


TASKS = {
    task.name: task
    for task in (level(name, about) for about, listed in LEVELS.items() for name in listed.split())
}
