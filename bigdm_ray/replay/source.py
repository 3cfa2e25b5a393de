"""Where shards are: one small interface through which a store opens them.

Today they are files of one folder. Whatever else may hold them (a cache that fetches, say) is asked
in the same way: for the shard that a reference names, which is held against its size and checksum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bigdm_ray.replay.files import file_name
from bigdm_ray.replay.shard import SUFFIX, CorruptShard, Shard, ShardRef, open_once


class ShardSource(Protocol):
    """Opens what a reference names."""

    def open(self, ref: ShardRef, whole: bool) -> Shard:
        """The shard; where it is asked for as a `whole`, with every byte of it checked.

        Raises CorruptShard, also where it is not there or another one than `ref` says, NewerShard
        and ClosedShard.
        """


class FolderSource:
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, ref: ShardRef, whole: bool) -> Shard:
        """See ShardSource. A file is read once a process as long as it does not change."""
        try:
            path = self._folder / file_name(ref.name, SUFFIX)
        except ValueError as error:
            raise CorruptShard(str(error)) from None
        found = open_once(path) if whole else Shard.open(path)
        for what, told, is_now in (
            ("long", ref.size, found.nbytes),
            ("of checksum", ref.crc, found.crc),
        ):
            if told is not None and told != is_now:
                raise CorruptShard(f"it is {is_now} {what} where {told} was acknowledged")
        return found
