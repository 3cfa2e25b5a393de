"""RolloutWorker: who played what with which weights is written down; environments are made anew at
each save, and then repeat."""

import numpy as np
import pytest
from making import same_episode

from bigdm_ray.envs import find_task
from bigdm_ray.training.config import configure
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.rollout_worker import RolloutWorker
from bigdm_ray.training.streams import derived_seed

RUN = configure(
    "udrl",
    "cartpole",
    [
        "--algorithm.hidden",
        "16,16",
        "--algorithm.episodes-per-iteration",
        "6",
        "--rollouts.groups",
        "2",
    ],
)


TASK = "cartpole"


def commands(count):
    return {
        "desired_return": np.arange(count, dtype=np.float32) + 20,
        "desired_horizon": np.full(count, 20, np.float32),
    }


@pytest.fixture
def worker():
    made = RolloutWorker(RUN)
    yield made
    made.close()


@pytest.fixture(scope="module")
def weights():
    return Learner(RUN.algorithm, {"cartpole": find_task("cartpole").signature()}, 5).weights(1)


def test_random_play_says_so_and_so_does_the_policy(worker, weights):
    chance = worker.play(TASK, None, 0, 1, (0, 0), {}, 3).episodes
    policy = worker.play(TASK, weights, 4, 1, (0, 0), commands(3), 3).episodes
    seed = derived_seed(RUN.seed, "environments", 0, 0, 1)
    assert [(e.source, e.version, e.seed, e.id.round, e.id.group, e.command) for e in chance] == [
        ("random", (0, 0), seed, 0, 1, {})
    ] * 3
    assert [(e.source, e.version, e.seed, e.id) for e in policy] == [
        ("udrl", (1, 0), seed, (4, 1, k)) for k in range(3)
    ]
    assert [e.command["desired_return"] for e in policy] == [20, 21, 22]


def test_environments_run_on_between_saves_and_begin_anew_after_one(worker, weights):
    def play(who, saves):
        return (
            who.play(TASK, weights, 4, 0, (saves, 0), commands(3), 3)
            .episodes[0]
            .observations[""][0]
        )

    first, second, saved, again = play(worker, 0), play(worker, 0), play(worker, 1), play(worker, 0)
    assert not np.array_equal(first, second), "the environment has gone on"
    assert not np.array_equal(first, saved), "another seed after a save"
    np.testing.assert_array_equal(first, again)
    other = RolloutWorker(RUN)
    play(other, 0)
    np.testing.assert_array_equal(second, play(other, 0))
    other.close()


def test_groups_play_apart(worker, weights):
    zero, one = (
        worker.play(TASK, weights, 4, group, (0, 0), commands(3), 3).episodes for group in range(2)
    )
    assert not np.array_equal(zero[0].observations[""][0], one[0].observations[""][0])
    other = RolloutWorker(RUN)  # the other way round: neither notices the other
    one_first = other.play(TASK, weights, 4, 1, (0, 0), commands(3), 3).episodes
    for a, b in zip(one, one_first, strict=True):
        same_episode(a, b)
    other.close()


def test_the_weights_that_are_given_are_the_weights_that_play(worker, weights):
    for version, bias in ((1, [50.0, -50.0]), (2, [-50.0, 50.0])):
        arrays = weights.arrays | {"head.linear.bias": np.array(bias, np.float32)}
        episodes = worker.play(
            TASK, type(weights)((1, version), arrays), 4, 0, (0, 0), commands(3), 3
        ).episodes
        assert {int(a) for e in episodes for a in e.actions[""]} == {version - 1}
        assert {e.version for e in episodes} == {(1, version)}
