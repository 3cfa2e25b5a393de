"""`weights pack`, and the policies that the package ships: each returns what its card says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import bigdm_ray
from bigdm_ray import data, evaluate, plots, run, table, weights
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError
from bigdm_ray.training.zoo import zoo

FEW = {"hopper": 3}
"""Episodes a task; others are cheaper, and are played 10 times."""
MOST = 10 * 2**20
TINY = ["--local", "--quiet", "--hidden", "8", "--steps", "20", "--evaluations.final-episodes", "2"]


def test_a_packed_run_acts_and_tells_nothing_of_its_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "somewhere-private"
    place.mkdir()
    made, folder, out = place / "data", place / "run", tmp_path / "mine"
    drawn = ["record", "--random", "cartpole", "--episodes", "20", "--quiet"]
    assert door(data.main, [*drawn, "--folder", str(made)]) == 0
    assert door(run.main, ["bc", str(made), *TINY, "--folder", str(folder)]) == 0
    words = ["pack", str(folder), "--folder", str(out)]
    capsys.readouterr()
    assert door(weights.main, words) == 2
    assert "have no score to go with them; score them first" in capsys.readouterr().err
    assert not out.exists()
    (folder / "evaluation.json").write_text('{"version": [')
    assert door(weights.main, words) == 2, "so where it is damaged"
    assert "have no score to go with them" in capsys.readouterr().err
    assert door(evaluate.main, [str(folder), "--episodes", "3"]) == 0
    assert door(weights.main, [*words, "--description", "a try"]) == 0
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert files == ["card.json", "run.json", "summary.json", "weights/last.safetensors"]
    told = "".join((out / name).read_text() for name in files[:3])
    assert str(tmp_path) not in told and place.name not in told
    card = json.loads((out / "card.json").read_text())
    report = json.loads((folder / "evaluation.json").read_text())
    assert card["description"] == "a try" and card["trained"]["dataset"] == "data"
    assert card["score"]["return_mean"] == report["return_mean"]
    assert door(evaluate.main, [str(out), "--episodes", "3"]) == 0
    again = json.loads((out / "evaluation.json").read_text())
    assert again["returns"] == report["returns"]
    capsys.readouterr()
    assert door(weights.main, words) == 2
    assert f"--folder {out} is not empty" in capsys.readouterr().err


def test_the_zoo_is_small_and_each_policy_has_a_card() -> None:
    found = zoo()
    assert {"udrl-lunarlander", "udrl-cartpole", "dt-hopper"} <= found.keys()
    size = 0
    for name, folder in found.items():
        files = [file for file in folder.rglob("*") if file.is_file()]
        size += sum(file.stat().st_size for file in files)
        card = json.loads((folder / "card.json").read_text())
        assert card["description"] and card["score"]["return_episodes"] >= 50, name
        assert name == f"{card['algorithm']}-{card['task'].rpartition('/')[2]}"
        kept = json.loads((folder / "run.json").read_text())
        assert "/" not in str((kept.get("dataset") or {}).get("folder")), name
    assert size <= MOST
    sees = bigdm_ray.load("zoo:dt-hopper").run.algorithm
    told = json.loads((found["dt-hopper"] / "card.json").read_text())["description"]
    assert getattr(sees, "context", None) == 1 and "a context of one step" in told
    with pytest.raises(
        UserError, match="unknown policy 'zoo:udrl-cartpol'; did you mean 'udrl-cartpole'"
    ):
        bigdm_ray.load("zoo:udrl-cartpol")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo()))
def test_a_policy_of_the_zoo_returns_what_its_card_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within four standard errors: the seeds are fixed, but libraries of other versions may be
    installed."""
    monkeypatch.chdir(tmp_path)
    card = json.loads((zoo()[name] / "card.json").read_text())
    count = FEW.get(card["task"], 10)
    assert door(evaluate.main, [f"zoo:{name}", "--episodes", str(count), "--seed", "7"]) == 0
    report = json.loads((tmp_path / "runs" / f"zoo-{name}" / "evaluation.json").read_text())
    score = card["score"]
    apart = abs(report["return_mean"] - score["return_mean"])
    assert apart <= 4 * max(score["return_std"], 0.01 * score["return_mean"]) / math.sqrt(count)


def test_pictures_and_tables_take_policies_of_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--obedience", "--returns", "20,200", "--episodes", "2"]
    assert door(plots.main, ["zoo:udrl-cartpole", *asked]) == 0
    assert (tmp_path / "runs" / "zoo-udrl-cartpole" / "plots" / "obedience.png").is_file()
    assert door(table.main, ["zoo:udrl-cartpole", "zoo:udrl-lunarlander"]) == 0
    assert "zoo:udrl-lunarlander" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    asked = ["record", "zoo:udrl-cartpole", "--episodes", "1", "--folder", "data", "--quiet"]
    assert door(data.main, asked) == 0, "and recordings"
