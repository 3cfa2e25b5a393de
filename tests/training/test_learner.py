"""Learner: saved and loaded it goes on bit for bit; every draw is named by its step; two ranks
equal one; divergence is told."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from making import same_arrays, small, stored

from bigdm_ray.algorithms.base import algorithms, find_algorithm
from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.models.parallel import compile_transformers, transformers
from bigdm_ray.replay import EpisodeId, Store
from bigdm_ray.training.learner import Learner, pick_device

TASK = "toy-mixed"


def learner_of(algorithm=None, seed=3, **more):
    return Learner(algorithm or small(Udrl), {TASK: find_task(TASK).signature()}, seed, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("store"), TASK, 40)


@pytest.mark.parametrize(
    "kind", list(algorithms(("algorithms",)).values()), ids=lambda kind: kind.name
)
def test_saved_and_loaded_it_goes_on_bit_for_bit(kind, store):
    whole = learner_of(small(kind))
    whole.update({TASK: store}, 7)
    state, step = whole.state(), whole.step
    copies = {name: values.copy() for name, values in state.items()}
    went_on = whole.update({TASK: store}, 6)
    same_arrays(state, copies)  # a state is a copy
    other = learner_of(small(kind), seed=3)
    other.load(state, step)
    same_arrays(other.state(), state)
    torch.rand(5)
    continued = other.update({TASK: store}, 6)
    assert continued.step == went_on.step == 13
    assert continued.metrics == went_on.metrics
    same_arrays(other.state(), whole.state())
    fresh = learner_of(small(kind))
    fresh.load({name: values for name, values in state.items() if name.startswith("model/")}, step)
    fresh.update({TASK: store}, 6)
    assert any(
        not np.array_equal(values, whole.state()[name]) for name, values in fresh.state().items()
    ), "the optimizers' memory matters"


@pytest.mark.parametrize("name", ["awr", "rwr", "bail", "tt"])
def test_what_is_noted_of_episodes_is_noted_anew_where_one_comes(name, tmp_path):
    """A new episode in the middle of a turn, too, changes what all are weighted by."""
    algorithm = small(find_algorithm(name), **({"n_updates_per_iter": 10} if name == "rwr" else {}))
    store, learner = stored(tmp_path, TASK, 12), learner_of(algorithm)
    learner.step = 3
    learner.update({TASK: store}, 4)
    assert store.has_annotations(algorithm.view(7))
    store.add([dataclasses.replace(store.episode(0), id=EpisodeId(1, 0, 0))])
    assert not store.has_annotations(algorithm.view(7))
    assert learner.update({TASK: store}, 1).step == 8
    (noted,) = algorithm.annotate(learner.model, {TASK: store}, 7).values()
    for column, values in noted.items():
        np.testing.assert_array_equal(store._annotations[column], values, err_msg=column)


def test_steps_in_one_call_or_in_many_are_the_same(store):
    one, many = learner_of(), learner_of()
    one.update({TASK: store}, 5)
    for steps in (2, 0, 1, 2):
        many.update({TASK: store}, steps)
    same_arrays(one.state(), many.state())


def test_a_seed_decides_weights_and_draws(store):
    a, b = learner_of(seed=3), learner_of(seed=4)
    assert any(not np.array_equal(values, b.state()[name]) for name, values in a.state().items())
    b.load(a.state(), 0)
    a.update({TASK: store}, 1)
    b.update({TASK: store}, 1)
    assert any(not np.array_equal(values, b.state()[name]) for name, values in a.state().items()), (
        "other draws"
    )


def test_no_steps_change_nothing(store):
    learner = learner_of()
    before = learner.state()
    progress = learner.update({TASK: store}, 0)
    assert (progress.step, progress.steps, progress.metrics) == (0, 0, {})
    same_arrays(before, learner.state())


def test_metrics_are_means_over_the_steps(store):
    one, many = learner_of(), learner_of()
    losses = [one.update({TASK: store}, 1).metrics["train/loss"] for _ in range(4)]
    assert many.update({TASK: store}, 4).metrics["train/loss"] == pytest.approx(
        np.mean(losses), rel=1e-6
    )


def test_the_gradient_is_the_sum_over_the_weight(store):
    """One step of plain descent, written out."""

    class Plain(Udrl):
        def optimizers(self, model):
            return {"sgd": torch.optim.SGD(model.parameters(), lr=0.1)}

    learner = learner_of(small(Plain))
    before = [p.detach().clone() for p in learner.model.parameters()]
    batch = learner._draw({TASK: store}, 0)
    loss = learner.algorithm.loss(learner.model, batch, 0)
    gradients = torch.autograd.grad(loss.sum / loss.weight, list(learner.model.parameters()))
    learner.update({TASK: store}, 1)
    for parameter, old, gradient in zip(learner.model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_lower(store):
    learner = learner_of()
    with torch.no_grad():
        next(learner.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        RunFailed,
        match=(
            r"train/loss is nan at learner step 2: training has diverged; lower"
            r" --algorithm\.learning-rate"
        ),
    ) as told:
        learner.update({TASK: store}, 2)
    assert told.value.exit_code == 1 and "\n" not in str(told.value)


def test_a_rate_far_too_high_diverges_into_that_sentence(tmp_path):
    """toy-continuous: a Gaussian's likelihood runs away."""
    task = "toy-continuous"

    class Reckless(Udrl):
        def optimizers(self, model):
            return {"sgd": torch.optim.SGD(model.parameters(), lr=1e6)}

    learner = Learner(small(Reckless), {task: find_task(task).signature()}, 1)
    with pytest.raises(RunFailed, match="learning-rate"):
        learner.update({task: stored(tmp_path, task, 10)}, 50)


