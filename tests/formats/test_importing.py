import dataclasses
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from making import played, same_arrays, same_episode, soon
from sources import dataset, episode_parquet, episodes_of, imported, rows_of

from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats import writer as writing
from bigdm_ray.formats.base import formats, open_source
from bigdm_ray.formats.checks import conform
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.formats.writer import Writer
from bigdm_ray.progress import Progress
from bigdm_ray.replay import shard

TASK = "toy-continuous"


@pytest.fixture
def episodes():
    return played(TASK, 20).episodes


@pytest.fixture
def source(tmp_path, episodes):
    return episode_parquet(tmp_path / "source.parquet", rows_of(episodes))


@pytest.fixture
def small_shards(monkeypatch):
    """About four episodes a shard."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 1000)


def left(folder):
    """What lies beside a dataset that was not made."""
    return sorted(path.name for path in folder.parent.iterdir() if path.name.startswith("."))


def test_every_format_is_found_by_being_there():
    names = "d3rlpy d4rl dataset dqn-replay lerobot minari npz parquet rllib-json steps"
    assert set(formats()) == set(names.split())
    assert {name for name, made in formats().items() if made.writes} == {
        "minari",
        "parquet",
        "steps",
    }


def test_what_is_no_source_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no episodes")
    for source in (tmp_path / "nowhere.parquet", tmp_path / "empty", tmp_path / "notes.txt"):
        with pytest.raises(
            UserError, match=rf"{source.name} is .*known are: .*D4RL.*Minari.*Parquet"
        ):
            open_source(str(source))


def test_the_card_tells_what_came_in(tmp_path, source, episodes):
    made = imported(source, tmp_path / "set", task=TASK)
    assert made == Dataset.open(tmp_path / "set")
    returns = np.array([e.total_return for e in episodes])
    assert (made.episodes, made.steps) == (20, sum(e.length for e in episodes))
    assert (made.return_mean, made.return_std) == (returns.mean(), returns.std())
    assert (made.return_min, made.return_max) == (returns.min(), returns.max())
    assert made.task == TASK and made.signature == find_task(TASK).signature()
    assert made.source == str(source) and made.name == "set"
    assert made.sha256 == made.content_hash()
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "dataset.json",
        "episodes-0000000.arrow",
    ]
    assert left(tmp_path / "set") == []


def test_the_store_of_a_dataset_holds_its_episodes_in_their_order(
    tmp_path, source, episodes, small_shards
):
    made = imported(source, tmp_path / "set", task=TASK)
    store = made.store()
    assert len(made.shards()) > 3
    for number, (mine, theirs) in enumerate(
        zip(map(store.episode, range(20)), episodes, strict=True)
    ):
        assert mine.id == (0, -1, number)
        same_arrays(mine.observations, theirs.observations)
        same_arrays(mine.actions, theirs.actions)


def test_the_hash_is_that_of_the_episodes_not_of_the_shards(
    tmp_path, source, episodes, monkeypatch
):
    one = imported(source, tmp_path / "one", task=TASK)
    monkeypatch.setattr(writing, "SHARD_BYTES", 700)
    many = imported(source, tmp_path / "many", task=TASK)
    assert len(one.shards()) == 1 and len(many.shards()) > 5
    assert one.sha256 == many.sha256
    for name, others in {"order": episodes[::-1], "number": episodes[:-1]}.items():
        other = imported(
            episode_parquet(tmp_path / f"{name}.parquet", rows_of(others)),
            tmp_path / name,
            task=TASK,
        )
        assert other.sha256 != one.sha256, name
    changed = rows_of(episodes)
    changed["rewards"] = [r.copy() for r in changed["rewards"]]
    changed["rewards"][7][3] = np.nextafter(changed["rewards"][7][3], np.float32(9))
    assert (
        imported(
            episode_parquet(tmp_path / "c.parquet", changed), tmp_path / "changed", task=TASK
        ).sha256
        != one.sha256
    )


def test_how_an_episode_ended_is_part_of_the_hash(tmp_path, episodes):
    other = [dataclasses.replace(episodes[0], terminated=not episodes[0].terminated), *episodes[1:]]
    assert (
        dataset(tmp_path / "a", episodes=episodes).sha256
        != dataset(tmp_path / "b", episodes=other).sha256
    )


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path, source):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set exists already"):
        imported(source, tmp_path / "set", task=TASK)
    assert list((tmp_path / "set").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link exists already"):
        imported(source, tmp_path / "link", task=TASK)


# --- several sources and a limit


def test_sources_are_joined_up_to_whole_episodes_that_reach_the_steps(tmp_path, episodes):
    """As D4RL joins medium and expert: the fewest first episodes of each that together have at
    least so many steps."""
    a, b = episodes[:8], episodes[8:]
    paths = [
        str(episode_parquet(tmp_path / f"{name}.parquet", rows_of(part)))
        for name, part in (("a", a), ("b", b))
    ]
    lengths = [np.cumsum([e.length for e in part]) for part in (a, b)]
    limit = int(lengths[0][3])  # the fourth episode reaches it exactly
    expected = [
        part[: int(np.searchsorted(ends, limit)) + 1]
        for part, ends in zip((a, b), lengths, strict=True)
    ]
    assert len(expected[0]) == 4
    made = import_dataset(paths, tmp_path / "set", TASK, steps=limit)
    found = episodes_of(made)
    assert [e.length for e in found] == [e.length for part in expected for e in part]
    assert [e.source.split(" ")[-2:] for e in found] == [["stage", "0"]] * 4 + [
        ["stage", "1"]
    ] * len(expected[1])
    assert (
        made.source
        == f"the first {limit:,} steps of {paths[0]} and the first {limit:,} steps of {paths[1]}"
    )


def test_a_limit_beyond_the_source_takes_all_of_it(tmp_path, source):
    assert imported(source, tmp_path / "set", task=TASK, steps=10**9).episodes == 20


def test_sources_of_two_tasks_are_refused(tmp_path, source):
    dataset(tmp_path / "own", "toy-vector")
    dataset(tmp_path / "other", "toy-image")
    with pytest.raises(
        UserError,
        match=r"other is a dataset of another task: toy-image, while .*own is of toy-vector",
    ):
        import_dataset([str(tmp_path / "own"), str(tmp_path / "other")], tmp_path / "set")
    assert not (tmp_path / "set").exists() and left(tmp_path / "set") == []


def test_datasets_are_sources_too(tmp_path):
    a, b = dataset(tmp_path / "a", count=3, seed=1), dataset(tmp_path / "b", count=4, seed=2)
    made = import_dataset([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "set")
    assert made.episodes == 7 and made.task == TASK
    for mine, theirs in zip(episodes_of(made), episodes_of(a) + episodes_of(b), strict=True):
        same_arrays(mine.observations, theirs.observations)
        assert mine.terminated == theirs.terminated and mine.seed == theirs.seed


# --- interruptions


class Interrupted(BaseException):
    """Like Ctrl-C, at a moment of the test's choice."""


