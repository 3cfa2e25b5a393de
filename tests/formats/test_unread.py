"""Columns that no reader knows: named, and refused where they could say where episodes end."""

import h5py
import numpy as np
import pytest
from making import played
from sources import d4rl_file, episode_parquet, imported, minari_folder, rows_of, step_columns

from bigdm_ray.errors import UserError
from bigdm_ray.formats.unread import tells_ends, unread_names

TASK = "toy-continuous"


@pytest.fixture(scope="module")
def episodes():
    return played(TASK, 4).episodes


def with_column(kind, tmp_path, episodes, name, data_format="hdf5"):
    """A sound source that holds one more column of a flag a step."""
    flags = [[0.0] * e.length for e in episodes]
    steps = [flag for row in flags for flag in row]
    if kind == "d4rl":
        return d4rl_file(tmp_path / "s.hdf5", episodes, **{name: np.array(steps)})
    if kind == "parquet":
        return episode_parquet(tmp_path / "s.parquet", rows_of(episodes, **{name: flags}))
    if kind == "steps":
        return episode_parquet(tmp_path / "s.parquet", step_columns(episodes, **{name: steps}))
    folder = minari_folder(tmp_path / "minari", TASK, episodes)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file[f"episode_2/{name}"] = flags[2]
    return folder


@pytest.mark.parametrize("kind", ["d4rl", "parquet", "steps", "minari"])
def test_an_unknown_column_is_named(tmp_path, episodes, kind, capsys):
    source = with_column(kind, tmp_path, episodes, "log_probs")
    assert imported(source, tmp_path / "set", task=TASK).episodes == len(episodes)
    assert "which was not read: 'log_probs'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["d4rl", "parquet", "steps", "minari"])
@pytest.mark.parametrize("name", ["trajectory_ends", "is_last"])
def test_a_column_that_may_tell_of_ends_is_refused(tmp_path, episodes, kind, name):
    source = with_column(kind, tmp_path, episodes, name)
    with pytest.raises(UserError, match=f"field '{name}': it is not known here and may say where"):
        imported(source, tmp_path / "set", task=TASK)
    assert not (tmp_path / "set").exists()


def test_what_is_known_is_not_named(tmp_path, episodes, capsys):
    rows = sum(e.length for e in episodes)
    for kind, source in (
        ("d4rl", d4rl_file(tmp_path / "s.hdf5", episodes, **{"infos/qpos_end": np.zeros(rows)})),
        ("parquet", episode_parquet(tmp_path / "s.parquet", rows_of(episodes))),
        ("minari", minari_folder(tmp_path / "minari", TASK, episodes)),
    ):
        imported(source, tmp_path / f"set-{kind}", task=TASK)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("done", ["dones", "done"])
def test_dones_beside_terminateds_end_episodes_too(tmp_path, episodes, done):
    """A file without `truncateds` whose `dones` mark either end; without, all is one episode."""
    columns = step_columns(episodes, eps_id=None, truncateds=None)
    ends = [k == e.length - 1 for e in episodes for k in range(e.length)]
    source = episode_parquet(tmp_path / "s.parquet", columns | {done: ends})
    made = imported(source, tmp_path / "set", task=TASK)
    assert [(e.length, e.terminated) for e in made.stream()] == [
        (e.length, e.terminated) for e in episodes
    ]


@pytest.mark.parametrize(
    "name",
    ["episode_terminals", "isDone", "timeouts_", "traj_id", "EpisodeEnd", "masks", "is_first"],
)
def test_names_that_tell_of_ends(name):
    assert tells_ends(name)


@pytest.mark.parametrize(
    "name", ["log_prob", "episode_return", "qpos", "gender", "rendered", "discount", "lastingness"]
)
def test_names_that_do_not(name):
    assert not tells_ends(name)


def test_groups_of_infos_are_known():
    assert unread_names(["infos", "infos/terminal_x", "metadata/policy"], (), "here") == ()
