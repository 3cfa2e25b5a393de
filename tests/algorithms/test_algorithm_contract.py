"""What every algorithm that is found must hold.

A new file in bigdm_ray/algorithms is tested here by being there.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from making import SMALL, played, same_arrays, small

import bigdm_ray
from bigdm_ray.algorithms.base import Policy, algorithms, find_algorithm, put, take
from bigdm_ray.algorithms.learned import Learned, Supervised
from bigdm_ray.algorithms.online import Online
from bigdm_ray.baselines.base import Baseline, ExternalAlgorithm
from bigdm_ray.envs import find_task, tasks
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Retention, Store
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.params import Weights
from bigdm_ray.training.streams import rng

KINDS = list(algorithms(("algorithms",)).values())
TASKS = [name for name in tasks() if name.startswith("toy-")] + [
    "lunarlander",
    "lunarlander-continuous",
]
LEARNT = [
    "toy-vector",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("toy-continuous", "toy-image", "toy-mixed")
    ),
]
every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def modes(kind, model):
    """The modes that an algorithm has: the others are refused with a sentence."""
    found = []
    for mode in ("sample", "mean", "plan"):
        try:
            kind.policy(model, mode)
            found.append(mode)
        except UserError as told:
            assert kind.name in str(told)
    assert "sample" in found
    return found


def built(kind, task, seed=0, **more):
    torch.manual_seed(seed)
    algorithm = small(kind, **more)
    return algorithm, algorithm.build({task: find_task(task).signature()}).eval()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """For each of some toy tasks, a store of the best 40 of 400 random episodes: something can be
    learnt from those."""
    made = {}

    def of(task):
        if task not in made:
            made[task] = Store(tmp_path_factory.mktemp(task), Retention("best", 40))
            made[task].add(played(task, 400).episodes)
        return made[task]

    return of


def batch_of(algorithm, task, store, step=0):
    torch.manual_seed(0)
    model = algorithm.build({task: find_task(task).signature()})
    algorithm.fit(model, {task: store}, 0)
    for columns in algorithm.annotate(model, {task: store}, 0).values():
        store.annotate(columns)
    windows = store.draw(algorithm.view(), rng(3, "draw", step), algorithm.batch)
    return {
        name: torch.from_numpy(values)
        for name, values in algorithm.collate({task: windows}).items()
    }


class Play:
    """A made-up episode of n rows, to act in: observations, rewards, commands, beginnings and
    chance for some steps."""

    def __init__(self, task, policy, n, steps=6, seed=0):
        chance = np.random.default_rng(seed)
        episodes = played(task, n, seed + 1, 4).episodes
        assert len(episodes) == n
        self.n, self.steps = n, steps
        self.seen = [
            {
                p: np.stack([e.observations[p][t] for e in episodes])
                for p in episodes[0].observations
            }
            for t in range(steps)
        ]
        self.rewards = chance.normal(size=(steps, n)).astype(np.float32)
        self.commands = [
            {
                "desired_return": chance.uniform(0, 9, n).astype(np.float32),
                "desired_horizon": chance.integers(1, 9, n).astype(np.float32),
            }
            for _ in range(steps)
        ]
        self.first = np.zeros((steps, n), bool)
        self.first[0] = True
        self.first[3, ::2] = True
        self.uniforms = chance.random((steps, n, policy.uniforms), np.float32)

    def act(self, policy, rows, steps=None, state=None):
        """Act for some rows; their actions by step and the last memory."""
        rows = np.asarray(rows)
        state = policy.start(len(rows)) if state is None else state
        out = []
        for t in range(self.steps) if steps is None else steps:
            given = [
                {name: values[rows] for name, values in group[t].items()}
                for group in (self.seen, self.commands)
            ]
            actions, state = policy.act(
                state,
                given[0],
                self.rewards[t, rows],
                given[1],
                self.first[t, rows],
                self.uniforms[t, rows],
            )
            out.append(actions)
        return out, state


def close_actions(a, b):
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype and a[path].shape == b[path].shape
        np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-5, err_msg=path)


# --- what it is


@every
def test_it_is_a_frozen_settings_class_found_by_its_name(kind):
    assert find_algorithm(kind.name) is kind
    assert dataclasses.is_dataclass(kind) and kind.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().some_field = 1
    for field in dataclasses.fields(kind):
        assert field.metadata.get("help"), f"{field.name} has no help text"
    assert kind() == kind() and hash(kind()) == hash(kind())


def test_an_algorithm_has_the_verbs_of_what_it_is_and_stubs_none():
    """Who learns online owes steps, who descends has a loss; none inherits what it must refuse."""
    parts = {Online: ("owed", "ask", "retention"), Learned: ("collate", "fit", "annotate")}
    parts |= {
        Supervised: ("loss", "clip_norm"),
        Baseline: ("update",),
        ExternalAlgorithm: ("trainer",),
    }
    for kind in algorithms().values():
        for part, verbs in parts.items():
            for verb in verbs:
                assert hasattr(kind, verb) == issubclass(kind, part), (kind.name, verb)
        assert issubclass(kind, Supervised) + issubclass(kind, Baseline | ExternalAlgorithm) == 1
        assert kind.online or not issubclass(kind, Online)
    for folder in ("algorithms", "baselines"):
        for path in (Path(bigdm_ray.__file__).parent / folder).rglob("*.py"):
            if path.name != "sb3.py":  # whose rows must have what the library never calls
                assert "NotImplementedError" not in path.read_text(), path


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"did you mean .*'udrl'"):
        find_algorithm("udlr")


def test_the_small_sizes_of_these_tests_are_settings_of_some_algorithm():
    known = {field.name for kind in KINDS for field in dataclasses.fields(kind)}
    assert set(SMALL) <= known


@every
@pytest.mark.parametrize("task", TASKS)
def test_it_builds_for_every_task_and_acts_as_the_signature_says(kind, task):
    algorithm, model = built(kind, task)
    signature = find_task(task).signature()
    names = [name for name, _ in model.named_parameters()]
    assert names and all(torch.isfinite(p).all() for p in model.parameters())
    env = find_task(task).make(3, 1)
    seen = env.reset(np.arange(3)).observations
    env.close()
    commands = {
        "desired_return": np.full(3, 5, np.float32),
        "desired_horizon": np.full(3, 5, np.float32),
    }
    for mode in modes(algorithm, model):
        policy = algorithm.policy(model, mode)
        assert isinstance(policy, Policy)
        state = policy.start(3)
        assert all(len(values) == 3 for values in state.values())
        uniforms = np.random.default_rng(0).random((3, policy.uniforms), np.float32)
        actions, after = policy.act(
            state, seen, np.zeros(3, np.float32), commands, np.ones(3, bool), uniforms
        )
        assert list(actions) == list(signature.actions)
        for path, leaf in signature.actions.items():
            assert (
                actions[path].shape == (3, *leaf.shape) and str(actions[path].dtype) == leaf.dtype
            )
        assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
            k: (v.shape, v.dtype) for k, v in state.items()
        }


@every
def test_initial_weights_follow_from_torchs_seed_alone(kind):
    a, b, other = (
        Weights.of(built(kind, "toy-mixed", seed)[1], (0, 0)).arrays for seed in (5, 5, 6)
    )
    same_arrays(a, b)
    assert any(not np.array_equal(a[name], other[name]) for name in a)


@every
def test_its_presets_are_settings_that_it_has_for_tasks_that_there_are(kind):
    from bigdm_ray.training.config import Run, preset_of, run_from_json

    for task, presets in kind.presets.items():
        for name in presets:
            made, values = preset_of(
                kind, "toy-continuous" if task == "*" else find_task(task).name, name
            )
            data = Run(kind(), task).to_json()
            for path, value in values.items():
                owner, _, key = path.partition(".")
                data[owner] |= {key: list(value) if isinstance(value, tuple) else value}
            run = run_from_json(data)
            assert made == name
            for path, value in presets[name].items():
                owner, _, key = path.partition(".")
                assert getattr(getattr(run, owner), key) == value


# --- learning


@every
@pytest.mark.parametrize("task", LEARNT)
def test_the_loss_falls_on_a_toy(kind, task, stores):
    # as many steps, whatever a window holds
    algorithm = small(kind, batch_size=64 // small(kind).view().length)
    learner = Learner(algorithm, {task: find_task(task).signature()}, 1)
    probe = [batch_of(algorithm, task, stores(task), step) for step in range(1000, 1004)]

    def loss():
        learner.model.eval()
        with torch.no_grad():
            # of one phase, where there are several
            parts = [algorithm.loss(learner.model, batch, 9) for batch in probe]
        learner.model.train()
        return float(sum(p.sum for p in parts) / sum(p.weight for p in parts))

    before = loss()
    progress = learner.update({task: stores(task)}, 120)
    assert progress.step == progress.steps == learner.step == 120
    assert loss() < before - 0.01 * abs(before)
    assert (
        all(np.isfinite(value) for value in progress.metrics.values())
        and "train/loss" in progress.metrics
    )


@every
@pytest.mark.parametrize("task", ["toy-mixed", "toy-vector"])
def test_masked_rows_cannot_change_the_loss_or_its_gradient(kind, task, stores):
    algorithm, model = built(kind, task)
    batch = batch_of(algorithm, task, stores(task))
    mask = batch["mask"].clone()
    mask[torch.rand(len(mask), generator=torch.Generator().manual_seed(1)) < 0.4] = False
    batch["mask"] = mask
    spoilt = {}
    for name, values in batch.items():
        other = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(2))]
        other = other * 50 if other.is_floating_point() else other
        spoilt[name] = (
            values
            if name == "mask"
            else torch.where(mask.reshape(*mask.shape, *[1] * (values.ndim - 2)), values, other)
        )
    assert any(not torch.equal(batch[name], spoilt[name]) for name in batch)
    results = []
    for given in (batch, spoilt):
        model.zero_grad()
        loss = algorithm.loss(model, given, 0)
        loss.sum.backward()
        results.append(
            (
                loss.sum.detach(),
                loss.weight,
                torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]),
            )
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert float(results[0][1]) == float(mask.sum())


@every
def test_the_loss_of_a_batch_is_the_sum_of_the_losses_of_its_halves(kind, stores):
    """Sum and weight, not a mean: so ranks and micro-batches of unequal weight add up."""
    algorithm, model = built(kind, "toy-mixed")
    batch = batch_of(algorithm, "toy-mixed", stores("toy-mixed"))
    cut = 19
    parts = [
        {name: values[part] for name, values in batch.items()}
        for part in (slice(0, cut), slice(cut, None))
    ]
    with torch.no_grad():
        whole, *halves = (algorithm.loss(model, given, 0) for given in (batch, *parts))
    torch.testing.assert_close(whole.sum, halves[0].sum + halves[1].sum, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(whole.weight, halves[0].weight + halves[1].weight)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(
            value, halves[0].metrics[name] + halves[1].metrics[name], rtol=1e-5, atol=1e-4
        )


@every
def test_an_empty_share_of_a_batch_weighs_nothing(kind, stores):
    algorithm, model = built(kind, "toy-mixed")
    batch = {
        name: values[:0]
        for name, values in batch_of(algorithm, "toy-mixed", stores("toy-mixed")).items()
    }
    loss = algorithm.loss(model, batch, 0)
    loss.sum.backward()
    assert loss.sum.item() == loss.weight.item() == 0


# --- acting


@every
@pytest.mark.parametrize("task", ["toy-mixed", "toy-image", "toy-continuous", "toy-memory"])
def test_acting_on_many_rows_equals_acting_on_each_alone(kind, task):
    algorithm, model = built(kind, task, frame_stack=3)
    for mode in modes(algorithm, model):
        policy = algorithm.policy(model, mode)
        play = Play(task, policy, 5)
        together, _ = play.act(policy, range(5))
        alone = [play.act(policy, [row])[0] for row in range(5)]
        for t in range(play.steps):
            close_actions(
                together[t],
                {
                    path: np.concatenate([alone[row][t][path] for row in range(5)])
                    for path in together[t]
                },
            )


@every
@pytest.mark.parametrize("task", ["toy-image", "toy-mixed"])
def test_rows_of_memory_can_be_taken_and_put(kind, task):
    """As rollout does: rows leave, and a server's sessions come back in another order."""
    algorithm, model = built(kind, task, frame_stack=3)
    policy = algorithm.policy(model, "mean")
    play = Play(task, policy, 5)
    play.first[1:] = False
    whole, _ = play.act(policy, range(5))
    _, state = play.act(policy, range(5), range(3))
    rows = [4, 0, 3]
    rest, _ = play.act(policy, rows, range(3, 6), take(state, np.array(rows)))
    for t in range(3):
        close_actions(rest[t], {path: values[rows] for path, values in whole[3 + t].items()})


