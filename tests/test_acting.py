"""`load(...).act()`: a policy in one's own gymnasium loop does what `evaluate` does."""

import dataclasses
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from making import played, same_arrays, small

import bigdm_ray
from bigdm_ray.algorithms.base import algorithms, find_algorithm
from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.baselines.base import ExternalAlgorithm
from bigdm_ray.doors import door
from bigdm_ray.envs import Signature, find_task
from bigdm_ray.envs.batches import rows_reader, values_of
from bigdm_ray.envs.values import SpaceMismatch, flatten
from bigdm_ray.errors import UserError
from bigdm_ray.evaluate import main
from bigdm_ray.replay import Store
from bigdm_ray.training import zoo
from bigdm_ray.training.config import Run
from bigdm_ray.training.evaluation import constant, evaluate, play
from bigdm_ray.training.loaded import Loaded, load
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder, save_weights, write_json
from bigdm_ray.training.streams import derived_seed

COMMAND = {"desired_return": 7.0, "desired_horizon": 9.0}
SEED = 5


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    made = {}

    def of(task):
        if task not in made:
            made[task] = Store(tmp_path_factory.mktemp(task))
            made[task].add(played(task, 30).episodes)
        return made[task]

    return of


def loaded_of(kind, task, store, **more):
    """A run whose network has its statistics and is not trained further."""
    torch.manual_seed(0)
    algorithm = small(kind, **more)
    signature = find_task(task).signature()
    model = algorithm.build({task: signature}).eval()
    if not issubclass(kind, ExternalAlgorithm):
        algorithm.fit(model, {task: store}, 0)
    command = {name: COMMAND[name] for name in kind.commands}
    run = Run(algorithm, task, seed=SEED)
    tasks, signatures = {task: find_task(task)}, {task: signature}
    return Loaded(store.folder, run, tasks, signatures, model, {"command": command}, (0, 0))


def own_loop(policy, task, env_seed):
    """One episode as a user plays it: its actions and its return."""
    env = task.env(None)
    observation, _ = env.reset(seed=env_seed)
    reward, ended, actions, total = None, False, [], 0.0
    while not ended:
        action = policy(observation, reward)
        assert env.action_space.contains(action), action
        observation, reward, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        actions.append(flatten(env.action_space, action))
        total += reward
    return {path: np.stack([one[path] for one in actions]) for path in actions[0]}, total


def task_of(kind, stores):
    for task in ("toy-vector", "toy-continuous"):
        try:
            loaded_of(kind, task, stores(task))
        except UserError:
            continue
        return task
    raise AssertionError(f"{kind.name} plays no toy")


@pytest.mark.parametrize("kind", algorithms().values(), ids=lambda kind: kind.name)
def test_every_policy_acts_in_ones_own_loop_as_evaluate_does(kind, stores):
    task = task_of(kind, stores)
    loaded = loaded_of(kind, task, stores(task))
    found = 0
    for mode in ("sample", "mean", "plan"):
        try:
            policy = loaded.policy(mode)
        except UserError as told:
            with pytest.raises(UserError) as again:
                loaded.act(mode=mode)
            assert str(again.value) == str(told)
            continue
        found += 1
        scored = play(policy, loaded.task, constant(loaded.command, 1), 1, SEED, "evaluate", 0)
        (episode,) = scored.episodes
        env_seed = derived_seed(SEED, "evaluate environments", 0)
        actions, total = own_loop(loaded.act(mode=mode), loaded.task, env_seed)
        same_arrays(actions, episode.actions)
        assert total == pytest.approx(episode.total_return)
    assert found


def test_a_second_episode_begins_without_the_memory_of_the_first(stores):
    loaded = loaded_of(find_algorithm("dt"), "toy-continuous", stores("toy-continuous"))
    policy = loaded.act(mode="mean")
    first, _ = own_loop(policy, loaded.task, 3)
    assert policy.command["desired_return"] < 7
    policy.reset()
    assert policy.command == {"desired_return": 7.0}
    again, _ = own_loop(policy, loaded.task, 3)
    same_arrays(first, again)
    policy.reset(desired_return=2)
    other, _ = own_loop(policy, loaded.task, 3)
    assert any((first[path] != other[path]).any() for path in first)


