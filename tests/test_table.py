"""Several runs in one table, and what else hears of a run: trackers and notebooks."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

import bigdm_ray
from bigdm_ray import evaluate, plots, table
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError
from bigdm_ray.run import main

TINY = "--local --quiet --budget.env-steps 200 --algorithm.hidden 8 --algorithm.batch-size 16"
TINY += " --algorithm.n-updates-per-iter 2 --algorithm.warm-up-episodes 10"
TINY += " --algorithm.episodes-per-iteration 10 --evaluations.episodes 2"
TINY += " --evaluations.final-episodes 2 --evaluations.every 50"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("runs") / f"run-{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        given = ["--seed", str(seed), "--folder", str(folder)]
        assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 0
    return folders


def test_runs_are_compared_without_playing(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "run.json").write_text("{}")
    assert door(table.main, [*map(str, runs), str(tmp_path / "open")]) == 0
    told = capsys.readouterr()
    assert "has not ended yet" in told.err
    head, rule, *rows = told.out.splitlines()
    assert head.startswith("| run | algorithm | task | seed |") and set(rule) <= set("|-: ")
    summary = json.loads((runs[1] / "summary.json").read_text())
    cells = [cell.strip() for cell in rows[1].strip("|").split("|")]
    assert cells[:4] == [str(runs[1]), "udrl", "toy-vector", "2"]
    assert cells[5] == f"{summary['command']['desired_return']:,.1f}"
    assert cells[6] == f"{summary['return_mean']:,.1f}" and len(rows) == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert door(table.main, [*map(str, runs)]) == 0
    aligned = capsys.readouterr().out.splitlines()
    assert len(aligned) == 3 and "|" not in aligned[0] and aligned[0].split()[:2] == HEAD
    assert door(table.main, [str(tmp_path / "open")]) == 2


HEAD = ["run", "algorithm"]


def test_several_runs_are_scored_into_one_table(runs, capsys):
    assert door(evaluate.main, [*map(str, runs), "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("evaluation: ") == 2
    for folder in runs:
        report = json.loads((folder / "evaluation.json").read_text())
        row = next(line for line in out.splitlines() if line.startswith(f"| {folder}"))
        assert f"| {report['return_mean']:,.1f} |" in row


def test_pictures_are_figures_in_a_notebook(runs, capsys):
    figure = plots.curves(*runs)
    (axes,) = figure.axes
    assert axes.get_title() == "toy-vector" and len(axes.lines) >= 1
    assert capsys.readouterr().out == "" and not (runs[0] / "plots").exists()
    shown = plots.obedience(runs[0], returns=(1.0, 2.0), episodes=2)
    assert "desired return" in shown.axes[0].get_xlabel()
    with pytest.raises(UserError, match="no 'epsiodes'; did you mean 'episodes'"):
        plots.obedience(runs[0], epsiodes=2)
    with pytest.raises(UserError, match="unknown picture 'obediense'; did you mean 'obedience'"):
        plots.figure("obediense", runs[0])


def test_a_program_is_silent_unless_it_asks_for_a_bar_and_a_notebook_shows_one(
    tmp_path, monkeypatch, capsys
):
    made = bigdm_ray.configure("udrl", "toy-vector", TINY.split()[2:])
    bigdm_ray.train(made, tmp_path / "a", local=True)
    assert capsys.readouterr().err == ""
    bigdm_ray.train(made, tmp_path / "b", local=True, quiet=False)
    assert "evaluation at" in capsys.readouterr().err
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    drawn = []
    tools = types.SimpleNamespace(select_figure_formats=lambda *given: drawn.append(given))
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.core.pylabtools", tools)
    bigdm_ray.train(made, tmp_path / "c", local=True)
    assert "\r" in (shown := capsys.readouterr().err) and "evaluation at" in shown
    bigdm_ray.train(made, tmp_path / "d", local=True, quiet=True)
    assert capsys.readouterr().err == ""
    plots.curves(tmp_path / "c")
    assert drawn == [(shell, {"png"})]


def test_trackers_hear_the_reports(tmp_path, monkeypatch, capsys):
    """A module in their place notes the calls; where there is none, one sentence says so."""
    calls = []

    def noted(name):
        return lambda *given, **named: calls.append((name, given, named))

    wandb, mlflow = types.ModuleType("wandb"), types.ModuleType("mlflow")
    wandb.init = lambda **named: (
        calls.append(("init", (), named))
        or types.SimpleNamespace(log=noted("log"), finish=noted("finish"))
    )
    for name in ("set_tracking_uri", "set_experiment", "start_run", "log_params"):
        setattr(mlflow, name, noted(name))
    mlflow.log_metrics, mlflow.end_run = noted("log_metrics"), noted("end_run")
    wandb.Error, wandb.Settings = RuntimeError, dict
    mlflow.MlflowException = type("MlflowException", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    given = ["--saves.wandb", "mine", "--saves.mlflow", "file:x", "--folder", str(tmp_path / "a")]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 0
    named = [name for name, *_ in calls]
    assert named[0] == "init" and calls[0][2]["project"] == "mine"
    assert calls[0][2]["config"]["algorithm"]["name"] == "udrl"
    assert {"log", "finish", "set_tracking_uri", "log_metrics", "end_run"} <= {*named}
    logged = [given[0] for name, given, _ in calls if name == "log"]
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert len(logged) == len(lines) and any("evaluation/return_mean" in one for one in logged)
    steps = [named["step"] for name, _, named in calls if name == "log_metrics"]
    assert steps == sorted(steps) and np.isfinite([*logged[0].values()]).all()
    capsys.readouterr()

    def refused(*given, **named):
        raise mlflow.MlflowException("no such\nstore")

    mlflow.log_metrics = refused
    given = ["--saves.mlflow", "file:x", "--folder", str(tmp_path / "c")]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 0
    told = capsys.readouterr().err
    assert told.count("note: --saves.mlflow is told nothing more (no such store)") == 1
    mlflow.set_experiment = refused
    given = ["--saves.mlflow", "file:x", "--folder", str(tmp_path / "d")]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 2
    error = capsys.readouterr().err
    assert "--saves.mlflow 'file:x' cannot be used: no such store; " in error
    assert error.count("\n") == 1 and not (tmp_path / "d").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = ["--saves.wandb", "mine", "--folder", str(tmp_path / "b")]
    assert door(main, ["udrl", "toy-vector", *TINY.split(), *given]) == 2
    error = capsys.readouterr().err
    assert "--saves.wandb needs the package 'wandb'" in error and error.count("\n") == 1
    assert not (tmp_path / "b").exists()
