"""Modules of installed packages that add algorithms or suites: entry points, as in a pyproject.toml

[project.entry-points."bigdm_ray.algorithms"]
mine = "my_package.mine"          # a module with ALGORITHM, or ALGORITHMS
[project.entry-points."bigdm_ray.envs"]
mine = "my_package.suite"         # a module with TASKS, which become the suite `mine`
"""

from __future__ import annotations

import functools
import importlib
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from bigdm_ray.errors import UserError


class Plugin(NamedTuple):
    """What an entry point leads to."""

    name: str
    module: ModuleType


@functools.lru_cache(maxsize=8)
def plugins(group: str) -> dict[str, Plugin]:
    """The modules of a group by what messages call them, sorted.

    Raises UserError for one that cannot be imported.
    """
    found: dict[str, Plugin] = {}
    for point in sorted(metadata.entry_points(group=group), key=lambda one: (one.name, one.value)):
        package = point.dist.name if point.dist is not None else "a package"
        place = f"{point.value} (entry point {point.name!r} of {package}, group {group})"
        try:
            found[place] = Plugin(point.name, importlib.import_module(point.module))
        except Exception as error:  # noqa: BLE001  (a module is foreign code, which may raise anything)
            raise UserError(
                f"{place} cannot be imported ({type(error).__name__}: {error}); mend it, or "
                f"uninstall {package}"
            ) from None
    return found
