"""Shards: what is written is read, bit for bit; what was changed is noticed; opening costs nothing;
a full disk leaves nothing."""

import errno
import json
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from making import episode, same_episode

from bigdm_ray.errors import RunFailed
from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId
from bigdm_ray.replay.shard import (
    ClosedShard,
    CorruptShard,
    NewerShard,
    Shard,
    encode,
    publish,
    refuse_unknown,
)


def written(folder, episodes, name="episodes-0000000.arrow"):
    path = folder / name
    publish(path, encode(episodes))
    return path


# --- round trips


@pytest.mark.parametrize("kind", ["vector", "image", "nested"])
def test_what_is_written_is_read(tmp_path, kind):
    episodes = [episode(number, length, kind) for number, length in enumerate([5, 1, 12])]
    opened = Shard.open(written(tmp_path, episodes), verify=True)
    assert opened.ids == [e.id for e in episodes] and opened.task == "made-up"
    for row, e in enumerate(episodes):
        same_episode(opened.episode(row), e)


def test_shards_of_before_call_merit_peers_or_have_none(tmp_path):
    """And their episodes have no serials."""
    path = written(tmp_path, [episode(1), episode(2)])
    today = pa.ipc.open_file(path).read_all()
    called = ["peers" if name == "merit" else name for name in today.schema.names]
    for older, merit in (
        (today.drop_columns(["merit"]), [0.0, 0.0]),
        (
            today.rename_columns(called).replace_schema_metadata(today.schema.metadata),
            [episode(n).merit for n in (1, 2)],
        ),
    ):
        sink = pa.BufferOutputStream()
        seal = {"seal": shards._BLANK.decode()}
        with pa.ipc.new_file(sink, older.schema, metadata=seal) as writer:
            writer.write_table(older)
        path.write_bytes(shards._sealed(bytearray(sink.getvalue())))
        opened = Shard.open(path, verify=True)
        assert [opened.episode(row).merit for row in range(2)] == merit == opened.merit.tolist()
        assert opened.serials.tolist() == [-1, -1] and opened.arrived == 0


leaf_shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
dtypes = st.sampled_from(["float32", "int32", "uint8", "int64", "float64", "int8"])
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def some_episodes(draw):
    paths = draw(
        st.lists(st.sampled_from(["", "a", "a/b", "0", "ö x"]), min_size=1, max_size=3, unique=True)
    )
    leaves = {
        kind: {path: (draw(leaf_shapes), draw(dtypes)) for path in paths}
        for kind in ("observations", "actions")
    }
    out = []
    for number in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 6))
        made = {
            kind: {
                path: draw(arrays.arrays(dtype, (steps + (kind == "observations"), *shape)))
                for path, (shape, dtype) in leaves[kind].items()
            }
            for kind in leaves
        }
        out.append(
            Episode(
                **made,
                rewards=draw(arrays.arrays("float32", steps)),
                terminated=draw(st.booleans()),
                id=EpisodeId(draw(st.integers(0, 2**40)), draw(st.integers(FOREIGN, 5)), number),
                task="t:ä/é",
                command=draw(st.dictionaries(text, st.floats(allow_nan=False), max_size=2)),
                version=(draw(st.integers(0, 9)), draw(st.integers(0, 2**40))),
                source=draw(text),
                seed=draw(st.integers(0, 2**31 - 1)),
            )
        )
    return out


@given(some_episodes())
def test_anything_that_an_episode_can_hold_comes_back(episodes):
    data = encode(episodes)
    opened = Shard.read(pa.py_buffer(data), shards.Path("nowhere"))
    for row, e in enumerate(episodes):
        same_episode(opened.episode(row), e)


