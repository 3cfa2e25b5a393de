import dataclasses

import h5py
import numpy as np
import pytest
from making import played, same_arrays
from sources import d4rl_file, episodes_of, imported

from bigdm_ray.errors import UserError
from bigdm_ray.formats import d4rl
from bigdm_ray.formats.importing import import_dataset

TASK = "toy-continuous"


@pytest.fixture(scope="module")
def episodes():
    found = played(TASK, 12).episodes
    assert {e.terminated for e in found} == {True, False}
    return found


def same(mine, theirs):
    same_arrays(mine.observations, theirs.observations)
    same_arrays(mine.actions, theirs.actions)
    np.testing.assert_array_equal(mine.rewards, theirs.rewards)
    assert mine.terminated == theirs.terminated


@pytest.mark.parametrize("block", [1, 7, 20, 10_000])
def test_with_next_observations_episodes_come_back_as_they_were(
    tmp_path, episodes, block, monkeypatch
):
    """Whatever is read at once, and although terminals and timeouts are two arrays."""
    monkeypatch.setattr(d4rl, "BLOCK", block)
    made = imported(d4rl_file(tmp_path / "s.hdf5", episodes), tmp_path / "set", task=TASK)
    assert made.episodes == len(episodes)
    for mine, theirs in zip(episodes_of(made), episodes, strict=True):
        same(mine, theirs)


def test_the_task_of_a_files_name_is_no_id_of_an_environment(tmp_path):
    made = imported(
        d4rl_file(tmp_path / "pendulum_made-up-v2.hdf5", played("pendulum", 1).episodes),
        tmp_path / "set",
    )
    assert made.task == "pendulum" and "environment" not in made.versions
    with pytest.raises(UserError, match="a dataset of another task"):
        imported(tmp_path / "pendulum_made-up-v2.hdf5", tmp_path / "other", task="mountaincar")


def test_without_next_observations_the_end_is_what_is_known(tmp_path, episodes):
    """A terminated episode keeps its last step and repeats its last observation; one that ran into
    a limit loses its last step."""
    found = episodes_of(
        imported(
            d4rl_file(tmp_path / "s.hdf5", episodes, next_observations=False),
            tmp_path / "set",
            task=TASK,
        )
    )
    for mine, theirs in zip(found, episodes, strict=True):
        steps = theirs.length if theirs.terminated else theirs.length - 1
        assert mine.length == steps and mine.terminated == theirs.terminated
        np.testing.assert_array_equal(mine.rewards, theirs.rewards[:steps])
        np.testing.assert_array_equal(mine.actions[""], theirs.actions[""][:steps])
        np.testing.assert_array_equal(
            mine.observations[""][: theirs.length],
            theirs.observations[""][: len(mine.observations[""])][: theirs.length],
        )
        if theirs.terminated:
            np.testing.assert_array_equal(mine.observations[""][-1], theirs.observations[""][-2])


@pytest.mark.parametrize("block", [5, 10_000])
def test_without_timeouts_an_episode_ends_at_the_tasks_limit(tmp_path, block, monkeypatch):
    monkeypatch.setattr(d4rl, "BLOCK", block)
    monkeypatch.setattr(d4rl, "TIME_LIMIT", 10)
    episodes = [e for e in played(TASK, 80).episodes if e.length == (12 if e.terminated else 9)]
    assert len(episodes) > 4
    trunc = [
        dataclasses.replace(cut(e, 10), terminated=False) if e.terminated else e for e in episodes
    ]
    joined = [e for e in trunc if e.length == 10][:4]
    made = imported(
        d4rl_file(tmp_path / "s.hdf5", joined, timeouts=False), tmp_path / "set", task=TASK
    )
    assert [e.length for e in episodes_of(made)] == [10] * 4
    assert not any(e.terminated for e in episodes_of(made))
    for mine, theirs in zip(episodes_of(made), joined, strict=True):
        same(mine, theirs)


def cut(e, steps):
    return dataclasses.replace(
        e,
        observations={"": e.observations[""][: steps + 1]},
        actions={"": e.actions[""][:steps]},
        rewards=e.rewards[:steps],
    )


def test_a_terminal_behind_the_limit_ends_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl, "TIME_LIMIT", 5)
    one = next(e for e in played(TASK, 20).episodes if e.terminated and e.length == 12)
    found = episodes_of(
        imported(d4rl_file(tmp_path / "s.hdf5", [one], timeouts=False), tmp_path / "set", task=TASK)
    )
    assert [(e.length, e.terminated) for e in found] == [(5, False), (5, False), (2, True)]


@pytest.mark.parametrize("known", [True, False])
def test_rows_after_the_last_end_are_a_truncated_episode(tmp_path, episodes, known):
    source = d4rl_file(tmp_path / "s.hdf5", episodes, next_observations=known, tail=3)
    last = episodes_of(imported(source, tmp_path / "set", task=TASK))[-1]
    steps = episodes[-1].length - 3 - (not known)
    assert last.length == steps and not last.terminated
    np.testing.assert_array_equal(last.observations[""], episodes[-1].observations[""][: steps + 1])