@every
@pytest.mark.parametrize("task", ["toy-image", "toy-mixed", "toy-continuous"])
def test_rows_join_leave_and_act_some_at_a_time_in_one_memory(kind, task):
    """A server's tick: who has asked acts, in any order; whoever comes gets a place that is
    free."""
    algorithm, model = built(kind, task, frame_stack=3)
    cached = "cached" in {field.name for field in dataclasses.fields(kind)}
    more = [dataclasses.replace(algorithm, **{"cached": True})] if cached else []
    for acting in [algorithm, *more]:
        policy = acting.policy(model, "mean", find_task(task).signature())
        play = Play(task, policy, 5)
        play.first[1:] = False
        alone = [play.act(policy, [row])[0] for row in range(5)]
        memory, place, told = policy.start(3), {}, [0] * 5
        for tick in ([0, 1], [1], [2, 0], [1, 2, 0], [3], [2, 3], [3, 2, 4], [4, 3]):
            for row in tick:  # place 0 is given to row 3 once row 0 has left, and so on
                if row not in place:
                    place[row] = row % 3
                    put(memory, np.array([row % 3]), policy.start(1))
            rows = np.array([place[row] for row in tick])
            given = [
                {name: np.stack([group[told[row]][name][row] for row in tick]) for name in group[0]}
                for group in (play.seen, play.commands)
            ]
            rest = [
                np.stack([values[told[row], row] for row in tick])
                for values in (play.rewards, play.first, play.uniforms)
            ]
            actions, part = policy.act(
                take(memory, rows), given[0], rest[0], given[1], rest[1], rest[2]
            )
            put(memory, rows, part)
            for k, row in enumerate(tick):
                close_actions(
                    {path: values[k : k + 1] for path, values in actions.items()},
                    alone[row][told[row]],
                )
                told[row] += 1


