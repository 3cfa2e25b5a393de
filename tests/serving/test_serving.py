"""A policy that is served acts as the one in one's own process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from helpers_serving import Fixed, loaded_of, run_folder, serving, write_weights
from making import played

from bigdm_ray import client as client_module
from bigdm_ray.algorithms.base import algorithms, find_algorithm
from bigdm_ray.baselines.base import ExternalAlgorithm
from bigdm_ray.client import PolicyError, connect
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Store
from bigdm_ray.serving.served import FolderVersions
from bigdm_ray.serving.sessions import Engine
from tests import protobuf


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    made = {}

    def of(task):
        if task not in made:
            made[task] = Store(tmp_path_factory.mktemp(task))
            made[task].add(played(task, 30).episodes)
        return {task: made[task]}

    return of


def loaded_toy(kind, stores):
    """A run of an algorithm on a toy that it plays."""
    for task in ("toy-vector", "toy-continuous"):
        fitted = None if issubclass(kind, ExternalAlgorithm) else stores(task)
        try:
            return loaded_of(kind, task, stores=fitted, folder=Path("here"))
        except UserError:
            continue
    raise AssertionError(f"{kind.name} plays no toy")


def act_alike(mine, other, task, episodes=2, **command):
    """Play with the one, and have the other say the same to what the one sees."""
    env = find_task(task).env(None)
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        reward, ended = None, False
        while not ended:
            action = mine(observation, reward)
            theirs = other(observation, reward)
            np.testing.assert_equal(action, theirs)
            assert env.action_space.contains(action), action
            observation, reward, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        mine.reset(**command)
        other.reset(**command)
    env.close()


@pytest.mark.parametrize("kind", algorithms().values(), ids=lambda kind: kind.name)
def test_every_policy_acts_by_a_server_as_in_process(kind, stores):
    loaded = loaded_toy(kind, stores)
    command = {"desired_return": 3.0} if "desired_return" in kind.commands else {}
    with serving(loaded) as client:
        assert client.tasks == [loaded.run.task] and client.commands == [*kind.commands]
        act_alike(client.start(seed=7), loaded.act(seed=7), loaded.run.task, **command)


def test_the_planner_plans_by_a_server(stores):
    loaded = loaded_toy(find_algorithm("tt"), stores)
    with serving(loaded) as client:
        mine, other = client.start(seed=3, mode="plan"), loaded.act(seed=3, mode="plan")
        act_alike(mine, other, loaded.run.task, episodes=1)


@pytest.mark.parametrize("task", ["toy-mixed", "toy-image", "toy-memory"])
def test_values_of_every_kind_go_both_ways(task):
    loaded = loaded_of(find_algorithm("udrl"), task, frame_stack=2)
    with serving(loaded) as client:
        act_alike(client.start(seed=1), loaded.act(seed=1), task)


def test_a_run_of_several_tasks_acts_in_each():
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector", "toy-mixed")
    with serving(loaded) as client:
        with pytest.raises(PolicyError, match="a task is expected, one of toy-vector, toy-mixed"):
            client.start()
        with pytest.raises(PolicyError, match="the run has no task 'toy-mixd'"):
            client.start("toy-mixd")
        for task in ("toy-vector", "toy-mixed"):
            mine = client.start(task, seed=1)
            assert mine.command == {"desired_return": 7.0, "desired_horizon": 9.0}
            act_alike(mine, loaded.act(seed=1, task=task), task, episodes=1)


def test_rows_act_together_and_begin_anew_by_themselves():
    loaded = loaded_of(find_algorithm("dt"), "toy-continuous")
    chance = np.random.default_rng(0)
    with serving(loaded) as client:
        many = client.start(n=5, desired_return=np.arange(5.0))
        assert many.command == {"desired_return": [0, 1, 2, 3, 4]}
        alone = [loaded.act() for _ in range(5)]
        for row, one in enumerate(alone):
            one.reset(desired_return=float(row))
        for step in range(12):
            seen = chance.normal(size=(5, 3)).astype(np.float32)
            rewards = chance.normal(size=5).astype(np.float32)
            got = many(seen, rewards)
            wanted = [one(seen[row], rewards[row]) for row, one in enumerate(alone)]
            np.testing.assert_allclose(got, wanted, atol=1e-5)
            if step == 6:
                many.reset(rows=[False, True, False, False, True], desired_return=[8.0, 9.0])
                alone[1].reset(desired_return=8.0)
                alone[4].reset(desired_return=9.0)
        assert many.command == {"desired_return": [0, 8, 2, 3, 9]}


def test_what_comes_while_the_policy_is_busy_goes_in_one_batch(monkeypatch):
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    versions = Fixed(loaded)
    policy, sizes = versions.served.policy("toy-vector", ""), []
    act, gate = policy.act, threading.Event()

    def slow(*arguments):
        sizes.append(len(arguments[2]))
        assert gate.wait(60)
        return act(*arguments)

    monkeypatch.setattr(policy, "act", slow)
    waiting = threading.Semaphore(0)
    entered = Engine.act
    monkeypatch.setattr(Engine, "act", lambda *a: (entered(*a), waiting.release())[0])
    seen = np.eye(3, dtype=np.float32)
    with serving(versions) as client, ThreadPoolExecutor(8) as pool:
        policies = [client.start(seed=k) for k in range(8)]
        answers = [pool.submit(one, seen[k % 3]) for k, one in enumerate(policies)]
        for _ in policies:
            assert waiting.acquire(timeout=60)
        gate.set()
        got = [answer.result(60) for answer in answers]
    assert sum(sizes) == 8 and len(sizes) <= 3 and sizes[0] < 8
    assert got == [loaded.act(seed=k)(seen[k % 3]) for k in range(8)]


def test_a_policy_that_fails_for_one_fails_for_nobody_else(monkeypatch, capsys):
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    versions = Fixed(loaded)
    policy = versions.served.policy("toy-vector", "")
    act = policy.act

    def fragile(state, observations, *rest):
        if (observations[""] > 5).any():
            raise RuntimeError("/secret/path is broken")
        return act(state, observations, *rest)

    monkeypatch.setattr(policy, "act", fragile)
    with serving(versions) as client:
        mine = client.start(n=2, seed=0)
        with pytest.raises(PolicyError) as told:
            mine(np.full((2, 3), 9, np.float32))
        assert told.value.code is grpc.StatusCode.INTERNAL
        assert str(told.value) == (
            "the server failed at this request; its log says why, under fault 1"
        )
        assert "fault 1:" in (said := capsys.readouterr().err) and "/secret/path" in said
        assert len(mine(np.zeros((2, 3), np.float32))) == 2


MISFITS = [
    (np.zeros(4), "has the shape (4,), but (3,) is expected"),
    (np.array([0, np.nan, 0]), "has an element nan, but finite numbers are expected"),
    (np.array([0, 1e300, 0]), "has an element that is too large for float32"),
    ({"eye": np.zeros(3)}, "'eye' is not known, but '' are expected"),
    (np.array(["a", "b", "c"]), "is of the type 'str32', but one of float16"),
]


@pytest.mark.parametrize("misfit, why", MISFITS, ids=[why[:24] for _, why in MISFITS])
def test_what_does_not_fit_is_refused_and_changes_nothing(misfit, why):
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    good = np.array([0, 1, 0], np.float32)
    with serving(loaded) as client:
        mine, other = client.start(seed=2), loaded.act(seed=2)
        assert mine(good) == other(good)
        with pytest.raises(PolicyError) as told:
            mine(misfit, 1.0)
        assert told.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert why in str(told.value) and "\n" not in str(told.value)
        with pytest.raises(PolicyError, match="its reward is nan"):
            mine(good, float("nan"))
        for _ in range(5):
            assert mine(good, 1.0) == other(good, 1.0)


def test_commands_modes_and_prompts_are_checked():
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector", folder=Path("/a/secret/place"))
    with serving(loaded) as client:
        for wanted, why in (
            ({"desired_retrun": 1.0}, "takes no desired retrun"),
            ({"desired_return": float("inf")}, "but a finite number is expected"),
            ({"mode": "plan"}, "udrl has no planner"),
            ({"mode": "mode"}, "the mode is 'mode'"),
            ({"goal": {"map": np.zeros(2)}}, "its observation 'map' is not known"),
        ):
            with pytest.raises(PolicyError, match=why) as told:
                client.start(**wanted)
            assert "secret" not in str(told.value)
        mine = client.start(record=True)
        mine(np.zeros(3))
        shown = mine.episode(np.zeros(3), 1.0, True)
        with pytest.raises(PolicyError, match="takes no prompt"):
            client.start(prompt=shown)


def test_a_prompt_and_a_goal_reach_the_policy(monkeypatch):
    loaded = loaded_of(find_algorithm("udrl"), "toy-mixed")
    versions = Fixed(loaded)
    policy, shown, seen = versions.served.policy("toy-mixed", ""), [], []
    start, act = policy.start, policy.act
    monkeypatch.setattr(
        policy, "start", lambda n, prompts=None: (shown.append(prompts), start(n))[1]
    )

    def look(state, observations, *rest):
        seen.append(bytes(observations["mission"][0]).rstrip(b"\0"))
        return act(state, observations, *rest)

    monkeypatch.setattr(policy, "act", look)
    env = find_task("toy-mixed").env(None)
    observation, _ = env.reset(seed=0)
    with serving(versions) as client:
        mine = client.start(record=True)
        mine(observation)
        episode = mine.episode(observation, 0.5, False)
        without = {name: value for name, value in observation.items() if name != "mission"}
        told = client.start(goal={"mission": "go far"}, prompt=episode)
        told(without)
    assert seen == [observation["mission"].encode(), b"go far"]
    (prompt,) = next(one for one in shown if one is not None)
    assert prompt.length == 1 and prompt.rewards.tolist() == [0.5] and not prompt.terminated


def test_newer_weights_are_for_sessions_that_begin_or_ask(tmp_path):
    old = loaded_of(find_algorithm("udrl"), "toy-vector")
    folder = run_folder(tmp_path / "run", old, (0, 1))
    versions = FolderVersions(folder)
    new = loaded_of(find_algorithm("udrl"), "toy-vector")
    with torch.no_grad():
        for values in new.model.parameters():
            values.add_(torch.randn(values.shape))
    with serving(versions) as client:
        mine, twin = client.start(seed=4), client.start(seed=4)
        assert mine.version == (0, 1) and not versions.has_changed()
        assert client.reload() == (0, 1), "the same weights are the same version"
        write_weights(folder, new, (0, 2))
        assert versions.has_changed()
        assert client.reload() == (0, 2) and not versions.has_changed()
        fresh, other = client.start(seed=4), old.act(seed=4)
        assert fresh.version == (0, 2)
        act_alike(mine, other, "toy-vector")
        assert mine.version == (0, 1), "it has not asked"
        twin.reset(newest=True)
        assert twin.version == (0, 2)
        act_alike(fresh, twin, "toy-vector")
        (folder / "weights" / "last.safetensors").write_bytes(b"torn")
        with pytest.raises(PolicyError, match="could not be loaded") as told:
            client.reload()
        assert str(tmp_path) not in str(told.value)
        assert client.start().version == (0, 2)


def test_the_client_needs_neither_torch_ray_nor_gymnasium(tmp_path):
    """Its file alone is copied to where no package of ours is, and acts."""
    shutil.copy(client_module.__file__, tmp_path / "policy_client.py")
    loaded = loaded_of(find_algorithm("udrl"), "toy-vector")
    code = (
        "import sys, policy_client, numpy\n"
        "policy = policy_client.connect(sys.argv[1]).start(seed=1)\n"
        "print([policy(numpy.eye(3)[k], k and 1.0) for k in range(3)])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with serving(loaded) as client:
        done = subprocess.run(
            [sys.executable, "-c", code, client._address],
            cwd=tmp_path,
            env=bare,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    actions, modules = done.stdout.splitlines()
    mine = loaded.act(seed=1)
    assert actions == str([mine(np.eye(3)[k], k and 1.0) for k in range(3)])
    assert "numpy" in modules.split()
    assert not {"torch", "ray", "gymnasium", "bigdm_ray", "pyarrow"} & {*modules.split()}


def test_the_package_and_its_client_are_light():
    code = "import bigdm_ray.client, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "gymnasium", "pyarrow"} & {*done.stdout.split()}


def test_what_is_generated_is_what_protoc_makes():
    assert importlib.util.find_spec("grpc_tools") is not None
    made = protobuf.generated()
    assert len(made) == 3
    for path, text in made.items():
        assert path.read_text() == text, f"{path}: `make proto` writes it"


def test_a_client_says_that_nobody_is_there():
    with pytest.raises(PolicyError) as told:
        connect("127.0.0.1:1")
    assert told.value.code is grpc.StatusCode.UNAVAILABLE
