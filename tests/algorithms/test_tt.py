"""Trajectory Transformer: values, tokens and stop tokens, loss, schedule, memory; and planning does
better than its data."""

import dataclasses

import numpy as np
import pytest
import torch
from making import dataset_of, episode, small, stored

from bigdm_ray.algorithms.tt import Tt, beams_of, plan_at, values_to_go
from bigdm_ray.envs import find_task
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.planning.sampling import RankedPlans
from bigdm_ray.replay import Store
from bigdm_ray.training.config import configure
from bigdm_ray.training.evaluation import evaluate
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.streams import rng

SIGNATURE = Signature(
    {"": Leaf("tensor", (3,), "float32")}, {"": Leaf("discrete", (), "int32", choices=(4,))}
)
REWARDS = [[1.0, 2.0, 3.0, 4.0], [5.0, -1.0, 0.5]]


@pytest.fixture
def store(tmp_path):
    """Two episodes; the first was cut by a time limit, the second terminated."""
    made = Store(tmp_path)
    made.add([episode(i, len(r), rewards=r, terminated=bool(i)) for i, r in enumerate(REWARDS)])
    return made


def built(algorithm, seed=0):
    torch.manual_seed(seed)
    return algorithm.build({"t": SIGNATURE}).eval()


def drawn(algorithm, model, store, size=16):
    algorithm.fit(model, {"t": store}, 0)
    store.annotate(algorithm.annotate(model, {"t": store}, 0)["t"])
    windows = store.draw(algorithm.view(), rng(0, "draw", 0), size)
    return windows, {
        name: torch.from_numpy(values) for name, values in algorithm.collate({"t": windows}).items()
    }


@pytest.mark.parametrize("penalty", [None, -100.0])
def test_values_are_the_discounted_rewards_after_a_step(store, penalty):
    want = []
    for i, rewards in enumerate(REWARDS):
        r = [*rewards[:-1], penalty] if i and penalty is not None else rewards
        want += [
            sum(0.9 ** (k - 1) * r[t + k] for k in range(1, len(r) - t)) for t in range(len(r))
        ]
    np.testing.assert_allclose(values_to_go(store, 0.9, penalty), want, rtol=1e-6)


def test_values_of_a_window_reach_beyond_its_end(store):
    algorithm = small(Tt, window=2, discount=0.5, bins=50)
    windows, _ = drawn(algorithm, built(algorithm), store)
    row = next(i for i in range(16) if windows.rewards[i, 0] == 1.0)
    np.testing.assert_allclose(windows.annotations["value"][row], [2 + 3 / 2 + 4 / 4, 3 + 4 / 2])


def plain_loss(algorithm, model, windows):
    """Token by token, from the network's outputs over the whole window."""
    bins, dims, stop = model.bins, model.net.dims, algorithm.bins
    total = 0.0
    for i in range(len(windows.mask)):
        tokens = []
        for k in range(algorithm.window):
            if not windows.mask[i, k]:
                tokens += [stop] * dims
                continue
            reward = (
                algorithm.termination_penalty
                if windows.terminated[i, k] and algorithm.termination_penalty is not None
                else windows.rewards[i, k]
            )
            numbers = [
                *windows.observations[""][i, k],
                windows.actions[""][i, k],
                reward,
                windows.annotations["value"][i, k],
            ]
            tokens += bins.encode(torch.tensor(numbers, dtype=torch.float32)[None])[0].tolist()
        hidden = model.net.transformer(
            model.net.embed(torch.tensor(tokens).view(1, -1, dims)).flatten(1, 2)[:, :-1]
        )[0]
        for place in range(1, len(tokens)):
            d, k = place % dims, place // dims
            if windows.mask[i, k] or windows.terminated[i].any():
                weight = {
                    3: algorithm.action_weight,
                    4: algorithm.reward_weight,
                    5: algorithm.value_weight,
                }.get(d, 1.0)
                total -= weight * float(
                    model.net.logits(hidden[place - 1], d).log_softmax(0)[tokens[place]]
                )
    return total / dims