@pytest.mark.parametrize("name, task", [("udrl", "toy-mixed"), ("dt", "toy-continuous")])
def test_rows_of_a_vector_environment_act_as_evaluate_does(name, task, stores):
    """Dict and Tuple, pictures with the channels last, text, numbers from 5 on: gymnasium's own."""
    loaded = loaded_of(find_algorithm(name), task, stores(task))
    scored = play(
        loaded.policy("sample"), loaded.task, constant(loaded.command, 3), 3, SEED, "evaluate", 0
    )
    envs = gymnasium.vector.SyncVectorEnv([lambda: loaded.task.env(None)] * 3)
    observation, _ = envs.reset(seed=derived_seed(SEED, "evaluate environments", 0))
    policy, reward = loaded.act(n=3, mode="sample"), None
    for t in range(min(episode.length for episode in scored.episodes)):
        action = policy(observation, reward)
        assert envs.action_space.contains(action)
        for k, episode in enumerate(scored.episodes):
            row = next(
                one
                for i, one in enumerate(gymnasium.vector.utils.iterate(envs.action_space, action))
                if i == k
            )
            taken = flatten(envs.single_action_space, row)
            same_arrays(taken, {path: values[t] for path, values in episode.actions.items()})
        observation, reward, *_ = envs.step(action)
    envs.close()


def test_a_row_is_reset_while_the_others_go_on(stores):
    loaded = loaded_of(find_algorithm("dt"), "toy-continuous", stores("toy-continuous"))
    chance = np.random.default_rng(0)
    seen = chance.uniform(-1, 1, (6, 2, 3)).astype(np.float32)
    paid = chance.uniform(0, 1, (6, 2)).astype(np.float32)
    both, one = loaded.act(n=2, mode="mean"), loaded.act(mode="mean")
    two = loaded.act(mode="mean")
    for t in range(6):
        if t == 3:
            both.reset(rows=np.array([False, True]), desired_return=[1.0, 4.0])
            two.reset(desired_return=4.0)
            assert both.command["desired_return"][1] == 4.0
        begins = np.array([t == 0, t in (0, 3)])
        rewards = np.where(begins, np.nan, paid[t])  # what a first step is given is ignored
        together = both(seen[t], rewards)
        for k, (single, first) in enumerate(zip((one, two), begins, strict=True)):
            alone = single(seen[t][k], None if first else paid[t][k])
            np.testing.assert_allclose(together[k], alone, rtol=1e-5, atol=1e-6)


@pytest.fixture
def folder(tmp_path, stores):
    """A run folder of cartpole with weights `last` and `best`."""
    algorithm = Udrl(hidden=(16,))
    task = find_task("cartpole")
    for which, seed in (("last", 1), ("best", 2)):
        torch.manual_seed(seed)
        model = algorithm.build({"cartpole": task.signature()})
        (tmp_path / "weights").mkdir(exist_ok=True)
        weights = Weights.of(model, (0, seed))
        save_weights(RunFolder(tmp_path), which, weights, COMMAND, 1.0)
    write_json(tmp_path / "run.json", Run(algorithm, "cartpole").to_json())
    return tmp_path


def test_the_three_lines_of_the_readme(folder):
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=1)
    policy = bigdm_ray.load(folder, "best").act()
    observation, reward, *_ = env.step(policy(observation))
    action = policy(observation, reward)
    assert env.action_space.contains(action)
    assert policy.command == {"desired_return": 6.0, "desired_horizon": 8.0}
    policy.reset(desired_return=300)
    assert policy.command == {"desired_return": 300.0, "desired_horizon": 9.0}
    last = load(folder).act()
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            load(folder).model.parameters(), load(folder, "best").model.parameters(), strict=True
        )
    )
    assert last.command["desired_return"] == 7.0


