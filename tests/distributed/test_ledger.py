"""What learners are told of shards: never the name of a file that is gone."""

from __future__ import annotations

from bigdm_ray.distributed.crew import Ledger


def test_of_two_saves_between_two_updates_only_the_second_says_where_episodes_are() -> None:
    ledger = Ledger(["a"])
    assert ledger.moves() == (["a"], [], [])
    ledger.stored(["b"])
    ledger.saved(living=["c"], released=["a", "b"])  # a and b were compacted into c
    ledger.saved(living=["d"], released=["c"])
    assert ledger.moves() == ([], ["d"], ["a", "b", "c"])
    assert ledger.moves() == ([], [], [])


def test_a_receipt_that_comes_late_names_no_released_shard() -> None:
    ledger = Ledger([])
    ledger.saved(living=["b"], released=["a"])
    ledger.stored(["a", "b", "e"])
    assert ledger.moves() == (["b", "e"], ["b"], ["a"])


def test_learners_that_were_made_anew_are_told_what_lives() -> None:
    ledger = Ledger([])
    ledger.stored(["a"])
    ledger.saved(living=["b"], released=["a"])
    ledger.restart(["b", "c"])
    assert ledger.moves() == (["b", "c"], [], [])
