import contextlib
import json
import struct
import sys
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from making import played, same_arrays
from sources import dataset, edited, episodes_of, imported, minari_folder

from bigdm_ray.envs import find_task
from bigdm_ray.envs.values import flatten
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats import minari_source, varying
from bigdm_ray.formats import spaces as layouts
from bigdm_ray.formats.exporting import export_dataset
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.formats.resolving import resolve

TASKS = ["toy-continuous", "toy-vector", "toy-image", "toy-mixed", "cartpole"]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("task", TASKS)
def test_what_minari_writes_comes_in_bit_for_bit(tmp_path, task, data_format):
    """Continuous, discrete, dict, text and image spaces; Minari itself has written the folder."""
    own = dataset(tmp_path / "own", task)
    folder = minari_folder(tmp_path / "minari", task, episodes_of(own), data_format, jpeg=False)
    made = imported(folder, tmp_path / "set", task=task)
    assert made.sha256 == own.sha256 and made.signature == own.signature
    assert [e.terminated for e in episodes_of(made)] == [e.terminated for e in episodes_of(own)]
    assert {e.terminated for e in episodes_of(made)} == {True, False} or task == "cartpole"
    assert [e.seed for e in episodes_of(made)] == [1000 + k for k in range(6)]
    assert {e.source for e in episodes_of(made)} == {"chance"}
    assert made.versions["minari"] and made.versions["dataset"] == "made/up-v0"


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_pictures_in_jpeg_are_decoded(tmp_path, data_format):
    own = dataset(tmp_path / "own", "toy-mixed")
    folder = minari_folder(
        tmp_path / "minari", "toy-mixed", episodes_of(own), data_format, jpeg=True
    )
    made = imported(folder, tmp_path / "set", task="toy-mixed")
    for mine, theirs in zip(episodes_of(made), episodes_of(own), strict=True):
        assert (
            mine.observations["eye"].shape
            == theirs.observations["eye"].shape
            == (theirs.length + 1, 3, 32, 32)
        )
        off = np.abs(mine.observations["eye"].astype(int) - theirs.observations["eye"].astype(int))
        assert off.mean() < 3, "JPEG loses a little, not the picture"
        same_arrays(
            {"": mine.observations["body/joints"]}, {"": theirs.observations["body/joints"]}
        )


def test_a_broken_picture_is_named(tmp_path):
    own = dataset(tmp_path / "own", "toy-image")
    folder = minari_folder(tmp_path / "minari", "toy-image", episodes_of(own), "hdf5", jpeg=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        blobs = list(file["episode_2/observations"][()])
        blobs[1] = blobs[1][:20]
        del file["episode_2/observations"]
        file.create_dataset(
            "episode_2/observations", data=np.array(blobs, object), dtype=h5py.vlen_dtype(np.uint8)
        )
    with pytest.raises(
        UserError,
        match=(
            r"main_data.hdf5, episode 2, field 'observations': step 1: the picture cannot be"
            r" decoded"
        ),
    ):
        imported(folder, tmp_path / "set", task="toy-image")


@pytest.mark.parametrize(
    ("size", "words"),
    [(2**64 - 16, "HDF5 does not come to an end"), (1 << 40, "ran off end of input buffer")],
    ids=["no end", "too long"],
)
def test_decayed_pictures_and_texts_are_one_sentence(tmp_path, monkeypatch, size, words):
    """They lie in a heap whose entries tell where the next is: HDF5 may run for ever in it."""
    monkeypatch.setattr(varying, "CPU_S", 0.5)
    own = dataset(tmp_path / "own", "toy-mixed")
    folder = minari_folder(tmp_path / "minari", "toy-mixed", episodes_of(own), "hdf5", jpeg=True)
    path = folder / "data" / "main_data.hdf5"
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, data.index(b"GCOL") + 24, size)  # of the heap's first entry
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"episode 0, field 'observations/\w+': it .*{words}"):
        imported(folder, tmp_path / "set", task="toy-mixed")
    reading = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # of a process that has just ended
            reading.append(command.read_bytes())
    assert reading and not [line for line in reading if str(path).encode() in line]


def test_the_environment_tells_the_task(tmp_path):
    episodes = played("cartpole", 4).episodes
    made = imported(
        minari_folder(tmp_path / "minari", "cartpole", episodes, env="CartPole-v1"),
        tmp_path / "set",
    )
    assert made.task == "cartpole" and made.versions["environment"] == "CartPole-v1"
    old = imported(
        minari_folder(tmp_path / "minari0", "cartpole", episodes, env="CartPole-v0"),
        tmp_path / "set0",
    )
    assert old.task == "gymnasium:CartPole-v0", "its time limit is another: not the same task"


