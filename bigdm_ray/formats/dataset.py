"""Dataset: a folder of shards that does not grow any more, and the card that says what is in it.

dataset.json  episodes-0000000.arrow  episodes-0000001.arrow ...

The hash is taken over the episodes' content in their order, so it does not depend on how they are cut into shards. A
dataset is written under a temporary name beside its own and renamed when it is whole: half a dataset is never there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import shutil
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.task import Signature, find_task
from bigdm_ray.errors import RunFailed, UserError, full_disk
from bigdm_ray.formats.base import misfit, vacant
from bigdm_ray.formats.columns import checked_signature
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId
from bigdm_ray.replay.files import file_name
from bigdm_ray.replay.rotating import LONGEST, RotatingStore, turn_of
from bigdm_ray.replay.shard import (
    SUFFIX,
    CorruptShard,
    Shard,
    encode,
    publish,
    sync_folder,
    unwritten,
)
from bigdm_ray.replay.store import SHARD_BYTES, Store

CARD = "dataset.json"
PROGRESS = "progress.json"
LOCK = ".lock"
SHARD_EPISODES = 1 << 14
"""Episodes in a shard, at most: short ones weigh more as objects than as numbers."""
SCHEMA_VERSION = 1
WRONG_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError)
"""What Python, numpy and Arrow raise for values that they cannot take, however often they are given them."""


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
    versions: dict[str, str] = field(
        default_factory=dict
    )  # of what the environment was made of when the episodes were recorded
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
                    f"{path} has schema version {version}, newer than the {SCHEMA_VERSION} known here: update bigdm_ray"
                )
            return sound(
                Dataset(
                    folder=folder,
                    **data
                    | {
                        "signature": checked_signature(data["signature"]),
                        "reference_returns": references(data.get("reference_returns")),
                    },
                )
            )
        except OSError as error:
            raise UserError(
                f"{folder} is not a dataset ({CARD}: {error.strerror}); make one with: python -m bigdm_ray.data import SOURCE --folder {folder}"
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
        """The episodes, to read; more than `flat_bytes` of them a few shards at a time, at a pace for so many draws in all.

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
        """Every episode in the dataset's order, one shard mapped at a time and each of its bytes checked. Raises UserError for one that is torn or missing."""
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
                f"dataset {self.folder} is damaged: it holds {count:,} episodes where its card says {self.episodes:,}; import it anew"
            )

    def returns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (float64), length and whether it terminated, of each episode: three `[episodes]` arrays."""
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
        """How the episodes differ from what the task shows and takes, in words; None where they do not, or where it cannot be made here."""
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
        """The hash of what the folder holds now; equal to `sha256` of the card where nothing has changed."""
        made = ContentHash(self.signature)
        for episode in self.stream():
            made.add(episode)
        return made.hexdigest()


def references(value: Any) -> tuple[float, float] | None:
    """Returns of a random and of an expert policy that a file tells; None where it tells none that differ."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    if not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        return None
    low, high = map(float, value)
    return (low, high) if low < high else None


def sound(dataset: Dataset) -> Dataset:
    """A dataset whose card holds what each of its fields may. Raises ValueError: whoever wrote the card may have written anything."""
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


def resolve(text: str) -> Dataset | None:
    """The dataset that a TASK names: the path of a folder, or `minari:ID`, which is imported into ./datasets at its first use.

    None for anything else. Raises UserError for a folder that holds none, and RunFailed where a download fails.
    """
    if text.startswith("minari:"):
        from bigdm_ray.formats.importing import import_dataset
        from bigdm_ray.formats.minari import dataset_id

        folder = Path("datasets") / str(dataset_id(text)).replace("/", "-")
        return Dataset.open(folder) if (folder / CARD).is_file() else import_dataset([text], folder)
    folder = Path(text)
    return Dataset.open(folder) if folder.is_dir() or ("/" in text and ":" not in text) else None


# --- the content's hash


