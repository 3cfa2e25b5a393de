"""Format `minari`: a local Minari folder (HDF5, Arrow or Parquet inside), or the id of a dataset,
which Minari downloads first.

    minari:mujoco/hopper/medium-v0      an id; so is a bare one with slashes that is no path
    FOLDER                              with data/metadata.json, or the data folder itself

Files are read with h5py and pyarrow directly; the package `minari` is needed for downloads only.
The spaces come from the folder's metadata, pictures in JPEG are decoded with Pillow, infos are left
out. An episode without a final flag broke off and counts as truncated. Links that lead out of the
folder are refused, and no environment is made because a file names its code. What is exported is
HDF5 with pictures as they are, in the layout of Minari 0.5 (minari/dataset/_storages).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import math
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import (
    Advance,
    Format,
    Reader,
    SourceMetadata,
    import_optional,
    require_inside,
)
from bigdm_ray.formats.checks import check_ends, kept_seed, refusal
from bigdm_ray.formats.claims import check_claim
from bigdm_ray.formats.columns import (
    column_numbers,
    flatten_lists,
    name_read_errors,
    open_parquet,
    struct_path,
)
from bigdm_ray.formats.dataset import Dataset, references
from bigdm_ray.formats.hdf5 import Hdf5Fields, new_hdf5, open_hdf5
from bigdm_ray.formats.ipc import claimed_bytes
from bigdm_ray.formats.minari_source import METADATA, data_folder, dataset_id, download
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.formats.spaces import (
    flatten_leaf,
    flatten_texts,
    layout,
    leaf_spaces,
    space_from_json,
    space_to_json,
    unflatten_leaf,
)
from bigdm_ray.formats.tasks import spec_of
from bigdm_ray.formats.unread import unread_names
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId

HDF5_FILE = "main_data.hdf5"
LAYOUT_VERSION = "0.5.3"
"""The version of Minari whose layout exports have."""

_PIN = re.compile(r"([A-Za-z][\w.-]*)==([\w.+-]+)$")
_SPACES = ("observations", "actions")
_REFERENCES = ("ref_min_score", "ref_max_score")
"""Returns of a random and of an expert policy (minari/dataset/minari_dataset.py,
`get_normalized_score`)."""
_FIELDS = (*_SPACES, "rewards", "terminations", "truncations")


class MinariFolder(Reader):
    """A folder that Minari has written."""

    def __init__(self, data: Path, source: str) -> None:
        self._data = data
        self._meta = _metadata(data)
        where = str(data / METADATA)
        for name in ("observation_space", "action_space"):
            if name not in self._meta:
                raise UserError(f"{where} tells no {name}; nothing was imported")
        self._spaces = {
            "observations": space_from_json(
                self._meta["observation_space"], f"{where}, field 'observation_space',"
            ),
            "actions": space_from_json(
                self._meta["action_space"], f"{where}, field 'action_space',"
            ),
        }
        self._format = str(self._meta.get("data_format") or "hdf5")
        if self._format not in ("hdf5", "arrow", "parquet"):
            raise UserError(
                f"{where} tells the data format {self._format!r}, but hdf5, arrow or parquet is"
                " expected; nothing was imported"
            )
        self._told = str(data / HDF5_FILE if self._format == "hdf5" else data)
        self._count, steps = (
            _count(self._meta, name, where) for name in ("total_episodes", "total_steps")
        )
        env_id, kwargs = _environment(self._meta, where)
        versions = {
            found[1]: found[2]
            for text in _texts(self._meta.get("requirements"))
            if (found := _PIN.match(text))
        }
        told = {
            "minari": str(self._meta.get("minari_version", "")),
            "dataset": str(self._meta.get("dataset_id", "")),
        }
        versions |= {name: value for name, value in told.items() if value}
        self._policy = str(self._meta.get("algorithm_name") or self._meta.get("dataset_id") or "")
        signature = Signature.of(self._spaces["observations"], self._spaces["actions"])
        task = str(self._meta.get("bigdm_task", ""))
        self.said = SourceMetadata(
            source,
            env_id,
            kwargs,
            signature,
            versions,
            self._count,
            steps,
            task,
            reference_returns=references([self._meta.get(name) for name in _REFERENCES]),
        )

    def files(self) -> list[Path]:
        """See Reader."""
        if self._format == "hdf5":
            return [self._data / METADATA, self._hdf5()]
        return [
            self._data / METADATA,
            *(path for number in range(self._count) for path in self._parts(number)),
        ]

    def place(self, number: int) -> str:
        """See Reader."""
        return f"{self._told}, episode {number}"

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        return self._from_hdf5(skip) if self._format == "hdf5" else self._from_arrow(skip)

    def _see(self, names: list[str], place: str) -> None:
        found = unread_names(names, _FIELDS, place)
        if not set(found) <= set(self.beside):
            self.beside = tuple(sorted({*self.beside, *found}))

    # --- HDF5

    def _hdf5(self) -> Path:
        path = require_inside(self._data / HDF5_FILE, self._data)
        if not path.is_file():
            raise UserError(f"{self._data} holds no {HDF5_FILE}; nothing was imported")
        return path

    def _from_hdf5(self, skip: int) -> Iterator[Episode]:
        leaves = {
            what: [
                (path, "/".join([what, name]).rstrip("/").encode(), leaf)
                for path, name, leaf in leaf_spaces(space, tuple_name="_index_{}")
            ]
            for what, space in self._spaces.items()
        }
        fields = Hdf5Fields(self._hdf5())
        with open_hdf5(self._hdf5()) as file:
            if len(file) != self._count:
                raise UserError(
                    f"{self._data / HDF5_FILE} holds {len(file):,} episodes where {METADATA} tells"
                    f" {self._count:,}; nothing was imported"
                )
            for number in range(skip, self._count):
                place = self.place(number)
                group = fields.group(file.id, b"episode_%d" % number, place)
                self._see(fields.names(group, place), place)
                arrays = {
                    what: {
                        path: _leaf(fields, group, name, leaf, place) for path, name, leaf in parts
                    }
                    for what, parts in leaves.items()
                }
                rewards, terminated, truncated = (
                    fields.read(group, name, place).reshape(-1)
                    for name in (b"rewards", b"terminations", b"truncations")
                )
                yield self._episode(
                    number, arrays, rewards, terminated, truncated, fields.attribute(group, b"seed")
                )

    # --- Arrow and Parquet, a folder an episode

    def _parts(self, number: int) -> list[Path]:
        folder = require_inside(self._data / str(number), self._data)
        found = sorted(path for path in folder.glob(f"*.{self._format}")) if folder.is_dir() else []
        if not found:
            raise UserError(
                f"{self.place(number)}: there is no {self._format} file in {folder}; nothing was"
                " imported"
            )
        return [require_inside(path, self._data) for path in found]

    def _from_arrow(self, skip: int) -> Iterator[Episode]:
        leaves = {what: leaf_spaces(space) for what, space in self._spaces.items()}
        for number in range(skip, self._count):
            place = self.place(number)
            batch = self._batch(number, place)
            missing = [name for name in _FIELDS if name not in batch.schema.names]
            if missing:
                raise refusal(place, missing[0], "there is no such column")
            self._see(batch.schema.names, place)
            rows = len(batch) - 1
            arrays = {
                "observations": {
                    p: _column(batch.column("observations"), "observations", name, space, place)
                    for p, name, space in leaves["observations"]
                },
                "actions": {
                    p: _column(
                        batch.column("actions").slice(0, rows), "actions", name, space, place
                    )
                    for p, name, space in leaves["actions"]
                },
            }
            rewards, terminated, truncated = (
                _numbers(batch.column(name).slice(0, rows), name, place)
                for name in ("rewards", "terminations", "truncations")
            )
            yield self._episode(number, arrays, rewards, terminated, truncated, self._seed(number))

    def _batch(self, number: int, place: str) -> pa.RecordBatch:
        parts = self._parts(number)
        with name_read_errors(lambda: place):
            if self._format == "parquet":
                tables = [open_parquet(path).read() for path in parts]
            else:
                for path in parts:
                    check_claim(claimed_bytes(path), path)
                tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in parts]
            for table in tables:
                table.validate(full=True)  # Arrow trusts the offsets of an IPC file otherwise
            batches = pa.concat_tables(tables).combine_chunks().to_batches()
        if not batches or len(batches[0]) < 2:
            raise refusal(place, "rewards", "it has no steps")
        return batches[0]

    def _seed(self, number: int) -> Any:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return read_json(require_inside(self._data / str(number) / METADATA, self._data)).get(
                "seed"
            )
        return None

    def _episode(
        self,
        number: int,
        arrays: Any,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        seed: Any,
    ) -> Episode:
        place = self.place(number)
        steps = len(rewards)
        if not steps:
            raise refusal(place, "rewards", "it has no steps")
        for name, flags in (("terminations", terminated), ("truncations", truncated)):
            if len(flags) != steps:
                raise refusal(
                    place, name, f"it has {len(flags):,} entries where there are {steps:,} rewards"
                )
        over = check_ends(
            terminated,
            truncated,
            np.array([steps]),
            lambda _: place,
            ("terminations", "truncations"),
        )
        kept = kept_seed(seed) if isinstance(seed, int | np.integer) else 0
        return Episode(
            arrays["observations"],
            arrays["actions"],
            rewards,
            bool(over[0]),
            EpisodeId(0, FOREIGN, number),
            "",
            source=self._policy,
            seed=kept,
        )


def _leaf(fields: Hdf5Fields, group: Any, name: bytes, space: Any, place: str) -> np.ndarray:
    """One leaf of an episode's HDF5 group: numbers, strings, or pictures in JPEG."""
    from gymnasium import spaces

    if isinstance(space, spaces.Text):
        return flatten_texts(
            space,
            fields.strings(group, name, place),
            name.decode(errors="replace"),
            lambda k: f"{place}, step {k}",
        )
    if _pictured(space) and fields.rank(group, name, place) != 1 + len(space.shape):
        return flatten_leaf(
            space, _decoded(fields.blobs(group, name, place), space, name.decode(), place)
        )
    return flatten_leaf(space, fields.read(group, name, place))


