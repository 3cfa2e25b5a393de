"""Mixtures: files of tasks, where their data are, and how often each is drawn.

    name: small
    about: what it is for
    tasks:
      - babyai/goto-local
      - {task: hopper, weight: 2, source: hopper-expert}

The dataset of a task lies in a folder of its own below one root: `source`, or the task's name with
`-` for what no folder's name has. Mixtures that ship are the files of `bigdm_ray/mixtures`; one of
them is named, any other given by its path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigdm_ray.errors import UserError, quote_value, suggest_names
from bigdm_ray.formats.dataset import CARD
from bigdm_ray.training.config.files import YAML, TaskEntry, entry_of

SHIPPED = Path(__file__).parents[2] / "mixtures"
ROOT = Path("datasets")
"""Where datasets are looked for, unless `--data` says."""


@dataclass(frozen=True)
class MixtureFile:
    """What a file says."""

    name: str
    tasks: tuple[TaskEntry, ...]
    """With the names of their folders as targets."""
    about: str = ""


def shipped_mixtures() -> list[str]:
    """The names of the mixtures that ship."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def mixture_path(target: str) -> Path | None:
    """The file that a TASK names, if it is that of a mixture."""
    if target in shipped_mixtures():
        return SHIPPED / f"{target}.yaml"
    return Path(target) if Path(target).suffix in YAML else None


def read_mixture(path: Path) -> MixtureFile:
    """The content of a file. Raises UserError."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        known = ", ".join(shipped_mixtures())
        raise UserError(
            f"cannot read the mixture {path}: {error.strerror}; those that ship are {known}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({error})") from None
    if not isinstance(data, Mapping):
        raise UserError(f"{path} holds no mixture; a list of `tasks:` is expected")
    keys = ["name", "about", "tasks"]
    for key in data:
        if key not in keys:
            raise UserError(
                f"{path} has the unknown setting {quote_value(key)}{suggest_names(str(key), keys)}"
            )
    told = data.get("tasks")
    if not isinstance(told, list) or not told:
        raise UserError(f"{path} is a mixture without tasks; a list of `tasks:` is expected")
    entries = [_entry(one, str(path)) for one in told]
    names = [entry.task for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has the task {twice[0]} twice; give it once, with a weight")
    return MixtureFile(str(data.get("name", path.stem)), tuple(entries), str(data.get("about", "")))


def _entry(value: Any, where: str) -> TaskEntry:
    """A task, and the name of the folder that its dataset lies in."""
    entry = entry_of(value, where)
    task = entry.task or entry.target
    own = entry.target != task
    return TaskEntry(entry.target if own else folder_of(task), task, entry.weight)


def folder_of(task: str) -> str:
    """The name of the folder that a task's dataset has."""
    return re.sub(r"[^0-9A-Za-z.]+", "-", task).strip("-")


def expand(entries: Sequence[TaskEntry], root: Path | None) -> list[TaskEntry]:
    """Entries with the tasks of a mixture in the place of its name.

    Raises UserError where data are missing, or `root` is given without a mixture.
    """
    found: list[TaskEntry] = []
    mixed = False
    for entry in entries:
        path = mixture_path(entry.target)
        if path is None:
            found.append(entry)
            continue
        mixed = True
        found += _with_data(read_mixture(path), root or ROOT)
    if root is not None and not mixed:
        raise UserError(
            f"--data is {root}, but no mixture is named whose data it could hold; those that ship"
            f" are {', '.join(shipped_mixtures())}"
        )
    return found


def _with_data(mixture: MixtureFile, root: Path) -> list[TaskEntry]:
    """The tasks of a mixture with the folders of their datasets. Raises UserError."""
    found: list[TaskEntry] = []
    missing: list[TaskEntry] = []
    for entry in mixture.tasks:
        folder = root / entry.target
        there = (folder / CARD).is_file()
        (found if there else missing).append(TaskEntry(str(folder), entry.task, entry.weight))
    if missing:
        task, first = missing[0].task, missing[0].target
        raise UserError(
            f"the mixture {mixture.name} lacks the data of {len(missing)} of its"
            f" {len(mixture.tasks)} tasks in {root}; the first is {task}, which would lie in"
            f" {first}: record it with `python -m bigdm_ray.data experts {task} --folder {root}`,"
            " or import it with `python -m bigdm_ray.data import`, or say with --data where they"
            " are"
        )
    return found
