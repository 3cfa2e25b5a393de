"""Names of tasks: short ones, gymnasium's, one's own; and what is said about those that cannot be
had."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import gymnasium
import pytest

from bigdm_ray.envs import Task, arguments, find_task, tasks
from bigdm_ray.envs.task import canonical_name, check_task
from bigdm_ray.errors import UserError, install
from bigdm_ray.plugins import Plugin, plugins


def test_short_names_are_found_sorted_and_called_what_they_are():
    assert list(tasks()) == sorted(tasks())
    assert {"lunarlander", "lunarlander-sparse", "takecover", "cartpole", "toy-vector"} <= set(
        tasks()
    )
    for name, task in tasks().items():
        assert task.name == name and task.about and find_task(name) is task


@pytest.mark.parametrize("wrong", ["lunarlandr", "lunar-lander", "LunarLander"])
def test_an_unknown_name_suggests_the_nearest(wrong):
    with pytest.raises(UserError, match=r"did you mean .*'lunarlander'"):
        find_task(wrong)


def test_a_task_is_found_as_suite_and_task_too():
    for name, task in tasks().items():
        assert (
            find_task(f"{task.suite}/{name}") is task and task.full_name == f"{task.suite}/{name}"
        )
    with pytest.raises(UserError, match="did you mean 'box2d/lunarlander'"):
        find_task("box2d/lunarlandr")
    with pytest.raises(UserError, match="unknown task 'toys/lunarlander'"):
        find_task("toys/lunarlander")


def test_a_short_name_of_two_suites_is_an_error_that_names_both(monkeypatch):
    there = plugins("bigdm_ray.envs")
    mine = SimpleNamespace(TASKS={"cartpole": Task("cartpole", find_task("acrobot").env)})
    tasks.cache_clear()
    try:
        monkeypatch.setattr(
            "bigdm_ray.envs.task.plugins", lambda group: there | {"here": Plugin("mine", mine)}
        )
        with pytest.raises(UserError, match="may be 'classic/cartpole' or 'mine/cartpole'"):
            find_task("cartpole")
        for name in ("classic/cartpole", "mine/cartpole"):
            assert find_task(name).name == find_task(name).full_name == name
        assert (
            canonical_name("cartpole") == "cartpole"
            and canonical_name("classic/acrobot") == "acrobot"
        )
        assert find_task("mine/cartpole").signature() == find_task("acrobot").signature()
    finally:
        tasks.cache_clear()


def test_a_name_near_nothing_lists_what_is_known():
    with pytest.raises(UserError, match=r"known: .*cartpole.*takecover"):
        find_task("qqqqqqqq")


def test_any_gymnasium_id_works():
    task = find_task("gymnasium:CartPole-v1")
    env = task.make(2, 3)
    assert env.signature.observations[""].shape == (4,)
    assert env.n == 2
    env.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gymnasium:CartPoll-v1", "CartPole"),
        ("gymnasium:CartPole-v99", "CartPole"),
        ("gymnasium:", "cannot make"),
        ("gymnasium:no id at all", "cannot make"),
        ("no_such_module_at_all:MyEnv-v0", "no_such_module_at_all"),
        ("json:MyEnv-v0", "cannot make"),
    ],
)
def test_an_environment_that_cannot_be_made_is_a_users_mistake(name, says):
    with pytest.raises(UserError) as told:
        find_task(name).make(1, 0)
    assert says in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [":x", "a:b:c", "no module:X-v0"])
def test_a_name_of_no_known_form_is_a_users_mistake(name):
    with pytest.raises(UserError, match=r"is not understood; .* 'my_module:MyEnv-v0' is expected"):
        find_task(name)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def (\n", "SyntaxError: invalid syntax (own_and_broken.py, line 1)"),
        ("import math\n1 / 0\n", "ZeroDivisionError: division by zero (own_and_broken.py, line 2)"),
        (
            (
                "import gymnasium\ndef env(render_mode=None):\n    raise"
                " RuntimeError('no\\nlicence')\ngymnasium.register('Lost-v0', env)\n"
            ),
            "RuntimeError: no licence (",
        ),
    ],
)
def test_what_ones_own_module_raises_is_told(source, says, tmp_path, monkeypatch):
    (tmp_path / "own_and_broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_and_broken", raising=False)
    with pytest.raises(UserError) as told:
        find_task("own_and_broken:Lost-v0").make(1, 0)
    assert f"cannot make the environment 'own_and_broken:Lost-v0': {says}" in str(
        told.value
    ) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("module", "env_id", "extra"),
    [("Box2D", "LunarLander-v3", "box2d"), ("mujoco", "Hopper-v5", "mujoco")],
)
def test_a_package_that_gymnasium_misses_is_in_one_of_our_extras(
    module, env_id, extra, monkeypatch
):
    error = gymnasium.error.DependencyNotInstalled(
        f"{module} is not installed, run `pip install gymnasium[x]`"
    )
    monkeypatch.setattr(gymnasium, "make", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError) as told:
        find_task(f"gymnasium:{env_id}").make(1, 0)
    assert str(told.value).endswith(
        f"it needs the package {module!r}; install it with: {install(extra)}"
    )


def test_of_many_known_names_none_is_suggested_where_none_is_near():
    with pytest.raises(UserError) as told:
        find_task("gymnasium:qqqqqqqqqqqqqqqq-v0").make(1, 0)
    assert "known" not in str(told.value) and "did you mean" not in str(told.value)


def test_ones_own_module_is_imported_and_made(tmp_path, monkeypatch):
    (tmp_path / "my_own_envs.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import"
        " CartPoleEnv\ngymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=7)\nclass"
        " Plain(CartPoleEnv):\n    def __init__(self):\n       "
        " super().__init__()\ngymnasium.register('Plain-v0', Plain, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_envs", raising=False)
    for name in ("Mine-v0", "Plain-v0"):  # the latter takes no arguments
        env = find_task(f"my_own_envs:{name}").make(1, 0)
        assert env.signature.observations[""].shape == (4,)
        env.close()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("LunarLander-v3?gravity=-3&enable_wind=true", {"gravity": -3.0, "enable_wind": True}),
        ("CartPole-v1?sutton_barto_reward=1", {"sutton_barto_reward": True}),
        ("FrozenLake-v1?map_name=8x8", {"map_name": "8x8"}),
        ('FrozenLake-v1?desc=["SF","FG"]', {"map_name": "4x4", "desc": ["SF", "FG"]}),
        ("Hopper-v5?healthy_z_range=[0.5,2]", {"healthy_z_range": (0.5, 2)}),
    ],
)
def test_arguments_are_typed_by_the_constructor(name, kwargs):
    task = find_task(f"gymnasium:{name}")
    assert task.name == f"gymnasium:{name}", "run.json and datasets name it so"
    env = task.env(None)
    assert env.spec.kwargs == kwargs
    env.close()


def test_a_whole_number_stays_whole_where_the_default_is():
    """A constructor without annotations may count with it."""

    class Plain(gymnasium.Env):
        def __init__(self, length=8, scale=1, render_mode=None):
            self.observation_space = gymnasium.spaces.Box(0, 1, (length,))
            self.action_space = gymnasium.spaces.Discrete(2)
            self.scale = scale

    gymnasium.register("Plain-v0", Plain)
    try:
        env = find_task("gymnasium:Plain-v0?length=12&scale=0.5").env(None).unwrapped
        assert env.observation_space.shape == (12,) and env.scale == 0.5
        told = "length is 'abc', but an integer, as its default 8, or another number is expected"
        with pytest.raises(UserError, match=told):
            find_task("gymnasium:Plain-v0?length=abc").env(None)
    finally:
        del gymnasium.registry["Plain-v0"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LunarLander-v3?gravty=-3", "LunarLander-v3 takes no argument 'gravty'; did you mean"),
        ("Hopper-v5?frame_skp=2", "takes no argument 'frame_skp'; did you mean 'frame_skip'?"),
        ("LunarLander-v3?gravity=abc", "gravity is 'abc', but a number is expected"),
        ("LunarLander-v3?enable_wind=2", "enable_wind is '2', but true or false is expected"),
        ("LunarLander-v3?gravity=3", "gravity (current value: 3.0) must be between -12 and 0"),
        ("CartPole-v1?max_episode_steps=0", "an integer from 1 up, or none, is expected"),
        ("CartPole-v1?render_mode=human", "leave it out"),
        ("CartPoll-v1?x=1", "CartPole"),
        ("CartPole-v1?", "KEY=VALUE"),
        ("CartPole-v1?a=1&a=2", "twice"),
    ],
)
def test_arguments_that_cannot_be_had_are_one_sentence(name, says):
    with pytest.raises(UserError) as told:
        find_task(f"gymnasium:{name}").make(1, 0)
    assert says in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gymnasium:Corridor-v0", "own registers is 'my_module:Corridor-v0'"),
        ("gymnasium:CartPoll-v1", "did you mean 'CartPole-v1'"),
        ("gymnasium:CartPole-v1?suton_barto_reward=1", "takes no argument 'suton_barto_reward'"),
        ("no_such_module:X-v0", "No module named 'no_such_module'"),
        ("cartpol", "did you mean 'cartpole'"),
    ],
)
def test_what_cannot_be_made_is_told_before_anything_is_made(name, says, monkeypatch):
    monkeypatch.setattr(gymnasium, "make", None)
    for known in ("cartpole", "gymnasium:CartPole-v1?sutton_barto_reward=1", "gymnasium:CartPole"):
        check_task(known)
    with pytest.raises(UserError) as told:
        check_task(name)
    assert says in str(told.value) and str(told.value).lower().count("did you mean") <= 1


def test_a_short_name_takes_no_arguments():
    with pytest.raises(UserError, match="'cartpole' takes no arguments; name its environment"):
        find_task("cartpole?sutton_barto_reward=true")


@pytest.mark.parametrize(
    "value",
    [8, "8", "8x8", "a&b=c d?%26#", "true", True, None, "none", '"q"', [1, {"a": "b"}], 0.5],
)
def test_a_name_with_arguments_can_be_taken_apart(value):
    base, given = arguments.split_name(arguments.join_name("gymnasium:Open-v0", {"x": value}))
    assert base == "gymnasium:Open-v0"
    assert arguments.convert_arguments(given, "Unregistered-v0") == {"x": value}


def test_arguments_reach_ones_own_environment_with_postponed_annotations(tmp_path, monkeypatch):
    (tmp_path / "my_typed_envs.py").write_text(
        "from __future__ import annotations\nimport gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Typed(CartPoleEnv):\n"
        "    def __init__(self, length: float | None = None, name: str = '', steps: int = 3):\n"
        "        super().__init__()\n        self.told = length, name, steps\n"
        "gymnasium.register('Typed-v0', Typed, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = find_task("my_typed_envs:Typed-v0?length=2&name=12&steps=4").env(None)
    assert env.unwrapped.told == (2.0, "12", 4) and isinstance(env.unwrapped.told[0], float)
    assert find_task("my_typed_envs:Typed-v0?length=none").env(None).unwrapped.told[0] is None
    with pytest.raises(UserError, match=r"steps is '1.5', but an integer is expected"):
        find_task("my_typed_envs:Typed-v0?steps=1.5").env(None)


def test_a_missing_package_names_the_extra_that_brings_it():
    task = dataclasses.replace(find_task("takecover"), needs=("no_such_module_at_all",))
    for call in (task.require, lambda: task.make(1, 0), task.signature):
        with pytest.raises(
            UserError, match="no_such_module_at_all.*" + re.escape(install("vizdoom"))
        ):
            call()


def test_the_normalised_score_is_0_at_random_and_100_at_the_expert():
    task = dataclasses.replace(find_task("cartpole"), reference_returns=(20.0, 500.0))
    assert (
        task.normalized_score(20.0) == 0
        and task.normalized_score(500.0) == 100
        and task.normalized_score(260.0) == 50
    )
    assert dataclasses.replace(task, reference_returns=None).normalized_score(20.0) is None