def _metadata(data: Path) -> dict[str, Any]:
    path = require_inside(data / METADATA, data)
    try:
        found: dict[str, Any] = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); nothing was imported") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON of a dataset ({error}); nothing was imported"
        ) from None
    return found


def _count(meta: dict[str, Any], name: str, where: str) -> int:
    value = meta.get(name)
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise UserError(
            f"{where}, field {name!r}: a count is expected, not {value!r}; nothing was imported"
        )
    return int(value)


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _environment(meta: dict[str, Any], where: str) -> tuple[str, dict[str, Any] | None]:
    """Id and arguments of the environment, time limit and wrappers among them, from JSON alone: the
    code that a file names is never looked for."""
    text = meta.get("env_spec")
    if not text:
        return "", None
    try:
        spec = read_json(text) if isinstance(text, str) else text
        outside = (
            {"max_episode_steps": spec["max_episode_steps"]} if "max_episode_steps" in spec else {}
        )
        wrappers = [str(wrapper["name"]) for wrapper in spec.get("additional_wrappers") or []]
        return str(spec["id"]), outside | {"additional_wrappers": wrappers} | dict(
            spec.get("kwargs") or {}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where}, field 'env_spec': it is not an environment's description"
            f" ({one_line(error)}); nothing was imported"
        ) from None


