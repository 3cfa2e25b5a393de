"""Format `dataset`: a dataset of this project as a source, so that several can be joined and a part
of one can be taken."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bigdm_ray.envs.signature import Signature
from bigdm_ray.formats.base import Format, Reader, SourceMetadata, require_inside
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.replay.episode import Episode


class OwnDataset(Reader):
    """A dataset."""

    def __init__(self, folder: Path) -> None:
        self._dataset = found = Dataset.open(folder)
        versions = {
            name: version for name, version in found.versions.items() if name != "environment"
        }
        env_id = found.versions.get("environment", "")
        self.said = SourceMetadata(
            str(folder),
            env_id,
            None,
            found.signature,
            versions,
            found.episodes,
            found.steps,
            found.task,
            reference_returns=found.reference_returns,
        )

    def files(self) -> list[Path]:
        """See Reader."""
        folder = self._dataset.folder
        return [require_inside(path, folder) for path in (folder / CARD, *self._dataset.shards())]

    def episodes(self, task: str, signature: Signature, skip: int = 0) -> Iterator[Episode]:
        """See Reader."""
        return islice(self._dataset.stream(), skip, None)


class OwnFormat(Format):
    """See the module."""

    name = "dataset"
    about = "datasets of this project (with dataset.json)"

    def recognises(self, source: str) -> bool:
        """See Format."""
        return (Path(source) / CARD).is_file()

    def open(self, source: str) -> Reader:
        """See Format."""
        return OwnDataset(Path(source))


FORMAT = OwnFormat()
