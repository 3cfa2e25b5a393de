"""Files: a Run as the JSON of run.json, and back; settings that somebody wrote as YAML."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigdm_ray.algorithms.base import Algorithm, find_algorithm
from bigdm_ray.errors import UserError, quote_value, suggest_names
from bigdm_ray.jsons import read_json
from bigdm_ray.settings import convert, from_json
from bigdm_ray.training.config.values import (
    SCHEMA_VERSION,
    SETTINGS,
    DatasetOrigin,
    Run,
    StartingRun,
    TaskUse,
    settings_of,
)

YAML = (".yaml", ".yml")
"""How the names of files end that hold settings; any other `--config` is a run.json."""


def run_from_json(data: Mapping[str, Any]) -> Run:
    """The Run of a run.json.

    Raises UserError for one of a newer version or with unknown settings.
    """
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if not isinstance(version, int):
        raise UserError("run.json is not one of this project (it has no schema_version)")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"run.json has schema version {version}, newer than the {SCHEMA_VERSION} known here:"
            " update bigdm_ray"
        )
    try:
        settings = dict(data["algorithm"])
        kind = find_algorithm(settings.pop("name"))
        rest = {
            k: v
            for k, v in data.items()
            if k not in ("schema_version", "algorithm", "loop", "backend", "versions")
        }
        uses = _uses(rest)
        hints = typing.get_type_hints(Run)
        given: dict[str, Any] = {}
        for name, value in rest.items():
            if name not in hints:
                raise UserError(
                    f"unknown setting {name!r} in run.json{suggest_names(name, sorted(hints))}"
                )
            if name == "start":
                given[name] = None if value is None else from_json(StartingRun, value, "start.")
                continue
            given[name] = (
                from_json(hints[name], value, f"{name}.")
                if dataclasses.is_dataclass(hints[name])
                else convert(hints[name], value, name)
            )
        return Run(from_json(kind, settings, "algorithm."), uses, **given)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"run.json is not one of this project ({error})") from None


def _uses(rest: dict[str, Any]) -> tuple[TaskUse, ...]:
    """The tasks of a run.json, taken out of what it holds. Raises KeyError, UserError."""
    told = rest.pop("tasks") if "tasks" in rest else [{"task": rest.pop("task")}]
    if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
        raise UserError(f"run.json says tasks {quote_value(told)}, but a list of tasks is expected")
    if "dataset" in rest:
        told = [told[0] | {"dataset": rest.pop("dataset")}]
    return tuple(
        TaskUse(
            convert(str, one["task"], "task"),
            None
            if one.get("dataset") is None
            else from_json(DatasetOrigin, one["dataset"], "dataset."),
            convert(float, one.get("weight", 1.0), "weight"),
        )
        for one in told
    )


def read_run(path: Path) -> Run:
    """The Run in a run.json (or in the folder that holds one). Raises UserError."""
    file = path / "run.json" if path.is_dir() else path
    try:
        return run_from_json(read_json(file))
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; a run's folder, or the run.json in it, is"
            " expected"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON of this project ({error})") from None


@dataclass(frozen=True)
class TaskEntry:
    """A task as a file or a program names it: what to play, or the dataset to learn from."""

    target: str
    task: str | None = None  # that a dataset must be of
    weight: float = 1.0


def entry_of(value: Any, where: str) -> TaskEntry:
    """A name, a pair of a name and a weight, or a mapping of task, source and weight.

    Raises UserError.
    """
    if isinstance(value, str | os.PathLike):
        return TaskEntry(os.fspath(value))
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"source": value[0], "weight": value[1]}
    keys = ("task", "source", "weight")
    if not isinstance(value, Mapping) or not {"task", "source"} & value.keys():
        raise UserError(
            f"{where} has {quote_value(value)}, but a name or a mapping of task, source and weight"
            " is expected"
        )
    if unknown := [str(key) for key in value if key not in keys]:
        raise UserError(
            f"{where} has the unknown setting {unknown[0]!r}{suggest_names(unknown[0], list(keys))}"
        )
    task, source = (value.get(key) for key in keys[:2])
    weight = value.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"in {where} weight is {quote_value(weight)}, but a number is expected")
    target = os.fspath(source) if isinstance(source, os.PathLike) else source
    for key, named in (("task", task), ("source", target)):
        if named is not None and not isinstance(named, str):
            raise UserError(f"in {where} {key} is {quote_value(named)}, but a name is expected")
    return TaskEntry(target or task or "", task, float(weight))


@dataclass(frozen=True)
class ConfigFile:
    """What a YAML file says of a run: as if its lines were typed before the flags."""

    path: Path | None = None
    algorithm: str | None = None
    tasks: tuple[TaskEntry, ...] = ()
    preset: str | None = None
    seed: Any = None
    start: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def typed_settings(self, kind: type[Algorithm]) -> dict[str, Any]:
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
                near = suggest_names(path, list(hints))
                raise UserError(f"{self.path} has the unknown setting {path!r}{near}")
        try:
            return {path: convert(hints[path], v, path) for path, v in self.settings.items()}
        except UserError as error:
            raise UserError(f"in {self.path} {error}") from None


def read_yaml(path: Path) -> ConfigFile:
    """A YAML file of settings, nested as a run.json is; what it leaves out has its default.

    Beside the groups of settings it may hold `task`, or a list `tasks`, `preset`, `seed`, `from`,
    and `algorithm` as a name or as a group with a `name`. Raises UserError.
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
    words = ("algorithm", "task", "tasks", "preset", "seed", "from")
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds no settings; lines such as `budget: {{minutes: 5}}` are expected"
        )
    given: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in data.items():
        if name not in (*words, *SETTINGS):
            near = suggest_names(str(name), [*words, *SETTINGS])
            raise UserError(f"{path} has the unknown setting {quote_value(name)}{near}")
        if name in SETTINGS or isinstance(value, dict):
            if not isinstance(value, dict) or name not in ("algorithm", *SETTINGS):
                wanted = "a group of settings" if name in SETTINGS else "one value"
                raise UserError(
                    f"in {path} {name} is {quote_value(value)}, but {wanted} is expected"
                )
            inner = {str(key).replace("-", "_"): item for key, item in value.items()}
            if name == "algorithm":
                given[name] = inner.pop("name", None)
            settings |= {f"{name}.{key}": item for key, item in inner.items()}
        elif name == "tasks":
            if not isinstance(value, list):
                raise UserError(f"in {path} tasks is {quote_value(value)}, but a list is expected")
            given[name] = tuple(entry_of(one, str(path)) for one in value)
        elif value is not None:
            given[name] = value if name == "seed" else str(value)
    start = given.pop("from", None)
    if (task := given.pop("task", None)) is not None:
        if "tasks" in given:
            raise UserError(f"{path} has both task and tasks; leave one out")
        given["tasks"] = (TaskEntry(task),)
    return ConfigFile(path, start=start, settings=settings, **given)


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


def fill_run(data: dict[str, Any], values: dict[str, Any]) -> Run:
    """The Run of a run.json with these settings, by their paths, in place of its own.

    Raises UserError.
    """
    for path, value in values.items():
        owner, _, key = path.partition(".")
        data[owner] = data[owner] | {key: list(value) if isinstance(value, tuple) else value}
    return run_from_json(data)
