"""Memory that a learner has freed."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from bigdm_ray.models.transformer import Transformer
from bigdm_ray.training.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of glibc")


def test_activations_that_were_freed_are_used_again_without_fresh_pages():
    network = Transformer(width=128, layers=2, heads=1, context=60)
    tokens = torch.randn(64, 60, 128)

    def fresh_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        network(tokens).square().sum().backward()
        network.zero_grad()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    for _ in range(3):
        fresh_pages()
    assert sum(fresh_pages() for _ in range(3)) < 1_000
