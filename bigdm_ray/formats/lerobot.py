"""Format `lerobot`: robot recordings of Hugging Face's LeRobot, versions 2 (a file an episode) and
3 (files of many).

    meta/info.json             version, features with their types and shapes, counts
    data/chunk-000/*.parquet   a row a frame: observation.state, action, episode_index, frame_index,
                               ...

Each feature `observation.NAME` of numbers is a leaf; a single one is all of the observation.
Pictures and films are left out, with a note. What was seen after an episode's last frame is not
stored, so that what `d4rl` does is done here too; recordings without `next.reward` have rewards of
0. Source: huggingface/lerobot, src/lerobot/datasets (info.json, `DEFAULT_FEATURES`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bigdm_ray.errors import UserError, quote_value
from bigdm_ray.formats.base import Format, Reader, require_inside
from bigdm_ray.formats.spellings import ColumnMatch, match_columns
from bigdm_ray.formats.steps import ParquetSteps
from bigdm_ray.jsons import read_json

INFO = Path("meta") / "info.json"
KNOWN = ("index", "task_index", "timestamp")
"""Columns that every recording has and that say nothing of episodes."""
_PICTURES = ("image", "video")
_NOT_NUMBERS = (*_PICTURES, "string", "language", "audio")
_VERSIONS = ("v2.", "v3.")
_PREFIX = "observation."
_ALL = "observation"
"""The column that features are gathered in, where there are several."""


class LeRobotFolder(ParquetSteps):
    """A folder of LeRobot."""

    needed = ("observations", "actions", "episode")

    def __init__(self, folder: Path) -> None:
        info = _info(folder)
        features: dict[str, Any] = info["features"]
        files = [
            require_inside(path, folder) for path in sorted((folder / "data").rglob("*.parquet"))
        ]
        if not files:
            raise UserError(f"{folder} holds no data/*/*.parquet; nothing was imported")
        kinds = {name: str(told.get("dtype")) for name, told in features.items()}
        self._seen = [
            name
            for name, kind in kinds.items()
            if name.startswith(_PREFIX) and kind not in _NOT_NUMBERS
        ]
        films = sorted(name for name, kind in kinds.items() if kind in _PICTURES)
        if not self._seen:
            what = f"only pictures or films ({', '.join(films)})" if films else "none"
            raise UserError(
                f"{folder} has {what} for observations, where a feature {_PREFIX}NAME of numbers is"
                " expected; nothing was imported"
            )
        rest = [name for name in features if not name.startswith(_PREFIX)]
        plain = {"observations": self._seen[0] if len(self._seen) == 1 else _ALL}
        found = ColumnMatch(plain | match_columns(rest).plain, {})
        super().__init__(str(folder), files, found, (*KNOWN, *self._seen, *films))
        if self.said.steps != info["total_frames"]:
            raise UserError(
                f"{folder} holds {self.said.steps:,} frames where {INFO} tells "
                f"{info['total_frames']:,}: a file is missing; nothing was imported"
            )
        self.notes = (
            *([f"{folder}: {', '.join(films)}: pictures and films were left out"] if films else []),
            *([] if "rewards" in found else [f"{folder} tells no rewards: all of them are 0"]),
        )

    def _read(self) -> list[str]:
        """The columns that each file must have."""
        return [name for name in self._found.names if name != _ALL] + self._seen

    def _rows_of(self, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
        if _ALL not in names:
            yield from super()._rows_of(path, names)
            return
        rest = [name for name in names if name != _ALL]
        parts = [name.removeprefix(_PREFIX) for name in self._seen]
        for batch in super()._rows_of(path, [*rest, *self._seen]):
            seen = pa.StructArray.from_arrays([batch.column(name) for name in self._seen], parts)
            arrays = {_ALL: seen} | {name: batch.column(name) for name in rest}
            yield pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))


def _info(folder: Path) -> dict[str, Any]:
    """What meta/info.json tells. Raises UserError for another version, and for what is none."""
    path = require_inside(folder / INFO, folder)
    try:
        info: dict[str, Any] = read_json(path)
        version = info["codebase_version"]
        if not str(version).startswith(_VERSIONS):
            raise UserError(
                f"{path} is of LeRobot's version {quote_value(version)}, but v2 or v3 is expected; "
                "nothing was imported"
            )
        told = [info["features"], *info["features"].values()]
        if not all(isinstance(one, dict) for one in told) or type(info["total_frames"]) is not int:
            raise ValueError("features or total_frames are of another kind")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the description of a LeRobot dataset ({error}); nothing was imported"
        ) from None
    return info


class LeRobot(Format):
    """See the module."""

    name = "lerobot"
    about = "LeRobot datasets, versions 2 and 3 (a folder with meta/info.json)"

    def recognises(self, source: str) -> bool:
        """See Format."""
        return (Path(source) / INFO).is_file()

    def open(self, source: str) -> Reader:
        """See Format."""
        return LeRobotFolder(Path(source))


FORMAT = LeRobot()
