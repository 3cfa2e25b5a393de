"""The store: what is acknowledged lives under the rule, whatever happens between; compaction and
readers change nothing."""

import errno
import itertools
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import episode, ids, same_episode, same_windows

from bigdm_ray.errors import RunFailed
from bigdm_ray.replay import Retention, Store, Table, View, shard_folder
from bigdm_ray.replay import shard as shards
from bigdm_ray.replay.episode import FOREIGN
from bigdm_ray.replay.living import LivingEpisodes
from bigdm_ray.replay.shard import CorruptShard, Shard, encode
from bigdm_ray.replay.source import FolderSource
from bigdm_ray.replay.store import verify
from bigdm_ray.replay.table import COLUMNS

VIEW = View(length=3, columns=("returns_to_go", "steps_remaining"), next_observation=True)


def drawn(store, seed=0, size=64):
    return store.draw(VIEW, np.random.default_rng(seed), size)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def named(refs):
    return [ref.name for ref in refs]


# --- adding


def test_an_id_lives_once_however_often_it_is_added(tmp_path):
    store = Store(tmp_path)
    first = store.add([episode(1), episode(2)])
    again = store.add([episode(2), episode(1)])
    assert ids(store.table) == [(1, 0, 0), (2, 0, 0)]
    assert names(tmp_path) == ["episodes-0000000.arrow"] == named(first.shards)
    assert again.shards == first.shards
    assert ids(again.added) == [(2, 0, 0), (1, 0, 0)], (
        "a receipt answers in the order of the question"
    )
    mixed = store.add([episode(2), episode(3)])
    assert ids(store.table) == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert named(mixed.shards) == names(tmp_path) and len(mixed.shards) == 2


def test_an_id_that_comes_twice_in_one_call_lives_once(tmp_path):
    store = Store(tmp_path)
    store.add([episode(1), episode(1), episode(2)])
    assert ids(store.table) == ids(Store(tmp_path).open().table) == [(1, 0, 0), (2, 0, 0)]
    other = Store(tmp_path / "other")
    other.add_encoded(encode([episode(1), episode(2), episode(1)]))
    assert ids(other.table) == ids(Store(tmp_path / "other").open().table) == [(1, 0, 0), (2, 0, 0)]
    same_windows(drawn(store), drawn(other))


def test_adding_nothing_writes_nothing(tmp_path):
    assert Store(tmp_path).add([]).shards == [] == names(tmp_path)


@pytest.mark.parametrize(
    ("e", "says"),
    [
        (episode(1, 3, rewards=[0, np.nan, 0]), "its reward at step 1 is not finite"),
        (
            episode(1, 3, observations={"": np.full((4, 1), np.inf, np.float32)}),
            "its observation at step 0 is not finite",
        ),
        (
            episode(1, 3, observations={"x": np.zeros((3, 1), np.float32)}),
            "its observation 'x' has 3 rows where 4 belong to 3 steps",
        ),
        (
            episode(1, 3, actions={"": np.zeros(4, np.int32)}),
            "its action has 4 rows where 3 belong",
        ),
        (episode(1, 0), "it has no steps"),
    ],
)
def test_an_unsound_episode_is_refused_with_its_reason_and_nothing_is_stored(tmp_path, e, says):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=rf"episode 1\.0\.0 is not stored: {says}"):
        store.add([episode(2), e])
    assert names(tmp_path) == [] and len(store.table) == 0


def test_add_encoded_equals_add(tmp_path):
    parts = [
        [episode((1, 0, k), 4 + k) for k in range(3)],
        [episode((1, 0, 2), 6), episode(2)],
        [episode(2)],
    ]
    a, b = Store(tmp_path / "a", Retention("best", 3)), Store(tmp_path / "b", Retention("best", 3))
    for part in parts:
        one, two = a.add(part), b.add_encoded(encode(part))
        assert one.shards == two.shards and ids(one.added) == ids(two.added)
        np.testing.assert_array_equal(one.added.returns, two.added.returns)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    same_windows(drawn(a), drawn(b))


