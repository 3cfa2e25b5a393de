"""Format `dqn-replay`: the logged replay of a DQN agent on an Atari game, gzipped NumPy arrays of
one row a step.

A source is a folder with `$store$_observation_ckpt.N.gz` and, of the same N, `action`, `reward` and
`terminal` in its place (a `replay_logs` folder of the DQN replay data), or one such observation
file, which stands for its number alone. A folder's numbers are read in their order, 0 being the
poorest play. The game is taken from the path (`.../Pong/1/replay_logs`) or from `--task`.

Only whole episodes are taken: a file begins in the middle of one, unless it is number 0 or begins
with padding, and ends in the middle of one. Dopamine writes three rows of zeros before each
episode, which are left out here, and logs a file one row before it is full, so that the last row is
an older one: where `add_count_ckpt.N.gz` lies beside it, it tells how many rows are of this round.
What was seen after the last step was not stored: the last frame is repeated. An end by the time
limit looks like any other. Rewards were clipped to -1..1 before they were stored. Source: Agarwal
et al. 2020, arXiv:1907.04543 (google-research/batch_rl); google/dopamine,
dopamine/replay_memory/circular_replay_buffer.py.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigdm_ray.envs.atari import TASKS
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import MAX_EPISODE_BYTES, Format, Reader, SourceMetadata, require_inside
from bigdm_ray.formats.checks import as_truth_values, refusal
from bigdm_ray.formats.claims import check_claim
from bigdm_ray.formats.unread import unread_names
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId

BLOCK = 1 << 10
BLOCK_BYTES = 64 << 20
"""Rows that are read at once, at most: so many, or as fit here."""
HEAD_BYTES = 1 << 14
"""A header that claims more is refused before it is read."""
ROW_BYTES = 1 << 20
"""A frame that claims more is refused before memory is asked for."""
PADDING = 3
"""Rows of zeros before an episode, at most: a stack of four frames without its last."""
ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
)
"""What gzip and NumPy raise for a file that is torn somewhere."""

FIELDS = {"observation": "u", "action": "iu", "reward": "fiu", "terminal": "iub"}
"""The arrays of a file, with the kinds of numbers that each may hold."""

OTHERS = ("add_count", "invalid_range")
"""What Dopamine logs beside them: how many rows there were, and which no batch may begin with."""

_FILE = re.compile(r"\$store\$_observation_ckpt\.(\d{1,6})\.gz")
_ANY = re.compile(r"(?:\$store\$_)?(\w{1,100})_ckpt\.(\d{1,6})\.gz")


class GzippedArray:
    """One gzipped array, read from its beginning on."""

    def __init__(self, path: Path, kinds: str) -> None:
        self.path = path
        self._taken = 0
        try:
            self._file = gzip.open(path)
            magic = self._file.read(8)
            told = self._file.read(2 if magic[6:7] == b"\x01" else 4)
            if (size := int.from_bytes(told, "little")) > HEAD_BYTES:
                raise ValueError(f"its header claims {size:,} bytes")
            head = io.BytesIO(magic + told + self._file.read(size))
            version = np.lib.format.read_magic(head)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 has written
                self.shape, fortran, self.dtype = read(head)
        except ERRORS as error:
            raise UserError(
                f"{path} is not a gzipped array of NumPy ({one_line(error)}); nothing was imported"
            ) from None
        if self.dtype.kind not in kinds or (kinds == "u" and self.dtype != np.uint8):
            raise UserError(
                f"{path} holds {self.dtype if self.dtype.kind != 'O' else 'objects'}, which it may"
                " not; nothing was imported"
            )
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        self.block = max(1, min(BLOCK, BLOCK_BYTES // max(1, row)))
        if fortran or min(self.shape, default=0) < 0 or row > ROW_BYTES:
            raise UserError(
                f"{path} claims the shape {list(self.shape)}{', columns first' if fortran else ''},"
                " which it may not; nothing was imported"
            )

        check_claim(math.prod(self.shape) * self.dtype.itemsize, path)

    def take(self, rows: int) -> np.ndarray:
        """The next rows.

        Raises UserError where the file breaks off, and after the last row where its checksum is
        wrong or more follows.
        """
        size = rows * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        try:
            data = self._file.read(size)
            self._taken += rows
            more = self._file.read(1) if self._taken == self.shape[0] and len(data) == size else b""
        except ERRORS as error:
            raise UserError(
                f"{self.path} is torn ({one_line(error)}); nothing was imported"
            ) from None
        if len(data) < size:
            raise UserError(
                f"{self.path} breaks off before the {self.shape[0]:,} rows that it claims; nothing"
                " was imported"
            )
        if more:
            raise UserError(
                f"{self.path} goes on after the {self.shape[0]:,} rows that it claims; nothing was"
                " imported"
            )
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DqnLog:
    """The arrays of one number."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.paths = {
            name: require_inside(folder / f"$store$_{name}_ckpt.{number}.gz", folder)
            for name in FIELDS
        }
        self.counted = require_inside(folder / f"add_count_ckpt.{number}.gz", folder)
        for name, path in self.paths.items():
            if not path.is_file():
                raise UserError(
                    f"{folder} has no {path.name} beside the other arrays of number {number}, so"
                    f" its {name}s are missing; nothing was imported"
                )

    def files(self) -> list[Path]:
        """What is read."""
        return [*self.paths.values(), *([self.counted] if self.counted.is_file() else [])]

    def open(self) -> dict[str, GzippedArray]:
        """The arrays, their shapes checked. Raises UserError."""
        opened = {name: GzippedArray(path, FIELDS[name]) for name, path in self.paths.items()}
        rows = opened["reward"].shape[:1]
        for one in opened.values():
            expected = 3 if one is opened["observation"] else 1
            if len(one.shape) != expected:
                what = "frames [rows, height, width]" if expected == 3 else "one number a row"
                raise UserError(
                    f"{one.path} has the shape {list(one.shape)}, but {what} are expected; nothing"
                    " was imported"
                )
            if one.shape[:1] != rows:
                raise UserError(
                    f"{one.path} has {one.shape[0]:,} rows where {opened['reward'].path.name} has"
                    f" {rows[0]:,}; nothing was imported"
                )
        return opened

    def rows(self, full: int) -> int:
        """How many of the `full` rows are of this round."""
        if not self.counted.is_file():
            return full
        told = GzippedArray(self.counted, "iu")
        try:
            if told.shape:
                raise UserError(
                    f"{self.counted} has the shape {list(told.shape)}, but a single number is"
                    " expected; nothing was imported"
                )
            told.shape = (1,)
            count = int(told.take(1)[0])
        finally:
            told.close()
        return (count % full or full) if full else 0


