"""The command line: `ALGORITHM TASK... [flags]` as a Run, and the same said in Python.

What comes later wins: the defaults, the run.json of `--config`, the preset of (algorithm, task),
which with such a `--config` must be named, the YAML file of `--config`, and the flags.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigdm_ray.algorithms.base import algorithms, find_algorithm
from bigdm_ray.doors import Parser
from bigdm_ray.envs.task import canonical_name, find_task
from bigdm_ray.errors import UserError, near_names, quote_value
from bigdm_ray.formats.resolving import resolve
from bigdm_ray.settings import convert, flag
from bigdm_ray.training.config.files import (
    YAML,
    ConfigFile,
    TaskEntry,
    entry_of,
    read_run,
    read_yaml,
)
from bigdm_ray.training.config.mixtures import expand
from bigdm_ray.training.config.presets import (
    SEVERAL,
    RequestedTask,
    make_run,
    offline_defaults,
    preset_of,
)
from bigdm_ray.training.config.values import Run, TaskUse, settings_of

SHORT = {
    "lr": "algorithm.learning_rate",
    "batch-size": "algorithm.batch_size",
    "hidden": "algorithm.hidden",
    "width": "algorithm.width",
    "layers": "algorithm.layers",
    "context": "algorithm.context",
    "env-steps": "budget.env_steps",
    "learner-steps": "budget.learner_steps",
    "minutes": "budget.minutes",
    "actors": "machines.actors",
    "learners": "machines.learners",
    "device": "machines.device",
    "address": "machines.address",
}
"""Short names of flags, of those algorithms that have such a setting; `--help` shows them."""


STEPS = {False: "budget.env_steps", True: "budget.learner_steps"}
"""What `--steps` stands for: what the budget is counted in, by whether the run is on a dataset."""


@dataclass(frozen=True)
class RunCommand:
    """What `run` was asked to do beside the Run itself."""

    run: Run
    folder: Path | None
    resume: bool
    local: bool
    quiet: bool
    alone: bool = False  # only --resume and --folder tell which run it is
    dashboard: bool = False
    serve: str | None = None  # where clients find it


def parse(arguments: list[str]) -> RunCommand:
    """`ALGORITHM TASK... [flags]` as a RunCommand. Raises UserError; exits 0 after --help."""
    return _parse(arguments, ())


def _parse(arguments: list[str], entries: Sequence[TaskEntry]) -> RunCommand:
    """`parse`, with `entries` as the tasks where no words are."""
    parser = Parser(
        prog="python -m bigdm_ray.run",
        description="Train a policy and leave a run folder.",
        epilog=(
            "`python -m bigdm_ray.run ALGORITHM TASK --help` also lists every hyperparameter with"
            " its default for that task."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("algorithm", nargs="?", help="one of " + ", ".join(algorithms()))
    parser.add_argument(
        "tasks",
        metavar="task",
        nargs="*",
        help=(
            "a name (lunarlander, box2d/lunarlander), gymnasium:ID, my_module:MyEnv-v0; or a"
            " dataset: its folder, or a Minari id; several of them are learned by one network,"
            " where the algorithm can; or a mixture of datasets: small, or a FILE.yaml"
        ),
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this and exit")
    parser.add_argument("--folder", type=Path, help="run folder; default: runs/ALGORITHM-TASK-SEED")
    parser.add_argument(
        "--resume",
        action="store_true",
        help=(
            "go on with the run in --folder from its last checkpoint; ALGORITHM and TASK may be"
            " left out"
        ),
    )
    parser.add_argument("--local", action="store_true", help="one process, without Ray")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the summary")
    parser.add_argument(
        "--dashboard",
        action="store_true",
        help=(
            "show Ray's web page of actors, logs and load while the run goes on; its address is"
            " told"
        ),
    )
    parser.add_argument(
        "--serve",
        metavar="HOST:PORT",
        help=(
            "answer clients with the newest weights, and learn from the episodes that they send;"
            " what `serve --help` lists may be given as --serve.token-file and the like"
        ),
    )
    parser.add_argument(
        "--preset",
        default=None,
        help="named settings for this task: default, paper; `none` for the bare defaults",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="RUN",
        help="go on from the learner and the best episodes of another run folder",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="start from the settings of another run's run.json, or of a YAML file, which may "
        "name ALGORITHM and TASK too",
    )
    parser.add_argument("--seed", default=None, help="seed of everything; default 1")
    parser.add_argument(
        "--weights",
        metavar="X,X",
        help=(
            "how often each of several tasks is drawn, as numbers whose ratio counts; default: all"
            " alike"
        ),
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="where the datasets of a mixture lie; default: datasets",
    )
    # which flags there are depends on the algorithm, but each setting is followed by a value
    written, words = parser.split(arguments, unknown=True)
    known, _ = parser.parse_known_args([*words, *written])
    file = ConfigFile()
    if known.config is not None and known.config.suffix in YAML:
        file = read_yaml(known.config)
    known.algorithm = known.algorithm or file.algorithm
    entries = [*map(TaskEntry, known.tasks)] or entries or file.tasks
    alone = known.resume and known.folder is not None and known.algorithm is None
    alone = alone and known.config is None and not known.help
    if alone:
        begun = read_run(known.folder)
        known.algorithm, entries = begun.algorithm.name, [*map(_entry, begun.tasks)]
    if known.algorithm not in algorithms() and not known.help:
        # a flag that no algorithm has may have taken the algorithm's name for its value
        for path in {path for other in algorithms().values() for path, *_ in settings_of(other)}:
            parser.add_argument(*_names(path, False), dest=path)
        parser.parse(written)
    kind = find_algorithm(known.algorithm) if known.algorithm else None
    flags: dict[str, tuple[str, Any]] = {}
    wanted = _wanted(expand(entries, known.data), known.weights) if kind else []
    offline = any(one.dataset for one in wanted)
    task = SEVERAL if len(wanted) > 1 else wanted[0].task if wanted else None
    preset = known.preset or file.preset
    defaults = preset_of(kind, task, preset, plays=not offline)[1] if kind and task else {}
    if kind and offline:
        defaults = offline_defaults(kind, defaults) | defaults
    for path, hint, default, about in settings_of(kind) if kind else ():
        shown = defaults.get(path, default)
        text = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
        # what stands for None is said by the help itself
        told = "" if shown in (None, ()) else f" (default: {text})"
        parser.add_argument(
            *_names(path, offline),
            dest=path,
            metavar="X",
            help=f"{about}{told}".replace("%", "%%"),
        )
        flags[path] = (path, hint)
    if known.help:
        parser.print_help()
        raise SystemExit(0)
    given = parser.parse(arguments)
    typed = {
        path: convert(hint, getattr(given, path), path)
        for path, hint in flags.values()
        if getattr(given, path) is not None
    }
    if kind is None or not wanted:
        raise UserError(
            "an ALGORITHM and a TASK are expected, as in: python -m bigdm_ray.run udrl lunarlander"
        )
    typed = file.typed_settings(kind) | typed
    seed = given.seed if given.seed is not None else file.seed
    seed = convert(int, seed, "seed") if seed is not None else None
    config = known.folder / "run.json" if alone else None if file.path else given.config
    start = given.start or (Path(file.start) if file.start else None)
    run = make_run(kind, wanted, preset, config, typed, seed, start)
    return RunCommand(
        run,
        given.folder,
        given.resume,
        given.local,
        given.quiet,
        alone,
        given.dashboard,
        given.serve,
    )


def _wanted(entries: Sequence[TaskEntry], weights: str | None) -> list[RequestedTask]:
    """The tasks that are asked for, with their datasets. Raises UserError."""
    shares = [entry.weight for entry in entries]
    if weights is not None:
        shares = list(convert(tuple[float, ...], weights, "weights"))
        if len(shares) != len(entries):
            raise UserError(
                f"--weights is {weights}, but one number for each task is expected, "
                f"and there {'is 1' if len(entries) == 1 else f'are {len(entries)}'}"
            )
    wanted = []
    for entry, share in zip(entries, shares, strict=True):
        dataset = resolve(entry.target)
        name = find_task(entry.task).name if dataset and entry.task else None
        if dataset and name not in (None, dataset.task):
            raise UserError(f"{dataset.folder} is of the task {dataset.task}, not of {name}")
        if not dataset and entry.task not in (None, entry.target):
            raise UserError(
                f"the source {entry.target} of task {entry.task} is no dataset's folder"
            )
        wanted.append(
            RequestedTask(dataset.task if dataset else canonical_name(entry.target), dataset, share)
        )
    return wanted


def _entry(use: TaskUse) -> TaskEntry:
    """A task of a run that has begun, as it would be typed."""
    if use.dataset is None:
        return TaskEntry(use.name, weight=use.weight)
    return TaskEntry(use.dataset.folder, use.name, use.weight)


def _names(path: str, offline: bool) -> list[str]:
    """How a setting may be typed. `--steps` is that of the run's clock."""
    short = [name for name, long in SHORT.items() if long == path]
    return [
        flag(path),
        *(f"--{name}" for name in (*short, *(["steps"] * (path == STEPS[offline])))),
    ]


