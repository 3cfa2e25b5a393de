"""Checkpoints: one folder each, complete or absent, holding all that a run needs to go on.

`learner.safetensors` has the network, its optimizers and the ids of the living episodes;
`state.json` the counters, references to the shards that hold those episodes, and the offset of
metrics.jsonl. The last two are kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as save_safetensors

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json, real, whole_number
from bigdm_ray.replay.episode import EpisodeId
from bigdm_ray.replay.files import file_name, remove_leftovers, temporary_path
from bigdm_ray.replay.shard import SUFFIX, ShardRef, sync_folder, write_failure

SCHEMA_VERSION = 2
KEEP = 2
ASIDE = ".corrupt"
LIVING = "store/living"
LATER = ("tasks", "outside")
"""Counters that are written where there are some."""


@dataclass
class CountedSerials:
    """Which episodes of a store are counted, by the serials that it gave them."""

    arrived: int = 0  # all episodes of smaller serials are counted
    # and these, although some before are not
    arrived_ahead: list[int] = field(default_factory=list)

    def arrive(self, serials: list[int]) -> None:
        """Count episodes of these serials as known."""
        known = {s for s in (*self.arrived_ahead, *serials) if s >= self.arrived}
        while self.arrived in known:
            known.remove(self.arrived)
            self.arrived += 1
        self.arrived_ahead = sorted(known)


@dataclass
class TaskCounters(CountedSerials):
    """What one of several tasks has brought."""

    env_steps: int = 0
    episodes: int = 0
    barren: int = 0  # its rounds in a row without one sound episode


@dataclass
class Counters(CountedSerials):
    """Where a run stands. Changed by the loop alone. What is counted is of the only store."""

    env_steps: int = 0
    episodes: int = 0
    discarded: int = 0
    learner_step: int = 0
    round: int = 0  # the next round of episodes
    saves: int = 0
    evaluations: int = 0
    reports: int = 0
    incarnation: int = 0  # starts of the run; a resume adds one, unless it repeats the run exactly
    best_return: float | None = None
    learned: int = 0  # learner steps taken, those that were owed again counted each time
    wall_s: float = 0.0
    play_s: float = 0.0  # seconds spent playing and learning, all actors together
    learn_s: float = 0.0
    cpu_s: float = 0.0  # CPU seconds of all processes, and of learner steps alone
    learn_cpu_s: float = 0.0
    barren: int = 0  # rounds in a row without one sound episode
    began_at: int = 0  # the learner step that the run began at: that of the run it starts from
    # rounds in flight at a save (asynchronous runs)
    open_rounds: list[int] = field(default_factory=list)
    tasks: dict[str, TaskCounters] = field(default_factory=dict)  # of a run of several
    outside: dict[str, CountedSerials] = field(default_factory=dict)
    """Which episodes of others are counted: their sequence numbers, by client."""

    def is_counted(self, id: EpisodeId) -> bool:
        """Whether this episode of others is."""
        known = self.outside.get(str(id.round), CountedSerials())
        return id.number < known.arrived or id.number in known.arrived_ahead

    def count_outside(self, ids: Iterable[EpisodeId]) -> None:
        """Note that these episodes of others are counted."""
        for id in ids:
            self.outside.setdefault(str(id.round), CountedSerials()).arrive([id.number])


@dataclass(frozen=True)
class Checkpoint:
    """What was saved."""

    counters: Counters
    shards: list[ShardRef]
    metrics_offset: int
    learner: dict[str, np.ndarray]
    living: dict[str, set[EpisodeId]]  # by the folder of their store below `store/`
    identity: dict[str, str]
    means: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sums and counts since the last report. There are some where a run was stopped between two."""


def write(
    folder: Path,
    counters: Counters,
    shards: list[ShardRef],
    metrics_offset: int,
    learner: dict[str, np.ndarray],
    living: Mapping[str, np.ndarray],
    identity: dict[str, str],
    means: dict[str, tuple[float, int]] | None = None,
) -> Path:
    """Save under `folder`, then drop all but the last two.

    Raises RunFailed on a full disk, the older ones untouched.
    """
    state = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "counters": {k: v for k, v in asdict(counters).items() if k not in LATER or v},
        "shards": [ref._asdict() for ref in shards],
        "metrics_offset": metrics_offset,
        "means": means or {},
    }
    final = folder / f"save-{counters.saves:06d}"
    hidden = temporary_path(final)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, alone=True)
        hidden.mkdir()
        alive = {_living(place): ids for place, ids in living.items()}
        _synced(hidden / "learner.safetensors", save_safetensors({**learner, **alive}))
        _synced(hidden / "state.json", json.dumps(state, indent=1).encode())
        sync_folder(hidden)
        if final.exists():
            _removed(final)
        hidden.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise write_failure(final, error) from None
    drop_old(folder)
    return final


def _living(place: str) -> str:
    """The array of the ids that live in the store of a folder below `store/`."""
    return f"{LIVING}/{place}" if place else LIVING


def drop_old(folder: Path) -> None:
    """Remove all checkpoints under `folder` but the last two."""
    for old in complete_checkpoints(folder)[:-KEEP]:
        with contextlib.suppress(OSError):
            _removed(old)


def _removed(path: Path) -> None:
    """Remove a checkpoint, which counts no more before its first file goes: no half of it stays."""
    hidden = temporary_path(path.with_name(f"{path.name}.old"))
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    return sorted(
        path
        for path in folder.glob("save-*")
        if path.suffix != ASIDE and (path / "state.json").is_file()
    )


