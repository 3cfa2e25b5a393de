import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import played, same_arrays
from sources import dataset, episode_parquet, episodes_of, imported, rows_of

from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats import parquet
from bigdm_ray.formats.behaviour import Behaviour, with_stage
from bigdm_ray.formats.exporting import export_dataset

TASK = "toy-continuous"


@pytest.fixture(scope="module")
def episodes():
    return played(TASK, 11).episodes


def same(mine, theirs):
    same_arrays(mine.observations, theirs.observations)
    same_arrays(mine.actions, theirs.actions)
    np.testing.assert_array_equal(mine.rewards, theirs.rewards)
    assert mine.terminated == theirs.terminated


@pytest.mark.parametrize("group", [1, 4, 100])
@pytest.mark.parametrize("row_bytes", [1, 1 << 24])
def test_rows_of_flat_lists_become_episodes(tmp_path, episodes, group, row_bytes, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_BYTES", row_bytes)
    source = episode_parquet(tmp_path / "s.parquet", rows_of(episodes), row_group_size=group)
    found = episodes_of(imported(source, tmp_path / "set", task=TASK))
    for number, (mine, theirs) in enumerate(zip(found, episodes, strict=True)):
        same(mine, theirs)
        assert mine.source == "chance sto sigma 0.5 stage 3" and mine.seed == 500 + number


def test_the_metadata_tells_task_and_signature(tmp_path):
    """obs_dim, act_dim, n_actions and env_id, as in the layout this format is of; versions are
    kept."""
    for task, choices in (("lunarlander", 4), ("lunarlander-continuous", 0)):
        episodes = played(task, 3).episodes
        meta = {
            "env_id": "LunarLander-v3",
            "obs_dim": "8",
            "act_dim": "1" if choices else "2",
            "n_actions": str(choices),
            "gymnasium": "1.4.0",
            "box2d": "2.3.10",
        }
        stored = [
            e.actions[""].astype(np.int8 if choices else np.float32).reshape(-1) for e in episodes
        ]
        rows = rows_of(episodes, actions=stored)
        made = imported(episode_parquet(tmp_path / f"{task}.parquet", rows, meta), tmp_path / task)
        assert made.task == task, (
            "the id alone does not say which LunarLander it is; the actions do"
        )
        assert made.versions == {
            "environment": "LunarLander-v3",
            "gymnasium": "1.4.0",
            "box2d": "2.3.10",
        }
        for mine, theirs in zip(episodes_of(made), episodes, strict=True):
            same(mine, theirs)


def test_a_column_tells_the_environment_where_the_metadata_does_not(tmp_path):
    episodes = played("cartpole", 3).episodes
    assert (
        imported(
            episode_parquet(tmp_path / "s.parquet", rows_of(episodes, env_id=["CartPole-v1"] * 3)),
            tmp_path / "set",
        ).task
        == "cartpole"
    )


def test_lists_may_nest_and_ends_may_be_one_flag_an_episode(tmp_path, episodes):
    rows = rows_of(episodes)
    rows["observations"] = pa.array(
        [e.observations[""].tolist() for e in episodes], pa.list_(pa.list_(pa.float32(), 3))
    )
    rows["actions"] = pa.array(
        [e.actions[""].tolist() for e in episodes], pa.large_list(pa.list_(pa.float64()))
    )
    rows["terminated"] = pa.array([e.terminated for e in episodes])
    rows["truncated"] = pa.array([not e.terminated for e in episodes])
    pq.write_table(
        pa.table(
            {
                name: pa.array(values) if isinstance(values, list) else values
                for name, values in rows.items()
            }
        ),
        tmp_path / "s.parquet",
    )
    for mine, theirs in zip(
        episodes_of(imported(tmp_path / "s.parquet", tmp_path / "set", task=TASK)),
        episodes,
        strict=True,
    ):
        same(mine, theirs)


def test_only_arrays_and_ends_are_needed(tmp_path, episodes):
    optional = dict.fromkeys(("length", "policy", "mode", "sigma", "eps", "stage", "seed"))
    found = episodes_of(
        imported(
            episode_parquet(tmp_path / "s.parquet", rows_of(episodes, **optional)),
            tmp_path / "set",
            task=TASK,
        )
    )
    assert len(found) == 11 and {(e.source, e.seed) for e in found} == {("", 0)}


def test_a_folder_of_files_is_one_source(tmp_path, episodes):
    (tmp_path / "many").mkdir()
    for number, part in enumerate((episodes[:3], episodes[3:5], episodes[5:])):
        episode_parquet(tmp_path / "many" / f"{number}.parquet", rows_of(part), row_group_size=2)
    for mine, theirs in zip(
        episodes_of(imported(tmp_path / "many", tmp_path / "set", task=TASK)), episodes, strict=True
    ):
        same(mine, theirs)
    reader = parquet.FORMAT.open(str(tmp_path / "many"))
    assert reader.place(0).endswith("0.parquet, episode 0") and reader.place(4).endswith(
        "1.parquet, episode 4"
    )
    signature = find_task(TASK).signature()
    for skip in range(12):
        assert [e.id.number for e in reader.episodes(TASK, signature, skip)] == list(
            range(skip, 11)
        )
    episode_parquet(tmp_path / "many" / "3.parquet", rows_of(episodes, seed=None))
    with pytest.raises(UserError, match=r"3.parquet has other columns than .*0.parquet"):
        imported(tmp_path / "many", tmp_path / "other", task=TASK)


# --- out and back


@pytest.mark.parametrize("format", ["minari", "parquet", "steps"])
@pytest.mark.parametrize(
    "task", ["toy-continuous", "toy-vector", "toy-image", "toy-mixed", "toy-memory", "cartpole"]
)
def test_every_space_goes_out_and_comes_back(tmp_path, task, format):
    own = dataset(tmp_path / "own", task, versions={"numpy": "2.4"})
    export_dataset(own, format, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    back = imported(tmp_path / "out", tmp_path / "back")
    assert (back.sha256, back.task, back.signature) == (own.sha256, own.task, own.signature)
    assert back.versions["numpy"] == "2.4"


def test_seed_and_behaviour_travel_with_episode_parquet(tmp_path):
    own = dataset(tmp_path / "own", count=3)
    export_dataset(own, "parquet", tmp_path / "out")
    back = episodes_of(imported(tmp_path / "out", tmp_path / "back"))
    assert [(e.source, e.seed) for e in back] == [(e.source, e.seed) for e in episodes_of(own)]
    table = pq.read_table(tmp_path / "out" / "own.parquet")
    assert table["return"].to_pylist() == [e.total_return for e in episodes_of(own)]
    assert json.loads(table.schema.metadata[b"bigdm"])["sha256"] == own.sha256


@pytest.mark.parametrize("versions", [{}, {"environment": "CartPole-v1"}])
@pytest.mark.parametrize("format", ["parquet", "steps"])
def test_other_readers_find_the_environment_and_the_sizes(tmp_path, format, versions):
    """In plain metadata, with and without an environment on the card; an import that sees nothing
    else finds the task."""
    for task, sizes in (("cartpole", ("4", "1", "2")), ("pendulum", ("3", "1", "0"))):
        env_id = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1"}[task]
        own = dataset(tmp_path / task, task, 2, versions=versions and {"environment": env_id})
        export_dataset(own, format, tmp_path / f"out-{task}")
        path = tmp_path / f"out-{task}" / f"{task}.parquet"
        table = pq.read_table(path)
        meta = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        assert (meta["env_id"], meta["obs_dim"], meta["act_dim"], meta["n_actions"]) == (
            env_id,
            *sizes,
        )
        if format == "parquet":
            assert table["env_id"].to_pylist() == [env_id] * 2
        pq.write_table(
            table.replace_schema_metadata(
                {name: value for name, value in meta.items() if name != "bigdm"}
            ),
            path,
        )
        back = imported(path, tmp_path / f"back-{task}")
        assert back.task == task and back.versions["environment"] == env_id
    toys = dataset(tmp_path / "toys", "toy-mixed", 2)
    export_dataset(toys, format, tmp_path / "out")
    meta = pq.read_schema(tmp_path / "out" / "toys.parquet").metadata
    assert not {b"env_id", b"obs_dim", b"act_dim", b"n_actions"} & set(meta), (
        "no such environment is registered, and a dict has no one size"
    )


@pytest.mark.parametrize("format", ["minari", "parquet", "steps"])
def test_an_export_that_fails_leaves_nothing(tmp_path, format, monkeypatch):
    own = dataset(tmp_path / "own")

    def broken(self):
        yield next(whole(self))
        raise OSError(28, "No space left on device")

    whole = type(own).stream
    monkeypatch.setattr(type(own), "stream", broken)
    with pytest.raises(UserError, match="No space left on device"):
        export_dataset(own, format, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own"]


def test_an_export_overwrites_nothing(tmp_path):
    own = dataset(tmp_path / "own")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists already"):
        export_dataset(own, "parquet", tmp_path / "out")
    with pytest.raises(
        UserError, match=r"--to is 'd4rl', but one of minari, parquet, steps is expected"
    ):
        export_dataset(own, "d4rl", tmp_path / "out2")


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("sac-final sto sigma 0.05 eps 0.3 stage 4", Behaviour("sac-final", "sto", 0.05, 0.3, 4)),
        ("random", Behaviour("random")),
        ("", Behaviour("")),
        ("a long name of two words", Behaviour("a long name of two words")),
        ("udrl-best sample eps 1e-05", Behaviour("udrl-best", "sample", 0.0, 1e-5)),
        ("x stage 0", Behaviour("x", stage=0)),
        ("stage 1", Behaviour("", stage=1)),
        ("sigma 0.5 stage 1", Behaviour("", sigma=0.5, stage=1)),
        ("x stage 99999", Behaviour("x stage 99999")),
        ("x sigma ..", Behaviour("x sigma ..")),
    ],
)
def test_a_behaviour_is_one_line(line, made):
    assert Behaviour.read(line) == made and str(made) == line


def test_another_stage():
    assert with_stage("sac sto sigma 0.5 stage 3", 1) == "sac sto sigma 0.5 stage 1"
    assert with_stage("random", 2) == "random stage 2"
    assert with_stage(with_stage("", 2), 3) == "stage 3"


def hub(episodes, limit_done=True, **more):
    """The Hub's Decision Transformer data: lists in lists, T observations, `dones`."""
    ends = [(np.arange(e.length) == e.length - 1) & (e.terminated or limit_done) for e in episodes]
    columns = {
        "observations": [e.observations[""][:-1].tolist() for e in episodes],
        "actions": [e.actions[""].tolist() for e in episodes],
        "rewards": [e.rewards.tolist() for e in episodes],
        "dones": [end.tolist() for end in ends],
    }
    return pa.table(columns | more)


@pytest.mark.parametrize("limit_done", [True, False])
def test_rows_of_the_hub_lose_the_last_step_where_a_limit_cut_them(
    tmp_path, monkeypatch, limit_done
):
    """`done` after as many steps as the limit allows is a cut; so is a row without one."""
    episodes = [e for e in played(TASK, 80).episodes if not e.terminated or e.length < 9][:8]
    episodes = [*episodes, next(e for e in played(TASK, 80).episodes if e.terminated)]
    limit = next(e.length for e in episodes if not e.terminated)
    episodes = [e for e in episodes if e.terminated or e.length == limit]
    assert {e.terminated for e in episodes} == {True, False}
    assert all(e.length != limit for e in episodes if e.terminated)
    monkeypatch.setattr(parquet, "step_limit", lambda _: limit)
    pq.write_table(hub(episodes, limit_done), tmp_path / "s.parquet", row_group_size=3)
    found = episodes_of(imported(tmp_path / "s.parquet", tmp_path / "set", task=TASK))
    for mine, theirs in zip(found, episodes, strict=True):
        steps = theirs.length - (not theirs.terminated)
        assert (mine.length, mine.terminated) == (steps, theirs.terminated)
        np.testing.assert_array_equal(
            mine.observations[""][: theirs.length], theirs.observations[""][: theirs.length]
        )
        np.testing.assert_array_equal(mine.actions[""], theirs.actions[""][:steps])
        if theirs.terminated:
            np.testing.assert_array_equal(mine.observations[""][-1], theirs.observations[""][-2])


def test_next_observations_tell_the_last_one(tmp_path, episodes):
    after = [e.observations[""][1:].tolist() for e in episodes]
    pq.write_table(hub(episodes, False, next_observations=after), tmp_path / "s.parquet")
    found = episodes_of(imported(tmp_path / "s.parquet", tmp_path / "set", task=TASK))
    for mine, theirs in zip(found, episodes, strict=True):
        same(mine, theirs)
    after[2][0][0] += 1
    pq.write_table(hub(episodes, False, next_observations=after), tmp_path / "s.parquet")
    with pytest.raises(UserError, match=r"episode 2, field 'next_observations'.*next step saw"):
        imported(tmp_path / "s.parquet", tmp_path / "other", task=TASK)


def test_a_single_step_of_unknown_end_is_no_episode_and_is_not_counted(tmp_path, episodes):
    """An interrupted import skips episodes, not rows."""
    one = next(e for e in episodes if not e.terminated)
    columns = hub([one, *episodes], False).to_pydict()
    columns = {name: [values[0][:1], *values[1:]] for name, values in columns.items()}
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    reader = parquet.FORMAT.open(str(tmp_path / "s.parquet"))
    signature = find_task(TASK).signature()
    whole = list(reader.episodes(TASK, signature))
    assert len(whole) == len(episodes)
    rest = list(reader.episodes(TASK, signature, 4))
    assert [e.id for e in rest] == [e.id for e in whole[4:]]


def test_lists_of_unequal_length_in_a_row_are_refused(tmp_path, episodes):
    rows = [e.observations[""].tolist() for e in episodes]
    rows[3][1], rows[3][2] = rows[3][1][:2], [*rows[3][2], 0.0]
    columns = rows_of(episodes) | {"observations": rows}
    with pytest.raises(UserError, match="episode 3, field 'observations': it holds lists of 3 and"):
        imported(episode_parquet(tmp_path / "s.parquet", columns), tmp_path / "set", task=TASK)
