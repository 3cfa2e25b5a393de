"""A user's mistake gets one sentence and exit code 2; what the world does gets one sentence and
exit code 1."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bigdm_ray
from bigdm_ray.doors import door
from bigdm_ray.envs.task import Task, find_task
from bigdm_ray.envs.vector import GymnasiumRows
from bigdm_ray.errors import RunFailed, UserError, install
from bigdm_ray.replay.store import verify
from bigdm_ray.run import main
from bigdm_ray.training.learner import pick_device
from bigdm_ray.training.loop import Session, train_local
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder

SMALL = [
    "--algorithm.hidden",
    "16,16",
    "--algorithm.batch-size",
    "32",
    "--budget.env-steps",
    "1500",
    "--evaluations.final-episodes",
    "4",
    "--local",
    "--quiet",
]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "an ALGORITHM and a TASK are expected"),
        ("udlr lunarlander", "did you mean 'udrl'"),
        ("udrl lunarladner", "did you mean 'lunarlander'"),
        ("udrl gymnasium:CartPole-v9", "cannot make the environment"),
        ("udrl no_such_module:Env-v0", "cannot make the environment"),
        ("udrl toy-vector --algorithm.lerning-rate 1", "did you mean '--algorithm.learning-rate'"),
        (
            "udrl toy-vector --algorithm.learning-rate nan",
            "--algorithm.learning-rate is nan, but a finite number is expected",
        ),
        ("udrl toy-vector --algorithm.learning-rate -1", "more than 0 is expected"),
        ("udrl toy-vector --algorithm.learning-rate quick", "'quick', but a number is expected"),
        (
            "udrl toy-vector --budget.env-steps -5",
            "--budget.env-steps is -5, but at least 1 is expected",
        ),
        ("udrl toy-vector --budget.env-steps 1.5", "but an integer is expected"),
        ("udrl toy-vector --budget.env-steps 1e30", "but an integer is expected"),
        ("udrl toy-vector --machines.threads 100000", "at most 512 is expected"),
        ("udrl toy-vector --actors 0", "--machines.actors is 0, but at least 1 is expected"),
        (
            "udrl toy-vector --algorithm.hidden ,",
            "--algorithm.hidden is empty, but at least one value is expected",
        ),
        ("udrl toy-vector --algorithm.channels ,", "--algorithm.channels is empty"),
        ("udrl toy-vector --algorithm.batch-size 1e11", "but at most 1e+06 is expected"),
        ("udrl :x", "is not understood"),
        ("udrl a:b:c", "is not understood"),
        ("udrl toy-vector --seed -1", "--seed is -1"),
        ("udrl toy-vector --seed x", "--seed is 'x', but an integer is expected"),
        ("udrl toy-vector --device tpu", "--device"),
        ("udrl toy-vector --device cuda", "no usable GPU"),
        ("udrl toy-vector --preset papre", "unknown preset"),
        ("udrl toy-vector --evaluations.mode guess", "one of sample, mean, plan"),
        ("udrl toy-vector --evaluations.mode plan", "udrl has no planner"),
        (
            "udrl toy-vector --config /no/such/run.json",
            "cannot read /no/such/run.json: No such file or directory; a run's folder, or",
        ),
        ("udrl toy-vector extra words", "unknown task 'extra'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    arguments: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in arguments and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a GPU, so --device cuda is no mistake")
    words = arguments.split()
    code = door(
        main,
        [*words[:2], *(SMALL if arguments else []), "--folder", str(tmp_path / "run"), *words[2:]],
    )
    error = capsys.readouterr().err
    assert code == 2
    assert told in error
    assert error.count("\n") == 1 and error.startswith("error: ")


def test_a_missing_package_names_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bigdm_ray.envs import find_task

    task = find_task("takecover")
    missing = Task(task.name, task.env, extra=task.extra, needs=("no_such_package",))
    with pytest.raises(UserError, match=re.escape(install("vizdoom"))):
        missing.require()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("takecover", install("vizdoom")),
        ("gymnasium:NoSuch-v0", "cannot make the environment"),
        ("toy-vector --device foo", "cuda:N is expected"),
        ("toy-vector --evaluations.mode plan", "udrl has no planner"),
    ],
)
def test_a_refused_run_leaves_its_folder_to_the_mended_command(
    arguments: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "vizdoom", None)  # as if it were not installed
    folder = tmp_path / "run"
    for there in (False, True):
        assert door(main, ["udrl", *arguments.split(), *SMALL, "--folder", str(folder)]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
        assert folder.exists() == there and not list(folder.glob("*"))
        folder.mkdir(exist_ok=True)
    RunFolder(folder).claim(
        bigdm_ray.configure("udrl", "toy-vector", SMALL), False, exact=True
    ).release()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("run.json", "{", "run.json is not JSON"),
        ("run.json", "[]", "run.json is not JSON of this project (an object is expected"),
        ("run.json", "{}", "run.json is not one of this project"),
        ("weights/best.safetensors", "torn", "best.safetensors does not hold weights"),
        ("weights/best.json", "{", "best.json is broken"),
        ("weights/best.json", '{"command": 3}', "best.json is broken"),
        ("weights/best.json", '{"command": {"desired_return": "high"}}', "best.json is broken"),
    ],
)
def test_a_damaged_folder_is_not_resumed(
    file: str, content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = RunFolder(tmp_path / "run").claim(
        bigdm_ray.configure("udrl", "toy-vector", SMALL), False, exact=True
    )
    home.release()
    Weights((0, 1), {"w": np.zeros(1)}).save(home.weights("best"))  # as before commands were in it
    (home.path / file).write_text(content)
    assert door(main, ["udrl", "toy-vector", *SMALL, "--folder", str(home.path), "--resume"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert home.weights("best").is_file()


def test_without_envpool_gymnasium_plays_and_the_run_stays_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(folder: str, *more: str) -> tuple[int, str]:
        code = door(
            main,
            [
                "udrl",
                "cartpole",
                *SMALL,
                "--budget.env-steps",
                "1000",  # the warm-up's; with less a note tells of it
                "--folder",
                str(tmp_path / folder),
                *more,
            ],
        )
        return code, capsys.readouterr().err

    def backend(folder: str) -> str:
        return str(json.loads((tmp_path / folder / "run.json").read_text())["backend"])

    assert trained("fast") == (0, "") and backend("fast") == "fast"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "envpool", None)
        code, error = trained("slow")
        assert (
            code == 0
            and error.count("\n") == 1
            and error.startswith("note: ")
            and install("fast") in error
        )
        assert backend("slow") == "reference"
        code, error = trained("fast", "--resume")
        assert code == 2 and "'envpool' is missing here" in error and install("fast") in error
        assert trained("slow", "--resume")[0] == 0
        for task in ("lunarlander", "hopper", "pong"):
            assert find_task(task).backend == "reference"
            find_task(task).require()
        rows = find_task("cartpole").make(2, 1)
        assert isinstance(rows, GymnasiumRows)
        rows.close()
    code, error = trained("slow", "--resume")
    assert code == 2 and "the fast ones would play here; uninstall envpool, or begin anew" in error


def test_want_of_memory_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for want, said in (
        (lambda: np.ones(10**14, np.int64), "Unable to allocate"),
        (lambda: torch.empty(10**14), "can't allocate memory"),
    ):
        assert door(lambda _, want=want: len(want()), []) == 1
        told = capsys.readouterr().err
        assert "not enough memory (" in told and said in told and told.count("\n") == 1


def test_a_run_that_has_begun_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise UserError("the second round is refused")

    monkeypatch.setattr(Session, "ask", refused)
    with pytest.raises(UserError, match="second round"):
        train_local(bigdm_ray.configure("udrl", "toy-vector", SMALL), tmp_path / "run")
    assert verify(tmp_path / "run" / "store")[0]


@pytest.mark.slow
def test_environments_that_raise_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    run = bigdm_ray.configure("udrl", "toy-broken", SMALL)
    summary = train_local(run, tmp_path / "run")
    assert summary["episodes_discarded"] > 0
    assert any("the simulator stopped answering" in problem for problem in summary["problems"])
    assert summary["env_steps"] >= 1500


def test_a_run_whose_environments_all_fail_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = door(main, ["udrl", "toy-nan", *SMALL, "--folder", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert code == 1
    assert "brought no whole episode in 3 rounds" in error and "paid a reward of nan" in error


@pytest.mark.slow
def test_a_diverging_loss_names_the_learning_rate(tmp_path: Path) -> None:
    from bigdm_ray.training.learner import Learner

    run = bigdm_ray.configure("udrl", "toy-vector", SMALL)
    train_local(run, tmp_path / "run")
    from bigdm_ray.envs import find_task
    from bigdm_ray.replay import Store

    store = Store(tmp_path / "run" / "store").open()
    learner = Learner(run.algorithm, {"toy-vector": find_task("toy-vector").signature()}, 1)
    for parameter in learner.model.parameters():
        parameter.data.fill_(np.inf)
    with pytest.raises(RunFailed, match="learning-rate"):
        learner.update({"toy-vector": store}, 1)


def test_an_unwritable_folder_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert door(main, ["udrl", "toy-vector", *SMALL, "--folder", str(file / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert door(main, ["udrl", "toy-vector", *SMALL, "--folder", str(file)]) == 2
    assert (
        f"--folder {file} is a file; remove it, or choose another folder" in capsys.readouterr().err
    )
    assert door(main, ["udrl", "toy-vector", *SMALL, "--folder", str(tmp_path)]) == 2
    assert (
        f"--folder {tmp_path} is not empty and holds no run; empty it, or choose another folder"
        in capsys.readouterr().err
    )


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [str(pick_device(name)) for name in ("cuda", "cuda:0", "cuda:1")] == [
        "cuda",
        "cuda:0",
        "cuda:1",
    ]
    with pytest.raises(
        UserError, match=r"--device is 'cuda:2', but the last GPU of this machine is cuda:1"
    ):
        pick_device("cuda:2")


def test_help_shows_no_default_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["udrl", "toy-vector", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "default: one an actor --" in told
        and "(default: None)" not in told
        and "(default: 32)" in told
    )


@pytest.mark.skipif(
    os.geteuid() == 0,
    reason="root may write anywhere; test_an_unwritable_folder_is_one_sentence covers the sentence",
)
def test_a_folder_without_permission_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert door(main, ["udrl", "toy-vector", *SMALL, "--folder", str(tmp_path / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_nothing_is_half_written(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing beyond it fails in the same
    place."""
    folder = tmp_path / "run"
    run = [
        "udrl",
        "toy-image",
        *SMALL,
        "--algorithm.channels",
        "4",
        "--saves.every",
        "300",
        "--folder",
        str(folder),
    ]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    code = (
        f"{limit}from bigdm_ray.doors import door; from bigdm_ray.run import main; raise"
        f" SystemExit(door(main, {run!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "free some space" in done.stderr
    assert not list((folder / "store").glob(".*.tmp"))
    assert verify(folder / "store")[2] == []
