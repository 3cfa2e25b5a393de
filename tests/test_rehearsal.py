"""A cluster of two machines from `clusters/local.yaml`, from `ray up` to `ray down`.

They are those of `clusters/rehearsal.sh`. `ray stop` ends every Ray that it can see, and each
machine sees its own alone: what stands outside must survive.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
REHEARSAL = REPOSITORY / "clusters" / "rehearsal.sh"
PYTHON = {"PYTHON": sys.executable}
LIMIT_S = 1200

pytestmark = pytest.mark.cluster


def rehearse(*command: str) -> subprocess.CompletedProcess[str]:
    """What a command on the desk has printed, which is shown where a test fails."""
    done = subprocess.run(
        ["timeout", "-k", "10", str(LIMIT_S), REHEARSAL, *command],
        env=os.environ | PYTHON,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    return done


@pytest.fixture(scope="module", autouse=True)
def machines() -> None:
    """Skip where there can be none, with what is missing."""
    missing = rehearse("true")
    if missing.returncode:
        pytest.skip(missing.stdout.strip().removeprefix("error: "))


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process outside that `ray stop` would take for Ray's."""
    sleep = shutil.copy(shutil.which("sleep") or "sleep", tmp_path / "raylet")
    with subprocess.Popen([sleep, "10000"]) as process:
        yield process
        process.kill()


def test_a_cluster_is_started_trains_and_is_ended(bystander: subprocess.Popen[bytes]) -> None:
    done = rehearse("tests/rehearsal/first_slice.sh")
    told: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("== "):
            name, *words = line.split()[1:]
            told.setdefault(name, []).append(" ".join(words))
    assert told["run"][0].startswith("0 ")
    assert told["nodes"] == ["2"]
    actors = dict(line.partition(" ")[::2] for line in told["actors"])
    assert all(actors.values()), "both machines had actors"
    assert {"LearnerActor", "ReplayActor", "RolloutActor"} <= set(" ".join(actors.values()).split())
    summary = json.loads(told["summary"][0])
    assert summary["env_steps"] >= 6000 and summary["problems"] == []
    assert float(told["stored"][0]) > 0
    (stranger,) = told["stranger"]  # one sentence, and the exit code of a user's mistake
    assert stranger.startswith("error: --address 'auto' cannot be joined without the token")
    assert stranger.endswith(" 2") and "Traceback" not in stranger
    assert told["down"][0].startswith("0 ")
    assert [line.split()[1] for line in told["ended"]] == ["0", "0"]  # nothing called raylet
    assert bystander.poll() is None
