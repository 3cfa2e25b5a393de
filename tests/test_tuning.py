"""The sweep of tuning/udrl_lunarlander.py: tiny trials through Ray Tune, one of them a user's
mistake."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bigdm_ray.algorithms.udrl import Udrl
from bigdm_ray.distributed.cluster import cluster
from bigdm_ray.errors import UserError
from bigdm_ray.training.config import Run, configure

FILE = Path(__file__).parents[1] / "tuning" / "udrl_lunarlander.py"
TINY = """--preset none --device cpu --actors 2 --budget.env-steps 900
    --rollouts.environments 4 --algorithm.warm-up-episodes 10
    --algorithm.hidden 8,8 --algorithm.n-updates-per-iter 2 --algorithm.episodes-per-iteration 10
    --evaluations.every 300 --evaluations.episodes 3 --evaluations.final-episodes 4"""


@pytest.fixture(scope="module")
def tuning() -> Iterator[ModuleType]:
    """The file as a module that workers get by value: it is a script, so they cannot import it."""
    from ray import cloudpickle

    specification = importlib.util.spec_from_file_location("tuning_udrl_lunarlander", FILE)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


def test_the_paper_s_preset_lies_within_the_paper_s_grid(tuning: ModuleType) -> None:
    named = Udrl.presets["lunarlander"]["paper"]
    assert len(named) == len(tuning.GRID)
    for name, values in tuning.GRID.items():
        value = named[f"algorithm.{name}"]
        if name == "learning_rate":
            assert min(values) <= value <= max(values)
        else:
            assert (list(value) if name == "hidden" else value) in values


@pytest.fixture
def tiny() -> Run:
    return configure("udrl", "toy-vector", TINY.split())


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.ray
def test_a_sweep_leaves_runs_and_a_table_and_goes_on_where_it_was(
    tuning: ModuleType, tiny: Run, tmp_path: Path
):
    folder = tmp_path / "sweep"
    space = {"batch_size": tuning.tune.grid_search([16, 0, 24]), "learning_rate": [1e-3, 1e-2]}
    space["warm_up_episodes"] = tuning.tune.sample_from(
        lambda spec: 200 if spec.config.batch_size == 24 else 10
    )
    asked: dict[str, Any] = {"space": space, "samples": 1, "rungs": (10_000, 20_000), "verbose": 0}

    with cluster(tiny):
        rows = tuning.sweep(tiny, folder, **asked)
        again = tuning.sweep(tiny, folder, **asked)  # only the failed trial is tried once more

    *ended, failed = rows
    good, unheard = sorted(ended, key=lambda row: row["hyperparameters"]["batch_size"])
    assert ended == tuning.ranked(ended)
    assert (good["state"], good["error"]) == ("finished", None)
    assert (failed["state"], failed["error"]) == (
        "failed",
        "--algorithm.batch-size is 0, but at least 1 is expected",
    )
    assert (failed["score"], failed["env_steps"]) == (None, 0)
    home = Path(good["folder"])
    run, summary = (json.loads((home / name).read_text()) for name in ("run.json", "summary.json"))
    assert good["hyperparameters"].items() <= run["algorithm"].items()
    assert good["hyperparameters"]["batch_size"] == 16
    # its budget was spent on the warm-up: no evaluation, yet a final score
    assert unheard["state"] == "finished"
    assert not any(
        tuning.SCORE in line for line in lines(Path(unheard["folder"]) / "metrics.jsonl")
    )
    assert good["hyperparameters"]["learning_rate"] in space["learning_rate"]
    assert (good["score"], good["score_episodes"], good["env_steps"]) == (
        summary["return_mean"],
        4,
        summary["env_steps"],
    )
    assert good["env_steps"] >= 900

    told = [line for line in lines(home / "metrics.jsonl") if tuning.SCORE in line]
    heard = lines(folder / "tune" / home.name / "result.json")
    assert len(told) == len(heard) == 3
    # same names, same values
    assert all(mine.items() <= theirs.items() for mine, theirs in zip(told, heard, strict=True))

    assert again == rows
    assert json.loads((folder / "table.json").read_text())["trials"] == rows
    text = tuning.table(rows).splitlines()
    assert f"batch_size={rows[0]['hyperparameters']['batch_size']}" in text[1]
    assert failed["error"] in text[3]

    with pytest.raises(UserError, match="samples"):
        tuning.sweep(tiny, folder, **asked | {"samples": 2})


@pytest.mark.ray
def test_the_best_stand_first_and_the_failed_last(tuning: ModuleType):
    rows = [{"score": None}, {"score": -1.5}, {"score": 20.0}, {"score": 0.0}]
    assert [row["score"] for row in tuning.ranked(rows)] == [20.0, 0.0, -1.5, None]


@pytest.mark.ray  # it imports Ray Tune
def test_the_grid_holds_what_udrl_takes(tuning: ModuleType):
    defaults = Udrl()
    assert len(tuning.GRID) == 10  # rows of the table in appendix B
    for name, values in tuning.GRID.items():
        assert hasattr(defaults, name)
        for value in values:
            Run(
                Udrl(**{name: tuple(value) if isinstance(value, list) else value}),
                "lunarlander",
            )
    rates = tuning.GRID["learning_rate"]
    assert (len(rates), rates[0], rates[50], rates[-1]) == (101, 1e-4, 1e-3, 1e-2)


@pytest.mark.ray
def test_rungs_become_the_milestones_of_asha(tuning: ModuleType):
    def milestones(rungs: tuple[int, ...], env_steps: int) -> list[float]:
        return [
            milestone for milestone, _ in tuning.scheduler(rungs, env_steps)._brackets[0]._rungs
        ]

    assert milestones((500_000, 1_000_000, 2_000_000), 2_000_000) == [1_000_000, 500_000]
    assert milestones((500_000, 1_000_000, 2_000_000), 3_000_000) == [2_000_000, 1_000_000, 500_000]
    assert milestones((1_000, 3_000, 9_000), 10_000) == [9_000, 3_000, 1_000]
    assert milestones((7_000,), 10_000) == [7_000]
    assert not hasattr(tuning.scheduler((500,), 500), "_brackets")  # nothing to stop early
    for wrong in ((), (0, 5), (5, 5), (100, 200, 300), (200, 100)):
        with pytest.raises(UserError, match="--rungs"):
            tuning.scheduler(wrong, 10_000)


@pytest.mark.ray
def test_the_door_refuses_what_it_cannot_do(tuning: ModuleType, tmp_path: Path):
    (tmp_path / "something").write_text("else")
    for arguments, word in (
        (["--rungs", "5,x"], "--rungs"),
        (["--samples", "0"], "--samples"),
        (["--samples", "x"], "--samples: invalid int value: 'x'"),
        (["--sampels", "3"], "unknown argument '--sampels'; did you mean '--samples'"),
        (["--task", "lunarlandre"], "lunarlander"),
        (["--folder", str(tmp_path)], "holds no sweep"),
    ):
        with pytest.raises(UserError, match=word):
            tuning.main(arguments)


def test_a_sweep_that_is_stopped_says_so_and_has_the_code_of_its_signal(
    tuning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Tune ends at Ctrl-C by itself, with trials that have not ended; other signals come
    through."""

    def cut_short(*_: object, **__: object) -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    for stopped in (cut_short, lambda *_, **__: []):
        monkeypatch.setattr(tuning, "sweep", stopped)
        assert tuning.main(["--folder", str(tmp_path), "--samples", "2"]) == 130
        assert (
            capsys.readouterr().err == "stopped before its end; the same command goes on with it\n"
        )
