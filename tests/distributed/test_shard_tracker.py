"""What learners are told of shards: never the name of a file that is gone."""

from __future__ import annotations

from bigdm_ray.distributed.executor import ShardTracker
from bigdm_ray.replay.shard import ShardRef


def refs(*names: str) -> list[ShardRef]:
    return [ShardRef(name, 1, 2) for name in names]


def test_of_two_saves_between_two_updates_only_the_second_says_where_episodes_are() -> None:
    tracker = ShardTracker(refs("a"))
    assert tracker.moves() == (refs("a"), [], [])
    tracker.note_stored(refs("b"))
    tracker.note_saved(living=refs("c"), released=["a", "b"])  # a and b were compacted into c
    tracker.note_saved(living=refs("d"), released=["c"])
    assert tracker.moves() == ([], refs("d"), ["a", "b", "c"])
    assert tracker.moves() == ([], [], [])


def test_a_receipt_that_comes_late_names_no_released_shard() -> None:
    tracker = ShardTracker([])
    a, b, e = (f"episodes-{number:07d}" for number in (0, 1, 4))
    tracker.note_saved(living=refs(b), released=[a])
    tracker.note_stored(refs(a, b, e))
    assert tracker.moves() == (refs(e), refs(b), [a])


def test_a_save_of_nothing_changes_nothing() -> None:
    tracker = ShardTracker([])
    tracker.note_saved(living=[], released=[])
    tracker.note_stored(refs("episodes-0000000"))
    tracker.note_saved(living=[], released=[])
    assert tracker.moves() == (refs("episodes-0000000"), [], [])


def test_what_is_remembered_does_not_grow_with_the_run() -> None:
    tracker = ShardTracker([])
    for save in range(200):
        tracker.note_stored(refs(f"episodes-{2 * save:07d}"))
        tracker.note_saved(
            living=refs(f"episodes-{2 * save + 1:07d}"),
            released=[
                f"episodes-{2 * save + past:07d}" for past in (-1, 0) if 2 * save + past >= 0
            ],
        )
        tracker.moves()
        tracker.note_stored(refs(*(f"episodes-{old:07d}" for old in range(2 * save + 1))))
        assert tracker.moves() == ([], [], []), "a late receipt names what is gone"
    tracker.note_saved(living=refs("episodes-0000399", "from-a-friend"), released=[])
    tracker.moves()
    tracker.note_saved(living=refs("episodes-0000399"), released=[])
    tracker.moves()
    tracker.note_stored(refs("episodes-0000399", "episodes-0000400"))
    assert tracker.moves()[0] == refs("episodes-0000400")
    assert sum(len(kept) for kept in vars(tracker).values() if not isinstance(kept, str)) <= 5


def test_learners_that_were_made_anew_are_told_what_lives() -> None:
    tracker = ShardTracker([])
    tracker.note_stored(refs("a"))
    tracker.note_saved(living=refs("b"), released=["a"])
    tracker.restart(refs("b", "c"))
    assert tracker.moves() == (refs("b", "c"), [], [])


def test_a_save_does_not_tell_again_what_the_learners_know() -> None:
    tracker = ShardTracker(refs("episodes-0"))
    tracker.note_stored(refs("episodes-1"))
    tracker.moves()
    tracker.note_stored(refs("episodes-1", "episodes-2"))
    tracker.note_saved(living=refs("episodes-0", "episodes-1", "episodes-2"), released=[])
    assert tracker.moves() == (refs("episodes-2"), [], [])
    tracker.note_saved(living=refs("episodes-0", "episodes-1", "episodes-2"), released=[])
    assert tracker.moves() == ([], [], [])
