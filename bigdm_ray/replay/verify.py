"""Reading every byte of every shard of a folder, and setting aside those that are not sound."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bigdm_ray.errors import RunFailed
from bigdm_ray.replay.shard import SUFFIX, ClosedShard, CorruptShard, NewerShard, Shard


class VerifyResult(NamedTuple):
    """What `verify` found."""

    sound: int  # shards
    episodes: int  # in them
    problems: list[str]  # one sentence for each shard that is not sound
    aside: int  # how many of those were set aside; the others are left as they are


def verify(folder: Path) -> VerifyResult:
    """Read every byte of every shard, and set aside those that are not sound.

    One of a newer version, or that cannot be opened now, is named and left as it is. Raises
    RunFailed where a shard cannot be renamed.
    """
    sound, episodes, aside, problems = 0, 0, 0, list[str]()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            opened = Shard.open(path, verify=True)
            for row in range(len(opened.ids)):
                if problem := opened.episode(row).problem():
                    raise CorruptShard(f"in its episode {opened.ids[row]}, {problem}")
            sound, episodes = sound + 1, episodes + len(opened.ids)
        except (NewerShard, ClosedShard) as error:
            problems.append(str(error))
        except CorruptShard as error:
            if not path.exists():  # a run that goes on has let go of it
                continue
            try:
                path.rename(path.with_name(f"{path.name}.corrupt"))
            except OSError as failed:
                raise RunFailed(
                    f"cannot set aside {path}: {failed.strerror}; "
                    f"verify again where {folder} can be written and no run uses it"
                ) from None
            aside += 1
            problems.append(f"shard {path} is set aside as {path.name}.corrupt: {error}")
    return VerifyResult(sound, episodes, problems, aside)
