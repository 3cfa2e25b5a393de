"""What holds for every algorithm that another library trains, without starting one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bigdm_ray.algorithms.base import algorithms
from bigdm_ray.baselines.base import ExternalAlgorithm, load_optimizer, optimizer_state
from bigdm_ray.envs import find_task
from bigdm_ray.training.config import configure, run_from_json
from bigdm_ray.training.params import Weights

KINDS = [
    kind for kind in algorithms(("baselines",)).values() if issubclass(kind, ExternalAlgorithm)
]
every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
TASKS = {
    "a2c": "lunarlander",
    "dqn": "lunarlander",
    "ppo": "lunarlander-continuous",
    "marwil": "lunarlander",
}


def test_these_are_found():
    assert {kind.name for kind in KINDS} == {
        "a2c",
        "dqn",
        "sb3-ppo",
        "ppo",
        "sac",
        "cql",
        "iql",
        "marwil",
    }


def test_looking_at_them_costs_no_library():
    code = (
        "import bigdm_ray.algorithms.base as b, sys; b.algorithms(); print(sorted({m.split('.')[0]"
        " for m in sys.modules} & {'ray', 'stable_baselines3'}))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@every
def test_every_setting_has_help_and_its_presets_are_settings_of_tasks_that_there_are(kind):
    import dataclasses

    assert kind.__doc__ and kind.library and kind.online != kind.offline
    assert all(field.metadata.get("help") for field in dataclasses.fields(kind))
    for task, presets in kind.presets.items():
        for name, values in presets.items():
            if task == "*" or not kind.online:  # what learns from datasets has no run without one
                assert task == "*" or find_task(task)
                kind(
                    **{
                        path.partition(".")[2]: value
                        for path, value in values.items()
                        if path.startswith("algorithm.")
                    }
                )
                continue
            run = configure(kind.name, task, ["--preset", name])
            for path, value in values.items():
                owner, _, key = path.partition(".")
                assert getattr(getattr(run, owner), key) == value
            assert run_from_json(run.to_json()) == run


@every
def test_its_network_acts_alike_for_many_rows_and_for_each_alone(kind):
    task = find_task(TASKS.get(kind.name, "lunarlander-continuous"))
    torch.manual_seed(1)
    algorithm = kind()
    model = algorithm.build({task.name: task.signature()})
    seen, chance = (
        np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32),
        np.random.default_rng(1),
    )
    (path, leaf), *_ = task.signature().actions.items()
    for mode in ("sample", "mean"):
        policy = algorithm.policy(model, mode)
        uniforms = chance.random((9, policy.uniforms), np.float32)

        def act(rows, policy=policy, uniforms=uniforms):
            some = {"": seen[rows]}
            return policy.act(
                policy.start(len(rows)),
                some,
                np.zeros(len(rows), np.float32),
                {},
                np.ones(len(rows), bool),
                uniforms[rows],
            )[0][path]

        together = act(np.arange(9))
        assert together.shape == (9, *leaf.shape) and str(together.dtype) == leaf.dtype
        np.testing.assert_allclose(
            together, np.concatenate([act(np.array([row])) for row in range(9)]), atol=1e-5
        )
        if leaf.kind == "tensor":
            assert (np.abs(together) <= 1).all()


@every
def test_its_weights_are_stored_and_loaded(kind, tmp_path):
    task = find_task(TASKS.get(kind.name, "lunarlander-continuous"))
    one, other = (kind().build({task.name: task.signature()}) for _ in range(2))
    Weights.of(one, (0, 3)).save(tmp_path / "w.safetensors")
    Weights.load(tmp_path / "w.safetensors").into(other)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_an_optimizer_goes_on_from_its_arrays(kind):
    def made():
        weight = torch.nn.Parameter(torch.ones(3))
        return weight, kind([weight], lr=0.1)

    def stepped(weight, optimizer, times):
        for _ in range(times):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    one, theirs = made()
    stepped(one, theirs, 3)
    other, mine = made()
    other.data.copy_(one.data)
    load_optimizer(mine, optimizer_state(theirs))
    stepped(one, theirs, 4)
    stepped(other, mine, 4)
    assert torch.equal(one, other)
