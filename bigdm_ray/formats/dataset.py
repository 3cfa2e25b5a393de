"""Dataset: a folder of shards that does not grow any more, and the card that says what is in it.

dataset.json  episodes-0000000.arrow  episodes-0000001.arrow ...

The hash is taken over the episodes' content in their order, so it does not depend on how they are
cut into shards. `writer.py` writes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import canonical_name, find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.signatures import checked_signature, misfit
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.files import file_name
from bigdm_ray.replay.rotating import LONGEST, RotatingStore, turn_of
from bigdm_ray.replay.shard import (
    SUFFIX,
    CorruptShard,
    Shard,
)
from bigdm_ray.replay.store import Store

CARD = "dataset.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """What the card says. `open` reads it, `store` opens the episodes."""

    folder: Path
    name: str
    task: str  # what `find_task` understands
    signature: Signature
    source: str  # where the episodes are from, in words that lead back there
    sha256: str  # of the episodes' content, in their order
    episodes: int
    steps: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    # of what the environment was made of when the episodes were recorded
    versions: dict[str, str] = field(default_factory=dict)
    reference_returns: tuple[float, float] | None = (
        None  # random, expert; where its file tells them
    )

    @staticmethod
    def open(folder: Path) -> Dataset:
        """Read the card. Raises UserError where there is none, or one of a newer version."""
        path = folder / CARD
        try:
            data: dict[str, Any] = read_json(path, finite=True)
            version = data.pop("schema_version")
            if version > SCHEMA_VERSION:
                raise UserError(
                    f"{path} has schema version {version}, newer than the {SCHEMA_VERSION} known"
                    " here: update bigdm_ray"
                )
            made = check_card(
                Dataset(
                    folder=folder,
                    **data
                    | {
                        "signature": checked_signature(data["signature"]),
                        "reference_returns": references(data.get("reference_returns")),
                    },
                )
            )
            return dataclasses.replace(made, task=canonical_name(made.task))
        except OSError as error:
            raise UserError(
                f"{folder} is not a dataset ({CARD}: {error.strerror}); make one with: python -m"
                f" bigdm_ray.data import SOURCE --folder {folder}"
            ) from None
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise UserError(
                f"{path} is not the card of a dataset ({error}); import the dataset anew"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The content of dataset.json."""
        card = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"schema_version": SCHEMA_VERSION} | card | {"signature": self.signature.to_json()}

    @property
    def nbytes(self) -> int:
        """Bytes of its shards."""
        return sum(path.stat().st_size for path in self.shards())

    def store(self, flat_bytes: int = 2 << 30, draws: int | None = None) -> Store:
        """The episodes, to read; more than `flat_bytes` of them a few shards at a time, at a pace
        for so many draws in all.

        Raises UserError where the folder does not hold what the card says.
        """
        store: Store
        if self.nbytes > flat_bytes:
            turn = LONGEST if draws is None else turn_of(draws, len(self.shards()))
            store = RotatingStore(self.folder, flat_bytes, turn).open()
        else:
            store = Store(self.folder, flat_bytes=flat_bytes, write=False).open()
        if store.problems or len(store.table) != self.episodes:
            why = (
                store.problems[0]
                if store.problems
                else f"it holds {len(store.table):,} episodes where its card says {self.episodes:,}"
            )
            raise UserError(f"dataset {self.folder} is damaged: {why}; import it anew")
        return store

    def shards(self) -> list[Path]:
        """The files of the episodes, in their order."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def stream(self) -> Iterator[Episode]:
        """Every episode in the dataset's order, one shard mapped at a time and each of its bytes
        checked. Raises UserError for one that is torn or missing."""
        count = 0
        for path in self.shards():
            try:
                opened = Shard.open(path, verify=True)
            except CorruptShard as error:
                raise UserError(
                    f"dataset {self.folder} is damaged: shard {path.name}: {error}; import it anew"
                ) from None
            for row in range(len(opened.ids)):
                yield opened.episode(row)
            count += len(opened.ids)
        if count != self.episodes:
            raise UserError(
                f"dataset {self.folder} is damaged: it holds {count:,} episodes where its card says"
                f" {self.episodes:,}; import it anew"
            )

    def returns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (float64), length and whether it terminated, of each episode: three `[episodes]`
        arrays."""
        found = [
            (episode.total_return, episode.length, episode.terminated) for episode in self.stream()
        ]
        columns = list(zip(*found, strict=True)) if found else [(), (), ()]
        return (
            np.array(columns[0], np.float64),
            np.array(columns[1], np.int64),
            np.array(columns[2], bool),
        )

    def misfit(self) -> str | None:
        """How the episodes differ from what the task shows and takes, in words; None where they do
        not, or where it cannot be made here."""
        try:
            signature = find_task(self.task).signature()
        except UserError:
            return None
        return misfit(self.signature, signature)

    def behaviours(self) -> dict[str, int]:
        """Who acted, with the number of episodes, in the order of first appearance."""
        counted: dict[str, int] = {}
        for episode in self.stream():
            counted[episode.source] = counted.get(episode.source, 0) + 1
        return counted

    def content_hash(self) -> str:
        """The hash of what the folder holds now; equal to `sha256` of the card where nothing has
        changed."""
        made = ContentHash(self.signature)
        for episode in self.stream():
            made.add(episode)
        return made.hexdigest()


def references(value: Any) -> tuple[float, float] | None:
    """Returns of a random and of an expert policy that a file tells; None where it tells none that
    differ."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    if not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        return None
    low, high = map(float, value)
    return (low, high) if low < high else None


def check_card(dataset: Dataset) -> Dataset:
    """A dataset whose card holds what each of its fields may.

    Raises ValueError: whoever wrote the card may have written anything.
    """
    file_name(dataset.name)
    expected: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
        "text": (lambda v: isinstance(v, str), ("task", "source", "sha256")),
        "a whole number from 1 up": (lambda v: type(v) is int and v >= 1, ("episodes", "steps")),
        "a finite number": (
            lambda v: type(v) in (int, float) and math.isfinite(v),
            ("return_mean", "return_std", "return_min", "return_max"),
        ),
        "texts by name": (
            lambda v: isinstance(v, dict) and all(isinstance(one, str) for one in v.values()),
            ("versions",),
        ),
    }
    for what, (fits, names) in expected.items():
        for name in names:
            if not fits(value := getattr(dataset, name)):
                raise ValueError(f"its field {name!r} is {value!r} where {what} is expected")
    return dataset


# --- the content's hash


class ContentHash:
    """SHA-256 over what the episodes hold, in their order: however they are cut into shards, and
    whichever format they came in.

    Hashed are the paths, dtypes and shapes of the leaves, and of each episode its length (int64),
    how it ended (one byte), rewards, observations and actions, leaves in the order of their paths,
    little-endian.
    """

    def __init__(self, signature: Signature) -> None:
        kinds = [
            [path, leaf.dtype, list(leaf.shape)]
            for leaves in (signature.observations, signature.actions)
            for path, leaf in sorted(leaves.items())
        ]
        self._sha = hashlib.sha256(json.dumps(kinds).encode())

    def add(self, episode: Episode) -> None:
        """Take in the next episode."""
        self._sha.update(struct.pack("<q?", episode.length, episode.terminated))
        self._sha.update(np.ascontiguousarray(episode.rewards).data)
        for leaves in (episode.observations, episode.actions):
            for _, values in sorted(leaves.items()):
                self._sha.update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._sha.hexdigest()
