"""BCQ, BEAR, BRAC and MBOP alike: what is drawn, that steps are finite and repeat, that they act,
and the run door."""

import json

import numpy as np
import pytest
import torch
from making import played, same_arrays
from toy_data import KINDS, SIGNATURE, TASK, act, batch_of, made, small

from bigdm_ray.baselines.mbop import Mbop
from bigdm_ray.baselines.offline import Transitions, descend, soft_clip
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.writer import Writer
from bigdm_ray.run import main
from bigdm_ray.training.params import Weights

every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture
def seen():
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (5, 2))
    return np.append(points, np.full((5, 1), 0.5), 1).astype(np.float32)  # as the toy shows them


# --- learning


@every
def test_steps_are_finite_change_what_is_trained_and_repeat_with_the_seed(kind, tmp_path):
    learner, stores = made(kind, tmp_path / "a")
    before = learner.state()
    progress = learner.update(stores, 8)
    assert (
        progress.step == 8
        and all(np.isfinite(value) for value in progress.metrics.values())
        and "train/loss" in progress.metrics
    )
    after = learner.state()
    for name in before:
        if "spaces" not in name and "of_action" not in name:
            assert not np.array_equal(before[name], after[name]), f"{name} is not trained"
    again, stores = made(kind, tmp_path / "b")
    assert again.update(stores, 8).metrics == progress.metrics
    same_arrays(again.state(), after)


@every
def test_saved_and_loaded_it_goes_on_bit_for_bit_and_acts_the_same(kind, tmp_path, seen):
    learner, stores = made(kind, tmp_path / "a")
    learner.update(stores, 7)
    state = learner.state()
    other, stores_again = made(kind, tmp_path / "b", seed=1)
    other.load(state, 7)
    same_arrays(other.state(), state)
    Weights.of(learner.model, (0, 7)).save(tmp_path / "w.safetensors")
    fresh = small(kind).build({TASK: SIGNATURE})
    Weights.load(tmp_path / "w.safetensors").into(fresh)
    for mode in ("sample", "mean"):
        try:
            policy = learner.algorithm.policy(learner.model, mode)
        except UserError:
            continue
        np.testing.assert_array_equal(
            act(policy, seen)[0], act(small(kind).policy(fresh, mode), seen)[0]
        )
    learner.update(stores, 4)
    torch.rand(3)
    other.update(stores_again, 4)
    same_arrays(other.state(), learner.state())


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not Mbop], ids=lambda kind: kind.name
)
def test_target_networks_follow_and_no_optimizer_has_them(kind, tmp_path):
    learner, stores = made(kind, tmp_path, follow_rate=0.25)
    learner.update(stores, 7)
    critics = learner.model.critics
    old = [p.clone() for p in critics.target.parameters()]
    learner.update(stores, 1)
    for target, before, online in zip(
        critics.target.parameters(), old, critics.online.parameters(), strict=True
    ):
        torch.testing.assert_close(
            target, 0.75 * before + 0.25 * online.detach(), rtol=1e-4, atol=1e-6
        )
    held = {
        id(p)
        for optimizer in learner.optimizers.values()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert held == {id(p) for p in learner.model.parameters() if p.requires_grad}
    assert not held & {
        id(p) for name, p in learner.model.named_parameters() if "target" in name or "clone" in name
    }


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not Mbop], ids=lambda kind: kind.name
)
def test_there_is_no_value_after_a_termination_and_there_is_one_after_a_time_limit(kind, tmp_path):
    learner, stores = made(kind, tmp_path, batch_size=400, discount=0.5)
    learner.update(stores, 8)
    algorithm, model = learner.algorithm, learner.model
    t = Transitions.of(model.spaces, batch_of(algorithm, stores))
    ended = t.goes_on == 0
    episodes = [stores[TASK].episode(i) for i in range(len(stores[TASK].table))]
    last = torch.tensor(np.array([[*e.observations[""][-1], e.terminated] for e in episodes]))
    at_an_end = {tuple(row[:3].tolist()): bool(row[3]) for row in last.float()}
    marks = [at_an_end.get(tuple(row.tolist())) for row in t.seen_next]
    assert (
        [mark is True for mark in marks] == ended.tolist()
        and marks.count(True) > 3
        and marks.count(False) > 3
    )
    with torch.no_grad():
        for weight in model.critics.target.biases:
            weight.add_(1.0)  # values far from zero
        targets = algorithm.targets(model, t)
    torch.testing.assert_close(targets[ended], t.reward[ended])
    assert ((targets - t.reward).abs()[~ended] > 1e-3).all()