def test_one_row_an_episode_in_one_uncompressed_batch(tmp_path):
    """The format of the design: `large_list<fixed_size_list<dtype>[n]>` step leaves, scalars beside
    them."""
    path = written(tmp_path, [episode(1, 4, "image"), episode(2, 3, "image")])
    reader = pa.ipc.open_file(path.open("rb"))
    assert reader.num_record_batches == 1
    batch = reader.get_batch(0)
    assert batch.num_rows == 2
    assert batch.schema.field("rewards").type == pa.large_list(pa.float32())
    assert batch.schema.field("actions/").type == pa.large_list(pa.int32())
    assert batch.schema.field("observations/joints").type == pa.large_list(
        pa.list_(pa.float32(), 3)
    )
    assert batch.schema.field("observations/eye").type == pa.large_list(pa.list_(pa.uint8(), 24))
    assert json.loads(batch.schema.metadata[b"bigdm"])["schema_version"] == shards.SCHEMA_VERSION


def test_the_same_episodes_make_the_same_bytes():
    assert encode([episode(1), episode(2)]) == encode([episode(1), episode(2)])


# --- changes


def contents(opened):
    return [opened.episode(row) for row in range(len(opened.ids))]


@pytest.fixture(scope="module")
def data():
    return encode([episode(1, 3), episode(2, 2)])


@given(st.data())
def test_a_flipped_byte_is_noticed_or_changes_nothing(data, tmp_path_factory, choice):
    position = choice.draw(st.integers(0, len(data) - 1))
    flipped = bytearray(data)
    flipped[position] ^= choice.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.arrow"
    path.write_bytes(flipped)
    try:
        opened = Shard.open(path, verify=True)
    except CorruptShard as told:
        assert str(told)
        return
    for a, b in zip(contents(opened), [episode(1, 3), episode(2, 2)], strict=True):
        same_episode(a, b)


def test_every_bit_of_every_byte_is_guarded(data):
    """The check alone, over the whole file: no change passes."""
    passed = []
    for position in range(len(data)):
        for bit in (0x01, 0x20, 0x80):
            flipped = bytearray(data)
            flipped[position] ^= bit
            try:
                shards.check_shard(flipped, body=True)
                passed.append((position, bit))
            except CorruptShard:
                pass
    assert not passed


