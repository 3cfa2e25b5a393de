"""Logged DQN replays: whole episodes only, without padding, whatever is read at once; torn and
hostile files in one sentence."""

import gzip
import io

import numpy as np
import pytest

from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats import dqn_replay
from bigdm_ray.formats.base import SourceMetadata
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.formats.tasks import task_of

TASK = "toy-image"


def episode(number, length):
    """The rows of an episode whose first pixel tells which it is."""
    chance = np.random.default_rng(number)
    frames = chance.integers(0, 256, (length, 32, 32)).astype(np.uint8)
    frames[:, 0, 0] = number
    terminal = np.zeros(length, np.uint8)
    terminal[-1] = 1
    return {
        "observation": frames,
        "action": chance.integers(0, 3, length).astype(np.int32),
        "reward": chance.normal(size=length).astype(np.float32),
    } | {"terminal": terminal}


PAD = {
    name: np.zeros((3, *values.shape[1:]), values.dtype) for name, values in episode(1, 1).items()
}


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in PAD}


def padded(numbers, lengths):
    return [
        part
        for number, length in zip(numbers, lengths, strict=True)
        for part in (PAD, episode(number, length))
    ]


def zipped(values):
    raw = io.BytesIO()
    np.save(raw, values, allow_pickle=True)
    return gzip.compress(raw.getvalue())


