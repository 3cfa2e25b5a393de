"""What a foreign format must answer, and how formats are found.

A format is a file of this folder with `FORMAT = TheClass()` at its end; no list is edited to add
one. It says whether it recognises a source, opens it as a `Reader` of whole episodes, and may write
a dataset back. A Reader yields what the file holds, in its dtypes; `checks.conform` holds each
episode against the signature afterwards, so that a reader answers only for what its layout can get
wrong. Nothing here unpickles, and no module is imported because a file says so.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError, install
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.replay.episode import Episode

Advance = Callable[[int], None]
"""Is told how many steps have gone by."""

MAX_EPISODE_BYTES = 2 << 30
"""A field of an episode that claims more is refused before memory is asked for."""


@dataclass(frozen=True)
class SourceMetadata:
    """What a source tells about itself before its episodes are read; empty or None where it is
    silent."""

    name: str  # path or id, for messages and for the card
    env_id: str = ""
    env_kwargs: dict[str, Any] | None = None
    signature: Signature | None = None
    versions: dict[str, str] = field(default_factory=dict)
    episodes: int | None = None
    steps: int | None = None
    task: str = ""  # of a file that this project has written
    likely: str = ""  # the task that its name speaks of
    reference_returns: tuple[float, float] | None = None  # random, expert


class Reader(ABC):
    """An open source."""

    said: SourceMetadata
    taken: Mapping[str, str] = MappingProxyType({})
    """Which of its columns were taken for what."""
    notes: tuple[str, ...] = ()
    """What is to be told of an import, a sentence each."""
    beside: tuple[str, ...] = ()
    """Names of what was found beside what episodes have, and not read."""

    @abstractmethod
    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """The episodes in their order without the first `skip`, lazily; numbered by
        `Episode.id.number` from 0.

        Leaves are named and shaped as in `signature`; dtypes and values are the file's own. Raises
        UserError.
        """

    def looks(self) -> Signature | None:
        """What its arrays look like where `said` tells no signature; None where the layout leaves
        it open. Raises UserError."""
        return None

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the episodes lie in: where one changes, an interrupted import begins
        anew."""

    def place(self, number: int) -> str:
        """Where an episode is, for messages."""
        return f"{self.said.name}, episode {number}"


class Format(ABC):
    """A foreign format. Nothing is read when one is made."""

    name: str
    about: str
    writes = False

    @abstractmethod
    def recognises(self, source: str) -> bool:
        """Whether this is a source of this format. Raises UserError for a file that is torn."""

    @abstractmethod
    def open(self, source: str) -> Reader:
        """Open a source that was recognised. Raises UserError."""

    def write(self, dataset: Dataset, folder: Path, advance: Advance) -> None:
        """Write a dataset into an empty folder, streaming."""
        raise NotImplementedError(f"{self.name} is not written")


def formats() -> dict[str, Format]:
    """Every format of this folder by name. A file is found by being there."""
    package = importlib.import_module("bigdm_ray.formats")
    found: dict[str, Format] = {}
    for _, name, _ in pkgutil.iter_modules(package.__path__):
        made = getattr(importlib.import_module(f"bigdm_ray.formats.{name}"), "FORMAT", None)
        if made is not None:
            found[made.name] = made
    return dict(sorted(found.items()))


def open_source(source: str) -> Reader:
    """The reader of whatever format recognises the source. Raises UserError where none does."""
    for made in formats().values():
        if made.recognises(source):
            return made.open(source)
    kinds = "; ".join(made.about for made in formats().values())
    what = (
        "is of no format that is known here"
        if Path(source).exists()
        else "is no file, no folder, and no id of a Minari dataset (minari:NAME-v0)"
    )
    raise UserError(f"{source} {what}; known are: {kinds}")


def import_optional(module: str, extra: str) -> Any:
    """An optional package. Raises UserError, naming the extra that helps, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this format needs the package {module!r} ({error}); install it with: {install(extra)}"
        ) from None


def require_inside(path: Path, folder: Path) -> Path:
    """`path`, which must lie in `folder` once links are followed. Raises UserError."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads out of {folder} (to {path.resolve()}); nothing was imported")
    return path
