"""A run that was killed and resumed equals the one that was not, bit for bit; what cannot be resumed is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bigdm_ray
from bigdm_ray.errors import UserError
from bigdm_ray.replay import Store
from bigdm_ray.training import checkpoint
from bigdm_ray.training.config import Run
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.metrics import Report
from bigdm_ray.training.params import Weights

FLAGS = (
    "--algorithm.hidden 16,16 --algorithm.batch-size 32 --algorithm.n-updates-per-iter 5 --algorithm.warm-up-episodes 20 "
    "--algorithm.replay-size 60 --evaluations.episodes 4 --evaluations.final-episodes 4 --evaluations.every 1500 "
    "--saves.every 1000 --saves.report-every 300 --rollouts.groups 2"
)


class Killed(Exception):
    """Stands for kill -9: nothing in the loop handles it."""


def run_of(task: str, steps: int, flags: str = FLAGS) -> Run:
    return bigdm_ray.configure("udrl", task, [*flags.split(), "--budget.env-steps", str(steps)])


def killed_at(run: Run, folder: Path, steps: int) -> None:
    def strike(report: Report) -> None:
        if report["time/env_steps"] >= steps:
            raise Killed

    with pytest.raises(Killed):
        train_local(run, folder, listeners=[strike])


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_per_s", "wall_s"))} for line in lines]


@pytest.mark.parametrize("task", ["toy-vector", "lunarlander"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(task: str, tmp_path: Path) -> None:
    pace = {"toy-vector": 1, "lunarlander": 8}[task]
    flags = FLAGS.replace("1500", str(1500 * pace)).replace("1000", str(1000 * pace)).replace("300", str(300 * pace))
    run = run_of(task, 4000 * pace, flags)
    train_local(run, tmp_path / "whole")
    killed_at(run, tmp_path / "cut", 1700 * pace)
    killed_again = tmp_path / "cut"
    with pytest.raises(Killed):
        train_local(
            run, killed_again, resume=True, listeners=[lambda report: (_ for _ in ()).throw(Killed) if report["time/env_steps"] >= 2700 * pace else None]
        )
    train_local(run, tmp_path / "cut", resume=True)
    whole, cut = (Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("whole", "cut"))
    assert whole.version == cut.version
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(values, cut.arrays[name], err_msg=name)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
    tables = [Store(tmp_path / name / "store", run.algorithm.retention()).open().table for name in ("whole", "cut")]
    np.testing.assert_array_equal(tables[0].ids, tables[1].ids)
    np.testing.assert_array_equal(tables[0].returns, tables[1].returns)


def test_killed_before_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = run_of("toy-vector", 2000)
    train_local(run, tmp_path / "whole")
    killed_at(run, tmp_path / "cut", 300)
    train_local(run, tmp_path / "cut", resume=True)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")


def test_checkpoints_keep_two_and_only_named_shards_stay(tmp_path: Path) -> None:
    run = run_of("toy-vector", 6000)
    train_local(run, tmp_path)
    assert len(checkpoint.saved(tmp_path / "checkpoints")) == 2
    living = set(Store(tmp_path / "store", run.algorithm.retention()).open().living_shards())
    on_disk = {path.name for path in (tmp_path / "store").glob("*.arrow")}
    assert on_disk == living | checkpoint.named_shards(tmp_path / "checkpoints")


def test_what_cannot_be_resumed_is_told(tmp_path: Path) -> None:
    run = run_of("toy-vector", 1500)
    with pytest.raises(UserError, match="there is no run in"):
        train_local(run, tmp_path / "none", resume=True)
    train_local(run, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        train_local(run, tmp_path / "run")
    with pytest.raises(UserError, match="holds another run"):
        train_local(run_of("toy-image", 1500), tmp_path / "run", resume=True)
    other = bigdm_ray.configure("udrl", "toy-vector", [*FLAGS.split(), "--budget.env-steps", "1500", "--seed", "2"])
    with pytest.raises(UserError, match="seed is 1, here 2"):
        train_local(other, tmp_path / "run", resume=True)
    newest = checkpoint.saved(tmp_path / "run" / "checkpoints")[-1]
    with pytest.raises(UserError, match="choose another --folder"):
        checkpoint.read(newest, {"algorithm": "bc", "task": "toy-vector"})
    (newest / "learner.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        train_local(run, tmp_path / "run", resume=True)


def test_an_extended_budget_goes_on_from_a_finished_run(tmp_path: Path) -> None:
    first = train_local(run_of("toy-vector", 1500), tmp_path)
    more = train_local(run_of("toy-vector", 3000), tmp_path, resume=True)
    assert more["env_steps"] >= 3000 > first["env_steps"]
    assert more["learner_steps"] > first["learner_steps"]
