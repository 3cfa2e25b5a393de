"""Things that many tests need: made-up episodes, comparisons of episodes and windows, small
algorithms, played toys."""

import dataclasses
import time

import numpy as np

from bigdm_ray.envs import find_task
from bigdm_ray.replay import Episode, EpisodeId, Store
from bigdm_ray.training.rollout import EpisodeOrigin, RandomPolicy, rollout
from bigdm_ray.training.streams import rng


def episode(id, length=5, kind="vector", rewards=None, **more):
    """An episode whose every number tells which episode and step it is of, so that a mixed-up draw
    shows.

    `kind` is `vector` (plain leaves), `image` (a picture of two channels beside a vector), or
    `nested`.
    """
    id = EpisodeId(*(id if isinstance(id, tuple) else (id, 0, 0)))
    mark = 1000 * id.round + 100 * id.group + 10 * id.number
    seen = (mark + np.arange(length + 1, dtype=np.float32))[:, None] * np.array(
        [1, -1, 0.5], np.float32
    )
    chance = np.random.default_rng([id.round, max(id.group, 0), id.number, id.group < 0, length])
    observations, actions = {"": seen}, {"": chance.integers(0, 4, length).astype(np.int32)}
    if kind == "image":
        observations = {
            "eye": chance.integers(0, 256, (length + 1, 2, 3, 4)).astype(np.uint8),
            "joints": seen,
        }
    if kind == "nested":
        observations = {
            "arm/joints": seen,
            "arm/mode": np.arange(length + 1, dtype=np.int32),
            "map": chance.normal(size=(length + 1, 2, 2)).astype(np.float32),
        }
        actions = {
            "grip": chance.integers(0, 3, (length, 2)).astype(np.int32),
            "push": chance.normal(size=(length, 2)).astype(np.float32),
        }
    if rewards is None:
        rewards = chance.normal(size=length)
    fixed = {
        "observations": observations,
        "actions": actions,
        "rewards": np.asarray(rewards, np.float32),
    }
    fixed |= {
        "terminated": bool(mark % 20),
        "task": "made-up",
        "command": {"desired_return": float(mark), "desired_horizon": 3.5},
    }
    fixed |= {"version": (1, mark), "source": "udrl", "seed": mark + 7, "merit": mark % 7 - 2.5}
    return Episode(id=id, **(fixed | more))


def soon(true, seconds=600):
    """Whether it becomes true, in as many seconds as a machine may need that is busy with
    others."""
    until = time.monotonic() + seconds
    while not (answer := true()) and time.monotonic() < until:
        time.sleep(0.01)
    return answer


def same_arrays(a, b):
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def same_episode(a, b):
    """Everything equal, dtypes included."""
    for field in dataclasses.fields(Episode):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, np.ndarray):
            mine, other = {"": mine}, {"": other}
        if field.name in ("observations", "actions", "rewards"):
            same_arrays(mine, other)
        else:
            assert mine == other, field.name


def same_windows(a, b):
    for name in ("observations", "actions", "columns", "next_observations"):
        same_arrays(getattr(a, name), getattr(b, name))
    plain = ["rewards", "mask", "timesteps"]
    assert (a.terminated is None) == (b.terminated is None)
    plain += [] if a.terminated is None else ["terminated"]
    same_arrays({n: getattr(a, n) for n in plain}, {n: getattr(b, n) for n in plain})


def ids(table):
    return [tuple(row) for row in table.ids.tolist()]


def origin(task="toy-vector", **more):
    fixed = {
        "round": 0,
        "group": 0,
        "version": (0, 0),
        "source": "random",
        "seed": 0,
        "max_return": find_task(task).max_return,
    }
    return EpisodeOrigin(task=task, **(fixed | more))


def played(task, count, seed=1, environments=8, backend="fast", policy=None, commands=None):
    """Episodes of a random (or given) policy."""
    env = find_task(task).make(environments, seed, backend)
    try:
        return rollout(
            policy or RandomPolicy(env.signature),
            env,
            commands or {},
            count,
            rng(seed, "play"),
            origin(task, seed=seed),
        )
    finally:
        env.close()


def stored(folder, task, count, seed=1):
    """A store of episodes of a random policy."""
    store = Store(folder)
    store.add(played(task, count, seed).episodes)
    return store


SMALL = {
    "hidden": (32, 32),
    "channels": (4, 8, 8, 8),
    "batch_size": 64,
    "learning_rate": 3e-3,
    "return_scale": 0.1,
    "horizon_scale": 0.1,
}
SMALL |= {
    "envelope_hidden": (32,),
    "envelope_steps": 100,
    "critic_updates": 2,
    "actor_updates": 8,
    "decay_steps": 0,
}
SMALL |= {
    "width": 32,
    "layers": 2,
    "context": 6,
    "warm_up_steps": 0,
    "dropout": 0.0,
    "max_norm": 10.0,
    "timesteps": 40,
}
SMALL_OF = {
    "tt": {
        "bins": 12,
        "window": 3,
        "context": 2,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "cells": 2,
        "letters": 2,
        "horizon": 2,
        "beams": 3,
    },
    "gato": {"heads": 2, "bins": 16, "prompts": 0.0},
}
"""What an algorithm of this name has beside them, or in their place: it has many tokens to a
step."""


def small(kind, **more):
    """An algorithm with sizes that learn in seconds; settings that it does not have are left
    out."""
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: value
            for name, value in (SMALL | SMALL_OF.get(kind.name, {}) | more).items()
            if name in known
        }
    )


def dataset_of(folder, task="toy-vector", count=60, seed=1):
    """A dataset of random episodes."""
    from bigdm_ray.formats.writer import Writer

    writer = Writer(folder, {"made": seed}, task, find_task(task).signature())
    writer.add(played(task, count, seed).episodes)
    return writer.finish(folder.name, "made for a test", {"toys": "1"})


def same_rows(name, kind, actions):
    """A task's fast rows play what its reference plays: the same seed, the same actions
    (`actions(chance, m)`), subsets of rows in any order.

    Equal bytes, step for step, over several episodes and a new seed.
    """
    task = find_task(name)
    fast, reference = task.make(6, 9), task.make(6, 9, "reference")
    assert isinstance(fast, kind) and fast.signature == reference.signature
    chance = np.random.default_rng(2)
    ended, won, episodes = np.ones(6, bool), 0, 0
    for t in range(2000):
        if t == 1500:
            for env in (fast, reference):
                env.reseed(3)
            ended[:] = True
        rows = chance.permutation(6)[: chance.integers(1, 7)]
        if (again := rows[ended[rows]]).size:
            same_arrays(fast.reset(again).observations, reference.reset(again).observations)
            ended[again] = False
            episodes += len(again)
        taken = {"": actions(chance, len(rows))}
        ours, theirs = fast.step(rows, taken), reference.step(rows, taken)
        same_arrays(ours.observations, theirs.observations)
        for end in ("rewards", "terminated", "truncated"):
            one, other = getattr(ours, end), getattr(theirs, end)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        ended[rows] = ours.terminated | ours.truncated
        won += int(ours.rewards.sum())
    assert won > 3 and episodes > 50
    fast.close()
    reference.close()