class ContentHash:
    """SHA-256 over what the episodes hold, in their order: however they are cut into shards, and whichever format they came in.

    Hashed are the paths, dtypes and shapes of the leaves, and of each episode its length (int64), how it ended (one byte),
    rewards, observations and actions, leaves in the order of their paths, little-endian.
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


# --- writing


def free(folder: Path) -> Path:
    """`vacant`; and a dataset that is there loses what a writer left that was killed at its end."""
    if (folder / CARD).is_file() and (folder / PROGRESS).is_file():
        for left in (LOCK, PROGRESS):
            with contextlib.suppress(OSError):
                (folder / left).unlink(missing_ok=True)
    return vacant(folder)


class Writer:
    """Writes a dataset as it streams by: shards of about 64 MiB in the hidden folder `.NAME.importing`, which becomes NAME at the end.

    `plan` says what is being written, in JSON. Where the hidden folder holds the beginning of the same plan, `taken` tells how many
    episodes of each part are already there; otherwise it is emptied. What stands in it is held by checksums and read again, so
    that the hash needs no state of its own. Ctrl-C and a full disk leave the hidden folder, `discard` removes it.

    A plan goes on from the last full shard or, `marked`, from the last `save`, whose mark stands in `mark`.
    """

    def __init__(
        self,
        folder: Path,
        plan: dict[str, Any],
        task: str,
        signature: Signature,
        marked: bool = False,
    ) -> None:
        self.folder = free(folder)
        self.taken: list[int] = []
        self.lengths = array("q")
        self.mark: Any = None
        self._task, self._signature, self._marked = task, signature, marked
        self._returns = array("d")
        self._hash = ContentHash(signature)
        self._pending: list[Episode] = []
        self._pending_bytes = 0
        self._shards = 0
        self._plan = json.loads(json.dumps(plan))
        self._hidden = folder.with_name(f".{folder.name}.importing")
        try:
            self._hidden.mkdir(parents=True, exist_ok=True)
            self._lock = (self._hidden / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--folder {folder} is being written by another process; wait for it to end"
            ) from None
        except OSError as error:
            if full_disk(error):
                raise unwritten(folder, error) from None
            raise UserError(
                f"--folder {folder} cannot be written: {error.strerror}; choose another folder"
            ) from None
        self._resume()

    def _resume(self) -> None:
        try:
            progress = read_json(self._hidden / PROGRESS)
            same = progress["plan"] == self._plan
            taken, mark = [int(n) for n in progress["taken"]], progress["mark"]
        except (OSError, ValueError, KeyError, TypeError):
            same, taken, mark = False, [], None
        kept: list[str] = []
        if same:
            try:
                kept = self._read_again(sum(taken))
                self.taken, self.mark = taken, mark
            except CorruptShard:
                self.lengths, self._returns, self._hash = (
                    array("q"),
                    array("d"),
                    ContentHash(self._signature),
                )
                self._shards, self._pending, self._pending_bytes = 0, [], 0
        for path in self._hidden.iterdir():
            if path.name not in (*kept, PROGRESS if kept else "", LOCK):
                path.unlink()

    def _read_again(self, count: int) -> list[str]:
        """Take in the first `count` episodes of the hidden folder; the files they lie in. One that is not full is written anew when it has grown."""
        names: list[str] = []
        while len(self.lengths) < count:
            if self._pending:  # another shard follows
                self._next_shard()
            names.append(shard_name(len(names)))
            opened = Shard.open(self._hidden / names[-1], verify=True)
            for row in range(min(len(opened.ids), count - len(self.lengths))):
                self._take(opened.episode(row))
        if self._full():
            self._next_shard()
        return names

    def _take(self, episode: Episode) -> None:
        self._hash.add(episode)
        self.lengths.append(episode.length)
        self._returns.append(episode.total_return)
        self._pending.append(episode)
        self._pending_bytes += bytes_of(episode)

    def _full(self) -> bool:
        return self._pending_bytes >= SHARD_BYTES or len(self._pending) >= SHARD_EPISODES

    def _next_shard(self) -> None:
        self._shards += 1
        self._pending, self._pending_bytes = [], 0

    def add(self, episodes: list[Episode], part: int = 0) -> None:
        """Take in the next episodes, of a part of the plan. Raises RunFailed where the disk does not take a shard."""
        self.taken += [0] * (part + 1 - len(self.taken))
        for episode in episodes:
            self._take(
                dataclasses.replace(
                    episode, id=EpisodeId(0, FOREIGN, len(self.lengths)), task=self._task
                )
            )
            self.taken[part] += 1
            if self._full():
                self._flush()
                if not self._marked:
                    self._publish_progress()

    def save(self, mark: Any) -> None:
        """Have what was added so far on disk, a shard that is not full included, with a mark (JSON) for whoever goes on from here. Raises RunFailed."""
        self.mark = mark
        if self._pending:
            publish(self._hidden / shard_name(self._shards), encode(self._pending))
        self._publish_progress()

    def _flush(self) -> None:
        publish(self._hidden / shard_name(self._shards), encode(self._pending))
        self._next_shard()

    def _publish_progress(self) -> None:
        publish(
            self._hidden / PROGRESS,
            json.dumps({"plan": self._plan, "taken": self.taken, "mark": self.mark}).encode(),
        )

    def finish(
        self,
        name: str,
        source: str,
        versions: dict[str, str],
        reference_returns: tuple[float, float] | None = None,
    ) -> Dataset:
        """Write the last shard and the card, and let the folder appear. Raises UserError where there was no episode."""
        if not self.lengths:
            raise UserError(f"{source} holds no episodes; nothing was imported")
        if self._pending:
            self._flush()
        returns = np.array(self._returns)
        dataset = Dataset(
            folder=self.folder,
            name=name,
            task=self._task,
            signature=self._signature,
            source=source,
            sha256=self._hash.hexdigest(),
            episodes=len(self.lengths),
            steps=sum(self.lengths),
            **totals(returns),
            versions=versions,
            reference_returns=reference_returns,
        )
        publish(self._hidden / CARD, json.dumps(dataset.to_json(), indent=1).encode())
        try:
            if self.folder.exists():
                raise UserError(
                    f"--folder {self.folder} has appeared meanwhile; choose another, or delete it first"
                )
            self._hidden.rename(self.folder)
            for left in (LOCK, PROGRESS):
                (self.folder / left).unlink(missing_ok=True)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise unwritten(self.folder, error) from None
        finally:
            self._lock.close()
        return dataset

    def discard(self) -> None:
        """Remove what was written."""
        self._lock.close()
        shutil.rmtree(self._hidden, ignore_errors=True)

    def close(self) -> None:
        """Leave what was written for the same command to go on with."""
        self._lock.close()


@contextlib.contextmanager
def keeping(writer: Writer) -> Iterator[None]:
    """After a mistake of the user nothing stays; after an interruption, a full disk or a crash the beginning does.

    Values that no check foresaw are such a mistake: the same command would meet them again.
    """
    try:
        yield
    except RunFailed:
        raise
    except (UserError, *WRONG_VALUES):
        writer.discard()
        raise
    finally:
        writer.close()


def totals(returns: np.ndarray) -> dict[str, float]:
    """What a card says of the returns `[episodes]`."""
    return {
        f"return_{name}": float(getattr(returns, name)()) for name in ("mean", "std", "min", "max")
    }


def stamp(file: Path) -> list[Any]:
    """What of a file stands in a plan: where it has changed, an interrupted plan begins anew."""
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"episodes-{number:07d}{SUFFIX}"


def bytes_of(episode: Episode) -> int:
    """Bytes of an episode's arrays."""
    return episode.rewards.nbytes + sum(
        v.nbytes for v in (*episode.observations.values(), *episode.actions.values())
    )