def test_a_step_that_does_not_fit_into_memory_says_what_to_make_smaller(store):
    class Greedy(Udrl):
        def loss(self, model, batch, step):
            return torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(
        RunFailed,
        match=r"of 32 windows does not fit into the memory of cpu; .*--algorithm\.batch-size",
    ):
        learner_of(small(Greedy, batch_size=32)).update({TASK: store}, 1)


def test_weights_of_another_network_are_refused(store):
    state = learner_of().state()
    wide = learner_of(small(Udrl, hidden=(48, 32)))
    with pytest.raises(UserError, match="do not fit the network"):
        wide.load(state, 3)
    with pytest.raises(UserError, match="stands on one side only"):
        learner_of().load(
            {name: values for name, values in state.items() if "command" not in name}, 3
        )
    assert wide.step == 0


def test_weights_carry_the_version(store):
    learner = learner_of()
    learner.update({TASK: store}, 2)
    weights = learner.weights(5)
    assert weights.version == (5, 2)
    arrays = {name: values.copy() for name, values in weights.arrays.items()}
    learner.update({TASK: store}, 1)
    same_arrays(arrays, weights.arrays)  # a copy, not a view of the network


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda")
    for name in ("gpu!", "meta"):
        with pytest.raises(UserError, match="auto, cpu, cuda or cuda:N is expected"):
            pick_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no usable GPU"):
            pick_device("cuda")


# --- compilation


def test_what_has_no_transformer_cannot_be_compiled():
    with pytest.raises(
        UserError,
        match=r"--machines\.compile is true, but udrl has no transformer to compile; leave it out",
    ):
        learner_of(compile=True)
    with pytest.raises(
        UserError,
        match=r"--machines\.compile is true, but on a CPU dropout.*--algorithm\.dropout 0",
    ):
        learner_of(small(find_algorithm("dt"), dropout=0.1), compile=True, device="cpu")


def test_a_backend_that_cannot_compile_is_told_in_one_sentence(store):
    def broken(graph, inputs):
        raise OSError("no compiler\nis here")

    learner = learner_of(small(find_algorithm("dt")))
    assert compile_transformers(learner.model, broken) == 1
    with pytest.raises(RunFailed, match=r"leave --machines\.compile out") as told:
        learner.update({TASK: store}, 1)
    assert "\n" not in str(told.value)


def same_to_rounding(mine, theirs, atol):
    """But for one number in a hundred: where a gradient is nearly nothing, Adam makes a whole step
    of its rounding, and processors round differently."""
    near = [np.isclose(mine[name], theirs[name], rtol=2e-3, atol=atol) for name in mine]
    assert sum(part.sum() for part in near) >= 0.99 * sum(part.size for part in near)
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], atol=0.01, err_msg=name)


@pytest.mark.long
def test_a_compiled_learner_equals_a_plain_one_to_rounding_and_saves_what_it_saves(store):
    plain, other = (
        learner_of(small(find_algorithm("dt"))),
        learner_of(small(find_algorithm("dt")), compile=True),
    )
    assert plain.state().keys() == other.state().keys()
    for _ in range(3):
        mine, theirs = (learner.update({TASK: store}, 2).metrics for learner in (plain, other))
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
    assert plain.state().keys() == other.state().keys()
    same_to_rounding(plain.state(), other.state(), 1e-4)
    other.load(plain.state(), plain.step)  # a checkpoint of a plain one
    assert other.update({TASK: store}, 1).metrics["train/loss"] == pytest.approx(
        plain.update({TASK: store}, 1).metrics["train/loss"], rel=1e-5
    )


# --- mixed precision