def _pictured(space: Any) -> bool:
    """Whether Minari may have stored this space as JPEG (minari/dataset/minari_storage.py,
    is_image_space)."""
    return space.dtype == np.uint8 and len(space.shape) in (2, 3) and min(space.shape[:2]) >= 32


def _decoded(blobs: list[bytes], space: Any, name: str, place: str) -> np.ndarray:
    """JPEG pictures as `[N, *space.shape]`."""
    image = import_optional("PIL.Image", "datasets")
    out = np.empty((len(blobs), *space.shape), np.uint8)
    for step, blob in enumerate(blobs):
        try:
            with image.open(io.BytesIO(blob), formats=("JPEG",)) as picture:
                if (picture.height, picture.width) != tuple(space.shape[:2]):
                    raise ValueError(
                        f"it is {picture.height} x {picture.width} where {space.shape[0]} x"
                        f" {space.shape[1]} is expected"
                    )
                out[step] = np.asarray(picture).reshape(space.shape)
        except Exception as error:  # noqa: BLE001  (a decoder of foreign bytes: whatever it raises is a broken picture)
            raise refusal(
                place, name, f"step {step}: the picture cannot be decoded ({one_line(error)})"
            ) from None
    return out


def _numbers(column: pa.Array, name: str, place: str) -> np.ndarray:
    return column_numbers(column, name, lambda _: place)


def _column(column: pa.Array, what: str, name: str, space: Any, place: str) -> np.ndarray:
    """One leaf of an Arrow column: fields of structs, then lists, numbers, strings or JPEG."""
    from gymnasium import spaces

    field = field_name(what, name)

    def here(_: int) -> str:
        return place

    parts = struct_path(column.type, name) if name else []
    if parts is None:
        raise refusal(place, field, "there is no such field")
    for part in parts:
        at = [part]
        column = column.field(part) if not column.offset else pa.compute.struct_field(column, at)
    if isinstance(space, spaces.Text):
        if not pa.types.is_string(column.type) or column.null_count:
            raise refusal(place, field, f"text is expected, not {column.type}")
        return flatten_texts(space, column.to_pylist(), field, lambda k: f"{place}, step {k}")
    if pa.types.is_binary(column.type):
        if not _pictured(space) or column.null_count:
            raise refusal(place, field, "numbers are expected, not bytes")
        return flatten_leaf(space, _decoded(column.to_pylist(), space, field, place))
    if isinstance(space, spaces.Discrete):
        return flatten_leaf(space, column_numbers(column, field, here))
    values, offsets = flatten_lists(column, field, here)
    width = math.prod(space.shape)
    if (wrong := np.flatnonzero(np.diff(offsets) != width)).size:
        step = int(wrong[0])
        raise refusal(
            place,
            field,
            f"step {step}: it holds {int(np.diff(offsets)[step]):,} numbers where {width:,} are"
            " expected",
        )
    return flatten_leaf(space, values.reshape(-1, *space.shape))


