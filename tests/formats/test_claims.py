"""Small files that claim much: refused in one sentence before memory is asked for."""

import contextlib
import gzip
import io
import json
import struct
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import played
from sources import dataset, edited, episode_parquet, minari_folder, rows_of

from bigdm_ray.errors import UserError
from bigdm_ray.formats.claims import FLOOR, RATIO, check_claim, parquet_claim
from bigdm_ray.formats.columns import flatten_lists
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.footer import claimed_values
from bigdm_ray.formats.hdf5 import Hdf5Fields, open_hdf5
from bigdm_ray.formats.ipc import claimed_bytes

TASK = "toy-continuous"
MANY = 1 << 28


@pytest.fixture(scope="module")
def episodes():
    return played(TASK, 2).episodes


def constant(name, tmp_path, small):
    """A Parquet file of one row whose list of one column holds very many equal numbers."""
    values = pa.array(np.zeros(MANY // 8, np.float64))
    ends = pa.array([0, MANY // 8], pa.int64())
    columns = {column: pa.array(rows[:1]) for column, rows in small.items()}
    columns[name] = pa.LargeListArray.from_arrays(ends, values)
    pq.write_table(pa.table(columns), tmp_path / "s.parquet", compression="zstd")
    return tmp_path / "s.parquet"


def parquet_rows(tmp_path, episodes):
    return constant("rewards", tmp_path, rows_of(episodes, policy=None, mode=None))


def flat_hdf5(tmp_path, episodes):
    with h5py.File(tmp_path / "s.hdf5", "w") as file:
        for name, width in (("observations", 3), ("actions", 2)):
            file.create_dataset(name, (10**8, width), np.float32, chunks=True)
        for name in ("rewards", "terminals", "timeouts"):
            file.create_dataset(name, (10**8,), np.float32, chunks=True, compression="gzip")
    return tmp_path / "s.hdf5"


def minari_arrays(tmp_path, episodes):
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
        file.create_dataset("episode_1/actions", (MANY, 1), np.float32, chunks=True)
    return folder


def minari_batch(tmp_path, episodes):
    """An episode whose Arrow file is compressed: a column of very many equal numbers."""
    folder = minari_folder(tmp_path / "minari", TASK, episodes, "arrow")
    (path,) = (folder / "data" / "1").glob("*.arrow")
    batch = pa.record_batch({"rewards": pa.array(np.zeros(MANY // 8))})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    assert path.stat().st_size < 100_000
    return folder


def minari_negative(tmp_path, episodes):
    """A second batch says that its buffer has less than no bytes, so that the sum stays small."""
    folder = minari_folder(tmp_path / "minari", TASK, episodes, "arrow")
    (path,) = (folder / "data" / "1").glob("*.arrow")
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    batches = [pa.record_batch({"rewards": pa.array(np.zeros(n))}) for n in (MANY // 8, 10_000)]
    with pa.ipc.new_file(path, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data = bytearray(path.read_bytes())
    buffers = struct.pack("<Iqqq", 2, 0, 0, 0)
    at = data.index(buffers, data.index(struct.pack("<q", 10_000))) + len(buffers)
    assert 0 < struct.unpack_from("<q", data, at)[0] < 1000
    struct.pack_into("<q", data, at, -(1 << 40))
    path.write_bytes(data)
    return folder


def minari_nulls(tmp_path, episodes):
    """Rows of no type take no bytes at all."""
    folder = minari_folder(tmp_path / "minari", TASK, episodes, "arrow")
    (path,) = (folder / "data" / "1").glob("*.arrow")
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    table = pa.table({name: pa.nulls(MANY // 2) for name in names})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return folder


def minari_space(space):
    def made(tmp_path, episodes):
        folder = minari_folder(tmp_path / "minari", TASK, episodes)
        with edited(folder) as found:
            found["observation_space"] = json.dumps(space)
        return folder

    return made


def box(*shape):
    return {"type": "Box", "dtype": "float32", "shape": shape, "low": [-1.0], "high": [1.0]}


def replay(tmp_path, episodes, version=(1, 0)):
    for name in ("observation", "action", "reward", "terminal"):
        header = io.BytesIO()
        shape = (1 << 40, 84, 84) if name == "observation" else (1 << 40,)
        told = {"descr": "|u1", "fortran_order": False, "shape": shape}
        if name != "terminal":
            np.lib.format.write_array_header_1_0(header, told)
        else:  # a header that is said to be 4 GiB long, and is
            header.write(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
        (tmp_path / f"$store$_{name}_ckpt.0.gz").write_bytes(
            gzip.compress(header.getvalue() + bytes(1 << 20))
        )
    return tmp_path


def card(tmp_path, episodes):
    made = dataset(tmp_path / "set", TASK, 2)
    told = json.loads((made.folder / "dataset.json").read_text())
    leaf = told["signature"]["observations"][""]
    told["signature"]["observations"][""] = leaf | {"shape": [MANY], "low": None, "high": None}
    (made.folder / "dataset.json").write_text(json.dumps(told))
    return made.folder


DICT = {"type": "Dict", "subspaces": {f"leaf{k}": box(1) for k in range(100_000)}}
BOMBS = {
    "parquet": (parquet_rows, "claims to hold"),
    "hdf5": (flat_hdf5, "claims to hold"),
    "minari-array": (minari_arrays, "claims to hold"),
    "minari-batch": (minari_batch, "claims to hold"),
    "minari-nulls": (minari_nulls, "claims to hold"),
    "minari-negative": (minari_negative, "lies outside the file"),
    "minari-box": (minari_space(box(MANY)), "268,435,456 numbers, where"),
    "minari-dict": (minari_space(DICT), "100,000 leaves, where"),
    "minari-text": (
        minari_space({"type": "Text", "max_length": 1 << 40, "min_length": 1, "charset": "a"}),
        "numbers, where",
    ),
    "dqn": (replay, "nothing was imported"),
    "card": (card, "numbers, where"),
}
LIMITED = """
import re, sys
from pathlib import Path
from bigdm_ray.data import main
from bigdm_ray.doors import door
code = door(main, sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(code, peak[1], file=sys.stderr)
"""
"""Its own peak: that of `getrusage` begins with the memory of the process that has started it."""


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_one_sentence_and_takes_no_memory(tmp_path, episodes, kind):
    make, words = BOMBS[kind]
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source", episodes)
    size = source.stat().st_size if source.is_file() else 0
    assert size < 100_000
    task = "toy-image" if kind == "dqn" else TASK
    command = ["import", str(source), "--task", task, "--folder", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *command], capture_output=True, text=True, timeout=300
    )
    *said, last = done.stderr.strip().splitlines()
    said = [line for line in said if not line.startswith("0 %, out: ")]  # a slow machine's
    code, peak = map(int, last.split())
    assert code == 2 and len(said) == 1 and words in said[0] and len(said[0]) < 1000, done.stderr
    assert peak * 1024 < 1 << 30
    assert not (tmp_path / "out").exists()


def test_the_limit_is_a_multiple_of_the_size_with_a_floor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 18))
    check_claim(RATIO << 18, path)
    with pytest.raises(UserError, match="claims to hold 250 MiB of numbers in 262,144 bytes"):
        check_claim((RATIO << 18) + 1, path)
    path.write_bytes(b"")
    check_claim(FLOOR, path)


def test_what_parquet_claims_is_what_its_numbers_take(tmp_path, episodes):
    numbers = [e.observations[""].reshape(-1) for e in episodes]
    flags = [[True] * 3, [False]]
    path = episode_parquet(tmp_path / "s.parquet", {"x": numbers, "flags": flags, "t": ["a", "b"]})
    assert parquet_claim(path, pq.read_metadata(path)) == sum(len(x) for x in numbers) * 4 + 4


@pytest.mark.parametrize("group", [1, 7, 10_000])
def test_a_footer_is_read_as_pyarrow_reads_it(tmp_path, group):
    rows = rows_of(played(TASK, 20).episodes)
    path = episode_parquet(tmp_path / "s.parquet", rows, {"a": "b" * 300}, row_group_size=group)
    told = pq.read_metadata(path)
    groups = [told.row_group(k) for k in range(told.num_row_groups)]
    assert claimed_values(path) == [
        [one.column(k).num_values for k in range(told.num_columns)] for one in groups
    ]


def test_a_broken_footer_is_an_error_of_one_kind(tmp_path, episodes):
    """Whatever bytes it has; pyarrow dies where statistics are broken, so it is not asked."""
    path = episode_parquet(tmp_path / "s.parquet", rows_of(episodes))
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    chance = np.random.default_rng(1)
    for at in range(begin, len(data), 5):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << int(chance.integers(8))
        path.write_bytes(spoilt)
        with contextlib.suppress(ValueError):
            claimed_values(path)
    for cut in range(len(data) - 12, len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="footer"):
            claimed_values(path)


def test_constant_data_below_the_floor_come_in(tmp_path):
    """Ten thousand equal steps take next to nothing in a file."""
    rows = {
        "observations": [np.zeros(3 * 1001, np.float32)] * 10,
        "actions": [np.zeros(2 * 1000, np.float32)] * 10,
        "rewards": [np.zeros(1000, np.float32)] * 10,
        "terminated": [True] * 10,
        "truncated": [False] * 10,
    }
    path = episode_parquet(tmp_path / "s.parquet", rows)
    from bigdm_ray.formats.importing import import_dataset

    made = import_dataset([str(path)], tmp_path / "set", TASK)
    assert parquet_claim(path, pq.read_metadata(path)) > 20 * path.stat().st_size
    assert Dataset.open(made.folder).steps == 10_000


def test_texts_that_are_all_one_are_counted_each(tmp_path):
    """Entries of variable length are places in a heap, and many may name the same one."""
    path = tmp_path / "s.hdf5"
    with h5py.File(path, "w") as file:
        texts = file.create_dataset("texts", data=["x" * (1 << 16)] + ["y"] * 4095)
        at = texts.id.get_offset()
    data = bytearray(path.read_bytes())
    data[at : at + 16 * 4096] = data[at : at + 16] * 4096
    path.write_bytes(data)
    with open_hdf5(path) as file, pytest.raises(UserError, match="claims to hold"):
        Hdf5Fields(path).strings(file.id, b"texts", "here")


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_what_arrow_claims_is_what_its_buffers_take(tmp_path, compression):
    words = pa.array(["a", "b"] * 500).dictionary_encode()
    table = pa.table({"x": np.zeros(1000), "lists": [[1.0, 2.0]] * 1000, "words": words})
    path = tmp_path / "s.arrow"
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=300)
    found = claimed_bytes(path)
    told = table.nbytes + 8 * 1000 + 5 * 1000 + 2 * 9  # rows; entries of columns and their lists
    assert told <= found < told + 2000
    data = path.read_bytes()
    for number in range(0, 8 * len(data), len(data) // 40 * 8 + 3):
        changed = bytearray(data)
        changed[number // 8] ^= 1 << (number % 8)
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            claimed_bytes(path)


def test_rows_and_entries_without_buffers_are_counted(tmp_path):
    """Nulls, equal runs, and lists of a fixed size of them."""
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([MANY], pa.int32()), pa.array([1.0]))
    lists = pa.FixedSizeListArray.from_arrays(pa.nulls(MANY), MANY // 2)
    for column in (pa.nulls(MANY), runs, lists):
        table = pa.table({"x": column})
        with pa.ipc.new_file(tmp_path / "s.arrow", table.schema) as writer:
            writer.write_table(table)
        assert claimed_bytes(tmp_path / "s.arrow") >= MANY


def test_compression_of_the_first_kind_is_seen(tmp_path):
    """Arrow 0.17 told it in the message's metadata, and Arrow still reads that."""
    size = 1 << 24
    packed = struct.pack("<q", size) + pa.Codec("zstd").compress(bytes(size), asbytes=True)
    values = np.frombuffer(packed[: len(packed) // 8 * 8])
    batch = pa.record_batch({"x": pa.array(values)})
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_file(tmp_path / "s.arrow", batch.schema, options=options) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    assert claimed_bytes(tmp_path / "s.arrow") >= size


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.nulls(1 << 22), "a list is expected, not null"),
        (pa.FixedSizeListArray.from_arrays(pa.nulls(1 << 22), 1 << 21), "numbers are expected"),
    ],
    ids=["null", "lists of null"],
)
def test_what_is_no_list_of_numbers_costs_nothing_by_row(column, words):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=words):
            flatten_lists(column, "x", lambda _: "here")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
