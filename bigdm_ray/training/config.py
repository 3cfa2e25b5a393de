"""Run: everything that decides a run, made once and never written to; and how a command line becomes one.

Flags are the paths of the fields (`--algorithm.learning-rate`), so whatever a dataclass declares can be typed, is
explained by `--help` with its default, and stands in `run.json`. What comes later wins: the defaults, the run.json of
`--config`, the preset of (algorithm, task), which with such a `--config` must be named, the YAML file of `--config`, and
the flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigdm_ray.algorithms.base import Algorithm, algorithms, find_algorithm
from bigdm_ray.baselines.base import Foreign
from bigdm_ray.doors import Parser
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError, nearest, quoted
from bigdm_ray.formats.behaviour import MODES
from bigdm_ray.formats.dataset import Dataset, resolve
from bigdm_ray.jsons import read_json
from bigdm_ray.settings import checked, converted, flag, from_json, setting, to_json
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint

SCHEMA_VERSION = 1
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
YAML = (".yaml", ".yml")
"""How the names of files end that hold settings; any other `--config` is a run.json."""


@dataclass(frozen=True)
class Origin:
    """The dataset that a run learns from: where it lies, and what it was when the run began."""

    folder: str
    name: str
    sha256: str
    source: str
    episodes: int
    steps: int
    return_mean: float
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """The run that another one starts from: where it lies, and where it stood."""

    folder: str
    algorithm: str
    learner_step: int
    dataset: str | None = None


@dataclass(frozen=True)
class Budget:
    """When a run ends: at the first of these."""

    env_steps: int = setting(10_000_000, "environment steps, warm-up included", low=1)
    learner_steps: int | None = setting(None, "learner steps", low=1)
    minutes: float | None = setting(
        None, "minutes of wall time since the run (or its resume) began", above=0
    )


@dataclass(frozen=True)
class Rollouts:
    """How episodes are played. Groups and environments decide what is played, actors only where."""

    groups: int | None = setting(
        None, "vector environments that share a round's episodes; default: one an actor", low=1
    )
    environments: int = setting(
        32, "environments in a group, at most as many as it plays episodes a round", low=1
    )


@dataclass(frozen=True)
class Evaluations:
    """How often and how long the policy is scored, on gymnasium's environments."""

    every: int = setting(
        250_000,
        "environment steps between evaluations; learner steps for a run on a dataset",
        low=1,
    )
    episodes: int = setting(20, "episodes of each", low=1)
    final_episodes: int = setting(
        100, "episodes of the last one, and of the re-score of the best weights", low=1
    )
    mode: str = setting("sample", "how the policy acts", choices=MODES)


@dataclass(frozen=True)
class Saves:
    """Checkpoints and reports."""

    every: int = setting(
        500_000,
        "environment steps between checkpoints; learner steps for a run on a dataset",
        low=1,
    )
    report_every: int = setting(
        20_000,
        "environment steps between lines of metrics; learner steps for a run on a dataset",
        low=1,
    )
    flat_mib: int = setting(
        2048,
        "MiB of episodes that are kept in memory for drawing; the rest is drawn from the maps, of a dataset in turns",
        low=0,
    )
    milestones: bool = setting(
        False,
        "whether the weights of every checkpoint are kept, for `data record RUN --weights milestones`",
    )


@dataclass(frozen=True)
class Machines:
    """Where the parts stand."""

    actors: int = setting(1, "rollout actors (--actors)", low=1, high=10_000)
    learners: int = setting(1, "data-parallel learner ranks (--learners)", low=1, high=1_024)
    device: str = setting("auto", "where the learner trains: auto, cpu, cuda or cuda:N (--device)")
    address: str = setting(
        "local", "Ray cluster to join; `local` starts one on this machine (--address)"
    )
    lock_step: bool = setting(
        False, "play, store and learn in turn, equal to --local bit for bit; else side by side"
    )
    max_staleness: int = setting(
        200,
        "learner steps that may be owed when a rollout starts, so that its weights are not far behind",
        low=1,
    )
    threads: int = setting(1, "torch threads of the learner", low=1, high=512)
    precision: str = setting(
        "float32",
        "what the learner's transformer computes in; its weights are float32",
        choices=("float32", "bf16"),
    )
    compile: bool = setting(
        False,
        "have torch.compile compile the learner's transformer; equal to rounding where nothing is dropped out",
    )


SETTINGS = ("budget", "rollouts", "evaluations", "saves", "machines")
"""The groups of a run's settings beside the algorithm's."""


