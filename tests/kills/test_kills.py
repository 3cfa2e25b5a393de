"""A command that was killed, or whose disk was full, can be given again (see harness.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")
FULL = [
    "import",
    "merge",
    "record",
    "export to minari",
    "export to parquet",
    "weights import",
    "weights export",
]


def reports(*words):
    done = subprocess.run(
        [sys.executable, HARNESS, *words], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [failed for report in found for failed in report["failed"]] == []
    assert done.returncode == 0 and found, done.stderr[-3000:]
    return found


@pytest.mark.slow
def test_the_same_command_after_a_kill_comes_to_the_same_and_leaves_nothing_else():
    found = reports("--points", "5")
    assert len(found) == 11 and all(report["killed"] == 5 for report in found)


@pytest.mark.slow
def test_the_same_command_after_a_full_disk_comes_to_the_same():
    found = reports(*FULL, "--points", "3", "--full-disk")
    assert len(found) == len(FULL) and all(report["killed"] == 3 for report in found)


@pytest.mark.slow
def test_the_same_command_after_a_signal_to_stop_comes_to_the_same():
    found = reports("--points", "3", "--stop")
    assert len(found) == 11 and all(report["killed"] == 3 for report in found)


@pytest.mark.long
def test_every_step_may_be_the_last():
    for report in reports():
        assert report["killed"] == report["steps"] > 5


@pytest.mark.long
def test_a_signal_to_stop_may_come_at_every_step():
    for report in reports("--stop"):
        assert report["killed"] == report["steps"] > 5


@pytest.mark.long
def test_a_disk_may_be_full_from_every_step_on():
    for report in reports(*FULL, "--full-disk"):
        assert report["killed"] == report["steps"] > 5
