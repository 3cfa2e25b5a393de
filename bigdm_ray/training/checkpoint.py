"""Checkpoints: one folder each, complete or absent, holding all that a run needs to go on.

`learner.safetensors` has the network, its optimizers and the ids of the living episodes; `state.json` the counters,
the shards that hold those episodes, and the offset of metrics.jsonl. The last two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as save_safetensors

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import EpisodeId
from bigdm_ray.replay.shard import sync_folder, unwritten

SCHEMA_VERSION = 1
KEEP = 2
ASIDE = ".corrupt"


@dataclass
class Counters:
    """Where a run stands. Changed by the loop alone."""

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
    barren: int = 0  # rounds in a row without one sound episode
    began_at: int = 0  # the learner step that the run began at: that of the run it starts from
    open_rounds: list[int] = field(
        default_factory=list
    )  # rounds in flight at a save (asynchronous runs)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved."""

    counters: Counters
    shards: list[str]
    metrics_offset: int
    learner: dict[str, np.ndarray]
    living: set[EpisodeId]
    identity: dict[str, str]


def write(
    folder: Path,
    counters: Counters,
    shards: list[str],
    metrics_offset: int,
    learner: dict[str, np.ndarray],
    living: np.ndarray,
    identity: dict[str, str],
) -> Path:
    """Save under `folder`, then drop all but the last two. Raises RunFailed on a full disk, the older ones untouched."""
    state = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "counters": asdict(counters),
        "shards": shards,
        "metrics_offset": metrics_offset,
    }
    final = folder / f"save-{counters.saves:06d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _synced(
            temporary / "learner.safetensors", save_safetensors({**learner, "store/living": living})
        )
        _synced(temporary / "state.json", json.dumps(state, indent=1).encode())
        sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritten(final, error) from None
    for old in saved(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def saved(folder: Path) -> list[Path]:
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


def named_shards(folder: Path) -> set[str]:
    """The shards that the kept checkpoints name: these must not be unlinked."""
    return set[str]().union(*map(_shards, saved(folder)))


def outlived_shards(folder: Path) -> set[str]:
    """The shards that older checkpoints name and the newest does not: they hold nothing that lived when it was written."""
    found = saved(folder)
    return named_shards(folder) - set(_shards(found[-1])) if found else set()


def _shards(path: Path) -> list[str]:
    names: list[str] = read_json(path / "state.json")["shards"]
    return names


def read(path: Path, identity: dict[str, str]) -> Checkpoint:
    """Read a checkpoint. Raises UserError for one that is torn, of a newer version, or of another algorithm or task."""
    try:
        state: dict[str, Any] = read_json(path / "state.json")
        arrays = load_file(path / "learner.safetensors")
        if state["schema_version"] > SCHEMA_VERSION:
            raise UserError(
                f"checkpoint {path} has schema version {state['schema_version']}, newer than the {SCHEMA_VERSION} known here: update bigdm_ray"
            )
        if state["identity"] != identity:
            raise UserError(
                f"checkpoint {path} is of {state['identity']}, but this run is {identity}; choose another --folder"
            )
        living = {EpisodeId(*map(int, row)) for row in arrays.pop("store/living")}
        return Checkpoint(
            Counters(**state["counters"]),
            state["shards"],
            state["metrics_offset"],
            arrays,
            living,
            state["identity"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error}); remove that folder to go on from the one before it"
        ) from None


def last(folder: Path, identity: dict[str, str]) -> Checkpoint | None:
    """The newest checkpoint under `folder`, or None."""
    found = saved(folder)
    return read(found[-1], identity) if found else None
