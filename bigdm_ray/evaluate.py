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

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray import stopping
from bigdm_ray.doors import Parser, door, split_prefixed
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.films import VIDEO_EPISODES, record_video, require_video
from bigdm_ray.formats.behaviour import OWN_OR_MODES
from bigdm_ray.progress import Progress
from bigdm_ray.settings import setting
from bigdm_ray.tables.runs import align_columns, markdown, row
from bigdm_ray.training.acting import command_of, policy_of, report_head, run_as
from bigdm_ray.training.evaluation import (
    ROWS,
    evaluate_in_parts,
    join_scores,
    split_episodes,
)
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.loaded import Loaded, load, locate_run
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import versions, write_json
from bigdm_ray.training.zoo import results

SCHEMA_VERSION = 1
OWN = "--algorithm."
"""How the flags of the algorithm's own settings begin."""
PLANNED_ROWS = 8
"""Episodes that plan together: a larger batch is hardly cheaper, and a part is what an actor
plays."""


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
