"""How a Run is said: flags and their short names, values in Python, YAML files."""

import dataclasses
import json

import pytest

import bigdm_ray
import bigdm_ray.distributed  # how Ray is imported
from bigdm_ray.algorithms.base import algorithms
from bigdm_ray.baselines.base import ExternalAlgorithm
from bigdm_ray.errors import UserError
from bigdm_ray.settings import flag
from bigdm_ray.training.config import configure, parse, settings_of
from bigdm_ray.training.config.command_line import SHORT, STEPS


def words(text, algorithm="udrl", task="cartpole"):
    return configure(algorithm, task, text.split())


# --- in Python


def test_values_are_what_flags_are():
    typed = configure(
        "dt",
        "cartpole",
        algorithm={"learning_rate": 1e-3, "context": 7, "whole-episodes": True},
        budget={"env_steps": 1000, "minutes": None},
        machines={"lock_step": True},
        preset="none",
        seed=2,
    )
    flags = words(
        "--algorithm.learning-rate 0.001 --algorithm.context 7 --algorithm.whole-episodes true"
        " --budget.env-steps 1000 --budget.minutes none --machines.lock-step true --preset none"
        " --seed 2",
        "dt",
    )
    assert typed == flags and typed.typed == flags.typed
    assert configure("udrl", "cartpole", algorithm={"hidden": (8, 9)}).algorithm.hidden == (8, 9)


def test_values_stand_behind_flags():
    run = configure(
        "udrl", "cartpole", ["--seed", "3", "--lr", "0.5"], algorithm={"hidden": [4]}, seed=5
    )
    assert (run.seed, run.algorithm.learning_rate, run.algorithm.hidden) == (5, 0.5, (4,))


@pytest.mark.parametrize(
    "given, told",
    [
        ({"budget": {"env_step": 1}}, "'--budget.env-step'; did you mean '--budget.env-steps'"),
        ({"budget": {"env_steps": 0}}, "--budget.env-steps is 0, but at least 1 is expected"),
        ({"budget": {"env_steps": True}}, "--budget.env-steps is 'true', but an integer"),
        (
            {"algorithm": {"hidden": "wide"}},
            "--algorithm.hidden is 'wide', but an integer is expected",
        ),
        ({"seed": "x"}, "--seed is 'x', but an integer is expected"),
        ({"preset": "papper"}, "unknown preset 'papper'"),
    ],
)
def test_wrong_values_are_told_as_flags_are(given, told):
    with pytest.raises(UserError) as error:
        configure("udrl", "cartpole", **given)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"sed": 3}, "configure takes no 'sed'; did you mean 'seed'?"),
        ({"minutes": 3}, "did you mean budget={'minutes': ...}?"),
        ({"lr": 3}, "did you mean algorithm={'learning_rate': ...}?"),
        ({"learning_rte": 3}, "did you mean algorithm={'learning_rate': ...}?"),
        ({"banana": 3}, "configure takes no 'banana'; it takes tasks, algorithm, budget"),
        ({"budget": 3}, "budget is 3, but settings by their names are expected"),
    ],
)
def test_what_configure_does_not_take_is_one_sentence(given, told):
    with pytest.raises(UserError) as error:
        configure("udrl", "cartpole", **given)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "task, told",
    [
        (3, "the task is 3, but its name is expected"),
        ("gymnasium:CartPoll-v1", "did you mean 'CartPole-v1'"),
        (
            "gymnasium:LunarLander-v3?gravty=-3",
            "takes no argument 'gravty'; did you mean 'gravity'",
        ),
    ],
)
def test_a_task_that_cannot_be_had_is_refused_where_it_is_said(task, told):
    with pytest.raises(UserError) as error:
        configure("udrl", task)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"tasks": 3}, "tasks is 3, but a list of them is expected"),
        ({"tasks": "cartpole"}, "tasks is 'cartpole', but a list of them is expected"),
        ({"tasks": {"cartpole": 3}}, "tasks is {'cartpole': 3}, but a list of them is expected"),
        ({"flags": "--seed 3"}, "flags is '--seed 3', but a list of them is expected"),
        ({"flags": 3}, "flags is 3, but a list of them is expected"),
        ({"flags": ["--seed", 3]}, "flags has 3, but words as typed are expected"),
    ],
)
def test_what_is_no_list_of_tasks_or_flags_is_one_sentence(given, told):
    with pytest.raises(UserError) as error:
        configure("udrl", **given)
    assert str(error.value) == told


