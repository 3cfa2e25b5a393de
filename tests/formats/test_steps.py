import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import played, same_arrays
from sources import dataset, episode_parquet, episodes_of, imported, step_columns

from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats import rows, steps
from bigdm_ray.formats.exporting import export_dataset
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.formats.tasks import step_limit

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


@pytest.mark.parametrize("row_bytes", [1, 1000, 1 << 24])
def test_rows_become_episodes(tmp_path, episodes, row_bytes, monkeypatch):
    """Whatever is decoded at once, terminated and truncated stay apart."""
    monkeypatch.setattr(steps, "ROW_BYTES", row_bytes)
    source = episode_parquet(tmp_path / "s.parquet", step_columns(episodes), row_group_size=7)
    made = imported(source, tmp_path / "set", task=TASK)
    assert made.episodes == len(episodes)
    for mine, theirs in zip(episodes_of(made), episodes, strict=True):
        same(mine, theirs)


def test_a_new_id_ends_an_episode_that_has_no_flag(tmp_path, episodes):
    """As RLlib cuts fragments: what broke off is truncated."""
    total = sum(e.length for e in episodes)
    columns = step_columns(episodes, terminateds=[False] * total, truncateds=[False] * total)
    for size in (5, 10_000):
        folder = tmp_path / str(size)
        source = episode_parquet(tmp_path / f"{size}.parquet", columns, row_group_size=size)
        found = episodes_of(imported(source, folder, task=TASK))
        assert [e.length for e in found] == [e.length for e in episodes] and not any(
            e.terminated for e in found
        )
        np.testing.assert_array_equal(found[3].observations[""], episodes[3].observations[""])


def test_an_episode_goes_on_in_the_next_file_and_folders_are_searched(tmp_path, episodes):
    columns = step_columns(episodes)
    total = len(columns["rewards"])
    (tmp_path / "out" / "run-1").mkdir(parents=True)
    for number, (a, b) in enumerate([(0, 15), (15, 16), (16, total)]):
        episode_parquet(
            tmp_path / "out" / "run-1" / f"part-{number}.parquet",
            {name: values[a:b] for name, values in columns.items()},
        )
    for mine, theirs in zip(
        episodes_of(imported(tmp_path / "out", tmp_path / "set", task=TASK)), episodes, strict=True
    ):
        same(mine, theirs)


def test_other_spellings(tmp_path, episodes):
    columns = step_columns(episodes)
    renamed = {
        "obs": "observation",
        "actions": "action",
        "rewards": "reward",
        "new_obs": "next_obs",
        "terminateds": "dones",
        "truncateds": "timeouts",
    }
    source = episode_parquet(
        tmp_path / "s.parquet",
        {renamed.get(name, name): values for name, values in columns.items() if name != "eps_id"},
    )
    for mine, theirs in zip(
        episodes_of(imported(source, tmp_path / "set", task=TASK)), episodes, strict=True
    ):
        same(mine, theirs)


@pytest.mark.parametrize("name", ["done", "dones"])
def test_done_is_either_end(tmp_path, episodes, name):
    """With `truncateds` beside it, what is truncated did not terminate, though `dones` is set for
    it as well."""
    columns = step_columns(episodes)
    either = [
        bool(a or b) for a, b in zip(columns["terminateds"], columns["truncateds"], strict=True)
    ]
    source = episode_parquet(
        tmp_path / "s.parquet", columns | {name: either, "terminateds": [False] * len(either)}
    )
    assert not any(
        e.terminated for e in episodes_of(imported(source, tmp_path / "both", task=TASK))
    ), "terminateds itself counts where it is there"
    del columns["terminateds"]
    source = episode_parquet(tmp_path / "s.parquet", columns | {name: either})
    for mine, theirs in zip(
        episodes_of(imported(source, tmp_path / "set", task=TASK)), episodes, strict=True
    ):
        same(mine, theirs)


@pytest.mark.parametrize("row_bytes", [1, 3000, 1 << 24])
@pytest.mark.parametrize("ids", [True, False])
def test_done_alone_is_a_time_limit_at_the_limit_only(tmp_path, monkeypatch, row_bytes, ids):
    """Three poles that fall, at steps below the limit, and two that are cut at it: the file says
    the same of all."""
    monkeypatch.setattr(steps, "ROW_BYTES", row_bytes)
    carts = played("cartpole", 40).episodes
    limit = max(e.length for e in carts)
    monkeypatch.setattr(rows, "step_limit", lambda task: {"cartpole": limit}[task])
    longest = next(e for e in carts if e.length == limit)
    mixed = [
        *[e for e in carts if e.length < limit][:2],
        longest,
        *[e for e in carts if e.length < limit][2:3],
        longest,
    ]
    columns = step_columns(mixed, truncateds=None)
    columns["dones"] = columns.pop("terminateds")
    if not ids:
        del columns["eps_id"]
    made = episodes_of(
        imported(
            episode_parquet(tmp_path / "s.parquet", columns, row_group_size=7),
            tmp_path / "set",
            task="cartpole",
        )
    )
    assert [(e.length, e.terminated) for e in made] == [(e.length, e.length < limit) for e in mixed]


