"""Leaf and Signature: what the arrays of a task's observations and actions look like."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bigdm_ray.errors import UserError

if TYPE_CHECKING:
    import gymnasium


Kind = Literal["tensor", "discrete", "grid", "image", "text"]
PICKED = ("discrete", "grid")
"""Kinds of leaves that hold indices, with `choices`."""

PER_EPISODE = "per_episode"
"""In the metadata of an environment: the observations that hold for a whole episode, a mission,
say."""
COLOURS = (1, 3, 4)
"""How many channels grey pictures, coloured ones, and those with transparency have."""


class SpaceMismatch(ValueError):
    """What came is not what spaces or a signature say: one clause, "its ..."."""


def leaf_phrase(path: str) -> str:
    """An observation's leaf, for a sentence."""
    return f"its observation {path!r}" if path else "its observation"


@dataclass(frozen=True)
class Leaf:
    """One array of an observation or an action: its kind, the shape and dtype of one step, and its
    bounds.

    `discrete` leaves hold indices that start at 0, `choices` of them for each element. `grid`
    leaves are symbols on a grid, uint8 indices as `discrete` ones are, of two axes or more; they
    are never treated as pictures. `image` leaves are `[channels, height, width]` uint8. `text`
    leaves are UTF-8 bytes, padded with zeros to `shape[0]`. `per` says whether the value changes
    every step or once an episode.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    low: tuple[float, ...] | None = None  # per element, row-major; None: unbounded or not known
    high: tuple[float, ...] | None = None
    choices: tuple[int, ...] = ()  # per element, for discrete leaves and grids
    per: Literal["step", "episode"] = "step"

    @property
    def size(self) -> int:
        """Elements in one step."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Leaf:
        """The leaf that `to_json` wrote."""
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return Leaf(**fixed)