@every
def test_a_prompt_that_a_policy_cannot_read_is_refused(kind):
    algorithm, model = built(kind, "toy-mixed")
    policy = algorithm.policy(model, "mean")
    (episode,) = played("toy-mixed", 1).episodes
    assert policy.start(2, [None, None]).keys() == policy.start(2).keys()
    (other,) = played("toy-continuous", 1).episodes
    with pytest.raises(UserError, match=r"takes no prompt|the prompt is no episode of toy-mixed"):
        policy.start(2, [None, other])
    try:
        policy.start(2, [None, episode])
    except UserError as told:
        assert "takes no prompt" in str(told)


@every
@pytest.mark.parametrize("task", ["toy-image", "toy-mixed", "toy-memory"])
def test_where_an_episode_begins_memory_and_reward_are_dropped(kind, task):
    algorithm, model = built(kind, task, frame_stack=3)
    policy = algorithm.policy(model, "mean")
    play = Play(task, policy, 4)
    play.first[:] = False
    play.first[0] = play.first[3] = True
    whole, _ = play.act(policy, range(4))
    play.rewards[3] += 100
    fresh, _ = play.act(policy, range(4), range(3, 6))
    for t in range(3):
        close_actions(whole[3 + t], fresh[t])


@every
@pytest.mark.parametrize("task", ["toy-mixed", "toy-image"])
def test_acting_changes_nothing_that_it_was_given(kind, task):
    algorithm, model = built(kind, task, frame_stack=3)
    policy = algorithm.policy(model, "sample")
    play = Play(task, policy, 3)
    copies = [
        {name: values.copy() for name, values in group.items()}
        for t in range(play.steps)
        for group in (play.seen[t], play.commands[t])
    ]
    state = policy.start(3)
    first, _ = play.act(policy, range(3), state=take(state, np.arange(3)))
    for copy, group in zip(
        copies,
        [group for t in range(play.steps) for group in (play.seen[t], play.commands[t])],
        strict=True,
    ):
        same_arrays(copy, group)
    again, _ = play.act(policy, range(3), state=state)
    for a, b in zip(first, again, strict=True):
        same_arrays(a, b)


