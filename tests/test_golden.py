"""Files that version 1 of the formats wrote are read for ever: they are stored here and never
written again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import bigdm_ray
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.replay import EpisodeId, Store, View
from bigdm_ray.replay.shard import Shard
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import read_run
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights

GOLDEN = Path(__file__).parent / "golden"


def test_a_shard_of_version_1_is_read() -> None:
    shard = Shard.open(GOLDEN / "shard-v1.arrow", verify=True)
    assert shard.task == "toy-vector" and shard.ids == [EpisodeId(7, 0, 0), EpisodeId(7, 0, 1)]
    second = shard.episode(1)
    assert (second.length, second.terminated, second.version, second.source, second.seed) == (
        3,
        False,
        (1, 20),
        "udrl",
        5,
    )
    assert second.command == {"desired_return": 3.0}
    np.testing.assert_array_equal(
        second.observations[""], np.arange(8, dtype=np.float32).reshape(4, 2)
    )
    np.testing.assert_array_equal(second.observations["eye"], np.full((4, 1, 2, 2), 3, np.uint8))
    np.testing.assert_array_equal(second.actions[""], np.arange(3))


def test_weights_of_version_1_are_read() -> None:
    weights = Weights.load(GOLDEN / "weights-v1.safetensors")
    assert weights.version == (1, 20)
    np.testing.assert_array_equal(
        weights.arrays["a.weight"], np.arange(6, dtype=np.float32).reshape(2, 3)
    )


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A run folder and a dataset, as they were before shards had serials and references."""
    with tarfile.open(GOLDEN / "folders-v1.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_dataset_of_version_1_is_drawn_from_as_it_was(folders: Path) -> None:
    dataset = Dataset.open(folders / "dataset-v1")
    assert dataset.content_hash() == dataset.sha256
    view = View(
        length=4,
        weight="length",
        pad="left",
        columns=("returns_to_go", "steps_remaining"),
        next_observation=True,
    )
    windows = dataset.store().draw(view, np.random.default_rng(0), 32)
    drawn = {f"o/{name}": values for name, values in windows.observations.items()}
    drawn |= {f"a/{name}": values for name, values in windows.actions.items()}
    drawn |= {f"n/{name}": values for name, values in windows.next_observations.items()}
    drawn |= windows.columns | {"r": windows.rewards, "m": windows.mask}
    digest = hashlib.sha256()
    for name in sorted(drawn):
        digest.update(name.encode() + np.ascontiguousarray(drawn[name]).tobytes())
    assert digest.hexdigest()[:16] == "0ac7811b6ce94e32"  # of the code that wrote it


def test_a_run_folder_of_version_1_goes_on(folders: Path) -> None:
    """Its checkpoint names shards alone, and its episodes have no serials: they stay before the
    new."""
    home = folders / "run-v1"
    run = read_run(home)
    saved = checkpoint.last_checkpoint(home / "checkpoints", run.identity)
    assert saved is not None and {ref.size for ref in saved.shards} == {None}
    before = Store(home / "store", run.retention, write=False).open().table
    assert {EpisodeId(*id) for id in before.ids.tolist()} == saved.living[""]
    assert (before.merit != 0).any() and (before.serials == -1).all()
    longer = dataclasses.replace(run, budget=dataclasses.replace(run.budget, env_steps=1400))
    summary = train_local(longer, home, resume=True)
    assert summary["env_steps"] >= 1400
    after = Store(home / "store", run.retention, write=False).open().table
    old = int((after.serials == -1).sum())
    assert 0 < old < len(after) and (np.diff(after.serials[old:]) > 0).all()
    assert after.ids.tolist() == sorted(after.ids.tolist())  # one process plays in order
    again = checkpoint.last_checkpoint(home / "checkpoints", run.identity)
    assert again is not None and None not in {ref.crc for ref in again.shards}


@pytest.fixture
def homes(tmp_path: Path) -> Path:
    """Runs and a dataset as version 1 left them: one that plays, one on the dataset."""
    return Path(shutil.copytree(GOLDEN / "run-v1", tmp_path / "run-v1"))


@pytest.mark.parametrize(
    ("name", "task"), [("played", "toy-vector"), ("studied", "toy-continuous")]
)
def test_a_run_folder_of_version_1_is_loaded_acts_and_is_said_as_it_was(
    name: str, task: str, homes: Path
) -> None:
    loaded = bigdm_ray.load(homes / name, "best")
    assert loaded.run.task == task and loaded.task.name == task
    action = loaded.act()(np.zeros(3, np.float32))
    assert np.shape(action) == {"played": (), "studied": (2,)}[name]
    written = json.loads((homes / name / "run.json").read_text())
    told = loaded.run.to_json()
    assert list(told) == [*written][: len(told)]
    # settings since then, which have their defaults
    came = {"machines": {"patience"}, "rollouts": {"own"}}
    for key, value in told.items():
        new = {name: value[name] for name in came.get(key, ())}
        assert value == (written[key] | new if new else written[key]), key
    saved = checkpoint.last_checkpoint(homes / name / "checkpoints", loaded.run.identity)
    assert saved is not None and len(saved.living.get("", ())) == {"played": 8, "studied": 0}[name]


def test_a_run_that_plays_of_version_1_goes_on(homes: Path) -> None:
    run = read_run(homes / "played")
    longer = dataclasses.replace(run, budget=dataclasses.replace(run.budget, env_steps=500))
    summary = train_local(longer, homes / "played", resume=True)
    assert summary["env_steps"] >= 500 and summary["learner_steps"] > 40
    assert summary["task"] == "toy-vector" and "tasks" not in summary
    state = sorted((homes / "played" / "checkpoints").glob("save-*"))[-1] / "state.json"
    assert "tasks" not in json.loads(state.read_text())["counters"]


def test_a_run_on_a_dataset_of_version_1_goes_on(homes: Path) -> None:
    flags = "--algorithm.hidden 8 --algorithm.batch-size 8 --budget.learner-steps 60 --seed 3"
    more = "--evaluations.episodes 2 --evaluations.final-episodes 3"
    run = bigdm_ray.configure("bc", str(homes / "data"), f"{flags} {more}".split())
    summary = bigdm_ray.train(run, homes / "studied", resume=True, local=True)
    assert summary["learner_steps"] == 60 and summary["dataset"]["name"] == "data"