def log(folder, number, rows, count=None):
    """One number of a replay folder, as Dopamine writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in rows.items():
        (folder / f"$store$_{name}_ckpt.{number}.gz").write_bytes(zipped(values))
    if count is not None:
        (folder / f"add_count_ckpt.{number}.gz").write_bytes(zipped(np.array(count)))
    return folder


def taken(source, folder, **more):
    return list(import_dataset([str(source)], folder, more.pop("task", TASK), **more).stream())


def numbers(episodes):
    return [int(e.observations[""][0, 0, 0, 0]) for e in episodes]


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_episodes_come_back_without_their_padding(tmp_path, block, monkeypatch):
    monkeypatch.setattr(dqn_replay, "BLOCK", block)
    found = taken(log(tmp_path / "logs", 0, joined(padded((1, 2, 3), (4, 1, 9)))), tmp_path / "set")
    assert numbers(found) == [1, 2, 3]
    for mine, theirs in zip(found, (episode(1, 4), episode(2, 1), episode(3, 9)), strict=True):
        frames = theirs["observation"][:, None]
        np.testing.assert_array_equal(mine.observations[""], np.concatenate([frames, frames[-1:]]))
        np.testing.assert_array_equal(mine.actions[""], theirs["action"])
        np.testing.assert_array_equal(mine.rewards, theirs["reward"])
        assert mine.terminated and mine.source == "dqn"


def test_only_whole_episodes_are_taken_and_numbers_go_by_their_value(tmp_path):
    torn = {name: values[2:] for name, values in episode(9, 6).items()}
    log(
        tmp_path / "logs",
        10,
        joined(
            [torn, *padded((4, 5), (3, 3)), PAD, {name: v[:2] for name, v in episode(8, 6).items()}]
        ),
    )
    log(tmp_path / "logs", 2, joined(padded((2, 3), (5, 2))))
    # without padding, as other software writes it
    log(tmp_path / "logs", 0, joined([episode(1, 3)]))
    assert numbers(taken(tmp_path / "logs", tmp_path / "set")) == [1, 2, 3, 4, 5]
    one = tmp_path / "logs" / "$store$_observation_ckpt.10.gz"
    assert numbers(taken(one, tmp_path / "one")) == [4, 5]
    assert numbers(taken(one, tmp_path / "few", steps=2)) == [4]


def test_a_row_of_the_round_before_is_no_step(tmp_path):
    stale = episode(7, 1)
    rows = joined(
        [*padded((1,), (4,)), PAD, {name: v[:5] for name, v in episode(2, 9).items()}, stale]
    )
    full = len(rows["reward"])
    assert numbers(taken(log(tmp_path / "told", 0, rows, full - 1), tmp_path / "a")) == [1]
    assert numbers(taken(log(tmp_path / "not-told", 0, rows), tmp_path / "b")) == [1, 2]
    assert numbers(taken(log(tmp_path / "all", 0, rows, 3 * full), tmp_path / "c")) == [1, 2]


def test_an_import_goes_on_after_the_episodes_that_it_has(tmp_path):
    reader = dqn_replay.FORMAT.open(
        str(log(tmp_path / "logs", 0, joined(padded((1, 2, 3), (4, 1, 9)))))
    )
    left = list(reader.episodes(TASK, find_task(TASK).signature(), skip=2))
    assert [e.id.number for e in left] == [2] and left[0].observations[""][0, 0, 0] == 3


def test_the_game_is_taken_from_the_path(tmp_path):
    log(tmp_path / "Pong" / "1" / "replay_logs", 0, joined([episode(1, 3)]))
    said = dqn_replay.FORMAT.open(str(tmp_path / "Pong" / "1" / "replay_logs")).said
    assert said.likely == "pong" and isinstance(said, SourceMetadata)
    pytest.importorskip("ale_py")
    assert task_of(said, None)[0] == "pong" and task_of(said, "pong-sticky")[0] == "pong-sticky"
    with pytest.raises(UserError, match="another task"):
        task_of(said, "breakout")
    nested = log(tmp_path / "ant" / "Pong" / "Qbert" / "1", 0, joined([episode(1, 3)]))
    assert dqn_replay.FORMAT.open(str(nested)).said.likely == "qbert", "the nearest folder tells"
    nested = log(tmp_path / "hopper" / "logs", 0, joined([episode(1, 3)]))
    assert dqn_replay.FORMAT.open(str(nested)).said.likely == "", (
        "a folder of another suite tells nothing"
    )


def spoilt(folder, name, data):
    (folder / f"$store$_{name}_ckpt.0.gz").write_bytes(data)


def header(shape, descr="|u1", fortran=False):
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        raw, {"descr": descr, "fortran_order": fortran, "shape": shape}
    )
    return gzip.compress(raw.getvalue())


ROWS = joined(padded((1, 2), (4, 6)))
WHOLE = zipped(ROWS["observation"])
HOSTILE = {
    "a torn gzip": ("observation", WHOLE[: len(WHOLE) // 2], "is torn"),
    "a broken gzip": ("observation", WHOLE[:-8] + bytes(8), "is torn"),
    "no gzip": ("action", b"hello, this is text", "is not a gzipped array"),
    "no array": ("reward", gzip.compress(b"hello, this is text"), "is not a gzipped array"),
    "fewer rows than claimed": ("reward", header((16,), "<f4"), "breaks off before the 16 rows"),
    "more rows than claimed": (
        "reward",
        gzip.compress(gzip.decompress(zipped(ROWS["reward"])) + b"more"),
        "goes on after the 16 rows",
    ),
    "unequal lengths": (
        "action",
        zipped(ROWS["action"][:-1]),
        "has 15 rows where $store$_reward_ckpt.0.gz has 16",
    ),
    "objects": ("reward", zipped(np.array([{}] * 16, object)), "holds objects"),
    "frames of numbers": (
        "observation",
        zipped(ROWS["observation"].astype(np.float32)),
        "holds float32",
    ),
    "actions of numbers": ("action", zipped(ROWS["action"].astype(np.float32)), "holds float32"),
    "flat frames": (
        "observation",
        zipped(ROWS["observation"].reshape(16, -1)),
        "frames [rows, height, width] are expected",
    ),
    "two rewards a row": (
        "reward",
        zipped(np.zeros((16, 2), np.float32)),
        "one number a row are expected",
    ),
    "frames of another size": (
        "observation",
        zipped(np.zeros((16, 84, 84), np.uint8) + 1),
        "an entry has the shape [84, 84]",
    ),
    "an action too many": ("action", zipped(ROWS["action"] + 1), "lies outside its space"),
    "rewards that are no numbers": (
        "reward",
        zipped(np.where(np.arange(16) == 5, np.nan, ROWS["reward"])),
        "is not a finite float32",
    ),
    "an end that is no flag": ("terminal", zipped(ROWS["terminal"] * 2), "2 is no flag"),
    "huge frames": ("observation", header((16, 1 << 20, 1 << 20)), "which it may not"),
    "negative rows": ("observation", header((-16, 32, 32)), "which it may not"),
    "columns first": ("observation", header((16, 32, 32), fortran=True), "columns first"),
}


@pytest.mark.parametrize(("name", "data", "told"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_one_sentence(tmp_path, name, data, told):
    folder = log(tmp_path / "logs", 0, ROWS)
    spoilt(folder, name, data)
    with pytest.raises(UserError) as caught:
        taken(folder, tmp_path / "set")
    text = str(caught.value)
    assert told in text and "nothing was imported" in text and "\n" not in text, text
    assert not (tmp_path / "set").exists() and not (tmp_path / ".set.importing").exists()


def test_a_missing_array_a_false_count_a_link_and_an_endless_episode_are_told(
    tmp_path, monkeypatch
):
    folder = log(tmp_path / "logs", 0, ROWS)
    (folder / "$store$_reward_ckpt.0.gz").unlink()
    with pytest.raises(UserError, match="its rewards are missing"):
        taken(folder, tmp_path / "set")
    (folder / "$store$_reward_ckpt.0.gz").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="leads out of"):
        taken(folder, tmp_path / "set")
    folder = log(tmp_path / "counted", 0, ROWS)
    (folder / "add_count_ckpt.0.gz").write_bytes(zipped(np.zeros(3, np.int64)))
    with pytest.raises(UserError, match="a single number is expected"):
        taken(folder, tmp_path / "set")
    monkeypatch.setattr(dqn_replay, "MAX_EPISODE_BYTES", 5000)
    monkeypatch.setattr(dqn_replay, "BLOCK", 2)
    with pytest.raises(UserError, match="an episode does not end within"):
        taken(
            log(tmp_path / "endless", 0, ROWS | {"terminal": ROWS["terminal"] * 0}),
            tmp_path / "set",
        )


def test_another_kind_of_task_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="it holds frames of a game, but toy-vector shows something else"
    ):
        taken(log(tmp_path / "logs", 0, ROWS), tmp_path / "set", task="toy-vector")


def test_an_array_that_may_tell_of_ends_is_refused_and_others_are_named(tmp_path, capsys):
    """Dopamine's newer buffers keep the ends that no terminal marks in `episode_end_indices`."""
    folder = log(tmp_path / "logs", 0, joined(padded((1, 2), (4, 3))), 13)
    (folder / "invalid_range_ckpt.0.gz").write_bytes(zipped(np.arange(4)))
    (folder / "$store$_priority_ckpt.0.gz").write_bytes(zipped(np.ones(13)))
    taken(folder, tmp_path / "set")
    assert "not read: 'priority'" in capsys.readouterr().err
    (folder / "episode_end_indices_ckpt.0.gz").write_bytes(zipped(np.array(3)))
    with pytest.raises(UserError, match=r"field 'episode_end_indices'.*may say where episodes end"):
        taken(folder, tmp_path / "other")
