"""Runs of several tasks: one network, a store each, shares by weight; a resume equals; one task's
failure ends that task alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from making import dataset_of

import bigdm_ray
from bigdm_ray import evaluate, plots
from bigdm_ray.algorithms.bc import Bc
from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.models.networks import MultiTaskNetwork
from bigdm_ray.replay import Store
from bigdm_ray.run import default_folder
from bigdm_ray.training.config import Run, TaskUse, parse, run_from_json
from bigdm_ray.training.evaluation import Score, merit
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.metrics import by_task
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import difference
from bigdm_ray.training.stores import store_places

TOYS = ("toy-vector", "toy-continuous", "toy-mixed")
PLAYED = [
    "--hidden",
    "16,16",
    "--batch-size",
    "16",
    "--algorithm.warm-up-episodes",
    "4",
    "--algorithm.replay-size",
    "12",
    "--algorithm.episodes-per-iteration",
    "4",
    "--algorithm.channels",
    "4",
    "--algorithm.n-updates-per-iter",
    "5",
    "--evaluations.episodes",
    "2",
    "--evaluations.final-episodes",
    "2",
    "--rollouts.environments",
    "2",
    "--evaluations.every",
    "300",
    "--saves.every",
    "200",
    "--saves.report-every",
    "100",
    "--env-steps",
    "700",
]
STUDIED = [
    "--hidden",
    "16,16",
    "--batch-size",
    "16",
    "--algorithm.channels",
    "4",
    "--evaluations.episodes",
    "2",
    "--evaluations.final-episodes",
    "2",
    "--learner-steps",
    "40",
    "--evaluations.every",
    "20",
    "--saves.every",
    "10",
]


class Killed(Exception):
    """What ends a run at a report."""


def playing(*flags, tasks=TOYS, weights="3,1,1"):
    return bigdm_ray.configure("udrl", flags=[*PLAYED, "--weights", weights, *flags], tasks=tasks)


def last(folder):
    return Weights.load(folder / "weights" / "last.safetensors")


def same_weights(one, two):
    assert one.version == two.version and one.command == two.command
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, two.arrays[name], err_msg=name)


def killed(name, at):
    """A listener that ends the run once its clock has come so far."""

    def listener(report):
        if report[name] >= at:
            raise Killed

    return listener


def reports(folder):
    """The lines of metrics.jsonl without what is measured in seconds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith(("_per_s", "wall_s", "_ms"))}
        for line in lines
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of each toy."""
    home = tmp_path_factory.mktemp("data")
    return [dataset_of(home / name, task=name).folder for name in TOYS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "played"
    return folder, train_local(playing(), folder)


# --- one network


def test_a_run_of_three_tasks_has_a_store_a_score_and_metrics_of_each(trained):
    folder, summary = trained
    assert list(summary["tasks"]) == list(TOYS) and summary["task"] == ", ".join(TOYS)
    best = summary["tasks"]["toy-vector"]["best_normalized_score"]
    assert summary["best_normalized_score"] == best, "it alone has reference returns"
    run = bigdm_ray.load(folder).run
    assert [use.weight for use in run.tasks] == [3, 1, 1] and run == playing()
    for task, place in store_places(run).items():
        store = Store(folder / "store" / place, run.algorithm.retention()).open()
        assert 0 < len(store.table) <= 12 and store.episode(0).task == task
    told = {name for line in reports(folder) for name in line}
    for task in TOYS:
        for name in ("play/return_mean", "evaluation/return_mean", "train/loss", "train/share"):
            assert f"{task}/{name}" in told
    assert {"train/loss", "evaluation/normalized_score"} <= told
    assert not {"play/return_mean", "evaluation/return_mean"} & told, "they mean nothing over tasks"


def test_tasks_are_drawn_by_their_weights_within_chance(trained):
    folder, summary = trained
    lines = [line for line in reports(folder) if "toy-vector/train/share" in line]
    shares = np.array([[line[f"{task}/train/share"] for task in TOYS] for line in lines])
    np.testing.assert_allclose(shares.sum(1), 1)
    steps = np.diff([0, *(line["time/learner_steps"] for line in lines)])
    mean, windows = (shares * steps[:, None]).sum(0) / steps.sum(), 16 * steps.sum()
    for share, wanted in zip(mean, (0.6, 0.2, 0.2), strict=True):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / windows)
    assert summary["learner_steps"] == steps.sum()


def test_a_killed_and_resumed_run_of_several_equals_the_uninterrupted_one(trained, tmp_path):
    whole, _ = trained
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        train_local(playing(), cut, listeners=[killed("time/env_steps", 520)])
    train_local(playing(), cut, resume=True)
    same_weights(last(whole), last(cut))
    assert reports(whole) == reports(cut)
    for place in store_places(playing()).values():
        tables = [Store(home / "store" / place).open().table for home in (whole, cut)]
        np.testing.assert_array_equal(tables[0].ids, tables[1].ids)
    with pytest.raises(UserError, match=r"another run .task is .*toy-vector with weight 3"):
        train_local(playing(weights="1,1,1"), cut, resume=True)


def test_a_task_whose_environments_fail_ends_its_rollouts_alone(tmp_path, capsys):
    run = playing(tasks=("toy-vector", "toy-nan", "toy-continuous"), weights="1,1,1")
    summary = train_local(run, tmp_path / "run")
    assert list(summary["tasks"]) == ["toy-vector", "toy-continuous"]
    assert "toy-nan is played no more" in capsys.readouterr().err
    assert any("an episode of toy-nan is discarded" in told for told in summary["problems"])
    state = json.loads(next((tmp_path / "run/checkpoints").glob("save*/state.json")).read_text())
    of_tasks = state["counters"]["tasks"]
    assert of_tasks["toy-nan"]["barren"] == 3 and of_tasks["toy-nan"]["episodes"] == 0
    assert of_tasks["toy-vector"]["episodes"] > 10 and of_tasks["toy-continuous"]["episodes"] > 10
    with pytest.raises(RunFailed, match="toy-nan brought no whole episode in 3 rounds"):
        train_local(bigdm_ray.configure("udrl", "toy-nan", PLAYED), tmp_path / "alone")


def test_a_network_learns_datasets_of_several_tasks_and_resumes(data, tmp_path):
    run = bigdm_ray.configure("bc", flags=STUDIED, tasks=[(data[0], 3), data[1], data[2]])
    summary = train_local(run, tmp_path / "whole")
    assert summary["learner_steps"] == 40 and list(summary["datasets"]) == list(TOYS)
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        train_local(run, cut, listeners=[killed("time/learner_steps", 25)])
    train_local(run, cut, resume=True)
    same_weights(last(tmp_path / "whole"), last(cut))
    assert reports(tmp_path / "whole") == reports(cut)


@pytest.mark.parametrize("kind", [Udrl, Bc])
def test_tasks_share_a_trunk_and_those_of_one_signature_a_part(kind):
    algorithm = kind(hidden=(16, 8), channels=(4,))
    signatures = {name: find_task(name).signature() for name in (*TOYS, "toy-memory")}
    assert signatures["toy-memory"] == signatures["toy-vector"]
    model = algorithm.build(signatures)
    assert isinstance(model, MultiTaskNetwork) and len(model.parts) == 3
    assert model.part("toy-memory") is model.part("toy-vector")
    state = model.state_dict()
    assert any(name.startswith("trunk.") for name in state)
    assert not any("trunk" in name for name in state if not name.startswith("trunk."))
    for signature in signatures.values():
        policy = algorithm.policy(model, "sample", signature)
        assert policy.uniforms == sum(leaf.size for leaf in signature.actions.values())
    told = {name: np.full(8, 2, np.float32) for name in kind.commands}
    seen = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    policy = algorithm.policy(model, "mean", signatures["toy-continuous"])
    acted, _ = policy.act(
        policy.start(8),
        {"": seen},
        np.zeros(8),
        told,
        np.ones(8, bool),
        np.zeros((8, 2), np.float32),
    )
    part = model.part("toy-continuous")
    parameters = part({"": torch.from_numpy(seen)}, *map(torch.from_numpy, told.values()))
    wanted = part.head.act(parameters.detach(), None)[""].numpy()
    np.testing.assert_array_equal(acted[""], wanted)
    with pytest.raises(UserError, match="but in no task of such observations and actions"):
        algorithm.policy(model, "sample", find_task("cartpole").signature())
    alone = algorithm.build({"toy-vector": signatures["toy-vector"]})
    assert not isinstance(alone, MultiTaskNetwork), "a network of one task is what it was"


# --- how it is said


def test_several_tasks_are_said_alike_in_words_in_python_and_in_a_file(data, tmp_path):
    file = tmp_path / "mixture.yaml"
    file.write_text(
        "algorithm: {name: bc, hidden: [16, 16]}\nseed: 2\ntasks:\n"
        f"  - {{source: {data[0]}, weight: 3}}\n"
        f"  - {{source: {data[1]}, task: toys/toy-continuous}}\n"
    )
    flags = ["--hidden", "16,16", "--seed", "2"]
    typed = parse(["bc", *map(str, data[:2]), "--weights", "3,1", *flags]).run
    assert typed == parse(["--config", str(file)]).run
    entries = [{"source": data[0], "weight": 3}, data[1]]
    assert typed == bigdm_ray.configure("bc", flags=flags, tasks=entries)
    assert typed == run_from_json(json.loads(json.dumps(typed.to_json())))
    assert typed.to_json()["schema_version"] == 2 and difference(typed, typed) is None
    assert typed.preset == bigdm_ray.configure("bc", str(data[0])).preset
    assert default_folder(typed).name == "bc-toy-vector+toy-continuous-2"


def test_one_task_is_said_and_kept_as_before(data):
    run = bigdm_ray.configure("udrl", "box2d/lunarlander")
    assert run.task == "lunarlander" and run.dataset is None
    assert run.tasks == (TaskUse("lunarlander"),)
    told = run.to_json()
    assert told["schema_version"] == 1 and told["task"] == "lunarlander" and "tasks" not in told
    assert run_from_json(told | {"task": "box2d/lunarlander"}) == run
    studied = bigdm_ray.configure("bc", str(data[0]))
    assert studied.to_json()["dataset"]["name"] == studied.dataset.name
    two = playing(tasks=TOYS[:2], weights="1,1")
    for read in (lambda: two.task, lambda: two.dataset, lambda: two.only):
        with pytest.raises(UserError, match="one task is expected here, but the run has several"):
            read()
    assert two.of("toys/toy-continuous").task == "toy-continuous"
    with pytest.raises(UserError, match="has no task 'toy-mixd'"):
        two.use("toy-mixd")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("udrl cartpole acrobot --weights 1,2,3", "one number for each task is expected, and"),
        ("udrl cartpole --weights 1,2", "one number for each task is expected, and there is 1"),
        ("udrl cartpole acrobot --weights 1,0", "the weight of task acrobot is 0, but a number"),
        ("udrl cartpole acrobot --weights 1,x", "--weights is 'x', but a number is expected"),
        ("udrl cartpole classic/cartpole", "the task cartpole is given twice"),
        ("udrl cartpole acrobt", "unknown task 'acrobt'"),
        ("udrl cartpole {0}", "the run would play cartpole and learn toy-vector from a dataset"),
        ("dt {0} {1}", "dt learns one task, but 2 are given: toy-vector, toy-continuous; give one"),
        ("udrl cartpole acrobot --from {0}", "--from goes on with one task, but 2 are given"),
        ("udrl cartpole acrobot --preset paper", "unknown preset 'paper' of udrl on several tasks"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(words, says, data):
    with pytest.raises(UserError) as told:
        parse(words.format(*data).split())
    assert says in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ("tasks: cartpole", "tasks is 'cartpole', but a list is expected"),
        ("tasks: [{weight: 3}]", "but a name or a mapping of task, source and weight is expected"),
        ("tasks: [{task: cartpole, wieght: 3}]", "unknown setting 'wieght'; did you mean 'weight'"),
        ("tasks: [{task: cartpole, weight: x}]", "weight is 'x', but a number is expected"),
        ("tasks: [{task: acrobot, source: x}]", "the source x of task acrobot is no dataset"),
        ("tasks: [acrobot]\ntask: cartpole", "has both task and tasks; leave one out"),
    ],
)
def test_a_file_of_tasks_that_is_wrong_is_one_sentence(tasks, says, tmp_path):
    file = tmp_path / "mixture.yaml"
    file.write_text(f"algorithm: udrl\n{tasks}\n")
    with pytest.raises(UserError) as told:
        parse(["--config", str(file)])
    assert says in str(told.value)


# --- what reads a run of several


def test_evaluate_scores_each_task_and_plots_draw_each(trained, capsys):
    folder, _ = trained
    assert evaluate.main([str(folder), "--episodes", "2", "--weights", "best"]) == 0
    report = json.loads((folder / "evaluation.json").read_text())
    assert list(report["tasks"]) == list(TOYS)
    only = report["tasks"]["toy-vector"]["normalized_score"]
    assert report["normalized_score"] == pytest.approx(only)
    assert set(report["left_out"]) == {*TOYS[1:]}
    assert "mean of normalised scores: " in capsys.readouterr().out
    with pytest.raises(UserError, match="--desired-return is for one task"):
        evaluate.main([str(folder), "--desired-return", "3"])
    assert plots.main([str(folder)]) == 0
    drawn = json.loads((folder / "plots" / "learning_curve.json").read_text())
    assert list(drawn["tasks"]) == list(TOYS)
    with pytest.raises(UserError, match="one task is expected here, but the run has several"):
        plots.main([str(folder), "--obedience"])


def test_a_run_of_several_acts_in_the_task_that_is_named(trained):
    folder, _ = trained
    loaded = bigdm_ray.load(folder)
    assert loaded.act(task="toys/toy-vector")(np.zeros(3, np.float32)) in range(3)
    command = loaded.of("toy-mixed").command
    assert command == {n.rpartition("/")[2]: v for n, v in loaded.command.items() if "mixed" in n}
    assert set(command) == {"desired_return", "desired_horizon"}
    with pytest.raises(UserError, match=r"acts in several tasks .*act\(task='toy-vector'\)"):
        loaded.act()
    with pytest.raises(UserError, match="has no task 'cartpole'"):
        loaded.act(task="cartpole")


def test_the_best_weights_have_the_best_mean_of_normalised_scores():
    known = {"toy-vector": (0.0, 100.0), "toy-memory": (20.0, 40.0), "toy-mixed": None}
    tasks = {
        name: dataclasses.replace(find_task(name), reference_returns=returns)
        for name, returns in known.items()
    }
    scores = dict.fromkeys(tasks, Score(np.array([20.0, 40.0]), np.array([1, 1]), {}))
    assert merit(scores, tasks) == pytest.approx((30 + 50) / 2), "not of toy-mixed"
    without = {name: find_task(name) for name in TOYS[1:]}
    assert merit(dict.fromkeys(without, scores["toy-mixed"]), without) == 30.0
    alone = {"toy-memory": tasks["toy-memory"]}
    assert merit({"toy-memory": scores["toy-memory"]}, alone) == 30.0
    empty = Score(np.zeros(0), np.zeros(0, int), {}, discarded=2, problems=["it fell"] * 2)
    assert merit(scores | {"toy-memory": empty}, tasks) == pytest.approx(30)
    assert merit({"toy-memory": empty}, alone) is None


def test_the_loss_of_a_task_is_the_mean_over_its_own_windows():
    means = {"train/loss": 2.0, "a/train/loss": 0.5, "a/train/share": 0.25, "b/train/share": 0.0}
    means |= {"b/train/loss": 0.0, "a/play/return_mean": 3.0}
    told = by_task(means)
    assert told["a/train/loss"] == 2.0 and "b/train/loss" not in told
    assert told["train/loss"] == 2.0 and told["a/play/return_mean"] == 3.0


def test_a_place_is_one_folder_whatever_the_task_is_called():
    uses = ("gymnasium:CartPole-v1?sutton_barto_reward=true", "toys/toy-vector", "a.b:C/D-v0")
    names = [*store_places(Run(Udrl(), tuple(map(TaskUse, uses)))).values()]
    assert len({*names}) == 3 and all(Path(name).name == name for name in names)
    assert store_places(Run(Udrl(), (TaskUse("cartpole"),))) == {"cartpole": ""}
