"""Train a policy: `python -m bigdm_ray.run ALGORITHM TASK [flags]`.

python -m bigdm_ray.run udrl lunarlander   through Ray, into runs/udrl-lunarlander-1
python -m bigdm_ray.run udrl lunarlander --local --seed 2   in one process
python -m bigdm_ray.run --resume --folder runs/udrl-lunarlander-1   goes on where it stopped
python -m bigdm_ray.run udrl lunarlander --help   every flag with its default
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigdm_ray import stopping
from bigdm_ray.algorithms.online import Online
from bigdm_ray.baselines.base import ExternalAlgorithm
from bigdm_ray.doors import door, split_prefixed
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.progress import notebook
from bigdm_ray.replay.shard import SUFFIX
from bigdm_ray.serving.settings import ServerSettings
from bigdm_ray.settings import check_settings, from_json
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import (
    Run,
    RunCommand,
    describe_run,
    parse,
    premature_warning,
    read_run,
    resumed_run,
    still_rising,
)
from bigdm_ray.training.evaluation import gap_problem
from bigdm_ray.training.external import check_external_settings
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.metrics import Listener, TerminalReporter
from bigdm_ray.training.outside import Outside, check_outside
from bigdm_ray.training.run_folder import LOOPS, RunFolder, metrics_of
from bigdm_ray.training.start import open_dataset, rotation_note


def train(
    run: Run,
    folder: str | Path | None = None,
    report: Listener | None = None,
    *,
    resume: bool = False,
    local: bool = False,
    quiet: bool | None = None,
    dashboard: bool = False,
    serve: ServerSettings | str | None = None,
) -> dict[str, Any]:
    """Train `run` and return its summary (also in FOLDER/summary.json); `report` hears every
    report.

    A bar is shown in notebooks, and anywhere with `quiet=False`; never with `quiet=True`.

    Where `report` returns True, the run ends as if its budget ended there: with a checkpoint, final
    scores and a summary that says `"stopped": true`. `resume` goes on from it. Through Ray by
    default, in this process with `local`. With `dashboard` Ray's web page is there while the run
    goes on, and its address is told on standard error. `serve` is where clients find the run and
    send episodes to, HOST:PORT or all that is to be said of the server. Raises UserError, and
    RunFailed where the world stops a run.
    """
    check_dashboard(run, local, dashboard)
    settings = ServerSettings(address=serve) if isinstance(serve, str) else serve
    check_outside(run, served=settings is not None)
    shown = notebook() is not None if quiet is None else not quiet
    progress: contextlib.AbstractContextManager[TerminalReporter | None] = (
        bar(run, local) if shown else contextlib.nullcontext()
    )
    with open_home(run, folder, resume) as path, progress as terminal:
        listeners = [one for one in (report, terminal) if one is not None]
        with served_run(run, settings) as outside:
            return _train(run, path, listeners, resume, local, dashboard, outside)


def served_run(
    run: Run, settings: ServerSettings | None
) -> contextlib.AbstractContextManager[Outside | None]:
    """Serves a run that begins inside the block, if it is to be; what others send comes out."""
    if settings is None:
        return contextlib.nullcontext()
    from bigdm_ray.serving.live import serve_run

    return serve_run(run, settings)


def check_dashboard(run: Run, local: bool, dashboard: bool) -> None:
    """Raise UserError where a dashboard is asked for and there is no Ray to show."""
    if dashboard and (local or not _on_ray(run)):
        raise UserError("--dashboard shows Ray, but this run is in one process; leave it out")


def _on_ray(run: Run) -> bool:
    """Whether a run is on Ray unless it is told `--local`."""
    return not isinstance(run.algorithm, ExternalAlgorithm) or run.algorithm.on_ray


@contextlib.contextmanager
def bar(run: Run, local: bool) -> Iterator[TerminalReporter]:
    """What shows a run's progress, inside the block."""
    terminal = TerminalReporter(
        run.total,
        clock=run.clock,
        minutes=run.budget.minutes,
        learner_steps=run.budget.learner_steps,
        doing="loading libraries" if local else "starting Ray",
    )
    try:
        yield terminal
    finally:
        terminal.close()


def _train(
    run: Run,
    path: Path,
    listeners: list[Listener],
    resume: bool,
    local: bool,
    dashboard: bool,
    outside: Outside | None = None,
) -> dict[str, Any]:
    run = resumed_run(run, path) if resume else run
    if isinstance(run.algorithm, ExternalAlgorithm):
        return _train_foreign(run, path, resume, listeners, local, dashboard)
    if local:
        from bigdm_ray.training.loop import train_local

        return train_local(run, path, resume, listeners, outside)
    from bigdm_ray.distributed.loop import train_on_ray

    return train_on_ray(run, path, resume, listeners, dashboard, outside)