def test_a_transition_is_a_step_with_what_followed_and_actions_between_minus_one_and_one(tmp_path):
    kind = KINDS[0]
    learner, stores = made(kind, tmp_path, batch_size=50)
    batch = batch_of(learner.algorithm, stores)
    t = Transitions.of(learner.model.spaces, batch)
    episodes = [stores[TASK].episode(i) for i in range(len(stores[TASK].table))]
    steps = {}
    for e in episodes:
        for i in range(e.length):
            steps[tuple(e.observations[""][i].tolist())] = (
                e.actions[""][i],
                e.rewards[i],
                e.observations[""][i + 1],
            )
    for row in range(50):
        action, reward, after = steps[tuple(t.seen[row].tolist())]
        np.testing.assert_allclose(t.action[row], action, atol=1e-6)
        assert t.reward[row] == reward
        np.testing.assert_array_equal(t.seen_next[row], after)


def test_soft_clipping_and_descending():
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert soft_clip(values, 0.75).tolist() == [1.5, 2.75]
    one, other = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(3.0))
    descend(one * other, torch.optim.SGD([one], lr=0.1))
    assert one.item() == pytest.approx(1.7) and other.item() == 3.0 and other.grad is None


# --- acting


@every
def test_it_acts_within_bounds_for_many_rows_as_for_each_alone(kind, tmp_path, seen):
    learner, stores = made(kind, tmp_path)
    learner.update(stores, 8)
    found = 0
    for mode in ("sample", "mean", "plan"):
        try:
            policy = learner.algorithm.policy(learner.model, mode)
        except UserError as told:
            assert kind.name in str(told) and mode != "sample"
            continue
        found += 1
        actions, state = act(policy, seen)
        later, _ = act(policy, seen, 1, state, first=False)
        assert (
            actions.shape == (5, 2)
            and str(actions.dtype) == SIGNATURE.actions[""].dtype
            and (np.abs(actions) <= 1).all()
        )
        for row in range(5):
            alone, memory = act(policy, seen, rows=[row])
            np.testing.assert_allclose(alone[0], actions[row], rtol=1e-4, atol=1e-4)
            assert memory.keys() == state.keys() and all(
                len(values) == 1 for values in memory.values()
            )
            np.testing.assert_allclose(
                act(policy, seen, 1, state, first=False, rows=[row])[0][0],
                later[row],
                rtol=1e-4,
                atol=1e-4,
            )
        other, _ = act(policy, seen, 1, state, first=True)
        fresh, _ = act(policy, seen, 1)
        np.testing.assert_array_equal(
            other, fresh, err_msg="memory is dropped where an episode begins"
        )
        chance, _ = act(policy, seen, 2)
        assert np.array_equal(chance, actions) is (mode == "mean")
        torch.manual_seed(1)
        np.testing.assert_array_equal(
            act(policy, seen)[0], actions, err_msg="uniforms are all the chance there is"
        )
    assert found


@every
@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("toy-vector", "continuous actions with bounds, but the action is discrete"),
        ("toy-mixed", "reads vectors, but the observation 'eye' is of kind image"),
    ],
)
def test_what_it_cannot_read_or_act_with_is_told_in_a_sentence(kind, task, told):
    with pytest.raises(UserError, match=f"{kind.name} .*{told}"):
        kind().build({task: find_task(task).signature()})
    with pytest.raises(UserError, match=f"{kind.name} trains on one task, but 2 were given"):
        kind().build({"a": SIGNATURE, "b": SIGNATURE})


# --- the door


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    writer = Writer(tmp_path_factory.mktemp("data") / "toys", {}, TASK, SIGNATURE)
    writer.add(played(TASK, 40).episodes)
    return writer.finish("toys", "made here", {}).folder


@every
def test_a_run_on_a_dataset_through_the_door(kind, dataset, tmp_path, capsys):
    settings = small(kind)
    typed = {
        name: ",".join(map(str, v)) if isinstance(v, tuple) else v
        for name, v in vars(settings).items()
    }
    flags = [f"--algorithm.{name.replace('_', '-')}={v}" for name, v in typed.items()]
    budget = (
        "--budget.learner-steps 50 --evaluations.every 25 --evaluations.episodes 3"
        " --evaluations.final-episodes 3 --saves.every 25"
    )
    arguments = [kind.name, str(dataset), "--local", "--quiet", *budget.split(), *flags]
    assert main([*arguments, "--folder", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (
        summary["learner_steps"] == 50
        and summary["algorithm"] == kind.name
        and np.isfinite(summary["return_mean"])
    )
    assert (
        main([*arguments, "--folder", str(tmp_path / "half"), "--budget.learner-steps", "25"]) == 0
    )
    assert main([*arguments, "--folder", str(tmp_path / "half"), "--resume"]) == 0
    whole, half = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("run", "half")
    )
    same_arrays(whole.arrays, half.arrays)


@every
def test_a_task_to_play_is_refused(kind):
    with pytest.raises(UserError, match=f"{kind.name} learns from a dataset"):
        main([kind.name, TASK, "--local"])