def test_what_has_no_transformer_has_no_mixed_precision():
    with pytest.raises(
        UserError,
        match=(
            r"--machines\.precision is bf16, but udrl has no transformer that could gain by it;"
            r" leave it out"
        ),
    ):
        learner_of(precision="bf16")


@pytest.mark.parametrize("name", ["dt", "tt"])
@pytest.mark.slow
def test_a_learner_in_bfloat16_multiplies_in_it_and_keeps_everything_else_in_float32(name, store):
    algorithm = small(find_algorithm(name))
    plain, other = learner_of(algorithm), learner_of(algorithm, precision="bf16")
    same_arrays(plain.state(), other.state())
    kinds = set()
    [transformer] = transformers(other.model)
    transformer.blocks[0].up.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
    transformer.register_forward_hook(lambda module, given, out: kinds.add(("whole", out.dtype)))
    losses = []
    for _ in range(5):
        mine, theirs = (
            learner.update({TASK: store}, 2).metrics["train/loss"] for learner in (plain, other)
        )
        assert theirs == pytest.approx(mine, rel=0.02)
        losses.append((mine, theirs))
    assert any(mine != theirs for mine, theirs in losses)
    assert kinds == {torch.bfloat16, ("whole", torch.float32)}
    assert all(values.dtype == plain.state()[key].dtype for key, values in other.state().items())
    again = learner_of(algorithm, precision="bf16")
    again.load(other.state(), other.step)
    assert again.update({TASK: store}, 3).metrics == other.update({TASK: store}, 3).metrics
    same_arrays(again.state(), other.state())


# --- ranks


RANK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch.distributed as dist
from test_learner import train_and_save
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method={address!r}, rank=rank, world_size=2)
train_and_save({name!r}, Path({folder!r}), rank, 2)
"""


def uneven(name):
    """51 windows: 25 for one rank, 26 for the other.

    Gradients are cut where the algorithm cuts them.
    """
    return small(find_algorithm(name), batch_size=51, max_norm=0.5)


def train_and_save(name, folder, rank, world):
    learner = learner_of(uneven(name), rank=rank, world=world)
    store = Store(folder / "store", write=False).open()
    metrics = [learner.update({TASK: store}, 5).metrics for _ in range(4)]
    arrays = learner.state() | {
        f"metrics/{name}": np.array([m[name] for m in metrics]) for name in metrics[0]
    }
    np.savez(folder / f"{world}-{rank}.npz", **arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", ["dt", *(pytest.param(name, marks=pytest.mark.long) for name in ("udrl", "gato"))]
)
def test_two_ranks_equal_one_to_rounding(algorithm, tmp_path):
    """The same batch in all, split unevenly; two processes over gloo.

    The two end with the same bits.
    """
    stored(tmp_path / "store", TASK, 40)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    code = RANK.format(
        name=algorithm, tests=str(Path(__file__).parent), folder=str(tmp_path), address=address
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    train_and_save(algorithm, tmp_path, 0, 1)
    for process in ranks:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
    one, first, second = (
        dict(np.load(tmp_path / name)) for name in ("1-0.npz", "2-0.npz", "2-1.npz")
    )
    same_arrays(first, second)
    assert one.keys() == first.keys() and "metrics/train/loss" in one
    same_to_rounding(first, one, 2e-5)
    np.testing.assert_allclose(first["metrics/train/loss"], one["metrics/train/loss"], rtol=1e-5)
    start = learner_of(uneven(algorithm)).state()
    assert max(np.abs(one[name] - start[name]).max() for name in start) > 0.01, (
        "and they have moved"
    )


def test_the_ranks_draw_one_batch_between_them(store):
    """Without a process group: what each rank would fetch, put together, is what one rank draws."""
    whole = learner_of()._draw({TASK: store}, 0)
    parts = [learner_of(rank=rank, world=3)._draw({TASK: store}, 0) for rank in range(3)]
    for name, values in whole.items():
        np.testing.assert_array_equal(
            values, np.concatenate([part[name] for part in parts]), err_msg=name
        )


@pytest.mark.parametrize("damage", ["renamed", "of another shape", "of no parameter"])
def test_the_state_of_an_optimizer_that_does_not_fit_is_refused(store, damage):
    learner = learner_of()
    learner.update({TASK: store}, 1)
    state = learner.state()
    name = next(key for key in state if key.endswith("/exp_avg"))
    which = name.split("/")[1]
    if damage == "renamed":
        state[f"{name}_other"] = state.pop(name)
    elif damage == "of another shape":
        state[name] = state[name][..., :1]
    else:
        state[f"optimizer/{which}/999/exp_avg"] = state[name]
    with pytest.raises(UserError, match="does not fit the network"):
        learner.load(state, 1)