def check_run(
    run: Run,
    folder: Path,
    resume: bool,
    local: bool,
    dashboard: bool = False,
    served: bool = False,
) -> Run:
    """The run as it will be trained, if nothing that is known before it begins speaks against it.

    Nothing is made, nor is Ray started. Raises UserError.
    """
    check_dashboard(run, local, dashboard)
    run = resumed_run(run, folder) if resume else run
    check_outside(run, served)
    foreign = isinstance(run.algorithm, ExternalAlgorithm)
    if foreign:
        check_external_settings(run)
    exact = not foreign and not served and in_lock_step(run, local)
    RunFolder(folder).check(run, resume, exact)
    for use in run.tasks:
        if use.dataset is not None:
            open_dataset(use)
        elif not run.several:  # of several, one that cannot be played is left out
            use.task.signature()
    if local or run.machines.address == "local":
        pick_device(run.machines.device)
    return run


def in_lock_step(run: Run, local: bool) -> bool:
    """Whether a resume of a run of our own learners repeats what came after its last checkpoint."""
    return local or run.machines.lock_step or run.offline


def _train_foreign(
    run: Run, path: Path, resume: bool, listeners: list[Listener], local: bool, dashboard: bool
) -> dict[str, Any]:
    import bigdm_ray.distributed  # noqa: F401  (settles how Ray is imported, which the library may do)
    from bigdm_ray.training.external import check_external, train_foreign

    assert isinstance(run.algorithm, ExternalAlgorithm)
    if local or not _on_ray(run):
        return train_foreign(run, path, resume, listeners)
    check_external(run)  # before a Ray is started
    from bigdm_ray.distributed.cluster import cluster

    with cluster(run, dashboard):
        return train_foreign(run, path, resume, listeners, actors=run.machines.actors)


LONGEST = 150
"""Characters of the names of tasks in a folder's name, at most."""


def default_folder(run: Run) -> Path:
    """runs/ALGORITHM-TASK-SEED (the dataset's name where there is one), for presets other than the
    default with their name."""
    preset = "" if run.preset in ("default", "none") else f"-{run.preset}"
    names = [use.dataset.name if use.dataset else use.name for use in run.tasks]
    task = re.sub(r"[:/?&\[\]{},\"']+", "-", "+".join(names))[:LONGEST]
    return Path("runs") / f"{run.algorithm.name}-{task}{preset}-{run.seed}"


@contextlib.contextmanager
def open_home(run: Run, folder: str | Path | None, resume: bool) -> Iterator[Path]:
    """Where a run is saved: the folder that was named, else the default one.

    Where that is taken, the first of FOLDER-run2, FOLDER-run3, ... that is not, made at once, so
    that runs which begin together take turns; with `resume` the last of them that is there. One
    that was made here and is empty in the end goes.
    """
    if folder is not None:
        yield Path(folder)
        return
    first = default_folder(run)
    later = (first.with_name(f"{first.name}-run{number}") for number in itertools.count(2))
    path = first
    if resume:
        yield [first, *itertools.takewhile(Path.exists, later)][-1]
        return
    new = not first.parent.exists()
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        while not _made(path):
            path = next(later)
    except OSError as error:
        raise RunFailed(f"cannot make {path}: {error.strerror}; choose another --folder") from None
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # it is not empty, as it should be
            path.rmdir()
            if new:
                path.parent.rmdir()


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def intent(run: Run, folder: Path, local: bool, resume: bool = False, served: bool = False) -> str:
    """What a run is about to do, from where on, and where it will be, for its header."""
    if run.offline:
        told = [use.dataset for use in run.tasks if use.dataset is not None]
        each = " and ".join(f"{data.episodes:,} episodes of {data.name}" for data in told)
        does = f"learns from {each}"
        does += ", plays to score" if unscored_sentence(run) is None else ""
    else:
        does = f"plays {run.title} and learns from it"
        if served:
            others = "learns from what others play"
            does = f"{does}, and {others}" if run.rollouts.own else f"{others} in {run.title}"
    if resume:
        does += f", {_goes_on(run, folder)}"
    elif not run.offline:
        does += (
            ", beginning with another run's learner" if run.start else ", beginning from nothing"
        )
    machines = run.machines
    where = "in this process"
    if not local:
        where = (
            f"on Ray ({machines.address}), actors {machines.actors}, learners {machines.learners}"
        )
    back = ""
    repeats = not run.offline and not served and in_lock_step(run, local)
    if repeats and run.saves.every < run.total:
        back = f" from its last checkpoint, one every {run.saves.every:,} steps"
    return f"{does}, {where}; saved in {folder}; Ctrl-C stops it, --resume goes on{back}"


