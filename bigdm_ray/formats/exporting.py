"""Giving episodes out: a dataset in a format that others read, in a folder that appears when it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from bigdm_ray.errors import UserError, nearest
from bigdm_ray.formats.base import formats, vacant
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.progress import Progress
from bigdm_ray.replay.shard import sync_folder, unwritten


def export_dataset(dataset: Dataset, to: str, folder: Path, quiet: bool = False) -> None:
    """Write `dataset` into the new `folder` in the format `to`, streaming.

    Raises UserError for an unknown format or a folder that exists, RunFailed where the disk does not take it; then nothing is left.
    """
    known = {name: made for name, made in formats().items() if made.writes}
    if to not in known:
        raise UserError(
            f"--to is {to!r}, but one of {', '.join(known)} is expected{nearest(to, list(known))}"
        )
    hidden = vacant(folder).with_name(f".{folder.name}.exporting")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        with Progress(folder.name, dataset.steps, quiet=quiet) as bar:
            known[to].write(dataset, hidden, bar.advance)
        hidden.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise unwritten(folder, error) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
