"""Retrieve and play: what is nearest, that demonstrations are repeated, several tasks of one
signature, and the run door."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from making import dataset_of, played, same_arrays

import bigdm_ray
from bigdm_ray.baselines.retrieve import Memory, Retrieve
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.evaluate import main as evaluate
from bigdm_ray.replay import Episode, EpisodeId, Store
from bigdm_ray.run import main

LENGTH = 40
GRID = Signature(
    {
        "direction": Leaf("discrete", (), "int32", choices=(4,)),
        "grid": Leaf("discrete", (2, 2), "uint8", choices=(9,) * 4),
        "mission": Leaf("text", (LENGTH,), "uint8", per="episode"),
    },
    {"": Leaf("discrete", (), "int32", choices=(100,))},
)


def text(words):
    return np.frombuffer(words.encode().ljust(LENGTH, b"\0"), np.uint8)


def gridded(number, mission, grids, directions, actions):
    """An episode of a grid world with these states, of which the last is seen alone."""
    seen = {
        "direction": np.array([*directions, 0], np.int32),
        "grid": np.array([*grids, grids[0]], np.uint8).reshape(-1, 2, 2),
        "mission": np.broadcast_to(text(mission), (len(grids) + 1, LENGTH)),
    }
    return made_up(number, seen, np.array(actions, np.int32))


def made_up(number, seen, actions):
    return Episode(
        id=EpisodeId(0, 0, number),
        observations=seen,
        actions={"": actions},
        rewards=np.zeros(len(actions), np.float32),
        terminated=True,
        task="made-up",
    )


def filled(signature, episodes, folder, states=100):
    store = Store(folder)
    store.add(episodes)
    torch.manual_seed(0)
    memory = Memory(signature, states)
    memory.fill(store)
    return memory


def asked(memory, mission, grid, direction, chance=None):
    seen = {
        "direction": np.array([direction], np.int32),
        "grid": np.array([grid], np.uint8).reshape(1, 2, 2),
        "mission": text(mission)[None],
    }
    places = memory.nearest(seen, None if chance is None else np.array([chance]))
    return int(memory.get_buffer("action0")[places][0])


def test_the_mission_matches_first_then_the_nearest_grid_and_direction(tmp_path):
    red, blue = "go to the red ball", "go to the blue key"
    memory = filled(
        GRID,
        [
            gridded(0, red, [[1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]], [0, 0, 1], [10, 11, 12]),
            gridded(1, blue, [[5, 5, 5, 5], [2, 2, 2, 3]], [0, 0], [20, 21]),
        ],
        tmp_path,
    )
    assert asked(memory, red, [2, 2, 2, 2], 0) == 11 and asked(memory, red, [2, 2, 2, 2], 1) == 12
    assert asked(memory, blue, [2, 2, 2, 2], 0) == 21, "its own grid is one symbol apart"
    assert asked(memory, blue, [1, 1, 1, 1], 0) == 20, "of red's that is the very state"
    assert asked(memory, "go to the blue box", [2, 2, 2, 2], 0) == 21, "most words in common"
    assert asked(memory, "Go to a RED ball", [5, 5, 5, 5], 3) == 10, "the first of equals"
    drawn = [asked(memory, red, [9, 9, 9, 9], 3, chance) for chance in (0.0, 0.4, 0.99)]
    assert drawn == [10, 11, 12], "or one of them"


def test_elements_count_in_deviations_and_those_that_stand_still_do_not(tmp_path):
    signature = Signature(
        {"": Leaf("tensor", (3,), "float32")}, {"": Leaf("tensor", (1,), "float32")}
    )
    seen = np.array([[0, 0, 1e6], [1000, 0, 1e6], [0, 1, 1e6], [0, 0, 1e6]], np.float32)
    episode = made_up(0, {"": seen}, np.array([[0.0], [1.0], [2.0]], np.float32))
    memory = filled(signature, [episode], tmp_path)
    for state, action in (([400, 0.1, 0], 0), ([600, 0.1, 0], 1), ([300, 0.9, 9e8], 2)):
        place = memory.nearest({"": np.array([state], np.float32)})
        assert float(memory.get_buffer("action0")[place]) == action


@pytest.mark.parametrize("task", ["toy-vector", "toy-continuous", "toy-mixed", "toy-image"])
def test_in_a_kept_state_it_does_what_was_done(task, tmp_path):
    """Also by a memory that was saved, loaded and asked for many rows at once."""
    episodes, signature = played(task, 6).episodes, find_task(task).signature()
    memory = filled(signature, episodes, tmp_path / "store", 1000)
    algorithm = Retrieve(states=1000)
    model = algorithm.build({task: signature})
    model.of(task).load_state_dict(memory.state_dict())
    policy = algorithm.policy(model, "mean")
    done: dict[bytes, set[bytes]] = {}
    for episode in episodes:
        for t in range(episode.length):
            key, act = (
                b"".join(values[t].tobytes() for values in leaves.values())
                for leaves in (episode.observations, episode.actions)
            )
            done.setdefault(key, set()).add(act)
    for episode in episodes[:3]:
        n = episode.length
        seen = {p: np.ascontiguousarray(v[:n]) for p, v in episode.observations.items()}
        rewards, first, chance = np.zeros(n, np.float32), np.ones(n, bool), np.zeros((n, 1))
        actions, state = policy.act(policy.start(n), seen, rewards, {}, first, chance)
        assert state == {} and list(actions) == list(signature.actions)
        one, _ = policy.act(
            {}, {p: v[2:3] for p, v in seen.items()}, rewards[:1], {}, first[:1], {}
        )
        same_arrays(one, {path: values[2:3] for path, values in actions.items()})
        for path, values in episode.actions.items():
            assert actions[path].dtype == values.dtype
        for t in range(n):
            key, act = (
                b"".join(v[t].tobytes() for v in leaves.values()) for leaves in (seen, actions)
            )
            assert act in done[key]


def test_states_are_drawn_once_each_and_no_more_than_asked_for(tmp_path):
    episodes = played("toy-vector", 8).episodes
    signature = find_task("toy-vector").signature()
    memory = filled(signature, episodes, tmp_path / "a", 9)
    assert int(memory.count) == 9 and memory.vectors.shape == (9, 3)
    every = filled(signature, episodes, tmp_path / "b", 999)
    total = sum(episode.length for episode in episodes)
    assert int(every.count) == total
    raw = np.concatenate([episode.observations[""][:-1] for episode in episodes])
    kept = every.vectors[:total] / every.scale.where(every.scale > 0, 1.0) + every.mean
    np.testing.assert_allclose(kept.numpy(), raw, atol=1e-4)


def test_tasks_of_one_signature_have_a_memory_each(tmp_path, capsys):
    """By the doors: a run of no training, an evaluation by task, and its action in the task that is
    named."""
    for name, task in (("a", "toy-vector"), ("b", "toy-memory")):
        dataset_of(tmp_path / name, task, 12)
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--folder", str(tmp_path / "run")]
    words += ["--local", "--quiet", "--evaluations.final-episodes", "2"]
    assert door(main, ["retrieve", *words, "--algorithm.states", "50"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["learner_steps"] == 1 and list(summary["tasks"]) == ["toy-vector", "toy-memory"]
    assert door(evaluate, [str(tmp_path / "run"), "--episodes", "4"]) == 0
    again = ["--resume", "--folder", str(tmp_path / "run"), "--quiet", "--local"]
    assert door(main, again) == 0, "there is nothing left to do"
    loaded = bigdm_ray.load(tmp_path / "run")
    assert loaded.signatures["toy-vector"] == loaded.signatures["toy-memory"]
    parts = [loaded.of(task).policy()._memory for task in ("toy-vector", "toy-memory")]
    assert parts[0] is not parts[1] and not torch.equal(parts[0].vectors, parts[1].vectors)
    with pytest.raises(UserError, match="name the one to act in"):
        loaded.run.algorithm.policy(loaded.model, "mean")
    capsys.readouterr()
    assert door(evaluate, [str(tmp_path / "run"), "--mode", "plan"]) == 2
    assert "retrieve has no planner" in capsys.readouterr().err
    assert door(main, ["retrieve", "toy-vector", "--local", "--folder", str(tmp_path / "x")]) == 2
    assert "retrieve learns from a dataset" in capsys.readouterr().err