def test_equal_seeds_act_alike_and_score_as_evaluate(folder):
    loaded = load(folder)
    runs = [own_loop(loaded.act(seed=seed), loaded.task, 8)[0] for seed in (4, 4, 9)]
    same_arrays(runs[0], runs[1])
    assert runs[0][""].tolist() != runs[2][""].tolist()
    score = evaluate(loaded.policy("sample"), loaded.task, loaded.command, 1, 4, "evaluate", 0)
    env_seed = derived_seed(4, "evaluate environments", 0)
    assert own_loop(loaded.act(seed=4), loaded.task, env_seed)[1] == score.returns[0]


def test_what_does_not_fit_is_told_in_one_sentence_and_changes_nothing(folder):
    policy, other = load(folder).act(mode="mean"), load(folder).act(mode="mean")
    seen = np.zeros(4, np.float32)
    for value, told in (
        (
            np.zeros(3),
            r"does not fit cartpole: its observation has the shape \(3,\), but \(4,\) is",
        ),
        ("up", "its observation has the shape"),
        (np.array([0, 0, np.nan, 0]), "its observation has an element nan, but finite numbers"),
    ):
        with pytest.raises(UserError, match=told):
            policy(value)
    policy(seen)
    other(seen)
    for reward, told in (
        (None, "must know the reward of the step before"),
        (np.inf, "its reward is inf"),
        ([1.0, 2.0], "its reward has the shape"),
    ):
        with pytest.raises(UserError, match=told):
            policy(seen, reward)
    for words, told in (
        ({"desired_retrun": 1}, "takes no 'desired_retrun'; did you mean 'desired_return'"),
        ({"goal": 1}, "takes no 'goal'; known: desired_horizon, desired_return"),
        ({"desired_return": "much"}, "desired_return is 'much', but a finite number is expected"),
        ({"desired_return": [1, 2]}, "a finite number is expected"),
        ({"rows": [True]}, "rows is .*, but none, as it acts for one environment, is expected"),
    ):
        with pytest.raises(UserError, match=told):
            policy.reset(**words)
    policy(seen, 1.0)
    other(seen, 1.0)
    assert policy.command == other.command
    for words, told in (
        ({"n": 0}, "n is 0, but a number of environments is expected"),
        ({"mode": "maen"}, "mode is 'maen', but how to act is expected; did you mean 'mean'"),
        ({"mode": "plan"}, "plan"),
        ({"seed": -1}, "seed is -1, but an integer"),
        ({"device": "gpu"}, "device"),
    ):
        with pytest.raises(UserError, match=told):
            load(folder).act(**words)


def test_rows_that_are_not_n_are_told(folder):
    policy = load(folder).act(n=2)
    for value, told in (
        (np.zeros((3, 4)), "its observation has 3 rows, but 2 are expected"),
        (np.float32(1), "2 rows of them are expected"),
        (np.zeros((2, 5)), "its observation has the shape"),
    ):
        with pytest.raises(UserError, match=told):
            policy(value)
    policy(np.zeros((2, 4)))
    with pytest.raises(UserError, match="but 2 numbers are expected"):
        policy(np.zeros((2, 4)), 1.0)
    for rows in ([True], [0, 1], True):
        with pytest.raises(UserError, match=r"a mask of shape \(2,\) and type bool is expected"):
            policy.reset(rows=rows)


def test_weights_without_a_command_act_once_they_are_told(folder):
    weights = Weights.load(folder / "weights" / "last.safetensors")
    Weights(weights.version, weights.arrays).save(folder / "weights" / "last.safetensors")
    policy = load(folder).act()
    seen = np.zeros(4, np.float32)
    with pytest.raises(UserError, match="give desired_return and desired_horizon to reset"):
        policy(seen)
    with pytest.raises(UserError, match=r"give desired_horizon$"):
        policy.reset(desired_return=3)
    policy.reset(desired_return=3, desired_horizon=4)
    policy(seen)


def test_a_policy_without_command_and_memory_needs_no_reward(stores):
    policy = loaded_of(find_algorithm("bc"), "toy-vector", stores("toy-vector")).act()
    for _ in range(3):
        assert policy(np.zeros(3, np.float32)) in (0, 1, 2)
    with pytest.raises(UserError, match="takes no 'desired_return'; it takes no command"):
        policy.reset(desired_return=1)