@every
@pytest.mark.parametrize("task", ["toy-mixed", "toy-continuous", "lunarlander"])
def test_saved_and_loaded_weights_act_the_same(kind, task, tmp_path):
    algorithm, model = built(kind, task, seed=1)
    _, other = built(kind, task, seed=2)
    Weights.of(model, (3, 41)).save(tmp_path / "w.safetensors")
    loaded = Weights.load(tmp_path / "w.safetensors")
    assert loaded.version == (3, 41)
    policies = [algorithm.policy(m, modes(algorithm, m)[-1]) for m in (model, other)]
    play = Play(task, policies[0], 4)
    expected, different = (play.act(policy, range(4))[0] for policy in policies)
    assert any(
        not np.array_equal(a[path], b[path])
        for a, b in zip(expected, different, strict=True)
        for path in a
    )
    loaded.into(other)
    for a, b in zip(expected, play.act(policies[1], range(4))[0], strict=True):
        same_arrays(a, b)


@every
def test_uniforms_are_all_the_chance_there_is(kind):
    algorithm, model = built(kind, "toy-mixed")
    policy = algorithm.policy(model, "sample")
    play = Play("toy-mixed", policy, 4)
    torch.manual_seed(1)
    first, _ = play.act(policy, range(4))
    torch.manual_seed(2)
    second, _ = play.act(policy, range(4))
    for a, b in zip(first, second, strict=True):
        same_arrays(a, b)
    play.uniforms = 1 - play.uniforms - np.float32(2**-24)
    third, _ = play.act(policy, range(4))
    assert any(
        not np.array_equal(a[path], b[path])
        for a, b in zip(first, third, strict=True)
        for path in a
    )