def _goes_on(run: Run, folder: Path) -> str:
    """Where a resume begins, for its header."""
    if checkpoint.complete_checkpoints(RunFolder(folder).checkpoints):
        at = _saved_step(run, folder)
        return f"going on from {'its last checkpoint' if at is None else _step_words(run, at)}"
    return "beginning anew, for want of a checkpoint" + _kept(folder)


def _kept(folder: Path) -> str:
    """What a run without a checkpoint begins anew with."""
    home = RunFolder(folder)
    kept = home.loop == LOOPS[False] and any(home.store.rglob(f"*{SUFFIX}"))
    return ", with the episodes that are stored" if kept else ""


def _saved_step(run: Run, folder: Path) -> int | None:
    """Where the last checkpoint stands, by the run's clock; None where none can be read."""
    saved = checkpoint.complete_checkpoints(RunFolder(folder).checkpoints)
    try:
        counters = checkpoint.SavedState.read(saved[-1]).counters if saved else None
    except (OSError, ValueError, UserError):  # the resume will tell
        return None
    if counters is None:
        return None
    return counters.learner_step if run.offline else counters.env_steps


def _step_words(run: Run, step: int) -> str:
    """A place in a run, by its clock."""
    return f"{'learner' if run.offline else 'environment'} step {step:,}"


def stop_sentence(folder: Path) -> str:
    """What a signal to stop has left, and what --resume makes of it, in one sentence."""
    home = RunFolder(folder)
    if checkpoint.complete_checkpoints(home.checkpoints):
        goes_on = f"stopped; --folder {folder} --resume goes on from the last checkpoint"
        return goes_on + _since(folder)
    if not (folder / "run.json").is_file():
        return "stopped before the run began"
    anew = f"--folder {folder} --resume begins anew{_kept(folder)}"
    return f"stopped before the first checkpoint; {anew}"


def _since(folder: Path) -> str:
    """Where the last checkpoint stands, and how far the run had come by its last report if that is
    later."""
    run = read_run(folder)
    if (at := _saved_step(run, folder)) is None:
        return ""
    try:
        come = max((int(report.get(run.clock, 0)) for report in metrics_of(folder)), default=0)
    except (OSError, ValueError, UserError):  # the resume will tell
        return ""
    later = f"; the last report was at {come:,}" if come > at else ""
    return f", at {_step_words(run, at)}{later}"


def unscored_sentence(run: Run) -> str | None:
    """That nothing is scored, in one sentence; None where there is an environment."""
    if all(use.task.plays for use in run.tasks):
        return None
    return "there is no environment: losses are reported (metrics.jsonl), and nothing is scored"


def overrun_sentence(run: Run, env_steps: int, before: int = 0) -> str | None:
    """That a run has played far more than its budget, and why, in one sentence; None where it has
    not, or where no step came to the `before` of its last checkpoint.
    """
    if not isinstance(run.algorithm, Online) or run.offline:
        return None
    if env_steps <= max(before, 1.2 * run.budget.env_steps):
        return None
    first, later = run.algorithm.warm_up() * len(run.tasks), run.algorithm.per_iteration()
    rounds = f"{later:,} at a time" + (f", at first {first:,} at random" if first else "")
    return (
        f"{env_steps:,} environment steps were played for a budget of {run.budget.env_steps:,}: "
        f"episodes are played to their end, {rounds}"
    )


def uncounted_sentence(run: Run) -> str | None:
    """Which of several tasks do not count where weights are compared, in one sentence; None where
    all do, or none would."""
    problems = {use.name: gap_problem(use.task.reference_returns) for use in run.tasks}
    without = [f"{name} ({why})" for name, why in problems.items() if why is not None]
    if not run.several or len(without) in (0, len(run.tasks)):
        return None
    return (
        "the best weights are those of the best mean of normalised scores, which leaves out"
        f" {', '.join(without)}"
    )


def unscored_closing_line(summary: dict[str, Any]) -> str:
    """The closing line of a run that has no score."""
    losses = ", ".join(f"{name} {value:.4g}" for name, value in summary["losses"].items())
    steps = f"{summary['learner_steps']:,} learner steps, {summary['wall_s']:.0f} s"
    return f"no score, for want of an environment; last {losses or 'losses: none'}; {steps}"