# --- ids


class Minari(Format):
    """See the module."""

    name = "minari"
    about = "Minari folders (with data/metadata.json) and ids (minari:NAMESPACE/NAME-v0)"
    writes = True

    def recognises(self, source: str) -> bool:
        """See Format."""
        return dataset_id(source) is not None or data_folder(Path(source)) is not None

    def open(self, source: str) -> Reader:
        """See Format."""
        name = dataset_id(source)
        path = Path(source) if name is None else download(name)
        folder = data_folder(path)
        if folder is None:
            raise UserError(f"{path} holds no data/{METADATA}; delete it and try again")
        require_inside(folder, path)
        return MinariFolder(folder, source if name is None else f"minari:{name}")

    def write(self, dataset: Dataset, folder: Path, advance: Advance) -> None:
        """FOLDER/data/main_data.hdf5 and its metadata; `minari.MinariDataset(FOLDER / "data")`
        reads them."""
        h5py = import_optional("h5py", "datasets")
        data = folder / "data"
        data.mkdir()
        seen, done = layout(dataset.task, dataset.signature)
        for paths in (dataset.signature.observations, dataset.signature.actions):
            if inner := [a for a in paths for b in paths if a.startswith(f"{b}/")]:
                raise UserError(
                    f"HDF5 has no place for {inner[0]!r} below another leaf; export to parquet"
                )
        with new_hdf5(data / HDF5_FILE) as (file, written):
            for number, episode in enumerate(dataset.stream()):
                group = file.create_group(f"episode_{number}", track_order=True)
                group.attrs.update(
                    {"id": number, "total_steps": episode.length, "seed": episode.seed}
                )
                _put(h5py, group, "observations", seen, episode.observations)
                _put(h5py, group, "actions", done, episode.actions)
                flags = np.zeros((2, episode.length), bool)
                flags[0 if episode.terminated else 1, -1] = True
                for name, values in (
                    ("rewards", episode.rewards),
                    ("terminations", flags[0]),
                    ("truncations", flags[1]),
                ):
                    group.create_dataset(name, data=values)
                group.create_group("infos")
                written.check()
                advance(episode.length)
        (data / METADATA).write_text(
            json.dumps(_card(dataset, seen, done, (data / HDF5_FILE).stat().st_size))
        )


def _put(h5py: Any, group: Any, what: str, space: Any, arrays: dict[str, np.ndarray]) -> None:
    for path, name, leaf in leaf_spaces(space, tuple_name="_index_{}"):
        values = unflatten_leaf(leaf, arrays[path])
        kind = h5py.string_dtype("utf-8") if isinstance(values, list) else None
        group.create_dataset("/".join([what, name]).rstrip("/"), data=values, dtype=kind)


def _card(dataset: Dataset, seen: Any, done: Any, size: int) -> dict[str, Any]:
    """The metadata that Minari expects, and the task for the way back."""
    name = re.sub(r"[^\w-]+", "-", dataset.name).strip("-") or "dataset"
    card = {
        "total_episodes": dataset.episodes,
        "total_steps": dataset.steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(space_to_json(seen)),
        "action_space": json.dumps(space_to_json(done)),
        "dataset_id": f"bigdm/{re.sub(r'-v[0-9]+$', '', name)}-v0",
        "minari_version": _minari_version(),
        "dataset_size": round(size / 1e6, 1),
        "requirements": [
            f"{name}=={version}"
            for name, version in dataset.versions.items()
            if re.fullmatch(r"[\d.]+\w*", version)
        ],
        "algorithm_name": dataset.source,
        "bigdm_task": dataset.task,
    }
    if dataset.reference_returns is not None:
        card |= dict(zip(_REFERENCES, dataset.reference_returns, strict=True))
    spec = _spec_json(dataset.task)
    return card | ({"env_spec": spec} if spec else {})


def _minari_version() -> str:
    return metadata.version("minari") if importlib.util.find_spec("minari") else LAYOUT_VERSION


def _spec_json(task: str) -> str | None:
    spec = spec_of(find_task(task))
    try:
        return None if spec is None else str(spec.to_json())
    except (TypeError, ValueError, AttributeError):  # made from code that has no name
        return None


FORMAT = Minari()