@dataclass(frozen=True)
class Run:
    """Algorithm, task, seed and settings. The folder is not part of it: a run may be moved."""

    algorithm: Algorithm
    task: str
    preset: str = "default"
    seed: int = 1
    budget: Budget = field(default_factory=Budget)
    rollouts: Rollouts = field(default_factory=Rollouts)
    evaluations: Evaluations = field(default_factory=Evaluations)
    saves: Saves = field(default_factory=Saves)
    machines: Machines = field(default_factory=Machines)
    dataset: Origin | None = None
    start: Start | None = None
    typed: tuple[str, ...] | None = field(default=None, compare=False)
    """Paths of the settings that were typed, here or for the run whose --config this took; None of
    a run that was not made from a command line."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(
                f"--seed is {self.seed}, but an integer from 0 to 2147483647 is expected"
            )
        checked(self.algorithm, "algorithm.")
        for name in SETTINGS:
            checked(getattr(self, name), f"{name}.")

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint of this run must be of."""
        return {"algorithm": self.algorithm.name, "task": self.task}

    @property
    def clock(self) -> str:
        """What the budget, evaluations, saves and reports are counted in."""
        return "time/learner_steps" if self.dataset else "time/env_steps"

    @property
    def learner_budget(self) -> int:
        """Learner steps of a run on a dataset."""
        return self.budget.learner_steps or self.algorithm.offline_steps

    @property
    def total(self) -> int:
        """The whole budget, in what `clock` counts."""
        return self.learner_budget if self.dataset else self.budget.env_steps

    @property
    def groups(self) -> int:
        """Vector environments that share a round."""
        return self.rollouts.groups or self.machines.actors

    def share(self, count: int, group: int) -> slice:
        """Which of a round's `count` commands a group plays."""
        return slice(group * count // self.groups, (group + 1) * count // self.groups)

    def to_json(self) -> dict[str, Any]:
        """The content of run.json; `run_from_json` reads it back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "algorithm": {"name": self.algorithm.name, **to_json(self.algorithm)},
            **{
                f.name: to_json(getattr(self, f.name))
                for f in dataclasses.fields(self)
                if f.name != "algorithm"
            },
        }


def run_from_json(data: Mapping[str, Any]) -> Run:
    """The Run of a run.json. Raises UserError for one of a newer version or with unknown settings."""
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if not isinstance(version, int):
        raise UserError("run.json is not one of this project (it has no schema_version)")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"run.json has schema version {version}, newer than the {SCHEMA_VERSION} known here: update bigdm_ray"
        )
    try:
        settings = dict(data["algorithm"])
        kind = find_algorithm(settings.pop("name"))
        rest = {
            k: v
            for k, v in data.items()
            if k not in ("schema_version", "algorithm", "loop", "backend", "versions")
        }
        hints = typing.get_type_hints(Run)
        given: dict[str, Any] = {}
        for name, value in rest.items():
            if name not in hints:
                raise UserError(
                    f"unknown setting {name!r} in run.json{nearest(name, sorted(hints))}"
                )
            if name in ("dataset", "start"):
                given[name] = (
                    None
                    if value is None
                    else from_json({"dataset": Origin, "start": Start}[name], value, f"{name}.")
                )
                continue
            given[name] = (
                from_json(hints[name], value, f"{name}.")
                if dataclasses.is_dataclass(hints[name])
                else converted(hints[name], value, name)
            )
        return Run(algorithm=from_json(kind, settings, "algorithm."), **given)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"run.json is not one of this project ({error})") from None


def read_run(path: Path) -> Run:
    """The Run in a run.json (or in the folder that holds one). Raises UserError."""
    file = path / "run.json" if path.is_dir() else path
    try:
        return run_from_json(read_json(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON of this project ({error})") from None


# --- the command line


@dataclass(frozen=True)
class Door:
    """What `run` was asked to do beside the Run itself."""

    run: Run
    folder: Path | None
    resume: bool
    local: bool
    quiet: bool


def settings_of(kind: type[Algorithm]) -> Iterator[tuple[str, Any, Any, str]]:
    """Path, type, default and help of every flag of a run of this algorithm, in the order of the dataclasses."""
    for prefix, owner in [
        ("algorithm", kind),
        *((f.name, typing.get_type_hints(Run)[f.name]) for f in dataclasses.fields(Run)),
    ]:
        if not dataclasses.is_dataclass(owner) or owner is Algorithm:
            continue
        hints = typing.get_type_hints(owner)
        for f in dataclasses.fields(owner):
            if "help" in f.metadata:
                choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
                yield f"{prefix}.{f.name}", hints[f.name], f.default, f.metadata["help"] + choices


def acting_as(algorithm: Algorithm, given: Mapping[str, Any]) -> Algorithm:
    """A trained algorithm with other values, as text too, of settings that affect acting alone. Raises UserError for another setting, and one out of range."""
    may = [flag(f"algorithm.{name}") for name in algorithm.acting]
    hints = typing.get_type_hints(type(algorithm))
    known = {f.name for f in dataclasses.fields(algorithm)}
    for name in given:
        path = f"algorithm.{name}"
        if name not in known:
            raise UserError(
                f"{algorithm.name} has no setting {flag(path)}{nearest(flag(path), may)}"
            )
        if name not in algorithm.acting:
            rest = (
                f"those that affect acting alone are {', '.join(may)}"
                if may
                else f"{algorithm.name} has none that affect acting alone"
            )
            raise UserError(f"{flag(path)} was settled when the run was trained; {rest}")
    made = dataclasses.replace(
        algorithm,
        **{
            name: converted(hints[name], value, f"algorithm.{name}")
            for name, value in given.items()
        },
    )
    checked(made, "algorithm.")
    return made


def parse(arguments: list[str]) -> Door:
    """`ALGORITHM TASK [flags]` as a Door. Raises UserError; exits 0 after --help."""
    parser = Parser(
        prog="python -m bigdm_ray.run",
        description="Train a policy and leave a run folder.",
        epilog="`python -m bigdm_ray.run ALGORITHM TASK --help` also lists every hyperparameter with its default for that task.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("algorithm", nargs="?", help="one of " + ", ".join(algorithms()))
    parser.add_argument(
        "task",
        nargs="?",
        help="a short name (lunarlander), gymnasium:ID, my_module:MyEnv-v0; or a dataset: its folder, or a Minari id",
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this and exit")
    parser.add_argument("--folder", type=Path, help="run folder; default: runs/ALGORITHM-TASK-SEED")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --folder from its last checkpoint",
    )
    parser.add_argument("--local", action="store_true", help="one process, without Ray")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the summary")
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
    # which flags there are depends on the algorithm, but each setting is followed by a value
    written, words = parser.split(arguments, unknown=True)
    known, _ = parser.parse_known_args([*words, *written])
    file = Written()
    if known.config is not None and known.config.suffix in YAML:
        file = read_yaml(known.config)
    known.algorithm, known.task = known.algorithm or file.algorithm, known.task or file.task
    if known.algorithm not in algorithms() and not known.help:
        # a flag that no algorithm has may have taken the algorithm's name for its value
        for path in {path for other in algorithms().values() for path, *_ in settings_of(other)}:
            parser.add_argument(*_names(path, False), dest=path)
        parser.parse(written)
    kind = find_algorithm(known.algorithm) if known.algorithm else None
    flags: dict[str, tuple[str, Any]] = {}
    dataset = resolve(known.task) if kind and known.task else None
    task = dataset.task if dataset else known.task
    preset = known.preset or file.preset
    defaults = preset_of(kind, task, preset, plays=dataset is None)[1] if kind and task else {}
    if kind and dataset:
        defaults = offline_defaults(kind, defaults) | defaults
    for path, hint, default, about in settings_of(kind) if kind else ():
        shown = defaults.get(path, default)
        text = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
        told = (
            "" if shown in (None, ()) else f" (default: {text})"
        )  # what stands for None is said by the help itself
        parser.add_argument(
            *_names(path, dataset is not None),
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
        path: converted(hint, getattr(given, path), path)
        for path, hint in flags.values()
        if getattr(given, path) is not None
    }
    if kind is None or known.task is None:
        raise UserError(
            "an ALGORITHM and a TASK are expected, as in: python -m bigdm_ray.run udrl lunarlander"
        )
    typed = file.typed(kind) | typed
    seed = given.seed if given.seed is not None else file.seed
    seed = converted(int, seed, "seed") if seed is not None else None
    config = None if file.path else given.config
    start = given.start or (Path(file.start) if file.start else None)
    run = _made(kind, task, preset, config, typed, seed, dataset, start)
    return Door(run, given.folder, given.resume, given.local, given.quiet)


def _names(path: str, offline: bool) -> list[str]:
    """How a setting may be typed. `--steps` is that of the run's clock."""
    short = [name for name, long in SHORT.items() if long == path]
    return [
        flag(path),
        *(f"--{name}" for name in (*short, *(["steps"] * (path == STEPS[offline])))),
    ]


@dataclass(frozen=True)
class Written:
    """What a YAML file says of a run: as if its lines were typed before the flags."""

    path: Path | None = None
    algorithm: str | None = None
    task: str | None = None
    preset: str | None = None
    seed: Any = None
    start: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def typed(self, kind: type[Algorithm]) -> dict[str, Any]:
        """The settings by path, each with its type. Raises UserError for what `kind` has not."""
        if self.path is None:
            return {}
        if self.algorithm not in (None, kind.name):
            raise UserError(
                f"--config {self.path} is of algorithm {self.algorithm!r}, not of {kind.name!r}"
            )
        hints = {path: hint for path, hint, *_ in settings_of(kind)}
        for path in self.settings:
            if path not in hints:
                near = nearest(path, list(hints))
                raise UserError(f"{self.path} has the unknown setting {path!r}{near}")
        try:
            return {path: converted(hints[path], v, path) for path, v in self.settings.items()}
        except UserError as error:
            raise UserError(f"in {self.path} {error}") from None


def read_yaml(path: Path) -> Written:
    """A YAML file of settings, nested as a run.json is; what it leaves out has its default.

    Beside the groups of settings it may hold `task`, `preset`, `seed`, `from`, and `algorithm` as a
    name or as a group with a `name`. Raises UserError.
    """
    import yaml

    try:
        text = path.read_text()
        data, twice = yaml.safe_load(text), _twice(yaml.compose(text, yaml.SafeLoader))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({error})") from None
    if twice is not None:
        raise UserError(f"{path} says {twice!r} twice; leave one out")
    words = ("algorithm", "task", "preset", "seed", "from")
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds no settings; lines such as `budget: {{minutes: 5}}` are expected"
        )
    given: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in data.items():
        if name not in (*words, *SETTINGS):
            near = nearest(str(name), [*words, *SETTINGS])
            raise UserError(f"{path} has the unknown setting {quoted(name)}{near}")
        if name in SETTINGS or isinstance(value, dict):
            if not isinstance(value, dict) or name not in ("algorithm", *SETTINGS):
                wanted = "a group of settings" if name in SETTINGS else "one value"
                raise UserError(f"in {path} {name} is {quoted(value)}, but {wanted} is expected")
            inner = {str(key).replace("-", "_"): item for key, item in value.items()}
            if name == "algorithm":
                given[name] = inner.pop("name", None)
            settings |= {f"{name}.{key}": item for key, item in inner.items()}
        elif value is not None:
            given[name] = value if name == "seed" else str(value)
    start = given.pop("from", None)
    return Written(path, start=start, settings=settings, **given)


