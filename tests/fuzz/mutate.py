"""Mutations of files: bits and blocks of any file, values of JSON wherever it lies, and what is
inside a container.

Every mutation is a function of the file's bytes and a random stream, so that seed and number of a
mutant make it again.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bigdm_ray.replay import shard

Chance = np.random.Generator
NUMBERS = (0, 1, -1, 127, 255, 2**16, 2**20, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
VICTIM = "victim.txt"
"""A file beside the sample that no reader may touch, whatever name a file tells it."""


def mutated(path: Path, chance: Chance, forged: bool = False) -> str:
    """Change a file in place, and with `forged` its checksums too; what was done to it, in
    words."""
    data = path.read_bytes()
    inner = of_seal if forged else INNER.get("".join(path.suffixes[-1:]))
    if inner is not None and chance.random() < 0.6:
        try:
            data, what = inner(data, chance)
        except (ValueError, KeyError, IndexError, struct.error) as error:
            data, what = of_bytes(data, chance)
            what += f" (nothing to change inside: {type(error).__name__})"
    else:
        data, what = of_bytes(data, chance)
    path.write_bytes(data)
    return f"{path.name}: {what}"


# --- bytes


def of_bytes(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """One change of bits, bytes, numbers or blocks."""
    out = bytearray(data)
    how = BYTES[int(chance.integers(len(BYTES)))] if data else _extend
    what = how(out, chance)
    return bytes(out), what


def _at(out: bytearray, chance: Chance) -> int:
    """A place: anywhere, or near either end, where headers and footers are."""
    near = min(len(out), 512)
    spot = chance.integers(4)
    if spot == 0:
        return int(chance.integers(near))
    if spot == 1:
        return len(out) - 1 - int(chance.integers(near))
    return int(chance.integers(len(out)))


def _block(out: bytearray, chance: Chance) -> tuple[int, int]:
    size = int(chance.integers(1, max(2, min(len(out), 4096))))
    start = int(chance.integers(max(1, len(out) - size)))
    return start, start + size


def _flip(out: bytearray, chance: Chance) -> str:
    at, bit = _at(out, chance), int(chance.integers(8))
    out[at] ^= 1 << bit
    return f"bit {bit} of byte {at} flipped"


def _flips(out: bytearray, chance: Chance) -> str:
    places = [_at(out, chance) for _ in range(int(chance.integers(2, 17)))]
    for at in places:
        out[at] ^= 1 << int(chance.integers(8))
    return f"bits of bytes {places} flipped"


def _set(out: bytearray, chance: Chance) -> str:
    at, value = _at(out, chance), int(chance.choice([0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22]))
    out[at] = value
    return f"byte {at} set to {value}"


def _number(out: bytearray, chance: Chance) -> str:
    size = int(chance.choice([2, 4, 8]))
    at, value = _at(out, chance), NUMBERS[int(chance.integers(len(NUMBERS)))]
    raw = (value % (1 << 8 * size)).to_bytes(size, "little")
    out[at : at + size] = raw[: len(out) - at]
    return f"number of {size} bytes at {at} set to {value}"


def _cut(out: bytearray, chance: Chance) -> str:
    size = int(chance.integers(len(out)))
    del out[size:]
    return f"cut to {size} bytes"


def _extend(out: bytearray, chance: Chance) -> str:
    size = int(chance.integers(1, 64))
    out += bytes(size) if chance.random() < 0.5 else chance.bytes(size)
    return f"{size} bytes longer"


def _double(out: bytearray, chance: Chance) -> str:
    start, end = _block(out, chance)
    out[end:end] = out[start:end]
    return f"bytes {start} to {end} doubled"


def _delete(out: bytearray, chance: Chance) -> str:
    start, end = _block(out, chance)
    del out[start:end]
    return f"bytes {start} to {end} deleted"


def _zero(out: bytearray, chance: Chance) -> str:
    start, end = _block(out, chance)
    out[start:end] = bytes(len(out[start:end]))
    return f"bytes {start} to {end} zeroed"


def _swap(out: bytearray, chance: Chance) -> str:
    size = int(chance.integers(1, max(2, min(len(out) // 2, 512))))
    one, other = (int(chance.integers(max(1, len(out) - size))) for _ in range(2))
    held = bytes(out[one : one + size])
    out[one : one + size] = out[other : other + size]
    out[other : other + size] = held
    return f"{size} bytes at {one} and {other} swapped"


BYTES: list[Callable[[bytearray, Chance], str]] = [
    _flip,
    _flip,
    _flip,
    _flips,
    _set,
    _set,
    _number,
    _number,
    _cut,
    _extend,
    _double,
    _delete,
    _zero,
    _swap,
]


# --- JSON


RAW = {
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@deeper object@": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "@400 digits@": "7" * 400,
    "@10,000 digits@": "7" * 10_000,
    "@beyond 64 bits@": "9223372036854775808",
    "@NaN@": "NaN",
    "@Infinity@": "-Infinity",
    "@overflow@": "1e999",
}
"""What no value of Python gives, by the text that stands for it."""
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**62,
    1e308,
    -0.5,
    "",
    "x" * 100_000,
    "1",
    "nan",
    "../../" + VICTIM,
    "../" + VICTIM,
    "/",
    "a\0b",
    "a\nb\x1b[2J",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    [1, "a", None],
    {"": None},
    list(range(1000)),
    *RAW,
]


def of_json(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """One value of a JSON document changed. Raises ValueError for what is none."""
    root = [json.loads(data)]
    what = _changed(root, chance)
    return _text(root[0]).encode(errors="surrogatepass"), what


def _text(value: Any) -> str:
    text = json.dumps(value)
    for token, raw in RAW.items():
        text = text.replace(f'"{token}"', raw)
    return text


def _places(parent: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document, parents before what they hold."""
    found, level = [], [parent]
    while level:
        here = level.pop()
        for key in here if isinstance(here, dict) else range(len(here)):
            found.append((here, key))
            if isinstance(here[key], dict | list):
                level.append(here[key])
    return found


