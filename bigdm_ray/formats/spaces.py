"""gymnasium's spaces as foreign files write them down, and whole episodes between their layout and
that of a signature.

`flatten` and `unflatten` do for `[N, ...]` values at once what `bigdm_ray.envs.task` does for one:
pictures go from channels last to channels first, discrete values start at 0, text becomes padded
bytes, dicts and tuples become paths. The JSON is Minari's (minari/serialization.py); reading it
makes spaces of gymnasium and nothing else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.signature import PICKED, Leaf, Signature, channels_first, is_grid
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.checks import Locator, refusal
from bigdm_ray.formats.claims import expect_size
from bigdm_ray.jsons import read_json

if TYPE_CHECKING:
    import gymnasium

    Space = gymnasium.Space[Any]

Arrays = dict[str, np.ndarray]
MAX_TEXT_BYTES = 256 << 20
"""Bytes of the texts of a leaf that are made at once, at most; each is padded to the longest."""


# --- JSON


def space_from_json(text: str | dict[str, Any], where: str) -> Space:
    """The space that a file describes. Raises UserError for anything else."""
    try:
        data = read_json(text) if isinstance(text, str) else text
        sizes = list(_sizes(data))
        expect_size(sum(sizes), len(sizes))
        return _space(data)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
        RecursionError,
        OverflowError,
    ) as error:
        raise UserError(
            f"{where} describes no space that is known here "
            f"({' '.join(str(error).split())[:200]}); nothing was imported"
        ) from None


def _sizes(data: dict[str, Any]) -> Iterator[int]:
    """The numbers of each leaf of a space, told before one is made."""
    kind = data["type"]
    if kind in ("Dict", "Tuple"):
        children = data["subspaces"]
        for child in children.values() if kind == "Dict" else children:
            yield from _sizes(child)
    elif kind == "Box":
        yield math.prod(int(n) for n in data["shape"])
    elif kind == "MultiBinary":
        yield math.prod(data["n"]) if isinstance(data["n"], list) else int(data["n"])
    elif kind == "MultiDiscrete":
        yield int(np.size(data["nvec"]))
    else:
        yield 4 * int(data["max_length"]) if kind == "Text" else 1


def _space(data: dict[str, Any]) -> Space:
    from gymnasium import spaces

    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict({str(name): _space(child) for name, child in data["subspaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([_space(child) for child in data["subspaces"]])
    if kind == "Box":
        shape, dtype = tuple(int(n) for n in data["shape"]), np.dtype(data["dtype"])
        if dtype.kind not in "biuf" or min(shape, default=1) < 1:
            raise ValueError(f"a Box of shape {list(shape)} and dtype {dtype}")
        with np.errstate(over="ignore"):  # what the type does not hold is infinite
            low, high = (
                np.broadcast_to(np.array(data[name], dtype), shape) for name in ("low", "high")
            )
        return spaces.Box(low.copy(), high.copy(), shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(data["n"]), start=int(data.get("start", 0)))
    if kind == "MultiDiscrete":
        nvec = np.array(data["nvec"], np.int64)
        start = np.broadcast_to(np.array(data.get("start", 0), np.int64), nvec.shape).copy()
        made = spaces.MultiDiscrete(nvec, np.uint8, start=start)  # what a grid is of
        if data.get("dtype") == "uint8" and is_grid(made) and np.array_equal(made.nvec, nvec):
            return made
        return spaces.MultiDiscrete(nvec, start=start)
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Text":
        return spaces.Text(
            int(data["max_length"]),
            min_length=int(data.get("min_length", 1)),
            charset=str(data["charset"]),
        )
    raise ValueError(f"the type {kind!r}")


def space_to_json(space: Space) -> dict[str, Any]:
    """What `space_from_json` reads back, and Minari too."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {
            "type": "Dict",
            "subspaces": {name: space_to_json(child) for name, child in space.spaces.items()},
        }
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "subspaces": [space_to_json(child) for child in space.spaces]}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "dtype": str(space.dtype),
            "shape": list(space.shape),
            "low": space.low.tolist(),
            "high": space.high.tolist(),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "dtype": str(space.dtype),
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
        }
    if isinstance(space, spaces.MultiBinary):
        return {
            "type": "MultiBinary",
            "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n],
        }
    if isinstance(space, spaces.Text):
        return {
            "type": "Text",
            "max_length": space.max_length,
            "min_length": space.min_length,
            "charset": space.characters,
        }
    raise UserError(
        f"the space {space} cannot be written down; supported are Box, Discrete, MultiDiscrete,"
        " MultiBinary, Text, Dict and Tuple"
    )


# --- spaces of a task


@functools.lru_cache(maxsize=64)
def task_spaces(name: str) -> tuple[Space, Space] | None:
    """The spaces of a task's environment, or None where it cannot be made here."""
    task = find_task(name)
    try:
        task.require()
        env = task.env(None)
    except UserError:
        return None
    try:
        return env.observation_space, env.action_space
    finally:
        env.close()


