"""Dataset: a folder of shards that does not grow any more, and the card that says what is in it.

dataset.json  episodes-0000000.arrow  episodes-0000001.arrow ...

The hash is taken over the episodes' content in their order, so it does not depend on how they are cut into shards. A
dataset is written under a temporary name beside its own and renamed when it is whole: half a dataset is never there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigdm_ray.envs.task import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay.store import Store

CARD = "dataset.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """What the card says. `open` reads it, `store` opens the episodes."""

    folder: Path
    name: str
    task: str  # what `find_task` understands
    signature: Signature
    source: str  # where the episodes are from, in words that lead back there
    sha256: str  # of the episodes' content, in their order
    episodes: int
    steps: int
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    versions: dict[str, str] = field(default_factory=dict)  # of what the environment was made of when the episodes were recorded

    @staticmethod
    def open(folder: Path) -> Dataset:
        """Read the card. Raises UserError where there is none, or one of a newer version."""
        path = folder / CARD
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            version = data.pop("schema_version")
            if version > SCHEMA_VERSION:
                raise UserError(f"{path} has schema version {version}, newer than the {SCHEMA_VERSION} known here: update bigdm_ray")
            return Dataset(folder=folder, **(data | {"signature": Signature.from_json(data["signature"])}))
        except OSError as error:
            raise UserError(f"{folder} is not a dataset ({CARD}: {error.strerror}); make one with: python -m bigdm_ray.data import SOURCE --folder {folder}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not the card of a dataset ({error}); import the dataset anew") from None

    def to_json(self) -> dict[str, Any]:
        """The content of dataset.json."""
        card = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"schema_version": SCHEMA_VERSION} | card | {"signature": self.signature.to_json()}

    def store(self, flat_bytes: int = 256 << 20) -> Store:
        """The episodes, to read. Raises UserError where the folder does not hold what the card says."""
        store = Store(self.folder, flat_bytes=flat_bytes, write=False).open()
        if store.problems or len(store.table) != self.episodes:
            why = store.problems[0] if store.problems else f"it holds {len(store.table):,} episodes where its card says {self.episodes:,}"
            raise UserError(f"dataset {self.folder} is damaged: {why}; import it anew")
        return store


def resolve(text: str) -> Dataset | None:
    """The dataset that a TASK names: the path of a folder; None for anything else. Raises UserError for a folder that holds none."""
    folder = Path(text)
    return Dataset.open(folder) if folder.is_dir() or ("/" in text and ":" not in text) else None