def _changed(root: list[Any], chance: Chance) -> str:
    places = _places(root)
    few = places[: max(1, min(len(places), 60))]
    among = few if chance.random() < 0.7 else places  # a long list of numbers is not all there is
    parent, key = among[int(chance.integers(len(among)))]
    before, how = parent[key], int(chance.integers(10))
    shown = f"{key!r}"
    if how == 0 and parent is not root:
        del parent[key]
        return f"{shown} removed"
    if how == 1 and isinstance(before, dict):
        before[str(chance.choice(["extra", "", "schema_version", "a" * 5000]))] = 1
        return f"{shown} has one key more"
    if how == 2 and isinstance(parent, dict):
        parent["../" + VICTIM] = parent.pop(key)
        return f"{shown} renamed"
    if how == 3 and isinstance(before, list) and before:
        before.append(before[int(chance.integers(len(before)))])
        return f"{shown} has one of its values twice"
    if how == 4:
        other, name = places[int(chance.integers(len(places)))]
        parent[key] = json.loads(json.dumps(other[name]))
        return f"{shown} is what {name!r} is"
    if how == 5 and type(before) in (int, float):
        parent[key] = chance.choice([-before, before + 1, before * 1000, str(before), before + 0.5])
        parent[key] = parent[key].item() if hasattr(parent[key], "item") else parent[key]
        return f"{shown} is {parent[key]!r}"
    if how == 6:
        parent[key] = [before]
        return f"{shown} is a list of itself"
    value = VALUES[int(chance.integers(len(VALUES)))]
    parent[key] = value
    return f"{shown} is {str(value)[:40]!r}"