# --- short names and underscores


@pytest.mark.parametrize("kind", algorithms().values(), ids=lambda kind: kind.name)
def test_a_short_name_is_one_setting(kind):
    paths = {path for path, *_ in settings_of(kind)}
    assert len({*SHORT.values()}) == len(SHORT) and "steps" not in SHORT
    names = {path.rpartition(".")[2].replace("_", "-") for path in paths}
    for short, long in SHORT.items():
        if short in names:  # no other setting's own name
            owners = {path for path in paths if path.endswith(f".{short.replace('-', '_')}")}
            assert owners <= {long}, short
    assert {*STEPS.values()} <= paths
    if issubclass(kind, ExternalAlgorithm) or not kind.online:
        return
    for short, long in SHORT.items():
        if long in paths:
            value = "cpu" if short == "device" else "1"
            run, plain = (
                configure(kind.name, "cartpole", [f"--{name}={value}"])
                for name in (short, flag(long)[2:])
            )
            assert run == plain and run.typed == (long,)


def test_steps_are_counted_by_the_runs_clock(tmp_path):
    from making import dataset_of

    assert words("--steps 500") == words("--budget.env-steps 500")
    folder = str(dataset_of(tmp_path / "data", count=4).folder)
    assert words("--steps 500", "bc", folder).budget.learner_steps == 500


def test_underscores_are_as_good_as_hyphens():
    assert words("--algorithm.learning_rate 0.5 --saves.report_every=7 --batch_size 3") == words(
        "--algorithm.learning-rate 0.5 --saves.report-every 7 --batch-size 3"
    )
    with pytest.raises(
        UserError, match=r"'--algorithm.lerning_rate'; did you mean '--algorithm.lea"
    ):
        words("--algorithm.lerning_rate 0.5")


def test_the_help_shows_the_short_names(capsys):
    with pytest.raises(SystemExit):
        parse(["udrl", "cartpole", "--help"])
    printed = capsys.readouterr().out
    for name in ("--lr X", "--batch-size X", "--env-steps X", "--steps X", "--hidden X"):
        assert name in printed, name


# --- YAML


