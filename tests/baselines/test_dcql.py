"""Discrete CQL: its error and penalty against slow computations, and that it finds the way that
random play shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import played

from bigdm_ray.baselines.dcql import Dcql
from bigdm_ray.envs import find_task
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Episode, EpisodeId, Store
from bigdm_ray.training.learner import Learner


def test_a_step_is_on_the_penalised_double_q_error(tmp_path):
    store = Store(tmp_path)
    store.add(played("toy-vector", 5).episodes)
    algorithm = Dcql(hidden=(16,), penalty=0.5, batch_size=32)
    learner = Learner(algorithm, {"toy-vector": find_task("toy-vector").signature()}, 1)
    learner._prepare({"toy-vector": store})
    batch = learner._draw({"toy-vector": store}, 0)
    assert batch["terminated"].any()
    with torch.no_grad():
        model, errors, gaps = learner.model, [], []
        for p in model.target.parameters():
            p.add_(torch.randn_like(p) * 0.3)
        for row in range(32):
            q = model.online({"": batch["observations/"][row]})[0]
            after = {"": batch["next_observations/"][row]}
            value = model.target(after)[0, model.online(after)[0].argmax()]
            target = batch["rewards"][row, 0] + (0 if batch["terminated"][row, 0] else 0.99 * value)
            delta = float(q[int(batch["actions/"][row, 0])] - target)
            errors.append(0.5 * delta**2 if abs(delta) < 1 else abs(delta) - 0.5)
            gaps.append(float(q.exp().sum().log() - q[int(batch["actions/"][row, 0])]))
    metrics = algorithm.update(model, learner.optimizers, batch, 0)
    np.testing.assert_allclose(float(metrics["train/loss"]), np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(float(metrics["train/gap"]), np.mean(gaps), rtol=1e-4)


def corridor(count=200):
    """Random walks on five cells from the middle, at most 20 steps; the right end pays 1 and ends
    them, the left end pays nothing and ends them."""
    chance, episodes = np.random.default_rng(0), []
    for number in range(count):
        cells, moves = [2], []
        while 0 < cells[-1] < 4 and len(moves) < 20:
            moves.append(int(chance.integers(2)))
            cells.append(cells[-1] + 2 * moves[-1] - 1)
        rewards = np.zeros(len(moves), np.float32)
        rewards[-1] = cells[-1] == 4
        seen = np.eye(5, dtype=np.float32)[cells]
        episodes.append(
            Episode(
                {"": seen},
                {"": np.array(moves, np.int32)},
                rewards,
                cells[-1] in (0, 4),
                EpisodeId(0, 0, number),
                "made-up",
            )
        )
    return episodes


def test_it_finds_the_way_that_random_play_shows(tmp_path):
    store = Store(tmp_path)
    store.add(corridor())
    signature = Signature(
        {"": Leaf("tensor", (5,), "float32")}, {"": Leaf("discrete", (), "int32", choices=(2,))}
    )
    algorithm = Dcql(hidden=(32,), penalty=0.05, learning_rate=3e-3, follow_rate=0.05)
    learner = Learner(algorithm, {"made-up": signature}, 1)
    learner.update({"made-up": store}, 400)
    with torch.no_grad():
        values = learner.model.online({"": torch.eye(5)[1:4]})
    assert (values[:, 1] > values[:, 0]).all()
    np.testing.assert_allclose(values[2, 1], 1.0, atol=0.15)
    policy = algorithm.policy(learner.model.eval(), "sample")
    actions, _ = policy.act(
        {},
        {"": np.eye(5, dtype=np.float32)[1:4]},
        np.zeros(3, np.float32),
        {},
        np.zeros(3, bool),
        np.zeros((3, 1), np.float32),
    )
    assert actions[""].tolist() == [1, 1, 1] and actions[""].dtype == np.int32


def test_what_it_cannot_act_with_is_said():
    with pytest.raises(UserError, match="single discrete choice"):
        Dcql().build({"toy-continuous": find_task("toy-continuous").signature()})
