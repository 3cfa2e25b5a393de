"""The generalist: what its sequences hold, that acting from a cache is acting, and that one network
learns tasks of different bodies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from making import dataset_of, played, small

import bigdm_ray
from bigdm_ray.algorithms.base import put, take
from bigdm_ray.algorithms.gato import Gato
from bigdm_ray.algorithms.gato.actions import ActionTokens, bounds_of
from bigdm_ray.algorithms.gato.leaves import (
    BINS,
    CLIP,
    bin_numbers,
    element_tokens,
    element_values,
    squash,
)
from bigdm_ray.algorithms.gato.network import Generalist
from bigdm_ray.algorithms.gato.policy import GatoPolicy
from bigdm_ray.envs import find_task
from bigdm_ray.envs.signature import Leaf, leaves
from bigdm_ray.envs.values import flatten
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Store
from bigdm_ray.replay.episode import EpisodeId
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.loop import train_local

TASKS = ("toy-vector", "toy-continuous", "toy-mixed")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Random episodes of toys whose observations and actions differ."""
    made = {}
    for task in TASKS:
        made[task] = Store(tmp_path_factory.mktemp(task))
        made[task].add(played(task, 60).episodes)
    return made


def learner(algorithm: Gato, tasks: tuple[str, ...] = TASKS) -> Learner:
    return Learner(algorithm, {task: find_task(task).signature() for task in tasks}, 1)


def windows(algorithm: Gato, stores: dict[str, Store], size: int = 12) -> dict[str, torch.Tensor]:
    drawn = {
        task: store.draw(algorithm.view(), np.random.default_rng(3), size)
        for task, store in stores.items()
    }
    return {
        name: torch.from_numpy(values) for name, values in algorithm.collate_several(drawn).items()
    }


def generalist(model: Any) -> Generalist:
    assert isinstance(model, Generalist)
    return model.eval()


# --- tokens of actions


@pytest.mark.parametrize("task", TASKS)
def test_decoding_an_action_inverts_encoding_it_to_half_a_bin(task: str) -> None:
    leaves = find_task(task).signature().actions
    actions = ActionTokens(32, 9, 8)
    low, high, _ = (torch.from_numpy(values) for values in bounds_of(leaves))
    acted = {
        path: torch.from_numpy(np.concatenate([e.actions[path] for e in played(task, 8).episodes]))
        for path in leaves
    }
    tokens = actions.tokens(leaves, acted, low, high)
    assert tokens.min() >= 0 and tokens.max() < 32 + 9
    again = actions.values(leaves, tokens, low, high)
    for path, leaf in leaves.items():
        assert again[path].dtype == acted[path].dtype and again[path].shape == acted[path].shape
        if leaf.choices:
            assert torch.equal(again[path], acted[path])
        else:
            half = 0.5001 * (np.array(leaf.high) - np.array(leaf.low)) / 32
            off = (again[path] - acted[path]).abs().reshape(len(tokens), -1).numpy()
            assert (off <= half).all()
            assert torch.equal(actions.tokens(leaves, again, low, high), tokens)


def test_whole_numbers_come_back_where_each_has_a_bin() -> None:
    actions = ActionTokens(256, 1, 8)
    for least, most in ((0, 9), (-20, 20)):
        leaves = {"": Leaf("tensor", (1,), "int64", (float(least),), (float(most),))}
        low, high, _ = (torch.from_numpy(values) for values in bounds_of(leaves))
        acted = torch.arange(least, most + 1)[:, None]
        tokens = actions.tokens(leaves, {"": acted}, low, high)
        assert torch.equal(actions.values(leaves, tokens, low, high)[""], acted)