def of_lines(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """One line of a file of JSON lines changed, doubled or cut."""
    lines = data.splitlines()
    at = int(chance.integers(len(lines)))
    how = int(chance.integers(8))
    if how == 0:
        lines[at] = lines[at][: int(chance.integers(len(lines[at])))]
        return b"\n".join(lines) + b"\n", f"line {at} cut"
    if how == 1:
        lines[-1] = lines[-1][: int(chance.integers(len(lines[-1])))]
        return b"\n".join(lines), "the last line torn"
    if how == 2:
        lines.insert(at, lines[int(chance.integers(len(lines)))])
        return b"\n".join(lines) + b"\n", f"a line more at {at}"
    lines[at], what = of_json(lines[at], chance)
    return b"\n".join(lines) + b"\n", f"line {at}: {what}"


# --- inside of containers


def of_safetensors(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """A value of the header, whose length is put right again."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    meta = header.get("__metadata__", {})
    told = [name for name, text in meta.items() if text[:1] in "[{"]
    if told and chance.random() < 0.5:
        name = told[int(chance.integers(len(told)))]
        inner, what = of_json(meta[name].encode(), chance)
        meta[name] = inner.decode(errors="replace")
        what = f"in its metadata {name!r}: {what}"
        new = json.dumps(header).encode()
    else:
        new, what = of_json(json.dumps(header).encode(), chance)
    return len(new).to_bytes(8, "little") + new + data[8 + size :], f"header: {what}"


def of_gzip(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """What is packed, packed again, so that its checksum is right."""
    inner, what = of_bytes(gzip.decompress(data), chance)
    return gzip.compress(inner, 1, mtime=0), f"unpacked: {what}"


def of_parquet(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """A column dropped, renamed, of another type or with nulls; or a value of the JSON in the
    metadata."""
    table = pq.read_table(io.BytesIO(data))
    meta = table.schema.metadata or {}
    told = [key for key, text in meta.items() if text[:1] in (b"{", b"[")]
    if told and chance.random() < 0.4:
        key = told[int(chance.integers(len(told)))]
        inner, what = of_json(meta[key], chance)
        table = table.replace_schema_metadata(dict(meta) | {key: inner})
        what = f"metadata {key.decode()!r}: {what}"
    else:
        table, what = _column(table, chance)
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=4)
    return out.getvalue(), what


def _column(table: Any, chance: Chance) -> tuple[Any, str]:
    import pyarrow as pa

    at = int(chance.integers(table.num_columns))
    name, how = table.column_names[at], int(chance.integers(6))
    values = table.column(at).to_pylist()
    if how == 0:
        return table.remove_column(at), f"column {name!r} dropped"
    if how == 1:
        names = [*table.column_names[:at], "other", *table.column_names[at + 1 :]]
        return table.rename_columns(names), f"column {name!r} renamed"
    if how == 2:
        values[int(chance.integers(len(values)))] = None
        new = pa.array(values, table.column(at).type)
    elif how == 3:
        new = pa.array([str(value)[:20] for value in values])
    elif how == 4:
        new = pa.nulls(len(values))
    else:
        k = int(chance.integers(len(values)))
        if isinstance(values[k], list):
            values[k] = values[k][:-1] if chance.random() < 0.5 else []
        new = pa.array(values, table.column(at).type)
    return table.set_column(at, name, new), f"column {name!r} changed ({how})"


def of_hdf5(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """A dataset or attribute dropped, of another type or of another shape."""
    import h5py

    held = io.BytesIO(data)
    with h5py.File(held, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(chance.integers(len(names)))]
        how = int(chance.integers(7))
        if how == 0 or not isinstance(file[name], h5py.Dataset):
            del file[name]
            what = f"{name!r} dropped"
        else:
            values = file[name][()]
            del file[name]
            if how == 1:
                file.create_group(name)
            elif how == 2:
                file[name] = np.array([b"text"] * len(np.atleast_1d(values)))
            elif how == 3:
                file[name] = np.atleast_1d(values)[:-1]
            elif how == 4:
                file[name] = np.atleast_1d(values)[None]
            elif how == 5:
                file[name] = h5py.SoftLink("/" + name)
            else:
                file[name] = h5py.ExternalLink("../" + VICTIM, "/" + name)
            what = f"{name!r} replaced ({how})"
    return held.getvalue(), what


def of_seal(data: bytes, chance: Chance) -> tuple[bytes, str]:
    """A shard changed and sealed again, as a forger would; ValueError where no seal is left."""
    inner, what = of_bytes(data, chance)
    out = bytearray(inner)
    try:
        start = shard._footer_start(out)
    except shard.CorruptShard as error:
        raise ValueError(str(error)) from None
    at = out.index(shard._SEAL, start)
    out[at + 11 : at + 43] = b"0" * 32
    return shard._sealed(out), f"sealed again: {what}"


INNER: dict[str, Callable[[bytes, Chance], tuple[bytes, str]]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".safetensors": of_safetensors,
    ".gz": of_gzip,
    ".parquet": of_parquet,
    ".hdf5": of_hdf5,
}
