"""Arguments of an environment in a task's name:
`gymnasium:LunarLander-v3?gravity=-3&enable_wind=true`.

Values are typed by the constructor: by its annotation, else by its default or that of the
registration; where neither tells, they are JSON, or text. `&`, `%`, `#`, `?` and spaces inside a
value are written as in an address (`%26`). `max_episode_steps` is gymnasium's own argument.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from bigdm_ray.errors import UserError, quote_value, suggest_names

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

LIMIT = "max_episode_steps"
RENDER = "render_mode"
LONGEST = 1000
"""Characters of a name that a file may tell, at most."""

_SAFE = "[]{}\"',:=<>|+*!()@$;~^/\\"
_NONE = ("none", "None", "null")
_LITERALS: dict[str, Any] = dict.fromkeys(_NONE) | {"True": True, "False": False}
_PLAIN = re.compile(r"[\w -]*")
_PLACES = {"file", "files", "path", "paths", "module", "entry", "import", "xml", "url", "dir"}
"""Words of names of arguments whose text leads to a file or to code."""
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_NAMED = {kind.__name__: kind for kind in _WORDS}
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """A task's name without its arguments, and these as text. Raises UserError."""
    base, asks, query = name.partition("?")
    found: dict[str, str] = {}
    for part in query.split("&") if asks else ():
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(
                f"task {name!r}: {part!r} is not understood; arguments are KEY=VALUE, joined by &"
            )
        if key in found:
            raise UserError(f"task {name!r} gives {key!r} twice; leave one of them out")
        found[key] = unquote(value)
    return base, found


def join_name(base: str, arguments: Mapping[str, Any]) -> str:
    """The name of a task with these arguments, which `split_name` and `convert_arguments` take
    apart again."""
    parts = [f"{key}={quote(_text(value), safe=_SAFE)}" for key, value in sorted(arguments.items())]
    return f"{base}?{'&'.join(parts)}" if parts else base


def _text(value: Any) -> str:
    if isinstance(value, str) and _read(value) == value and not value.startswith('"'):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _read(text: str) -> Any:
    if text in _LITERALS:
        return _LITERALS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def plain(arguments: Mapping[str, Any]) -> bool:
    """Whether a file may tell these: JSON of numbers, truth values and words that name no place."""
    try:
        short = len(join_name("", arguments)) <= LONGEST
    except (TypeError, ValueError, RecursionError):
        return False
    return short and all(
        key.isidentifier() and _is_plain(value) and not (_PLACES & {*key.split("_")} and value)
        for key, value in arguments.items()
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _PLAIN.fullmatch(value) is not None
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(inner) for key, inner in value.items())
    return isinstance(value, bool | int | type(None)) or (
        isinstance(value, float) and not math.isnan(value)
    )


def convert_arguments(given: Mapping[str, str], env_id: str) -> dict[str, Any]:
    """What `gymnasium.make` is given for these texts.

    Raises UserError for one that is unknown or of a wrong type.
    """
    known, more = parameters(env_id)
    out: dict[str, Any] = {}
    for key, text in given.items():
        if key == RENDER:
            raise UserError(f"{env_id}: {RENDER!r} follows from what is done; leave it out")
        if key == LIMIT:
            out[key] = _limit(text, env_id)
            continue
        if key not in known and not more:
            raise unknown_argument(key, env_id)
        kind, default, empty = known.get(key, (None, None, True))
        out[key] = _typed(key, text, kind, default, empty, env_id)
    return out


def unknown_argument(key: str, env_id: str) -> UserError:
    """The sentence for an argument that an environment does not take."""
    names = [*_named(env_id), LIMIT]
    return UserError(f"{env_id} takes no argument {key!r}{suggest_names(key, names)}")


def unexpected_argument(
    error: Exception, given: Mapping[str, str], env_id: str
) -> UserError | None:
    """`unknown_argument`, where that is why the constructor raised."""
    found = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    return unknown_argument(found[1], env_id) if found and found[1] in given else None


def _limit(text: str, env_id: str) -> int:
    value = _read(text)
    if value is None:
        return -1  # gymnasium's word for no limit
    if type(value) is not int or value < 1:
        raise UserError(
            f"{env_id}: {LIMIT} is {quote_value(text)}, but an integer from 1 up, or none, is"
            " expected"
        )
    return value


def _typed(key: str, text: str, kind: Any, default: Any, empty: bool, env_id: str) -> Any:
    value = _read(text)
    if value is None and (empty or kind is None):
        return None
    if kind is None:
        return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str:
        return value if isinstance(value, str) else text
    if kind is bool and (isinstance(value, bool) or value in (0, 1)):
        return bool(value)
    if kind is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is float and number:  # a whole one where the default is: it may count something
        return value if type(default) is type(value) is int else float(value)
    expected = _WORDS[kind]
    if kind is float and type(default) is int:
        expected = f"an integer, as its default {default}, or another number"
    raise UserError(f"{env_id}: {key} is {quote_value(text)}, but {expected} is expected")


@functools.lru_cache(maxsize=64)
def parameters(env_id: str) -> tuple[dict[str, tuple[Any, Any, bool]], bool]:
    """What the constructor takes by name: type (or None), default, whether None may stand there;
    and whether it takes more.

    Empty where the id is not registered here, or its constructor cannot be imported.
    """
    import gymnasium

    spec = gymnasium.registry.get(env_id)
    if spec is None or (made_by := maker(spec)) is None:
        return {}, True
    found: dict[str, tuple[Any, Any, bool]] = {}
    more = False
    for one in _signature(made_by):
        if one.kind is one.VAR_KEYWORD:
            more = True
        elif one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD):
            default = spec.kwargs.get(one.name, None if one.default is one.empty else one.default)
            found[one.name] = _kind(one.annotation, default)
    return found, more


def maker(spec: EnvSpec) -> Any:
    """What makes a registered environment; None where it cannot be imported here."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    point = spec.entry_point
    try:
        return load_env_creator(point) if isinstance(point, str) else point
    except (ImportError, AttributeError, gymnasium.error.Error):
        return None


def _signature(made_by: Any) -> list[inspect.Parameter]:
    for evaluated in (True, False):
        try:
            return list(inspect.signature(made_by, eval_str=evaluated).parameters.values())
        except (NameError, AttributeError, SyntaxError, TypeError, ValueError):
            continue
    return []


def _kind(annotation: Any, default: Any) -> tuple[Any, Any, bool]:
    """(bool, int, float or str, or None where that is open; the default; whether it may be
    None)."""
    options = list(
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else [annotation]
    )
    if isinstance(annotation, str):
        options = [_NAMED.get(word.strip(), word.strip()) for word in annotation.split("|")]
    empty = default is None or type(None) in options or "None" in options
    kinds = [one for one in options if one in _WORDS]
    named = [one for one in options if one not in (type(None), "None", inspect.Parameter.empty)]
    if len(named) == len(kinds) == 1:
        return kinds[0], default, empty
    if named:
        return None, default, empty
    kind = type(default) if type(default) in _WORDS else None
    return (float if kind is int and not isinstance(default, bool) else kind), default, empty


def _named(env_id: str) -> list[str]:
    """Arguments of the constructor and, where it passes more on, of those above it."""
    import gymnasium

    spec = gymnasium.registry.get(env_id)
    made_by = None if spec is None else maker(spec)
    classes = made_by.__mro__[:-1] if isinstance(made_by, type) else [made_by] if made_by else []
    own = [
        one.name
        for kind in classes
        if not isinstance(kind, type) or "__init__" in vars(kind)
        for one in _signature(kind)
        if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return sorted({*own} - {RENDER})