@pytest.mark.parametrize("penalty", [None, -100.0])
@torch.no_grad()
def test_the_loss_is_the_weighted_cross_entropy_of_every_token(store, penalty):
    algorithm = small(
        Tt,
        window=3,
        termination_penalty=penalty,
        action_weight=5.0,
        reward_weight=0.5,
        value_weight=2.0,
    )
    model = built(algorithm)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    windows, batch = drawn(algorithm, model, store)
    assert windows.terminated.any() and not windows.mask.all()
    loss = algorithm.loss(model, batch, 0)
    assert float(loss.sum) == pytest.approx(plain_loss(algorithm, model, windows), rel=1e-4)
    assert float(loss.weight) == windows.mask.sum()


@torch.no_grad()
def test_stop_tokens_are_learned_behind_terminations_alone(store):
    algorithm = small(Tt, window=3)
    model = built(algorithm)
    _, batch = drawn(algorithm, model, store)
    before = float(algorithm.loss(model, batch, 0).sum)
    batch["terminated"] = torch.zeros_like(batch["terminated"])
    assert float(algorithm.loss(model, batch, 0).sum) < before


@torch.no_grad()
def test_a_value_changes_what_follows_it_at_once_and_nothing_else():
    algorithm = small(Tt, window=3, layers=2)
    model = built(algorithm)
    for p in model.net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    tokens = torch.randint(0, 4, (1, 3, 6))
    other = tokens.clone()
    other[0, 0, 5] += 1
    changed = (model.net(tokens) - model.net(other)).nan_to_num().abs().amax(-1).T.flatten() > 1e-6
    assert changed.nonzero().flatten().tolist() == [6], (
        "the first token of the next state, by the residual stream"
    )


def test_penalties_and_bins_are_of_the_data(store):
    algorithm = small(Tt, termination_penalty=-100.0, discretiser="uniform", discount=1.0)
    model = built(algorithm)
    algorithm.fit(model, {"t": store}, 0)
    assert model.bins.edges[4, 0] == -100 and model.bins.edges[4, -1] == 5
    # -1 and the penalty; 2 + 3 + 4
    assert model.bins.edges[5, 0] == -101 and model.bins.edges[5, -1] == 9
    assert model.bins.decode(torch.tensor([[0, 0, 0, 2, 0, 0]]))[0, 3] == 2, (
        "a choice is its own bin"
    )


@pytest.mark.parametrize("penalty", [None, -100.0])
def test_the_values_that_are_drawn_have_the_penalty_too(store, penalty):
    algorithm = small(Tt, termination_penalty=penalty, discount=0.5)
    (column,) = algorithm.annotate(built(algorithm), {"t": store}, 0)["t"].values()
    end = 0.5 if penalty is None else penalty
    np.testing.assert_allclose(column, [2 + 3 / 2 + 4 / 4, 3 + 4 / 2, 4, 0, -1 + end / 2, end, 0])


def test_only_weights_of_linear_layers_decay():
    model = built(small(Tt))
    (optimizer,) = small(Tt, weight_decay=0.3).optimizers(model).values()
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    for name, p in model.named_parameters():
        linear = p.ndim > 1 and "embedding" not in name and "table" not in name
        assert decays[id(p)] == (0.3 if linear else 0.0), name


def test_the_learning_rate_rises_falls_and_stays_at_a_tenth():
    algorithm = Tt(warm_up_steps=10, decay_steps=100)
    factors = [algorithm.learning_rate_factor(step, "adamw") for step in range(300)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5) and factors[110:] == [0.1] * 190
    assert Tt(warm_up_steps=0, decay_steps=0).learning_rate_factor(10**6, "adamw") == 1.0