def layout(task: str, signature: Signature) -> tuple[Space, Space]:
    """The spaces in whose layout episodes go out: the environment's own where it can be made and
    still fits, else plain ones."""
    own = task_spaces(task)
    if own is not None and Signature.of(*own, signature.per_episode) == signature:
        return own
    return plain_space(signature.observations), plain_space(signature.actions)


def plain_space(leaves: dict[str, Leaf]) -> Space:
    """A space whose values look like the leaves themselves: pictures channels first, text as bytes,
    discrete from 0."""
    from gymnasium import spaces

    if list(leaves) == [""]:
        return _plain_leaf(leaves[""])
    children: dict[str, dict[str, Leaf]] = {}
    for path, leaf in leaves.items():
        head, _, rest = path.partition("/")
        children.setdefault(head, {})[rest] = leaf
    return spaces.Dict({name: plain_space(inner) for name, inner in children.items()})


def _plain_leaf(leaf: Leaf) -> Space:
    from gymnasium import spaces

    if leaf.kind in PICKED:
        choices = np.array(leaf.choices).reshape(leaf.shape)
        return (
            spaces.MultiDiscrete(choices, np.uint8 if leaf.kind == "grid" else np.int64)
            if leaf.shape
            else spaces.Discrete(leaf.choices[0])
        )
    dtype = np.dtype(leaf.dtype)
    if dtype.kind == "f":
        low, high = (
            np.full(leaf.size, value) if bound is None else np.array(bound)
            for bound, value in ((leaf.low, -np.inf), (leaf.high, np.inf))
        )
    else:
        info = np.iinfo(dtype)
        low, high = (
            np.full(leaf.size, value) if bound is None else np.array(bound)
            for bound, value in ((leaf.low, info.min), (leaf.high, info.max))
        )
    return spaces.Box(
        low.reshape(leaf.shape).astype(dtype),
        high.reshape(leaf.shape).astype(dtype),
        leaf.shape,
        dtype.type,
    )


# --- values


def leaf_spaces(
    space: Space, path: str = "", tuple_name: str = "{}"
) -> list[tuple[str, str, Space]]:
    """(path of the leaf, its path in a file that calls a tuple's parts `tuple_name`, its space), in
    the order of the space."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [(path, path, space)]
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    out = []
    for name, child in parts:
        theirs = str(name) if isinstance(space, spaces.Dict) else tuple_name.format(name)
        for mine, file, leaf in leaf_spaces(child, "", tuple_name):
            out.append(
                (
                    "/".join([path, str(name), mine]).strip("/"),
                    "/".join([path, theirs, file]).strip("/"),
                    leaf,
                )
            )
    return out


def flatten_leaf(space: Space, values: Any) -> np.ndarray:
    """Values `[N, ...]` of a leaf space (a list of strings for Text) as the signature has them;
    numbers keep their dtype."""
    from gymnasium import spaces

    if isinstance(space, spaces.Text):
        width = 4 * int(space.max_length)
        data = b"".join(str(value).encode()[:width].ljust(width, b"\0") for value in values)
        return np.frombuffer(data, np.uint8).reshape(-1, width)
    array = np.asarray(values)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        return np.asarray(array - space.start)
    if (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and array.size == len(array) * math.prod(space.shape)
    ):
        shape = channels_first(space.shape)
        array = array.reshape(-1, *space.shape)
        moved = (
            np.moveaxis(array, -1, 1) if len(space.shape) == 3 and shape != space.shape else array
        )
        return np.ascontiguousarray(moved).reshape(-1, *shape)
    return array


def flatten_texts(
    space: gymnasium.spaces.Text, values: list[str], field: str, place: Locator
) -> np.ndarray:
    """Strings of a Text space as `flatten_leaf` gives them.

    Raises UserError for one of more bytes than that many characters may take.
    """
    if 4 * int(space.max_length) * len(values) > MAX_TEXT_BYTES:
        why = f"{len(values):,} texts of up to {space.max_length:,} characters"
        limit = f"{MAX_TEXT_BYTES >> 20} MiB are expected at most"
        raise refusal(place(0), field, f"{why} take more memory than one episode's may: {limit}")
    for k, value in enumerate(values):
        if (count := len(value.encode())) > (most := 4 * int(space.max_length)):
            why = f"a text of {count:,} bytes where at most {most:,} are expected"
            raise refusal(place(k), field, why)
    return flatten_leaf(space, values)


def unflatten_leaf(space: Space, values: np.ndarray) -> Any:
    """The inverse of `flatten_leaf`, in the space's own dtype; a list of strings for Text."""
    from gymnasium import spaces

    if isinstance(space, spaces.Text):
        return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in values]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return np.add(values, space.start, dtype=np.uint8 if is_grid(space) else np.int64)
    shape = tuple(space.shape or ())
    if space.dtype == np.uint8 and len(shape) == 3 and values.shape[1:] != shape:
        values = np.moveaxis(values, 1, -1)
    return np.ascontiguousarray(values.reshape(-1, *shape).astype(space.dtype, copy=False))