def interrupt_after(monkeypatch, count):
    """The import is interrupted once it has written so many shards."""
    written = []

    def publish(path, data):
        shard.publish(path, data)
        written.append(path.name)
        if sum(name.endswith(".arrow") for name in written) == count + 1:
            raise Interrupted

    monkeypatch.setattr(writing, "publish", publish)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("kind", [2, 1], ids=["two sources", "one source"])
def test_an_interrupted_import_goes_on_and_equals_an_uninterrupted_one(
    tmp_path, episodes, small_shards, monkeypatch, count, kind
):
    halves = [episodes[:6], episodes[6:]] if kind == 2 else [episodes]
    paths = [
        str(episode_parquet(tmp_path / f"{i}.parquet", rows_of(part)))
        for i, part in enumerate(halves)
    ]
    whole = import_dataset(paths, tmp_path / "whole", TASK)
    monkeypatch.setattr("bigdm_ray.formats.importing.BATCH_EPISODES", 2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, count)
        with pytest.raises(Interrupted):
            import_dataset(paths, tmp_path / "set", TASK)
    assert not (tmp_path / "set").exists() and left(tmp_path / "set") == [".set.importing"]
    checked = []
    monkeypatch.setattr(
        "bigdm_ray.formats.importing.conform",
        lambda batch, *rest: checked.append(len(batch)) or conform(batch, *rest),
    )
    made = import_dataset(paths, tmp_path / "set", TASK)
    assert sum(checked) == 20 if count == 0 else sum(checked) < 20
    assert (made.sha256, made.episodes, made.return_mean) == (
        whole.sha256,
        whole.episodes,
        whole.return_mean,
    )
    assert left(tmp_path / "set") == []
    for mine, theirs in zip(episodes_of(made), episodes_of(whole), strict=True):
        same_episode(mine, theirs)


def interrupted(tmp_path, source, monkeypatch, count=2):
    with monkeypatch.context() as patch:
        interrupt_after(patch, count)
        with pytest.raises(Interrupted):
            imported(source, tmp_path / "set", task=TASK)
    return tmp_path / ".set.importing"


