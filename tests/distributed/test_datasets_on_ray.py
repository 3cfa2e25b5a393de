"""Runs on datasets through Ray equal those in one process; many runs side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from making import dataset_of

import bigdm_ray
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.distributed.map import run_side_by_side
from bigdm_ray.reproduce import train_cell
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.params import Weights

pytestmark = pytest.mark.ray

FLAGS = (
    "--algorithm.batch-size 16 --evaluations.episodes 3 --evaluations.final-episodes 3"
    " --budget.learner-steps 60 --saves.every 30"
)
DT = (
    "--algorithm.width 16 --algorithm.layers 1 --algorithm.context 4 --algorithm.target-return 1"
    " --algorithm.warm-up-steps 1 --machines.precision bf16"
)


@pytest.mark.parametrize(("algorithm", "flags"), [("bc", "--algorithm.hidden 16,16"), ("dt", DT)])
def test_a_dataset_run_on_ray_equals_one_process_bit_for_bit(
    algorithm: str, flags: str, tmp_path: Path
) -> None:
    data = dataset_of(tmp_path / "toys").folder
    run = bigdm_ray.configure(algorithm, str(data), [*FLAGS.split(), *flags.split()])
    local, ray = train_local(run, tmp_path / "local"), train_on_ray(run, tmp_path / "ray")
    assert local["return_mean"] == ray["return_mean"] and ray["learner_steps"] == 60
    one, two = (
        Weights.load(tmp_path / name / "weights" / "last.safetensors") for name in ("local", "ray")
    )
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, two.arrays[name], err_msg=name)


def test_jobs_run_side_by_side_and_a_mistake_stops_no_other(tmp_path: Path) -> None:
    data = dataset_of(tmp_path / "toys").folder
    good = bigdm_ray.configure(
        "bc", str(data), [*FLAGS.split(), "--algorithm.hidden", "16,16"]
    ).to_json()
    bad = good | {"dataset": good["dataset"] | {"sha256": "0" * 64}}
    answers = {
        n: (summary, why)
        for n, summary, why in run_side_by_side(
            train_cell, [(r, str(tmp_path / f"{i}")) for i, r in enumerate((good, bad, good))], 2
        )
    }
    assert answers[0][0]["learner_steps"] == answers[2][0]["learner_steps"] == 60
    assert answers[1][0] is None and "holds another dataset" in answers[1][1]
