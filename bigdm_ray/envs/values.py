"""Values of gymnasium spaces as arrays by path, and back; what comes is held against its space.

`reader(space)` makes the function that takes values apart, once, so that a step pays for little
more than the shapes and types that it compares. A misfit raises `SpaceMismatch`, whose text is one
clause with the leaf, what came and what was expected.

What loses nothing is taken: truth values and whole numbers where floats are expected, any float for
another, whole numbers of any width that the type holds, sequences and 0-d arrays. Refused are other
shapes, floats where whole numbers are expected (0.5 of a uint8 picture would be stored as 0), whole
numbers that the type or the choices do not have, text of more bytes than its space may take, and
what is no number. Bounds of a Box are not held against values of its type: many environments
overstep them a little, and nothing is lost by it. What is not finite is found in all rows at once
(`Step.is_sound`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.signature import SpaceMismatch as SpaceMismatch
from bigdm_ray.envs.signature import channels_first, is_grid, leaf_dtype
from bigdm_ray.envs.signature import leaf_phrase as leaf_phrase

if TYPE_CHECKING:
    import gymnasium

Arrays = dict[str, np.ndarray]

WHOLE, REAL, TRUTH = (int, np.integer), (float, int), (bool, np.bool_)
"""Scalars that need no closer look."""


def child_path(path: str, name: object) -> str:
    """The path of a child."""
    return f"{path}/{name}" if path else str(name)


def reader(space: gymnasium.Space[Any], path: str = "") -> Callable[[Any], Arrays]:
    """A function from a value of `space` to arrays by path, shaped and typed as `leaves(space)`.

    It raises SpaceMismatch.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _parts(space, path)
    read = (
        _box(space, path)
        if isinstance(space, spaces.Box)
        else _discrete(space, path)
        if isinstance(space, spaces.Discrete)
        else _text(space, path)
        if isinstance(space, spaces.Text)
        else _picks(space, path)
    )
    return lambda value: {path: read(value)}


def flatten(space: gymnasium.Space[Any], value: Any, path: str = "") -> Arrays:
    """One value of a gymnasium space as arrays by path.

    Raises SpaceMismatch. For many: `reader`.
    """
    return reader(space, path)(value)


def _parts(
    space: gymnasium.spaces.Dict | gymnasium.spaces.Tuple, path: str
) -> Callable[[Any], Arrays]:
    from gymnasium import spaces

    items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    children = [
        (name, child_path(path, name), reader(child, child_path(path, name)))
        for name, child in items
    ]

    def read(value: Any) -> Arrays:
        out: Arrays = {}
        for name, where, child in children:
            try:
                part = value[name]
            except (LookupError, TypeError):
                raise SpaceMismatch(
                    f"{leaf_phrase(where)} is missing in what is of type {kind(value)}"
                ) from None
            out.update(child(part))
        return out

    return read


def _box(space: gymnasium.spaces.Box, path: str) -> Callable[[Any], np.ndarray]:
    shape, dtype = space.shape, leaf_dtype(space)
    truth = np.dtype(space.dtype).kind == "b"
    picture = space.dtype == np.uint8 and len(shape) in (2, 3)
    stored = channels_first(shape) if picture else shape
    last = picture and len(shape) == 3 and stored != shape

    def read(value: Any) -> np.ndarray:
        if (
            type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape or truth
        ):  # else it is as it is expected: the usual case
            value = as_numbers(value, shape, path, dtype)
            value = cast(value, dtype, path, 1 if truth else None)
        if stored == shape:
            out: np.ndarray = value
            return out
        return np.moveaxis(value, -1, 0) if last else value.reshape(stored)

    return read


def _discrete(space: gymnasium.spaces.Discrete[Any], path: str) -> Callable[[Any], np.ndarray]:
    start, n = int(space.start), int(space.n)

    def read(value: Any) -> np.ndarray:
        if not isinstance(value, WHOLE):
            value = as_whole_numbers(as_numbers(value, (), path, np.dtype(np.int32)), path)
        picked = int(value) - start
        if not 0 <= picked < n:
            raise SpaceMismatch(
                f"{leaf_phrase(path)} is {value}, but {start} to {start + n - 1} are expected"
            )
        return np.asarray(picked, np.int32)

    return read


def _picks(space: gymnasium.Space[Any], path: str) -> Callable[[Any], np.ndarray]:
    """A MultiDiscrete or MultiBinary."""
    from gymnasium import spaces

    shape = space.shape or ()
    start, n = np.zeros(shape, np.int64), np.full(shape, 2)
    dtype = np.dtype(np.uint8 if is_grid(space) else np.int32)
    if isinstance(space, spaces.MultiDiscrete):
        start, n = (np.asarray(ends, np.int64) for ends in (space.start, space.nvec))

    def read(value: Any) -> np.ndarray:
        picked = as_whole_numbers(as_numbers(value, shape, path, dtype), path) - start
        bad = (picked < 0) | (picked >= n)
        if bad.any():
            got, first, choices = ((v[bad][0]) for v in (picked + start, start, n))
            raise SpaceMismatch(
                f"{leaf_phrase(path)} has an element {got}, "
                f"but {first} to {first + choices - 1} are expected"
            )
        out: np.ndarray = picked.astype(dtype)
        return out

    return read


