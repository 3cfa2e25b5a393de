"""Presets: what a run has beside what was typed.

That is the preset of (algorithm, task), what a run on a dataset has in place of the defaults, and
the settings of the run that it resumes, starts from, or takes for its `--config`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigdm_ray.algorithms.base import Algorithm, algorithms
from bigdm_ray.algorithms.learned import Learned
from bigdm_ray.baselines.base import ExternalAlgorithm
from bigdm_ray.envs.task import NONE, UNPLAYED, check_task, find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.jsons import read_json
from bigdm_ray.settings import flag, from_json, to_json
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint
from bigdm_ray.training.config.files import fill_run, read_run
from bigdm_ray.training.config.mixtures import shipped_mixtures
from bigdm_ray.training.config.values import (
    DatasetOrigin,
    Evaluations,
    Run,
    StartingRun,
    TaskUse,
    with_tasks,
)

SEVERAL = "*"
"""The task whose presets a run of several tasks has: every one without its own."""


@dataclass(frozen=True)
class RequestedTask:
    """A task as it is asked for: its name, the dataset to learn from, its weight among others."""

    task: str
    dataset: Dataset | None = None
    weight: float = 1.0


def preset_of(
    kind: type[Algorithm], task: str, name: str | None, plays: bool = False
) -> tuple[str, dict[str, Any]]:
    """The name and settings of a task's preset; `default` may be absent.

    Raises UserError for an unknown one.
    """
    presets = kind.presets
    known = presets.get(task, presets.get("*", {}))
    wanted = name or (kind.played_preset if plays and kind.played_preset in known else "default")
    if wanted == "none" or (wanted == "default" and "default" not in known):
        return "none", {}
    if wanted not in known:
        on = "several tasks" if task == SEVERAL else task
        raise UserError(
            f"unknown preset {wanted!r} of {kind.name} on {on}; it has"
            f" {' and '.join([*known, 'none'])}"
        )
    return wanted, known[wanted]


def offline_defaults(kind: type[Algorithm], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run on a dataset has in place of the defaults, which count environment steps: shares
    of the budget that is `given`, else of the algorithm's."""
    steps = given.get("budget.learner_steps") or kind.offline_steps
    counted = {
        "evaluations.every": max(1, steps // 5),
        "saves.every": max(1, steps // 5),
        "saves.report_every": max(1, steps // 100),
    }
    return {"budget.learner_steps": steps, **counted}


def resumed_run(run: Run, folder: Path) -> Run:
    """A run as it is resumed.

    A hyperparameter that its run.json does not know, being older, is what was done before there was
    such a one: its default, whatever a preset says of it today. On a dataset, how often it is
    scored, saved and reported follows from the budget, which a resume may change. So it is what it
    was when the run began. Both hold where they are neither typed nor another than the default. A
    run.json from before it said what was typed leaves the second alone. Raises UserError for one
    that cannot be read.
    """
    if not (folder / "run.json").is_file():
        return run
    run = _without_later(run, folder / "run.json")
    if not run.offline:
        return run
    kind, preset = type(run.algorithm), _preset(run)
    before = read_run(folder)
    typed = () if before.typed is None else run.typed or ()
    began, data, kept = before.to_json(), run.to_json(), {}
    for path, value in (
        offline_defaults(kind, {"budget.learner_steps": run.budget.learner_steps}) | preset
    ).items():
        owner, _, key = path.partition(".")
        given = path in typed or data[owner][key] != value
        if key in ("every", "report_every") and not given:
            kept[path] = began[owner][key]
    return fill_run(data, kept)


def _without_later(run: Run, file: Path) -> Run:
    """The run with the preset that it began with: without settings that its run.json is too old to
    know, and with the values that its preset had then, where they were not typed.
    """
    before, known = read_run(file), read_json(file)["algorithm"]
    if before.algorithm.name != run.algorithm.name:
        return run
    began = to_json(before.algorithm)
    later = {f"algorithm.{name}": value for name, value in began.items() if name not in known}
    preset = _preset(run)
    if before.preset in (run.preset, "none"):
        for path in preset.keys() - {*(before.typed or ())}:
            owner, _, name = path.partition(".")
            later |= {path: began[name]} if owner == "algorithm" else {}
    kept = {path: value for path, value in later.items() if path not in (run.typed or ())}
    return fill_run(run.to_json(), kept) if kept else run


def _preset(run: Run) -> dict[str, Any]:
    """The settings of a run's preset as they are today."""
    presets = type(run.algorithm).presets
    named = presets.get(SEVERAL if run.several else run.task, presets.get(SEVERAL, {}))
    return named.get(run.preset, {})


FINE_TUNING = {
    "budget.env_steps": 200_000,
    "evaluations.every": 20_000,
    "saves.every": 50_000,
    "saves.report_every": 5_000,
}
"""What a run that starts from another has in place of the defaults: the budget of Zheng et al.
2022."""


def make_run(
    kind: type[Algorithm],
    wanted: Sequence[RequestedTask],
    preset: str | None,
    config: Path | None,
    typed: dict[str, Any],
    seed: int | None,
    start: Path | None,
) -> Run:
    """The Run of an algorithm and tasks with what is typed, by path, over its preset.

    Raises UserError.
    """
    for one in wanted:
        _fits(kind, one, start)
    _fit_together(kind, wanted, start)
    uses = tuple(
        TaskUse(
            one.task,
            None
            if one.dataset is None
            else from_json(DatasetOrigin, origin_of(one.dataset), "dataset."),
            one.weight,
        )
        for one in wanted
    )
    datasets = [one.dataset for one in wanted if one.dataset is not None]
    task = SEVERAL if len(uses) > 1 else uses[0].name
    name, values = preset_of(kind, task, preset, plays=not datasets)
    begun = None
    if start is not None:
        base, begun = start_of(start, kind, task, datasets, config)
        data = Run(
            base.algorithm, uses, evaluations=Evaluations(mode=base.evaluations.mode)
        ).to_json()
        name, values = (
            (base.preset, FINE_TUNING) if preset is None else (name, FINE_TUNING | values)
        )
    elif config is not None:
        base = read_run(config)
        if base.algorithm.name != kind.name:
            raise UserError(
                f"--config {config} is of algorithm {base.algorithm.name!r}, not of {kind.name!r}"
            )
        data = with_tasks(base.to_json(), uses)
        if preset is None:
            name, values = base.preset, {}
    else:
        data = Run(kind(), uses).to_json()
    if begun or datasets or config is None or base.title != ", ".join(use.name for use in uses):
        # another run's --config keeps it for its own --resume
        data["start"] = to_json(begun) if begun else None
    if datasets and config is None:
        values = offline_defaults(kind, values | typed) | values
    data |= {"preset": name} | ({} if seed is None else {"seed": seed})
    data["typed"] = sorted({*(data["typed"] or ()), *typed, *([] if seed is None else ["seed"])})
    run = fill_run(data, values | typed)
    if datasets:
        steps, episodes = (
            sum(getattr(d, what) for d in datasets) for what in ("steps", "episodes")
        )
        run = dataclasses.replace(run, algorithm=run.algorithm.for_data(steps, episodes))
    if start is not None:
        for name in (name for name in kind.fixed if hasattr(run.algorithm, name)):
            mine, theirs = getattr(run.algorithm, name), getattr(base.algorithm, name)
            if mine != theirs:
                raise UserError(
                    f"--algorithm.{name.replace('_', '-')} is {mine}, but --from {start} has"
                    f" {theirs}: what shapes network and optimizers must stay"
                )
    premature_warning(run)
    return run


def _fits(kind: type[Algorithm], wanted: RequestedTask, start: Path | None) -> None:
    """Raise UserError for a task that is not known, or not one for this algorithm."""
    task, dataset = wanted.task, wanted.dataset
    try:
        if dataset is None:
            check_task(task)
        else:  # a dataset's card has no code imported; a run.json has, above (SECURITY.md)
            find_task(task)
    except UserError as error:
        if dataset is None and kind.offline and ":" not in task:
            raise UserError(
                f"{error}; nor is there a folder {task} with a dataset, nor a mixture {task} (those"
                f" that ship are {', '.join(shipped_mixtures())})"
            ) from None
        raise
    if dataset is None and task == NONE:
        raise UserError(f"{UNPLAYED}; a run takes the dataset's folder")
    if start is not None and not kind.online:
        raise UserError(
            f"--from goes on by playing, but {kind.name} learns from datasets alone and cannot go"
            " on from another run; leave --from out"
        )
    if dataset is None and not kind.online:
        raise UserError(
            f"{kind.name} learns from a dataset, but {task} is a task to play; import episodes with"
            " `python -m bigdm_ray.data` and give their folder"
        )
    if dataset is not None and not kind.offline:
        raise UserError(
            f"{kind.name} learns from what it plays, but {dataset.folder} is a dataset; give the"
            f" task {task} itself"
        )


def _fit_together(
    kind: type[Algorithm], wanted: Sequence[RequestedTask], start: Path | None
) -> None:
    """Raise UserError where one run cannot have all of these tasks."""
    if len(wanted) == 1:
        return
    names = ", ".join(one.task for one in wanted)
    if not kind.several:
        able = " or ".join(name for name, one in algorithms().items() if one.several)
        raise UserError(
            f"{kind.name} learns one task, but {len(wanted)} are given: {names}; "
            f"give one of them, or take {able}, which can learn several"
        )
    if start is not None:
        raise UserError(f"--from goes on with one task, but {len(wanted)} are given: {names}")
    if unplayed := [one.dataset for one in wanted if one.task == NONE and one.dataset]:
        raise UserError(
            f"{unplayed[0].folder} has no environment and is learned alone; give it without others"
        )


def premature_warning(run: Run) -> str | None:
    """What a run on a dataset comes to whose budget ends before its policy's own learning begins,
    in one sentence; None where it does not.

    Raises UserError where its policy would not have been trained at all.
    """
    before = run.algorithm.pretraining() if run.offline else None
    if before is None or run.learner_budget > before.steps:
        return None
    lower = " and ".join(flag(f"algorithm.{name}") for name in before.settings)
    learns = (
        f"--budget.learner-steps is {run.learner_budget}, but the policy of {run.algorithm.name}"
        " learns "
    )
    if not before.policy:
        raise UserError(
            f"{learns}only after learner step {before.steps}; give more, or lower {lower}"
        )
    return (
        f"{learns}from its critics only after learner step {before.steps}: it will be"
        f" {before.policy}; give more, or lower {lower}"
    )


def still_rising(run: Run) -> str | None:
    """What a run on a dataset comes to whose learning rate rises for more than half of its budget,
    in one sentence; None where it does not."""
    if not run.offline or not isinstance(run.algorithm, Learned):
        return None
    half, last = (
        run.algorithm.learning_rate_factor(step, "")
        for step in (run.learner_budget // 2, run.learner_budget - 1)
    )
    if last <= half:
        return None
    return (
        f"--budget.learner-steps is {run.learner_budget}, but the learning rate rises for more than"
        f" half of that and ends at {last:.0%} of --algorithm.learning-rate; give more, or lower"
        " --algorithm.warm-up-steps"
    )


def open_start(folder: Path) -> tuple[Run, Checkpoint]:
    """A run and its last checkpoint, to start another from.

    Raises UserError where there is none.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"--from {folder} holds no run: a folder with a run.json is expected, as `run`"
            " leaves one"
        )
    run = read_run(folder)
    saved = checkpoint.last_checkpoint(folder / "checkpoints", run.identity)
    if saved is None:
        raise UserError(
            f"--from {folder} has no checkpoint yet: train it to its first one, or start anew"
            " without --from"
        )
    return run, saved


def start_of(
    folder: Path,
    kind: type[Algorithm],
    task: str,
    datasets: Sequence[Dataset],
    config: Path | None,
) -> tuple[Run, StartingRun]:
    """The run that another starts from, and what run.json says of it.

    Raises UserError for one that does not fit.
    """
    run, saved = open_start(folder)
    if run.algorithm.name != kind.name or run.title != task:
        raise UserError(
            f"--from {folder} is {run.algorithm.name} on {run.title}, not {kind.name} on {task}"
        )
    if issubclass(kind, ExternalAlgorithm):
        raise UserError(
            f"--from goes on with a learner of ours, but {kind.name} is trained by {kind.library};"
            " leave --from out"
        )
    if datasets or config is not None:
        raise UserError(
            f"--from takes its settings from {folder} and then plays {task}: give the task's name"
            " alone, without a dataset and without --config"
        )
    return run, StartingRun(
        str(folder.resolve()),
        run.algorithm.name,
        saved.counters.learner_step,
        run.dataset.name if run.dataset else None,
    )


def origin_of(dataset: Dataset) -> dict[str, Any]:
    """What run.json says of a dataset."""
    named = {
        name: getattr(dataset, name)
        for name in ("name", "sha256", "source", "episodes", "steps", "return_mean", "versions")
    }
    told: dict[str, Any] = {"reference_returns": dataset.reference_returns}
    if dataset.task == NONE:
        told["signature"] = json.dumps(dataset.signature.to_json())
    return {"folder": str(dataset.folder.resolve()), **named, **told}


def external_run(
    kind: type[Algorithm], task: str, preset: str | None, settings: dict[str, Any]
) -> Run:
    """The Run of weights that were trained elsewhere: a task, a preset's settings, and those by
    path that the weights ask for. Raises UserError."""
    found = find_task(task)
    name, values = preset_of(kind, found.name, preset)
    return fill_run(
        Run(kind(), (TaskUse(found.name),)).to_json() | {"preset": name}, values | settings
    )
