"""Shards of another machine's folder: what does not come whole is fetched again, or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from making import episode

from bigdm_ray.distributed.shard_server import Home, LearnerShards, ShardCache
from bigdm_ray.errors import RunFailed
from bigdm_ray.replay import Store
from bigdm_ray.replay.store import ShardRef

Fetch = Callable[[str], "np.ndarray | None"]


def shard(folder: Path) -> tuple[ShardRef, np.ndarray]:
    """A shard of one episode: what names it, and its bytes."""
    store = Store(folder)
    (ref,) = store.add([episode(0)]).shards
    return ref, np.fromfile(folder / ref.name, np.uint8)


def test_what_does_not_come_whole_is_fetched_again(tmp_path: Path) -> None:
    ref, data = shard(tmp_path / "there")
    flipped = data.copy()
    flipped[len(data) // 2] ^= 1
    sent = [data[:-9], flipped, data]
    asked: list[str] = []

    def fetch(name: str) -> np.ndarray:
        asked.append(name)
        return sent[min(len(asked), len(sent)) - 1]

    cache = ShardCache(tmp_path / "here", fetch)
    assert cache.open(ref, whole=True).ref == ref and asked == [ref.name] * 3
    assert cache.open(ref, whole=False).ref == ref and len(asked) == 3, "it is there now"
    (tmp_path / "here" / ref.name).write_bytes(flipped.tobytes())
    assert cache.open(ref, whole=True).ref == ref and len(asked) == 4, "it had decayed"
    (tmp_path / "here" / f".{ref.name}.returns.npy").touch()
    cache.drop([ref.name, "episodes-0000099.arrow"])
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("what", ["nothing", "another"])
def test_what_never_comes_whole_is_one_sentence(what: str, tmp_path: Path) -> None:
    ref, data = shard(tmp_path / "there")
    fetch: dict[str, Fetch] = {"nothing": lambda name: None, "another": lambda name: data}
    cache = ShardCache(tmp_path / "here", fetch[what])
    told = {"nothing": "there is no such file", "another": "another one than"}[what]
    other = ref._replace(crc=1)
    with pytest.raises(RunFailed, match=f"{ref.name} does not come whole .*{told}.*--resume"):
        cache.open(other, whole=False)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.ray
def test_a_shard_server_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    import ray

    @ray.remote
    class Silent:
        def names(self, task: str) -> list[str]:
            time.sleep(600)
            return []

    silent: Any = Silent
    server = silent.options(num_cpus=0).remote()
    run = tiny("--machines.patience 0.001")
    shards = LearnerShards(run, Home("another machine", str(tmp_path), server))
    try:
        with pytest.raises(RunFailed, match=r"cannot reach the machine of .*; --resume goes on"):
            shards._ask("names", run.task)
    finally:
        shards.close()
        ray.kill(server)