@given(st.integers(0, 10_000))
def test_a_cut_file_is_noticed(data, tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "cut.arrow"
    path.write_bytes(data[: cut % len(data)])
    for verify in (False, True):
        with pytest.raises(CorruptShard):
            Shard.open(path, verify)


def test_opening_checks_size_and_footer_and_leaves_the_body_to_verify(tmp_path, data):
    path = tmp_path / "a.arrow"
    whole = "whole Arrow file"
    for wrong, says in (
        (data + b"x" * 8, whole),
        (data[:40] + data[48:], "bytes long"),
        (b"", whole),
        (b"x" * 300, whole),
    ):
        path.write_bytes(wrong)
        with pytest.raises(CorruptShard, match=says):
            Shard.open(path)
    reward = np.float32(episode(2, 2).rewards[1]).tobytes()
    at = data.index(reward)
    path.write_bytes(data[:at] + b"\0\0\0\0" + data[at + 4 :])
    assert Shard.open(path).rewards[-1] == 0
    with pytest.raises(CorruptShard, match="checksum of its body"):
        Shard.open(path, verify=True)


def test_a_missing_file_a_folder_and_a_foreign_arrow_file_are_not_shards(tmp_path):
    with (
        pa.OSFile(str(tmp_path / "foreign.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("x", pa.int64())])) as writer,
    ):
        writer.write_batch(pa.record_batch([pa.array([1])], ["x"]))
    (tmp_path / "folder.arrow").mkdir()
    for name in ("missing", "folder", "foreign"):
        with pytest.raises(CorruptShard):
            Shard.open(tmp_path / f"{name}.arrow")


def test_a_newer_schema_version_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.arrow"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SCHEMA_VERSION", shards.SCHEMA_VERSION + 1)
        path.write_bytes(encode([episode(1)]))
        assert Shard.open(path).ids == [(1, 0, 0)]
    with pytest.raises(
        NewerShard, match=f"schema version {shards.SCHEMA_VERSION + 1}.*update bigdm_ray"
    ):
        Shard.open(path)


def test_the_seal_is_a_crc_of_body_and_footer(data):
    """Recomputed by hand: size, CRC-32 of the bytes before the footer, CRC-32 of the footer with
    that last one blank."""
    start = len(data) - 10 - int.from_bytes(data[-10:-6], "little")
    at = data.index(b"bigdm-seal:", start) + 11
    size, body, footer = (int(data[at + a : at + b], 16) for a, b in ((0, 16), (16, 24), (24, 32)))
    assert size == len(data) and body == zlib.crc32(data[:start])
    assert footer == zlib.crc32(data[start : at + 24] + b"0" * 8 + data[at + 32 :])


# --- shards that are sound, but not to be read here and now


def closed(number):
    def memory_map(*_, **__):
        raise OSError(number, os.strerror(number))

    return memory_map


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_shard_that_cannot_be_opened_now_is_no_corrupt_one(tmp_path, monkeypatch, number):
    path = written(tmp_path, [episode(1)])
    monkeypatch.setattr(pa, "memory_map", closed(number))
    with pytest.raises(ClosedShard) as told:
        Shard.open(path)
    assert str(path) in str(told.value) and os.strerror(number) in str(told.value)
    again = pickle.loads(pickle.dumps(told.value))  # as Ray carries it from an actor
    assert type(again) is ClosedShard and str(again) == str(told.value)
    with pytest.raises(ClosedShard):
        refuse_unknown([tmp_path / "missing.arrow", path])


# --- cost


def test_opening_allocates_nothing_and_drawing_copies_rows_only(tmp_path):
    steps, width = 2000, 500
    big = Episode(
        {"": np.ones((steps + 1, width), np.float32)},
        {"": np.zeros(steps, np.int32)},
        np.ones(steps, np.float32),
        True,
        EpisodeId(0, 0, 0),
        "made-up",
    )
    path = written(
        tmp_path, [big, episode(1).__class__(**{**big.__dict__, "id": EpisodeId(0, 0, 1)})]
    )
    before = pa.total_allocated_bytes()
    opened = Shard.open(path)
    assert opened.nbytes > 8_000_000
    assert pa.total_allocated_bytes() - before < 4096
    leaf = opened.episode(1).observations[""]
    assert leaf.shape == (steps + 1, width) and not leaf.flags.owndata and not leaf.flags.writeable
    assert pa.total_allocated_bytes() - before < 4096


# --- publishing


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file whose disk is full from its first write on."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        self._file.write(bytes(data)[:10])
        full()


@pytest.mark.parametrize("fails", ["write", "fsync", "rename"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_full_disk_leaves_nothing_behind_and_what_was_there_alone(
    tmp_path, monkeypatch, fails, before
):
    path = tmp_path / "a.arrow"
    if before:
        path.write_bytes(before)
    with monkeypatch.context() as patch:
        if fails == "fsync":
            patch.setattr(os, "fsync", full)
        elif fails == "rename":
            patch.setattr(shards.Path, "rename", full)
        else:
            opened = shards.Path.open
            patch.setattr(shards.Path, "open", lambda self, mode: FullFile(opened(self, mode)))
        with pytest.raises(
            RunFailed, match=r"cannot write .*a\.arrow: No space left on device; free some space"
        ):
            publish(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == (["a.arrow"] if before else [])
    if before:
        assert path.read_bytes() == before
    publish(path, b"new")
    assert path.read_bytes() == b"new"


def test_file_and_folder_are_synced_in_the_right_order(tmp_path, monkeypatch):
    """Written, synced, renamed, and then the folder synced: nothing less survives a power cut."""
    happened = []
    fsync, rename = os.fsync, shards.Path.rename
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (
            happened.append("folder" if Path(f"/proc/self/fd/{fd}").is_dir() else "file"),
            fsync(fd),
        ),
    )
    monkeypatch.setattr(
        shards.Path, "rename", lambda self, to: (happened.append("rename"), rename(self, to))[1]
    )
    publish(tmp_path / "a.arrow", b"x")
    assert happened == ["file", "rename", "folder"]