PLAIN = strategies.one_of(
    strategies.builds(
        lambda low, more, count: gymnasium.spaces.Box(low, low + more, (count,), np.float32),
        strategies.floats(-100, 100, width=16),
        strategies.floats(0, 100, width=16),
        strategies.integers(1, 3),
    ),
    strategies.builds(
        lambda low, more, dtype: gymnasium.spaces.Box(low, low + more, (2,), dtype),
        strategies.integers(-50, 0),
        strategies.integers(0, 60),
        strategies.sampled_from([np.int8, np.int32, np.int64]),
    ),
    strategies.builds(
        lambda count, start: gymnasium.spaces.Discrete(count, start=start),
        strategies.integers(1, 9),
        strategies.integers(-5, 5),
    ),
    strategies.lists(strategies.integers(1, 6), min_size=1, max_size=3).map(
        gymnasium.spaces.MultiDiscrete
    ),
    strategies.integers(1, 4).map(gymnasium.spaces.MultiBinary),
)
SPACES = strategies.recursive(
    PLAIN,
    lambda inner: strategies.one_of(
        strategies.dictionaries(strategies.sampled_from("abc"), inner, min_size=1, max_size=3).map(
            gymnasium.spaces.Dict
        ),
        strategies.lists(inner, min_size=1, max_size=3).map(gymnasium.spaces.Tuple),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(SPACES, strategies.integers(0, 99))
def test_decoding_inverts_encoding_in_nested_spaces(space: gymnasium.Space[Any], seed: int) -> None:
    found = leaves(space)
    space.seed(seed)
    flat = [flatten(space, space.sample()) for _ in range(6)]
    acted = {
        path: torch.from_numpy(np.stack([np.asarray(f[path]) for f in flat])) for path in found
    }
    actions = ActionTokens(256, 9, 8)
    low, high, _ = (torch.from_numpy(values) for values in bounds_of(found))
    tokens = actions.tokens(found, acted, low, high)
    again, at = actions.values(found, tokens, low, high), 0
    for path, leaf in found.items():
        assert again[path].dtype == getattr(torch, leaf.dtype)
        if leaf.dtype.startswith("float"):
            here = slice(at, at + leaf.size)
            off = (again[path] - acted[path]).abs().reshape(6, -1)
            assert (off <= 0.51 / 256 * (high - low)[here] + 1e-4).all()
        else:
            assert torch.equal(again[path], acted[path])
        at += leaf.size


@settings(max_examples=60, deadline=None)
@given(SPACES, strategies.integers(0, 99), strategies.booleans())
def test_what_is_seen_comes_back_from_its_tokens(
    space: gymnasium.Space[Any], seed: int, mu_law: bool
) -> None:
    """Symbols and choices as they were; numbers to half a bin, of deviations or as mu-law bends
    them, and a second time to the same bin."""
    space.seed(seed)
    flat = [flatten(space, space.sample()) for _ in range(6)]
    for path, leaf in leaves(space).items():
        seen = torch.from_numpy(np.stack([np.asarray(f[path]) for f in flat]))[None]
        numbers = seen.reshape(1, 6, leaf.size).float()
        scaled = ((numbers - numbers.mean(1)) / (numbers.std(1) + 1e-3)).clamp(-CLIP, CLIP)
        tokens = element_tokens(leaf, seen, scaled, mu_law)
        assert tokens.shape == (1, 6, leaf.size) and tokens.min() >= 0
        again = element_values(leaf, tokens, mu_law)
        assert again.shape == seen.shape
        if leaf.kind != "tensor":
            assert torch.equal(again, seen) and tokens.min() >= BINS
            continue
        assert tokens.max() < BINS
        inside, half = again.reshape(1, 6, leaf.size), 0.501 / BINS
        if mu_law:  # beyond 256 the last bin is all there is
            off = squash(inside) - squash(numbers).clamp(-1, 1)
            assert off.abs().max() <= 2 * half + 1e-6
        else:
            assert (inside - scaled).abs().max() <= 2 * CLIP * half + 1e-5
        assert torch.equal(element_tokens(leaf, again, inside, mu_law), tokens)


def test_a_choice_that_a_task_has_not_is_never_drawn() -> None:
    torch.manual_seed(1)
    actions = ActionTokens(8, 7, 16)
    leaves = {"": Leaf("discrete", (2,), "int32", choices=(2, 3))}
    low, high, _ = (torch.from_numpy(values) for values in bounds_of(leaves))
    chance = torch.rand(500, 2)
    drawn, _ = actions.act(leaves, torch.randn(500, 16), low, high, chance)
    assert drawn[""].max(0).values.tolist() == [1, 2] and drawn[""].min() == 0


# --- sequences


def test_an_element_that_is_a_token_is_told_finely_near_nothing_and_pictures_are_refused() -> None:
    values = torch.tensor([-1e4, -256.0, -1.0, -0.01, 0.0, 0.01, 1.0, 256.0, 1e4])
    squashed = squash(values)
    torch.testing.assert_close(squashed, -squashed.flip(0))
    assert float(squash(torch.tensor(256.0))) == pytest.approx(1)
    assert float(squash(torch.tensor(1.0))) == pytest.approx(np.log(101) / np.log(25601))
    bins = bin_numbers(squashed, -1, 1)
    assert bins[0] == bins[1] == 0 and bins[-1] == bins[-2] == 1023 and bins[4] == 512
    assert len(set(bins[1:8].tolist())) == 7
    algorithm = dataclasses.replace(small(Gato), input="tokens")
    with pytest.raises(UserError, match=r"has a picture, .*--algorithm.input leaves"):
        learner(algorithm)
    counted = learner(algorithm, TASKS[:2]).model
    assert generalist(counted).step_tokens("toy-continuous", False) == 3 + 1
    long = dataclasses.replace(algorithm, context=16, window_tokens=9)
    views = long.views({"toy-continuous": find_task("toy-continuous").signature()}, 0)
    assert views["toy-continuous"].length == 2


def test_what_is_masked_cannot_change_the_loss_nor_what_a_prompt_would_be_asked(
    stores: dict[str, Store],
) -> None:
    """A prompt is read and not learned: its actions count for nothing as targets."""
    algorithm = dataclasses.replace(small(Gato), prompts=0.5)
    model = generalist(learner(algorithm).model)
    batch = windows(algorithm, stores)
    loss = algorithm.loss(model, batch, 0)
    real = sum(int(batch[f"{task}/mask"].sum()) for task in TASKS)
    assert float(loss.weight) == real, "steps of prompts count for nothing"
    spoilt = {}
    for name, values in batch.items():
        task = name.partition("/")[0]
        inner = f"{task}/prompts" if "/prompts/" in name else task
        mask = batch[f"{inner}/mask"]
        whole = name.endswith(("/mask", "/prompted")) or values.shape[:2] != mask.shape
        lead = mask.view(*mask.shape, *[1] * (values.ndim - 2))
        spoilt[name] = values if whole else torch.where(lead, values, values.roll(1, 0))
    assert any(not torch.equal(batch[name], spoilt[name]) for name in batch)
    torch.testing.assert_close(algorithm.loss(model, spoilt, 0).sum, loss.sum)


def test_a_prompt_is_of_the_same_source_and_half_of_them_are_ends(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = (played("toy-vector", 40, seed).episodes for seed in (1, 2))
    store.add([dataclasses.replace(one, source="a") for one in first])
    store.add(
        [
            dataclasses.replace(
                one, source="b", id=EpisodeId(1000, 0, k), rewards=one.rewards + 100
            )
            for k, one in enumerate(second)
        ]
    )
    view = dataclasses.replace(small(Gato).view(), prompts=1.0, prompt_length=2)
    drawn = store.draw(view, np.random.default_rng(0), 400)
    assert drawn.prompts is not None and drawn.prompted is not None
    assert drawn.prompted.tolist() == list(range(400))
    of_b = drawn.rewards[:, 0] > 50
    assert 0 < of_b.sum() < 400
    assert ((drawn.prompts.rewards[:, 0] > 50) == of_b).all(), "the source of the window"
    halves = [store.draw(view, np.random.default_rng(0), 400, rank, 2).prompts for rank in (0, 1)]
    shared = np.concatenate([half.rewards for half in halves if half is not None])
    assert np.array_equal(shared, drawn.prompts.rewards), "ranks share what one draws"


# --- acting


@pytest.mark.parametrize("feed", [False, True], ids=["alone", "fed"])
@pytest.mark.parametrize(
    ("task", "input"), [*((task, "leaves") for task in TASKS), *((t, "tokens") for t in TASKS[:2])]
)
def test_a_cache_is_what_the_whole_window_gives_before_and_after_it_slides(
    task: str, feed: bool, input: str, stores: dict[str, Store]
) -> None:
    algorithm = dataclasses.replace(small(Gato), context=4, feed_actions=feed, input=input)
    model = generalist(learner(algorithm, TASKS[: 3 if input == "leaves" else 2]).model)
    episodes = [store_episode(stores[task], row) for row in range(3)]
    length = min(11, *(one.length for one in episodes))
    prompts = [None, store_episode(stores[task], 5), None]
    chance = np.random.default_rng(0).random((length, 3, 64), np.float32)
    acted = []
    for cached in (True, False):
        policy = GatoPolicy(model, task, greedy=False, cached=cached, context=4)
        state, mine = policy.start(3, prompts), []
        for t in range(length):
            first = np.array([t == 0, t == 0, t in (0, 3)])
            seen = {
                path: np.stack([one.observations[path][t] for one in episodes])
                for path in episodes[0].observations
            }
            actions, state = policy.act(
                state, seen, np.zeros(3, np.float32), {}, first, chance[t, :, : policy.uniforms]
            )
            mine.append(actions)
        acted.append(mine)
    for one, other in zip(*acted, strict=True):
        for path in one:
            np.testing.assert_allclose(one[path], other[path], atol=1e-5)


def store_episode(store: Store, row: int) -> Any:
    return store.episode(row)


def test_rows_act_as_each_would_alone_and_a_prompt_is_read(stores: dict[str, Store]) -> None:
    algorithm = small(Gato)
    model = generalist(learner(algorithm).model)
    policy = algorithm.policy_in(model, "sample", find_task(TASKS[1]).signature(), TASKS[1])
    episodes = [stores[TASKS[1]].episode(row) for row in range(4)]
    prompts = [None, stores[TASKS[1]].episode(7), None, stores[TASKS[1]].episode(8)]
    chance = np.random.default_rng(0).random((4, policy.uniforms), np.float32)
    seen = {path: np.stack([e.observations[path][0] for e in episodes]) for path in ("",)}
    zeros, ones = np.zeros(4, np.float32), np.ones(4, bool)
    together, _ = policy.act(policy.start(4, prompts), seen, zeros, {}, ones, chance)
    for row in range(4):
        part = {path: values[row : row + 1] for path, values in seen.items()}
        alone, _ = policy.act(
            policy.start(1, prompts[row : row + 1]),
            part, zeros[:1], {}, ones[:1], chance[row : row + 1],
        )  # fmt: skip
        np.testing.assert_allclose(alone[""][0], together[""][row], atol=1e-5)
    state = policy.start(4, prompts)
    said = []
    for one in (state, policy.start(4)):
        policy.act(one, seen, zeros, {}, ones, chance)
        said.append(one["keys"][1].abs().sum())
    assert not torch.equal(*said), "the prompt is among what is read"
    moved = policy.start(4)
    put(moved, np.array([1]), take(state, np.array([1])))
    assert moved["prompted"].tolist()[1] > 0


def test_a_prompt_of_another_task_is_one_sentence(stores: dict[str, Store]) -> None:
    """Of one whose spaces are the same, too: door-open's are those of drawer-open."""
    algorithm = small(Gato)
    model = generalist(learner(algorithm).model)
    policy = algorithm.policy_in(model, "mean", find_task(TASKS[0]).signature(), TASKS[0])
    other, own = (stores[task].episode(0) for task in ("toy-mixed", TASKS[0]))
    with pytest.raises(UserError, match="is no episode of toy-vector, but of toy-mixed; give"):
        policy.start(1, [other])
    with pytest.raises(UserError, match="is no episode of toy-vector, but of cartpole; give"):
        policy.start(1, [dataclasses.replace(own, task="classic/cartpole")])
    for name in ("", TASKS[0]):
        policy.start(1, [dataclasses.replace(own, task=name)])
    with pytest.raises(UserError, match="the prompt is no episode of toy-vector: its observation"):
        policy.start(1, [dataclasses.replace(other, task="")])


def test_weights_of_another_vocabulary_are_one_sentence() -> None:
    algorithm = small(Gato)
    model = generalist(learner(algorithm).model)
    model.pieces.model[100] ^= 1
    with pytest.raises(UserError, match="of another vocabulary than 'small'"):
        algorithm.policy_in(model, "mean", find_task(TASKS[0]).signature(), TASKS[0])
    with pytest.raises(UserError, match=r"no vocabulary 'smal' .*; known are mistral, small"):
        dataclasses.replace(algorithm, vocabulary="smal").build({})


def test_a_task_that_was_not_trained_is_one_sentence() -> None:
    algorithm = small(Gato)
    model = generalist(learner(algorithm).model)
    with pytest.raises(UserError, match="not trained on cartpole, but on toy-vector, "):
        algorithm.policy_in(model, "mean", find_task("cartpole").signature(), "cartpole")


# --- learning


@pytest.mark.slow
def test_one_network_learns_toys_of_different_bodies_and_resumes_as_if_it_had_not_stopped(
    tmp_path: Path,
) -> None:
    """Clones of the best of random play copy what they see; so does one network for both."""
    data = []
    for task in ("toy-vector", "toy-continuous"):
        dataset_of(tmp_path / task, task, 400)
        data.append(str(tmp_path / task))
    sizes = "width 32 layers 2 heads 2 context 4 bins 16 batch-size 32 warm-up-steps 10"
    words = iter(f"{sizes} learning-rate 3e-3".split())
    flags = [f"--algorithm.{name}={value}" for name, value in zip(words, words, strict=True)]
    flags += ["--saves.every", "20", "--saves.report-every", "20", "--evaluations.every", "100000"]
    flags += ["--evaluations.final-episodes", "4"]
    run = bigdm_ray.configure("gato", tasks=data, flags=[*flags, "--budget.learner-steps", "60"])
    summary = train_local(run, tmp_path / "run")
    assert summary["learner_steps"] == 60
    short = bigdm_ray.configure("gato", tasks=data, flags=[*flags, "--budget.learner-steps", "40"])
    train_local(short, tmp_path / "cut")
    train_local(run, tmp_path / "cut", resume=True)
    whole, cut = (bigdm_ray.load(tmp_path / name).model.state_dict() for name in ("run", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    for name in ("toy-vector/train/loss", "time/tokens_per_s", "train/padding"):
        assert name in lines, name