def test_done_alone_is_a_termination_where_no_limit_is_known(tmp_path, episodes):
    columns = step_columns(
        episodes,
        truncateds=None,
        terminateds=[k == e.length - 1 for e in episodes for k in range(e.length)],
    )
    columns["done"] = columns.pop("terminateds")
    assert step_limit(TASK) is None and step_limit("cartpole") == 500
    assert all(
        e.terminated
        for e in episodes_of(
            imported(episode_parquet(tmp_path / "s.parquet", columns), tmp_path / "set", task=TASK)
        )
    )


def test_without_new_obs_the_end_is_what_is_known(tmp_path, episodes):
    source = episode_parquet(tmp_path / "s.parquet", step_columns(episodes, new_obs=None))
    for mine, theirs in zip(
        episodes_of(imported(source, tmp_path / "set", task=TASK)), episodes, strict=True
    ):
        assert mine.length == (theirs.length if theirs.terminated else theirs.length - 1)
        assert mine.terminated == theirs.terminated
        np.testing.assert_array_equal(
            mine.observations[""][:-1], theirs.observations[""][: mine.length]
        )


def test_an_interrupted_import_skips_what_is_there(tmp_path, episodes):
    reader = steps.FORMAT.open(str(episode_parquet(tmp_path / "s.parquet", step_columns(episodes))))
    signature = find_task(TASK).signature()
    whole = list(reader.episodes(TASK, signature))
    for skip in (0, 1, 11, 12):
        assert [e.id.number for e in reader.episodes(TASK, signature, skip)] == [
            e.id.number for e in whole[skip:]
        ]


def test_tensors_of_ray_data_are_read_without_ray(tmp_path, episodes):
    """Ray Data's tensor type is known by its storage; the shape is the task's."""
    columns = step_columns(episodes)
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    fields = []
    for field in table.schema:
        told = {
            "ARROW:extension:name": "ray.data.arrow_tensor_v2",
            "ARROW:extension:metadata": "[3]",
        }
        fields.append(field.with_metadata(told) if field.name in ("obs", "new_obs") else field)
    pq.write_table(table.cast(pa.schema(fields)), tmp_path / "s.parquet")
    for mine, theirs in zip(
        episodes_of(imported(tmp_path / "s.parquet", tmp_path / "set", task=TASK)),
        episodes,
        strict=True,
    ):
        same(mine, theirs)


def test_what_rllib_has_pickled_is_never_opened(tmp_path, episodes):
    columns = step_columns(episodes)
    source = episode_parquet(
        tmp_path / "s.parquet", columns | {"obs": ["BCJNGGhAjwAAAAAA"] * len(columns["rewards"])}
    )
    with pytest.raises(
        UserError,
        match=(
            r"field 'obs': numbers are expected, not string \(RLlib packs columns as"
            r" pickles.*output_compress_columns=\[\]"
        ),
    ):
        imported(source, tmp_path / "set", task=TASK)


def test_what_rllib_has_packed_into_episodes_is_never_opened(tmp_path):
    source = episode_parquet(tmp_path / "s.parquet", {"item": [b"\x82\xa5"], "eps_id": ["a"]})
    with pytest.raises(
        UserError,
        match=r"packed episodes.*output_write_episodes=False, output_compress_columns=\[\]",
    ):
        imported(source, tmp_path / "set", task=TASK)


def test_ids_of_fragments_are_no_ids_of_episodes(tmp_path, episodes):
    columns = step_columns(episodes, eps_id=None, unroll_id=[0] * sum(e.length for e in episodes))
    for mine, theirs in zip(
        episodes_of(
            imported(episode_parquet(tmp_path / "s.parquet", columns), tmp_path / "set", task=TASK)
        ),
        episodes,
        strict=True,
    ):
        same(mine, theirs)