def test_bytes_that_were_changed_on_the_way_are_not_stored(tmp_path):
    data = bytearray(encode([episode(1)]))
    data[data.index(episode(1).rewards.tobytes())] ^= 1
    store = Store(tmp_path)
    with pytest.raises(CorruptShard):
        store.add_encoded(pa.py_buffer(bytes(data)))
    with pytest.raises(ValueError, match="not finite"):
        store.add_encoded(encode([episode(1, rewards=[np.nan] * 5)]))
    assert names(tmp_path) == [] and len(store.table) == 0


def test_a_full_disk_fails_the_run_and_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add([episode(1)])

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match="No space left on device"):
            store.add([episode(2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes-0000000.arrow"]
    assert ids(store.table) == [(1, 0, 0)]
    store.add([episode(2)])
    assert ids(store.table) == ids(Store(tmp_path).open().table) == [(1, 0, 0), (2, 0, 0)]


# --- retention


def surviving(episodes, rule):
    """The rule in words: rank all, keep the first so many, list them as they came."""
    unique = list({e.id: e for e in episodes}.values())
    came = {e.id: at for at, e in enumerate(unique)}
    if rule.by_steps:
        while sum(e.length for e in unique) > rule.steps and len(unique) > 1:
            unique = unique[1:]
    elif rule.keep == "newest":
        unique = unique[-rule.count :]
    if rule.keep == "best":

        def merit(e):
            return e.total_return + rule.merit_weight * e.merit - rule.length_cost * max(
                0, e.length - rule.length_allowance
            ), came[e.id]

        ranked = sorted(unique, key=merit, reverse=True)
        unique = sorted(ranked[: rule.count], key=lambda e: came[e.id])
    return unique


pool = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(-1, 2),
        st.integers(0, 2),
        st.integers(1, 6),
        st.sampled_from([-1.0, 0.0, 0.1, 2.5]),
    ),
    max_size=14,
)
some = {"length_cost": st.sampled_from([0.0, 0.3]), "merit_weight": st.sampled_from([0.0, 2.0])}
rules = st.one_of(
    st.builds(Retention, st.sampled_from(["best", "newest"]), st.integers(1, 6), **some),
    st.builds(Retention, st.just("newest"), steps=st.integers(1, 14)),
    st.just(Retention("all")),
)


@settings(max_examples=40)
@given(pool, rules, st.data())
def test_retention_is_a_pure_function_of_what_was_acknowledged(
    tmp_path_factory, rows, rule, choice
):
    """Any parts, opened anew at any moment, added twice: the same episodes live, with their
    serials.

    The dead are unlinked at any moment too. A driver that knows receipts alone, in any order, and a
    reader that took the shards in in any order, know the same.
    """
    of = {}
    for round, group, number, length, reward in rows:
        of.setdefault(
            (round, group, number),
            episode((round, group, number), length, rewards=np.full(length, reward)),
        )
    order = choice.draw(st.permutations(list(of.values())))
    serial = {e.id: at for at, e in enumerate(order)}
    folder = tmp_path_factory.mktemp("store")
    store, receipts = Store(folder, rule), []
    reader, late = Store(folder, rule, write=False), Store(folder, rule, write=False)
    at = 0
    while at < len(order):
        count = choice.draw(st.integers(1, 5))
        there = {*ids(store.table), *(e.id for e in order[at : at + count])}
        twice = [e for e in order if e.id in there]
        again = choice.draw(st.lists(st.sampled_from(twice), max_size=2))
        part = order[at : at + count] + again
        if choice.draw(st.booleans()):
            receipt = store.add(part)
        else:  # what waited for one sync
            cut = choice.draw(st.integers(1, len(part)))
            receipt = store.add_encoded(*(encode(p) for p in (part[:cut], part[cut:]) if p))
        assert receipt.added.serials.tolist() == [serial[e.id] for e in part]
        receipts.append(receipt)
        at += count
        for ref in receipt.shards:
            reader.adopt(ref)
        if choice.draw(st.booleans()):
            store = Store(folder, rule).open()
        if choice.draw(st.booleans()):
            living = store.compact()
            gone = store.release({ref.name for ref in living if choice.draw(st.booleans())})
            reader.follow(living)
            reader.forget(gone)
            assert store.garbage_bytes <= store.nbytes / 2
    lived = surviving(order, rule)
    expected = Table.of(lived, [serial[e.id] for e in lived])
    assert not reader.problems and store.next_serial == len(order)
    driver = LivingEpisodes(rule)
    for receipt in choice.draw(st.permutations(receipts)):
        driver.learn(receipt.added)
    for name in choice.draw(st.permutations(named(store.living_shards()))):
        late.adopt(name)
    for table in (store, Store(folder, rule).open(), driver, reader, late):
        for column in COLUMNS:
            np.testing.assert_array_equal(table.table[column], expected[column])
    if len(expected):
        fresh = Store(folder / "fresh", rule, flat_bytes=0)
        fresh.add(lived)
        for other in (store, reader, late):
            same_windows(drawn(other), drawn(fresh))
    shutil.rmtree(folder)


def test_of_two_equals_the_one_that_came_later_lives(tmp_path):
    store = Store(tmp_path, Retention("best", 2))
    store.add([episode((number, 0, 0), 1, rewards=[1]) for number in (3, 1, 2)])
    assert ids(store.table) == [(1, 0, 0), (2, 0, 0)]


def test_a_length_cost_changes_the_rank(tmp_path):
    long, short = episode(1, 10, rewards=np.full(10, 0.6)), episode(2, 2, rewards=[2, 2])
    for cost, allowance, lives in ((0.0, 0, 1), (0.5, 0, 2), (0.5, 10, 1), (0.5, 4, 2)):
        store = Store(tmp_path / f"{cost}-{allowance}", Retention("best", 1, cost, allowance))
        store.add([long, short])
        assert ids(store.table) == [(lives, 0, 0)]


def test_good_peers_change_the_rank(tmp_path):
    """A lucky episode of weights that fail elsewhere gives way to an ordinary one of weights that
    succeed."""
    lucky, ordinary = (
        episode(1, 1, rewards=[9.0], merit=-4.0),
        episode(2, 1, rewards=[7.0], merit=6.0),
    )
    for weight, lives in ((0.0, 1), (0.1, 1), (0.5, 2), (5.0, 2)):
        store = Store(tmp_path / str(weight), Retention("best", 1, merit_weight=weight))
        store.add([lucky, ordinary])
        assert (
            ids(store.table)
            == ids(Store(store.folder, store.retention).open().table)
            == [(lives, 0, 0)]
        )


def test_the_driver_s_table_under_the_rule_is_the_store_s(tmp_path):
    """`LivingEpisodes.learn`, which a driver calls with the receipts alone, says the same as the
    store."""
    rule = Retention("best", 3, merit_weight=0.5)
    store, driver = Store(tmp_path, rule), LivingEpisodes(rule)
    for number in range(5):
        driver.learn(store.add([episode((number, 0, k)) for k in range(2)]).added)
        assert ids(driver.table) == ids(store.table)
        np.testing.assert_array_equal(driver.table.returns, store.table.returns)


@pytest.mark.parametrize(
    "rule",
    [Retention(), Retention("newest", 50), Retention("best", 50), Retention("newest", steps=300)],
)
def test_a_table_stays_as_it_was_when_episodes_come_and_go(rule):
    """However much comes after it, in whatever order: columns that are first asked for then,
    too."""
    chance = np.random.default_rng(0)
    living, held = LivingEpisodes(rule), []
    for start in chance.permutation(60) * 10:
        serials = start + np.arange(chance.integers(1, 10))
        count = len(serials)
        told = Table(
            np.stack([serials, serials * 0, serials * 0], 1),
            chance.normal(size=count).round(1),
            chance.integers(1, 20, count),
            serials=serials,
        )
        living.learn(told)
        held.append((living.table, {n: living.table[n].copy() for n in ("serials", "returns")}))
        lazy = LivingEpisodes.of(living.table, rule)
        assert lazy.table.serials.tolist() == living.table.serials.tolist()
        before = living.table
        expected = before.take(np.arange(len(before)))
        del before
        held.append((living.table, {n: expected[n] for n in COLUMNS}))
    for table, columns in held:
        for name, values in columns.items():
            np.testing.assert_array_equal(table[name], values)


def test_clients_of_any_round_number_come_when_they_come(tmp_path):
    """What is newest goes by arrival, not by what an id says."""
    store = Store(tmp_path, Retention("newest", 3))
    for id in ((0, 0, 0), (1_000_000, FOREIGN, 0), (7, FOREIGN, 0), (1, 0, 0)):
        store.add([episode(id)])
    lived = [(1_000_000, -1, 0), (7, -1, 0), (1, 0, 0)]
    again = Store(tmp_path, Retention("newest", 3)).open()
    assert ids(store.table) == ids(again.table) == lived
    assert again.table.serials.tolist() == [1, 2, 3] and again.next_serial == 4


def test_serials_survive_compaction_release_and_reopening(tmp_path):
    """No serial comes twice, although the shards of the newest episodes are gone."""
    rule = Retention("best", 2)
    store = Store(tmp_path, rule)
    for number, paid in enumerate((9.0, 1.0, 8.0, 2.0, 0.0, 0.5)):
        store.add([episode((number, 0, 0), 1, rewards=[paid])])
    assert store.table.serials.tolist() == [0, 2]
    for _ in range(2):
        store.compact()
        store.release(set())
        assert len(names(tmp_path)) == 1
        store = Store(tmp_path, rule).open()
        assert store.table.serials.tolist() == [0, 2] and store.next_serial == 6
    assert store.add([episode((9, 0, 0))]).added.serials.tolist() == [6]
    once = store.add([episode((10, 0, 0), 1, rewards=[-1.0])])  # evicted at once
    again = store.add([episode((10, 0, 0), 1, rewards=[-1.0])])
    assert once.added.serials.tolist() == again.added.serials.tolist() == [7]
    assert len(store.table) == 2 and once.shards == again.shards == []


def test_adds_that_wait_share_a_shard_and_a_sync(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd)))
    store = Store(tmp_path)
    parts = [[episode((number, 0, k)) for k in range(2)] for number in range(3)]
    receipt = store.add_encoded(*map(encode, parts))
    assert len(names(tmp_path)) == 1 and len(synced) == 2  # the file and its folder
    apart = Store(tmp_path / "apart")
    for part in parts:
        apart.add_encoded(encode(part))
    assert ids(receipt.added) == ids(apart.table) == ids(Store(tmp_path).open().table)
    same_windows(drawn(store), drawn(apart))
    monkeypatch.setattr(shard_folder, "SHARD_BYTES", 1)
    assert len(Store(tmp_path / "large").add_encoded(*map(encode, parts)).shards) == 3


