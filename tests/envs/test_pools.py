"""An EnvPool is let go of when its threads are at rest."""

import threading
import weakref

import numpy as np
import pytest
from making import soon

from bigdm_ray.envs import find_task, vector
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError

pytest.importorskip("envpool")


@pytest.fixture
def pool():
    env = find_task("lunarlander").make(2, 1)
    assert isinstance(env, vector.EnvPoolRows)
    yield env
    env.close()


def test_a_pool_is_kept_until_its_threads_rest(pool, monkeypatch):
    pool.reset(np.arange(2))
    kept, asked = weakref.ref(pool._env), []

    def resting(threads):
        asked.append((threads, kept() is not None))
        return len(asked) == 4

    monkeypatch.setattr(vector, "threads_rest", resting)
    pool.close()
    assert len(asked) == 4 and all(alive for _, alive in asked) and kept() is None
    assert len(asked[0][0]) >= 2, "one that steps, and one that makes buffers"
    pool.close()
    assert len(asked) == 4, "closed once is closed"


def test_a_pool_whose_threads_never_rest_is_let_go_of_all_the_same(pool, monkeypatch):
    monkeypatch.setattr(vector, "threads_rest", lambda threads: False)
    monkeypatch.setattr(vector, "REST_S", 0.01)
    pool.close()
    assert pool._env is None


def test_a_pool_that_fails_is_let_go_of_before_the_next_is_made(pool, monkeypatch):
    class Failing:
        def step(self, *_):
            raise RuntimeError("a row fell over")

    env = find_task("lunarlander").make(2, 1)
    real, env._env = env._env, Failing()
    gone, left = weakref.ref(env._env), []
    monkeypatch.setattr(
        vector, "threads_rest", lambda threads: left.append(gone() is not None) or True
    )
    step = env.step(np.arange(2), {"": np.zeros(2, np.int64)})
    assert set(step.failures) == {0, 1} and "a row fell over" in step.failures[0]
    assert left == [True] and gone() is None and env._env is not None
    monkeypatch.undo()
    env.close()
    env._env = real
    env.close()


def test_whether_threads_rest_is_what_linux_says_of_them():
    stop, before = threading.Event(), vector.threads()

    def work():
        while not stop.is_set():
            pass

    one = threading.Thread(target=work)
    one.start()
    mine = vector.threads() - before
    try:
        assert len(mine) == 1 and soon(lambda: not vector.threads_rest(mine))
    finally:
        stop.set()
        one.join()
    assert soon(lambda: vector.threads_rest(mine)), "it has ended"
    wake = threading.Event()
    sleeper = threading.Thread(target=wake.wait)
    sleeper.start()
    mine = vector.threads() - before
    assert soon(lambda: vector.threads_rest(mine)), "it waits"
    wake.set()
    sleeper.join()


def test_a_pool_gives_several_leaves_by_path():
    import gymnasium

    seen = gymnasium.spaces.Dict(
        {
            "direction": gymnasium.spaces.Discrete(4),
            "image": gymnasium.spaces.Box(0, 255, (7, 7, 3), np.uint8),
            "mission": gymnasium.spaces.Box(0, 255, (96,), np.uint8),
        }
    )
    signature = Signature.of(seen, gymnasium.spaces.Discrete(7))
    env = vector.EnvPoolRows("MiniGrid-Empty-5x5-v0", 3, 1, signature)
    first = env.reset(np.arange(3))
    signature.check(first.observations)
    assert first.observations["image"].shape == (3, 3, 7, 7)
    after = env.step(np.array([2, 0]), {"": np.array([0, 1])})
    signature.check(after.observations)
    turned = (after.observations["direction"] - first.observations["direction"][[2, 0]]) % 4
    assert turned.tolist() == [3, 1], "row 2 turned to the left, row 0 to the right"
    env.close()


@pytest.mark.parametrize(
    ("name", "observations", "actions", "says"),
    [
        (
            "MiniGrid-Empty-5x5-v0",
            {"": (4,)},
            {"": (1,)},
            "observes 'direction', 'image', 'mission', but",
        ),
        ("CartPole-v1", {"a": (4,), "b": (4,)}, {"": ()}, "observes '', but 'a', 'b' is expected"),
        (
            "CartPole-v1",
            {"": (4,)},
            {"a": (), "b": ()},
            "is given one action leaf, but .* 'a', 'b'",
        ),
    ],
)
def test_a_pool_of_other_leaves_is_refused(name, observations, actions, says):
    signature = Signature(
        *(
            {p: Leaf("tensor", s, "float32") for p, s in of.items()}
            for of in (observations, actions)
        )
    )
    with pytest.raises(UserError, match=says):
        vector.EnvPoolRows(name, 2, 0, signature)
