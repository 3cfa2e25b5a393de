"""An EnvPool is let go of when its threads are at rest."""

import threading
import weakref

import numpy as np
import pytest
from making import soon

from bigdm_ray.envs import find_task, vector

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

    monkeypatch.setattr(vector, "resting", resting)
    pool.close()
    assert len(asked) == 4 and all(alive for _, alive in asked) and kept() is None
    assert len(asked[0][0]) >= 2, "one that steps, and one that makes buffers"
    pool.close()
    assert len(asked) == 4, "closed once is closed"


def test_a_pool_whose_threads_never_rest_is_let_go_of_all_the_same(pool, monkeypatch):
    monkeypatch.setattr(vector, "resting", lambda threads: False)
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
    monkeypatch.setattr(vector, "resting", lambda threads: left.append(gone() is not None) or True)
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
        assert len(mine) == 1 and soon(lambda: not vector.resting(mine))
    finally:
        stop.set()
        one.join()
    assert soon(lambda: vector.resting(mine)), "it has ended"
    wake = threading.Event()
    sleeper = threading.Thread(target=wake.wait)
    sleeper.start()
    mine = vector.threads() - before
    assert soon(lambda: vector.resting(mine)), "it waits"
    wake.set()
    sleeper.join()