def test_a_shard_is_held_against_its_reference(tmp_path):
    store = Store(tmp_path)
    (ref,) = store.add([episode(1)]).shards
    assert (ref.name, ref.size) == (names(tmp_path)[0], (tmp_path / ref.name).stat().st_size)
    reader = Store(tmp_path, write=False)
    reader.adopt(ref._replace(crc=ref.crc ^ 1))
    reader.adopt(ref._replace(size=ref.size + 1))
    assert len(reader.table) == 0 and [p.count("was acknowledged") for p in reader.problems] == [
        1,
        1,
    ]
    assert len(reader.adopt(ref)) == 1 and len(Store(tmp_path).open([ref]).table) == 1


# --- opening


def test_returns_are_the_same_to_the_last_bit_after_opening(tmp_path):
    """Sums depend on their order, and retention and commands on the last bit of sums."""
    chance = np.random.default_rng(0)
    rewards = [
        chance.normal(size=n) * 10.0 ** chance.integers(-7, 4, n)
        for n in chance.integers(1, 400, 40)
    ]
    episodes = [episode((0, 0, k), len(paid), rewards=paid) for k, paid in enumerate(rewards)]
    store = Store(tmp_path)
    store.add(episodes[:25])
    store.add_encoded(encode(episodes[25:]))
    expected = [e.total_return for e in episodes]
    assert store.table.returns.tolist() == Store(tmp_path).open().table.returns.tolist() == expected


