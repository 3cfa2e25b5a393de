"""What learners are told of shards: never the name of a file that is gone."""

from __future__ import annotations

from bigdm_ray.distributed.crew import Ledger
from bigdm_ray.replay.shard import ShardRef


def refs(*names: str) -> list[ShardRef]:
    return [ShardRef(name, 1, 2) for name in names]


def test_of_two_saves_between_two_updates_only_the_second_says_where_episodes_are() -> None:
    ledger = Ledger(refs("a"))
    assert ledger.moves() == (refs("a"), [], [])
    ledger.stored(refs("b"))
    ledger.saved(living=refs("c"), released=["a", "b"])  # a and b were compacted into c
    ledger.saved(living=refs("d"), released=["c"])
    assert ledger.moves() == ([], refs("d"), ["a", "b", "c"])
    assert ledger.moves() == ([], [], [])


def test_a_receipt_that_comes_late_names_no_released_shard() -> None:
    ledger = Ledger([])
    a, b, e = (f"episodes-{number:07d}" for number in (0, 1, 4))
    ledger.saved(living=refs(b), released=[a])
    ledger.stored(refs(a, b, e))
    assert ledger.moves() == (refs(e), refs(b), [a])


def test_a_save_of_nothing_changes_nothing() -> None:
    ledger = Ledger([])
    ledger.saved(living=[], released=[])
    ledger.stored(refs("episodes-0000000"))
    ledger.saved(living=[], released=[])
    assert ledger.moves() == (refs("episodes-0000000"), [], [])


def test_what_is_remembered_does_not_grow_with_the_run() -> None:
    ledger = Ledger([])
    for save in range(200):
        ledger.stored(refs(f"episodes-{2 * save:07d}"))
        ledger.saved(
            living=refs(f"episodes-{2 * save + 1:07d}"),
            released=[
                f"episodes-{2 * save + past:07d}" for past in (-1, 0) if 2 * save + past >= 0
            ],
        )
        ledger.moves()
        ledger.stored(refs(*(f"episodes-{old:07d}" for old in range(2 * save + 1))))
        assert ledger.moves() == ([], [], []), "a late receipt names what is gone"
    ledger.saved(living=refs("episodes-0000399", "from-a-friend"), released=[])
    ledger.moves()
    ledger.saved(living=refs("episodes-0000399"), released=[])
    ledger.moves()
    ledger.stored(refs("episodes-0000399", "episodes-0000400"))
    assert ledger.moves()[0] == refs("episodes-0000400")
    assert sum(len(kept) for kept in vars(ledger).values() if not isinstance(kept, str)) <= 5


def test_learners_that_were_made_anew_are_told_what_lives() -> None:
    ledger = Ledger([])
    ledger.stored(refs("a"))
    ledger.saved(living=refs("b"), released=["a"])
    ledger.restart(refs("b", "c"))
    assert ledger.moves() == (refs("b", "c"), [], [])


def test_a_save_does_not_tell_again_what_the_learners_know() -> None:
    ledger = Ledger(refs("episodes-0"))
    ledger.stored(refs("episodes-1"))
    ledger.moves()
    ledger.stored(refs("episodes-1", "episodes-2"))
    ledger.saved(living=refs("episodes-0", "episodes-1", "episodes-2"), released=[])
    assert ledger.moves() == (refs("episodes-2"), [], [])
    ledger.saved(living=refs("episodes-0", "episodes-1", "episodes-2"), released=[])
    assert ledger.moves() == ([], [], [])
