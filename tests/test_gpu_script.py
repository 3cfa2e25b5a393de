"""`make gpu` on a CPU, tiny: no row of it fails, so that a lent GPU is not wasted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu


@pytest.mark.long
def test_every_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    words = ["gpu", "--device", "cpu", "--size", "tiny", "--seconds", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert gpu.main() == 0
    found = json.loads(out.read_text())["rows"]
    assert {"peak", "large bf16", "udrl", "tt plan 1", "dt act 2 cached"} <= found.keys()
    assert not [one for one in found.values() if "failed" in one]