def test_a_writer_clears_what_a_crash_left_half_written(tmp_path):
    Store(tmp_path).add([episode(1)])
    (tmp_path / ".episodes-0000001.arrow.77.tmp").write_bytes(b"half")
    Store(tmp_path, write=False).open()
    assert len(list(tmp_path.iterdir())) == 2, "a reader touches nothing"
    store = Store(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["episodes-0000000.arrow"]
    store.add([episode(2)])
    assert len(Store(tmp_path).open().table) == 2


def test_adding_does_not_look_through_the_folder(tmp_path, monkeypatch):
    """Its cost must not grow with the files that wait for a save."""
    store = Store(tmp_path)

    def listed(*_):
        raise AssertionError("the folder was listed")

    for how in ("glob", "iterdir"):
        monkeypatch.setattr(type(tmp_path), how, listed)
    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(os, "scandir", listed)
    for number in range(3):
        store.add([episode(number)])
    assert len(store.table) == 3


def test_a_writer_removes_the_sidecars_of_shards_that_are_gone(tmp_path):
    for number in range(3):
        Store(tmp_path).open().add([episode(number)])
    reader = Store(tmp_path, flat_bytes=0, write=False).open()
    drawn(reader)
    made = sorted(path.name for path in tmp_path.glob(".*.npy"))
    assert len(made) == 3 * len(VIEW.columns)
    (tmp_path / "episodes-0000001.arrow").unlink()
    Store(tmp_path, write=False).open()
    assert sorted(path.name for path in tmp_path.glob(".*.npy")) == made
    Store(tmp_path)
    left = sorted(path.name for path in tmp_path.glob(".*.npy"))
    assert left == [name for name in made if "0000001" not in name]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-7],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"hello",
    ],
)
def test_a_torn_shard_is_named_set_aside_and_the_rest_loads(tmp_path, damage):
    store = Store(tmp_path)
    for number in range(3):
        store.add([episode((number, 0, k)) for k in range(2)])
    torn = tmp_path / "episodes-0000001.arrow"
    torn.write_bytes(damage(torn.read_bytes()))
    reader = Store(tmp_path, write=False).open()
    assert torn.exists() and len(reader.problems) == 1
    store = Store(tmp_path).open()
    assert ids(store.table) == [(0, 0, 0), (0, 0, 1), (2, 0, 0), (2, 0, 1)]
    assert names(tmp_path) == [
        "episodes-0000000.arrow",
        "episodes-0000001.arrow.corrupt",
        "episodes-0000002.arrow",
    ]
    (problem,) = store.problems
    assert str(torn) in problem and "\n" not in problem
    store.add([episode((1, 0, 0))])
    assert ids(Store(tmp_path).open().table) == [
        (0, 0, 0),
        (0, 0, 1),
        (2, 0, 0),
        (2, 0, 1),
        (1, 0, 0),
    ]
    assert names(tmp_path)[-1] == "episodes-0000003.arrow" and not Store(tmp_path).open().problems


