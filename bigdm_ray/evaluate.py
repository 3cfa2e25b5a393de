"""Score a trained policy: `python -m bigdm_ray.evaluate FOLDER [flags]`.

    python -m bigdm_ray.evaluate runs/udrl-lunarlander-1
            100 episodes, commanded as the run's own evaluation
    python -m bigdm_ray.evaluate runs/udrl-lunarlander-1 --desired-return 100
            ask for another return
    python -m bigdm_ray.evaluate runs/udrl-lunarlander-1 --weights best --video
    python -m bigdm_ray.evaluate runs/udrl-cartpole-1 runs/udrl-cartpole-2
            several runs, and their scores in one table
    python -m bigdm_ray.evaluate runs/tt-hopper-medium-1 --mode plan --actors 8 --rows 1
            on 8 actors of Ray
    python -m bigdm_ray.evaluate runs/tt-hopper-medium-1 --mode plan --algorithm.horizon 5
            a setting that affects acting alone

Episodes are played on gymnasium's environments, with random streams that neither training nor the
run's own evaluations use; the same seed gives the same returns. They are cut into parts of --rows
episodes, which act together in one batch; actors play a part each, and their number does not show
in the returns. Ctrl-C leaves a report of the episodes that have ended, which says so.

Prints a table and leaves FOLDER/evaluation.json, then with --video FOLDER/video.mp4, and its
returns in the report. Frames show the return that was asked for and what has come of it so far, and
the plan that led to them, where mode `plan` searches for one and the task can say where a state is
in its pictures (four-rooms can, MuJoCo's cannot).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray import stopping
from bigdm_ray.doors import Parser, door, split_prefixed
from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import Arrays, Step, VectorEnv
from bigdm_ray.errors import RunFailed, UserError, install, one_line
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.progress import Progress
from bigdm_ray.settings import setting
from bigdm_ray.tables.runs import align_columns, markdown, row
from bigdm_ray.training.acting import command_of, policy_of, report_head, run_as
from bigdm_ray.training.evaluation import (
    ROWS,
    constant,
    evaluate_in_parts,
    join_scores,
    split_episodes,
)
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.loaded import Loaded, load, locate_run
from bigdm_ray.training.params import Weights
from bigdm_ray.training.rollout import EpisodeOrigin, rollout
from bigdm_ray.training.run_folder import versions, write_json
from bigdm_ray.training.streams import derived_seed, rng
from bigdm_ray.training.zoo import results

SCHEMA_VERSION = 1
VIDEO_EPISODES = 3
"""Episodes of a video; where the mode is plan, not more than were asked for."""
OWN = "--algorithm."
"""How the flags of the algorithm's own settings begin."""
PLANNED_ROWS = 8
"""Episodes that plan together: a larger batch is hardly cheaper, and a part is what an actor
plays."""
FAINT, BOLD = (150, 150, 160), (190, 20, 120)
"""Colours of a plan's beams in a video, and of the plan."""


@dataclass(frozen=True)
class EvaluateFlags:
    """The flags. None stands for what the run itself has used."""

    episodes: int | None = setting(
        None,
        "episodes to play; default: 100, where the mode is plan as many as in the run's own final"
        " evaluation",
        low=1,
        high=1_000_000,
    )
    rows: int | None = setting(
        None,
        f"episodes that are played together, in one batch; default: {ROWS}, where the mode is plan"
        f" {PLANNED_ROWS}",
        low=1,
        high=10_000,
    )
    actors: int = setting(
        1,
        "actors of Ray that play; 1 plays in this process, without Ray; the returns are the same",
        low=1,
        high=10_000,
    )
    device: str = setting(
        "cpu",
        "where the policy acts: auto (the first GPU where there is one), cpu, cuda or cuda:N;"
        " actors act on CPUs",
    )
    address: str = setting(
        "local", "Ray cluster to join for --actors; `local` starts one on this machine"
    )
    desired_return: float | None = setting(
        None,
        "return to ask for; default: what the run's own evaluation asked for",
        low=-1e9,
        high=1e9,
    )
    desired_horizon: float | None = setting(
        None, "steps to ask for; default: what the run's own evaluation asked for", low=1, high=1e9
    )
    mode: str = setting(
        "own", "how the policy acts; own: as in the run's own evaluations", choices=OWN_OR_MODES
    )
    weights: str = setting("last", "which weights", choices=("last", "best"))
    cached: bool | None = setting(
        None,
        "of dt, default as the run says: keep keys and values when acting: faster, and exact only"
        " until the window slides",
    )
    seed: int | None = setting(
        None, "seed of environments and actions; default: the run's", low=0, high=2**31 - 1
    )


