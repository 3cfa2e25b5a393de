"""Draws: fast gathering from flat arrays and from maps equals a slow loop over episodes, for every
kind of View."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import episode, same_windows

from bigdm_ray.replay import Retention, Store, View, Windows
from bigdm_ray.replay import store as stores
from bigdm_ray.replay.episode import EpisodeId, broadcast_held, bytes_of, is_held
from bigdm_ray.replay.rotating import RotatingStore
from bigdm_ray.replay.shard import encode
from bigdm_ray.training.streams import rng

LENGTHS = [5, 1, 12, 3, 7, 2, 9]
KINDS = ["vector", "image", "nested", "volume", "mission"]


def made(kind):
    if kind == "mission":  # two leaves that hold for the whole episode
        return [
            dataclasses.replace(
                e,
                observations={
                    "mission": broadcast_held(np.full(6, 65 + number, np.int32), e.length + 1),
                    "picture": broadcast_held(e.observations["eye"][0], e.length + 1),
                    "joints": e.observations["joints"],
                },
            )
            for number, e in enumerate(made("image"))
        ]
    if kind != "volume":
        return [
            episode((number // 2, number % 2, 0), length, kind, terminated=number % 3 != 1)
            for number, length in enumerate(LENGTHS)
        ]
    out = []
    for e in made("image"):  # a float leaf of three axes is no image: it is not stacked
        out.append(
            dataclasses.replace(
                e, observations=e.observations | {"field": e.observations["eye"].astype(np.float32)}
            )
        )
    return out


def reference(view, episodes, positions, steps):
    """The windows of a view one step after another. `episodes` in the order of the table."""
    rows = []
    for position, drawn in zip(positions, steps, strict=True):
        e = episodes[position]
        first, last = (
            (drawn, min(drawn + view.length, e.length))
            if view.anchor == "start"
            else (max(0, drawn - view.length + 1), drawn + 1)
        )
        times = list(range(first, last))
        empty = [None] * (view.length - len(times))
        rows.append([(e, t) for t in (empty + times if view.pad == "left" else times + empty)])

    def seen(e, path, t):
        values = e.observations[path]
        if view.stack == 1 or values.dtype != np.uint8:
            return values[t]
        return np.concatenate([values[max(0, t - back)] for back in reversed(range(view.stack))])

    def column(e, name, t):
        return np.float32(
            e.length - t if name == "steps_remaining" else sum(e.rewards[t:].tolist())
        )

    def windows(of):
        sample = np.asarray(next(of(e, t) for row in rows for e, t in row if t is not None))
        return np.array(
            [[np.zeros_like(sample) if t is None else of(e, t) for e, t in row] for row in rows],
            sample.dtype,
        )

    like = episodes[0]
    return Windows(
        {path: windows(lambda e, t, path=path: seen(e, path, t)) for path in like.observations},
        {path: windows(lambda e, t, path=path: e.actions[path][t]) for path in like.actions},
        windows(lambda e, t: e.rewards[t]),
        np.array([[t is not None for _, t in row] for row in rows]),
        np.array([[0 if t is None else t for _, t in row] for row in rows], np.int64),
        {name: windows(lambda e, t, name=name: column(e, name, t)) for name in view.columns},
        {path: windows(lambda e, t, path=path: seen(e, path, t + 1)) for path in like.observations}
        if view.next_observation
        else {},
        terminated=windows(lambda e, t: e.terminated and t == e.length - 1)
        if view.terminals
        else None,
    )


def close_windows(a, b):
    """Equal, but returns-to-go to rounding: the loop adds up in another order."""
    same_windows(dataclasses.replace(a, columns={}), dataclasses.replace(b, columns={}))
    for name, values in a.columns.items():
        np.testing.assert_allclose(values, b.columns[name], rtol=1e-6, atol=1e-6)


class Folders(dict):
    """Kind -> episodes in the order of the table, and the three stores; with a name short enough
    for reports."""

    def __repr__(self):
        return "folders"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """For each kind of leaves, stores of the same seven episodes in three shards: all flat, none,
    and some."""
    out = Folders()
    for kind in KINDS:
        episodes = made(kind)
        folder = tmp_path_factory.mktemp(kind)
        store = Store(folder)
        parts = (episodes[:3], episodes[5:], episodes[3:5])
        for number, part in enumerate(parts):
            store.add([spread(e) for e in part] if number == 1 else part)
        slot = store._flat._slot_bytes
        out[kind] = (
            [e for part in parts for e in part],
            [store, Store(folder, flat_bytes=0).open(), Store(folder, flat_bytes=20 * slot).open()],
        )
    return out


def spread(e):
    """What holds for the whole episode stored at each step, as a task that does not tell has it."""
    return dataclasses.replace(e, observations={p: v.copy() for p, v in e.observations.items()})


def test_what_holds_for_the_whole_episode_is_stored_once(tmp_path):
    episodes = made("mission")
    rows = sum(e.length for e in episodes)
    assert len(encode(episodes)) < len(encode([spread(e) for e in episodes])) - rows * 40
    store, again = Store(tmp_path / "a"), Store(tmp_path / "b")
    store.add(episodes)
    again.add_encoded(encode([store.episode(row) for row in range(len(episodes))]))
    (shard,) = store._shards.values()
    assert (
        shard.held["mission"].shape == (len(episodes), 6)
        and not again._flat.observations.keys() & shard.held.keys()
    )
    for row, e in enumerate(episodes):
        for path, values in store.episode(row).observations.items():
            np.testing.assert_array_equal(values, e.observations[path])
            assert is_held(values) == (path != "joints")
    assert bytes_of(store.episode(0)) == bytes_of(episodes[0]) < bytes_of(spread(episodes[0]))
    moves = dataclasses.replace(spread(episodes[0]), id=EpisodeId(99, 0, 0))
    moves.observations["mission"][1] = 0  # whoever said that it holds was wrong
    store.add([moves])
    windows = store.draw(View(weight="length"), np.random.default_rng(0), 300)
    assert {0, 65} <= set(windows.observations["mission"][:, 0, 0].tolist())


def test_rotating_shards_draw_what_holds_for_whole_episodes(folders):
    _, (flat, *_) = folders["mission"]
    view = View(length=3, stack=2, next_observation=True, weight="length")
    rotating = RotatingStore(flat.folder, 1 << 30).open()
    a, b = (store.draw(view, np.random.default_rng(0), 50) for store in (flat, rotating))
    same_windows(a, b)


views = st.builds(
    View,
    length=st.integers(1, 6),
    weight=st.sampled_from(["episode", "length"]),
    anchor=st.sampled_from(["start", "end"]),
    pad=st.sampled_from(["left", "right"]),
    columns=st.sampled_from(
        [(), ("returns_to_go",), ("steps_remaining",), ("steps_remaining", "returns_to_go")]
    ),
    best=st.sampled_from([0.2, 0.6, 1.0]),
    above=st.sampled_from([None, -2.0, -0.5]),
    stack=st.sampled_from([1, 2, 4]),
    next_observation=st.booleans(),
    terminals=st.booleans(),
)


def test_the_three_stores_keep_their_episodes_where_the_tests_below_want_them(folders):
    for _, (flat, maps, some) in folders.values():
        assert (flat._where[:, 2] >= 0).all() and (maps._where[:, 2] < 0).all()
        assert 0 < (some._where[:, 2] >= 0).sum() < len(LENGTHS)


@settings(max_examples=60)
@given(view=views, kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), size=st.integers(1, 40))
def test_draws_equal_a_loop_over_episodes(folders, view, kind, seed, size):
    episodes, (flat, maps, some) = folders[kind]
    positions, steps = view.rows(flat.table, np.random.default_rng(seed), size)
    drawn = flat.draw(view, np.random.default_rng(seed), size)
    close_windows(drawn, reference(view, episodes, positions, steps))
    same_windows(drawn, maps.draw(view, np.random.default_rng(seed), size))
    same_windows(drawn, some.draw(view, np.random.default_rng(seed), size))


@given(
    view=views,
    which=st.integers(0, 2),
    seed=st.integers(0, 99),
    size=st.integers(1, 17),
    world=st.integers(1, 5),
)
def test_the_shares_of_all_ranks_together_are_the_batch_of_one(
    folders, view, which, seed, size, world
):
    store = folders["image"][1][which]
    whole = store.draw(view, np.random.default_rng(seed), size)
    shares = [
        store.draw(view, np.random.default_rng(seed), size, rank, world) for rank in range(world)
    ]
    assert max(len(s.mask) for s in shares) - min(len(s.mask) for s in shares) <= 1

    def joined(name):
        parts = [getattr(share, name) for share in shares]
        if parts[0] is None:
            return None
        return (
            {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            if isinstance(parts[0], dict)
            else np.concatenate(parts)
        )

    same_windows(
        whole, Windows(**{field.name: joined(field.name) for field in dataclasses.fields(Windows)})
    )


def test_padding_is_zero_and_masked(folders):
    for store in folders["nested"][1]:
        windows = store.draw(
            View(length=6, columns=("returns_to_go",), next_observation=True),
            np.random.default_rng(0),
            200,
        )
        assert 0.2 < windows.mask.mean() < 0.9
        for values in (
            *windows.observations.values(),
            *windows.actions.values(),
            *windows.next_observations.values(),
            windows.rewards,
            windows.timesteps,
        ):
            assert not values[~windows.mask].any()
        assert windows.observations["arm/joints"][windows.mask].any()


def test_a_step_terminates_at_the_end_of_an_episode_that_no_time_limit_ended(folders):
    episodes, stores = folders["vector"]
    assert 0 < sum(e.terminated for e in episodes) < len(episodes)
    for store in stores:
        windows = store.draw(View(weight="length", terminals=True), np.random.default_rng(0), 400)
        assert store.draw(View(), np.random.default_rng(0), 3).terminated is None
        marks = {
            (float(o[0, 0]), bool(end[0]))
            for o, end in zip(windows.observations[""], windows.terminated, strict=True)
        }
        assert marks == {
            (float(e.observations[""][t, 0]), e.terminated and t == e.length - 1)
            for e in episodes
            for t in range(e.length)
        }


def test_a_draw_is_a_copy_that_may_be_written_to(folders):
    for store in folders["vector"][1]:
        first = store.draw(View(), np.random.default_rng(0), 50)
        for values in (first.observations[""], first.actions[""], first.rewards):
            values += 7
        second = store.draw(View(), np.random.default_rng(0), 50)
        assert (first.rewards - second.rewards > 6).all()


def test_returns_to_go_are_summed_in_float64(tmp_path):
    """From the last step on, 1 + 1e8 - 1e8 is 0 in float32."""
    store = Store(tmp_path)
    store.add([episode(1, 3, rewards=[-1e8, 1e8, 1.0])])
    for at in (store, Store(tmp_path, flat_bytes=0).open()):
        windows = at.draw(View(columns=("returns_to_go",)), np.random.default_rng(0), 50)
        assert {
            (t, g)
            for t, g in zip(
                windows.timesteps[:, 0].tolist(),
                windows.columns["returns_to_go"][:, 0].tolist(),
                strict=True,
            )
        } == {
            (0, 1.0),
            (1, 1e8),
            (2, 1.0),
        }


@pytest.mark.parametrize("flat_slots", [10**6, 90, 40])
def test_draws_stay_right_while_episodes_come_and_go(tmp_path, flat_slots):
    """Adds with eviction make the flat arrays pack themselves anew, grow, and overflow: nothing of
    it may show."""
    chance = np.random.default_rng(1)
    slot = 4 + 4 + 12
    flat = Store(tmp_path / "a", Retention("best", 8), flat_bytes=flat_slots * slot)
    maps = Store(tmp_path / "b", Retention("best", 8), flat_bytes=0)
    view = View(
        length=3,
        columns=("returns_to_go", "steps_remaining"),
        next_observation=True,
        terminals=True,
    )
    packed = 0
    held = []
    for number in range(35):
        episodes = [
            episode(
                (number, 0, k), int(chance.integers(1, 15)), rewards=None, terminated=bool(k % 2)
            )
            for k in range(chance.integers(1, 4))
        ]
        held += episodes
        before = flat._flat.rewards
        flat.add(episodes)
        maps.add(episodes)
        packed += flat._flat.rewards is not before
        a, b = (store.draw(view, np.random.default_rng(number), 64) for store in (flat, maps))
        same_windows(a, b)
    assert flat._flat.rewards.nbytes <= flat_slots * 4
    if flat_slots == 10**6:
        assert (flat._where[:, 2] >= 0).all()
    else:
        assert packed > 1 and (flat._where[:, 2] >= 0).any()
    living = [next(e for e in held if e.id == tuple(id)) for id in flat.table.ids.tolist()]
    positions, steps = view.rows(flat.table, np.random.default_rng(0), 64)
    close_windows(
        flat.draw(view, np.random.default_rng(0), 64), reference(view, living, positions, steps)
    )


# --- sidecars of derived columns


def test_sidecars_may_be_deleted_or_torn_and_are_made_again(tmp_path):
    Store(tmp_path).add([episode(number, 6) for number in range(4)])
    store = Store(tmp_path, flat_bytes=0).open()
    view = View(columns=("returns_to_go",))
    first = store.draw(view, np.random.default_rng(0), 30)
    (made,) = tmp_path.glob(".*.npy")
    for damage in (
        made.unlink,
        lambda: made.write_bytes(b""),
        lambda: made.write_bytes(made.read_bytes()[:-20]),
    ):
        damage()
        same_windows(first, store.draw(view, np.random.default_rng(0), 30))


def test_two_processes_that_make_the_same_sidecar_do_not_disturb_each_other(tmp_path, monkeypatch):
    Store(tmp_path).add([episode(number, 6) for number in range(4)])
    store, other = (Store(tmp_path, flat_bytes=0, write=False).open() for _ in range(2))
    view, answers = View(columns=("returns_to_go",)), []
    save = np.save

    def meanwhile(file, array):
        monkeypatch.setattr(np, "save", save)
        thread = threading.Thread(
            target=lambda: answers.append(other.draw(view, np.random.default_rng(0), 30))
        )
        thread.start()
        thread.join()
        save(file, array)

    monkeypatch.setattr(np, "save", meanwhile)
    answers.append(store.draw(view, np.random.default_rng(0), 30))
    same_windows(*answers)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sidecar_never_outlives_its_shard(tmp_path):
    """A shard that was set aside leaves its name to another one, whose columns are its own."""
    view = View(columns=("returns_to_go",))
    store = Store(tmp_path, flat_bytes=0)
    store.add([episode(1, 6)])
    store.add([episode(2, 6)])
    store.draw(view, np.random.default_rng(0), 50)
    last = tmp_path / "episodes-0000001.arrow"
    last.write_bytes(last.read_bytes()[:-30])
    store = Store(tmp_path, flat_bytes=0).open()
    store.add([episode(3, 6)])
    fresh = Store(tmp_path / "fresh")
    fresh.add([episode(1, 6), episode(3, 6)])
    same_windows(
        fresh.draw(view, np.random.default_rng(1), 50),
        store.draw(view, np.random.default_rng(1), 50),
    )


def test_a_store_that_cannot_write_sidecars_draws_all_the_same(tmp_path, monkeypatch):
    Store(tmp_path).add([episode(number, 6) for number in range(4)])
    view = View(columns=("returns_to_go",))
    expected = Store(tmp_path).open().draw(view, np.random.default_rng(0), 30)
    store = Store(tmp_path, flat_bytes=0, write=False).open()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.np, "save", full)
    same_windows(expected, store.draw(view, np.random.default_rng(0), 30))
    assert not list(tmp_path.glob(".*"))


# --- hindsight


@pytest.mark.parametrize("kind", ["vector", "image"])
@pytest.mark.parametrize("flat", [1 << 20, 0])
def test_goals_of_hindsight_are_what_the_episode_saw_later(tmp_path, kind, flat):
    store = Store(tmp_path, flat_bytes=flat)
    episodes = [episode(i, length, kind=kind) for i, length in enumerate((1, 5, 9))]
    store.add(episodes)
    last = store.draw(View(3, weight="length", hindsight="last"), rng(0, "draw", 0), 50)
    plain = store.draw(View(3, weight="length"), rng(0, "draw", 0), 50)
    same_windows(last, plain)
    later = store.draw(View(3, weight="length", hindsight="later"), rng(0, "draw", 0), 500)
    path = "" if kind == "vector" else "joints"
    distances = []
    for windows in (last, later):
        for i, goal in enumerate(windows.goals[path]):
            begin = windows.observations[path][i, 0]
            (e,) = [e for e in episodes if (e.observations[path][:-1] == begin).all(1).any()]
            at = int(np.flatnonzero((e.observations[path] == goal).all(1))[0])
            steps = at - int(windows.timesteps[i, 0])
            assert windows.mask[i].sum() == min(3, steps) and steps >= 1
            assert windows is later or at == e.length
            for leaf, values in windows.goals.items():
                np.testing.assert_array_equal(values[i], e.observations[leaf][at])
            if windows is later and e.length == 9 and windows.timesteps[i, 0] == 0:
                distances.append(steps)
    assert set(distances) == set(range(1, 10)), "every later step, the last observation too"
    near = store.draw(View(9, weight="length", hindsight="later", ahead=3), rng(0, "draw", 0), 500)
    assert set(near.mask.sum(1).tolist()) == {1, 2, 3}


def test_every_rank_draws_its_share_of_the_same_goals(tmp_path):
    store = Store(tmp_path)
    store.add([episode(i, 5 + i) for i in range(4)])
    view = View(2, hindsight="later")
    whole, *parts = (
        store.draw(view, rng(0, "draw", 3), 10, rank, world)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    np.testing.assert_array_equal(
        whole.goals[""], np.concatenate([part.goals[""] for part in parts])
    )
    np.testing.assert_array_equal(whole.mask, np.concatenate([part.mask for part in parts]))
