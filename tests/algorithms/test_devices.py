"""Policies act where their model is: what they make of observations, commands and memory is brought
there, and actions are brought back.

There is no second device here. `Elsewhere` stands for one: it notes which tensors would be there,
and refuses what a GPU would refuse.
"""

import itertools

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from bigdm_ray.algorithms.base import find_algorithm
from bigdm_ray.envs import find_task
from bigdm_ray.training.evaluation import evaluate

COMMAND = {"desired_return": 8.0, "desired_horizon": 10.0}


def there(tensor):
    return getattr(tensor, "elsewhere", False)


def tensors_of(values):
    """The tensors in arguments or results, which may be nested."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        return tensors_of(list(values.values()))
    return (
        [tensor for value in values for tensor in tensors_of(value)]
        if isinstance(values, list | tuple)
        else []
    )


class Elsewhere(TorchFunctionMode):
    """Torch with a device of its own on which the tensors of a model stand.

    Moving copies, as between devices.
    """

    def __init__(self, model):
        super().__init__()
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            tensor.elsewhere = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__
        if func == torch.Tensor.is_cpu.__get__:
            return not there(args[0])
        if name == "cpu" or (name == "to" and isinstance(args[1], torch.device)):
            moved = args[0].clone()
            moved.elsewhere = name == "to"
            return moved
        given = [tensor for tensor in tensors_of([args, kwargs]) if tensor.ndim]
        assert name != "numpy" or not there(args[0]), "a tensor becomes an array where it is not"
        assert len({there(tensor) for tensor in given}) < 2, f"{name} takes tensors of two devices"
        found = func(*args, **kwargs)
        stays = any(map(there, tensors_of([args, kwargs]))) or isinstance(
            kwargs.get("device"), torch.device
        )
        for tensor in tensors_of(found):
            tensor.elsewhere = there(tensor) or stays
        return found


SMALL = {"width": 16, "layers": 1}
TT = SMALL | {"heads": 2, "window": 3, "context": 3, "bins": 8, "horizon": 3, "beams": 4}


@pytest.mark.parametrize(
    ("name", "settings", "task", "modes"),
    [
        ("udrl", {"hidden": (16, 16), "channels": (4, 4)}, "toy-mixed", ("sample", "mean")),
        ("dt", SMALL | {"context": 4}, "toy-continuous", ("sample",)),
        ("dt", SMALL | {"context": 4, "stochastic": True}, "toy-continuous", ("sample", "mean")),
        ("dt", SMALL | {"context": 4, "cached": True}, "toy-continuous", ("mean",)),
        (
            "dt",
            SMALL | {"context": 4, "positions": "window", "frame_stack": 2},
            "toy-image",
            ("sample",),
        ),
        ("bc", {"hidden": (16,), "channels": (4,)}, "toy-mixed", ("sample", "mean")),
        ("tt", TT, "toy-continuous", ("plan", "sample", "mean")),
        ("tt", TT | {"objective": "likelihood"}, "toy-vector", ("plan",)),
        pytest.param(
            "tt",
            TT | {"objective": "goal", "goal": "last", "k_obs": 0, "k_rew": 0, "expansions": 1},
            "four-rooms",
            ("plan",),
            marks=pytest.mark.slow,
        ),
        (
            "mbop",
            {"hidden": (16,), "members": 2, "samples": 4, "horizon": 3},
            "toy-continuous",
            ("plan", "mean"),
        ),
        ("bcq", {}, "toy-continuous", ("sample",)),
        ("bear", {}, "toy-continuous", ("sample", "mean")),
        ("brac", {}, "toy-continuous", ("sample", "mean")),
        ("dcql", {}, "toy-vector", ("sample",)),
        ("ppo", {}, "toy-continuous", ("sample",)),
        ("sac", {}, "toy-continuous", ("sample", "mean")),
        ("dqn", {}, "toy-vector", ("sample",)),
    ],
)
def test_a_policy_acts_where_its_model_is_as_it_does_here(name, settings, task, modes):
    torch.default_generator.manual_seed(3)
    algorithm, found = find_algorithm(name)(**settings), find_task(task)
    model = algorithm.build({task: found.signature()}).eval()
    for mode in modes:
        here = evaluate(algorithm.policy(model, mode), found, COMMAND, 3, 1, "test", 0)
        with Elsewhere(model):
            far = evaluate(algorithm.policy(model, mode), found, COMMAND, 3, 1, "test", 0)
        np.testing.assert_array_equal(far.returns, here.returns)
        np.testing.assert_array_equal(far.lengths, here.lengths)


def test_what_a_gpu_refuses_is_refused_elsewhere():
    model = torch.nn.Linear(3, 2)
    with torch.inference_mode(), Elsewhere(model):
        rows = torch.ones(4, 3)
        with pytest.raises(AssertionError, match="two devices"):
            model(rows)
        moved = model(rows.to(torch.device("cpu")))
        with pytest.raises(AssertionError, match="where it is not"):
            moved.numpy()
        assert moved.cpu().numpy().shape == (4, 2)
        with pytest.raises(AssertionError, match="two devices"):
            torch.arange(2) + moved
        assert there(torch.arange(2, device=moved.device) + moved)