def test_the_schedule_is_an_epoch_of_the_datasets_own_windows_and_nineteen_more(tmp_path):
    """Official: warm-up over the tokens of one epoch, the decay's end after 20; windows begin at
    any step of an episode but its last."""
    for steps, episodes, batch, warm_up, decay in (
        (1_000_000, 2_000, 256, 3_898, 74_070),  # a medium set
        (400_000, 2_000, 256, 1_555, 29_539),
        (2_000_000, 2_000, 256, 7_805, 148_289),
        (1_000_000, 1_000, 128, 7_805, 148_289),  # ant
        (3, 3, 256, 1, 1),
    ):
        found = Tt(batch_size=batch).for_data(steps, episodes)
        assert (found.warm_up_steps, found.decay_steps) == (warm_up, decay)
        assert (
            found.learning_rate_factor(warm_up - 1, "adamw") == 1.0
            and found.learning_rate_factor(warm_up + decay, "adamw") == 0.1
        )
    assert Tt(warm_up_steps=7, decay_steps=0).for_data(10_000, 10) == Tt(
        warm_up_steps=7, decay_steps=0
    ), "what is set stays"
    assert (
        Tt().learning_rate_factor(3_905, "adamw") == 1.0
        and Tt().learning_rate_factor(3_906 + 74_219, "adamw") == 0.1
    )
    data = dataset_of(tmp_path / "data", "toy-vector", 30)
    run = configure("tt", str(tmp_path / "data"), ["--algorithm.batch-size", "8"])
    assert run.algorithm.warm_up_steps == round(
        (data.steps - data.episodes) / 8
    ) and run.algorithm.decay_steps == round(19 * (data.steps - data.episodes) / 8)


def test_the_memory_is_the_last_transitions_as_tokens(store, monkeypatch):
    algorithm = small(Tt, window=4, context=3, bins=50)
    model = built(algorithm)
    algorithm.fit(model, {"t": store}, 0)
    policy = algorithm.policy(model, "plan")
    given = []

    def fan(past, state, numbers, goal):
        assert goal is None
        given.append((past.clone(), state.clone()))
        tokens = torch.zeros(len(state), 2, 1, 6, dtype=torch.int64)
        tokens[:, 0, 0, 3] = len(given) % 4
        return RankedPlans(tokens, torch.zeros(len(state), 2))

    monkeypatch.setattr(policy._planner, "fan", fan)
    state, seen = policy.start(1), store.episode(0).observations[""]
    for t in range(4):
        first = np.array([t == 0])
        actions, state = policy.act(
            state,
            {"": seen[t : t + 1].copy()},
            np.float32([99.0 if t == 0 else t]),
            {},
            first,
            np.zeros((1, 2), np.float32),
        )
        assert actions[""].tolist() == [(t + 1) % 4]
    assert [past.shape[1] for past, _ in given] == [0, 1, 2, 2]
    past, now = given[-1]
    for k, t in enumerate((1, 2)):
        numbers = torch.tensor([[*seen[t], (t + 1) % 4, t + 1, 0.0]], dtype=torch.float32)
        assert past[0, k, :-1].tolist() == model.bins.encode(numbers)[0, :-1].tolist()
    assert past[0, :, -1].tolist() == [49, 49], "a placeholder"
    assert now.tolist() == model.bins.encode(torch.tensor(seen[3:4]), slice(0, 3)).tolist()


@pytest.mark.parametrize("objective", ["reward", "likelihood"])
def test_a_plan_at_a_step_of_an_episode_is_the_policys_own_there(store, objective):
    """With the transitions that came before it, as many as the context has, and their rewards."""
    algorithm = small(Tt, window=4, context=3, bins=50, objective=objective, beams=4, horizon=3)
    model = built(algorithm)
    for p in model.net.parameters():
        torch.nn.init.normal_(p, std=0.4)
    algorithm.fit(model, {"t": store}, 0)
    policy, whole = algorithm.policy(model, "plan"), store.episode(0)
    state, uniforms, own = (
        policy.start(1),
        np.random.default_rng(0).random((5, 1, 2), np.float32),
        [],
    )
    policy.watch = own.append
    for t in range(4):
        seen = {"": whole.observations[""][t : t + 1].copy()}
        _, state = policy.act(
            state,
            seen,
            whole.rewards[t - 1 : t].copy() if t else np.zeros(1, np.float32),
            {},
            np.array([t == 0]),
            uniforms[t],
        )
        action = torch.tensor([[float(whole.actions[""][t])]])
        with torch.inference_mode():  # what was truly done, not what was planned
            state["past"][0, -1, 3] = model.bins.encode(action, slice(3, 4)).item()
    for t in range(4):
        found = plan_at(model, algorithm, whole, t, uniforms[t, 0])
        np.testing.assert_array_equal(found.states, own[t].states)
        np.testing.assert_allclose(found.scores, own[t].scores, rtol=1e-5)
        alone = plan_at(
            model, algorithm, dataclasses.replace(whole, **cut(whole, t)), 0, uniforms[t, 0]
        )
        assert t == 0 or not np.allclose(alone.scores, found.scores), "what came before matters"


