"""A dataset larger than memory: draws are those of a plain store of the shards in memory, and every
step has its turn."""

import numpy as np
import pytest
from making import episode, same_windows

from bigdm_ray.replay import Store, View
from bigdm_ray.replay.rotating import LONGEST as TURN
from bigdm_ray.replay.rotating import RotatingStore, turn_of
from bigdm_ray.training.streams import rng

SHARDS = 5


@pytest.fixture
def folder(tmp_path):
    writer = Store(tmp_path, flat_bytes=0)
    chance = np.random.default_rng(0)
    for shard in range(SHARDS):
        lengths = chance.integers(2, 9, 4 + shard)
        writer.add(
            [
                episode((shard, 0, i), length=int(n), kind="image", terminated=bool(i % 2))
                for i, n in enumerate(lengths)
            ]
        )
    return tmp_path


def rotating(folder, slots):
    largest = max(path.stat().st_size for path in folder.glob("*.arrow"))
    return RotatingStore(folder, slots * largest).open()


VIEWS = [
    View(columns=("returns_to_go", "steps_remaining"), weight="length"),
    View(
        length=4,
        anchor="end",
        pad="left",
        stack=2,
        next_observation=True,
        terminals=True,
        columns=("returns_to_go",),
    ),
    View(weight="length", best=0.3),
    View(length=3, above=0.5),
]


@pytest.mark.parametrize("view", VIEWS, ids=["columns", "windows", "best", "above"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_draws_equal_those_of_a_plain_store_of_the_shards_in_memory(view, slots, folder):
    store, whole = rotating(folder, slots), Store(folder, flat_bytes=0, write=False).open()
    for turn in (0, 1, 3, SHARDS, 2 * SHARDS + 1, 0):
        for again in range(2):
            got = store.draw(view, rng(1, "draw", again), 32, turn=turn * TURN + again)
            positions, steps = store._rows(view, rng(1, "draw", again), 32, turn * TURN + again)
            timesteps, mask = view.span(steps, whole.table.lengths[positions])
            want = whole._fetch(view, positions, timesteps)
            eligible = set(view.eligible_episodes(whole.table).tolist())
            assert set(positions.tolist()) <= eligible
            assert len({int(n) for n in whole._where[positions, 0]}) <= slots
            for path, values in want.observations.items():
                np.testing.assert_array_equal(got.observations[path][mask], values[mask])
            for path, values in want.next_observations.items():
                np.testing.assert_array_equal(got.next_observations[path][mask], values[mask])
            for name, values in want.columns.items():
                np.testing.assert_array_equal(got.columns[name][mask], values[mask])
            np.testing.assert_array_equal(got.actions[""][mask], want.actions[""][mask])
            np.testing.assert_array_equal(got.rewards[mask], want.rewards[mask])


def test_every_step_has_its_turn_and_a_turn_changes_one_shard(folder):
    store, view = rotating(folder, 2), View(weight="length")
    seen, before = set(), None
    for turn in range(SHARDS):
        for number in range(30):
            positions, steps = store._rows(view, rng(0, "draw", number), 200, turn * TURN + number)
            seen |= set(zip(positions.tolist(), steps.tolist(), strict=True))
        now = set(store._held)
        assert before is None or len(now & before) == 1
        before = now
    assert len(seen) == store.table.lengths.sum()


def test_what_is_drawn_follows_from_the_number_of_the_draw_alone(folder):
    view = View(length=3, columns=("returns_to_go",))
    went, jumped = rotating(folder, 2), rotating(folder, 2)
    for number in range(0, 4 * TURN, 50):
        went.draw(view, rng(0, "draw", number), 8, turn=number)
    at = 3 * TURN + 7
    same_windows(
        went.draw(view, rng(0, "draw", at), 16, turn=at),
        jumped.draw(view, rng(0, "draw", at), 16, turn=at),
    )


def test_annotated_steps_are_drawn_from_the_shards_in_memory(folder):
    store = rotating(folder, 2)
    total = int(store.table.lengths.sum())
    marks = (np.arange(total) % 3 == 0).astype(np.float32)
    store.annotate({"selected": marks, "place": np.arange(total, dtype=np.float32)})
    view = View(among="selected", annotations=("place",))
    seen = set()
    for turn in range(SHARDS):
        drawn = store.draw(view, rng(0, "draw", turn), 300, turn=turn * TURN)
        places = drawn.annotations["place"].ravel().astype(int)
        assert (marks[places] == 1).all()
        shards = store._where[np.searchsorted(store.table.ends, places, side="right"), 0]
        assert set(shards.tolist()) <= set(store._held)
        seen |= set(places.tolist())
    assert len(seen) == marks.sum()


@pytest.mark.parametrize(
    ("draws", "shards", "turn"), [(1500, 12, 31), (100_000, 6, 500), (1000, 1000, 20), (1, 1, 20)]
)
def test_a_training_goes_round_all_shards_several_times_where_it_can(draws, shards, turn):
    assert turn_of(draws, shards) == turn


def test_the_pace_of_a_dataset_follows_from_the_draws(folder):
    store = RotatingStore(folder, 1, turn_of(20 * SHARDS, SHARDS)).open()
    seen = set()
    for number in range(20 * SHARDS):
        positions, _ = store._rows(View(weight="length"), rng(0, "draw", number), 8, number)
        seen |= {int(n) for n in store._where[positions, 0]}
    assert seen == set(range(SHARDS))


def test_a_view_that_no_episode_passes_is_told(folder):
    with pytest.raises(ValueError, match="no episode may be drawn"):
        rotating(folder, 2).draw(View(above=1e9), rng(0, "draw", 0), 4)
