"""Values of gymnasium spaces, one or n of them, as arrays `[n, ...]` by path, and back.

Without `n` a value is what one environment gives and takes; with it, what gymnasium's vector
environments do: a Dict or Tuple of arrays whose first axis is the row, of texts a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.values import (
    Arrays,
    SpaceMismatch,
    child_path,
    kind,
    leaf_phrase,
    reader,
    unflatten,
)
from bigdm_ray.envs.vector import stack

if TYPE_CHECKING:
    import gymnasium


def rows_reader(space: gymnasium.Space[Any], n: int | None) -> Callable[[Any], Arrays]:
    """A function from one value of `space`, or from n of them, to arrays `[n or 1, ...]` by path.

    It raises SpaceMismatch, and so it does for a number that is not finite.
    """
    read = reader(space)

    def rows(value: Any) -> Arrays:
        out = stack([read(one) for one in ([value] if n is None else _rows(space, value, n, ""))])
        for path, values in out.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = values[~np.isfinite(values)][0]
                raise SpaceMismatch(
                    f"{leaf_phrase(path)} has an element {bad}, but finite numbers are expected"
                )
        return out

    return rows


def _rows(space: gymnasium.Space[Any], value: Any, n: int, path: str) -> list[Any]:
    """n values of a space, each by itself.

    Raises SpaceMismatch where there are not n of each leaf.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts: dict[Any, list[Any]] = {}
        for name, child in items:
            where = child_path(path, name)
            try:
                part = value[name]
            except (LookupError, TypeError):
                raise SpaceMismatch(
                    f"{leaf_phrase(where)} is missing in what is of type {kind(value)}"
                ) from None
            parts[name] = _rows(child, part, n, where)
        return [{name: rows[k] for name, rows in parts.items()} for k in range(n)]
    try:
        found = len(value)
    except TypeError:
        raise SpaceMismatch(
            f"{leaf_phrase(path)} is one {kind(value)}, but {n} rows of them are expected"
        ) from None
    if found != n or isinstance(value, str | dict):
        raise SpaceMismatch(f"{leaf_phrase(path)} has {found} rows, but {n} are expected")
    return list(value)


def values_of(space: gymnasium.Space[Any], arrays: Arrays, n: int | None) -> Any:
    """The inverse for actions `[n or 1, ...]`: one that `env.step` takes, or n of them.

    Elements of a Box are clipped to its bounds.
    """
    from gymnasium.vector.utils import concatenate, create_empty_array

    made = [
        _bounded(space, unflatten(space, {path: values[k] for path, values in arrays.items()}))
        for k in range(n or 1)
    ]
    return made[0] if n is None else concatenate(space, made, create_empty_array(space, n))


def _bounded(space: gymnasium.Space[Any], value: Any) -> Any:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {name: _bounded(child, value[name]) for name, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, value, strict=True)
        return tuple(_bounded(child, part) for child, part in pairs)
    return np.clip(value, space.low, space.high) if isinstance(space, spaces.Box) else value
