"""Layouts that the field's files have: LeRobot, numbered columns, RLlib's JSON, d3rlpy's buffers,
NumPy archives."""

import json
import sys

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import arrays, d3rlpy_file, json_lines, lerobot
from making import played
from sources import dataset, episode_parquet, imported, rows_of, step_columns

from bigdm_ray.errors import UserError
from bigdm_ray.formats.exporting import export_dataset
from bigdm_ray.formats.spellings import SPELLINGS, match_columns

TASKS = ["cartpole", "toy-continuous"]


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def episodes(task):
    return played(task, 5).episodes


def cut(e):
    """An episode as a file without what was seen last gives it back."""
    if e.terminated:
        seen = np.concatenate([e.observations[""][:-1], e.observations[""][-2:-1]])
        return seen, e.actions[""], e.rewards
    return e.observations[""][:-1], e.actions[""][:-1], e.rewards[:-1]


def same(made, episodes, exact=True):
    """Whether a dataset holds these episodes, with or without the last observations."""
    found = list(made.stream())
    assert len(found) == len(episodes)
    for mine, e in zip(found, episodes, strict=True):
        seen, done, rewards = (e.observations[""], e.actions[""], e.rewards) if exact else cut(e)
        np.testing.assert_array_equal(mine.observations[""], seen)
        np.testing.assert_array_equal(mine.actions[""], done.reshape(mine.actions[""].shape))
        np.testing.assert_allclose(mine.rewards, rewards, rtol=1e-6)
        assert mine.terminated == e.terminated


# --- numbered columns


def wide(episodes, seen="obs_{}", done="action_{}"):
    columns = step_columns(episodes)
    out = {"episode_id": columns["eps_id"], "reward": columns["rewards"]}
    for stem, name in ((seen, "obs"), (done, "actions"), ("next_" + seen, "new_obs")):
        values = np.stack(columns[name]).reshape(len(columns["rewards"]), -1)
        out |= {stem.format(k): values[:, k] for k in range(values.shape[1])}
    return out | {"terminated": columns["terminateds"], "truncated": columns["truncateds"]}


@pytest.mark.parametrize(("seen", "done"), [("obs_{}", "action_{}"), ("state{}", "actions.{}")])
def test_numbered_columns_are_one_vector(tmp_path, task, episodes, seen, done):
    columns = wide(episodes, seen, done)
    columns = dict(sorted(columns.items(), reverse=True))  # in whatever order they stand
    pq.write_table(pa.table(columns), tmp_path / "wide.parquet", row_group_size=7)
    same(imported(tmp_path / "wide.parquet", tmp_path / "set", task=task), episodes)
    made = imported(tmp_path / "wide.parquet", tmp_path / "none", task="none")
    assert made.signature.actions[""].kind == ("discrete" if task == "cartpole" else "tensor")


def test_what_was_taken_for_what_is_told(tmp_path, episodes, task):
    columns = wide(episodes)
    gap = {name: values for name, values in columns.items() if name != "obs_1"}
    pq.write_table(pa.table(gap), tmp_path / "gap.parquet")
    with pytest.raises(UserError, match=r"one of obs, .* is expected; taken were rewards") as told:
        imported(tmp_path / "gap.parquet", tmp_path / "set", task=task)
    assert "episode from 'episode_id'" in str(told.value) and "actions from 'action_0" in str(
        told.value
    )
    spoilt = columns | {"reward": [float("nan"), *columns["reward"][1:]]}
    pq.write_table(pa.table(spoilt), tmp_path / "nan.parquet")
    with pytest.raises(UserError, match=r"field 'rewards'.*\(rewards were taken from 'reward'\)"):
        imported(tmp_path / "nan.parquet", tmp_path / "set", task=task)


def test_the_table_takes_the_first_name_and_no_column_for_two():
    names = [name for names in SPELLINGS.values() for name in names]
    assert len(names) == len(set(names))
    found = match_columns(["state", "obs", "action_1", "action_0", "action_3"])
    assert found.plain == {"observations": "obs"} and not found.cut
    assert match_columns(["obs_1", "obs_2", "obs_10"]).cut == {}
    ten = match_columns([f"obs_{k}" for k in range(11)]).cut["observations"]
    assert ten == tuple(f"obs_{k}" for k in range(11)), "by number, not by letter"


def test_episode_rows_by_other_names_and_steps_by_plain_ones(tmp_path, task, episodes):
    columns = rows_of(episodes)
    names = {"observations": "obs", "actions": "action", "rewards": "reward"}
    told = {names.get(name, name): values for name, values in columns.items()}
    episode_parquet(tmp_path / "rows.parquet", told)
    same(imported(tmp_path / "rows.parquet", tmp_path / "set", task=task), episodes)
    steps = step_columns(episodes)
    steps |= {"observations": steps.pop("obs"), "next_observations": steps.pop("new_obs")}
    episode_parquet(tmp_path / "steps.parquet", steps)
    same(imported(tmp_path / "steps.parquet", tmp_path / "steps", task=task), episodes)


