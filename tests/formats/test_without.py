"""Datasets without an environment: what the file tells, else what its arrays look like; they train
without scores."""

import json

import numpy as np
import pytest
from making import played
from sources import d4rl_file, dataset, edited, episode_parquet, imported, minari_folder, rows_of

from bigdm_ray import evaluate, plots, run
from bigdm_ray.cards import card
from bigdm_ray.data import main as data
from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.exporting import export_dataset
from bigdm_ray.training.loaded import load

QUICK = [
    "--local",
    "--quiet",
    "--saves.every",
    "4",
    "--saves.report-every",
    "2",
    "--budget.learner-steps",
    "8",
]


def test_a_file_that_tells_spaces_and_no_environment_is_taken_with_its_spaces(tmp_path):
    folder = minari_folder(tmp_path / "minari", "toy-mixed", played("toy-mixed", 3).episodes)
    with pytest.raises(UserError, match="--task none: it then trains without scores"):
        imported(folder, tmp_path / "set")
    made = imported(folder, tmp_path / "set", task="none")
    assert (made.task, made.signature) == ("none", find_task("toy-mixed").signature())
    assert made.sha256 == imported(folder, tmp_path / "same", task="toy-mixed").sha256
    for to in ("minari", "parquet", "steps"):
        export_dataset(made, to, tmp_path / f"out-{to}")
        back = imported(tmp_path / f"out-{to}", tmp_path / f"back-{to}")
        assert (back.task, back.sha256) == ("none", made.sha256)
    scored = imported(tmp_path / "set", tmp_path / "scored", task="toy-mixed")
    assert scored.task == "toy-mixed" and scored.sha256 == made.sha256


@pytest.mark.parametrize("task", ["cartpole", "toy-continuous"])
def test_arrays_tell_what_they_look_like(tmp_path, task):
    episodes, mine = played(task, 6).episodes, find_task(task).signature()
    rows = episode_parquet(tmp_path / "rows.parquet", rows_of(episodes))
    steps = dataset(tmp_path / "own", task, 6)
    export_dataset(steps, "steps", tmp_path / "steps")
    for number, source in enumerate((d4rl_file(tmp_path / "own-task.hdf5", episodes), rows)):
        made = imported(source, tmp_path / f"set{number}", task="none")
        assert made.signature.observations[""].shape == mine.observations[""].shape
        theirs, ours = made.signature.actions[""], mine.actions[""]
        assert (theirs.kind, theirs.choices) == (ours.kind, ours.choices)
        assert theirs.size == ours.size and theirs.low == ours.low
        for a, b in zip(made.stream(), steps.stream(), strict=True):
            np.testing.assert_array_equal(a.observations[""], b.observations[""])
            np.testing.assert_array_equal(a.actions[""].reshape(b.actions[""].shape), b.actions[""])


def test_two_sources_widen_each_other_or_are_refused(tmp_path):
    few, more = (played("cartpole", n, seed).episodes for n, seed in ((1, 1), (3, 2)))
    for episode in few:
        episode.actions[""][:] = 0
    sources = [d4rl_file(tmp_path / f"x{k}.hdf5", some) for k, some in enumerate((few, more))]
    made = data(["import", *map(str, sources), "--task", "none", "--folder", str(tmp_path / "set")])
    assert made == 0
    assert Dataset.open(tmp_path / "set").signature.actions[""].choices == (2,)
    other = d4rl_file(tmp_path / "y.hdf5", played("toy-continuous", 2).episodes)
    with pytest.raises(UserError, match="does not look like"):
        data(["import", str(sources[0]), str(other), "--task", "none", "--folder", "x", "--quiet"])


@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("bc", "--algorithm.hidden 8"),
        ("dt", "--algorithm.width 8 --algorithm.layers 1 --algorithm.heads 1"),
        ("bcq", "--algorithm.batch-size 8"),
    ],
)
def test_training_reports_losses_and_no_score(tmp_path, capsys, algorithm, flags):
    folder = minari_folder(
        tmp_path / "minari", "toy-continuous", played("toy-continuous", 4).episodes
    )
    made = imported(folder, tmp_path / "set", task="none").folder
    words = [algorithm, str(made), "--folder", str(tmp_path / "run"), *QUICK, *flags.split()]
    assert run.main(words) == 0
    told = capsys.readouterr()
    assert "nothing is scored" in told.err and "no score, for want of an environment" in told.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "return_mean" not in summary and np.isfinite(summary["losses"]["train/loss"])
    reports = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert sum("train/loss" in one for one in reports) >= 3
    assert not any(name.startswith("evaluation") for one in reports for name in one)
    loaded = load(tmp_path / "run")
    assert loaded.signature == find_task("toy-continuous").signature()
    words[words.index("--budget.learner-steps") + 1] = "12"
    assert run.main([*words, "--resume"]) == 0
    assert load(tmp_path / "run").version[1] == 12
    for refused in (
        lambda: evaluate.main([str(tmp_path / "run")]),
        lambda: plots.main([str(tmp_path / "run")]),
        lambda: data(
            ["record", str(tmp_path / "run"), "--episodes", "1", "--folder", str(tmp_path / "rec")]
        ),
        lambda: run.main(["udrl", "none", "--local"]),
    ):
        with pytest.raises(UserError, match="there is no environment"):
            refused()
    assert not (tmp_path / "rec").exists()


def test_reference_scores_of_minari_are_used_where_the_task_has_none(tmp_path):
    folder = minari_folder(tmp_path / "minari", "cartpole", played("cartpole", 3).episodes)
    with edited(folder) as meta:
        meta |= {"ref_min_score": 10.0, "ref_max_score": 500.0}
    made = imported(folder, tmp_path / "set", task="cartpole")
    assert made.reference_returns == (10.0, 500.0)
    assert f"{100 * (made.return_mean - 10) / 490:.1f}" in card(made)
    export_dataset(made, "minari", tmp_path / "out")
    assert imported(tmp_path / "out", tmp_path / "back").reference_returns == (10.0, 500.0)
    again = imported(tmp_path / "set", tmp_path / "again")
    assert Dataset.open(again.folder).reference_returns == (10.0, 500.0)
    words = ["bc", str(made.folder), "--folder", str(tmp_path / "run"), *QUICK]
    words += ["--evaluations.final-episodes", "2", "--evaluations.episodes", "1"]
    assert run.main([*words, "--algorithm.hidden", "8"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    expected = 100 * (summary["return_mean"] - 10) / 490
    assert summary["normalized_score"] == pytest.approx(expected)
    assert load(tmp_path / "run").task.normalized_score(500.0) == 100
