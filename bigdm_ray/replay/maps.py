"""MappedArrays: rows of many memory maps in one pass, as if all of them were one array.

A batch touches nearly as many shards as it has windows, and a call of numpy for each leaf of each
costs more than what it copies. All maps lie in the same address space: where a row of a leaf lies
is the address at which that leaf of its shard begins, plus its number times its size. So one gather
a leaf will do. Rows come from checked shards and windows that were cut to fit into their episodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MOST = 1 << 14
"""Bytes of a row beyond which copying costs more than calling: then each map is asked by itself."""
FLAT = 0
"""The number of the flat arrays, among those of shards."""


class MappedArrays:
    """The arrays that are known by number and leaf."""

    def __init__(self) -> None:
        self._arrays: dict[str, dict[int, np.ndarray]] = {}
        self._leaves: dict[str, list[str]] = {}  # kind -> its leaves
        self._begin: dict[str, np.ndarray] = {}  # number -> address, 0 where there is none
        self._still: dict[str, np.ndarray] = {}  # number -> whether rows are episodes, not steps

    def put(self, number: int, arrays: Mapping[str, np.ndarray], still: bool = False) -> None:
        """Know these arrays, by leaf, under this number; `still`: of a row an episode."""
        for leaf, values in arrays.items():
            if leaf not in self._arrays:
                self._leaves = {}
            self._arrays.setdefault(leaf, {})[number] = values
            begin = self._begin.get(leaf, np.zeros(0, np.int64))
            if number >= len(begin):
                more = np.zeros(max(64, 2 * number) - len(begin), np.int64)
                begin = self._begin[leaf] = np.append(begin, more)
                self._still[leaf] = np.append(self._still.get(leaf, more[:0]), more).astype(bool)
            begin[number] = values.__array_interface__["data"][0]
            self._still[leaf][number] = still

    def drop(self, number: int) -> None:
        """Forget the arrays of this number."""
        for leaf, arrays in self._arrays.items():
            if arrays.pop(number, None) is not None:
                self._begin[leaf][number] = 0

    def leaves(self, kind: str) -> list[str]:
        """The leaves whose names begin so, sorted."""
        if kind not in self._leaves:
            self._leaves[kind] = sorted(leaf for leaf in self._arrays if leaf.startswith(kind))
        return self._leaves[kind]

    def missing_numbers(self, leaf: str, numbers: np.ndarray) -> list[int]:
        """Which of these numbers have no such leaf."""
        begin = self._begin.get(leaf, np.zeros(1, np.int64))
        known = (begin[np.minimum(numbers, len(begin) - 1)] != 0) & (numbers < len(begin))
        return [] if known.all() else [int(number) for number in np.unique(numbers[~known])]

    def of(self, leaf: str, numbers: np.ndarray, episodes: np.ndarray) -> MappedLeaf:
        """A leaf, for windows `[B]` each of which lies under one number, in its row `episodes`."""
        still = self._still[leaf][numbers]
        return MappedLeaf(
            self._arrays[leaf],
            self._begin[leaf][numbers],
            numbers,
            (still, episodes) if still.any() else None,
        )


class MappedLeaf:
    """A leaf of a batch: rows of window i are those of its number's array."""

    def __init__(
        self,
        arrays: Mapping[int, np.ndarray],
        begin: np.ndarray,
        numbers: np.ndarray,
        still: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        like = next(iter(arrays.values()))
        self._arrays, self._begin, self._numbers, self._still = arrays, begin, numbers, still
        self._row = like.shape[1:]
        self.ndim, self.dtype = like.ndim, like.dtype

    def take(self, indices: np.ndarray, /, axis: int = 0) -> np.ndarray:
        """The rows `indices [B, ...]`: `[B, ..., *row]`."""
        wide = (-1, *[1] * (indices.ndim - 1))
        if self._still is not None:
            here, rows = self._still
            indices = np.where(here.reshape(wide), rows.reshape(wide), indices)
        size = math.prod(self._row) * self.dtype.itemsize
        if not 0 < size <= MOST or not indices.size:
            return self._one_by_one(indices)
        low = int(self._begin.min())
        at = indices * size + (self._begin - low).reshape(wide)
        taken: np.ndarray = np.asarray(_Memory(low, int(at.max()) + 1, size))[at].view(self.dtype)
        return taken.reshape(*indices.shape, *self._row)

    def _one_by_one(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((*indices.shape, *self._row), self.dtype)
        for number in np.unique(self._numbers).tolist():
            here = self._numbers == number
            out[here] = self._arrays[number].take(indices[here], axis=0)
        return out


class _Memory:
    """What lies at an address and each of the `count - 1` behind it, `size` bytes each, for numpy
    to read."""

    def __init__(self, start: int, count: int, size: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (start, True),
            "shape": (count,),
            "typestr": f"|V{size}",
            "strides": (1,),
            "version": 3,
        }