# --- LeRobot


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_recordings_of_lerobot(tmp_path, capsys, version):
    episodes = played("toy-continuous", 5).episodes
    root = lerobot(tmp_path / "robot", episodes, version, films=("observation.images.top",))
    made = imported(root, tmp_path / "set", task="none")
    told = capsys.readouterr().err
    assert "observation.images.top: pictures and films were left out" in told
    assert "was not read" not in told
    limit = [type(e)(**{**vars(e), "terminated": True}) for e in episodes]  # `next.done` is either
    same(made, limit, exact=False)
    same(
        imported(root, tmp_path / "task", task="toy-continuous"),
        episodes_at_the_limit(episodes),
        exact=False,
    )


def episodes_at_the_limit(episodes):
    return [type(e)(**{**vars(e), "terminated": True}) for e in episodes]


def test_lerobot_with_several_features_and_without_rewards(tmp_path, capsys):
    episodes = played("toy-continuous", 5).episodes
    root = lerobot(tmp_path / "robot", episodes, "v3.0", done=False, rewards=False, parts=True)
    made = imported(root, tmp_path / "set", task="none")
    assert "tells no rewards: all of them are 0" in capsys.readouterr().err
    assert list(made.signature.observations) == ["environment_state", "state"]
    for mine, e in zip(made.stream(), episodes, strict=True):
        assert not mine.terminated and mine.length == e.length - 1 and not mine.rewards.any()
        seen = [mine.observations[name] for name in ("state", "environment_state")]
        np.testing.assert_array_equal(np.concatenate(seen, 1), e.observations[""][:-1])


def test_lerobot_that_cannot_be_had_is_one_sentence(tmp_path):
    episodes = played("toy-continuous", 3).episodes
    root = lerobot(tmp_path / "robot", episodes, "v2.1")
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    seen = info["features"]["observation.state"]
    films = {"observation.image": {"dtype": "video"}, "action": info["features"]["action"]}
    for change, words in (
        ({"codebase_version": "v1.6"}, "v2 or v3 is expected"),
        ({"total_frames": 7}, "a file is missing"),
        ({"features": films}, "only pictures or films"),
        ({"features": 3}, "not the description"),
        (
            {"features": info["features"] | {"observation.gone": seen}},
            "no column 'observation.gone'",
        ),
    ):
        file.write_text(json.dumps(info | change))
        with pytest.raises(UserError, match=words):
            imported(root, tmp_path / "set", task="none")


# --- RLlib's JSON


@pytest.mark.parametrize("multi", [False, True])
def test_sample_batches_of_rllib_as_json(tmp_path, task, episodes, multi, capsys):
    source = json_lines(tmp_path / "output-1.json", episodes, multi)
    same(imported(source, tmp_path / "set", task=task), episodes)
    assert "'action_prob'" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    json_lines(tmp_path / "out" / "output-1.json", episodes)
    made = imported(tmp_path / "out", tmp_path / "none", task="none")
    same(made, episodes)


def test_what_rllib_has_packed_is_refused(tmp_path, task, episodes):
    with pytest.raises(UserError, match=r"field 'obs'.*pickle, which is never opened.*=\[\]"):
        imported(
            json_lines(tmp_path / "a.json", episodes, obs="BCJNGGhA"), tmp_path / "set", task=task
        )
    packed = {"__ray_serialized__": "BCJN"}
    with pytest.raises(UserError, match=r"field 'actions'.*pickle, which is never opened"):
        imported(
            json_lines(tmp_path / "b.json", episodes, actions=packed), tmp_path / "set", task=task
        )
    broken = json_lines(tmp_path / "c.json", episodes)
    broken.write_text(broken.read_text() + '{"type": "SampleBatch", "obs": [[')
    with pytest.raises(UserError, match=r"c.json, line \d+ is no sample batch"):
        imported(broken, tmp_path / "set", task=task)
    line = json.loads(json_lines(tmp_path / "d.json", episodes, True).read_text().splitlines()[0])
    line["policy_batches"]["two"] = line["policy_batches"]["one"]
    (tmp_path / "d.json").write_text(json.dumps(line))
    with pytest.raises(UserError, match="batches of 2 policies"):
        imported(tmp_path / "d.json", tmp_path / "set", task=task)


# --- d3rlpy's second layout


def test_replay_buffers_of_d3rlpy(tmp_path, task, episodes):
    source = d3rlpy_file(tmp_path / "buffer.h5", episodes)
    same(imported(source, tmp_path / "set", task=task), episodes, exact=False)
    same(imported(source, tmp_path / "none", task="none"), episodes, exact=False)
    made = imported(d3rlpy_file(tmp_path / "two.h5", episodes, True), tmp_path / "two", task="none")
    assert list(made.signature.observations) == ["0", "1"]
    with h5py.File(source, "a") as file:
        del file["rewards_1"]
    with pytest.raises(UserError, match=r"episode 1, field 'rewards_1': it is missing"):
        imported(source, tmp_path / "broken", task=task)


