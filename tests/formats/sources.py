"""Foreign files that the tests of formats need, made small and by the formats' own rules: `played`
episodes of a task as each has them."""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from making import played

from bigdm_ray.envs import find_task
from bigdm_ray.envs.values import unflatten
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.formats.writer import Writer


def dataset(
    folder, task="toy-continuous", count=6, seed=1, episodes=None, source="made up", versions=None
):
    """A dataset of a random policy's episodes."""
    writer = Writer(folder, {}, task, find_task(task).signature())
    writer.add(played(task, count, seed).episodes if episodes is None else episodes)
    return writer.finish(folder.name, source, versions or {})


def imported(source, folder, **more):
    """What an import of one source has made."""
    return import_dataset([str(source)], folder, **more)


def episodes_of(made):
    return list(made.stream())


def spaces_of(task):
    env = find_task(task).env(None)
    try:
        return env.observation_space, env.action_space
    finally:
        env.close()


def raw(space, arrays, k):
    """One value as the environment gives it."""
    return unflatten(space, {path: values[k] for path, values in arrays.items()})


def grouped(values):
    """Values of an environment as Minari's buffers have them: dicts of arrays, tuples of arrays,
    arrays, lists of strings."""
    first = values[0]
    if isinstance(first, dict):
        return {name: grouped([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(grouped([value[i] for value in values]) for i in range(len(first)))
    return list(values) if isinstance(first, str) else np.array(values)


def minari_folder(
    root, task, episodes, data_format="hdf5", jpeg=True, dataset_id="made/up-v0", env=None, **more
):
    """A local Minari dataset, written by Minari itself; its folder."""
    import minari
    from minari.data_collector import EpisodeBuffer

    seen, done = spaces_of(task)
    buffers = [
        EpisodeBuffer(
            seed=1000 + number,
            observations=grouped([raw(seen, e.observations, k) for k in range(e.length + 1)]),
            actions=grouped([raw(done, e.actions, k) for k in range(e.length)]),
            rewards=np.array(e.rewards, np.float64),
            terminations=np.arange(e.length) == (e.length - 1 if e.terminated else -1),
            truncations=np.arange(e.length) == (-1 if e.terminated else e.length - 1),
            infos={},
        )
        for number, e in enumerate(episodes)
    ]
    with mock.patch.dict(os.environ, {"MINARI_DATASETS_PATH": str(root)}):
        told = {
            "author": "nobody",
            "author_email": "nobody@example.org",
            "code_permalink": "https://example.org",
            "algorithm_name": "chance",
        }
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env,
            observation_space=seen,
            action_space=done,
            data_format=data_format,
            jpeg_encoding=jpeg,
            **told,
            **more,
        )
    return Path(root) / dataset_id


@contextmanager
def edited(folder):
    """The metadata of a Minari folder, to be changed."""
    path = folder / "data" / "metadata.json"
    found = json.loads(path.read_text())
    yield found
    path.write_text(json.dumps(found))


def d4rl_file(path, episodes, next_observations=True, timeouts=True, tail=0, **more):
    """An HDF5 file as D4RL lays it out; the last `tail` rows of the last episode are cut off, so
    that it has no end."""
    import h5py

    columns = {
        "observations": np.concatenate([e.observations[""][:-1] for e in episodes]),
        "actions": np.concatenate([e.actions[""] for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": np.concatenate(
            [np.arange(e.length) == (e.length - 1 if e.terminated else -1) for e in episodes]
        ),
        "timeouts": np.concatenate(
            [np.arange(e.length) == (-1 if e.terminated else e.length - 1) for e in episodes]
        ),
        "next_observations": np.concatenate([e.observations[""][1:] for e in episodes]),
    }
    if not next_observations:
        del columns["next_observations"]
    if not timeouts:
        del columns["timeouts"]
    rows = len(columns["rewards"]) - tail
    with h5py.File(path, "w") as file:
        for name, values in (
            {name: values[:rows] for name, values in columns.items()} | more
        ).items():
            file.create_dataset(name, data=values, compression="gzip")
    return path


def rows_of(episodes, **more):
    """The columns of episode Parquet in the plain layout: flat lists, no metadata."""
    ends = [(np.arange(e.length) == e.length - 1) for e in episodes]
    columns = {
        "observations": [e.observations[""].reshape(-1) for e in episodes],
        "actions": [e.actions[""].reshape(-1) for e in episodes],
        "rewards": [e.rewards for e in episodes],
        "terminated": [end & e.terminated for e, end in zip(episodes, ends, strict=True)],
        "truncated": [end & (not e.terminated) for e, end in zip(episodes, ends, strict=True)],
        "length": np.array([e.length for e in episodes], np.int32),
        "policy": ["chance"] * len(episodes),
        "mode": ["sto"] * len(episodes),
        "sigma": np.full(len(episodes), 0.5, np.float32),
        "eps": np.zeros(len(episodes), np.float32),
        "stage": np.full(len(episodes), 3, np.int16),
        "seed": np.arange(len(episodes)) + 500,
    }
    return {name: values for name, values in (columns | more).items() if values is not None}


def episode_parquet(path, columns, meta=None, row_group_size=4):
    """A Parquet file of these columns."""
    table = pa.table(
        {
            name: pa.array(alike(values) if isinstance(values, list) else values)
            for name, values in columns.items()
        }
    )
    pq.write_table(table.replace_schema_metadata(meta or {}), path, row_group_size=row_group_size)
    return path


def alike(values):
    """Lists of arrays in the widest of their dtypes, as one column must be."""
    if not isinstance(values[0], np.ndarray):
        return values
    dtype = np.result_type(*values)
    return [value.astype(dtype) for value in values]


def step_columns(episodes, **more):
    """The columns of step Parquet, as RLlib's offline writer names them."""
    columns = {
        "eps_id": [f"id-{number}" for number, e in enumerate(episodes) for _ in range(e.length)],
        "obs": [row for e in episodes for row in e.observations[""][:-1]],
        "actions": [row for e in episodes for row in e.actions[""]],
        "rewards": [float(r) for e in episodes for r in e.rewards],
        "new_obs": [row for e in episodes for row in e.observations[""][1:]],
        "terminateds": [
            k == e.length - 1 and e.terminated for e in episodes for k in range(e.length)
        ],
        "truncateds": [
            k == e.length - 1 and not e.terminated for e in episodes for k in range(e.length)
        ],
    }
    return {name: values for name, values in (columns | more).items() if values is not None}