def cut(episode, first):
    """The fields of an episode from a step on."""
    observations = {path: values[first:] for path, values in episode.observations.items()}
    return {
        "observations": observations,
        "actions": {path: values[first:] for path, values in episode.actions.items()},
        "rewards": episode.rewards[first:],
    }


def test_rows_of_different_ages_are_planned_together_as_alone(store):
    algorithm = small(Tt, window=4, context=4)
    model = built(algorithm)
    algorithm.fit(model, {"t": store}, 0)
    for objective in ("reward", "likelihood"):
        policy = small(Tt, window=4, context=4, objective=objective).policy(model, "plan")
        chance = np.random.default_rng(0)
        state = {
            "past": torch.from_numpy(chance.integers(0, 4, (3, 3, 6)).astype(np.int16)),
            "held": np.array([0, 3, 2]),
        }
        seen, uniforms = (
            chance.normal(size=(3, 3)).astype(np.float32),
            chance.random((3, 2), np.float32),
        )
        zeros = np.zeros(3, np.float32)
        together, after = policy.act(state, {"": seen}, zeros, {}, np.zeros(3, bool), uniforms)
        assert after["held"].tolist() == [1, 3, 3]
        for i in range(3):
            one = {name: values[i : i + 1] for name, values in state.items()}
            alone, _ = policy.act(
                one, {"": seen[i : i + 1]}, zeros[:1], {}, np.zeros(1, bool), uniforms[i : i + 1]
            )
            assert alone[""][0] == together[""][i]


