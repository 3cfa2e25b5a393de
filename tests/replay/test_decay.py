"""Shards that decayed or were forged end in one sentence, at their first use at the latest.

Flips are made in a process of their own, which a signal would end. Every 211th bit is flipped here;
all that a day allows with `FLIP_EVERY=1 python -m pytest tests/replay/test_decay.py`.
"""

import json
import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from making import episode, ids, same_windows

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.replay import Retention, Store, View
from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.rotating import RotatingStore
from bigdm_ray.replay.shard import CorruptShard, Shard, encode
from bigdm_ray.replay.store import verify

EVERY = int(os.environ.get("FLIP_EVERY", "211"))
KINDS = ["vector", "image", "nested"]
VIEW = View(length=3, columns=("returns_to_go",))


def some(kind="vector"):
    return [episode(number, 3 + number, kind) for number in (1, 2, 3)]


def sealed(data):
    """The checksums made right again, as a forger would; where the seal itself is hit, as it is."""
    start = shards._footer_start(data)
    at = bytes(data).find(shards._SEAL, start)
    if at < 0 or bytes(data[at : at + 43]).count(b"\0"):
        return bytes(data)
    data[at + 11 : at + 43] = b"0" * 32
    return shards._sealed(data)


def resumed(path):
    """As a resume does: a writer opens the folder and draws."""
    store = Store(path.parent, Retention("best", 10)).open()
    if store.problems:
        assert path.with_name(f"{path.name}.corrupt").exists() and len(store.problems) == 1
        return store.problems[0]
    store.draw(VIEW, np.random.default_rng(0), 8)
    return "accepted"


def rotated(path):
    """As a run on a dataset larger than memory does: the body is read at the first draw."""
    store = RotatingStore(path.parent, 1).open()
    if store.problems:
        return store.problems[0]
    try:
        store.draw(VIEW, np.random.default_rng(0), 8)
    except RunFailed as error:
        return str(error)
    return "accepted"


def verified(path):
    """As `data verify` does."""
    return "; ".join(verify(path.parent).problems) or "accepted"


def flipped(data, folder, use, forge):
    """What `use` says of a shard of which each EVERYth bit was flipped; or `signal`, `raised`."""
    said, bits = [], range(0, 8 * len(data), EVERY)
    while len(said) < len(bits):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                with os.fdopen(writing, "w") as answers:
                    for bit in bits[len(said) :]:
                        answers.write(json.dumps(_tried(data, bit, folder, use, forge)) + "\n")
                        answers.flush()
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answers:
            said += [json.loads(line) for line in answers]
        _, status = os.waitpid(child, 0)
        if len(said) < len(bits):
            said.append(f"signal {os.WTERMSIG(status)} at bit {bits[len(said)]}")
    return said


def _tried(data, bit, folder, use, forge):
    path = folder / "episodes-0000000.arrow"
    for left in folder.iterdir():
        left.unlink()
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(sealed(changed) if forge else changed)
    except CorruptShard:  # there is no footer to forge
        path.write_bytes(changed)
    try:
        return use(path)
    except UserError as error:
        return str(error)
    except (Exception, RecursionError) as error:  # noqa: BLE001
        return f"raised {type(error).__name__} at bit {bit}: {error}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", [resumed, rotated, verified])
def test_no_flipped_bit_is_accepted(kind, use, tmp_path):
    said = flipped(encode(some(kind)), tmp_path, use, forge=False)
    kinds = Counter(text.split(" ")[0] for text in said)
    assert set(kinds) == {"shard"}, [t for t in said if not t.startswith("shard")][:5]
    assert not [text for text in said if len(text) > 1000 or "\n" in text]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", [resumed, rotated, verified])
def test_a_forged_shard_ends_in_a_sentence_or_is_another_sound_one(kind, use, tmp_path):
    """There is nothing to tell a changed number by; but there is no signal and no traceback."""
    said = flipped(encode(some(kind)), tmp_path, use, forge=True)
    kinds = Counter(text.split(" ")[0] for text in said)
    assert set(kinds) <= {"shard", "accepted"}, [
        t for t in said if not t.startswith(("shard", "accepted"))
    ][:5]


# --- forged on purpose