def set_aside(path: Path) -> None:
    """Have a checkpoint count no more: it is renamed to `NAME.corrupt`."""
    aside = path.with_name(path.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    sync_folder(path.parent)


def set_torn_aside(folder: Path) -> list[str]:
    """Set aside each checkpoint but the newest whose state cannot be read; a sentence for each.

    The newest is left to `read`. Raises UserError for one that cannot be opened at all.
    """
    told = []
    for path in complete_checkpoints(folder)[:-1]:
        try:
            SavedState.read(path)
        except ValueError as error:
            set_aside(path)
            told.append(f"checkpoint {path} is set aside as {path.name}{ASIDE}: {error}")
        except OSError as error:
            raise UserError(
                f"checkpoint {path} cannot be opened ({error.strerror}); try again"
            ) from None
    return told


def named_shards(folder: Path) -> set[str]:
    """The shards that the kept checkpoints name: these must not be unlinked.

    Raises UserError for a checkpoint that is torn.
    """
    return set[str]().union(*map(_shards, complete_checkpoints(folder)))


def outlived_shards(folder: Path) -> set[str]:
    """The shards that older checkpoints name and the newest does not: they hold nothing that lived
    when it was written."""
    found = complete_checkpoints(folder)
    return named_shards(folder) - _shards(found[-1]) if found else set()


def _shards(path: Path) -> set[str]:
    try:
        return {ref.name for ref in SavedState.read(path).shards}
    except (OSError, ValueError) as error:
        raise _unread(path, error) from None


def _unread(path: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {path} cannot be read ({error}); "
        "remove that folder to go on from the one before it"
    )


@dataclass(frozen=True)
class SavedState:
    """What a state.json says, each value of the kind that it must be."""

    identity: dict[str, str]
    counters: Counters
    shards: list[ShardRef]
    metrics_offset: int
    means: dict[str, tuple[float, int]]

    @staticmethod
    def read(path: Path) -> SavedState:
        """That of the checkpoint `path`.

        Raises ValueError where it is torn or never was one, UserError for a newer version, and
        OSError.
        """
        try:
            told = read_json(path / "state.json")
            if (version := whole_number(told["schema_version"], "schema_version")) > SCHEMA_VERSION:
                raise UserError(
                    f"checkpoint {path} has schema version {version}, newer than the "
                    f"{SCHEMA_VERSION} known here: update bigdm_ray"
                )
            shards = told["shards"]
            if not isinstance(shards, list):
                raise ValueError("its shards are not a list")
            return SavedState(
                {str(name): str(value) for name, value in told["identity"].items()},
                _counters(told["counters"]),
                [_reference(told) for told in shards],
                whole_number(told["metrics_offset"], "metrics_offset"),
                {str(name): _mean(one, name) for name, one in told.get("means", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def _reference(told: Any) -> ShardRef:
    """A reference to a shard; the first checkpoints had names alone."""
    if isinstance(told, str):
        return ShardRef(_shard_name(told))
    name = _shard_name(told["name"])
    return ShardRef(
        name, *(whole_number(told[what], f"{what} of {name}") for what in ("size", "crc"))
    )


def _shard_name(name: Any) -> str:
    """The name of a shard, behind that of its store's folder where there are several.

    Raises ValueError.
    """
    place, slash, shard = str(name).rpartition("/")
    named = file_name(shard if slash else name, SUFFIX)
    return f"{file_name(place)}/{named}" if slash else named


def _counters(told: dict[str, Any]) -> Counters:
    """Counters by their names. Raises ValueError for a name or a value that none of them has."""
    kinds = {field.name: field.type for field in fields(Counters)}
    if unknown := sorted(set(told) - set(kinds)):
        raise ValueError(f"{unknown[0]!r} is no counter known here")
    for name, value in told.items():
        if kinds[name] == "int":
            whole_number(value, name)
        elif name in LATER:
            kind = TaskCounters if name == "tasks" else CountedSerials
            told = told | {name: {str(whose): _of_part(kind, one) for whose, one in value.items()}}
        elif kinds[name] == "list[int]":
            if not isinstance(value, list):
                raise ValueError(f"its {name} is not a list")
            for one in value:
                whole_number(one, name)
        elif value is None and kinds[name] == "float | None":
            continue
        elif type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"its {name} is not a finite number")
    return Counters(**told)


def _of_part(kind: type[CountedSerials], told: dict[str, Any]) -> CountedSerials:
    """Counters of a task, or of a client.

    Raises ValueError for a value that none has, TypeError for an unknown name.
    """
    for name, value in told.items():
        for one in value if name == "arrived_ahead" and isinstance(value, list) else [value]:
            whole_number(one, name)
    return kind(**told)


def _mean(value: Any, name: str) -> tuple[float, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"its {name} is not a sum and a count")
    return real(value[0], f"its {name}"), whole_number(value[1], name)


def read(path: Path, identity: dict[str, str]) -> Checkpoint:
    """Read a checkpoint.

    Raises UserError for one that is torn, of a newer version, or of another algorithm or task.
    """
    try:
        state = SavedState.read(path)
        if state.identity != identity:
            raise UserError(
                f"checkpoint {path} is of {state.identity}, but this run is {identity}; "
                "choose another --folder"
            )
        arrays = load_file(path / "learner.safetensors")
        alive = {name: arrays.pop(name) for name in [*arrays] if name.startswith(LIVING)}
        living = {
            name.removeprefix(LIVING).removeprefix("/"): {EpisodeId(*map(int, i)) for i in ids}
            for name, ids in alive.items()
        }
        if not living:
            raise KeyError(LIVING)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
        raise _unread(path, error) from None
    return Checkpoint(
        state.counters,
        state.shards,
        state.metrics_offset,
        arrays,
        living,
        state.identity,
        state.means,
    )


def last_checkpoint(folder: Path, identity: dict[str, str]) -> Checkpoint | None:
    """The newest checkpoint under `folder`, or None."""
    found = complete_checkpoints(folder)
    return read(found[-1], identity) if found else None