@dataclass(frozen=True)
class Signature:
    """The leaves of a task's observations and actions by path, sorted; a plain Box or Discrete is
    the leaf `""`."""

    observations: dict[str, Leaf]
    actions: dict[str, Leaf]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "observations": {k: v.to_json() for k, v in self.observations.items()},
            "actions": {k: v.to_json() for k, v in self.actions.items()},
        }

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise SpaceMismatch, with the leaf, what came and what was expected, for observations
        `[n, ...]` by path that are not of this signature. Types may differ where numpy casts them
        of itself (a float of another width, whole numbers for floats), as models do."""
        for path in arrays:
            if path not in self.observations:
                expected = ", ".join(map(repr, self.observations))
                raise SpaceMismatch(
                    f"{leaf_phrase(path)} is not known, but {expected} are expected"
                )
        for path, leaf in self.observations.items():
            values = arrays.get(path)
            if values is None:
                raise SpaceMismatch(
                    f"{leaf_phrase(path)} is missing, but {leaf.dtype} {leaf.shape} is expected"
                )
            if values.shape[1:] != leaf.shape or values.ndim == 0:
                raise SpaceMismatch(
                    f"{leaf_phrase(path)} has the shape {values.shape[1:]}, but {leaf.shape} is"
                    " expected"
                )
            if values.dtype != leaf.dtype and not np.can_cast(
                values.dtype, leaf.dtype, "same_kind"
            ):
                raise SpaceMismatch(
                    f"{leaf_phrase(path)} is of type {values.dtype}, but {leaf.dtype} is expected"
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                odd = values[~np.isfinite(values)][0]
                raise SpaceMismatch(
                    f"{leaf_phrase(path)} has an element {odd}, but finite numbers are expected"
                )
            if leaf.kind in PICKED:
                most = np.array(leaf.choices).reshape(leaf.shape) - 1
                bad = (values < 0) | (values > most)
                if bad.any():
                    limit = np.broadcast_to(most, values.shape)[bad][0]
                    raise SpaceMismatch(
                        f"{leaf_phrase(path)} has an element {values[bad][0]}, "
                        f"but 0 to {limit} are expected"
                    )

    @staticmethod
    def from_json(data: dict[str, Any]) -> Signature:
        """The signature that `to_json` wrote."""
        return Signature(
            {k: Leaf.from_json(v) for k, v in data["observations"].items()},
            {k: Leaf.from_json(v) for k, v in data["actions"].items()},
        )

    @staticmethod
    def of(
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        once: Collection[str] = (),
    ) -> Signature:
        """The signature of two gymnasium spaces.

        Raises UserError for a space that has no flat form.

        `once` are observations that hold for a whole episode: paths, or the first parts of some.
        """
        found = leaves(observation_space)
        for path, leaf in found.items():
            if any(f"{path}/".startswith(f"{name}/") for name in once):
                found[path] = dataclasses.replace(leaf, per="episode")
        done = leaves(action_space)
        for path, leaf in done.items():
            if leaf.kind == "grid":  # choices like any others: a grid is something that is seen
                done[path] = dataclasses.replace(leaf, kind="discrete", dtype="int32")
        return Signature(found, done)

    @property
    def per_episode(self) -> frozenset[str]:
        """The observations that hold for a whole episode."""
        return frozenset(path for path, leaf in self.observations.items() if leaf.per == "episode")


def leaves(space: gymnasium.Space[Any], path: str = "") -> dict[str, Leaf]:
    """The leaves of a gymnasium space by path (`"arm/joints"`), sorted."""
    from gymnasium import spaces

    children: dict[str, Any] = {}
    if isinstance(space, spaces.Dict):
        children = dict(space.spaces)
    elif isinstance(space, spaces.Tuple):
        children = {str(i): child for i, child in enumerate(space.spaces)}
    if children:
        out: dict[str, Leaf] = {}
        for name, child in children.items():
            inner = leaves(child, f"{path}/{name}" if path else name)
            if twice := out.keys() & inner.keys():
                raise UserError(f"the space {space} has two leaves {min(twice)!r}; rename one")
            out.update(inner)
        return dict(sorted(out.items()))
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) in (2, 3):
            return {path: Leaf("image", channels_first(space.shape), "uint8")}
        dtype = str(leaf_dtype(space))
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        known = bool(np.isfinite(low).all() and np.isfinite(high).all())
        bounds = (tuple(map(float, low)), tuple(map(float, high))) if known else (None, None)
        return {path: Leaf("tensor", space.shape, dtype, *bounds)}
    if isinstance(space, spaces.Discrete):
        return {path: Leaf("discrete", (), "int32", choices=(int(space.n),))}
    if isinstance(space, spaces.MultiDiscrete):
        choices = tuple(int(n) for n in space.nvec.reshape(-1))
        if is_grid(space):
            return {path: Leaf("grid", space.shape, "uint8", choices=choices)}
        return {path: Leaf("discrete", space.shape, "int32", choices=choices)}
    if isinstance(space, spaces.MultiBinary):
        return {path: Leaf("discrete", space.shape, "int32", choices=(2,) * math.prod(space.shape))}
    if isinstance(space, spaces.Text):
        return {path: Leaf("text", (4 * int(space.max_length),), "uint8")}
    raise UserError(
        f"the space {space} has no flat form; supported are Box, Discrete, MultiDiscrete,"
        " MultiBinary, Text, Dict and Tuple"
    )


def is_grid(space: gymnasium.Space[Any]) -> bool:
    """Whether a space is of symbols on a grid: a MultiDiscrete of type uint8 with two axes or more,
    that begins at 0."""
    from gymnasium import spaces

    return (
        isinstance(space, spaces.MultiDiscrete)
        and space.dtype == np.uint8
        and len(space.shape) > 1
        and not np.any(space.start)
    )


def leaf_dtype(box: gymnasium.spaces.Box) -> np.dtype[Any]:
    """Floats are float32, truth values uint8 (Arrow would pack them into bits), whole numbers as
    they are."""
    dtype = np.dtype(box.dtype)
    return np.dtype({"f": "float32", "b": "uint8"}.get(dtype.kind, dtype))


def channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The `[channels, height, width]` of an image space.

    Channels are the first or the last axis: the one that is clearly the shortest, at most half of
    each other axis; else the one that is 1, 3 or 4 long where the other is not; else, where two
    neighbours are equal, these are the sides of a square picture and the third axis is the
    channels; else the first. A space of two axes is a grey picture.
    """
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    first, middle, last = shape
    as_first, as_last = (first, middle, last), (last, first, middle)
    if 2 * last <= min(first, middle):
        return as_last
    if 2 * first <= min(middle, last):
        return as_first
    if (first in COLOURS) != (last in COLOURS):
        return as_first if first in COLOURS else as_last
    return as_last if first == middle != last else as_first