def yaml_of(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


TEXT = """
algorithm: {name: dt, learning_rate: 1e-3, whole-episodes: yes}
task: cartpole
preset: none
seed: 4
budget:
  env_steps: 5000
  minutes: null
machines: {lock_step: true}
"""


def test_a_yaml_file_says_a_whole_run(tmp_path):
    file = yaml_of(tmp_path, TEXT)
    flags = words(
        "--algorithm.learning-rate 0.001 --algorithm.whole-episodes true --budget.env-steps 5000 "
        "--budget.minutes none --machines.lock-step true --preset none --seed 4",
        "dt",
    )
    flags = dataclasses.replace(flags, typed=tuple(p for p in flags.typed if p != "seed"))
    assert configure(config=file) == flags
    assert set(flags.typed) <= set(configure(config=file).typed)
    assert parse(["--config", str(file), "--quiet"]).run == flags
    again = parse(["dt", "toy-vector", f"--config={file}", "--lr=0.25", "--seed", "9"]).run
    assert (again.task, again.seed, again.algorithm.learning_rate) == ("toy-vector", 9, 0.25)
    assert again.budget.env_steps == 5000


def test_a_yaml_file_may_hold_a_few_settings(tmp_path):
    file = yaml_of(tmp_path, "algorithm: {hidden: [8, 8]}\n")
    assert configure("udrl", "lunarlander", config=file) == words(
        "--hidden 8,8", task="lunarlander"
    ), "the preset stays"
    yaml_of(tmp_path, "algorithm: bc\nseed: 3\n")
    with pytest.raises(UserError, match="an ALGORITHM and a TASK are expected"):
        configure(config=file)
    with pytest.raises(UserError, match="is of algorithm 'bc', not of 'udrl'"):
        configure("udrl", "cartpole", config=file)


@pytest.mark.parametrize(
    "text, told",
    [
        ("budgets: {minutes: 5}", "has the unknown setting 'budgets'; did you mean 'budget'"),
        (
            "budget: {env_step: 5}",
            "unknown setting 'budget.env_step'; did you mean 'budget.env_ste",
        ),
        ("budget: {env_steps: many}", "mine.yaml --budget.env-steps is 'many', but an integer"),
        ("budget: {env_steps: 0}", "--budget.env-steps is 0, but at least 1 is expected"),
        ("budget: 5", "budget is 5, but a group of settings is expected"),
        ("task: {name: x}", "task is {'name': 'x'}, but one value is expected"),
        ("seed: 1.5", "--seed is 1.5, but an integer is expected"),
        ("preset: papper", "unknown preset 'papper'"),
        ("algorithm: udrl\nalgorithm: {hidden: 8}", "says 'algorithm' twice"),
        ("budget: {minutes: 1, minutes: 2}", "says 'minutes' twice"),
        ("- a\n- b", "holds no settings"),
        ("", "holds no settings"),
        ("a: [", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("? [1, 2]\n: 3", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("algorithm: {hidden: {a: 1}}", "--algorithm.hidden is 'a', but an integer is expected"),
    ],
)
def test_a_wrong_yaml_file_is_one_sentence(text, told, tmp_path):
    file = yaml_of(tmp_path, text)
    with pytest.raises(UserError) as error:
        configure("udrl", "cartpole", config=file)
    assert told in str(error.value), str(error.value)


def test_a_yaml_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none.yaml: No such file"):
        configure("udrl", "cartpole", config=tmp_path / "none.yaml")


# --- a listener stops a run

TINY = {
    "algorithm": {
        "hidden": 8,
        "batch_size": 16,
        "n_updates_per_iter": 2,
        "warm_up_episodes": 8,
        "episodes_per_iteration": 8,
    },
    "evaluations": {"every": 10_000, "episodes": 2, "final_episodes": 2},
    "saves": {"every": 5_000, "report_every": 100},
}


def test_a_report_that_answers_true_ends_the_run_and_a_resume_goes_on(tmp_path):
    run = configure("udrl", "toy-vector", budget={"env_steps": 1000}, **TINY)
    heard = []

    def enough(report):
        heard.append(report["time/env_steps"])
        return report["time/env_steps"] >= 400

    summary = bigdm_ray.train(run, tmp_path / "run", enough, local=True)
    assert summary["stopped"] and 400 <= summary["env_steps"] < 600
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped"] is True
    for weights in ("last", "best"):
        assert bigdm_ray.load(tmp_path / "run", weights).act() is not None
    again = bigdm_ray.train(run, tmp_path / "run", heard.append, local=True, resume=True)
    assert again["env_steps"] >= 1000 and not again["stopped"]


def test_a_run_on_a_dataset_is_stopped_too(tmp_path):
    from making import dataset_of

    folder = str(dataset_of(tmp_path / "data", count=10).folder)
    run = configure("bc", folder, ["--steps", "50", "--hidden", "8"], saves={"report_every": 10})
    run = dataclasses.replace(
        run, evaluations=dataclasses.replace(run.evaluations, final_episodes=2)
    )
    summary = bigdm_ray.train(run, tmp_path / "run", lambda report: True, local=True)
    assert summary["stopped"] and summary["learner_steps"] == 10


def test_an_answer_that_is_not_true_stops_nothing(tmp_path):
    run = configure("udrl", "toy-vector", budget={"env_steps": 300}, **TINY)
    summary = bigdm_ray.train(run, tmp_path / "run", lambda report: 1, local=True)
    assert summary["env_steps"] >= 300 and not summary["stopped"]


@pytest.mark.slow
@pytest.mark.ray
def test_an_asynchronous_run_is_stopped_too_and_a_resume_goes_on(tmp_path):
    run = configure("udrl", "toy-vector", budget={"env_steps": 100_000}, **TINY)
    summary = bigdm_ray.train(run, tmp_path / "run", lambda report: True)
    played = summary["env_steps"]
    assert summary["stopped"] and 100 <= played < 100_000
    run = dataclasses.replace(run, budget=dataclasses.replace(run.budget, env_steps=played + 500))
    again = bigdm_ray.train(run, tmp_path / "run", resume=True)
    assert again["env_steps"] >= played + 500 and not again["stopped"]
