"""Films of episodes: mp4 files, with what was asked for and what has come of it under each
frame."""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import Arrays, Step, VectorEnv
from bigdm_ray.errors import RunFailed, UserError, install, one_line
from bigdm_ray.progress import Progress
from bigdm_ray.training.acting import policy_of
from bigdm_ray.training.evaluation import (
    constant,
)
from bigdm_ray.training.loaded import Loaded
from bigdm_ray.training.rollout import EpisodeOrigin, rollout
from bigdm_ray.training.streams import derived_seed, rng

VIDEO_EPISODES = 3
"""Episodes of a video; where the mode is plan, not more than were asked for."""
FAINT, BOLD = (150, 150, 160), (190, 20, 120)
"""Colours of a plan's beams in a video, and of the plan."""


def require_video() -> None:
    """Raise UserError, naming the extra that helps, where a package that writes videos is
    missing."""
    for module in ("imageio", "imageio_ffmpeg"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"--video needs the package {module!r} ({error}); install it with:"
                f" {install('video')}"
            ) from None


def frames_per_second(task: Task) -> int:
    """How fast the environment says that its pictures follow each other."""
    env = task.env(None)
    try:
        return int(env.metadata.get("render_fps") or 30)
    finally:
        env.close()


@contextlib.contextmanager
def film(path: Path, fps: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends a frame `[height, width, 3]` uint8 to an mp4, which appears under its
    name when it is whole."""
    part = path.with_name(f".part-{path.name}")
    try:
        # 2: sides must be even
        writer = importlib.import_module("imageio.v2").get_writer(part, fps=fps, macro_block_size=2)
        with contextlib.closing(
            writer
        ):  # as a context of its own it stays open behind an error, and ffmpeg makes the file later
            yield writer.append_data
        part.rename(path)
    except OSError as error:
        why = error.strerror or str(error).strip().partition("\n")[0]
        raise RunFailed(
            f"cannot write {path}: {why}; make its folder writable or free some space"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def record_video(
    loaded: Loaded, report: dict[str, Any], path: Path, episodes: int = VIDEO_EPISODES
) -> list[float]:
    """Write a video of some episodes, played as the report's were but with seeds of their own;
    their returns.

    The frames are those after each step, below the return that was asked for and what has come of
    it so far; a terminal shows how many there are. The last plan is drawn into them where there is
    one and the task says where its states are in a picture. Raises RunFailed where an episode
    cannot be played or written.
    """
    cached = None if loaded.run.algorithm.cache is None else report["cached"]
    policy, _ = policy_of(loaded, report["mode"], cached)
    task, seed = loaded.task, report["seed"]
    returns: list[float] = []
    planned: list[np.ndarray] = []
    if task.pixels is not None:
        policy.show_plans(task.place, lambda plans: planned.__setitem__(slice(None), [plans]))

    def frame() -> np.ndarray:
        plain = picture(task, env.frame)
        return (
            draw_lines(plain, task.pixels(planned[0]))
            if planned and task.pixels is not None
            else plain
        )

    env = ReturnCounter(task.video_env(derived_seed(seed, "video environments")))
    try:
        with (
            Progress(f"video of {task.name}", units="frames") as bar,
            film(path, frames_per_second(task)) as append,
        ):

            def on_step() -> None:
                append(add_caption(frame(), env.caption(report["command"])))
                bar.advance(1)

            bar.advance(0)
            for number in range(episodes):
                origin = EpisodeOrigin(
                    number, 0, task.name, loaded.version, "video", seed, task.max_return
                )
                played = rollout(
                    policy,
                    env,
                    constant(report["command"], 1),
                    1,
                    rng(seed, "video", number),
                    origin,
                    on_step,
                )
                if not played.episodes:
                    raise RunFailed(f"no video of {task.name} could be made: {played.problems[0]}")
                returns.append(played.episodes[0].total_return)
    finally:
        env.close()
    return returns


def picture(task: Task, draw: Callable[[], np.ndarray]) -> np.ndarray:
    """A frame. Raises UserError where the environment draws none, RunFailed where it fails to."""
    try:
        frame = draw()
    except (UserError, RunFailed):
        raise
    except Exception as error:  # noqa: BLE001  (drawing is foreign code, which may raise anything)
        why = f"its environment raised {type(error).__name__} as it drew: {one_line(error)}"
        raise RunFailed(f"no video of {task.name} could be made: {why}") from None
    if frame.ndim != 3 or frame.dtype != np.uint8:
        raise UserError(f"task {task.name!r} draws no pictures; leave --video out")
    return frame


class ReturnCounter:
    """Environments, and the return of their first row so far."""

    def __init__(self, env: VectorEnv) -> None:
        self._env, self._total = env, 0.0
        self.n, self.signature = env.n, env.signature
        self.frame, self.reseed, self.close = env.frame, env.reseed, env.close

    def reset(self, rows: np.ndarray) -> Step:
        """See VectorEnv."""
        self._total = 0.0
        return self._env.reset(rows)

    def step(self, rows: np.ndarray, actions: Arrays) -> Step:
        """See VectorEnv."""
        step = self._env.step(rows, actions)
        self._total += float(step.rewards[0])
        return step

    def caption(self, command: Mapping[str, float]) -> str:
        """What was asked for, where something was, and what has come of it."""
        asked = f"asked {command['desired_return']:,.1f}, " if "desired_return" in command else ""
        return f"{asked}so far {self._total:,.1f}"


def add_caption(frame: np.ndarray, text: str) -> np.ndarray:
    """A frame `[height, width, 3]` uint8 below a band with a line of text."""
    draw, font, image = (
        importlib.import_module(f"PIL.Image{name}") for name in ("Draw", "Font", "")
    )
    band = max(16, frame.shape[1] // 40 * 2)
    out = image.new("RGB", (frame.shape[1], frame.shape[0] + band), (255, 255, 255))
    out.paste(image.fromarray(frame), (0, band))
    letters = font.load_default(size=round(0.7 * band))
    draw.Draw(out).text((band // 4, band // 2), text, (0, 0, 0), font=letters, anchor="lm")
    return np.asarray(out)


def draw_lines(frame: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """A frame `[height, width, 3]` with lines over it, `[beams, H, 2]` points (column, row) each,
    the first, which is the plan, above the others.

    A line ends at its first point that is not finite; what lies outside the frame is left out.
    """
    out = frame.copy()
    for line, colour, thick in [*((line, FAINT, 0) for line in lines[:0:-1]), (lines[0], BOLD, 1)]:
        for a, b in itertools.pairwise(line):
            if not np.isfinite([a, b]).all():
                break
            along = np.linspace(a, b, int(np.abs(b - a).max()) + 2)
            for shift in itertools.product(range(-thick, thick + 1), repeat=2):
                column, row = (np.round(along) + shift).astype(int).T
                inside = (column >= 0) & (column < out.shape[1]) & (row >= 0) & (row < out.shape[0])
                out[row[inside], column[inside]] = colour
    return out
