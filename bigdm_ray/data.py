"""Look after stored episodes: `python -m bigdm_ray.data COMMAND ...`.

    python -m bigdm_ray.data import hopper-medium.parquet --folder datasets/hopper-medium
    python -m bigdm_ray.data import a.parquet b.parquet --steps 150000 --folder datasets/hopper-medium-expert
    python -m bigdm_ray.data verify runs/udrl-lunarlander-1          the store of a run
    python -m bigdm_ray.data verify datasets/hopper-medium           shards, card and content of a dataset

`import` streams, shows a bar on a terminal, and goes on where it was stopped when the same command is given again. `verify`
reads every byte of every shard and compares checksums. A shard that is not sound is set aside as NAME.corrupt, which
no reader opens. The exit code is 0 where all is sound, 1 where something is not, 2 where there is nothing to verify.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.replay.shard import SUFFIX
from bigdm_ray.replay.store import verify


def counted(n: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


# --- import


def importing(given: argparse.Namespace) -> int:
    """`import`: print the card of what was made."""
    from bigdm_ray.formats.importing import import_dataset

    if given.steps is not None and given.steps < 1:
        raise UserError(f"--steps is {given.steps}, but at least 1 is expected")
    print(card(import_dataset(given.sources, given.folder, given.task, given.steps, given.quiet)))
    return 0


def card(dataset: Dataset) -> str:
    """What a dataset is, for a terminal."""
    rows = {
        "task": dataset.task,
        "source": dataset.source,
        "episodes": f"{dataset.episodes:,}",
        "steps": f"{dataset.steps:,}",
        "return mean": f"{dataset.return_mean:,.2f}",
        "return std": f"{dataset.return_std:,.2f}",
        "return min, max": f"{dataset.return_min:,.2f}, {dataset.return_max:,.2f}",
        "versions": ", ".join(f"{name} {version}" for name, version in dataset.versions.items()) or "not told",
        "sha256": dataset.sha256,
    }
    return "\n".join([f"dataset {dataset.folder}", *(f"  {name:<18}{value}" for name, value in rows.items())])


# --- verify


def store_of(folder: Path) -> Path:
    """The folder that holds the shards: FOLDER/store of a run folder, else FOLDER. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; a run folder, a dataset or a folder of shards is expected")
    store = folder / "store" if (folder / "store").is_dir() else folder
    if not any(store.glob(f"*{SUFFIX}")):
        aside = len(list(store.glob(f"*{SUFFIX}.corrupt")))
        earlier = f" ({aside} were set aside as *{SUFFIX}.corrupt earlier)" if aside else ""
        raise UserError(f"{store} holds no shards{earlier}; a run folder, a dataset or a folder of *{SUFFIX} files is expected")
    return store


def verify_folder(folder: Path) -> int:
    """Print a line for each shard that is set aside and a summary; the exit code. Raises UserError."""
    store = store_of(folder)
    try:
        sound, episodes, problems = verify(store)
    except OSError as error:
        raise RunFailed(f"cannot set aside {error.filename}: {error.strerror}; verify again where {store} can be written and no run uses it") from None
    if (store / CARD).is_file():
        problems += card_problems(Dataset.open(store), episodes)
    for problem in problems:
        print(problem)
    print(f"{store}: {counted(sound, 'sound shard')} with {counted(episodes, 'episode')}, {counted(len(problems), 'problem')}")
    return 1 if problems else 0


def card_problems(dataset: Dataset, episodes: int) -> list[str]:
    """What the card of a dataset says that its content does not."""
    if episodes != dataset.episodes:
        return [f"{dataset.folder / CARD} says {dataset.episodes:,} episodes where {episodes:,} are sound; import the dataset anew"]
    if (found := dataset.content_hash()) != dataset.sha256:
        return [f"{dataset.folder / CARD} says the content hash {dataset.sha256} where it is {found}; import the dataset anew"]
    return []


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(prog="python -m bigdm_ray.data", description="Look after stored episodes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    imports = commands.add_parser("import", help="make a dataset of foreign episodes")
    imports.add_argument("sources", metavar="SOURCE", nargs="+", help="a file, a folder, or minari:NAMESPACE/NAME-v0; several are joined in this order")
    imports.add_argument("--folder", metavar="DATASET", type=Path, required=True, help="the folder to make")
    imports.add_argument("--task", metavar="TASK", help="the task of the episodes, where the source does not say it")
    imports.add_argument("--steps", metavar="N", type=int, help="take of each source the first whole episodes that together reach N steps")
    imports.add_argument("--quiet", action="store_true", help="no progress bar")
    imports.set_defaults(act=importing)

    check = commands.add_parser("verify", help="read every byte of every shard and set aside those that are not sound")
    check.add_argument("folder", metavar="FOLDER", type=Path, help="a run folder, a dataset, or a folder of shards")
    check.set_defaults(act=lambda given: verify_folder(given.folder))

    given = parser.parse(arguments)
    code: int = given.act(given)
    return code


if __name__ == "__main__":
    raise SystemExit(door(main))
