"""JSON that anyone may have written: a value of the expected type, or a short sentence; and what
sentences quote."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigdm_ray.errors import LONGEST, QUOTED, RunFailed, UserError, quote_value
from bigdm_ray.jsons import DEEPEST, NotJson, read_json


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b'"\\ud800"', "not text in UTF-8"),
        (deep(100_000), "nested deeper"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (deep(DEEPEST + 2), "nested deeper"),
        (b"[" + b"7" * 10_000 + b"]", "10,000 digits"),
        (b"[" + b"7" * 400 + b"]", "400 digits"),
        (b"[9223372036854775808]", "9223372036854775808"),
        (b"[-9223372036854775809]", "-9223372036854775809"),
    ],
    ids=lambda value: str(len(value)),
)
def test_what_is_no_json_is_a_short_sentence(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(data)
    for source in (data, tmp_path / "file.json"):
        with pytest.raises(NotJson) as caught:
            read_json(source, object)
        assert told in str(caught.value) and len(str(caught.value)) < 200
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"[1e999]"])
def test_numbers_that_are_not_finite_are_refused_where_it_is_asked(data: bytes) -> None:
    read_json(data, object)
    with pytest.raises(NotJson, match="a finite number is expected"):
        read_json(data, object, finite=True)


def test_the_type_and_the_size_that_are_expected_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotJson, match="an object is expected where it has a list"):
        read_json(b"[]")
    with pytest.raises(NotJson, match="a list is expected where it has null"):
        read_json("null", list)
    (tmp_path / "large.json").write_text("[" + " " * 100 + "]")
    for source in (tmp_path / "large.json", "[" + " " * 100 + "]"):
        with pytest.raises(NotJson, match="larger than the 99 bytes"):
            read_json(source, list, largest=99)
    with pytest.raises(OSError, match="No such file"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -1, 2**63 - 1, -(2**63), 0.5, None, True, "\u00e9\U0001f600"]},
        {"\u00e9": {"b": [[[]]]}},
        {str(n): [{"a": n}] for n in range(200)},
    ],
)
def test_what_json_holds_is_read_back(value: dict[str, Any], tmp_path: Path) -> None:
    for plain in (True, False):
        text = json.dumps(value, ensure_ascii=plain)
        (tmp_path / "file.json").write_text(text)
        assert read_json(text) == read_json(text.encode()) == read_json(tmp_path / "file.json")
        assert read_json(text) == value
    whole = deep(DEEPEST + 1).decode()
    assert json.dumps(read_json(whole, list)) == whole


@pytest.mark.parametrize("kind", [UserError, RunFailed])
def test_no_message_is_longer_than_a_screen(kind: type[UserError]) -> None:
    error = kind(f"begin {'x' * 100_000} is wrong; do this")
    assert len(str(error)) == LONGEST
    assert str(error).startswith("begin xxx") and str(error).endswith("is wrong; do this")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as Ray hands it on
    assert str(kind("as it is")) == "as it is"
    assert str(kind("\u00fc\n\x1b[2J\udcff\0" + "\x1b" * 50_000)).isprintable()
    assert len(str(kind("\x1b" * 50_000))) == LONGEST


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text", "'text'"),
        (7, "7"),
        ([1, "a"], "[1, 'a']"),
        ({"a": None}, "{'a': None}"),
        ([10**5000], "a value (list) that is too large to be shown"),
    ],
    ids=["text", "number", "list", "dict", "huge"],
)
def test_what_a_message_quotes(value: object, shown: str) -> None:
    assert quote_value(value) == shown


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, ["y" * 1000] * 1000, {str(n): "z" * 99 for n in range(99)}, np.arange(10**6)],
    ids=["text", "list", "dict", "array"],
)
def test_what_a_message_quotes_is_cut(value: object) -> None:
    assert len(quote_value(value)) <= QUOTED and quote_value(value).isprintable()
