"""PPO, SAC, CQL, IQL and MARWIL of RLlib: our run folder, their training, the same actions."""

import inspect
import re
import sys

import numpy as np
import pytest
import torch
from external import built, context, dataset, evaluated, reports, trained, whole
from making import same_arrays

import bigdm_ray.distributed  # noqa: F401  (settles how Ray is imported, before RLlib does it)
from bigdm_ray.baselines.actor import plain_leaves
from bigdm_ray.baselines.base import add_prefix, to_unit
from bigdm_ray.baselines.rllib import RllibCql, RllibIql, RllibMarwil, RllibPpo, RllibSac, inner
from bigdm_ray.baselines.rllib.inner import MODULE
from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed, UserError, install
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.run import main as run
from bigdm_ray.training.evaluation import evaluate

pytestmark = pytest.mark.slow  # importing RLlib alone takes seconds

FAST = {
    "actor_learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "gamma": 0.2,
    "tau": 0.05,
    "hidden": (32, 32),
}
SMALL = {
    "ppo": RllibPpo(hidden=(32, 32), train_batch=250, learning_rate=3e-3, gamma=0.5),
    "sac": RllibSac(
        **FAST,
        alpha_learning_rate=3e-3,
        batch_size=64,
        initial_alpha=0.05,
        learning_starts=100,
        environments=4,
    ),
    "cql": RllibCql(
        **FAST,
        alpha_learning_rate=3e-3,
        batch_size=64,
        initial_alpha=0.05,
        clone_steps=20,
        min_q_weight=0.1,
    ),
    "iql": RllibIql(**FAST, value_learning_rate=3e-3, batch_size=128, beta=10.0),
    "marwil": RllibMarwil(
        hidden=(32, 32), batch_size=128, learning_rate=3e-3, gamma=0.0, norm_start=0.05
    ),
}
STUDYING = ("cql", "iql", "marwil")
CASES = [
    ("ppo", "toy-vector"),
    ("ppo", "toy-continuous"),
    ("sac", "toy-continuous"),
    ("cql", "toy-continuous"),
    ("iql", "toy-continuous"),
]
CASES += [("marwil", "toy-vector"), ("marwil", "toy-continuous")]
every = pytest.mark.parametrize(("name", "task"), CASES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Datasets of random play: what is better than that was learned from their rewards."""
    home = tmp_path_factory.mktemp("datasets")
    return {
        task: dataset(home / task, task, 150).folder for task in ("toy-vector", "toy-continuous")
    }


@pytest.fixture
def trainers(folders):
    """Make trainers that are closed at the end."""
    made = []

    def make(name, task, steps=0, seed=1, algorithm=None):
        store = Dataset.open(folders[task]).store() if name in STUDYING else None
        made.append((algorithm or SMALL[name]).trainer(context(task, seed, store=store)))
        if steps:
            made[-1].step(steps)
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


def score(algorithm, task, trainer):
    return float(
        evaluate(
            algorithm.policy(built(algorithm, task, trainer), "mean"),
            find_task(task),
            {},
            20,
            1,
            "test",
            0,
        ).returns.mean()
    )


@every
def test_our_network_does_what_the_librarys_does(name, task, trainers):
    trainer = trainers(name, task, 250)
    algorithm = SMALL[name]
    model = built(algorithm, task, trainer)
    path, seen, action_path, action = plain_leaves(find_task(task).signature(), name)
    observations = np.random.default_rng(0).normal(size=(64, seen.size)).astype(np.float32)
    with torch.no_grad():
        ours = model(torch.from_numpy(observations))
        theirs = trainer.module.forward_inference({"obs": torch.from_numpy(observations)})[
            "action_dist_inputs"
        ]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    distribution = trainer.module.get_inference_action_dist_cls().from_logits(theirs)
    done, _ = algorithm.policy(model, "mean").act(
        {}, {path: observations}, np.zeros(64), {}, np.ones(64, bool), np.zeros((64, 9), np.float32)
    )
    if action.kind == "discrete":
        np.testing.assert_array_equal(
            done[action_path], distribution.to_deterministic().sample().numpy()
        )
        return
    torch.manual_seed(0)
    # the toy's bounds are -1 and 1
    many = distribution.sample(sample_shape=(4000,)).clamp(-1, 1).numpy()
    policy = algorithm.policy(model, "sample")
    chance = np.random.default_rng(1).random((4000, policy.uniforms), np.float32)
    for row in (0, 7):
        same = {path: np.repeat(observations[row : row + 1], 4000, 0)}
        sampled, _ = policy.act({}, same, np.zeros(4000), {}, np.ones(4000, bool), chance)
        np.testing.assert_allclose(sampled[action_path].mean(0), many[:, row].mean(0), atol=0.04)
        np.testing.assert_allclose(sampled[action_path].std(0), many[:, row].std(0), atol=0.04)
    expected = (
        torch.tanh(distribution.loc) if name in ("sac", "cql") else distribution.loc.clamp(-1, 1)
    )
    np.testing.assert_allclose(done[action_path], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["sac", "cql", "iql"])
def test_the_critics_of_a_checkpoint_judge_as_the_librarys_do(name, trainers, folders):
    """The smaller of the two, in rewards before they were scaled, of actions in the task's
    units."""
    task = "toy-continuous"
    algorithm = (
        SMALL[name] if name != "iql" else RllibIql(**FAST, batch_size=128, return_range=50.0)
    )
    trainer = trainers(name, task, algorithm=algorithm)
    store = Dataset.open(folders[task]).store() if name in STUDYING else None
    judge = algorithm.judge(
        built(algorithm, task, trainer), store, lambda: add_prefix("foreign/", trainer.state())
    )
    path, seen, action_path, action = plain_leaves(find_task(task).signature(), name)
    observations, actions = torch.randn(16, seen.size), torch.rand(16, action.size) * 2 - 1
    batch = {"obs": observations, "actions": torch.from_numpy(to_unit(actions.numpy(), action))}
    module, values = trainer.module, []
    for encoder, head in ((module.qf_encoder, module.qf), (module.qf_twin_encoder, module.qf_twin)):
        values.append(head(encoder(batch)["encoder_out"])[:, 0])
    scale = 1.0 if name != "iql" else 50.0 / np.ptp(store.table.returns)
    torch.testing.assert_close(
        judge.values({path: observations}, {action_path: actions}),
        torch.minimum(*values) / scale,
    )
    assert judge.discount == FAST["gamma"]
    if name == "iql":
        with pytest.raises(UserError, match="what iql multiplies rewards by comes from its data"):
            algorithm.judge(built(algorithm, task, trainer), None, trainer.state)


@every
def test_a_saved_state_is_all_of_it(name, task, trainers):
    one, other = trainers(name, task, 150), trainers(name, task, seed=2)
    state = one.state()
    copies = {path: values.copy() for path, values in state.items()}
    other.restore(state)
    same_arrays(other.state(), state)
    turn = other.step(120)
    assert turn.learner_steps > 0 and (turn.env_steps > 0) == (name not in STUDYING)
    same_arrays(state, copies)
    assert (
        int(other.state()["count/learner_steps"])
        == int(state["count/learner_steps"]) + turn.learner_steps
    )
    if (
        name in STUDYING
    ):  # the learner is all there is, and its chance can be set: it goes on as it would have
        third = trainers(name, task)
        third.restore(state)
        for trainer in (one, third):
            torch.manual_seed(5)
            trainer.step(10)
        same_arrays(one.state(), third.state())


@pytest.mark.parametrize(
    ("name", "task", "steps"),
    [("ppo", "toy-vector", 1250), ("sac", "toy-continuous", 500), ("cql", "toy-continuous", 300)],
)
def test_it_learns_and_leaves_an_ordinary_run_folder(name, task, steps, folders, tmp_path):
    values = {f.removeprefix("algorithm."): v for f, v in vars(SMALL[name]).items()}
    flags = [
        w
        for k, v in values.items()
        for w in (
            f"--algorithm.{k.replace('_', '-')}",
            ",".join(map(str, v)) if isinstance(v, tuple) else str(v),
        )
    ]
    budget = "learner-steps" if name in STUDYING else "env-steps"
    where = str(folders[task]) if name in STUDYING else task
    cut = (
        f"--budget.{budget} {steps} --evaluations.every {steps // 2} --saves.every {steps // 2}"
        f" --saves.report-every {steps // 4}"
    )
    summary = trained(tmp_path / "run", f"{name} {where} --local {cut}", *flags)
    assert summary["return_mean"] > 7 and summary["mode"] == "mean"  # random: 3.3 and 4
    loaded = whole(tmp_path / "run", name, steps)
    assert (loaded.summary["dataset"] is not None) == (name in STUDYING)
    assert [report for report in reports(tmp_path / "run") if "evaluation/return_mean" in report]
    assert "ray" in sys.modules and not sys.modules["ray"].is_initialized()
    further = trained(
        tmp_path / "run",
        f"{name} {where} --local --resume"
        f" {cut.replace(f'{budget} {steps}', f'{budget} {steps + 200}')}",
        *flags,
    )
    assert further["learner_steps"] > summary["learner_steps"] and further["incarnation"] == 1
    assert further["env_steps"] >= (0 if name in STUDYING else steps + 200)


@pytest.mark.parametrize(("name", "task"), [("iql", "toy-continuous"), ("marwil", "toy-vector")])
def test_it_learns_from_random_play_what_pays(name, task, trainers):
    trainer = trainers(name, task, 200)
    assert score(SMALL[name], task, trainer) > 7


@pytest.mark.ray
def test_runners_may_be_processes_of_their_own(tmp_path):
    flags = (
        "--algorithm.train-batch 240 --algorithm.hidden 32,32 --algorithm.learning-rate 3e-3"
        " --algorithm.gamma 0.5 --budget.env-steps 960 --actors 2"
    )
    summary = trained(
        tmp_path / "run",
        f"ppo toy-vector {flags} --saves.every 480",
        "--algorithm.environments",
        "4",
    )
    assert 960 <= summary["env_steps"] < 1100 and summary["episodes"] > 60
    assert summary["return_mean"] > 6
    again = trained(
        tmp_path / "run",
        f"ppo toy-vector --local --resume {flags.replace('960', '1200')} --saves.every 480",
        "--algorithm.environments",
        "4",
    )
    assert again["env_steps"] >= 1200
    assert len(evaluated(tmp_path / "run")["returns"]) == 4


@pytest.mark.ray
def test_runners_that_do_not_answer_are_waited_for_as_long_as_patience_is(tmp_path):
    told = r"waited .* minutes for the 2 process\(es\) that play for ppo .*--machines.patience"
    with pytest.raises(RunFailed, match=told):
        trained(tmp_path / "run", "ppo toy-vector --actors 2 --machines.patience 1e-4")


# --- what RLlib is given


def test_the_inner_parts_of_rllib_are_where_they_are_looked_for(trainers):
    """What a new version of Ray may move without a word: `inner.py` and `modules.py` rest on it."""
    from ray.rllib.algorithms.cql.torch.default_cql_torch_rl_module import DefaultCQLTorchRLModule
    from ray.rllib.algorithms.iql.torch.default_iql_torch_rl_module import DefaultIQLTorchRLModule
    from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
    from ray.rllib.core.learner.learner import Learner

    assert "_no_metrics_reduce" in inspect.signature(Learner.update).parameters
    assert callable(SACCatalog._build_qf_encoder_continuous)
    for kind in (DefaultCQLTorchRLModule, DefaultIQLTorchRLModule):
        assert callable(kind._forward_train) and callable(kind._qf_forward_train_helper)
    for name, task, part in (
        ("ppo", "toy-vector", inner.kl_coefficient),
        ("sac", "toy-continuous", inner.temperature),
        ("cql", "toy-continuous", inner.temperature),
        ("marwil", "toy-vector", inner.squared_advantage),
    ):
        trainer = trainers(name, task, 250)
        assert part(trainer.learner).numel() == 1
        assert trainer.learner.TOTAL_LOSS_KEY and trainer.step(250).metrics["train/loss"]
        left = inner.take_metrics(trainer.learner).get("num_module_steps_trained", 0)
        assert left == 0 or np.isnan(left), "the metrics were taken already"


def test_environments_begin_again_at_the_next_step_and_scale_their_actions():
    from bigdm_ray.baselines.rllib.online import environments

    rows, env = (
        environments("toy-continuous", "ppo", 2, 5, None),
        find_task("toy-continuous").make(2, 5),
    )
    seen, _ = rows.reset(seed=3)
    np.testing.assert_array_equal(seen, env.reset(np.arange(2)).observations[""])
    ends, over = set(), np.zeros(2, bool)
    for _ in range(60):
        actions = np.full((2, 2), 0.3, np.float32)
        seen, rewards, terminated, truncated, _ = rows.step(actions)
        for k in range(2):
            one = np.array([k])
            step = env.reset(one) if over[k] else env.step(one, {"": actions[k : k + 1]})
            np.testing.assert_array_equal(seen[k], step.observations[""][0])
            assert (terminated[k], truncated[k]) == (step.terminated[0], step.truncated[0])
            assert rewards[k] == pytest.approx(step.rewards[0], abs=1e-5)
        over = terminated | truncated
        ends |= {(bool(terminated[k]), bool(truncated[k])) for k in range(2)}
    assert ends == {(False, False), (True, False), (False, True)}
    assert rows.single_action_space.low.tolist() == [-1, -1]
    rows.close()


def test_actions_between_minus_one_and_one_stand_for_the_bounds():
    from bigdm_ray.baselines.base import from_unit, spaces_of, to_unit
    from bigdm_ray.envs.signature import Leaf

    leaf = Leaf("tensor", (2,), "float32", (-4.0, 1.0), (4.0, 3.0))
    np.testing.assert_allclose(
        from_unit(np.array([[-1, -1], [0, 0], [1, 3]], np.float32), leaf), [[-4, 1], [0, 2], [4, 3]]
    )
    np.testing.assert_allclose(
        to_unit(np.array([[-4, 1], [0, 2], [9, 3]], np.float32), leaf), [[-1, -1], [0, 0], [1, 1]]
    )
    assert spaces_of(leaf, unit=True).high.tolist() == [1, 1] and spaces_of(leaf).high.tolist() == [
        4,
        3,
    ]


def test_sac_keeps_the_steps_that_were_played(trainers):
    trainer = trainers("sac", "toy-continuous")
    pieces, real = [], trainer.play_episodes

    def watched(*arguments, **more):
        answer = real(*arguments, **more)
        pieces.extend(answer[0])
        return answer

    trainer.play_episodes = watched
    trainer.step(90)
    kept, start = trainer._kept, 0
    assert kept.count == trainer.env_steps == sum(map(len, pieces)) >= 90
    for piece in pieces:
        rows = slice(start, start + len(piece))
        np.testing.assert_array_equal(kept.columns["obs"][rows], piece.get_observations()[:-1])
        np.testing.assert_array_equal(kept.columns["new_obs"][rows], piece.get_observations()[1:])
        np.testing.assert_array_equal(kept.columns["actions"][rows], piece.get_actions())
        ends = np.zeros(len(piece))
        if len(piece) and piece.is_terminated:
            ends[-1] = 1
        np.testing.assert_array_equal(kept.columns["terminateds"][rows], ends)
        start += len(piece)
    assert {piece.is_terminated for piece in pieces if piece.is_done} == {True, False}


class Piece:
    """As much of an episode of RLlib as RingBuffer reads; the numbers tell which step it is."""

    def __init__(self, first, count, ended=False):
        self._steps, self.is_terminated = (
            np.arange(first, first + count + 1, dtype=np.float32),
            ended,
        )

    def __len__(self):
        return len(self._steps) - 1

    def get_observations(self):
        return self._steps[:, None]

    def get_actions(self):
        return -self._steps[:-1, None]

    def get_rewards(self):
        return 10 * self._steps[:-1]


def test_a_ring_keeps_the_newest_steps_and_is_saved_in_their_order():
    from bigdm_ray.baselines.rllib.sac import RingBuffer

    ring = RingBuffer(10, 1, 1)
    for first, count in ((0, 4), (4, 3), (7, 6)):
        ring.add([Piece(first, count, ended=True)])
    assert ring.count == 10 and ring.position == 3
    assert sorted(ring.columns["obs"][:, 0]) == list(range(3, 13))
    batch = ring.draw(np.random.default_rng(0), 500, "cpu")
    steps = batch["obs"][:, 0]
    assert set(steps.tolist()) == set(range(3, 13))
    torch.testing.assert_close(batch["new_obs"][:, 0], steps + 1)
    torch.testing.assert_close(batch["rewards"], 10 * steps)
    torch.testing.assert_close(
        batch["terminateds"], torch.isin(steps, torch.tensor([3.0, 6.0, 12.0])).float()
    )
    np.testing.assert_array_equal(ring.state()["obs"][:, 0], np.arange(3, 13))
    for capacity, held, following in (
        (10, range(3, 13), range(5, 15)),
        (20, range(3, 13), range(3, 15)),
        (4, range(9, 13), range(11, 15)),
    ):
        other = RingBuffer(capacity, 1, 1)
        other.restore(ring.state())
        assert sorted(other.columns["obs"][: other.count, 0]) == list(held)
        other.add([Piece(13, 2)])
        assert sorted(other.columns["obs"][: other.count, 0]) == list(following)


def test_cqls_critics_judge_all_sampled_actions_in_the_state_of_the_data(trainers):
    """Where no state follows but the data's own, all is as RLlib's module has it, gradients too;
    else the values of the next actions alone differ."""
    from ray.rllib.algorithms.cql.torch.default_cql_torch_rl_module import DefaultCQLTorchRLModule

    trainer = trainers(
        "cql",
        "toy-continuous",
        steps=5,
        algorithm=RllibCql(hidden=(16,), batch_size=32, actions=4, clone_steps=0),
    )
    module, learner, batch = trainer.module, trainer.learner, trainer.batch()

    def taken(forward, batch):
        torch.manual_seed(2)
        out = forward(module, batch)
        config = learner.config.get_config_for_module(MODULE)
        loss = learner.compute_loss_for_module(
            module_id=MODULE, config=config, batch=batch, fwd_out=out
        )
        return out, float(loss.detach()), learner.compute_gradients({MODULE: loss})

    (mine, my_loss, my_gradients), (theirs, their_loss, their_gradients) = (
        taken(kind._forward_train, batch | {"new_obs": batch["obs"]})
        for kind in (type(module), DefaultCQLTorchRLModule)
    )
    assert (
        my_loss == pytest.approx(their_loss, rel=1e-5)
        and my_gradients.keys() == their_gradients.keys()
    )
    assert sum(float(gradient.abs().sum()) for gradient in my_gradients.values()) > 1
    for name, gradient in my_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-5)
    mine, theirs = (
        taken(kind._forward_train, batch)[0] for kind in (type(module), DefaultCQLTorchRLModule)
    )
    flat = {name: (mine[name].reshape(-1), values.reshape(-1)) for name, values in theirs.items()}
    assert {name for name, (a, b) in flat.items() if not torch.allclose(a, b, atol=1e-5)} == {
        "q_next_repeat",
        "q_twin_next_repeat",
    }
    for k in range(4):
        actions = mine["actions_next_repeat"][:, k]
        for critic, encoder, head in (
            ("q", module.qf_encoder, module.qf),
            ("q_twin", module.qf_twin_encoder, module.qf_twin),
        ):
            value = head(encoder({"obs": batch["obs"], "actions": actions})["encoder_out"])
            torch.testing.assert_close(mine[f"{critic}_next_repeat"][:, k], value)


def test_iqls_policy_is_the_papers_and_all_else_is_as_rllibs_module_has_it(trainers):
    from ray.rllib.algorithms.iql.torch.default_iql_torch_rl_module import DefaultIQLTorchRLModule

    trainer = trainers(
        "iql", "toy-continuous", steps=5, algorithm=RllibIql(hidden=(16, 16), batch_size=32)
    )
    module, learner, batch = trainer.module, trainer.learner, trainer.batch()
    batch["actions"] = batch[
        "actions"
    ].sign()  # at the bounds, where a squashed Gaussian has no density

    def taken(forward):
        out = forward(module, batch)
        loss = learner.compute_loss_for_module(
            module_id=MODULE,
            config=learner.config.get_config_for_module(MODULE),
            batch=batch,
            fwd_out=out,
        )
        policy_loss = float(learner._temp_losses[MODULE, "policy_loss"].detach())
        return out, policy_loss, learner.compute_gradients({MODULE: loss})

    (mine, policy_loss, gradients), (theirs, _, their_gradients) = (
        taken(kind._forward_train) for kind in (type(module), DefaultIQLTorchRLModule)
    )
    for name in (
        "qf_preds",
        "qf_twin_preds",
        "qf_target_preds",
        "vf_preds",
        "vf_preds_next",
        "action_dist_inputs",
    ):
        torch.testing.assert_close(mine[name], theirs[name])
    assert gradients.keys() == their_gradients.keys() and any(
        parameter is module.pi.log_std for parameter in gradients
    )
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name])
        assert float(gradient.abs().sum()) > 0
    mean, deviation = (
        torch.tanh(module.pi.layers(module.pi_encoder(batch)["encoder_out"])),
        module.pi.log_std.exp(),
    )
    weight = torch.exp(3.0 * (mine["qf_target_preds"] - mine["vf_preds"])).clamp(max=100)
    expected = -(
        weight * torch.distributions.Normal(mean, deviation).log_prob(batch["actions"]).sum(-1)
    ).mean()
    assert (
        policy_loss == pytest.approx(float(expected.detach()), rel=1e-5) and abs(policy_loss) < 100
    )


def test_deviations_of_iqls_policy_stay_in_bounds_as_its_authors_have_it(trainers):
    trainer = trainers("iql", "toy-continuous", algorithm=RllibIql(hidden=(16,), batch_size=32))
    with torch.no_grad():
        trainer.module.pi.log_std.copy_(torch.tensor([-9.0, 9.0]))
    batch = trainer.batch()
    assert trainer.module.forward_train(batch)["action_dist_inputs"][:, 2:].unique(
        dim=0
    ).tolist() == [[-5.0, 2.0]]
    model = built(trainer.algorithm, "toy-continuous", trainer)
    assert model(batch["obs"])[:, 2:].unique(dim=0).tolist() == [[-5.0, 2.0]]


def test_a_checkpoint_of_other_networks_is_refused_in_a_sentence(trainers):
    wide, narrow = (
        trainers("iql", "toy-continuous", algorithm=RllibIql(hidden=(width,))) for width in (16, 8)
    )
    with pytest.raises(
        UserError,
        match=(
            "this checkpoint holds other networks than iql trains now; begin a run in another"
            " folder"
        ),
    ):
        narrow.restore(wide.state())


def test_iql_brings_the_returns_of_the_data_into_the_range_that_is_asked_for(trainers):
    plain, scaled = (
        trainers(
            "iql", "toy-continuous", algorithm=RllibIql(hidden=(16,), batch_size=64, return_range=r)
        )
        for r in (0.0, 1000.0)
    )
    returns = plain.context.store.table.returns
    torch.testing.assert_close(
        scaled.batch()["rewards"],
        plain.batch()["rewards"] * float(1000 / (returns.max() - returns.min())),
    )
    presets = RllibIql.presets
    assert (
        presets["hopper"]["default"]["algorithm.return_range"] == 1000
        and "algorithm.return_range" not in presets["*"]["default"]
    )


@pytest.mark.parametrize("stops", [(12,), (3, 4, 5)])
def test_cql_clones_for_as_many_steps_as_it_is_told_however_it_is_called(stops, trainers):
    """RLlib counts the cloning steps in metrics that are forgotten when they are reported."""
    trainer = trainers(
        "cql",
        "toy-continuous",
        algorithm=RllibCql(hidden=(16,), batch_size=32, clone_steps=8, critic_learning_rate=1e-6),
    )
    for head in (trainer.module.qf, trainer.module.qf_twin):
        torch.nn.init.constant_(
            [m for m in head.modules() if isinstance(m, torch.nn.Linear)][-1].bias, 1e4
        )
    losses, real = [], trainer.learn_batch

    def watched(batch):
        real(batch)
        losses.append(float(trainer.learner.metrics.peek((MODULE, "policy_loss")).detach()))

    trainer.learn_batch = watched
    for steps in stops:
        trainer.step(steps)
    assert [loss < -5e3 for loss in losses] == [False] * 7 + [
        True
    ] * 5  # the actor's loss holds -Q once it no longer clones


def test_marwils_targets_are_those_of_rllibs_own_pipeline(trainers):
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    algorithm = RllibMarwil(hidden=(16,), gamma=0.9, batch_size=400)
    trainer = trainers("marwil", "toy-vector", algorithm=algorithm)
    store, learner, expected = trainer.context.store, trainer.learner, {}
    for position in range(len(store.table)):
        episode = store.episode(position)
        columns = {
            "observations": list(episode.observations[""]),
            "actions": list(episode.actions[""]),
            "rewards": episode.rewards.tolist(),
        }
        theirs = SingleAgentEpisode(
            **columns,
            terminated=episode.terminated,
            truncated=not episode.terminated,
            len_lookback_buffer=0,
        )
        batch = learner._learner_connector(
            rl_module=learner.module,
            batch={},
            episodes=[theirs],
            shared_data={},
            metrics=learner.metrics,
        )
        expected |= {
            (position, t): float(batch[MODULE]["value_targets"][t]) for t in range(episode.length)
        }
    drawn = store.draw(algorithm.view(), np.random.default_rng(0), 400)
    given = algorithm.targets(trainer._prepared, drawn.annotations, trainer.module)[
        "value_targets"
    ].numpy()
    keys = list(
        zip(
            drawn.annotations["episode"][:, 0].astype(int).tolist(),
            drawn.timesteps[:, 0].tolist(),
            strict=True,
        )
    )
    assert len({store.episode(position).terminated for position, _ in keys}) == 2
    np.testing.assert_allclose(given, [expected[key] for key in keys], atol=1e-4)


def test_marwil_divides_its_advantages_by_what_the_returns_are_of(trainers):
    trainer = trainers(
        "marwil", "toy-vector", algorithm=RllibMarwil(hidden=(16,), gamma=0.9, norm_rate=0.0)
    )
    store = trainer.context.store
    returns = store.draw(trainer.algorithm.view(), np.random.default_rng(0), 20_000).annotations[
        "discounted_return"
    ]
    norm = trainer.algorithm.memory(trainer.learner)["squared_advantage"]
    assert float(norm) == pytest.approx(float((returns**2).mean()), rel=0.03)
    trainer.step(3)
    assert float(trainer.algorithm.memory(trainer.learner)["squared_advantage"]) == pytest.approx(
        float(norm)
    )
    given = trainers("marwil", "toy-vector", algorithm=RllibMarwil(hidden=(16,), norm_start=7.0))
    assert float(given.algorithm.memory(given.learner)["squared_advantage"]) == 7.0


# --- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sac toy-vector", "sac acts with one vector of continuous numbers"),
        ("ppo toy-image", "one vector of numbers, but this task shows"),
        ("ppo toy-vector --learners 2", "on one learner, but --learners is 2"),
        (
            "ppo toy-vector --machines.precision bf16",
            "ppo is trained by RLlib, but --machines.precision is bf16; leave it out",
        ),
        (
            "ppo toy-vector --machines.compile true",
            "ppo is trained by RLlib, but --machines.compile is true; leave it out",
        ),
        ("cql toy-continuous", "cql learns from a dataset, but toy-continuous is a task to play"),
        ("ppo DATASET", "ppo learns from what it plays"),
        ("marwil DATASET --actors 2", "in one process, but --actors is 2"),
        ("iql DATASET", "iql acts with one vector of continuous numbers"),
        ("marwil DATASET --evaluations.mode plan", "marwil has no planner"),
    ],
)
def test_what_it_cannot_do_is_said_before_a_folder_is_made(text, told, folders, tmp_path):
    words = text.replace("DATASET", str(folders["toy-vector"])).split()
    with pytest.raises(UserError, match=told):
        run([*words, "--quiet", "--folder", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_without_the_library_a_run_is_scored_but_not_trained(folders, tmp_path, monkeypatch):
    trained(
        tmp_path / "run",
        f"marwil {folders['toy-vector']} --budget.learner-steps 20 --algorithm.hidden 8,8",
    )
    monkeypatch.setitem(sys.modules, "ray.rllib", None)
    assert len(evaluated(tmp_path / "run")["returns"]) == 4
    with pytest.raises(UserError, match=re.escape(install("baselines"))):
        run(["ppo", "toy-vector", "--local", "--quiet", "--folder", str(tmp_path / "other")])