class DqnReplayFolder(Reader):
    """A folder of logs, or one of them."""

    def __init__(self, source: Path) -> None:
        single = _FILE.fullmatch(source.name)
        folder = source.parent if single else source
        numbers = (
            [int(single[1])]
            if single
            else sorted(
                int(found[1]) for path in folder.iterdir() if (found := _FILE.fullmatch(path.name))
            )
        )
        self._logs = [DqnLog(folder, number) for number in numbers]
        names = {
            found[1]
            for path in folder.iterdir()
            if (found := _ANY.fullmatch(path.name)) and int(found[2]) in numbers
        }
        self.beside = unread_names(names, (*FIELDS, *OTHERS), str(folder))
        self._begun: list[tuple[int, Path]] = []  # the first episode of each file that was reached
        opened = self._logs[0].open()
        for one in opened.values():
            one.close()
        # the nearest folder
        likely = next(
            (word for part in reversed(folder.resolve().parts) if (word := part.lower()) in TASKS),
            "",
        )
        self.said = SourceMetadata(str(source), likely, likely=likely)

    def files(self) -> list[Path]:
        """See Reader."""
        return [path for log in self._logs for path in log.files()]

    def place(self, number: int) -> str:
        """See Reader."""
        path = next(
            (path for first, path in reversed(self._begun) if first <= number),
            self._logs[0].paths["observation"],
        )
        return f"{path}, episode {number}"

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        if [leaf.kind for leaf in signature.observations.values()] != ["image"] or set(
            signature.actions
        ) != {""}:
            raise UserError(
                f"{self.said.name} is a dataset of another task: it holds frames of a game, but"
                f" {task} shows something else; nothing was imported"
            )
        (path,) = signature.observations
        number = 0
        for log in self._logs:
            self._begun.append((number, log.paths["observation"]))
            for found in self._whole(log):
                if number >= skip:
                    seen = np.concatenate([found["observation"], found["observation"][-1:]])
                    yield Episode(
                        {path: seen},
                        {"": found["action"]},
                        found["reward"],
                        True,
                        EpisodeId(0, FOREIGN, number),
                        task,
                        source="dqn",
                    )
                number += 1

    def _whole(self, log: DqnLog) -> Iterator[dict[str, np.ndarray]]:
        """The rows of each whole episode of a file, without padding."""
        opened = log.open()
        try:
            left = log.rows(opened["reward"].shape[0])
            held: list[dict[str, np.ndarray]] = []
            size, sound, opening = 0, log.number == 0, True
            rows = min(one.block for one in opened.values())
            while left:
                block = {name: one.take(min(rows, left)) for name, one in opened.items()}
                left -= len(block["reward"])
                if opening and not sound:
                    sound = _padding(block) > 0
                opening = False
                begin = 0
                for stop in np.flatnonzero(
                    as_truth_values(
                        block["terminal"], "terminal", lambda _: str(log.paths["terminal"])
                    )
                ).tolist():
                    if (
                        sound
                        and (whole := _joined([*held, _part(block, begin, stop + 1)])) is not None
                    ):
                        yield whole
                    held, size, sound, begin = [], 0, True, stop + 1
                held.append(_part(block, begin, None))
                size += held[-1]["observation"].nbytes
                if size > MAX_EPISODE_BYTES:
                    raise refusal(
                        str(log.paths["terminal"]),
                        "terminal",
                        f"an episode does not end within {MAX_EPISODE_BYTES >> 30} GiB of frames",
                    )
        finally:
            for one in opened.values():
                one.close()


def _part(block: dict[str, np.ndarray], begin: int, end: int | None) -> dict[str, np.ndarray]:
    return {name: values[begin:end] for name, values in block.items()}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
    """The rows of an episode without the padding before it; None where nothing else is there."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
    begin = _padding(whole)
    return _part(whole, begin, None) if begin < len(whole["reward"]) else None


def _padding(rows: dict[str, np.ndarray]) -> int:
    """How many rows of padding these begin with."""
    count = 0
    while count < min(PADDING, len(rows["reward"])) and not any(
        rows[name][count].any() for name in FIELDS
    ):
        count += 1
    return count


class DqnReplay(Format):
    """See the module."""

    name = "dqn-replay"
    about = (
        "logged DQN replays (a folder with $store$_observation_ckpt.N.gz, or one of these files)"
    )

    def recognises(self, source: str) -> bool:
        """See Format."""
        path = Path(source)
        if path.is_dir():
            return any(_FILE.fullmatch(one.name) for one in path.iterdir())
        return path.is_file() and _FILE.fullmatch(path.name) is not None

    def open(self, source: str) -> Reader:
        """See Format."""
        return DqnReplayFolder(Path(source))


FORMAT = DqnReplay()
