"""Arrays and episodes as messages of `policy.proto`, and back; what comes is believed in nothing.

A message says a type, a shape and how many bytes follow. The three are held against each other
before an array is made, which is a view of the bytes that came: no claim makes anything large.
What does not fit raises `Malformed`, one clause.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.values import Arrays, SpaceMismatch, cast
from bigdm_ray.errors import quote_value
from bigdm_ray.replay.episode import Episode, EpisodeId, broadcast_held
from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.training.rollout import LONGEST

DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float16", "float32", "float64")
    + tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
}
NATIVE = {name: dtype.newbyteorder("=") for name, dtype in DTYPES.items()}
NAMES = {dtype: name for name, dtype in NATIVE.items()}
MOST_AXES, LONGEST_AXIS = 16, 2**31
MOST_LEAVES = 1_024
LONGEST_NAME = 1_000
"""Characters of a path, a task, a name of a command."""
MOST_COMMANDS = 64


class Malformed(ValueError):
    """What came is not what a message must be: one clause."""


def read_array(message: pb.Array, what: str) -> np.ndarray:
    """The array of a message: a view of its bytes, read-only. Raises Malformed."""
    dtype = DTYPES.get(message.dtype)
    if dtype is None:
        raise Malformed(
            f"{what} is of the type {quote_value(message.dtype)}, but one of {', '.join(DTYPES)} is"
            " expected"
        )
    shape, data = tuple(message.shape), message.data
    if len(shape) > MOST_AXES or max(shape, default=0) > LONGEST_AXIS:
        raise Malformed(
            f"{what} has {len(shape)} axes, the longest of {max(shape)}; at most {MOST_AXES} of"
            f" {LONGEST_AXIS} are expected"
        )
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        raise Malformed(
            f"{what} has {len(data)} bytes, but {size} belong to the shape {list(shape)} of"
            f" {message.dtype}"
        )
    if not size:
        if math.prod(max(1, axis) for axis in shape) > LONGEST_AXIS:
            raise Malformed(f"{what} is empty, but of the shape {list(shape)}")
        return np.zeros(shape, NATIVE[message.dtype])
    return np.frombuffer(data, dtype).astype(NATIVE[message.dtype], copy=False).reshape(shape)


def write_array(values: np.ndarray) -> pb.Array:
    """An array of numbers as a message."""
    name = NAMES[values.dtype]
    data = values.astype(DTYPES[name], copy=False).tobytes()
    return pb.Array(dtype=name, shape=values.shape, data=data)


def read_leaves(messages: Any, rows: int, what: str, held: bool = False) -> Arrays:
    """Arrays by path whose first axis is `rows` long; where leaves may be `held`, one row of such.

    Raises Malformed.
    """
    if len(messages) > MOST_LEAVES:
        raise Malformed(f"there are {len(messages)} leaves, but at most {MOST_LEAVES} are expected")
    found: Arrays = {}
    for message in messages:
        path = read_name(message.path, f"the path of {what}")
        name = f"{what} {quote_value(path)}" if path else what
        if path in found:
            raise Malformed(f"{name} is there twice")
        values = read_array(message.values, name)
        count = 1 if held and message.held else rows
        if values.ndim == 0 or len(values) != count:
            raise Malformed(
                f"{name} has the shape {list(values.shape)}, but {count} rows are expected"
            )
        found[path] = broadcast_held(values[0], rows) if held and message.held else values
    return found


def write_leaves(arrays: Mapping[str, np.ndarray]) -> list[pb.Leaf]:
    """Arrays by path as messages."""
    return [pb.Leaf(path=path, values=write_array(values)) for path, values in arrays.items()]


def read_name(text: str, what: str) -> str:
    """A text of a message that is a name. Raises Malformed for a long one."""
    if len(text) > LONGEST_NAME:
        raise Malformed(
            f"{what} has {len(text)} characters, but at most {LONGEST_NAME} are expected"
        )
    return text


def read_numbers(told: Mapping[str, pb.Numbers], rows: int) -> dict[str, np.ndarray]:
    """Columns `[rows]` float64 by name, each one number for all rows or one for each.

    Raises Malformed.
    """
    if len(told) > MOST_COMMANDS:
        raise Malformed(
            f"a command has {len(told)} parts, but at most {MOST_COMMANDS} are expected"
        )
    columns = {}
    for name, numbers in told.items():
        what = quote_value(read_name(name, "the name of a part of the command"))
        values = np.array(numbers.values, np.float64)
        if len(values) not in (1, rows) or not np.isfinite(values).all():
            each = "" if rows == 1 else f", or {rows} of them,"
            raise Malformed(
                f"{what} is {quote_value(values.tolist())}, but a finite number{each} is expected"
            )
        columns[name] = np.broadcast_to(values, (rows,))
    return columns


def fit_observations(signature: Signature, arrays: Arrays) -> Arrays:
    """Observations `[n, ...]` in the types of the signature; copies, where they are views of bytes.

    Raises SpaceMismatch, with the leaf, what came and what was expected.
    """
    signature.check(arrays)
    return {path: _typed(leaf, arrays[path], path) for path, leaf in signature.observations.items()}


def _typed(leaf: Leaf, values: np.ndarray, path: str) -> np.ndarray:
    if values.dtype == leaf.dtype:
        return values if values.flags.writeable else values.copy()
    wanted = np.dtype(leaf.dtype)
    made = cast(values, wanted, path)
    if wanted.kind == "f" and not np.isfinite(made).all():
        raise SpaceMismatch(
            f"its observation {path!r} has an element that is too large for {wanted}"
        )
    return made


def read_episode(
    message: pb.Episode, signature: Signature, id: EpisodeId, task: str, source: str
) -> Episode:
    """An episode from outside, of the arrays that its task has.

    Raises Malformed for one that must not be stored.
    """
    rewards = read_array(message.rewards, "its rewards")
    if rewards.ndim != 1 or rewards.dtype.kind != "f" or not 0 < len(rewards) <= LONGEST:
        raise Malformed(
            f"its rewards are {rewards.dtype} of the shape {list(rewards.shape)}, but floats of one"
            f" axis, 1 to {LONGEST:,} of them, are expected"
        )
    steps = len(rewards)
    seen = read_leaves(message.observations, steps + 1, "its observation", held=True)
    acted = read_leaves(message.actions, steps, "its action")
    if len(message.command) > MOST_COMMANDS:
        raise Malformed(f"its command has {len(message.command)} parts")
    command = {read_name(name, "a name"): float(v) for name, v in message.command.items()}
    once = {leaf.path for leaf in message.observations if leaf.held}
    try:
        # of what is held one row is looked at, however many steps there are
        signature.check({path: v[:1] if path in once else v for path, v in seen.items()})
        _check_actions(signature, acted)
    except SpaceMismatch as error:
        raise Malformed(str(error)) from None
    version = message.version
    if max(version.incarnation, version.learner_step) >= 2**62:
        raise Malformed(f"its version is {version.incarnation}.{version.learner_step}")
    made = Episode(
        {
            path: broadcast_held(_typed(leaf, seen[path][:1], path)[0], steps + 1)
            if path in once
            else _typed(leaf, seen[path], path)
            for path, leaf in signature.observations.items()
        },
        {path: _typed(leaf, acted[path], path) for path, leaf in signature.actions.items()},
        rewards.astype(np.float32),
        message.terminated,
        id,
        task,
        command,
        (version.incarnation, version.learner_step),
        source,
    )
    if not all(map(math.isfinite, command.values())):
        raise Malformed("its command has a number that is not finite")
    if why := made.problem():
        raise Malformed(why)
    return made


def _check_actions(signature: Signature, acted: Arrays) -> None:
    """Raise SpaceMismatch where actions are not the task's."""
    try:
        Signature(signature.actions, {}).check(acted)
    except SpaceMismatch as error:
        raise SpaceMismatch(str(error).replace("observation", "action", 1)) from None


def write_numbers(columns: Mapping[str, Iterable[float]]) -> dict[str, pb.Numbers]:
    """Columns by name as messages."""
    return {name: pb.Numbers(values=list(map(float, v))) for name, v in columns.items()}