def forged(change_meta=None, change=None, batches=1):
    """A shard whose metadata or columns another program has written."""
    reader = pa.ipc.open_file(pa.py_buffer(encode(some())))
    table = reader.read_all()
    meta = json.loads(table.schema.metadata[b"bigdm"])
    if change:
        table = change(table)
    if change_meta:
        change_meta(meta)
    table = table.replace_schema_metadata({b"bigdm": json.dumps(meta).encode()})
    sink = pa.BufferOutputStream()
    empty = [pa.RecordBatch.from_pylist([], table.schema)]
    with pa.ipc.new_file(sink, table.schema, metadata={"seal": shards._BLANK.decode()}) as writer:
        for _ in range(batches):
            writer.write_batch((table.combine_chunks().to_batches() or empty)[0])
    return shards._sealed(bytearray(sink.getvalue()))


def column(name, values):
    def change(table):
        return table.set_column(table.schema.get_field_index(name), name, values(table[name]))

    return change


def shape(value):
    return lambda meta: meta["shapes"].update({"observations/": value})


def dtype(value):
    return lambda meta: meta["dtypes"].update({"observations/": value})


def shifted(name):
    """One step goes from the first episode to the second: the column is as long as before."""

    def values(chunks):
        array = chunks.combine_chunks()
        offsets = array.offsets.to_numpy().copy()
        offsets[1] -= 1
        return pa.LargeListArray.from_arrays(pa.array(offsets), array.values)

    return column(name, values)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"batches": 2}, "more than one batch"),
        ({"change": lambda table: table.slice(0, 0)}, "it has no episode"),
        ({"change_meta": shape([2])}, "is large_list<.*not large_list"),
        ({"change_meta": shape("3")}, "has the shape '3'"),
        ({"change_meta": shape([-3])}, r"has the shape \[-3\]"),
        ({"change_meta": shape([2**40, 2**40])}, "cannot be read"),
        ({"change_meta": dtype("float64")}, "is large_list<"),
        ({"change_meta": dtype("O")}, "where numbers are expected"),
        ({"change_meta": dtype("x" * 10_000)}, "cannot be read"),
        ({"change_meta": lambda meta: meta.update(task=7)}, "where a text is expected"),
        ({"change_meta": lambda meta: meta.update(schema_version="1")}, "cannot be read"),
        ({"change_meta": lambda meta: meta.pop("shapes")}, "cannot be read"),
        ({"change_meta": lambda meta: meta.update(shapes=[])}, "cannot be read"),
        ({"change": column("round", lambda c: pa.array([1, None, 2]))}, "has missing values"),
        ({"change": column("round", lambda c: pa.array([1.0, 2.0, 3.0]))}, "is double, not int64"),
        ({"change": column("command", lambda c: pa.array(["{", "{}", "{}"]))}, "NotJson"),
        ({"change": column("command", lambda c: pa.array(['{"a": "b"}'] * 3))}, "a number is exp"),
        ({"change": column("command", lambda c: pa.array(["[" * 100_000] * 3))}, "nested|NotJson"),
        ({"change": shifted("actions/")}, "unequal length"),
        ({"change": shifted("observations/")}, "unequal length"),
        ({"change": shifted("rewards")}, "unequal length"),
    ],
)
def test_a_forged_shard_is_refused_before_its_contents_are_used(how, says, tmp_path):
    path = tmp_path / "a.arrow"
    path.write_bytes(forged(**how))
    with pytest.raises(CorruptShard, match=says) as told:
        Shard.open(path, verify=True)
    assert len(str(told.value)) < 400
    lazily = RotatingStore(tmp_path, 1).open()
    if not lazily.problems:  # of the commands alone
        with pytest.raises(RunFailed, match=says):
            lazily.draw(VIEW, np.random.default_rng(0), 4)
    assert Shard.read(pa.py_buffer(forged()), path).ids == [e.id for e in some()]


# --- when a body is read


def flip_a_reward(path, e):
    data = bytearray(path.read_bytes())
    data[data.index(e.rewards.tobytes()) + 2] ^= 4
    path.write_bytes(data)


def read_bodies(monkeypatch):
    """The sizes of the files that are read whole, from now on."""
    read, check = [], shards.check_shard

    def counting(data, body):
        if body:
            read.append(len(data))
        return check(data, body)

    monkeypatch.setattr(shards, "check_shard", counting)
    return read


