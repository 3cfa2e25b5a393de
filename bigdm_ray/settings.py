"""Settings as frozen dataclasses: fields that carry their help and range, checked when made, read
from and written to JSON.

`setting(default, help)` declares a field; `check_settings` raises UserError with the flag's name,
the value, what was expected. `to_json` and `from_json` are each other's inverse; unknown keys are
refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from bigdm_ray.errors import UserError, near_names, quote_value, suggest_names

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    empty: bool = False,
) -> Any:
    """A dataclass field with its help text and the range of its values: `above` is a bound that is
    itself out; a tuple may be `empty` where its default is."""
    ranged = {
        "low": low,
        "high": high,
        "above": above,
        "choices": choices,
        "empty": empty or default == (),
    }
    return dataclasses.field(default=default, metadata={"help": help, **ranged})


def flag(path: str) -> str:
    """`algorithm.learning_rate` as it is typed: `--algorithm.learning-rate`."""
    return "--" + path.replace("_", "-")


def check_settings(value: Any, prefix: str) -> None:
    """Raise UserError for the first field of a settings dataclass (nested ones too) that is out of
    range, or empty where it may not be."""
    for field in dataclasses.fields(value):
        here = getattr(value, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(here):
            check_settings(here, f"{path}.")
        elif "help" in field.metadata:
            if here == () and not field.metadata["empty"]:
                raise UserError(f"{flag(path)} is empty, but at least one value is expected")
            _check_field(here, path, field.metadata)


def _check_field(value: Any, path: str, meta: typing.Mapping[str, Any]) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_field(item, path, meta)
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag(path)} is {value}, but a finite number is expected")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, above, high = meta["low"], meta["above"], meta["high"]
        wanted = [
            f"at least {low:g}" if low is not None and value < low else "",
            f"more than {above:g}" if above is not None and value <= above else "",
            f"at most {high:g}" if high is not None and value > high else "",
        ]
        if any(wanted):
            raise UserError(f"{flag(path)} is {value}, but {''.join(wanted)} is expected")
    if meta["choices"] and value not in meta["choices"]:
        near = suggest_names(str(value), near_names(str(value), list(meta["choices"])))
        raise UserError(
            f"{flag(path)} is {quote_value(value)}, but one of {', '.join(meta['choices'])} "
            f"is expected{near}"
        )


def to_json(value: Any) -> Any:
    """A settings dataclass as JSON; tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def from_json(kind: type[T], data: dict[str, Any], prefix: str = "") -> T:
    """The settings that `to_json` wrote. Raises UserError for unknown keys and wrong types."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(typing.cast(Any, kind))}
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise UserError(
                f"unknown setting {prefix}{quote_value(name)}{suggest_names(name, sorted(known))}"
            )
        hint = hints[name]
        nested = (
            isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, dict)
        )
        given[name] = (
            from_json(hint, value, f"{prefix}{name}.")
            if nested
            else convert(hint, value, f"{prefix}{name}")
        )
    return kind(**given)


def convert(hint: Any, value: Any, path: str) -> Any:
    """`value` (JSON, or text from a command line) as the type `hint`.

    Raises UserError naming the flag.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin in (typing.Union, types.UnionType):
            if value is None or value == "none":
                return None
            return convert(next(a for a in arguments if a is not type(None)), value, path)
        if origin is tuple:
            items = [item for item in value.split(",") if item] if isinstance(value, str) else value
            return tuple(convert(arguments[0], item, path) for item in items)
        if hint is bool:
            text = str(value).lower()
            if text not in ("true", "false", "1", "0", "yes", "no"):
                raise ValueError
            return text in ("true", "1", "yes")
        if hint is int:
            number = float(value)
            if isinstance(value, bool) or number != int(number) or abs(number) >= 2**63:
                raise ValueError
            return int(number)
        if hint is float:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if origin is dict:
            return {name: convert(arguments[1], item, path) for name, item in value.items()}
        if hint is str or origin is typing.Literal:
            if not isinstance(value, str | int | float):
                raise ValueError
            return str(value)
    except (ValueError, TypeError, AttributeError, OverflowError):
        expected = type_name(hint)
        raise UserError(
            f"{flag(path)} is {quote_value(value)}, but {expected} is expected"
        ) from None
    raise UserError(f"{flag(path)} cannot be set from text")


def type_name(hint: Any) -> str:
    """A type in words, for messages and help."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return type_name(arguments[0]) + " or 'none'"
    if origin is tuple:
        return f"{type_name(arguments[0])}s joined by commas".replace("an ", "").replace("a ", "")
    return {bool: "true or false", int: "an integer", float: "a number", str: "text"}.get(
        hint, str(hint)
    )
