"""Giving episodes out: a dataset in a format that others read, in a folder that appears when it is
whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigdm_ray.errors import UserError, near_names, suggest_names
from bigdm_ray.formats.base import formats
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.writer import require_vacant
from bigdm_ray.progress import Progress
from bigdm_ray.replay.files import remove_leftovers, temporary_path
from bigdm_ray.replay.shard import sync_folder, write_failure


def export_dataset(dataset: Dataset, to: str, folder: Path, quiet: bool = False) -> None:
    """Write `dataset` into the new `folder` in the format `to`, streaming.

    Raises UserError for an unknown format or a folder that exists, RunFailed where the disk does
    not take it; then nothing is left.
    """
    known = {name: made for name, made in formats().items() if made.writes}
    if to not in known:
        near = suggest_names(to, near_names(to, list(known)))
        raise UserError(f"--to is {to!r}, but one of {', '.join(known)} is expected{near}")
    with (
        write_folder_whole(require_vacant(folder)) as hidden,
        Progress(folder.name, dataset.steps, quiet=quiet) as bar,
    ):
        known[to].write(dataset, hidden, bar.advance)


@contextlib.contextmanager
def write_folder_whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `folder` at the end: all is there, or nothing.

    Where `folder` is there it must be empty. What killed writers of it left goes first. Errors of
    the disk are RunFailed.
    """
    place = folder.resolve()
    hidden = temporary_path(place)
    try:
        remove_leftovers(place.parent, place.name)
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        yield hidden
        for path in (*hidden.rglob("*"), hidden):
            sync_folder(path)
        hidden.rename(place)
        sync_folder(place.parent)
    except OSError as error:
        raise write_failure(folder, error) from None
    except UserError as error:
        if str(hidden) not in str(error):
            raise
        raise type(error)(str(error).replace(str(hidden), str(folder))) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
