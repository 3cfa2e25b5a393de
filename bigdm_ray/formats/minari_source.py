"""Where a Minari dataset lies: a folder, or an id that Minari downloads."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

from bigdm_ray.errors import RunFailed, UserError, install, one_line
from bigdm_ray.formats.base import (
    import_optional,
)

METADATA = "metadata.json"
_ID = re.compile(r"(?P<name>(?:\w[\w-]*/)*\w[\w-]*-v\d+)")


def dataset_id(source: str) -> str | None:
    """The id of a source that is one: behind `minari:`, or with a slash where no such path exists.

    Raises UserError for a bad one.
    """
    named = source.startswith("minari:")
    text = source.removeprefix("minari:")
    if not named and ("/" not in text or Path(source).exists()):
        return None
    if found := _ID.fullmatch(text):
        return found["name"]
    if named:
        raise UserError(
            f"{source} is not the id of a Minari dataset; one looks like"
            " minari:mujoco/hopper/medium-v0"
        )
    return None


def download(name: str) -> Path:
    """The folder of a dataset in Minari's own cache, downloaded where it is not there yet.

    Raises UserError, RunFailed.
    """
    minari = import_optional("minari", "datasets")
    try:
        storage = importlib.import_module("minari.storage.datasets_root_dir")
        folder = Path(storage.get_dataset_path(name))
        if not (folder / "data").is_dir():
            minari.download_dataset(name)
    except ImportError as error:
        raise UserError(
            f"Minari lacks a package to download {name} with ({one_line(error)}); install:"
            f" {install('datasets')}"
        ) from None
    except ValueError as error:
        raise UserError(f"Minari cannot download {name}: {one_line(error)}") from None
    except Exception as error:  # noqa: BLE001  (clients of clouds raise errors of their own; all of them mean that there is no download)
        raise RunFailed(
            f"{name} could not be downloaded ({type(error).__name__}: {one_line(error)}); see that"
            " the network is there, then try again"
        ) from None
    return folder


def data_folder(path: Path) -> Path | None:
    """The folder with the metadata: the given one or its `data`; None where it is no Minari
    folder."""
    for folder in (path / "data", path):
        if (folder / METADATA).is_file() and not (folder / "dataset.json").exists():
            return folder
    return None