def test_a_shard_under_any_name_is_taken_in(tmp_path):
    for name in ("mine.arrow", "from-a-friend.arrow"):
        (tmp_path / name).write_bytes(encode([episode(len(name))]))
    store = Store(tmp_path).open()
    store.add([episode(99)])
    assert len(store.table) == len(Store(tmp_path).open().table) == 3 and not store.problems


def test_opening_by_name_takes_those_in_only(tmp_path):
    store = Store(tmp_path)
    for number in range(3):
        store.add([episode(number)])
    some = Store(tmp_path, write=False).open(["episodes-0000002.arrow", "episodes-0000000.arrow"])
    assert ids(some.table) == [(0, 0, 0), (2, 0, 0)]
    missing = Store(tmp_path, write=False).open(["episodes-0000007.arrow"])
    assert len(missing.table) == 0 and missing.problems == [
        f"shard {tmp_path / 'episodes-0000007.arrow'} is missing"
    ]
    (tmp_path / "episodes-0000000.arrow").rename(tmp_path / "episodes-0000000.arrow.corrupt")
    gone = Store(tmp_path).open(["episodes-0000000.arrow"])
    assert gone.problems == [
        f"shard {tmp_path / 'episodes-0000000.arrow'} is set aside as"
        " episodes-0000000.arrow.corrupt"
    ]


def test_what_is_left_closed_does_not_live_again_and_goes_at_the_next_release(tmp_path):
    rule = Retention("newest", steps=10)
    store = Store(tmp_path, rule)
    shard = "episodes-000000{}.arrow".format
    for number, length in enumerate((1, 5, 8)):
        store.add([episode(number, length)])
    store.release({shard(0)})
    assert names(tmp_path) == [shard(0), shard(1), shard(2)]
    again = Store(tmp_path, rule).open(leave=[shard(0)])
    assert ids(again.table) == ids(store.table) == [(2, 0, 0)]
    assert again.release({shard(0)}) == []
    again.add([episode(3, 2)])
    assert names(tmp_path) == [shard(0), shard(1), shard(2), shard(3)]
    assert again.release(set()) == [shard(0)] and again.release(set()) == []
    assert names(tmp_path) == [shard(1), shard(2), shard(3)]


