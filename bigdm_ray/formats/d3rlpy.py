"""Format `d3rlpy`: an HDF5 file that d3rlpy's ReplayBuffer.dump of version 2 has written, arrays of
their own for each episode.

    columns  num_episodes  version
    observations_0  actions_0  rewards_0  terminated_0    observations_1 ...
    (observations_0_0, observations_0_1 where they are tuples)

An episode has as many observations as steps. What was seen after the last one is not stored, and
what `d4rl` does is done here too, as d3rlpy itself leaves the last transition out where an episode
was cut. The first layout is one of `d4rl`'s. Source: takuseno/d3rlpy, d3rlpy/dataset/io.py,
components.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.formats.base import Format, Reader, SourceMetadata
from bigdm_ray.formats.checks import as_truth_values, refusal
from bigdm_ray.formats.d4rl import SUFFIXES
from bigdm_ray.formats.hdf5 import Hdf5Fields, open_hdf5
from bigdm_ray.formats.looks import ActionColumns, guess_signature, move_channels_first, seen_leaf
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.formats.unread import unread_names
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId

FIELD = re.compile(r"(.+?)_\d+(?:_\d+)?")
"""A column's part of an episode, and of a tuple. The list of columns in the file says no more, and
is text of variable length, in which HDF5 itself may run for ever where bytes have decayed."""
COLUMNS = ("observations", "actions", "rewards", "terminated")
HEAD = ("columns", "num_episodes", "version")


class D3rlpyFile(Reader):
    """One file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_hdf5(path) as file:
            fields = Hdf5Fields(path)
            count = fields.high(file.id, b"num_episodes", str(path))
            if count.shape != () or count.dtype.kind not in "iu" or count[()] < 0:
                raise refusal(str(path), "num_episodes", "a count is expected")
            self._count = int(count[()])
            columns = sorted({found[1] for name in file if (found := FIELD.fullmatch(name))})
            for name in COLUMNS:
                if name not in columns:
                    why = f"there is no such column (columns are {', '.join(columns)})"
                    raise refusal(str(path), name, why)
            self.beside = unread_names(columns, COLUMNS, str(path))
            self._parts = {
                what: [(str(k), f"{what}_{{}}_{k}") for k in range(1024) if f"{what}_0_{k}" in file]
                or [("", f"{what}_{{}}")]
                for what in ("observations", "actions")
            }
        self.said = SourceMetadata(str(path), episodes=self._count)

    def files(self) -> list[Path]:
        """See Reader."""
        return [self._path]

    def looks(self) -> Signature | None:
        """See Reader."""
        acted = {path: ActionColumns() for path, _ in self._parts["actions"]}
        seen = {}
        with open_hdf5(self._path) as file:
            fields = Hdf5Fields(self._path)
            for number in range(self._count):
                for what, parts in self._parts.items():
                    for path, name in parts:
                        values = self._read(fields, file, name, number)
                        if what == "actions":
                            acted[path].add(values)
                        elif path not in seen:
                            seen[path] = seen_leaf(values)
        return guess_signature(seen, acted.items()) if seen else None

    def _read(self, fields: Hdf5Fields, file: Any, name: str, number: int) -> np.ndarray:
        return fields.read(file.id, name.format(number).encode(), self.place(number))

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        for what, leaves in (
            ("observations", signature.observations),
            ("actions", signature.actions),
        ):
            if leaves.keys() != {path for path, _ in self._parts[what]}:
                raise UserError(
                    f"{self._path} is a dataset of another task: its {what} have other leaves than "
                    f"those of {task}; nothing was imported"
                )
        with open_hdf5(self._path) as file:
            fields = Hdf5Fields(self._path)
            number = 0
            for place in range(self._count):
                for episode in self._episode(fields, file, place, number, signature):
                    number += 1
                    if number > skip:
                        yield episode

    def _episode(
        self, fields: Hdf5Fields, file: Any, at: int, number: int, signature: Signature
    ) -> Iterator[Episode]:
        """The episode at a place of the file; none where it is one step whose end is not known."""
        place = self.place(at)
        rewards = self._read(fields, file, "rewards_{}", at).reshape(-1)
        flag = fields.high(file.id, f"terminated_{at}".encode(), place)
        if flag.size != 1 or flag.dtype.kind not in "biuf":
            raise refusal(place, "terminated", "one flag is expected")
        over = bool(
            as_truth_values(np.asarray(flag[()]).reshape(1), "terminated", lambda _: place)[0]
        )
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for what, parts in self._parts.items():
            arrays[what] = {path: self._read(fields, file, name, at) for path, name in parts}
            for path, values in arrays[what].items():
                if len(values) != len(rewards):
                    raise refusal(
                        place,
                        field_name(what, path),
                        f"it has {len(values):,} entries where there are {len(rewards):,} rewards",
                    )
        steps = len(rewards) if over else len(rewards) - 1
        if steps < 1:
            return
        seen = {
            path: move_channels_first(values, signature.observations[path])
            for path, values in arrays["observations"].items()
        }
        if over:
            seen = {path: np.concatenate([one, one[-1:]]) for path, one in seen.items()}
        done = {path: values[:steps] for path, values in arrays["actions"].items()}
        id = EpisodeId(0, FOREIGN, number)
        yield Episode(seen, done, rewards[:steps], over, id, "")


class D3rlpy(Format):
    """See the module."""

    name = "d3rlpy"
    about = "d3rlpy's replay buffers (.h5 with num_episodes, columns, observations_0)"

    def recognises(self, source: str) -> bool:
        """See Format."""
        path = Path(source)
        if path.suffix not in SUFFIXES or not path.is_file():
            return False
        with open_hdf5(path) as file:
            return all(name in file for name in HEAD)

    def open(self, source: str) -> Reader:
        """See Format."""
        return D3rlpyFile(Path(source))


FORMAT = D3rlpy()
