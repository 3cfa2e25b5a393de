"""Mixtures: a file in the place of a TASK is several tasks with their data."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from making import dataset_of

from bigdm_ray.envs import find_task
from bigdm_ray.errors import UserError
from bigdm_ray.training.config.command_line import parse
from bigdm_ray.training.config.files import read_run
from bigdm_ray.training.config.mixtures import mixture_path, read_mixture, shipped_mixtures
from bigdm_ray.training.loop import train_local

TWO = "tasks:\n  - {task: toys/toy-vector, weight: 3}\n  - {task: toy-continuous, source: there}\n"


def mixture(folder: Path, text: str = TWO) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_mixture_is_its_tasks_with_their_data_and_a_run_needs_it_no_more(tmp_path: Path) -> None:
    dataset_of(tmp_path / "data" / "toys-toy-vector", "toy-vector", 20)
    dataset_of(tmp_path / "data" / "there", "toy-continuous", 20)
    path = mixture(tmp_path)
    words = ["bc", path, "--data", str(tmp_path / "data"), "--budget.learner-steps", "2"]
    words += ["--evaluations.final-episodes", "1", "--local"]
    run = parse(words).run
    assert [(use.name, use.weight) for use in run.tasks] == [
        ("toy-vector", 3),
        ("toy-continuous", 1),
    ]
    assert [use.dataset.folder for use in run.tasks if use.dataset] == [
        str(tmp_path / "data" / name) for name in ("toys-toy-vector", "there")
    ]
    train_local(run, tmp_path / "run")
    Path(path).unlink()
    assert read_run(tmp_path / "run") == run


WRONG = [
    ("tasks: []", "is a mixture without tasks"),
    ("{}", "is a mixture without tasks"),
    ("[1, 2]", "holds no mixture"),
    ("a: [", "is not YAML"),
    ("task: [toy-vector]", "the unknown setting 'task'.*did you mean 'tasks'"),
    ("tasks: [toy-vector, {task: toy-vector, weight: 2}]", "has the task toy-vector twice"),
    ("tasks: [{task: toy-vector, wieght: 2}]", "unknown setting 'wieght'; did you mean 'weight'"),
    ("tasks: [{task: toy-vector, weight: much}]", "weight is 'much', but a number is expected"),
    ("tasks: [7]", "has 7, but a name or a mapping"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_a_file_that_is_none_is_one_sentence(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        parse(["bc", mixture(tmp_path, text)])


def test_data_that_are_missing_are_told_with_the_command_that_makes_them(tmp_path: Path) -> None:
    dataset_of(tmp_path / "there", "toy-continuous", 5)
    told = (
        r"lacks the data of 1 of its 2 tasks in .*; the first is toys/toy-vector, .*"
        r"`python -m bigdm_ray.data experts toys/toy-vector --folder "
    )
    with pytest.raises(UserError, match=told):
        parse(["bc", mixture(tmp_path), "--data", str(tmp_path)])
    with pytest.raises(UserError, match=r"cannot read the mixture .*no.yaml"):
        parse(["bc", str(tmp_path / "no.yaml")])
    with pytest.raises(UserError, match=r"--data is .*, but no mixture is named"):
        parse(["udrl", "cartpole", "--data", str(tmp_path)])


def test_a_mixture_that_ships_is_found_by_its_name_and_a_misspelt_one_is_told_them(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"the mixture control lacks the data of 6 of its 6 tasks"):
        parse(["bc", "control", "--data", str(tmp_path)])
    with pytest.raises(UserError, match=r"nor a mixture contrl \(those that ship are .*control"):
        parse(["bc", "contrl"])


def test_mixtures_travel_with_the_package() -> None:
    assert "control" in shipped_mixtures()
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "mixtures/*.yaml" in pyproject["tool"]["setuptools"]["package-data"]["bigdm_ray"]


@pytest.mark.parametrize("name", shipped_mixtures())
def test_what_ships_names_tasks_that_there_are(name: str) -> None:
    path = mixture_path(name)
    assert path is not None
    found = read_mixture(path)
    assert found.name == name and found.about
    for entry in found.tasks:
        find_task(entry.task or "")