def test_arguments_of_the_environment_tell_the_task(tmp_path):
    for task in ("lunarlander", "lunarlander-continuous"):
        env = gymnasium.make("LunarLander-v3", continuous=task != "lunarlander")
        made = imported(
            minari_folder(tmp_path / task, task, played(task, 2).episodes, env=env),
            tmp_path / f"set-{task}",
        )
        assert made.task == task
        env.close()


@pytest.mark.parametrize(
    ("env_id", "arguments", "task", "named"),
    [
        ("LunarLander-v3", {"gravity": -3.0}, "lunarlander", "gravity=-3.0"),
        (
            "LunarLander-v3",
            {"gravity": -3.0, "enable_wind": True, "continuous": True},
            "lunarlander-continuous",
            "continuous=true&enable_wind=true&gravity=-3.0",
        ),
        ("CartPole-v1", {"max_episode_steps": 50}, "cartpole", "max_episode_steps=50"),
        ("CartPole-v1", {"sutton_barto_reward": True}, "cartpole", "sutton_barto_reward=true"),
    ],
)
def test_a_modified_environment_is_the_task_with_its_arguments(
    tmp_path, env_id, arguments, task, named
):
    """It is scored on that very environment; who asks for another has the difference on the
    card."""
    env = gymnasium.make(env_id, **arguments)
    folder = minari_folder(tmp_path / "minari", task, played(task, 2).episodes, env=env)
    env.close()
    made = imported(folder, tmp_path / "set")
    assert made.task == f"gymnasium:{env_id}?{named}"
    assert "environment_arguments" not in made.versions
    again = find_task(made.task).env(None)
    assert again.spec.kwargs | {"render_mode": None} == env.spec.kwargs | {"render_mode": None}
    assert again.spec.max_episode_steps == env.spec.max_episode_steps
    again.close()
    for to in ("minari", "parquet", "steps"):
        export_dataset(made, to, tmp_path / f"out-{to}")
        back = imported(tmp_path / f"out-{to}", tmp_path / f"back-{to}")
        assert (back.task, back.sha256) == (made.task, made.sha256)
    other = imported(folder, tmp_path / "other", task=task)
    words = other.versions["environment_arguments"]
    assert other.task == task and all(name in words for name in arguments if name != "continuous")
    assert imported(tmp_path / "other", tmp_path / "o2").versions["environment_arguments"] == words


@pytest.mark.parametrize(
    ("env_id", "task", "kwargs", "why"),
    [
        ("LunarLander-v3", "lunarlander", {"gravity": 7.0}, "must be between -12 and 0"),
        ("LunarLander-v3", "lunarlander", {"colour": 7}, "takes no argument 'colour'"),
        ("Hopper-v5", "hopper", {"xml_file": "own"}, "only numbers, truth values and plain words"),
        ("FrozenLake-v1", "cartpole", {"map_name": "../x"}, "only numbers, truth values"),
        ("FrozenLake-v1", "cartpole", {"map_name": "os.path"}, "only numbers, truth values"),
    ],
)
def test_what_cannot_be_had_so_is_told(tmp_path, env_id, task, kwargs, why):
    folder = minari_folder(tmp_path / "minari", task, played(task, 1).episodes)
    with edited(folder) as meta:
        meta["env_spec"] = json.dumps(
            {"id": env_id, "kwargs": kwargs, "entry_point": "os:getcwd", "additional_wrappers": []}
        )
    with pytest.raises(UserError) as told:
        imported(folder, tmp_path / "set")
    assert "for which there is no task" in str(told.value) and why in str(told.value)


def test_a_file_names_no_task_whose_arguments_lead_anywhere(tmp_path):
    made = dataset(tmp_path / "own", "cartpole", 2)
    for task in ("gymnasium:Hopper-v5?xml_file=/x.xml", "json:CartPole-v1?a=1", "json:CartPole-v1"):
        (tmp_path / "own" / "dataset.json").write_text(
            json.dumps(made.to_json() | {"task": task}), "utf-8"
        )
        with pytest.raises(UserError, match="no code is imported because a file names it"):
            imported(tmp_path / "own", tmp_path / "set")


