"""JSON that others wrote: one way to read it, which ends in a value of the expected type or in a
sentence.

Whoever wrote a file or a message may have written anything: lists in lists, 100,000 deep, numbers
of 10,000 digits, bytes that are no text. Python's own reader meets these with errors of four kinds,
or hands on values that raise later, far from the file. `read_json` raises `NotJson` alone, and what
it returns can be walked, printed and stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bigdm_ray.errors import quote_value

LARGEST = 1 << 24
"""Bytes of a JSON file, at most, where its reader does not say another bound."""
DEEPEST = 64
"""Lists and objects within each other, at most."""
_WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


class NotJson(ValueError):
    """What was read is not the JSON that was expected. The text says why, in a few words."""


def read_json(
    source: Path | bytes | str, kind: type = dict, *, finite: bool = False, largest: int = LARGEST
) -> Any:
    """The JSON value of type `kind` in a file, or in bytes or text; `object` takes any.

    With `finite`, NaN and infinities are refused too. Raises NotJson for anything else than such a
    value: what is no JSON or no UTF-8, nested deeper than DEEPEST, longer than `largest` bytes, or
    holds integers beyond 64 bits with sign, or text that no file can hold. Raises OSError for a
    file that cannot be read.
    """
    try:
        data = _bytes(source, largest) if isinstance(source, Path) else source
        if len(data) > largest:
            raise NotJson(f"it is larger than the {largest:,} bytes that are expected at most")
        text = data if isinstance(data, str) else data.decode()
        value = (_FINITE if finite else _ANY).decode(text)
        if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
            raise RecursionError
        if "\\u" in text or not (text.isascii() or isinstance(data, bytes)):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise NotJson(f"its values are nested deeper than {DEEPEST}") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise NotJson(f"it is not text in UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise NotJson(str(error)) from None
    if not isinstance(value, kind):
        raise NotJson(f"{_word(kind)} is expected where it has {_word(type(value))}")
    return value


def real(value: Any, what: str, finite: bool = True) -> float:
    """A number of JSON as float.

    Raises NotJson for a text, true, null, and (unless told) what is not finite.
    """
    if type(value) not in (int, float) or (finite and not math.isfinite(value)):
        raise NotJson(f"{what} is {quote_value(value)}, but a number is expected")
    return float(value)


def whole_number(value: Any, name: str) -> int:
    """A whole number from 0 up, of which a file says `name`. Raises ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError(f"its {name} is not a whole number from 0 up")
    return value


def _bytes(path: Path, largest: int) -> bytes:
    with path.open("rb") as file:
        return file.read(largest + 1)


def _word(kind: type) -> str:
    return _WORDS.get(kind, kind.__name__)


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise NotJson(f"it has an integer of {len(digits):,} digits, more than 64 bits hold")
    if not -(2**63) <= (number := int(digits)) < 2**63:
        raise NotJson(f"it has the integer {number}, more than 64 bits hold")
    return number


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise NotJson(f"a finite number is expected where it has {digits[:40]}")
    return number


_ANY = json.JSONDecoder(parse_int=_whole)
_FINITE = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def _depth(value: Any) -> int:
    """How many lists and objects stand within each other, counted level by level."""
    level, depth = [value], 0
    while level := [child for parent in level for child in _children(parent)]:
        depth += 1
    return depth


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
