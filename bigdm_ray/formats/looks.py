"""What arrays look like where nothing tells: a signature from dtypes, shapes and, of actions, from
values.

Floats are float32, bytes of two or three axes whose channels come first are pictures. Actions that
are one whole number a step are choices, as many as the largest needs; all others have as bounds
[-1, 1] where all lie within, else their least and greatest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from bigdm_ray.envs.signature import Leaf, Signature, channels_first
from bigdm_ray.errors import UserError
from bigdm_ray.formats.claims import MAX_ELEMENTS


def seen_leaf(values: np.ndarray) -> Leaf:
    """The leaf of observations `[N, ...]`; no value is looked at."""
    shape, kind = values.shape[1:], values.dtype.kind
    if kind not in "biuf" or math.prod(shape) > MAX_ELEMENTS:
        raise UserError(
            f"observations of type {values.dtype} and shape {list(shape)} are not known"
        )
    if values.dtype == np.uint8 and (len(shape) == 2 or channels_first_already(shape)):
        return Leaf("image", channels_first(shape), "uint8")
    return Leaf("tensor", shape, {"f": "float32", "b": "uint8"}.get(kind, str(values.dtype)))


def channels_first_already(shape: tuple[int, ...]) -> bool:
    """Whether three axes are those of a picture as it is stored here."""
    return len(shape) == 3 and channels_first(shape) == shape


class ActionColumns:
    """The leaf of actions, part after part `[n, ...]`; `picks` says whether they are choices, where
    that is told."""

    def __init__(self, picks: bool | None = None) -> None:
        self._picks, self._shape, self._dtype = picks, (), np.dtype(np.float32)
        self._low, self._high = np.zeros(0), np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        """Take in a part."""
        if not len(values):
            return
        self._dtype, self._shape = values.dtype, values.shape[1:]
        low, high = values.min(0).reshape(-1), values.max(0).reshape(-1)
        first = self._low.size == 0
        self._low = low if first else np.minimum(self._low, low)
        self._high = high if first else np.maximum(self._high, high)

    def leaf(self) -> Leaf:
        """What was found. Raises UserError where it is nothing that a policy could do."""
        whole = self._dtype.kind in "biu" or bool(
            self._picks and (self._low == np.floor(self._low)).all()
        )
        single = math.prod(self._shape) == 1
        if not self._low.size or not np.isfinite([self._low, self._high]).all():
            raise UserError("there are no actions, or some are not finite")
        if single and whole and self._picks is not False:
            if self._low[0] < 0 or self._high[0] > MAX_ELEMENTS:
                raise UserError(
                    f"actions go from {self._low[0]:g} to {self._high[0]:g}, where choices from 0 "
                    "are expected"
                )
            return Leaf("discrete", (), "int32", choices=(int(self._high[0]) + 1,))
        if self._low.min() >= -1 and self._high.max() <= 1:
            low, high = np.full(self._low.size, -1.0), np.full(self._low.size, 1.0)
        else:
            low, high = (
                np.asarray(bound, np.float32).astype(float) for bound in (self._low, self._high)
            )
        shape = self._shape or (1,)
        return Leaf("tensor", shape, "float32", tuple(low.tolist()), tuple(high.tolist()))


def guess_signature(seen: dict[str, Leaf], acted: Iterable[tuple[str, ActionColumns]]) -> Signature:
    """The signature of leaves by path."""
    return Signature(dict(sorted(seen.items())), {path: one.leaf() for path, one in sorted(acted)})


def move_channels_first(values: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Pictures `[N, ...]` with channels first, where a leaf of pictures is expected and they come
    last."""
    shape = values.shape[1:]
    if leaf.kind != "image" or shape == leaf.shape or len(shape) != 3:
        return values
    return np.moveaxis(values, -1, 1) if (shape[-1], *shape[:2]) == leaf.shape else values