@pytest.mark.parametrize(
    ("env_id", "arguments", "task"),
    [
        (
            "LunarLander-v3",
            {"gravity": -10, "enable_wind": False, "continuous": False, "turbulence_power": 1.5},
            "lunarlander",
        ),
        ("LunarLander-v3", {"continuous": True, "wind_power": 15.0}, "lunarlander-continuous"),
        ("Hopper-v5", {"healthy_z_range": (0.7, float("inf")), "frame_skip": 4}, "hopper"),
        ("CartPole-v1", {"max_episode_steps": 500, "sutton_barto_reward": False}, "cartpole"),
    ],
)
def test_arguments_that_are_the_defaults_are_no_difference(tmp_path, env_id, arguments, task):
    env = gymnasium.make(env_id, **arguments)
    made = imported(
        minari_folder(tmp_path / "minari", task, played(task, 2).episodes, env=env),
        tmp_path / "set",
    )
    env.close()
    assert made.task == task and "environment_arguments" not in made.versions


def test_wrappers_are_a_modification(tmp_path):
    env = gymnasium.wrappers.ClipReward(gymnasium.make("CartPole-v1"), -0.5, 0.5)
    folder = minari_folder(tmp_path / "minari", "cartpole", played("cartpole", 2).episodes, env=env)
    with pytest.raises(UserError, match=r"additional_wrappers=\['ClipReward'\]"):
        imported(folder, tmp_path / "set")


def test_arguments_of_an_environment_that_is_not_registered_here(tmp_path):
    """Whether they are its defaults cannot be known."""
    folder = minari_folder(tmp_path / "minari", "cartpole", played("cartpole", 2).episodes)
    for kwargs, words in (
        ({}, None),
        ({"reward_type": None}, None),
        ({"reward_type": "dense"}, "reward_type='dense'"),
    ):
        with edited(folder) as meta:
            meta["env_spec"] = json.dumps(
                {
                    "id": "Elsewhere-v0",
                    "kwargs": kwargs,
                    "max_episode_steps": 200,
                    "additional_wrappers": [],
                }
            )
        target = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        if words:
            with pytest.raises(UserError, match=words):
                imported(folder, target)
        made = imported(folder, target, task="gymnasium:Elsewhere-v0" if words else None)
        assert (
            made.task == "gymnasium:Elsewhere-v0"
            and made.versions.get("environment_arguments") == words
        )


def test_the_data_folder_itself_is_a_source(tmp_path):
    own = dataset(tmp_path / "own")
    folder = minari_folder(tmp_path / "minari", "toy-continuous", episodes_of(own))
    assert imported(folder / "data", tmp_path / "set", task="toy-continuous").sha256 == own.sha256


def test_an_episode_without_a_final_flag_is_truncated_and_one_with_both_terminated(tmp_path):
    own = dataset(tmp_path / "own")
    folder = minari_folder(tmp_path / "minari", "toy-continuous", episodes_of(own))
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/terminations"][-1] = file["episode_0/truncations"][-1] = False
        file["episode_1/terminations"][-1] = file["episode_1/truncations"][-1] = True
    found = episodes_of(imported(folder, tmp_path / "set", task="toy-continuous"))
    assert (found[0].terminated, found[1].terminated) == (False, True)


def test_requirements_are_versions(tmp_path):
    folder = minari_folder(
        tmp_path / "minari", "toy-continuous", played("toy-continuous", 3).episodes
    )
    with edited(folder) as meta:
        meta["requirements"] = ["mujoco==2.3.7", "gymnasium>=0.27", "ale-py == 1", 7]
    versions = imported(folder, tmp_path / "set", task="toy-continuous").versions
    assert versions["mujoco"] == "2.3.7" and "gymnasium" not in versions


