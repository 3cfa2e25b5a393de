"""The writer of a dataset: in a hidden folder, which appears under its name when it is whole.

What was interrupted goes on in that folder, when the same is to be written again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import RunFailed, UserError, full_disk
from bigdm_ray.formats.dataset import CARD, ContentHash, Dataset
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId, bytes_of, hold_leaves
from bigdm_ray.replay.shard import (
    SUFFIX,
    CorruptShard,
    Shard,
    encode,
    publish,
    sync_folder,
    write_failure,
)
from bigdm_ray.replay.store import SHARD_BYTES

PROGRESS = "progress.json"

LOCK = ".lock"

SHARD_EPISODES = 1 << 14
"""Episodes in a shard, at most: short ones weigh more as objects than as numbers."""

WRONG_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError)
"""What Python, numpy and Arrow raise for values that they cannot take, however often they are given
them."""


def free_folder(folder: Path) -> Path:
    """`require_vacant`; and a dataset that is there loses what a writer left that was killed at its
    end."""
    if (folder / CARD).is_file() and (folder / PROGRESS).is_file():
        for left in (LOCK, PROGRESS):
            with contextlib.suppress(OSError):
                (folder / left).unlink(missing_ok=True)
    return require_vacant(folder)


class Writer:
    """Writes a dataset as it streams by: shards of about 64 MiB in the hidden folder
    `.NAME.importing`, which becomes NAME at the end.

    `plan` says what is being written, in JSON. Where the hidden folder holds the beginning of the
    same plan, `taken` tells how many episodes of each part are already there; otherwise it is
    emptied. What stands in it is held by checksums and read again, so that the hash needs no state
    of its own. Ctrl-C and a full disk leave the hidden folder, `discard` removes it.

    A plan goes on from the last full shard or, `marked`, from the last `save`, whose mark stands in
    `mark`.
    """

    def __init__(
        self,
        folder: Path,
        plan: dict[str, Any],
        task: str,
        signature: Signature,
        marked: bool = False,
    ) -> None:
        self.folder = free_folder(folder)
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
                raise write_failure(folder, error) from None
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
        """Take in the first `count` episodes of the hidden folder; the files they lie in.

        One that is not full is written anew when it has grown.
        """
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
        """Take in the next episodes, of a part of the plan.

        Raises RunFailed where the disk does not take a shard.
        """
        self.taken += [0] * (part + 1 - len(self.taken))
        for episode in episodes:
            self._take(
                dataclasses.replace(
                    episode,
                    observations=hold_leaves(episode.observations, self._signature.per_episode),
                    id=EpisodeId(0, FOREIGN, len(self.lengths)),
                    task=self._task,
                )
            )
            self.taken[part] += 1
            if self._full():
                self._flush()
                if not self._marked:
                    self._publish_progress()

    def save(self, mark: Any) -> None:
        """Have what was added so far on disk, a shard that is not full included, with a mark (JSON)
        for whoever goes on from here. Raises RunFailed."""
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
        """Write the last shard and the card, and let the folder appear.

        Raises UserError where there was no episode.
        """
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
                    f"--folder {self.folder} has appeared meanwhile; choose another, or delete it"
                    " first"
                )
            self._hidden.rename(self.folder)
            for left in (LOCK, PROGRESS):
                (self.folder / left).unlink(missing_ok=True)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise write_failure(self.folder, error) from None
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
def keep_on_interruption(writer: Writer) -> Iterator[None]:
    """After a mistake of the user nothing stays; after an interruption, a full disk or a crash the
    beginning does.

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


def require_vacant(folder: Path) -> Path:
    """`folder`, where nothing may be yet. Raises UserError."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"--folder {folder} exists already; choose another, or delete it first")
    return folder