def _twice(node: Any) -> str | None:
    """A name that a group of a YAML document has twice, of which the first would be lost."""
    seen = set[str]()
    for key, value in node.value if getattr(node, "id", "") == "mapping" else ():
        if key.value in seen:
            return str(key.value)
        seen.add(str(key.value))
        if (inner := _twice(value)) is not None:
            return inner
    return None


def preset_of(
    kind: type[Algorithm], task: str, name: str | None, plays: bool = False
) -> tuple[str, dict[str, Any]]:
    """The name and settings of a task's preset; `default` may be absent. Raises UserError for an unknown one."""
    presets = kind.presets()
    known = presets.get(task, presets.get("*", {}))
    wanted = name or (kind.played_preset if plays and kind.played_preset in known else "default")
    if wanted == "none" or (wanted == "default" and "default" not in known):
        return "none", {}
    if wanted not in known:
        raise UserError(
            f"unknown preset {wanted!r} of {kind.name} on {task}; it has {' and '.join([*known, 'none'])}"
        )
    return wanted, known[wanted]


def offline_defaults(kind: type[Algorithm], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run on a dataset has in place of the defaults, which count environment steps: shares of the budget that is `given`, else of the algorithm's."""
    steps = given.get("budget.learner_steps") or kind.offline_steps
    counted = {
        "evaluations.every": max(1, steps // 5),
        "saves.every": max(1, steps // 5),
        "saves.report_every": max(1, steps // 100),
    }
    return {"budget.learner_steps": steps, **counted}


def as_begun(run: Run, folder: Path) -> Run:
    """A run as it is resumed.

    A hyperparameter that its run.json does not know, being older, is what was done before there was
    such a one: its default, whatever a preset says of it today. On a dataset, how often it is scored,
    saved and reported follows from the budget, which a resume may change. So it is what it was when
    the run began. Both hold where they are neither typed nor another than the default. A run.json from
    before it said what was typed leaves the second alone. Raises UserError for one that cannot be read.
    """
    if not (folder / "run.json").is_file():
        return run
    run = _without_later(run, folder / "run.json")
    if run.dataset is None:
        return run
    kind, presets = type(run.algorithm), run.algorithm.presets()
    preset = presets.get(run.task, presets.get("*", {})).get(run.preset, {})
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
    return _filled(data, kept)


def _without_later(run: Run, file: Path) -> Run:
    """The run without those settings of its preset that its run.json is too old to know."""
    before, known = read_run(file), read_json(file)["algorithm"]
    if before.algorithm.name != run.algorithm.name:
        return run
    began = to_json(before.algorithm)
    later = {f"algorithm.{name}": value for name, value in began.items() if name not in known}
    kept = {path: value for path, value in later.items() if path not in (run.typed or ())}
    return _filled(run.to_json(), kept) if kept else run


FINE_TUNING = {
    "budget.env_steps": 200_000,
    "evaluations.every": 20_000,
    "saves.every": 50_000,
    "saves.report_every": 5_000,
}
"""What a run that starts from another has in place of the defaults: the budget of Zheng et al. 2022."""


def _made(
    kind: type[Algorithm],
    task: str,
    preset: str | None,
    config: Path | None,
    typed: dict[str, Any],
    seed: int | None,
    dataset: Dataset | None,
    start: Path | None,
) -> Run:
    try:
        find_task(task)
    except UserError as error:
        if dataset is None and kind.offline and ":" not in task:
            raise UserError(f"{error}; nor is there a folder {task} with a dataset") from None
        raise
    if start is not None and not kind.online:
        raise UserError(
            f"--from goes on by playing, but {kind.name} learns from datasets alone and cannot go on from another run; leave --from out"
        )
    if dataset is None and not kind.online:
        raise UserError(
            f"{kind.name} learns from a dataset, but {task} is a task to play; import episodes with `python -m bigdm_ray.data` and give their folder"
        )
    if dataset is not None and not kind.offline:
        raise UserError(
            f"{kind.name} learns from what it plays, but {dataset.folder} is a dataset; give the task {task} itself"
        )
    name, values = preset_of(kind, task, preset, plays=dataset is None)
    begun = None
    if start is not None:
        base, begun = start_of(start, kind, task, dataset, config)
        data = Run(
            algorithm=base.algorithm, task=task, evaluations=Evaluations(mode=base.evaluations.mode)
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
        data = base.to_json() | {"task": task}
        if preset is None:
            name, values = base.preset, {}
    else:
        data = Run(algorithm=kind(), task=task).to_json()
    data["dataset"] = origin_of(dataset) if dataset else None
    if begun or dataset is not None or config is None or base.task != task:
        data["start"] = (
            to_json(begun) if begun else None
        )  # another run's --config keeps it for its own --resume
    if dataset is not None and config is None:
        values = offline_defaults(kind, values | typed) | values
    data |= {"preset": name} | ({} if seed is None else {"seed": seed})
    data["typed"] = sorted({*(data["typed"] or ()), *typed, *([] if seed is None else ["seed"])})
    run = _filled(data, values | typed)
    if dataset is not None:
        run = dataclasses.replace(
            run, algorithm=run.algorithm.for_data(dataset.steps, dataset.episodes)
        )
    if start is not None:
        for name in (name for name in kind.fixed if hasattr(run.algorithm, name)):
            mine, theirs = getattr(run.algorithm, name), getattr(base.algorithm, name)
            if mine != theirs:
                raise UserError(
                    f"--algorithm.{name.replace('_', '-')} is {mine}, but --from {start} has {theirs}: what shapes network and optimizers must stay"
                )
    premature(run)
    return run


def premature(run: Run) -> str | None:
    """What a run on a dataset comes to whose budget ends before its policy's own learning begins, in one sentence; None where it does not.

    Raises UserError where its policy would not have been trained at all.
    """
    before = run.algorithm.prelude() if run.dataset else None
    if before is None or run.learner_budget > before.steps:
        return None
    lower = " and ".join(flag(f"algorithm.{name}") for name in before.settings)
    learns = f"--budget.learner-steps is {run.learner_budget}, but the policy of {run.algorithm.name} learns "
    if not before.policy:
        raise UserError(
            f"{learns}only after learner step {before.steps}; give more, or lower {lower}"
        )
    return f"{learns}from its critics only after learner step {before.steps}: it will be {before.policy}; give more, or lower {lower}"


def still_rising(run: Run) -> str | None:
    """What a run on a dataset comes to whose learning rate rises for more than half of its budget, in one sentence; None where it does not."""
    if run.dataset is None:
        return None
    half, last = (
        run.algorithm.learning_rate_factor(step, "")
        for step in (run.learner_budget // 2, run.learner_budget - 1)
    )
    if last <= half:
        return None
    return (
        f"--budget.learner-steps is {run.learner_budget}, but the learning rate rises for more than half of that and ends at {last:.0%} of "
        "--algorithm.learning-rate; give more, or lower --algorithm.warm-up-steps"
    )


def _filled(data: dict[str, Any], values: dict[str, Any]) -> Run:
    """The Run of a run.json with these settings, by their paths, in place of its own. Raises UserError."""
    for path, value in values.items():
        owner, _, key = path.partition(".")
        data[owner] = data[owner] | {key: list(value) if isinstance(value, tuple) else value}
    return run_from_json(data)


def opened(folder: Path) -> tuple[Run, Checkpoint]:
    """A run and its last checkpoint, to start another from. Raises UserError where there is none."""
    if not (folder / "run.json").is_file():
        raise UserError(
            f"--from {folder} holds no run: a folder with a run.json is expected, as `run` leaves one"
        )
    run = read_run(folder)
    saved = checkpoint.last(folder / "checkpoints", run.identity)
    if saved is None:
        raise UserError(
            f"--from {folder} has no checkpoint yet: train it to its first one, or start anew without --from"
        )
    return run, saved


def start_of(
    folder: Path, kind: type[Algorithm], task: str, dataset: Dataset | None, config: Path | None
) -> tuple[Run, Start]:
    """The run that another starts from, and what run.json says of it. Raises UserError for one that does not fit."""
    run, saved = opened(folder)
    if run.algorithm.name != kind.name or run.task != task:
        raise UserError(
            f"--from {folder} is {run.algorithm.name} on {run.task}, not {kind.name} on {task}"
        )
    if issubclass(kind, Foreign):
        raise UserError(
            f"--from goes on with a learner of ours, but {kind.name} is trained by {kind.library}; leave --from out"
        )
    if dataset is not None or config is not None:
        raise UserError(
            f"--from takes its settings from {folder} and then plays {task}: give the task's name alone, without a dataset and without --config"
        )
    return run, Start(
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
    return {"folder": str(dataset.folder.resolve()), **named}


def configure(
    name: str | None = None,
    task: str | None = None,
    /,
    flags: Sequence[str] | None = None,
    *,
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
) -> Run:
    """The Run that `python -m bigdm_ray.run NAME TASK FLAGS` trains.

    Settings may also be given as values: `configure("udrl", "cartpole", budget={"minutes": 5},
    algorithm={"learning_rate": 1e-3}, seed=2)`, which stand behind the flags, so they win. `config`
    is a run.json or a YAML file (which may name algorithm and task), `start` the folder that
    `--from` names. Raises UserError, which names a setting as the flag that it is.
    """
    groups = {"algorithm": algorithm, "budget": budget, "rollouts": rollouts, "saves": saves}
    groups |= {"evaluations": evaluations, "machines": machines}
    given = {"preset": preset, "seed": seed, "config": config, "from": start}
    words = [f"--{key}={_word(value)}" for key, value in given.items() if value is not None]
    for group, values in groups.items():
        words += [f"{flag(f'{group}.{key}')}={_word(v)}" for key, v in (values or {}).items()]
    return parse([*(word for word in (name, task) if word), *(flags or ()), *words]).run


def _word(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def foreign_run(
    kind: type[Algorithm], task: str, preset: str | None, settings: dict[str, Any]
) -> Run:
    """The Run of weights that were trained elsewhere: a task, a preset's settings, and those by path that the weights ask for. Raises UserError."""
    found = find_task(task)
    name, values = preset_of(kind, found.name, preset)
    return _filled(
        Run(algorithm=kind(), task=found.name).to_json() | {"preset": name}, values | settings
    )


def described(run: Run) -> str:
    """One line that says what is about to be trained."""
    budget = (
        f"{run.learner_budget:,} learner steps on {run.dataset.name}"
        if run.dataset
        else f"{run.budget.env_steps:,} environment steps"
    )
    return textwrap.shorten(
        f"{run.algorithm.name} on {run.task}, preset {run.preset}, seed {run.seed}, {budget}", 120
    )