def score_run(loaded: Loaded, asked: EvaluateFlags) -> dict[str, Any]:
    """Play the episodes; the content of evaluation.json.

    Raises UserError, RunFailed where no episode ends well, and KeyboardInterrupt where none has
    ended.
    """
    if asked.actors > 1 and asked.device != "cpu":
        raise UserError(
            f"--device is {asked.device!r}, but actors act on CPUs; leave --actors out, or --device"
        )
    loaded.task.require()
    device = pick_device(asked.device)
    loaded.model.to(device)
    policy, mode = policy_of(loaded, asked.mode, asked.cached)
    command = command_of(loaded, asked.desired_return, asked.desired_horizon)
    seed = loaded.run.seed if asked.seed is None else asked.seed
    planned = mode == "plan"
    episodes = asked.episodes or (loaded.run.evaluations.final_episodes if planned else 100)
    parts = split_episodes(episodes, asked.rows or (PLANNED_ROWS if planned else ROWS))
    print(f"playing {episodes:,} episodes of {loaded.run.task}", file=sys.stderr)
    if (note := horizon_note(asked, command)) is not None:
        print(f"note: {note}", file=sys.stderr)
    if len(parts) < asked.actors:
        print(
            f"note: there are {len(parts)} parts of at most {max(parts)} episodes, for as many"
            " actors; a smaller --rows makes more",
            file=sys.stderr,
        )
    with Progress(loaded.run.task, episodes, units="episodes") as bar:
        bar.advance(0)
        if asked.actors == 1:
            result = evaluate_in_parts(
                policy, loaded.task, command, parts, seed, "evaluate", bar.advance
            )
        else:
            from bigdm_ray.distributed.evaluation import evaluate_on_actors

            run = run_as(loaded, asked.mode, asked.cached)
            trained = run.tasks if loaded.trained is None else loaded.trained.tasks
            run, task = dataclasses.replace(run, tasks=trained, seed=seed), loaded.run.task
            weights = Weights.of(loaded.model, loaded.version)
            scores = evaluate_on_actors(
                run,
                task,
                weights,
                command,
                parts,
                "evaluate",
                asked.actors,
                asked.address,
                bar.advance,
            )
            result = join_scores(scores, command, len(scores) < len(parts)).require_episode(
                loaded.task
            )
    return {
        "schema_version": SCHEMA_VERSION,
        **report_head(loaded, asked.weights, mode, seed),
        "acting": loaded.acting,
        "cached": asked.cached if asked.cached is not None else bool(loaded.run.algorithm.cache),
        "command": command,
        **result.summary(loaded.task),
        **result.latency(),
        "partial": result.stopped,
        "episodes": len(result.returns),
        "episodes_asked": episodes,
        "episodes_discarded": result.discarded,
        "rows": max(parts),
        "device": str(device),
        "returns": result.returns.tolist(),
        "lengths": result.lengths.tolist(),
        "versions": versions(),
    }


def horizon_note(asked: EvaluateFlags, command: Mapping[str, float]) -> str | None:
    """That a return was asked for without the steps to reach it in, in one sentence."""
    if asked.desired_return is None or asked.desired_horizon is not None:
        return None
    if "desired_horizon" not in command:
        return None
    return (
        f"the return of {asked.desired_return:,.1f} is asked for within "
        f"{command['desired_horizon']:,.1f} steps, the horizon of the run's own evaluation; "
        "--desired-horizon asks for another"
    )


def score_each(loaded: Loaded, asked: EvaluateFlags) -> dict[str, Any]:
    """`score_run` of each task of a run of several, and the mean of normalised scores; the content
    of evaluation.json.

    A task in which nothing can be played is told, and left out. Raises RunFailed where that is so
    of all.
    """
    reports: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for use in loaded.run.tasks:
        try:
            reports[use.name] = score_run(loaded.of(use.name), asked)
        except RunFailed as error:
            problems.append(str(error))
            print(f"note: {error}", file=sys.stderr)
            continue
        print(report_table(reports[use.name]))
        if reports[use.name]["partial"]:
            break
    if not reports:
        raise RunFailed(problems[0])
    scores = [report["normalized_score"] for report in reports.values()]
    known = [value for value in scores if value is not None]
    mean = float(np.mean(known)) if known else None
    shown = (
        "none for these tasks"
        if mean is None
        else f"{mean:.1f}, over {len(known)} of {len(scores)} tasks"
    )
    print(f"mean of normalised scores: {shown}")
    first = next(iter(reports.values()))
    head = report_head(loaded, asked.weights, first["mode"], first["seed"])
    return {
        "schema_version": SCHEMA_VERSION,
        **head,
        "tasks": reports,
        "normalized_score": mean,
        "partial": any(report["partial"] for report in reports.values()),
        "problems": problems,
    }


