"""Format `parquet`: one row is one whole episode, its lists flat and row-major.

    observations  list  (T+1) * size    the last one is seen, not acted on
    actions       list  T * size        applied actions; whole numbers from 0 for discrete ones
    rewards       list  T
    terminated, truncated   list<bool> T, true on the last step only, or one bool an episode
    dones         in their place: either end; truncated after as many steps as the task's limit
    length, policy, mode, sigma, eps, stage, seed, env_id   optional scalars

Observations may be T, as in the Decision Transformer data of Hugging Face's Hub; the first row
decides for all. The last one is then taken from `next_observations`, or is not known, and what
`d4rl` does is done here too. Leaves of a dict are columns of their own, `observations/arm/joints`.
Files that are written here carry the signature in their schema's metadata, so any space goes out
and comes back; others may tell `obs_dim`, `act_dim`, `n_actions` and `env_id` there. Batches of
rows are decoded a few MiB at a time, whatever the size of the file's row groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.formats.base import Advance, Format, Reader, SourceMetadata
from bigdm_ray.formats.behaviour import Behaviour
from bigdm_ray.formats.checks import check_ends, check_next_observations, kept_seed, refusal
from bigdm_ray.formats.columns import (
    column_numbers,
    common_metadata,
    expect_types,
    flatten_lists,
    name_read_errors,
    open_parquet,
    parquet_files,
    rows_at_once,
    said_versions,
)
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.episode_table import FOLLOWS, episode_schema, episode_table
from bigdm_ray.formats.looks import ActionColumns, guess_signature, seen_leaf
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.formats.spellings import match_columns
from bigdm_ray.formats.tasks import step_limit
from bigdm_ray.formats.unread import unread_names
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId, bytes_of

ROW_BYTES = 16 << 20
GROUP_EPISODES = 128
SCALARS = {
    "policy": "text", "mode": "text", "sigma": "a number", "eps": "a number",
    "stage": "a whole number", "seed": "a whole number",
    "env_id": "text", "length": "a number",
}  # fmt: skip
"""Columns beside the lists, and what they hold."""
FLAGS = ("terminated", "truncated")
DONES = ("dones", "done")


TABLE = (
    "observations",
    "actions",
    "rewards",
    "next_observations",
    "terminated",
    "truncated",
    "dones",
)
"""What may be called otherwise (`spellings.py`)."""


def _own_names(names: list[str]) -> dict[str, str]:
    """Columns of a file, by what they are called here, where they are called otherwise."""
    found = match_columns(names, TABLE, {what: what for what in TABLE}).plain
    return {what: name for what, name in found.items() if name != what and name not in DONES}


class _Named:
    """A Parquet file whose columns go by our names."""

    def __init__(self, path: Path, theirs: Mapping[str, str]) -> None:
        self._file, self._theirs = open_parquet(path), theirs
        self._ours = {name: what for what, name in theirs.items()}
        self.metadata = self._file.metadata
        self.names = [self._ours.get(name, name) for name in self._file.schema_arrow.names]

    def iter_batches(self, *, columns: list[str], **more: Any) -> Iterator[pa.RecordBatch]:
        """Like pyarrow's."""
        asked = [self._theirs.get(name, name) for name in columns]
        for batch in self._file.iter_batches(columns=asked, **more):
            yield batch.rename_columns([self._ours.get(name, name) for name in batch.schema.names])