# --- ids


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Minari's download, which writes into a cache of the test's own."""
    calls = []
    cache = tmp_path / "cache"

    def download_dataset(name, force_download=False):
        calls.append(name)
        minari_folder(
            cache, "toy-continuous", played("toy-continuous", 3).episodes, dataset_id=name
        )

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(cache))
    monkeypatch.setattr(minari, "download_dataset", download_dataset)
    return calls


def test_an_id_is_downloaded_once(tmp_path, remote):
    made = import_dataset(["minari:made/up/small-v0"], tmp_path / "a", "toy-continuous")
    assert made.source == "minari:made/up/small-v0" and made.episodes == 3
    again = import_dataset(["made/up/small-v0"], tmp_path / "b", "toy-continuous")
    assert again.sha256 == made.sha256 and again.source == made.source
    assert remote == ["made/up/small-v0"]


def test_a_task_may_be_the_id_of_a_dataset(tmp_path, remote, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--task TASK"):
        resolve("minari:made/up/small-v0")  # this one does not tell its environment
    (tmp_path / "datasets").mkdir(exist_ok=True)
    import_dataset(
        ["minari:made/up/small-v0"], tmp_path / "datasets" / "made-up-small-v0", "toy-continuous"
    )
    found = resolve("minari:made/up/small-v0")
    assert found is not None and found.task == "toy-continuous" and len(found.store().table) == 3
    with pytest.raises(UserError, match="not the id of a Minari dataset"):
        resolve("minari:..")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            ValueError("Couldn't find any version for dataset made/up"),
            UserError,
            "Couldn't find any version",
        ),
        (ConnectionError("no route\nto host"), RunFailed, "no route to host"),
        (ImportError("google-cloud-storage is not installed"), UserError, r"bigdm-ray\[datasets\]"),
    ],
)
def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch, error, kind, words):
    def fail(name):
        raise error

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(kind, match=words) as caught:
        import_dataset(["minari:made/up-v0"], tmp_path / "set")
    assert "\n" not in str(caught.value) and type(caught.value) is kind


@pytest.mark.parametrize(
    ("module", "source"), [("minari", "minari:made/up-v0"), ("h5py", "FOLDER")]
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, module, source):
    folder = minari_folder(
        tmp_path / "minari", "toy-continuous", played("toy-continuous", 3).episodes
    )
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package '{module}'.*bigdm-ray\[datasets\]"):
        import_dataset([source.replace("FOLDER", str(folder))], tmp_path / "set", "toy-continuous")


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("minari:mujoco/hopper/medium-v0", "mujoco/hopper/medium-v0"),
        ("D4RL/door/human-v2", "D4RL/door/human-v2"),
    ],
)
def test_ids_are_known_from_paths(text, id):
    assert minari_source.dataset_id(text) == id


def test_a_path_is_no_id(tmp_path):
    (tmp_path / "set-v0").mkdir()
    for text in (str(tmp_path / "set-v0"), "hopper-v0", "a/b.parquet", "datasets/hopper"):
        assert minari_source.dataset_id(text) is None


# --- export


@pytest.mark.parametrize("task", TASKS)
def test_minari_reads_what_is_exported(tmp_path, task):
    """Through minari.MinariDataset, in the environment's own layout: the same numbers."""
    own = dataset(tmp_path / "own", task)
    export_dataset(own, "minari", tmp_path / "out")
    theirs = minari.MinariDataset(tmp_path / "out" / "data")
    env = find_task(task).env(None)
    assert (
        theirs.observation_space == env.observation_space
        and theirs.action_space == env.action_space
    )
    assert (theirs.total_episodes, theirs.total_steps) == (own.episodes, own.steps)

    def at(values, space, k):
        if isinstance(space, spaces.Dict):
            return {name: at(values[name], child, k) for name, child in space.spaces.items()}
        return values[k]

    for mine, other in zip(episodes_of(own), theirs.iterate_episodes(), strict=True):
        assert repr(other)
        np.testing.assert_array_equal(other.rewards, mine.rewards)
        assert (other.terminations[-1], other.truncations[-1]) == (
            mine.terminated,
            not mine.terminated,
        )
        assert not other.terminations[:-1].any() and not other.truncations[:-1].any()
        for k in range(mine.length + 1):
            same_arrays(
                flatten(env.observation_space, at(other.observations, env.observation_space, k)),
                {p: v[k] for p, v in mine.observations.items()},
            )
        for k in range(mine.length):
            same_arrays(
                flatten(env.action_space, at(other.actions, env.action_space, k)),
                {p: v[k] for p, v in mine.actions.items()},
            )
            assert env.action_space.contains(at(other.actions, env.action_space, k))
    env.close()


def test_what_is_exported_recovers_its_environment(tmp_path):
    export_dataset(
        dataset(tmp_path / "own", "lunarlander-continuous", 2), "minari", tmp_path / "out"
    )
    env = minari.MinariDataset(tmp_path / "out" / "data").recover_environment()
    assert env.spec.id == "LunarLander-v3" and env.action_space.shape == (2,)
    env.close()


def test_a_task_that_cannot_be_made_here_goes_out_in_plain_spaces_and_comes_back(
    tmp_path, monkeypatch
):
    """The environment's layout is not known then: pictures stay channels first, text stays
    bytes."""
    own = dataset(tmp_path / "own", "toy-mixed")
    monkeypatch.setattr(layouts, "task_spaces", lambda name: None)
    export_dataset(own, "minari", tmp_path / "out")
    first = next(minari.MinariDataset(tmp_path / "out" / "data").iterate_episodes())
    np.testing.assert_array_equal(
        first.observations["eye"], episodes_of(own)[0].observations["eye"]
    )