def test_spaces_of_ones_own_environment(folder):
    """Of a run whose environment cannot be made: the network says what fits."""
    loaded = load(folder)
    missing = dataclasses.replace(loaded.task, needs=("no_such_package",), extra="more")
    loaded = dataclasses.replace(loaded, tasks={loaded.run.task: missing})
    with pytest.raises(UserError, match=r"no_such_package.*or give those of your own environment"):
        loaded.act()
    box = spaces.Box(-9, 9, (4,), np.float64)
    policy = loaded.act(n=2, spaces=(box, spaces.Discrete(2, start=7)))
    assert set(policy(np.zeros((2, 4))).tolist()) <= {7, 8}
    for pair, told in (
        (
            (spaces.Box(-9, 9, (5,)), spaces.Discrete(2)),
            "they have tensor of 5, but tensor of 4 is expected",
        ),
        (
            (spaces.Dict({"a": box}), spaces.Discrete(2)),
            "they have nothing, but tensor of 4 is expected",
        ),
        ((box, spaces.Discrete(3)), r"of actions they have discrete of 1 with \(3,\) choices, but"),
    ):
        with pytest.raises(UserError, match=told):
            loaded.act(spaces=pair)
    wide = Signature(
        {"": dataclasses.replace(loaded.signature.observations[""], shape=(2, 2))},
        {"": dataclasses.replace(loaded.signature.actions[""], shape=(1,))},
    )
    model = loaded.run.algorithm.build({"cartpole": wide})
    policy = dataclasses.replace(loaded, signatures={"cartpole": wide}, model=model).act(
        spaces=(box, spaces.Discrete(2))
    )
    assert policy(np.zeros(4)) in (0, 1)


SPACE = spaces.Dict(
    {
        "arm": spaces.Tuple([spaces.Box(-1, 0.1, (2,), np.float64), spaces.Discrete(3, start=2)]),
        "eye": spaces.Box(0, 255, (32, 24, 3), np.uint8),
        "grip": spaces.MultiDiscrete([2, 3]),
        "on": spaces.MultiBinary(2),
        "word": spaces.Text(5),
    }
)


@pytest.mark.parametrize("n", [None, 1, 4])
def test_values_of_every_space_come_back(n):
    space = SPACE if n is None else gymnasium.vector.utils.batch_space(SPACE, n)
    space.seed(3)
    value = space.sample()
    arrays = rows_reader(SPACE, n)(value)
    assert {path: len(rows) for path, rows in arrays.items()} == dict.fromkeys(arrays, n or 1)
    assert arrays["eye"].shape[1:] == (3, 32, 24) and arrays["arm/1"].max() < 3
    back = values_of(SPACE, arrays, n)
    assert space.contains(back)
    same_arrays(rows_reader(SPACE, n)(back), arrays)
    arrays["arm/0"][:] = np.float32(0.1) + 1  # above what the space holds
    assert space.contains(values_of(SPACE, arrays, n))
    del value["eye"]
    with pytest.raises(SpaceMismatch, match="its observation 'eye' is missing"):
        rows_reader(SPACE, n)(value)


def test_a_policy_of_the_zoo_is_opened_by_its_name(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "HOME", tmp_path / "shipped")
    with pytest.raises(UserError, match="unknown policy 'zoo:pole'; this installation has none"):
        load("zoo:pole")
    (tmp_path / "shipped").mkdir()
    shipped = tmp_path / "shipped" / "udrl-cartpole"
    shutil.copytree(folder, shipped, ignore=shutil.ignore_patterns("shipped"))
    before = sorted(shipped.rglob("*"))
    for name in ("udrl-cartpol", "../shipped/udrl-cartpole", ""):
        with pytest.raises(UserError, match=f"unknown policy 'zoo:{name}'"):
            load(f"zoo:{name}")
    assert load("zoo:udrl-cartpole", "best").act().command["desired_return"] == 7.0
    assert door(main, ["zoo:udrl-cartpole", "--episodes", "2"]) == 0
    assert (tmp_path / "runs" / "zoo-udrl-cartpole" / "evaluation.json").is_file()
    assert sorted(shipped.rglob("*")) == before
    assert door(main, ["zoo:udrl"]) == 2
    assert capsys.readouterr().err.endswith("known: udrl-cartpole\n")