def main(arguments: list[str]) -> int:
    """The door."""
    limits, words = split_prefixed(arguments, "--serve.")
    asked = parse(words)
    if limits and asked.serve is None:
        name = min(limits).replace("_", "-")
        raise UserError(f"--serve.{name} is given without --serve HOST:PORT; give that too")
    if asked.alone and not asked.local and not asked.run.machines.lock_step:
        assert asked.folder is not None
        asked = dataclasses.replace(asked, local=RunFolder(asked.folder).loop == LOOPS[True])
    settings = None
    if asked.serve is not None:
        settings = from_json(ServerSettings, {"address": asked.serve, **limits}, "serve.")
        check_settings(settings, "serve.")
    with open_home(asked.run, asked.folder, asked.resume) as folder:
        return _main(asked, folder, settings)


def _main(asked: RunCommand, folder: Path, settings: ServerSettings | None) -> int:
    served = settings is not None
    run = check_run(asked.run, folder, asked.resume, asked.local, asked.dashboard, served)
    before = _saved_step(run, folder) if asked.resume else None
    played = [use.task for use in run.tasks if not run.offline]
    remarks = [run.algorithm.remark(task.signature()) for task in played]
    if not asked.quiet:
        does = intent(run, folder, asked.local, asked.resume, served)
        print(f"{describe_run(run)}\n{does}", file=sys.stderr)
    for note in (
        *(task.slow_reason() for task in played),
        *dict.fromkeys(remarks),
        premature_warning(run),
        still_rising(run),
        rotation_note(run),
        unscored_sentence(run),
        uncounted_sentence(run),
    ):
        if note is not None:
            print(f"note: {note}", file=sys.stderr)
    try:
        summary = train(
            run,
            folder,
            resume=asked.resume,
            local=asked.local,
            quiet=asked.quiet,
            dashboard=asked.dashboard,
            serve=settings,
        )
    except KeyboardInterrupt:
        print(stop_sentence(folder), file=sys.stderr)
        return stopping.code()
    if "losses" in summary:
        print(unscored_closing_line(summary))
        print(f"summary: {folder / 'summary.json'}")
        return 0
    print(several_closing_lines(summary) if "tasks" in summary else closing_line(summary))
    print(f"summary: {folder / 'summary.json'}")
    if (note := overrun_sentence(run, summary["env_steps"], before or 0)) is not None:
        print(f"note: {note}", file=sys.stderr)
    for problem in summary["problems"][-3:]:
        print(f"note: {problem}", file=sys.stderr)
    return 0


def closing_line(summary: dict[str, Any]) -> str:
    """A run's closing line, from its summary."""
    scores = summary["normalized_score"], summary["best_normalized_score"]
    score = (
        "" if None in scores else "normalised score {:.1f}, best weights {:.1f}; ".format(*scores)
    )
    asked = summary["command"].get("desired_return")
    low, high = summary["return_low"], summary["return_high"]
    return (
        f"return {summary['return_mean']:.1f} +- {summary['return_std']:.1f} "
        f"over {summary['return_episodes']} episodes{asked_phrase(asked)} "
        f"({low:.1f}..{high:.1f} is the mean's 95 % interval), "
        f"best weights {summary['best_return_mean']:.1f}"
        f"{asked_phrase(summary.get('best_command', {}).get('desired_return'))}; {score}"
        f"{summary['env_steps']:,} environment steps, "
        f"{summary['learner_steps']:,} learner steps, {summary['wall_s']:.0f} s"
    )


def several_closing_lines(summary: dict[str, Any]) -> str:
    """The closing lines of a run of several tasks: one each, and the mean."""
    lines = []
    for task, score in summary["tasks"].items():
        if "return_mean" not in score:
            lines.append(f"{task}: no score; {(score['problems'] or ['nothing was played'])[0]}")
            continue
        best = f"best weights {score['best_return_mean']:.1f}"
        lines.append(
            f"{task}: return {score['return_mean']:.1f} +- {score['return_std']:.1f} "
            f"over {score['return_episodes']} episodes, {best}"
        )
    scores = summary["normalized_score"], summary["best_normalized_score"]
    mean = (
        "" if None in scores else "mean of normalised scores {:.1f}, best {:.1f}; ".format(*scores)
    )
    steps = (
        f"{summary['env_steps']:,} environment steps, {summary['learner_steps']:,} learner steps"
    )
    return "\n".join([*lines, f"{mean}{steps}, {summary['wall_s']:.0f} s"])


def asked_phrase(asked: float | None) -> str:
    """What was asked for, behind a return."""
    return "" if asked is None else f", asked for {asked:.1f}"


if __name__ == "__main__":
    raise SystemExit(door(main))
