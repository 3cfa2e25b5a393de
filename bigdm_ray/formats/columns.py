"""Arrow columns of foreign Parquet and Arrow files as flat numpy arrays, and what their metadata
tells.

Lists in lists, fixed or not, are flattened row-major; an empty cell, a type that is no number, and
a torn file are one sentence.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import require_inside
from bigdm_ray.formats.checks import refusal
from bigdm_ray.formats.claims import check_claim, parquet_claim
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.signatures import misfit, sound_signature
from bigdm_ray.formats.tasks import spec_of
from bigdm_ray.jsons import read_json

META = "bigdm"
"""Key of the schema's metadata under which files that are written here carry their task and
signature."""

PACKAGES = (
    "gymnasium",
    "mujoco",
    "box2d",
    "vizdoom",
    "ale-py",
    "envpool",
    "numpy",
    "minari",
    "d4rl",
    "environment",
    "environment_arguments",
    "backend",
)


@contextlib.contextmanager
def name_read_errors(place: Callable[[], str]) -> Iterator[None]:
    """What pyarrow raises for bytes that it cannot read becomes one sentence that begins with
    `place()`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{place()} cannot be read ({one_line(error)}); nothing was imported"
        ) from None


def open_parquet(path: Path) -> pq.ParquetFile:
    """An open Parquet file, decoded page by page from a memory map.

    Raises UserError for a torn one, and for one that claims more than its size can hold.
    """
    try:
        file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        names = file.schema_arrow.names
        claimed = parquet_claim(path, file.metadata)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole Parquet file ({one_line(error)}); nothing was imported"
        ) from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise refusal(str(path), twice[0], "there is more than one such column")
    check_claim(claimed, path)
    return file


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "text": _is_text,
    "a number": _is_number,
    "a whole number": pa.types.is_integer,
    "text or a whole number": lambda kind: _is_text(kind) or pa.types.is_integer(kind),
}
"""What a column of one value a row may hold."""


def expect_types(path: Path, schema: pa.Schema, expected: Mapping[str, str]) -> None:
    """Raise UserError for a column, where it is there, that holds something else than `expected`, a
    word of `TYPES`, says; null is no type."""
    for name, what in expected.items():
        if (
            name in schema.names
            and not pa.types.is_null(kind := schema.field(name).type)
            and not TYPES[what](kind)
        ):
            raise refusal(str(path), name, f"{what} is expected, not {kind}")


PROBE_ROWS = 8


