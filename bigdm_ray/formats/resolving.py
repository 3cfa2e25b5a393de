"""The datasets that the TASK of a command may name."""

from __future__ import annotations

from pathlib import Path

from bigdm_ray.envs.task import tasks
from bigdm_ray.formats.dataset import CARD, Dataset


def resolve(text: str) -> Dataset | None:
    """The dataset that a TASK names: the path of a folder, or `minari:ID`, which is imported into
    ./datasets at its first use.

    None for anything else, `suite/task` among it. Raises UserError for a folder that holds none,
    and RunFailed where a download fails.
    """
    if text.startswith("minari:"):
        # here, so that the help of a door reads no format
        from bigdm_ray.formats.importing import import_dataset
        from bigdm_ray.formats.minari_source import dataset_id

        folder = Path("datasets") / str(dataset_id(text)).replace("/", "-")
        return Dataset.open(folder) if (folder / CARD).is_file() else import_dataset([text], folder)
    folder = Path(text)
    if folder.is_dir():
        return Dataset.open(folder)
    suite, slash, _ = text.partition("/")
    if not slash or ":" in text or suite in {task.suite for task in tasks().values()}:
        return None
    return Dataset.open(folder)