def test_rows_without_an_end_are_refused_before_the_memory_is_gone(tmp_path, episodes, monkeypatch):
    monkeypatch.setattr(rows, "MAX_EPISODE_BYTES", 500)
    monkeypatch.setattr(steps, "ROW_BYTES", 100)
    total = sum(e.length for e in episodes)
    columns = step_columns(
        episodes,
        eps_id=["one"] * total,
        terminateds=[False] * total,
        truncateds=[False] * total,
        new_obs=None,
    )
    with pytest.raises(UserError, match="episode 0, field 'eps_id': the episode has no end"):
        imported(episode_parquet(tmp_path / "s.parquet", columns), tmp_path / "set", task=TASK)


@pytest.mark.parametrize(
    "task", ["toy-continuous", "toy-vector", "toy-image", "toy-mixed", "cartpole"]
)
def test_what_goes_out_has_rllibs_columns_in_the_environments_layout(tmp_path, task):
    own = dataset(tmp_path / "own", task)
    export_dataset(own, "steps", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "own.parquet")
    assert table.column_names == [
        "eps_id",
        "t",
        "obs",
        "actions",
        "rewards",
        "new_obs",
        "terminateds",
        "truncateds",
    ]
    rows = table.to_pylist()
    assert len(rows) == own.steps
    env = find_task(task).env(None)
    first = episodes_of(own)[0]
    assert [row["t"] for row in rows[: first.length + 1]] == [*range(first.length), 0]
    assert [row["eps_id"] for row in rows[: first.length + 1]] == ["0"] * first.length + ["1"]
    assert (rows[first.length - 1]["terminateds"], rows[first.length - 1]["truncateds"]) == (
        first.terminated,
        not first.terminated,
    )
    assert rows[0]["new_obs"] == rows[1]["obs"]
    if task == "toy-mixed":
        assert env.action_space["mode"].start == 5 <= rows[0]["actions"]["mode"], (
            "discrete values begin where the environment's do"
        )
        assert np.array(rows[0]["obs"]["eye"]).size == 32 * 32 * 3 and rows[0]["obs"][
            "mission"
        ].startswith("go ")
    if task == "toy-image":
        assert table.schema.field("obs").type == pa.fixed_shape_tensor(pa.uint8(), [32, 32])
    env.close()


def test_a_task_may_be_asked_for_by_its_own_name_only(tmp_path):
    export_dataset(dataset(tmp_path / "own", TASK), "steps", tmp_path / "out")
    with pytest.raises(UserError, match="another task: toy-continuous, not toy-vector"):
        imported(tmp_path / "out", tmp_path / "set", task="toy-vector")
    assert imported(tmp_path / "out", tmp_path / "set", task=TASK).task == TASK


@pytest.mark.slow
@pytest.mark.ray
def test_rllib_reads_what_is_written_and_writes_what_is_read(tmp_path):
    """Ray Data and RLlib's OfflinePreLearner take the export; RLlib's own recorder makes a
    source."""
    from types import SimpleNamespace

    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.offline.offline_env_runner import OfflineSingleAgentEnvRunner
    from ray.rllib.offline.offline_prelearner import OfflinePreLearner

    own = dataset(tmp_path / "own", "cartpole", 3)
    export_dataset(own, "steps", tmp_path / "out")
    first = episodes_of(own)[0]
    batch = ray.data.read_parquet(str(tmp_path / "out")).take_batch(4)
    config = SimpleNamespace(
        is_multi_agent=False,
        input_read_schema={},
        input_compress_columns=[],
        ignore_final_observation=False,
    )
    for k, theirs in enumerate(
        OfflinePreLearner._map_to_episodes(SimpleNamespace(config=config), batch)["episodes"]
    ):
        np.testing.assert_array_equal(theirs.get_observations(), first.observations[""][k : k + 2])
        assert (
            theirs.get_actions(0) == first.actions[""][k]
            and theirs.get_rewards(0) == first.rewards[k]
        )
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, batch_mode="complete_episodes")
        .learners(num_learners=0)
    )
    config.offline_data(
        output=str(tmp_path / "rllib"), output_write_episodes=False, output_compress_columns=[]
    )
    runner = OfflineSingleAgentEnvRunner(config=config)
    recorded = runner.sample(num_episodes=3, random_actions=True)
    runner.stop()
    made = episodes_of(import_dataset([str(tmp_path / "rllib")], tmp_path / "set", "cartpole"))
    assert len(made) == 3
    for mine, theirs in zip(made, recorded, strict=True):
        np.testing.assert_array_equal(mine.observations[""], theirs.get_observations())
        np.testing.assert_array_equal(mine.actions[""], theirs.get_actions())
        assert mine.terminated == theirs.is_terminated
