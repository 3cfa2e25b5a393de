"""Format `npz`: NumPy arrays in one archive, by the names of D4RL and d3rlpy or others of
`spellings.py`.

What ends an episode and what was seen after its last step is told as in `d4rl`. Objects are
pickles, which are never opened here.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as header

from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.base import Format, Reader
from bigdm_ray.formats.claims import check_claim
from bigdm_ray.formats.d4rl import FlatArrays
from bigdm_ray.formats.hdf5 import ERRORS

SUFFIX = ".npz"
_TORN = (*ERRORS, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, MemoryError)


class NpzFile(FlatArrays):
    """One archive, whose arrays are inflated whole."""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[dict[str, Any], list[str], bool | None]]:
        try:
            names = _sound(self._path)
            with np.load(self._path, allow_pickle=False) as archive:
                found = {ours: archive[theirs] for ours, theirs in self._spelled(names).items()}
                picks = _truth(archive["discrete_action"]) if "discrete_action" in names else None
        except UserError:
            raise
        except _TORN as error:
            raise UserError(
                f"{self._path} is not a whole archive of arrays ({one_line(error)}); nothing was"
                " imported"
            ) from None
        yield found, names, picks


def _sound(path: Path) -> list[str]:
    """The names of the arrays, once what they claim is held against the size of the file."""
    names, claimed = [], 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            names.append(member.filename.removesuffix(".npy"))
            with archive.open(member) as file:
                version = header.read_magic(file)
                read = {(1, 0): header.read_array_header_1_0, (2, 0): header.read_array_header_2_0}
                if version not in read:
                    raise ValueError(f"{names[-1]} is of the version {version}")
                shape, _, dtype = read[version](file)
            claimed += max(math.prod(shape) * dtype.itemsize, member.file_size)
    check_claim(claimed, path)
    return names


def _truth(value: np.ndarray) -> bool | None:
    return bool(value) if value.shape == () and value.dtype.kind in "biu" else None


class Npz(Format):
    """See the module."""

    name = "npz"
    about = "NumPy archives (.npz with observations, actions, rewards, terminals)"

    def recognises(self, source: str) -> bool:
        """See Format."""
        return Path(source).suffix == SUFFIX and Path(source).is_file()

    def open(self, source: str) -> Reader:
        """See Format."""
        return NpzFile(Path(source))


FORMAT = Npz()