def test_what_does_not_go_together_is_said():
    for flags, signature, words in [
        ({"context": 4, "window": 3}, SIGNATURE, "--algorithm.context is 4"),
        ({"width": 10, "heads": 4}, SIGNATURE, "multiple of --algorithm.heads"),
        ({"bins": 3}, SIGNATURE, "4 choices"),
        (
            {"observed": 4},
            SIGNATURE,
            "--algorithm.observed is 4, but an observation has 3 elements",
        ),
        (
            {"goal_steps": 5},
            SIGNATURE,
            "--algorithm.goal-steps is 5, but --algorithm.goal none draws no later goal",
        ),
        (
            {"goal_steps": 5, "goal": "last"},
            SIGNATURE,
            "--algorithm.goal-steps is 5, but --algorithm.goal last draws no later goal",
        ),
        (
            {"objective": "goal", "goal": "last", "horizon": 1},
            SIGNATURE,
            "--algorithm.horizon 1 leads to none",
        ),
        ({"objective": "goal", "goal": "last", "discount": 0.0}, SIGNATURE, "--algorithm.discount"),
        (
            {},
            Signature(SIGNATURE.observations, {"say": Leaf("text", (4,), "uint8")}),
            "'say' is of kind text",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            Tt(**flags).build({"t": signature})
    assert built(Tt(observed=3, layers=1)).seen.width == 3


def test_presets_are_the_published_settings():
    known = Tt.presets
    assert (
        known["halfcheetah"]["default"]["algorithm.horizon"] == 5
        and known["halfcheetah"]["default"]["algorithm.beams"] == 32
    )
    assert (
        known["walker2d"]["medium-replay"]["algorithm.k_act"] == 40
        and known["walker2d"]["medium-replay"]["algorithm.cdf_act"] == 0
    )
    assert all(
        values["algorithm.termination_penalty"] == -100
        for task, named in known.items()
        if task not in ("*", "four-rooms")
        for values in named.values()
    )
    for body in ("hopper", "halfcheetah", "walker2d", "ant"):
        assert {"default", "medium", "medium-replay", "medium-expert"} <= known[
            body
        ].keys() and known[body]["default"] == known[body]["medium"]
    assert (
        known["ant"]["medium"]["budget.learner_steps"] == 390_600
        and known["halfcheetah"]["medium-expert"]["algorithm.horizon"] == 15
    )
    assert (
        known["walker2d"]["medium-expert"]["algorithm.horizon"] == 5
        and known["hopper"]["medium-expert"] == known["hopper"]["medium"]
    )
    for named in known.values():
        for values in named.values():
            assert values["evaluations.every"] > values.get(
                "budget.learner_steps", Tt.offline_steps
            ), "scored at the end alone"
    plain = Tt()
    assert (
        plain.bins,
        plain.context,
        plain.horizon,
        plain.beams * plain.expansions,
        plain.k_obs,
        plain.k_act,
    ) == (100, 5, 15, 256, 1, 20)


@pytest.mark.slow
def test_planning_does_better_than_the_data(tmp_path):
    """Random play of a toy earns a third of what can be earned; the planner sees in its model which
    actions are paid."""
    task = find_task("toy-vector")
    store = stored(tmp_path, "toy-vector", 200)
    algorithm = small(Tt, horizon=2, beams=8, k_act=0, window=3, context=2)
    learner = Learner(algorithm, {"toy-vector": task.signature()}, 1)
    learner.update({"toy-vector": store}, 250)
    model = learner.model.eval()
    planned, imitated = (
        evaluate(algorithm.policy(model, mode), task, {}, 20, 1, "final", 0).returns.mean()
        for mode in ("plan", "sample")
    )
    assert planned > 1.8 * store.table.returns.mean()
    assert imitated < 1.5 * store.table.returns.mean(), "without a plan it does what the data does"


# --- goals


def test_the_goal_is_what_the_episode_reaches_and_what_the_observation_asks_for(tmp_path):
    """In training the goal's tokens are those of a later position, when acting those of the leaf
    `goal`, which is no part of the state."""
    store, signature = stored(tmp_path, "four-rooms", 6), find_task("four-rooms").signature()
    algorithm = small(Tt, goal="last", window=3, bins=30)
    torch.manual_seed(0)
    model = algorithm.build({"four-rooms": signature}).eval()
    windows, batch = drawn(algorithm, model, store, 20)
    assert model.seen.width == 2 and model.net.dims == 6 and model.net.goal == 2
    given = []
    forward = model.net.forward
    model.net.forward = lambda tokens, goal: given.append(goal) or forward(tokens, goal)
    algorithm.loss(model, batch, 0)
    ends = [store.episode(i).observations["position"][-1] for i in range(6)]
    assert all((windows.goals["position"] == e).all(1).any() for e in ends) and all(
        (g == ends).all(1).any() for g in windows.goals["position"]
    )
    assert (
        given[0].tolist()
        == model.bins.encode(torch.from_numpy(windows.goals["position"]), slice(0, 2)).tolist()
    )
    place = np.float32([[0.3, 0.3], [0.3, 0.3]])
    asked = {"position": place, "goal": np.float32([[0.3, 0.3], [-0.9, 0.9]])}
    for objective, mode in (
        ("likelihood", "plan"),
        ("reward", "plan"),
        ("likelihood", "mean"),
        ("likelihood", "sample"),
    ):
        policy = small(Tt, goal="last", window=3, bins=30, objective=objective).policy(model, mode)
        policy._planner.encoder.trunk = (
            lambda past, state, room, goal, was=policy._planner.encoder.trunk: (
                given.append((state, goal)) or was(past, state, room, goal)
            )
        )
        policy.act(
            policy.start(2),
            asked,
            np.zeros(2, np.float32),
            {},
            np.ones(2, bool),
            np.full((2, policy.uniforms), 0.5, np.float32),
        )
    for state, goal in (pair for pair in given[1:] if pair[0] is not None):
        assert (
            state.tolist() == goal[:1].expand(2, 2).tolist()
            and goal[0].tolist() != goal[1].tolist()
        )


def test_beams_of_a_search_for_the_goal_end_at_the_goal():
    model = built(small(Tt, bins=50))
    tokens = torch.zeros(1, 3, 4, 6, dtype=torch.int64)
    tokens[0, :, :, 0] = torch.tensor([[7, 1, 7, 2], [7, 3, 50, 7], [5, 5, 5, 5]])
    goal = torch.tensor([[7, 0, 0]])
    for sought, last in ((goal, [2, 3, 3]), (None, [3, 3, 3])):
        (beams,) = beams_of(model, RankedPlans(tokens, torch.zeros(1, 3)), sought)
        assert [int(np.isfinite(row[:, 1]).nonzero()[0].max()) for row in beams.states] == last, (
            "the state that it stands in does not count"
        )
        assert np.isnan(beams.states[1, 2, 0]) and np.isnan(beams.states[0, 3]).all() == (
            sought is not None
        )


@pytest.mark.parametrize("objective", ["goal", "likelihood"])
def test_a_drawn_plan_ends_where_it_is_at_the_goal_it_was_told(objective, tmp_path, monkeypatch):
    """Both ways to a drawn plan, that of the picture and that of the video, hand on the goal where
    it was searched for, and only there."""
    store, signature = stored(tmp_path, "four-rooms", 3), find_task("four-rooms").signature()
    algorithm = small(Tt, goal="last", window=3, bins=30, objective=objective)
    model = algorithm.build({"four-rooms": signature}).eval()
    drawn(algorithm, model, store, 4)
    policy, told = algorithm.policy(model, "plan"), []
    monkeypatch.setattr(
        "bigdm_ray.algorithms.tt.policy.beams_of",
        lambda model, fan, sought: told.append(sought) or [None],
    )
    policy.watch = lambda beams: None
    first = store.episode(0)
    asked = {path: values[:1].copy() for path, values in first.observations.items()}
    policy.act(
        policy.start(1),
        asked,
        np.zeros(1, np.float32),
        {},
        np.ones(1, bool),
        np.full((1, 2), 0.5, np.float32),
    )
    plan_at(model, algorithm, first, 0, np.full(2, 0.5, np.float32))
    goal = model.goals({path: torch.from_numpy(values) for path, values in asked.items()}).tolist()
    assert [None if sought is None else sought.tolist() for sought in told] == (
        [goal, goal] if objective == "goal" else [None, None]
    )


def test_goals_that_cannot_be_told_are_refused():
    place, other = Leaf("tensor", (2,), "float32"), Leaf("tensor", (3,), "float32")
    for seen, words in (
        ({"": place}, "there is none beside others"),
        ({"goal": place}, "there is none"),
        ({"goal": place, "position": other}, "has 3 elements"),
    ):
        with pytest.raises(UserError, match=words):
            Tt(goal="later").build({"t": Signature(seen, SIGNATURE.actions)})
    plain = Tt(layers=1, width=8, heads=1).build(
        {"t": Signature({"goal": place, "position": other}, SIGNATURE.actions)}
    )
    assert plain.seen.width == 5 and plain.net.goal == 0, (
        "without --algorithm.goal it is a leaf as any other"
    )


@pytest.mark.long
def test_goals_are_reached_after_undirected_data(tmp_path):
    """Random play reaches a fifth of its goals; the model learns from where it went, whatever it
    was asked for."""
    task = find_task("four-rooms")
    store = stored(tmp_path, "four-rooms", 600)
    flags = {
        "goal": "later",
        "goal_steps": 16,
        "discretiser": "uniform",
        "bins": 24,
        "window": 2,
        "width": 48,
        "layers": 2,
        "heads": 4,
        "learning_rate": 2e-3,
    }
    algorithm = small(
        Tt, **flags, objective="likelihood", reward_weight=0.0, value_weight=0.0, batch_size=128
    )
    learner = Learner(algorithm, {"four-rooms": task.signature()}, 1)
    learner.update({"four-rooms": store}, 700)
    assert store.table.returns.mean() < 0.3
    score = evaluate(algorithm.policy(learner.model.eval(), "sample"), task, {}, 50, 1, "final", 0)
    assert score.returns.mean() > 0.65
