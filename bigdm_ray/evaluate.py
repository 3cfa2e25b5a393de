"""Score a trained policy: `python -m bigdm_ray.evaluate FOLDER [flags]`.

    python -m bigdm_ray.evaluate runs/udrl-lunarlander-1
            100 episodes, commanded as the run's own evaluation
    python -m bigdm_ray.evaluate runs/udrl-lunarlander-1 --desired-return 100
            ask for another return
    python -m bigdm_ray.evaluate runs/udrl-lunarlander-1 --weights best --video
    python -m bigdm_ray.evaluate runs/udrl-cartpole-1 runs/udrl-cartpole-2
            several runs, and their scores in one table
    python -m bigdm_ray.evaluate runs/gato-small-1 --tasks 'babyai/*' --episodes 10
            some tasks of a run of several, by suite; without --tasks all
    python -m bigdm_ray.evaluate runs/tt-hopper-medium-1 --mode plan --actors 8 --rows 1
            on 8 actors of Ray
    python -m bigdm_ray.evaluate runs/tt-hopper-medium-1 --mode plan --algorithm.horizon 5
            a setting that affects acting alone

Episodes are played on gymnasium's environments, with random streams that neither training nor the
run's own evaluations use; the same seed gives the same returns. They are cut into parts of --rows
episodes, which act together in one batch; actors play a part each, and their number does not show
in the returns. Ctrl-C leaves a report of the episodes that have ended, which says so. Of a run of
several tasks finished tasks are kept, and the same command goes on with the others
(`task_scores.py`); `tables/suites.py` says what is made of their scores.

Prints a table and leaves FOLDER/evaluation.json, then with --video FOLDER/video.mp4, and its
returns in the report. Frames show the return that was asked for and what has come of it so far, and
the plan that led to them, where mode `plan` searches for one and the task can say where a state is
in its pictures (four-rooms can, MuJoCo's cannot).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigdm_ray import stopping
from bigdm_ray.doors import Parser, door, split_prefixed
from bigdm_ray.errors import UserError
from bigdm_ray.films import VIDEO_EPISODES, record_video, require_video
from bigdm_ray.scoring import (
    EvaluateFlags,
    check_actors,
    note_parts,
    plan_task,
    play_here,
    play_on_actors,
    report_of,
)
from bigdm_ray.tables.runs import align_columns, markdown, row
from bigdm_ray.task_scores import KeptTasks, choose_tasks, score_each
from bigdm_ray.training.evaluation import Score
from bigdm_ray.training.loaded import Loaded, load, locate_run
from bigdm_ray.training.run_folder import write_json
from bigdm_ray.training.zoo import results

OWN = "--algorithm."
"""How the flags of the algorithm's own settings begin."""


def score_run(loaded: Loaded, asked: EvaluateFlags) -> dict[str, Any]:
    """Play the episodes; the content of evaluation.json.

    Raises UserError, RunFailed where no episode ends well, and KeyboardInterrupt where none has
    ended.
    """
    check_actors(asked)
    loaded.task.require()
    plan = plan_task(loaded, asked)
    print(f"playing {plan.episodes:,} episodes of {loaded.run.task}", file=sys.stderr)
    if (note := horizon_note(asked, plan.command)) is not None:
        print(f"note: {note}", file=sys.stderr)
    note_parts(plan.parts, asked.actors)
    if asked.actors == 1:
        return report_of(plan, asked, play_here(plan))
    scores: dict[str, Score] = {}
    play_on_actors({loaded.run.task: plan}, asked, scores.__setitem__)
    (score,) = scores.values()
    return report_of(plan, asked, score.require_episode(loaded.task))


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
        home, chosen = results(folder), choose_tasks(loaded.run, asked.tasks)
        report = score_each(loaded, asked, home) if several else score_run(loaded, asked)
        reports.append((folder, report))
        if not several:
            print(report_table(report))
        write_evaluation(loaded, report, home, given.video)
        if several and not report["partial"] and len(chosen) == len(loaded.run.tasks):
            KeptTasks(home, loaded.run).drop()
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