class EpisodeRows(Reader):
    """Files of episode rows, read one after another."""

    def __init__(self, source: str, files: list[Path]) -> None:
        self._files = files
        opened = [open_parquet(path) for path in files]
        self._starts = np.cumsum([0, *(file.metadata.num_rows for file in opened)])
        self._schema = opened[0].schema_arrow
        self.taken = _own_names(self._schema.names)
        self._names = _Named(files[0], self.taken).names
        meta, told, signature = common_metadata(files, opened)
        for path, file in zip(files, opened, strict=True):
            if file.schema_arrow.names != self._schema.names:
                raise UserError(f"{path} has other columns than {files[0]}; nothing was imported")
            expect_types(path, file.schema_arrow, SCALARS)
        with name_read_errors(lambda: source):
            steps = _sum_of_lengths(files) if "length" in self._names else None
            first_id = self._first_env_id(opened)
        env_id = meta.get("env_id") or first_id
        self.said = SourceMetadata(
            source, env_id, None, signature, said_versions(meta), int(self._starts[-1]), steps, told
        )

    def _first_env_id(self, opened: list[pq.ParquetFile]) -> str:
        if "env_id" not in self._names or not self._starts[-1]:
            return ""
        first = next(file for file in opened if file.metadata.num_rows)
        column = next(first.iter_batches(batch_size=1, columns=["env_id"])).column(0)
        return str(column[0].as_py() or "")

    def files(self) -> list[Path]:
        """See Reader."""
        return self._files

    def place(self, number: int) -> str:
        """See Reader."""
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"{self._files[min(at, len(self._files) - 1)]}, episode {number}"

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        lists = [field_name("observations", p) for p in signature.observations] + [
            field_name("actions", p) for p in signature.actions
        ]
        done = next((name for name in DONES if name in self._names), "")
        flags = FLAGS if not done or set(FLAGS) & set(self._names) else ()
        for name in (*lists, "rewards", *flags):
            if name not in self._names:
                raise refusal(str(self._files[0]), name, "there is no such column")
        nexts = [field_name("next_observations", p) for p in signature.observations]
        nexts = nexts if set(nexts) <= set(self._names) else []
        known = {*lists, *nexts, "rewards", *FLAGS, *SCALARS, FOLLOWS, done or DONES[0]}
        self._beside(known)
        self._limit = step_limit(task)
        self._flags = (*flags, *([done] if done else []))
        self._short = self._lacks_the_last(lists[0], next(iter(signature.observations.values())))
        self._nexts = bool(nexts) and self._short
        columns = [
            *lists,
            *(nexts if self._short else ()),
            "rewards",
            *self._flags,
            *(name for name in SCALARS if name in self._names),
        ]
        if self._short:  # a row may be no episode, so rows do not count them
            yield from itertools.islice(self._from(signature, columns, 0), skip, None)
        else:
            yield from self._from(signature, columns, skip)

    def looks(self) -> Signature | None:
        """See Reader. Lists that are flat tell a width by how many rewards they belong to."""
        seen: dict[str, Leaf] = {}
        acted: dict[str, ActionColumns] = {}
        names = {
            what: [one for one in self._names if one.partition("/")[0] == what]
            for what in ("observations", "actions")
        }
        columns = [*names["observations"], *names["actions"], "rewards"]
        if "rewards" not in self._names or not all(names.values()):
            return None
        for path in self._files:
            file = _Named(path, self.taken)
            groups = list(range(file.metadata.num_row_groups))
            with name_read_errors(lambda: self.place(0)):
                each = rows_at_once(file, columns, groups, ROW_BYTES, 1024) if groups else 1
                for batch in file.iter_batches(batch_size=each, columns=columns):
                    steps = np.diff(
                        flatten_lists(batch.column("rewards"), "rewards", self.place)[1]
                    )
                    for name in names["observations"] if len(batch) else ():
                        values, width = self._per_step(batch, name, steps, (1, 0))
                        leaf = seen_leaf(values.reshape(-1, *width)[:1])
                        seen.setdefault(name.partition("/")[2], leaf)
                    for name in names["actions"]:
                        values, width = self._per_step(batch, name, steps, (0,))
                        part = acted.setdefault(name.partition("/")[2], ActionColumns())
                        part.add(values.reshape(-1, *width))
        return guess_signature(seen, acted.items()) if seen else None

    def _per_step(
        self, batch: pa.RecordBatch, name: str, steps: np.ndarray, more: tuple[int, ...]
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """The numbers of a list column, and the shape of a step's, of which a row has one for each
        reward, or `more`."""
        column = batch.column(name)
        values, at = flatten_lists(column, name, self.place)
        if pa.types.is_nested(column.type.value_type):
            entries = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            more = tuple(extra for extra in more if (entries == steps + extra).all())
        fits: list[tuple[int, ...]] = []
        for extra in more if len(steps) and steps.all() else ():
            width, rest = np.divmod(np.diff(at), steps + extra)
            if width[0] and not rest.any() and (width == width[0]).all():
                plain = width[0] == 1 and not pa.types.is_nested(column.type.value_type)
                fits.append(() if plain and len(more) == 1 else (int(width[0]),))
        if len(fits) == 1:
            return values, fits[0]
        could = " or ".join(f"{shape[0]} numbers a step" for shape in fits if shape)
        raise refusal(
            self.place(0),
            name,
            f"its lists could hold {could}: write lists of lists, or name the task with --task TASK"
            if fits
            else "its lists do not hold equally many numbers for each of their rewards",
        )

    def _beside(self, known: set[str]) -> None:
        """Note the columns that are not read; a row is an episode, so only lists tell of ends."""
        kinds = dict(zip(self._names, self._schema.types, strict=True))
        plain = [name for name, kind in kinds.items() if not pa.types.is_nested(kind)]
        found = unread_names(set(kinds) - set(plain), known, str(self._files[0]))
        self.beside = tuple(sorted({*found, *plain} - known))

    def _lacks_the_last(self, name: str, leaf: Leaf) -> bool:
        """Whether the first row has as many observations as rewards, and not one more."""
        for path in self._files:
            file = _Named(path, self.taken)
            with name_read_errors(lambda: self.place(0)):
                for batch in file.iter_batches(batch_size=1, columns=[name, "rewards"]):
                    if len(batch):
                        sizes = [
                            len(flatten_lists(batch.column(n), n, self.place)[0])
                            for n in (name, "rewards")
                        ]
                        return sizes[0] == sizes[1] * leaf.size
        return False

    def _from(self, signature: Signature, columns: list[str], skip: int) -> Iterator[Episode]:
        for path, start in zip(self._files, self._starts.tolist(), strict=False):
            file = _Named(path, self.taken)
            yield from self._file(file, signature, columns, start, max(0, skip - start))

    def _file(
        self, file: _Named, signature: Signature, columns: list[str], start: int, skip: int
    ) -> Iterator[Episode]:
        number = start
        with name_read_errors(lambda: f"{self.place(number)} or a later one"):
            groups, before = _groups(file, skip)
            number += before
            each = rows_at_once(file, columns, groups, ROW_BYTES, 1024) if groups else 1
            for batch in (
                file.iter_batches(batch_size=each, row_groups=groups, columns=columns)
                if groups
                else ()
            ):
                drop = max(0, start + skip - number)
                if drop < len(batch):
                    yield from self._rows(batch.slice(drop), signature, number + drop)
                number += len(batch)

    def _rows(self, batch: pa.RecordBatch, signature: Signature, number: int) -> Iterator[Episode]:
        def place(k: int) -> str:
            return self.place(number + k)

        rewards, offsets = flatten_lists(batch.column("rewards"), "rewards", place)
        lengths = np.diff(offsets)
        if (
            "length" in batch.schema.names
            and (
                wrong := np.flatnonzero(
                    batch.column("length").to_numpy(zero_copy_only=False) != lengths
                )
            ).size
        ):
            k = int(wrong[0])
            raise refusal(
                place(k),
                "length",
                f"it says {batch.column('length')[k].as_py()} where there are {lengths[k]:,}"
                " rewards",
            )
        if not lengths.all():
            raise refusal(place(int(np.argmin(lengths))), "rewards", "it has no steps")
        observations: dict[str, np.ndarray] = {}
        actions: dict[str, np.ndarray] = {}
        for what, leaves, more, out in (
            ("observations", signature.observations, int(not self._short), observations),
            ("actions", signature.actions, 0, actions),
        ):
            for path, leaf in leaves.items():
                values, at = flatten_lists(
                    batch.column(field_name(what, path)), field_name(what, path), place
                )
                _expect(np.diff(at), lengths + more, leaf, field_name(what, path), place, lengths)
                out[path] = values.reshape(-1, *leaf.shape)
        terminated = self._ends(batch, offsets, place)
        after = self._after(batch, observations, signature, offsets, place) if self._nexts else None
        self._same_env(batch, place)
        sources, seeds = _sources(batch), _column(batch, "seed", 0)
        for k, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            if self._short:
                seen, b = _closed(observations, after, a, b, bool(terminated[k]))
            else:
                seen = {path: values[a + k : b + k + 1] for path, values in observations.items()}
            if a == b:  # a single step, whose end is not known
                continue
            done = {path: values[a:b] for path, values in actions.items()}
            yield Episode(
                seen,
                done,
                rewards[a:b],
                bool(terminated[k]),
                EpisodeId(0, FOREIGN, number + k),
                "",
                source=sources[k],
                seed=kept_seed(seeds[k]),
            )

    def _ends(self, batch: pa.RecordBatch, offsets: np.ndarray, place: Any) -> np.ndarray:
        ends = offsets[1:]
        found = {name: self._flag(batch, name, offsets, place) for name in self._flags}
        both = [found[name] for name in FLAGS if name in found]
        for name in found.keys() - set(FLAGS):
            over = check_ends(found[name], found[name], ends, place, (name, name))
            if not both:
                return np.asarray(over & (np.diff(offsets) != (self._limit or -1)))
        return check_ends(both[0], both[1], ends, place, FLAGS)

    def _flag(
        self, batch: pa.RecordBatch, name: str, offsets: np.ndarray, place: Any
    ) -> np.ndarray:
        """A flag of each step; one an episode is that of its last."""
        column = batch.column(name)
        if pa.types.is_boolean(column.type):
            one = np.zeros(int(offsets[-1]), bool)
            one[offsets[1:] - 1] = column_numbers(column, name, place)
            return one
        values, at = flatten_lists(column, name, place)
        if (wrong := np.flatnonzero(np.diff(at) != np.diff(offsets))).size:
            k = int(wrong[0])
            raise refusal(
                place(k),
                name,
                f"it has {at[k + 1] - at[k]:,} entries where there are "
                f"{offsets[k + 1] - offsets[k]:,} rewards",
            )
        return np.asarray(values)

    def _after(
        self,
        batch: pa.RecordBatch,
        observations: dict[str, np.ndarray],
        signature: Signature,
        offsets: np.ndarray,
        place: Any,
    ) -> dict[str, np.ndarray]:
        """What was seen after each step, held against what the next step saw."""
        after, lengths = {}, np.diff(offsets)
        for path, leaf in signature.observations.items():
            name = field_name("next_observations", path)
            values, at = flatten_lists(batch.column(name), name, place)
            _expect(np.diff(at), lengths, leaf, name, place, lengths)
            after[path] = values.reshape(-1, *leaf.shape)
            check_next_observations(
                after[path],
                observations[path],
                offsets[1:] - 1,
                name,
                lambda row: place(int(np.searchsorted(offsets, row, side="right")) - 1),
            )
        return after

    def _same_env(self, batch: pa.RecordBatch, place: Any) -> None:
        if "env_id" not in batch.schema.names:
            return
        for k, env_id in enumerate(batch.column("env_id").to_pylist()):
            if env_id and env_id != self.said.env_id:
                raise refusal(
                    place(k),
                    "env_id",
                    f"a dataset of another task: it says {env_id} where the file is of"
                    f" {self.said.env_id}",
                )


def _closed(
    observations: dict[str, np.ndarray],
    after: dict[str, np.ndarray] | None,
    a: int,
    b: int,
    terminated: bool,
) -> tuple[dict[str, np.ndarray], int]:
    """Of the rows a to b what was seen, one after them included, and where the steps then end."""
    if after is None and not terminated:
        return {path: values[a:b] for path, values in observations.items()}, b - 1
    last = observations if after is None else after
    return {
        path: np.concatenate([values[a:b], last[path][b - 1 : b]])
        for path, values in observations.items()
    }, b


def _groups(file: _Named, skip: int) -> tuple[list[int], int]:
    """The row groups from the one on that holds row `skip`, and the rows before them."""
    starts = np.cumsum(
        [
            0,
            *(
                file.metadata.row_group(group).num_rows
                for group in range(file.metadata.num_row_groups)
            ),
        ]
    )
    first = int(np.searchsorted(starts, skip, side="right")) - 1
    return list(range(first, file.metadata.num_row_groups)), int(starts[first])


def _expect(
    found: np.ndarray, rows: np.ndarray, leaf: Leaf, name: str, place: Any, lengths: np.ndarray
) -> None:
    if (wrong := np.flatnonzero(found != rows * leaf.size)).size:
        k = int(wrong[0])
        raise refusal(
            place(k),
            name,
            f"it holds {found[k]:,} numbers where {rows[k] * leaf.size:,} ({rows[k]:,} times"
            f" {leaf.size}) belong to {lengths[k]:,} rewards",
        )


def _column(batch: pa.RecordBatch, name: str, missing: Any) -> list[Any]:
    if name not in batch.schema.names:
        return [missing] * len(batch)
    return [missing if value is None else value for value in batch.column(name).to_pylist()]


def _sources(batch: pa.RecordBatch) -> list[str]:
    """What each row tells about who acted."""
    columns = [
        _column(batch, name, missing)
        for name, missing in (
            ("policy", ""),
            ("mode", ""),
            ("sigma", 0.0),
            ("eps", 0.0),
            ("stage", None),
        )
    ]
    return [str(Behaviour(*row)) for row in zip(*columns, strict=True)]


def _sum_of_lengths(files: list[Path]) -> int:
    batches = (
        batch for path in files for batch in open_parquet(path).iter_batches(columns=["length"])
    )
    return int(
        sum(
            np.nan_to_num(batch.column(0).to_numpy(zero_copy_only=False).astype(np.float64)).sum()
            for batch in batches
        )
    )


# --- writing


class EpisodeParquet(Format):
    """See the module."""

    name = "parquet"
    about = (
        "Parquet files of one episode a row (columns observations, actions, rewards, terminated,"
        " truncated)"
    )
    writes = True

    def recognises(self, source: str) -> bool:
        """See Format."""
        files = parquet_files(source)
        if not files:
            return False
        schema = open_parquet(files[0]).schema_arrow
        rewards = match_columns(schema.names).plain.get("rewards")
        rows = rewards is not None and pa.types.is_nested(schema.field(rewards).type)
        leaves = any(name.partition("/")[0] == "observations" for name in schema.names)
        return rows or (leaves and rewards is None)

    def open(self, source: str) -> Reader:
        """See Format."""
        return EpisodeRows(source, parquet_files(source))

    def write(self, dataset: Dataset, folder: Path, advance: Advance) -> None:
        """One file, NAME.parquet, with 128 episodes a row group, or fewer where they are large."""
        schema = episode_schema(dataset)
        with pq.ParquetWriter(
            folder / f"{dataset.name}.parquet",
            schema,
            compression="zstd",
            use_dictionary=["policy", "mode", "env_id"],
        ) as writer:
            batch: list[Episode] = []
            size = 0
            for episode in dataset.stream():
                batch.append(episode)
                size += bytes_of(episode)
                if len(batch) == GROUP_EPISODES or size >= ROW_BYTES:
                    writer.write_table(episode_table(batch, schema, dataset))
                    advance(sum(one.length for one in batch))
                    batch, size = [], 0
            if batch:
                writer.write_table(episode_table(batch, schema, dataset))
                advance(sum(one.length for one in batch))


FORMAT = EpisodeParquet()
