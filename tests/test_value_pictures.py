"""Pictures of what values promise (`--extrapolation`) and what steps count (`--weighting`)."""

import json
import types

import numpy as np
import pytest
import torch
from making import dataset_of, small, stored

from bigdm_ray.algorithms.bail import Bail
from bigdm_ray.algorithms.bc import Bc
from bigdm_ray.algorithms.dt.critic import predict_returns
from bigdm_ray.algorithms.rwr import Rwr
from bigdm_ray.baselines.bcq import Bcq
from bigdm_ray.baselines.bear import Bear
from bigdm_ray.baselines.brac import Brac
from bigdm_ray.baselines.dcql import Dcql
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.pictures.base import SweepFlags, returns_asked
from bigdm_ray.pictures.extrapolation import UNKNOWN, compare, known_returns
from bigdm_ray.pictures.obedience import draw_obedience
from bigdm_ray.pictures.weighting import WeightingFlags, draw_weights, weigh
from bigdm_ray.plots import main
from bigdm_ray.replay import Episode, EpisodeId
from bigdm_ray.training.config import configure
from bigdm_ray.training.evaluation import constant, play
from bigdm_ray.training.loaded import load
from bigdm_ray.training.loop import train_local

TASK = "toy-continuous"
SIGNATURE = find_task(TASK).signature()
FEW = "--evaluations.every 1000 --evaluations.episodes 1 --evaluations.final-episodes 1"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A dataset of the toy, `data`, and runs on it: `bc`, `half`, `rwr`, `brac`, `critic`,
    `told`."""
    home = tmp_path_factory.mktemp("values")
    dataset_of(home / "data", TASK, 30)
    sizes = "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 3"
    for name, flags in {
        "bc": "bc",
        "half": "bc --algorithm.best-fraction 0.5",
        "rwr": "rwr",
        "brac": "brac --algorithm.hidden 8,8 --algorithm.clone-steps 1 --algorithm.warm-start 1",
        "critic": f"dt --algorithm.critic true {sizes}",
        "told": f"dt {sizes}",
    }.items():
        algorithm, *rest = [*flags.split(), "--budget.learner-steps", "3", *FEW.split()]
        train_local(configure(algorithm, str(home / "data"), rest), home / name)
    return home


def one_error(capsys, *words):
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said
    for word in words:
        assert word in said.err


# --- what a method thinks of actions


@pytest.mark.parametrize("kind", [Bcq, Bear, Brac])
def test_the_smaller_critic_judges_an_action_between_its_bounds(kind, tmp_path):
    algorithm = kind(hidden=(8, 8))
    model, episode = algorithm.build({TASK: SIGNATURE}), stored(tmp_path, TASK, 1).episode(0)
    seen, acted = (
        {path: torch.from_numpy(np.array(values[:4])) for path, values in leaves.items()}
        for leaves in (episode.observations, episode.actions)
    )
    judge = algorithm.judge(model, None, dict)
    rows = torch.cat([model.spaces.see(seen), model.spaces.pack(acted)], -1)
    both = model.critics.online(rows)[..., 0]
    torch.testing.assert_close(judge.values(seen, acted), torch.minimum(both[0], both[1]))
    assert judge.discount == 0.99 and not torch.equal(both[0], both[1])


def test_a_discrete_critic_judges_the_action_that_was_taken():
    algorithm = Dcql(hidden=(8,), discount=0.5)
    model = algorithm.build({"toy-vector": find_task("toy-vector").signature()})
    judge = algorithm.judge(model, None, dict)
    seen = {"": torch.randn(6, *find_task("toy-vector").signature().observations[""].shape)}
    taken = torch.tensor([0, 1, 2, 1, 0, 2], dtype=torch.int32)
    values = judge.values(seen, {model.path: taken})
    of_all = model.online(seen).detach()
    assert values.tolist() == [float(of_all[i, a]) for i, a in enumerate(taken)]
    assert judge.discount == 0.5


def test_what_clones_judges_nothing(home, capsys):
    assert load(home / "bc").run.algorithm.judge(load(home / "bc").model, None, dict) is None
    assert door(main, [str(home / "bc"), "--extrapolation"]) == 2
    one_error(capsys, "neither values actions nor is told a return", "bcq")


# --- extrapolation


def of_rewards(rewards, terminated):
    length = len(rewards)
    return Episode(
        {"": np.zeros((length + 1, 1), np.float32)},
        {"": np.zeros(length, np.int32)},
        np.array(rewards, np.float32),
        terminated,
        EpisodeId(0, 0, 0),
        task="made-up",
        command={},
        version=(0, 0),
        source="made-up",
        seed=0,
    )


def test_behind_a_time_limit_a_return_is_known_of_the_first_steps_alone():
    rewards = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    returns, known = known_returns(of_rewards(rewards, True), 0.5)
    slow = [sum(r * 0.5**k for k, r in enumerate(rewards[t:])) for t in range(8)]
    np.testing.assert_allclose(returns, slow)
    assert known.all()
    assert known_returns(of_rewards(rewards, False), 1.0)[1].all(), (
        "without a discount limits count"
    )
    _, known = known_returns(of_rewards(rewards, False), 0.5)
    assert known.tolist() == [0.5 ** (8 - t) <= UNKNOWN for t in range(8)]
    assert known_returns(of_rewards(rewards, False), 0.99)[1].tolist() == [True] + 7 * [False]


def test_what_a_critic_promises_stands_against_what_followed(home):
    """A critic that promises 7 of everything; the episodes are played again beside."""
    loaded = load(home / "brac")
    critics = loaded.model.critics.online
    for parameter in critics.parameters():
        parameter.data.zero_()
    critics.biases[-1].data.copy_(torch.tensor([7.0, 9.0])[:, None, None])
    here = compare(loaded, SweepFlags(episodes=4))
    task = find_task(TASK)
    played = play(loaded.policy("mean"), task, {}, 4, loaded.run.seed, "extrapolation", 0).episodes
    known = [known_returns(episode, 0.99) for episode in played]
    obtained = np.concatenate([returns[which] for returns, which in known])
    assert here["promise"] == "Q(s, a)" and here["discount"] == 0.99
    assert here["own"]["steps"] == len(obtained)
    np.testing.assert_allclose(here["own"]["promised_mean"], 7)
    np.testing.assert_allclose(here["own"]["obtained_mean"], obtained.mean())
    np.testing.assert_allclose(here["own"]["promised_too_much"], (obtained < 7).mean())
    np.testing.assert_allclose(np.sort(here["own"]["obtained"]), np.sort(obtained))
    store = Dataset.open(home / "data").store()
    episodes = [store.episode(i) for i in range(len(store.table))]
    of_data = [returns[which] for returns, which in (known_returns(e, 0.99) for e in episodes)]
    np.testing.assert_allclose(here["data"]["obtained_mean"], np.concatenate(of_data).mean())
    np.testing.assert_allclose(here["own_actions_in_data"], 7)


def test_a_transformer_promises_what_it_predicts_of_the_steps_that_it_looks_back_on(home):
    loaded = load(home / "critic")
    model, algorithm = loaded.model, loaded.run.algorithm
    episode = Dataset.open(home / "data").store().episode(3)
    slow = []
    with torch.no_grad():
        for t in range(episode.length):
            last = slice(max(0, t - 2), t + 1)
            seen, acted = (
                {p: torch.from_numpy(np.array(v[last]))[None] for p, v in leaves.items()}
                for leaves in (episode.observations, episode.actions)
            )
            times = torch.arange(last.start, last.stop)[None]
            embedding = model.embed(seen, acted, torch.full(times.shape, 3.0), times)[0, -1]
            slow.append(float(model.criticise(embedding)) / algorithm.return_scale)
    np.testing.assert_allclose(
        predict_returns(model, algorithm, episode), slow, rtol=1e-4, atol=1e-5
    )
    here = compare(loaded, SweepFlags(episodes=2))
    assert here["promise"] == "predicted return" and here["discount"] == 1
    assert here["data"]["steps"] == Dataset.open(home / "data").steps


def test_without_a_critic_a_promise_is_what_is_still_asked_for(home):
    loaded = load(home / "told")
    here = compare(loaded, SweepFlags(episodes=2, returns=(5.0,)))
    assert here["promise"] == "asked return" and here["data"] is None
    task, command = find_task(TASK), here["command"]
    episodes = play(
        loaded.policy(here["mode"]), task, constant(command, 2), 2, 1, "extrapolation", 0
    ).episodes
    told = [returns_asked(loaded.policy("sample"), command, e.rewards, None) for e in episodes]
    for mine, episode in zip(told, episodes, strict=True):
        left = 5 - np.append(0, np.cumsum(episode.rewards.astype(np.float64))[:-1])
        np.testing.assert_allclose(mine, left, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sort(here["own"]["promised"]), np.sort(np.concatenate(told)))
    with pytest.raises(UserError, match="asked for one return, but --returns has 2"):
        compare(loaded, SweepFlags(returns=(0.0, 1.0)))


def test_the_extrapolation_picture_has_a_panel_for_each_run(home, tmp_path, capsys):
    runs = [str(home / name) for name in ("brac", "critic", "told")]
    flags = ["--extrapolation", "--episodes", "2", "--out", str(tmp_path / "e.png")]
    assert main([*runs, *flags]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "e.json").read_text())["comparisons"]
    assert [here["algorithm"] for here in found] == ["brac", "dt", "dt"]
    assert said.count("own actions, played") == 3 and said.count("own actions, in data") == 1
    assert found[0]["label"] == "brac, brac" and "brac, brac: Q(s, a)" in said


# --- weights


def test_weights_are_what_each_method_draws_and_counts(tmp_path):
    """Cloning: all; its filtered form: the best episodes; RWR: exp of the returns; BAIL: a
    share."""
    store = stored(tmp_path, TASK, 30)
    table, signatures = store.table, {TASK: SIGNATURE}

    def of(algorithm, step=0):
        torch.manual_seed(0)
        return algorithm.weights(algorithm.build(signatures), store, step)

    assert (of(small(Bc)) == 1).all() and len(of(small(Bc))) == table.lengths.sum()
    best = of(small(Bc, best_fraction=0.3))
    assert 0 < best.sum() <= 0.3 * len(best) and set(best.tolist()) == {0.0, 1.0}
    kept = np.add.reduceat(best, table.ends - table.lengths) > 0
    assert table.returns[kept].min() >= table.returns[~kept].max()
    rewards = [store.episode(i).rewards.astype(np.float64) for i in range(len(table))]
    returns = np.concatenate(
        [[sum(r[t:] * 0.5 ** np.arange(len(r) - t)) for t in range(len(r))] for r in rewards]
    )
    scaled = (returns - returns.mean()) / returns.std() / 2.0
    weights = of(small(Rwr, discount=0.5, temperature=2.0))
    np.testing.assert_allclose(weights, np.exp(scaled), rtol=1e-3)
    for progressive in (False, True):
        chosen = of(small(Bail, selected=0.25, progressive=progressive), step=100)
        assert abs(chosen.mean() - 0.25) < 0.02 and set(chosen.tolist()) == {0.0, 1.0}
    with pytest.raises(UserError, match="selected nothing after 99 learner steps"):
        of(small(Bail), step=99)


def test_the_weighting_picture_holds_runs_on_one_dataset_side_by_side(home, tmp_path, capsys):
    runs = [str(home / name) for name in ("bc", "half", "rwr")]
    flags = ["--weighting", "--element", "1", "--out", str(tmp_path / "w.png")]
    assert main([*runs, *flags]) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")
    plain, half, rwr = json.loads((tmp_path / "w.json").read_text())["weighings"]
    assert plain["counted"] == plain["effective"] == plain["largest"] == 1
    assert plain["return_weighted"] == pytest.approx(plain["return_mean"])
    assert half["counted"] == pytest.approx(half["effective"]) and 0.3 < half["counted"] <= 0.5
    assert half["largest"] == pytest.approx(1 / half["counted"])
    assert rwr["counted"] == 1 and 0 < rwr["effective"] < 1
    assert rwr["weights"] == sorted(rwr["weights"]) and rwr["returns"] == sorted(rwr["returns"])
    for here in (plain, half, rwr):
        np.testing.assert_allclose(np.mean(here["drawn"]["weight"]), 1, rtol=1e-5)  # all are drawn
        assert here["drawn"]["state"] == plain["drawn"]["state"], "the same steps"
        assert f"{here['counted']:.1%}" in said
    store = Dataset.open(home / "data").store()
    seen = [store.episode(i).observations[""][:-1, 1] for i in range(len(store.table))]
    np.testing.assert_allclose(np.sort(plain["drawn"]["state"]), np.sort(np.concatenate(seen)))
    panels = [axes for axes in draw_weights([plain, half, rwr]).axes if axes.get_title()]
    assert len(panels) == 4 and len(panels[-1].lines) == 3


def test_only_runs_that_weigh_steps_of_one_dataset_are_drawn(home, tmp_path, capsys):
    assert door(main, [str(home / "told"), "--weighting"]) == 2
    one_error(capsys, "clones no steps by weights", "a run of bc, rwr, awr or bail")
    with pytest.raises(UserError, match="--element is 99, but the state of toy-continuous has"):
        weigh(load(home / "bc"), WeightingFlags(element=99))
    dataset_of(tmp_path / "data", TASK, 5)
    flags = ["--budget.learner-steps", "1", *FEW.split()]
    train_local(configure("bc", str(tmp_path / "data"), flags), tmp_path / "other")
    assert door(main, [str(home / "bc"), str(tmp_path / "other"), "--weighting"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "give runs on one dataset" in said
    gone = load(tmp_path / "other")
    card = tmp_path / "data" / "dataset.json"
    card.rename(card.with_suffix(".away"))
    with pytest.raises(UserError, match="does not lie at"):
        weigh(gone, WeightingFlags())


def test_a_run_that_plays_has_no_dataset_to_weigh(home):
    loaded = load(home / "bc")
    run = types.SimpleNamespace(
        algorithm=loaded.run.algorithm, dataset=None, task=TASK, seed=loaded.run.seed
    )
    playing = types.SimpleNamespace(**{**vars(loaded), "run": run})
    with pytest.raises(UserError, match="nor runs that play do, so there are no steps to weigh"):
        weigh(playing, WeightingFlags())


# --- obedience


def test_runs_of_one_task_obey_on_one_scale():
    def of(task, obtained):
        points = [
            {"desired_return": d, "return_mean": r, "return_std": 0.0, "return_episodes": 1}
            for d, r in zip((0.0, 50.0, 100.0), obtained, strict=True)
        ]
        return {"algorithm": "dt", "task": task, "run_seed": 1, "points": points}

    sweeps = [of("a", (0, 50, 100)), of("b", (0, 5, 9)), of("a", (-200, 50, 700))]
    one, other, same = (axes.get_ylim() for axes in draw_obedience(sweeps).axes)
    assert one == same and one[0] < -200 and one[1] > 700 and other[1] < 200