# --- NumPy archives


@pytest.mark.parametrize(
    "names", [{}, {"observations": "obs", "terminals": "terminated", "timeouts": "truncated",
                   "next_observations": "next_obs", "actions": "action", "rewards": "reward"}],
)  # fmt: skip
def test_archives_of_numpy(tmp_path, task, episodes, names):
    np.savez_compressed(tmp_path / "a.npz", **arrays(episodes, **names))
    same(imported(tmp_path / "a.npz", tmp_path / "set", task=task), episodes)
    same(imported(tmp_path / "a.npz", tmp_path / "none", task="none"), episodes)


def test_archives_with_done_alone_or_beside_cuts(tmp_path):
    episodes = played("cartpole", 4).episodes
    found = arrays(episodes)
    found["dones"] = found.pop("terminals") | found["timeouts"]
    np.savez(tmp_path / "both.npz", **found)
    same(imported(tmp_path / "both.npz", tmp_path / "set", task="cartpole"), episodes)
    del found["timeouts"]
    np.savez(tmp_path / "alone.npz", **found)
    same(imported(tmp_path / "alone.npz", tmp_path / "alone", task="cartpole"), episodes)


def test_archives_that_cannot_be_had_are_one_sentence(tmp_path, task, episodes):
    found, at = arrays(episodes), tmp_path / "a.npz"
    objects = found["actions"].astype(object)
    np.savez(at, **found | {"actions": objects})
    with pytest.raises(UserError, match="is not a whole archive of arrays"):
        imported(at, tmp_path / "set", task=task)
    del found["rewards"]
    np.savez(at, **found)
    with pytest.raises(UserError, match=r"field 'rewards': .*one of rewards, reward.*taken were"):
        imported(at, tmp_path / "set", task=task)
    at.write_bytes(at.read_bytes()[:-50])
    with pytest.raises(UserError, match="is not a whole archive of arrays"):
        imported(at, tmp_path / "set", task=task)
    np.savez_compressed(at, observations=np.zeros((1 << 18, 150)))
    with pytest.raises(UserError, match="claims to hold"):
        imported(at, tmp_path / "set", task=task)


@pytest.mark.parametrize("kind", ["npz", "d3rlpy", "json", "lerobot"])
def test_changed_bytes_end_in_a_sentence_or_in_a_dataset(tmp_path, kind):
    few = played("toy-continuous", 3).episodes
    if kind == "npz":
        source = path = tmp_path / "a.npz"
        np.savez_compressed(path, **arrays(few))
    elif kind == "lerobot":
        source = lerobot(tmp_path / "robot", few, "v2.1")
        path = source / "meta" / "info.json"
    else:
        name, write = {"d3rlpy": ("a.h5", d3rlpy_file), "json": ("a.json", json_lines)}[kind]
        source = path = write(tmp_path / name, few)
    whole, chance = path.read_bytes(), np.random.default_rng(4)
    told = 0
    for number in range(12):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(chance.integers(len(data)))]
        for at in chance.integers(0, len(data), 4) if data else ():
            data[at] ^= 1 << int(chance.integers(8))
        path.write_bytes(data)
        try:
            imported(source, tmp_path / f"set{number}", task="none", quiet=True)
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
            assert not (tmp_path / f"set{number}").exists()
    assert told


# --- names with slashes


@pytest.mark.parametrize("to", ["minari", "parquet", "steps"])
def test_leaves_whose_names_hold_a_slash_come_back_from_every_export(tmp_path, monkeypatch, to):
    (tmp_path / "slashed.py").write_text(
        "import gymnasium, numpy as np\nfrom gymnasium import spaces\nclass"
        " Slashed(gymnasium.Env):\n    observation_space = spaces.Dict({'arm/joint': spaces.Box(-9,"
        " 9, (2,), np.float32),\n        'arm': spaces.Dict({'tip/x': spaces.Discrete(3)}), 'b':"
        " spaces.Box(-9, 9, (1,))})\n    action_space = spaces.Dict({'a/b': spaces.Discrete(4),"
        " 'c': spaces.Box(-1, 1, (2,))})\n    def reset(self, seed=None, options=None):\n       "
        " self.observation_space.seed(seed)\n        self.k = 0\n        return"
        " self.observation_space.sample(), {}\n    def step(self, action):\n        self.k += 1\n  "
        "      return self.observation_space.sample(), 1.0, False, self.k == 4,"
        " {}\ngymnasium.register('Slashed-v0', Slashed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("slashed", None)
    task = "slashed:Slashed-v0"
    made = dataset(tmp_path / "own", task, 3)
    assert set(made.signature.observations) == {"arm/joint", "arm/tip/x", "b"}
    export_dataset(made, to, tmp_path / "out")
    back = imported(tmp_path / "out", tmp_path / "back", task=task)
    assert back.sha256 == made.sha256
    plain = imported(tmp_path / "own", tmp_path / "plain", task=task)
    assert plain.sha256 == made.sha256