def report_table(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    command = ", ".join(
        f"{name.replace('_', ' ')} {value:,.1f}" for name, value in report["command"].items()
    )
    normalized = report["normalized_score"]
    asked = (
        f" of {report['episodes_asked']:,}: stopped before the others had ended"
        if report["partial"]
        else ""
    )
    discarded = (
        f", {report['episodes_discarded']} more discarded" if report["episodes_discarded"] else ""
    )
    acting = "".join(
        f", {name.replace('_', ' ')} {value}" for name, value in report["acting"].items()
    )
    rows = {
        "weights": (
            f"{report['weights']}, learner step {report['version'][1]:,} of incarnation"
            f" {report['version'][0]}"
        ),
        "command": command or "none",
        "actions": (
            f"{report['mode']}{', cached' if report['cached'] else ''}{acting}, seed"
            f" {report['seed']}"
        ),
        "episodes": f"{report['episodes']:,}{asked}{discarded}",
        "return mean": f"{report['return_mean']:,.2f}",
        "95 % interval": f"{report['return_low']:,.2f} to {report['return_high']:,.2f}",
        "return std": f"{report['return_std']:,.2f}",
        "return min, max": f"{report['return_min']:,.2f}, {report['return_max']:,.2f}",
        "length mean": f"{report['length_mean']:,.1f}",
        "normalised score": "none for this task" if normalized is None else f"{normalized:.1f}",
        "latency p50, p99": (
            f"{report['act_p50_ms']:,.3g}, {report['act_p99_ms']:,.3g} ms an action"
            f" ({report['acted_together']:,.0f} together, on average)"
        ),
    }
    title = (
        f"{report['algorithm']} on {report['task']}, preset {report['preset']}, seed"
        f" {report['run_seed']}"
    )
    return "\n".join([title, *(f"  {name:<18}{value}" for name, value in rows.items())])


# --- video


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


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(
        prog="python -m bigdm_ray.evaluate",
        description="Score a trained policy on gymnasium's environments.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        type=Path,
        nargs="+",
        help="a run folder; of several the scores end in one table, a row each",
    )
    parser.add_settings(EvaluateFlags)
    parser.add_argument(
        "--video",
        action="store_true",
        help=(
            f"also write FOLDER/video.mp4, of {VIDEO_EPISODES} episodes or fewer where the mode is"
            " plan"
        ),
    )
    own = parser.add_argument_group(
        "settings of the algorithm that affect acting alone, in place of the run's own"
    )
    own.add_argument(
        f"{OWN}NAME",
        metavar="X",
        help=(
            "as `run ALGORITHM TASK --help` explains them: of tt --algorithm.horizon 5"
            " --algorithm.beams 32"
        ),
    )
    acting, others = split_prefixed(arguments, OWN)
    given = parser.parse(others)
    asked = parser.settings(EvaluateFlags, given)
    if given.video:
        require_video()
    for folder in given.folders:
        locate_run(folder, asked.weights)  # before one of them is played
    reports: list[tuple[Path, dict[str, Any]]] = []
    for folder in given.folders:
        loaded = load(folder, asked.weights, acting)
        several = loaded.run.several
        if several and (given.video or asked.desired_return is not None):
            flag = "--video" if given.video else "--desired-return"
            raise UserError(
                f"{flag} is for one task, but {folder} acts in several: {loaded.run.title}; leave"
                " it out"
            )
        report = score_each(loaded, asked) if several else score_run(loaded, asked)
        reports.append((folder, report))
        if not several:
            print(report_table(report))
        write_evaluation(loaded, report, results(folder), given.video)
        if report["partial"]:
            break
    if len(given.folders) > 1:
        rows = [row(folder, report) for folder, report in reports]
        print(align_columns(rows) if sys.stdout.isatty() else markdown(rows))
    return stopping.code() if reports[-1][1]["partial"] else 0


def write_evaluation(loaded: Loaded, report: dict[str, Any], home: Path, video: bool) -> None:
    """Write HOME/evaluation.json, then the video, where one is wanted and nothing stopped the
    playing."""
    file, path = home / "evaluation.json", home / "video.mp4"
    write_json(file, report)  # before the video, which may fail or be stopped
    print(f"evaluation: {file}")
    if not video or report["partial"]:
        return
    planned = report["mode"] == "plan"
    episodes = min(VIDEO_EPISODES, report["episodes_asked"]) if planned else VIDEO_EPISODES
    returns = record_video(loaded, report, path, episodes)
    write_json(file, report | {"video_returns": returns})
    print(f"video: {path}, returns {', '.join(f'{value:,.1f}' for value in returns)}")


if __name__ == "__main__":
    raise SystemExit(door(main))