def _text(space: gymnasium.spaces.Text, path: str) -> Callable[[Any], np.ndarray]:
    longest = 4 * int(space.max_length)

    def read(value: Any) -> np.ndarray:
        if not isinstance(value, str):
            raise SpaceMismatch(
                f"{leaf_phrase(path)} is of type {kind(value)}, but text is expected"
            )
        if len(data := value.encode()) > longest:
            raise SpaceMismatch(
                f"{leaf_phrase(path)} is a text of {len(data):,} bytes, "
                f"but at most {longest:,} are expected"
            )
        return np.frombuffer(data.ljust(longest, b"\0"), np.uint8)

    return read


def as_numbers(value: Any, shape: tuple[int, ...], path: str, dtype: np.dtype[Any]) -> np.ndarray:
    """Numbers or truth values of this shape; `dtype` is what others are told.

    Raises SpaceMismatch.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":  # numbers as objects: what they are, numpy finds out of a list
            array = np.asarray(array.tolist())
    except ValueError:
        raise SpaceMismatch(
            f"{leaf_phrase(path)} is a ragged {kind(value)}, but the shape {shape} is expected"
        ) from None
    if array.shape != shape:
        raise SpaceMismatch(
            f"{leaf_phrase(path)} has the shape {array.shape}, but {shape} is expected"
        )
    if array.dtype.kind not in "biuf":
        raise SpaceMismatch(
            f"{leaf_phrase(path)} is of type {kind(value)}, but {dtype} is expected"
        )
    return array


def as_whole_numbers(array: np.ndarray, path: str) -> np.ndarray:
    """Whole numbers or truth values as int64. Raises SpaceMismatch."""
    if array.dtype.kind == "f":
        raise SpaceMismatch(
            f"{leaf_phrase(path)} is of type {array.dtype}, but whole numbers are expected"
        )
    out: np.ndarray = array.astype(np.int64)
    return out


def cast(array: np.ndarray, dtype: np.dtype[Any], path: str, most: int | None = None) -> np.ndarray:
    """Numbers as another type that holds them.

    `most`: only those from 0 to it. Raises SpaceMismatch.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large becomes infinite, which is told of later
            return array.astype(dtype)
    if array.dtype.kind == "f":
        raise SpaceMismatch(
            f"{leaf_phrase(path)} is of type {array.dtype}, but {dtype} is expected"
        )
    if most is not None or not np.can_cast(array.dtype, dtype):
        low, high = (0, most) if most is not None else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if array.size and not (low <= array.min() and array.max() <= high):
            extreme = array.min() if array.min() < low else array.max()
            raise SpaceMismatch(
                f"{leaf_phrase(path)} has an element {extreme}, but {low} to {high} are expected"
            )
    return array.astype(dtype)


def reward_of(value: Any) -> float:
    """A reward as a number. Raises SpaceMismatch for anything but one number."""
    if isinstance(value, REAL):
        return float(value)
    array = np.asarray(value)
    if array.shape:
        raise SpaceMismatch(f"its reward has the shape {array.shape}, but one number is expected")
    try:
        if array.dtype.kind in "biufO":
            return float(array.item())
    except (TypeError, ValueError):
        pass
    raise SpaceMismatch(f"its reward is of type {kind(value)}, but one number is expected")


def flag_of(value: Any, name: str) -> bool:
    """Whether an episode is `terminated` or `truncated`.

    Raises SpaceMismatch for several values.
    """
    if isinstance(value, TRUTH):
        return bool(value)
    if shape := np.shape(value):
        raise SpaceMismatch(
            f"its flag {name!r} has the shape {shape}, but one truth value is expected"
        )
    return bool(value)


def kind(value: Any) -> str:
    """The type of a value in words: an array's or a number's dtype, else the class."""
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else str(dtype)


def unflatten(space: gymnasium.Space[Any], arrays: Arrays, path: str = "") -> Any:
    """The inverse of `flatten` for actions: a value that `env.step` takes."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {
            name: unflatten(child, arrays, child_path(path, name))
            for name, child in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(
            unflatten(child, arrays, child_path(path, i)) for i, child in enumerate(space.spaces)
        )
    value = arrays[path]
    if isinstance(space, spaces.Discrete):
        return int(value) + int(space.start)
    if isinstance(space, spaces.Text):
        return bytes(value).rstrip(b"\0").decode(errors="replace")
    if isinstance(space, spaces.MultiDiscrete):
        value = value + space.start
    elif space.dtype == np.uint8 and len(space.shape or ()) == 3 and value.shape != space.shape:
        value = np.moveaxis(value, 0, -1)  # a picture, channels last
    return np.asarray(value, space.dtype).reshape(space.shape)
