"""Look after stored episodes: `python -m bigdm_ray.data COMMAND FOLDER`.

    python -m bigdm_ray.data verify runs/udrl-lunarlander-1          the store of a run
    python -m bigdm_ray.data verify runs/udrl-lunarlander-1/store    a folder of shards

`verify` reads every byte of every shard and compares checksums. A shard that is not sound is set aside as NAME.corrupt, which
no reader opens. The exit code is 0 where all is sound, 1 where a shard was set aside, 2 where there is nothing to verify.
"""

from __future__ import annotations

from pathlib import Path

from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.replay.shard import SUFFIX
from bigdm_ray.replay.store import verify


def store_of(folder: Path) -> Path:
    """The folder that holds the shards: FOLDER/store of a run folder, else FOLDER. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; a run folder or a folder of shards is expected")
    store = folder / "store" if (folder / "store").is_dir() else folder
    if not any(store.glob(f"*{SUFFIX}")):
        aside = len(list(store.glob(f"*{SUFFIX}.corrupt")))
        earlier = f" ({aside} were set aside as *{SUFFIX}.corrupt earlier)" if aside else ""
        raise UserError(f"{store} holds no shards{earlier}; a run folder or a folder of *{SUFFIX} files is expected")
    return store


def verify_folder(folder: Path) -> int:
    """Print a line for each shard that is set aside and a summary; the exit code. Raises UserError."""
    store = store_of(folder)
    try:
        sound, episodes, problems = verify(store)
    except OSError as error:
        raise RunFailed(f"cannot set aside {error.filename}: {error.strerror}; verify again where {store} can be written and no run uses it") from None
    for problem in problems:
        print(problem)
    print(f"{store}: {counted(sound, 'sound shard')} with {counted(episodes, 'episode')}, {len(problems)} set aside")
    return 1 if problems else 0


def counted(n: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(prog="python -m bigdm_ray.data", description="Look after stored episodes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    check = commands.add_parser("verify", help="read every byte of every shard and set aside those that are not sound")
    check.add_argument("folder", metavar="FOLDER", type=Path, help="a run folder, or a folder of shards")
    return verify_folder(parser.parse(arguments).folder)


if __name__ == "__main__":
    raise SystemExit(door(main))