def rows_at_once(file: Any, names: list[str], groups: list[int], wanted: int, most: int) -> int:
    """How many rows decode to about `wanted` bytes, judged by the first few: what they take in the
    file may be a thousandth of it."""
    for batch in file.iter_batches(batch_size=PROBE_ROWS, row_groups=groups, columns=names):
        if len(batch):
            return max(1, min(most, wanted * len(batch) // max(1, int(batch.nbytes))))
    return 1


def parquet_files(source: str) -> list[Path]:
    """The Parquet files of a source: a file, or the files of a folder that is no dataset of another
    kind; sorted."""
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        return [path]
    if path.is_dir() and not any(
        (folder / "metadata.json").exists() for folder in (path, path / "data")
    ):
        return [require_inside(file, path) for file in sorted(path.rglob("*.parquet"))]
    return []


def flatten_lists(
    column: pa.Array, name: str, place: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """A list column as its numbers, one after another, and where each row begins: `[numbers]`,
    `[rows + 1]` int64."""
    if not _is_list(column.type):
        raise refusal(place(0), name, f"a list is expected, not {column.type}")
    kind = column.type
    while _is_list(kind):
        kind = kind.value_type
    _expect_plain(kind, name, place)
    values, offsets = column, np.arange(len(column) + 1, dtype=np.int64)
    depth = 0
    while _is_list(values.type):
        _filled(values, offsets, name, place)
        if pa.types.is_fixed_size_list(values.type):
            offsets = offsets * values.type.list_size
        else:
            inner = values.offsets.to_numpy().astype(np.int64)
            sizes = np.diff(inner)
            if depth and (odd := np.flatnonzero(sizes != sizes[:1])).size:
                k = int(np.searchsorted(offsets, odd[0], side="right")) - 1
                why = f"it holds lists of {sizes[0]:,} and of {sizes[odd[0]]:,}"
                raise refusal(place(k), name, f"{why} entries, but all must be of one length")
            offsets = (inner - inner[0])[offsets]
        depth += 1
        values = values.flatten()
    _filled(values, offsets, name, place)
    return column_numbers(values, name, place), offsets


def column_numbers(values: pa.Array, name: str, place: Callable[[int], str]) -> np.ndarray:
    """A plain column of numbers or truth values as numpy."""
    _expect_plain(values.type, name, place)
    _filled(values, None, name, place)
    made: np.ndarray = values.to_numpy(zero_copy_only=False)
    return made


def is_plain(kind: pa.DataType) -> bool:
    """Whether this is the type of a number or a truth value."""
    return _is_number(kind) or bool(pa.types.is_boolean(kind))


def struct_path(kind: pa.DataType, name: str) -> list[str] | None:
    """The fields of structs in structs that `name` (`arm/joints`) leads through; names may hold
    slashes themselves.

    None where there are none such.
    """
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"data", "shape"}:
        return None  # a tensor of Ray Data
    for field in kind if pa.types.is_struct(kind) else ():
        if field.name == name:
            return [name]
        if name.startswith(f"{field.name}/"):
            rest = struct_path(field.type, name[len(field.name) + 1 :])
            if rest is not None:
                return [field.name, *rest]
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _expect_plain(kind: pa.DataType, name: str, place: Callable[[int], str]) -> None:
    if not is_plain(kind):
        raise refusal(place(0), name, f"numbers are expected, not {kind}")


def _filled(
    values: pa.Array, offsets: np.ndarray | None, name: str, place: Callable[[int], str]
) -> None:
    """Refuse nulls; `offsets` tell where each row begins, None that a value is a row."""
    if values.null_count:
        at = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        k = at if offsets is None else int(np.searchsorted(offsets, at, side="right")) - 1
        raise refusal(place(k), name, "a value is missing (null)")


# --- metadata


def metadata_of(file: pq.ParquetFile) -> dict[str, str]:
    """The metadata of a file's schema as text."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (file.schema_arrow.metadata or {}).items()
    }


def schema_metadata(dataset: Dataset) -> dict[str, str]:
    """What a Parquet file that is written here carries in its schema's metadata."""
    told = {
        "task": dataset.task,
        "signature": dataset.signature.to_json(),
        "source": dataset.source,
        "sha256": dataset.sha256,
    }
    env_id = env_id_of(dataset)
    return {
        META: json.dumps(told),
        **dataset.versions,
        **({"env_id": env_id} if env_id else {}),
        **_sizes(dataset.signature),
    }


def env_id_of(dataset: Dataset) -> str:
    """The environment's id for other readers: the card's, else that which the task's environment is
    registered with; empty where neither is known."""
    if told := dataset.versions.get("environment"):
        return told
    try:
        spec = spec_of(find_task(dataset.task))
    except UserError:
        return ""
    return "" if spec is None else str(spec.id)


def _sizes(signature: Signature) -> dict[str, str]:
    """`obs_dim`, `act_dim` and `n_actions` (0 where they are continuous) of a vector and one
    action; nothing for other arrays."""
    if set(signature.observations) != {""} or set(signature.actions) != {""}:
        return {}
    seen, done = signature.observations[""], signature.actions[""]
    if seen.kind != "tensor" or not (done.kind == "tensor" or done.shape == ()):
        return {}
    return {
        "obs_dim": str(seen.size),
        "act_dim": str(done.size),
        "n_actions": str(done.choices[0] if done.choices else 0),
    }


def own_metadata(meta: Mapping[str, str], where: str) -> tuple[str, Signature | None]:
    """Task and signature of a file that was written here; empty and None for others.

    Raises UserError where they are broken.
    """
    if META not in meta:
        return "", None
    try:
        told = read_json(meta[META])
        return str(told["task"]), sound_signature(told["signature"], where)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{where} carries a broken signature ({one_line(error)}); nothing was imported"
        ) from None


def said_versions(meta: Mapping[str, str]) -> dict[str, str]:
    """Versions of packages that a file's metadata names."""
    return {name: meta[name] for name in PACKAGES if meta.get(name)}


def common_metadata(
    files: list[Path], opened: Iterable[pq.ParquetFile]
) -> tuple[dict[str, str], str, Signature | None]:
    """What the first file's metadata tell, and its task and signature: empty and None where they
    are silent.

    Raises UserError for a file that tells another task, signature or environment.
    """
    each = []
    for path, file in zip(files, opened, strict=True):
        meta = metadata_of(file)
        task, signature = own_metadata(meta, str(path))
        each.append((meta, task, signature or _plain_signature(meta, str(path))))
        if why := _difference(each[0], each[-1]):
            raise UserError(
                f"{path} is a dataset of another task than {files[0]}: {why}; nothing was imported"
            )
    return each[0]


def _difference(
    first: tuple[dict[str, str], str, Signature | None],
    other: tuple[dict[str, str], str, Signature | None],
) -> str | None:
    (meta, task, signature), (its_meta, its_task, its_signature) = first, other
    if its_task != task:
        return f"its task is {its_task or 'not told'} where {task or 'none'} is told first"
    if its_signature != signature:
        unlike = misfit(its_signature, signature) if its_signature and signature else None
        return unlike or "its signature has other types or bounds, or is missing in one of them"
    env_id, its_env_id = meta.get("env_id", ""), its_meta.get("env_id", "")
    if its_env_id != env_id and ((env_id and its_env_id) or not task):
        return (
            f"its environment is {its_env_id or 'not told'} where {env_id or 'none'} is told first"
        )
    return None


def _plain_signature(meta: Mapping[str, str], where: str) -> Signature | None:
    """The signature that `obs_dim`, `act_dim` and `n_actions` tell, or None where they are
    missing."""
    if not {"obs_dim", "act_dim", "n_actions"} <= meta.keys():
        return None
    try:
        seen, done, choices = (int(meta[name]) for name in ("obs_dim", "act_dim", "n_actions"))
        action = (
            Leaf("discrete", (), "int32", choices=(choices,))
            if choices
            else Leaf("tensor", (done,), "float32")
        )
        return sound_signature(
            Signature({"": Leaf("tensor", (seen,), "float32")}, {"": action}).to_json(), where
        )
    except ValueError:
        raise UserError(
            f"{where} tells obs_dim {meta['obs_dim']!r}, act_dim {meta['act_dim']!r}, n_actions"
            f" {meta['n_actions']!r}, where whole numbers are expected"
        ) from None