def test_both_flags_are_a_termination(tmp_path, episodes):
    one = next(e for e in episodes if e.terminated)
    flags = np.arange(one.length) == one.length - 1
    found = episodes_of(
        imported(
            d4rl_file(tmp_path / "s.hdf5", [one], timeouts=True, terminals=flags),
            tmp_path / "set",
            task=TASK,
        )
    )
    assert found[0].terminated
    with h5py.File(tmp_path / "s.hdf5", "a") as file:
        file["timeouts"][-1] = True
    assert episodes_of(imported(tmp_path / "s.hdf5", tmp_path / "set2", task=TASK))[0].terminated


def test_an_interrupted_import_skips_what_is_there(tmp_path, episodes):
    from bigdm_ray.envs import find_task

    reader = d4rl.FORMAT.open(
        str(d4rl_file(tmp_path / "s.hdf5", episodes, next_observations=False))
    )
    signature = find_task(TASK).signature()
    whole = list(reader.episodes(TASK, signature))
    for skip in (0, 1, 5, 12, 13):
        rest = list(reader.episodes(TASK, signature, skip))
        assert [e.id.number for e in rest] == [e.id.number for e in whole[skip:]]
        for mine, theirs in zip(rest, whole[skip:], strict=True):
            same(mine, theirs)


@pytest.mark.parametrize(
    "name", ["cartpole_medium-v2.hdf5", "cartpole-medium-v2.hdf5", "CartPole.h5"]
)
def test_the_files_name_tells_the_task(tmp_path, name):
    episodes = played("cartpole", 4).episodes
    made = import_dataset([str(d4rl_file(tmp_path / name, episodes))], tmp_path / "set")
    assert made.task == "cartpole" and made.episodes == 4
    for mine, theirs in zip(episodes_of(made), episodes, strict=True):
        same(mine, theirs)
    other = import_dataset([str(tmp_path / name)], tmp_path / "v0", "gymnasium:CartPole-v0")
    assert other.task == "gymnasium:CartPole-v0", (
        "another version of the same body is no other task"
    )


def test_a_task_of_dicts_is_refused(tmp_path, episodes):
    with pytest.raises(UserError, match="holds one array of observations, but toy-mixed has dicts"):
        imported(d4rl_file(tmp_path / "s.hdf5", episodes), tmp_path / "set", task="toy-mixed")


def d3rlpy_file(path, episodes, doubled=True, **more):
    """d3rlpy's first layout, as its replay buffers write it: a terminal on the last two rows."""
    flags = np.concatenate(
        [
            np.arange(e.length) >= (e.length - 1 - doubled if e.terminated else e.length)
            for e in episodes
        ]
    )
    ends = np.concatenate([np.arange(e.length) == e.length - 1 for e in episodes])
    return d4rl_file(
        path,
        episodes,
        next_observations=False,
        timeouts=False,
        terminals=flags.astype(np.float32),
        **{"episode_terminals": ends.astype(np.float32)} | more,
    )


def scalars(path, **values):
    with h5py.File(path, "a") as file:
        for name, value in values.items():
            file[name] = value
    return path


@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("doubled", [True, False])
def test_d3rlpys_first_layout_ends_where_episode_terminals_says(
    tmp_path, episodes, doubled, block, monkeypatch, capsys
):
    monkeypatch.setattr(d4rl, "BLOCK", block)
    source = scalars(
        d3rlpy_file(tmp_path / "s.h5", episodes, doubled), discrete_action=False, version="1.0"
    )
    found = episodes_of(imported(source, tmp_path / "set", task=TASK))
    assert [(e.length, e.terminated) for e in found] == [
        (e.length - (not e.terminated), e.terminated) for e in episodes
    ]
    for mine, theirs in zip(found, episodes, strict=True):
        np.testing.assert_array_equal(mine.rewards, theirs.rewards[: mine.length])
    assert "not read" not in capsys.readouterr().err


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("block", [1, 10_000])
def test_a_terminal_that_ends_nothing_is_refused(tmp_path, episodes, row, block, monkeypatch):
    monkeypatch.setattr(d4rl, "BLOCK", block)
    source = d3rlpy_file(tmp_path / "s.h5", episodes)
    with h5py.File(source, "a") as file:
        file["terminals"][row] = 1
        file["episode_terminals"][row] = 0
    with pytest.raises(UserError, match=r"field 'terminals': it is set.*episode_terminals"):
        imported(source, tmp_path / "set", task=TASK)


def test_discrete_actions_are_not_those_of_a_task_with_real_ones(tmp_path, episodes):
    source = scalars(d3rlpy_file(tmp_path / "s.h5", episodes), discrete_action=True)
    with pytest.raises(UserError, match="'discrete_action' says that actions are discrete"):
        imported(source, tmp_path / "set", task=TASK)


def test_two_columns_that_tell_ends_are_refused(tmp_path, episodes):
    rows = sum(e.length for e in episodes)
    source = scalars(d3rlpy_file(tmp_path / "s.h5", episodes), timeouts=np.zeros(rows, bool))
    with pytest.raises(UserError, match="leave one of them out"):
        imported(source, tmp_path / "set", task=TASK)