def configure(
    name: str | None = None,
    task: str | None = None,
    /,
    flags: Sequence[str] | None = None,
    *,
    tasks: Sequence[Any] = (),
    algorithm: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    rollouts: Mapping[str, Any] | None = None,
    evaluations: Mapping[str, Any] | None = None,
    saves: Mapping[str, Any] | None = None,
    machines: Mapping[str, Any] | None = None,
    preset: str | None = None,
    seed: int | None = None,
    config: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    **unknown: Any,
) -> Run:
    """The Run that `python -m bigdm_ray.run NAME TASK FLAGS` trains.

    Settings may also be given as values: `configure("udrl", "cartpole", budget={"minutes": 5},
    algorithm={"learning_rate": 1e-3}, seed=2)`, which stand behind the flags, so they win. `config`
    is a run.json or a YAML file (which may name algorithm and task), `start` the folder that
    `--from` names. `tasks`, in place of TASK, are several: names and folders of datasets, pairs of
    such with a weight, or mappings as in a YAML file: `{"source": FOLDER, "weight": 3}`. Raises
    UserError, which names a setting as the flag that it is; `unknown` are refused.
    """
    for key in unknown:
        raise UserError(_misnamed(key))
    for what, word in (("algorithm", name), ("task", task)):
        if word is not None and not isinstance(word, str):
            raise UserError(f"the {what} is {quote_value(word)}, but its name is expected")
    for what, listed in (("tasks", tasks), ("flags", flags or ())):
        if isinstance(listed, str | bytes) or not isinstance(listed, Sequence):
            raise UserError(f"{what} is {quote_value(listed)}, but a list of them is expected")
    if strange := [one for one in flags or () if not isinstance(one, str)]:
        raise UserError(f"flags has {quote_value(strange[0])}, but words as typed are expected")
    groups = {"algorithm": algorithm, "budget": budget, "rollouts": rollouts, "saves": saves}
    groups |= {"evaluations": evaluations, "machines": machines}
    given = {"preset": preset, "seed": seed, "config": config, "from": start}
    words = [f"--{key}={_word(value)}" for key, value in given.items() if value is not None]
    for group, values in groups.items():
        if values is not None and not isinstance(values, Mapping):
            raise UserError(
                f"{group} is {quote_value(values)}, but settings by their names are expected"
            )
        words += [f"{flag(f'{group}.{key}')}={_word(v)}" for key, v in (values or {}).items()]
    if task and tasks:
        raise UserError(f"task is {task!r} and tasks are given too; leave one out")
    entries = [entry_of(one, "tasks") for one in tasks]
    return _parse([*(word for word in (name, task) if word), *(flags or ()), *words], entries).run


def _misnamed(key: str) -> str:
    """What `configure` says of an argument that it does not take."""
    own = [
        one.name
        for one in inspect.signature(configure).parameters.values()
        if one.kind is one.KEYWORD_ONLY
    ]
    paths = sorted({path for kind in algorithms().values() for path, *_ in settings_of(kind)})
    named = [path for path in paths if path.endswith(f".{key}")]
    short = SHORT.get(key.replace("_", "-"), STEPS[False] if key == "steps" else "")
    if not (meant := [short] if short else named[:1]):
        if near := near_names(key, own):
            return f"configure takes no {key!r}; did you mean {' or '.join(map(repr, near))}?"
        meant = near_names(key, paths)
    if meant:
        group, _, setting = meant[0].partition(".")
        return f"configure takes no {key!r}; did you mean {group}={{{setting!r}: ...}}?"
    return f"configure takes no {key!r}; it takes {', '.join(own)}"


def _word(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
