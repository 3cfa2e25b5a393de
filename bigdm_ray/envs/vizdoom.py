"""Suite `vizdoom`: TakeCover, dodging fireballs in Doom, +1 for every tic survived.

The screen is rendered at 160x120 in grey and resized to one 32x32 frame a step; policies and
windows stack the last eight (Srivastava et al. 2019, section 3). VizDoom itself steps it: EnvPool's
Doom pays no living reward. The scenario has no time limit of its own, so 2,100 tics truncate an
episode.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.task import Task

TICS = 2100


@functools.cache
def setpriv() -> str | None:
    """util-linux's `setpriv`, where it is and works."""
    found = shutil.which("setpriv")
    return (
        found
        if found
        and subprocess.run([found, "--pdeathsig", "KILL", "true"], capture_output=True).returncode
        == 0
        else None
    )


def leash_engine(engine: Path, folder: Path) -> Path:
    """A program in `folder` that starts the engine so that Linux ends it with the process that
    plays, were that killed with -9.

    VizDoom starts its engine, a process of its own, by the path of a program, and only the engine's
    own process can ask for this (prctl's PR_SET_PDEATHSIG). Where there is no `setpriv`, or nothing
    in `folder` may be executed, it is the engine itself.
    """
    program = folder / "engine"
    program.write_text(
        f'#!/bin/sh\nexec {setpriv()} --pdeathsig KILL {shlex.quote(str(engine))} "$@"\n'
    )
    program.chmod(0o700)
    return program if setpriv() and engine.is_file() and os.access(program, os.X_OK) else engine


def takecover(render_mode: str | None) -> Any:
    """VizDoom's take_cover scenario as a gymnasium environment with 32x32 grey frames and three
    actions."""
    import cv2
    import gymnasium
    import vizdoom

    class TakeCover(gymnasium.Env[np.ndarray, int]):
        """Actions: 0 stands still, 1 moves left, 2 moves right; one action a tic."""

        metadata = {"render_modes": ["rgb_array"], "render_fps": 35}  # noqa: RUF012  (gymnasium declares it so)

        def __init__(self) -> None:
            self.render_mode = render_mode
            self.observation_space = gymnasium.spaces.Box(0, 255, (32, 32), np.uint8)
            self.action_space = gymnasium.spaces.Discrete(3)
            game = vizdoom.DoomGame()
            game.load_config(str(Path(vizdoom.scenarios_path) / "take_cover.cfg"))
            game.set_window_visible(False)
            game.set_available_game_variables([])
            game.set_available_buttons([vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT])
            game.set_screen_format(
                vizdoom.ScreenFormat.GRAY8 if render_mode is None else vizdoom.ScreenFormat.RGB24
            )
            game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
            # else it leaves _vizdoom.ini where it is started, and reads the one it finds there
            game.set_doom_config_path(os.devnull)
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.chdir(folder),
            ):  # and leaves a folder _vizdoom
                game.set_vizdoom_path(
                    str(leash_engine(Path(vizdoom.__file__).with_name("vizdoom"), Path(folder)))
                )
                game.init()
            self._game = game
            self._buttons = [[False, False], [True, False], [False, True]]
            self._screen = np.zeros((120, 160), np.uint8)
            self._tics = 0

        def reset(
            self, *, seed: int | None = None, options: Any = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            self._game.set_seed(int(self.np_random.integers(2**31)))
            self._game.new_episode()
            self._tics = 0
            return self._observe(), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            reward = self._game.make_action(self._buttons[int(action)], 1)
            self._tics += 1
            ended = self._game.is_episode_finished()
            return self._observe(), reward, ended, not ended and self._tics >= TICS, {}

        def _observe(self) -> np.ndarray:
            state = self._game.get_state()
            if state is not None:  # none after the last tic: the last picture stays
                self._screen = state.screen_buffer
            grey = (
                self._screen
                if self._screen.ndim == 2
                else cv2.cvtColor(self._screen, cv2.COLOR_RGB2GRAY)
            )
            return np.asarray(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))

        def render(self) -> np.ndarray:  # type: ignore[override]  # gymnasium types a frame as its own generic
            return self._screen

        def close(self) -> None:
            self._game.close()

    cv2.setNumThreads(1)
    return TakeCover()


TASKS = {
    "takecover": Task(
        "takecover",
        takecover,
        extra="vizdoom",
        needs=("vizdoom", "cv2"),
        max_return=float(TICS),
        about="dodge fireballs in Doom for up to 2,100 tics, from 32x32 grey frames",
    )
}
