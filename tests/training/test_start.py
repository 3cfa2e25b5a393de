"""`--from`: a run that goes on from another's learner and best episodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from making import dataset_of

from bigdm_ray.errors import UserError
from bigdm_ray.replay.episode import FOREIGN
from bigdm_ray.replay.store import Retention, Store
from bigdm_ray.run import train
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import configure

TINY = (
    "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 4 --algorithm.batch-size 16"
    " --algorithm.replay-size 20"
)
TINY += " --evaluations.episodes 2 --evaluations.final-episodes 2"
ONLINE = (
    "--budget.env-steps 300 --saves.every 100 --evaluations.every 200"
    " --algorithm.updates-per-episode 3"
)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A short run on a dataset of 30 episodes, and those episodes' returns."""
    home = tmp_path_factory.mktemp("offline")
    dataset = dataset_of(home / "data", "toy-continuous", 30)
    run = configure("dt", str(home / "data"), [*TINY.split(), "--budget.learner-steps", "7"])
    train(run, home / "run", local=True)
    return home / "run", np.sort(dataset.store().table.returns)


def arrays(folder):
    saved = checkpoint.last_checkpoint(
        folder / "checkpoints", {"algorithm": "dt", "task": "toy-continuous"}
    )
    return saved.counters, saved.learner


def test_it_begins_with_the_learner_and_the_best_episodes(offline, tmp_path):
    folder, returns = offline
    run = configure(
        "dt",
        "toy-continuous",
        ["--from", str(folder), *ONLINE.split(), "--budget.env-steps", "120"],
    )
    assert (
        run.algorithm
        == configure(
            "dt",
            "toy-continuous",
            [*TINY.split(), "--algorithm.updates-per-episode", "3", "--preset", "none"],
        ).algorithm
    )
    summary = train(run, tmp_path / "run", local=True)
    counters, _ = arrays(tmp_path / "run")
    assert (
        counters.began_at == 7
        and counters.learner_step == 7 + 3 * counters.episodes == summary["learner_steps"]
    )
    everything = Store(tmp_path / "run" / "store", write=False).open().table
    inherited = everything.ids[:, 1] == FOREIGN
    kept = Store(tmp_path / "run" / "store", Retention("newest", 20), write=False).open().table
    assert len(kept) == 20 and (kept.ids[:, 0] > 0).sum() == counters.episodes
    np.testing.assert_allclose(
        kept.returns[kept.ids[:, 1] == FOREIGN],
        returns[len(returns) - (20 - counters.episodes) :],
        rtol=1e-5,
    )
    assert inherited.sum() <= 20
    assert json.loads((tmp_path / "run" / "run.json").read_text())["start"]["learner_step"] == 7


def test_a_budget_of_learner_steps_counts_its_own(offline, tmp_path):
    folder, _ = offline
    summary = train(
        configure(
            "dt",
            "toy-continuous",
            ["--from", str(folder), *ONLINE.split(), "--budget.learner-steps", "4"],
        ),
        tmp_path / "run",
        local=True,
    )
    assert summary["learner_steps"] == 11 and summary["start"]["learner_step"] == 7


def test_the_settings_of_a_start_are_kept_for_its_resume_alone(offline, tmp_path):
    folder, _ = offline
    train(
        configure(
            "dt",
            "toy-continuous",
            ["--from", str(folder), *ONLINE.split(), "--budget.env-steps", "20"],
        ),
        tmp_path / "run",
        local=True,
    )
    config = ["--config", str(tmp_path / "run" / "run.json")]
    assert configure("dt", "toy-continuous", config).start is not None
    assert configure("dt", str(folder.parent / "data"), config).start is None


def test_its_first_step_is_the_next_one_of_the_learner(offline, tmp_path):
    """The optimizer goes on: its step count does."""
    folder, _ = offline
    train(
        configure("dt", "toy-continuous", ["--from", str(folder), *ONLINE.split()]),
        tmp_path / "run",
        local=True,
    )
    counters, learner = arrays(tmp_path / "run")
    assert float(learner["optimizer/adamw/0/step"]) == counters.learner_step


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(offline, tmp_path):
    folder, _ = offline
    flags = ["--from", str(folder), *ONLINE.split()]
    train(configure("dt", "toy-continuous", flags), tmp_path / "whole", local=True)
    half = [*flags, "--budget.env-steps", "150"]
    train(configure("dt", "toy-continuous", half), tmp_path / "parts", local=True)
    (tmp_path / "parts" / "summary.json").unlink()
    for save in checkpoint.complete_checkpoints(tmp_path / "parts" / "checkpoints")[
        -1:
    ]:  # the one at the end of the half budget
        for file in save.iterdir():
            file.unlink()
        save.rmdir()
    train(configure("dt", "toy-continuous", flags), tmp_path / "parts", resume=True, local=True)
    for (a, one), (b, two) in [(arrays(tmp_path / "whole"), arrays(tmp_path / "parts"))]:
        assert a == type(a)(
            **{
                name: vars(a if name.endswith("_s") else b)[name]  # times are what a clock says
                for name in vars(b)
            }
        )
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_what_does_not_fit_is_said(offline, tmp_path):
    folder, _ = offline
    for arguments, text in [
        (
            ["dt", "toy-vector", ["--from", str(folder)]],
            "is dt on toy-continuous, not dt on toy-vector",
        ),
        (["udrl", "toy-continuous", ["--from", str(folder)]], "not udrl on toy-continuous"),
        (["dt", "toy-continuous", ["--from", str(tmp_path)]], "holds no run"),
        (
            ["dt", str(folder.parent / "data"), ["--from", str(folder)]],
            "give the task's name alone",
        ),
        (
            ["dt", "toy-continuous", ["--from", str(folder), "--algorithm.heads", "2"]],
            r"--algorithm\.heads is 2, but .* has 1",
        ),
        (
            ["dt", "toy-continuous", ["--from", str(folder), "--preset", "online"]],
            r"what shapes network and optimizers must stay",
        ),
    ]:
        with pytest.raises(UserError, match=text):
            configure(*arguments)
    run = configure("dt", "toy-continuous", ["--from", str(folder), *ONLINE.split()])
    (folder / "checkpoints").rename(folder / "gone")
    try:
        with pytest.raises(UserError, match="has no checkpoint yet"):
            train(run, tmp_path / "run", local=True)
    finally:
        (folder / "gone").rename(folder / "checkpoints")


@pytest.mark.parametrize("name", ["awr", "rwr"])
def test_it_may_begin_in_the_middle_of_a_turn(name, tmp_path):
    """5 steps of a turn of 10 are behind it, so each round of episodes comes within one."""
    dataset_of(tmp_path / "data", "toy-vector", 20)
    turn = {
        "awr": "--algorithm.critic-updates 2 --algorithm.actor-updates 8",
        "rwr": "--algorithm.n-updates-per-iter 10 --algorithm.episodes-per-iteration 5",
    }[name].split()
    tiny = ["--algorithm.hidden", "8", "--algorithm.batch-size", "8", *turn, *TINY.split()[-4:]]
    run = configure(name, str(tmp_path / "data"), [*tiny, "--budget.learner-steps", "5"])
    train(run, tmp_path / "before", local=True)
    more = ["--algorithm.samples-per-iteration", "50"] if name == "awr" else []
    flags = [*more, "--budget.env-steps", "400", *TINY.split()[-4:]]
    run = configure(name, "toy-vector", ["--from", str(tmp_path / "before"), *flags])
    done = train(run, tmp_path / "after", local=True)
    assert done["learner_steps"] > 25 and done["learner_steps"] % 10 == 5
