"""What learners ask of a machine is refused before Ray starts, where they would wait for it for ever."""

from __future__ import annotations

import pytest
import torch

from bigdm_ray.distributed.cluster import cluster
from bigdm_ray.errors import UserError
from bigdm_ray.training.config import configure


@pytest.mark.parametrize(
    ("flags", "gpus", "told"),
    [
        ("--device cuda", 0, "no usable GPU"),
        ("--device cuda:1", 2, "picks a GPU for --local; with Ray say --device cuda"),
        ("--device cuda --learners 3", 2, "--learners is 3, but this machine has 2"),
        ("--device tpu", 0, "auto, cpu, cuda or cuda:N is expected"),
    ],
)
def test_a_device_that_no_learner_will_get_is_refused(
    flags: str, gpus: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with (
        pytest.raises(UserError, match=told),
        cluster(configure("udrl", "toy-vector", flags.split())),
    ):
        pytest.fail("Ray was started")