def test_what_decays_while_a_dataset_is_drawn_from_is_one_sentence(tmp_path):
    for number in range(4):
        Store(tmp_path).open().add([episode(number, 6)])
    rotten = tmp_path / "episodes-0000002.arrow"
    flip_a_reward(rotten, episode(2, 6))
    store = RotatingStore(tmp_path, 1, turn=1).open()
    assert not store.problems and len(store.table) == 4
    told = []
    for turn in range(8):
        try:
            store.draw(VIEW, np.random.default_rng(0), 4, turn=turn)
        except RunFailed as error:
            told.append(str(error))
    assert len(told) == 2 and set(told) == {told[0]} and "\n" not in told[0]
    assert f"shard {rotten} has decayed: the checksum of its body" in told[0]
    with pytest.raises(RunFailed, match="has decayed"):
        store.episode(2)
    assert rotten.exists()


@pytest.mark.parametrize("flat_bytes", [0, 1 << 20])
def test_beyond_half_of_the_memory_a_body_is_read_at_its_first_draw(
    flat_bytes, tmp_path, monkeypatch
):
    for number in range(4):
        Store(tmp_path).open().add([episode(number, 6)])
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.arrow"))]
    monkeypatch.setattr(shards, "memory_bytes", lambda: 2 * sizes[0] + 2)
    whole = Store(tmp_path, flat_bytes=1 << 20, write=False).open()
    read = read_bodies(monkeypatch)
    store = Store(tmp_path, flat_bytes=0, write=False).open()
    assert read == sizes[:2]
    for seed in range(3):
        windows = store.draw(VIEW, np.random.default_rng(seed), 64)
        same_windows(windows, whole.draw(VIEW, np.random.default_rng(seed), 64))
    assert sorted(read) == sorted(sizes)


def test_a_body_is_read_once_in_a_process_unless_the_file_has_changed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    read = read_bodies(monkeypatch)
    store.add([episode(1)])
    store.draw(VIEW, np.random.default_rng(0), 4)
    assert read == [], "what this process has just written is not read again"
    path = tmp_path / "episodes-0000000.arrow"
    Store(tmp_path).open(), Store(tmp_path).open()
    assert len(read) == 2, "a file that has just changed may change again within the same tick"
    monkeypatch.setattr(shards, "_SETTLED_NS", -1)
    Store(tmp_path).open(), Store(tmp_path).open()
    assert len(read) == 3
    flip_a_reward(path, episode(1))
    os.utime(path, ns=(1, 1))
    assert Store(tmp_path).open().problems and path.with_name(path.name + ".corrupt").exists()


# --- sidecars


def headed(made):
    """The header says another type: as many bytes, other numbers."""
    return made.replace(b"'<f4'", b"'<i4'")


def decayed(made):
    return made[:200] + bytes([made[200] ^ 64]) + made[201:]


@pytest.mark.parametrize(
    "damage",
    [
        headed,
        decayed,
        lambda made: made[:-8],
        lambda made: made[:50],
        lambda made: b"",
        lambda made: made.replace(b"'<f4'", b"'|O'  "),
        lambda made: made.replace(b"(", b"[" * 9, 1),
        lambda made: b"\0" * len(made),
    ],
)
def test_a_sidecar_that_has_decayed_is_made_again(damage, tmp_path):
    Store(tmp_path).add([episode(number, 16) for number in range(4)])
    first = Store(tmp_path, flat_bytes=0).open().draw(VIEW, np.random.default_rng(0), 30)
    (path,) = tmp_path.glob(".*.npy")
    made = path.read_bytes()
    path.write_bytes(damage(made))
    assert path.read_bytes() != made
    again = Store(tmp_path, flat_bytes=0).open()
    same_windows(first, again.draw(VIEW, np.random.default_rng(0), 30))
    assert path.read_bytes() == made


def test_a_sidecar_of_another_shard_is_not_taken(tmp_path):
    """As large, but of other rewards: left by a shard of the same name that was set aside."""
    for name in ("a", "b"):
        Store(tmp_path / name).add([episode(1 if name == "a" else 2, 16)])
        store = Store(tmp_path / name, flat_bytes=0).open()
        mine = store.draw(VIEW, np.random.default_rng(0), 30)
    (path,) = (tmp_path / "a").glob(".*.npy")
    path.rename(tmp_path / "b" / path.name)
    store = Store(tmp_path / "b", flat_bytes=0).open()
    assert ids(store.table) == [(2, 0, 0)]
    same_windows(mine, store.draw(VIEW, np.random.default_rng(0), 30))
