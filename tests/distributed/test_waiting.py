"""Waits say what they are for, and end; ranks that are not alike are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bigdm_ray.distributed import waiting
from bigdm_ray.distributed.learners import Standing, check_alike
from bigdm_ray.distributed.pool import GRACE_S, WorkerPool
from bigdm_ray.distributed.waiting import Wait
from bigdm_ray.errors import RunFailed


def test_a_wait_speaks_every_half_minute_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    room = {"CPU": 4.0}, {"CPU": 1.0}
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: room[0])
    monkeypatch.setattr(waiting.ray, "available_resources", lambda: room[1])
    wait = Wait(lambda: "a machine", patience_s=100)
    for _ in range(90):
        now[0] += 1
        wait.check()
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"waiting for a machine ({s} s); free in the cluster: 1 of 4 CPUs, 0 of 0 GPUs"
        for s in (31, 62)
    ]
    wait.news()
    now[0] += 99
    wait.check()
    now[0] += 2
    with pytest.raises(
        RunFailed, match=r"waited 1.68 minutes for a machine; .*--machines.patience"
    ):
        wait.check()


def test_ranks_that_are_not_alike_are_refused_with_what_differs() -> None:
    one = Standing(200, 0xABC, "10.0.0.1", "bigdm-ray 1, torch 2")
    check_alike([one, one._replace(machine="10.0.0.2")])
    for other in (one._replace(step=0), one._replace(crc=1)):
        other = other._replace(machine="10.0.0.2", versions="bigdm-ray 1, torch 3")
        with pytest.raises(RunFailed, match=r"rank 0 on 10.0.0.1 at step 200.*torch 2.*rank 2 on "):
            check_alike([one, one, other])


class Slot(SimpleNamespace):
    """What a pool asks of an ActorSlot."""

    __hash__ = object.__hash__

    def stands(self) -> bool:
        return bool(self.up)

    def missing_s(self) -> float:
        return 0.0 if self.up else float(self.seconds)


def test_another_actor_stands_in_and_never_with_chance_that_was_used() -> None:
    slots: list[Any] = [Slot(up=True, generation=0, seconds=0) for _ in range(3)]
    pool = WorkerPool(slots)
    assert [pool.choose(group) for group in range(4)] == [*slots, slots[0]]
    assert [pool.attempt(1, slots[1]) for _ in range(2)] == [0, 0]
    slots[1].up, slots[1].generation = False, 1
    other = pool.choose(1)
    assert other in (slots[0], slots[2]) and pool.attempt(1, other) == 1
    assert not pool.stuck(slots[1])
    slots[1].seconds = GRACE_S + 1
    assert pool.stuck(slots[1]) and pool.others() and pool.count_missing().startswith("1 of 3")
    slots[1].up = True
    assert pool.choose(1) is slots[1] and pool.attempt(1, slots[1]) == 2
    assert pool.attempt(0, slots[0]) == 0