def test_the_newest_that_a_limit_on_steps_has_evicted_stays_on_disk_and_is_compacted(tmp_path):
    """0 would fit beside 2, had 1 not come between them: in whatever order a driver hears of
    them."""
    rule = Retention("newest", steps=10)
    store, receipts = Store(tmp_path / "store", rule), []
    for e in (episode(0, 1), episode(1, 5), episode(2, 8)):
        receipts.append(store.add([e]))
        store.compact()
        store.release(set())
        store = Store(store.folder, rule).open()
    for order in itertools.permutations(receipts):
        driver = LivingEpisodes(rule)
        for receipt in order:
            driver.learn(receipt.added)
        for table in (store.table, driver.table):
            assert ids(table) == [(2, 0, 0)] and table.floor == (1, (1, 0, 0))
    compacted = Store(tmp_path / "compacted", rule)
    compacted.add([episode(number, 5) for number in range(30)])
    ((name, *_),) = compacted.compact()
    assert sorted(Shard.open(compacted.folder / name).ids) == [(k, 0, 0) for k in (27, 28, 29)]
    assert compacted.release(set()) == ["episodes-0000000.arrow"]
    assert compacted.garbage_bytes == 0 and named(compacted.compact()) == [name]


def newer(folder, count=1):
    """Shards as a later version of this project may write them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SCHEMA_VERSION", shards.SCHEMA_VERSION + 1)
        store = Store(folder).open()
        for number in range(count):
            store.add([episode(70 + number)])
    return named(store.living_shards()[-count:])


def test_nothing_is_renamed_or_unlinked_where_a_shard_is_of_a_newer_version(tmp_path):
    store = Store(tmp_path)
    for number in range(3):
        store.add([episode(number)])
    torn = tmp_path / "episodes-0000000.arrow"
    torn.write_bytes(torn.read_bytes()[:-7])
    (late,) = newer(tmp_path)
    (tmp_path / "episodes-0000000.arrow.corrupt").rename(torn)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for write in (False, True):
        for how in ({}, {"names": [*before]}, {"leave": [late]}):
            with pytest.raises(shards.NewerShard, match=rf"{late} .*: update bigdm_ray$"):
                Store(tmp_path, write=write).open(**how)
    with pytest.raises(shards.NewerShard):
        Store(tmp_path).adopt(late)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    verdict = verify(tmp_path)  # what is torn is set aside; what is newer is named
    assert (verdict.sound, verdict.aside, len(verdict.problems)) == (2, 1, 2)
    assert names(tmp_path) == [
        "episodes-0000000.arrow.corrupt",
        "episodes-0000001.arrow",
        "episodes-0000002.arrow",
        late,
    ]


def test_nothing_is_renamed_where_a_shard_cannot_be_opened_now(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for number in range(2):
        store.add([episode(number)])
    (tmp_path / "episodes-0000000.arrow").write_bytes(b"torn")
    before = names(tmp_path)
    real = pa.memory_map

    def memory_map(path):
        if path.endswith("1.arrow"):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(pa, "memory_map", memory_map)
        with pytest.raises(shards.ClosedShard, match="Cannot allocate memory"):
            Store(tmp_path).open()
        assert names(tmp_path) == before
        assert [problem.count("cannot be opened now") for problem in verify(tmp_path).problems] == [
            0,
            1,
        ]
    assert ids(Store(tmp_path).open().table) == [(1, 0, 0)]


def test_verify_reads_every_byte(tmp_path):
    store = Store(tmp_path)
    for number in range(4):
        store.add([episode((number, 0, k)) for k in range(2)])
    rotten = tmp_path / "episodes-0000002.arrow"
    data = bytearray(rotten.read_bytes())
    data[data.index(episode((2, 0, 1)).rewards.tobytes())] ^= 4
    rotten.write_bytes(data)
    (tmp_path / "episodes-0000009.arrow").write_bytes(encode([episode(7, rewards=[np.inf] * 5)]))
    sound, episodes, problems, aside = verify(tmp_path)
    assert (sound, episodes, len(problems), aside) == (3, 6, 2, 2)
    assert "episodes-0000002.arrow" in problems[0] and "checksum of its body" in problems[0]
    assert (
        "episodes-0000009.arrow" in problems[1]
        and "its reward at step 0 is not finite" in problems[1]
    )
    assert names(tmp_path)[2] == "episodes-0000002.arrow.corrupt"
    assert verify(tmp_path) == (3, 6, [], 0)


# --- compaction


def churned(folder, rule=None, **more):
    """A store of which most is garbage."""
    store = Store(folder, rule or Retention("best", 4), **more)
    for number in range(12):
        store.add([episode((number, 0, k), 5 + k) for k in range(3)])
    return store


@pytest.mark.parametrize("flat_bytes", [0, 1 << 20])
def test_compaction_keeps_the_living_and_what_they_draw(tmp_path, flat_bytes):
    store = churned(tmp_path, flat_bytes=flat_bytes)
    table, windows, before = store.table, drawn(store), set(names(tmp_path))
    living = [store.episode(position) for position in range(len(table))]
    compacted = store.compact()
    assert before < set(names(tmp_path)), (
        "nothing is unlinked before a checkpoint names what is new"
    )
    assert set(named(compacted)) == set(names(tmp_path)) - before
    assert ids(store.table) == ids(table)
    same_windows(windows, drawn(store))
    kept = sorted(before)[:2]
    gone = store.release(set(kept))
    assert set(gone) == before - set(kept)
    assert names(tmp_path) == sorted([*kept, *named(compacted)])
    assert not [
        path
        for path in tmp_path.glob(".*.npy")
        if path.name.split(".arrow")[0][1:] + ".arrow" in gone
    ]
    for position, e in enumerate(living):
        same_episode(store.episode(position), e)
    same_windows(windows, drawn(store))
    same_windows(
        windows, drawn(Store(tmp_path, Retention("best", 4), flat_bytes=flat_bytes).open())
    )
    store.add([episode((20, 0, 0), rewards=np.full(5, 100.0))])
    assert ids(store.table)[-1] == (20, 0, 0)
    same_windows(drawn(store), drawn(Store(tmp_path, Retention("best", 4)).open()))


def test_decay_is_not_sealed_as_sound_and_the_way_out_is_told(tmp_path):
    store = churned(tmp_path)
    rotten = tmp_path / store.living_shards()[0].name
    data = bytearray(rotten.read_bytes())
    data[len(data) // 4] ^= 4
    rotten.write_bytes(data)
    before = names(tmp_path)
    with pytest.raises(
        RunFailed,
        match=(
            r"has decayed: .*`data verify` sets it aside, then --resume goes on without its"
            r" episodes, or in lock-step from"
        ),
    ):
        store.compact()
    assert names(tmp_path) == before


def test_a_name_never_comes_twice(tmp_path):
    store = Store(tmp_path, Retention("best", 1))
    store.add([episode((0, 0, 0), rewards=np.full(5, 9.0))])
    store.add([episode((1, 0, 0), rewards=np.full(5, 1.0))])  # evicted at once
    first = set(names(tmp_path))
    released = set(store.release(set()))
    again = Store(tmp_path, Retention("best", 1)).open()
    again.add([episode((2, 0, 0), rewards=np.full(5, 10.0))])
    new = set(names(tmp_path)) - first
    assert len(new) == 1 and not new & released
    again.release(set())
    assert len(names(tmp_path)) == 1


def test_little_garbage_is_left_where_it_is(tmp_path):
    store = Store(tmp_path, Retention("best", 10))
    for number in range(4):
        store.add([episode((number, 0, k)) for k in range(3)])
    before = names(tmp_path)
    assert store.garbage_bytes < store.nbytes / 2
    assert store.compact() == store.living_shards() and names(tmp_path) == before


def test_compaction_cuts_shards_of_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_folder, "SHARD_BYTES", 300)
    store = churned(tmp_path, Retention("best", 9))
    windows = drawn(store)
    compacted = store.compact()
    assert len(compacted) > 2
    assert sum(len(Shard.open(tmp_path / ref.name).ids) for ref in compacted) == 9
    store.release(set())
    assert names(tmp_path) == named(compacted)
    same_windows(windows, drawn(store))


def test_a_crash_between_compaction_and_release_loses_and_doubles_nothing(tmp_path):
    store = churned(tmp_path)
    table, windows = store.table, drawn(store)
    store.compact()
    again = Store(tmp_path, Retention("best", 4)).open()
    assert ids(again.table) == ids(table)
    same_windows(windows, drawn(again))
    again.compact()
    again.release(set())
    same_windows(windows, drawn(Store(tmp_path, Retention("best", 4)).open()))


# --- readers


@pytest.mark.parametrize("flat_bytes", [0, 2000, 1 << 20])
def test_a_reader_that_follows_the_writer_draws_the_same(tmp_path, flat_bytes):
    rule = Retention("best", 4)
    writer = Store(tmp_path, rule, flat_bytes=0)
    reader = Store(tmp_path, rule, flat_bytes=flat_bytes, write=False)
    for number in range(30):
        receipt = writer.add([episode((number, 0, k), 5 + k) for k in range(3)])
        for name in receipt.shards:
            reader.adopt(name)
        if number % 7 == 6:
            compacted = writer.compact()
            gone = writer.release(set())
            reader.follow(compacted)
            reader.forget(gone)
            assert reader.living_shards() == compacted
        assert ids(reader.table) == ids(writer.table)
        np.testing.assert_array_equal(reader.table.returns, writer.table.returns)
        same_windows(drawn(writer, number), drawn(reader, number))
    assert not reader.problems


def test_a_late_reader_adopts_what_it_missed(tmp_path):
    rule = Retention("best", 4)
    writer = churned(tmp_path, rule)
    reader = Store(tmp_path, rule, write=False)
    reader.follow(writer.living_shards())
    same_windows(drawn(writer), drawn(reader))
    compacted = writer.compact()
    newcomer = Store(tmp_path, rule, write=False)
    newcomer.follow(compacted)
    writer.release(set())
    same_windows(drawn(writer), drawn(newcomer))


def test_following_opens_the_shards_that_are_new_alone(tmp_path, monkeypatch):
    rule = Retention("best", 4)
    writer, reader = churned(tmp_path, rule), Store(tmp_path, rule, write=False).open()
    looked = []
    found = Store._found
    monkeypatch.setattr(
        Store, "_found", lambda store, ref: (looked.append(ref), found(store, ref))[1]
    )
    reader.follow(writer.living_shards())
    assert looked == []
    compacted = writer.compact()
    reader.follow(compacted)
    assert looked == compacted == reader.living_shards()
    reader.forget(writer.release(set()))
    same_windows(drawn(writer), drawn(reader))


def test_a_reader_opens_shards_through_what_it_is_given(tmp_path):
    """A cache that fetches, say: the writer's folder need not be there."""
    writer = churned(tmp_path / "there")
    here = tmp_path / "here"
    fetched = []

    class Fetching:
        def open(self, ref, whole):
            if not (here / ref.name).exists():
                shutil.copy(writer.folder / ref.name, here / ref.name)
                fetched.append(ref.name)
            return FolderSource(here).open(ref, whole)

    here.mkdir()
    reader = Store(here, Retention("best", 4), write=False, source=Fetching())
    refs = writer.living_shards()
    for _ in range(2):
        reader.follow(refs)
    assert fetched == named(refs) and not reader.problems
    shutil.rmtree(writer.folder)
    same_windows(drawn(writer), drawn(reader))


def test_adopting_tells_what_was_new_and_adopts_once(tmp_path):
    writer, reader = Store(tmp_path), Store(tmp_path, write=False)
    ((name, *_),) = writer.add([episode(1), episode(2)]).shards
    assert ids(reader.adopt(name)) == [(1, 0, 0), (2, 0, 0)]
    assert len(reader.adopt(name)) == 0 and len(reader.table) == 2


def test_a_folder_that_goes_away_while_a_shard_is_written_is_one_sentence(tmp_path, monkeypatch):
    from bigdm_ray.errors import RunFailed
    from bigdm_ray.replay import shard

    store = Store(tmp_path / "store")
    monkeypatch.setattr(shard, "publish", lambda path, *data: None)
    with pytest.raises(
        RunFailed, match=r"^cannot write .* right after it was written .* may be written"
    ) as told:
        store.add([episode(0)])
    assert "\n" not in str(told.value)
