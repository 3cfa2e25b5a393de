"""Trajectory Transformer with rotary positions: another model, which learns, plans, is kept and is
told goals like the other."""

import numpy as np
import pytest
import torch
from making import dataset_of, small

import bigdm_ray
from bigdm_ray.algorithms.tt import Tt
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.training.config import configure


def test_heads_of_an_odd_width_have_no_pairs_to_turn():
    with pytest.raises(
        UserError, match=r"--algorithm\.positions rotary turns pairs, but the heads are 5 wide"
    ):
        small(Tt, positions="rotary", width=10, heads=2).build(
            {"toy-vector": find_task("toy-vector").signature()}
        )


@pytest.mark.slow
def test_a_rotary_run_learns_plans_and_is_loaded(tmp_path):
    dataset = dataset_of(tmp_path / "toys")
    flags = (
        "--algorithm.positions rotary --algorithm.width 16 --algorithm.layers 1 --algorithm.heads 2"
        " --algorithm.bins 12 --algorithm.window 4"
    )
    flags += (
        " --algorithm.context 2 --algorithm.horizon 3 --algorithm.beams 4 --algorithm.batch-size 32"
        " --algorithm.learning-rate 3e-3"
    )
    flags += (
        " --algorithm.warm-up-steps 0 --budget.learner-steps 120 --evaluations.final-episodes 4"
    )
    run = configure("tt", str(dataset.folder), flags.split())
    losses = []
    summary = bigdm_ray.train(
        run, tmp_path / "run", lambda report: losses.append(report.get("train/loss")), local=True
    )
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < 0.8 * losses[0] and summary["return_episodes"] == 4
    loaded = bigdm_ray.load(tmp_path / "run", "last")
    assert loaded.model.net.transformer.rotary and loaded.model.net.transformer.table is None


def test_a_goal_is_told_to_a_rotary_network_too():
    task = find_task("four-rooms")
    algorithm = small(
        Tt,
        positions="rotary",
        goal="later",
        objective="goal",
        expansions=1,
        horizon=3,
        window=4,
        bins=16,
    )
    torch.manual_seed(0)
    model = algorithm.build({"four-rooms": task.signature()}).eval()
    chance = np.random.default_rng(0)
    for mode in ("plan", "sample", "mean"):
        policy = algorithm.policy(model, mode)
        seen = {
            path: chance.uniform(-1, 1, (3, *leaf.shape)).astype(np.float32)
            for path, leaf in task.signature().observations.items()
        }
        uniforms = chance.random((3, policy.uniforms)).astype(np.float32)
        nothing = np.zeros(3, np.float32)
        together, _ = policy.act(policy.start(3), seen, nothing, {}, np.ones(3, bool), uniforms)
        for i in range(3):
            one = {path: values[i : i + 1] for path, values in seen.items()}
            alone, _ = policy.act(
                policy.start(1), one, nothing[:1], {}, np.ones(1, bool), uniforms[i : i + 1]
            )
            np.testing.assert_array_equal(alone[""], together[""][i : i + 1])