def test_a_source_that_has_changed_meanwhile_is_imported_anew(
    tmp_path, source, episodes, small_shards, monkeypatch
):
    interrupted(tmp_path, source, monkeypatch)
    episode_parquet(source, rows_of(episodes[::-1]))
    os.utime(source, ns=(1, 1))
    made = imported(source, tmp_path / "set", task=TASK)
    assert [e.length for e in episodes_of(made)] == [e.length for e in episodes[::-1]]


def test_a_shard_that_decayed_meanwhile_is_written_anew(
    tmp_path, source, small_shards, monkeypatch
):
    hidden = interrupted(tmp_path, source, monkeypatch)
    first = hidden / "episodes-0000000.arrow"
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 1
    first.write_bytes(data)
    made = imported(source, tmp_path / "set", task=TASK)
    assert made.episodes == 20 and made.content_hash() == made.sha256


def test_another_limit_is_another_import(tmp_path, source, small_shards, monkeypatch):
    interrupted(tmp_path, source, monkeypatch)
    made = imported(source, tmp_path / "set", task=TASK, steps=30)
    assert 30 <= made.steps < 42


def test_two_imports_into_one_folder_are_refused(tmp_path, source):
    writer = Writer(tmp_path / "set", {}, TASK, find_task(TASK).signature())
    try:
        with pytest.raises(UserError, match="is being written by another process"):
            imported(source, tmp_path / "set", task=TASK)
    finally:
        writer.discard()


def test_a_full_disk_is_one_sentence_and_the_import_can_go_on(
    tmp_path, source, small_shards, monkeypatch
):
    def full(path, data):
        if path.name.startswith("episodes-0000002"):
            raise RunFailed(f"cannot write {path}: No space left on device")
        shard.publish(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "publish", full)
        with pytest.raises(RunFailed, match="No space left"):
            imported(source, tmp_path / "set", task=TASK)
    assert not (tmp_path / "set").exists() and left(tmp_path / "set") == [".set.importing"]
    assert imported(source, tmp_path / "set", task=TASK).episodes == 20


@pytest.mark.slow
def test_a_killed_import_leaves_no_half_dataset_and_goes_on(tmp_path, episodes):
    many = [episodes[i % 20] for i in range(4000)]
    source = episode_parquet(tmp_path / "source.parquet", rows_of(many), row_group_size=100)
    code = (
        "import sys, time; from bigdm_ray.formats import writer; writer.SHARD_BYTES = 20_000; from"
        " bigdm_ray.data import main\nwhole = writer.publish\ndef slowly(path, data): whole(path,"
        " data); time.sleep(0.05)\nwriter.publish = slowly if len(sys.argv) > 2 else"
        f" whole\nmain(['import', {str(source)!r}, '--task', '{TASK}', '--folder', sys.argv[1]])"
    )
    folder = tmp_path / "set"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), "slowly"], stdout=subprocess.DEVNULL
    )
    hidden = tmp_path / ".set.importing"
    assert soon(lambda: len(list(hidden.glob("*.arrow"))) > 4 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not folder.exists()
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=subprocess.DEVNULL)
    made = Dataset.open(folder)
    assert made.sha256 == imported(source, tmp_path / "whole", task=TASK).sha256
    assert left(folder) == []


# --- the bar


def test_the_bar_is_left_on_a_terminal_and_a_pipe_hears_of_long_work_alone():
    for tty, quiet, shown in ((True, False, True), (False, False, False), (True, True, False)):
        stream = io.StringIO()
        stream.isatty = lambda tty=tty: tty
        with Progress("set", 1000, 100, quiet, stream) as bar:
            bar.advance(400)
        assert bool(stream.getvalue()) is shown
        if shown:
            assert " 50 %|" in stream.getvalue()
            assert "set: 500 of 1,000 steps" in stream.getvalue()
            assert stream.getvalue().endswith("\n")
    assert Progress("set", 1000, 100).line(2.0).endswith("of 1,000 steps, 0 a second, 0:02")
    bar = Progress("set", 1000, 100)
    bar.advance(300)
    assert bar.line(2.0).endswith("150 a second, 4 s left, 0:02")
    assert Progress("set").line(1.0) == "set: 0 steps, 0 a second, 0:01"
    slow = Progress("task", 4, units="episodes")
    slow.advance(1)
    assert slow.line(90.0).endswith("1 of 4 episodes, one in 90 s, 4 min left, 1:30")
