"""A run on Ray that is told to stop, or whose Ray dies: one sentence, what is stored is kept, and
no process stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import TINY, descendants

from bigdm_ray.training import checkpoint

pytestmark = pytest.mark.ray

NOISE = ("Traceback", "***", "core_worker", "RayTaskError", "(raylet)", "[state-dump]")


class Command:
    """A run through the door, its output, and every process that it has started."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self._mark = f"BIGDM_MARK={uuid.uuid4()}"
        words = ["udrl", "toy-vector", *TINY.split(), *flags, "--folder", str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bigdm_ray.run", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | dict([self._mark.split("=")]),
            process_group=0,
        )

    def waits_for(self, ready: Callable[[], object]) -> None:
        """Return once `ready` is true of the command, which must not end before."""
        while not ready():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def has_stored(self) -> bool:
        """Whether episodes of several rounds are stored."""
        return len(list((self.folder / "store").glob("*.arrow"))) > 3

    def part(self, name: str) -> int:
        """The process of Ray with this name; 0 where there is none yet."""
        below = descendants(self.process.pid)
        return next((pid for pid, line in below.items() if f"/{name} " in line), 0)

    def ended(self) -> tuple[int, list[str]]:
        """Its exit code and what it has told.

        Fails where something else is printed or a process stays.
        """
        out, told = self.process.communicate(timeout=600)
        assert not [word for word in NOISE if word in out + told], out + told
        deadline = time.monotonic() + 60
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []
        return self.process.returncode, told.splitlines()

    def _left(self) -> list[str]:
        left = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (entry / "environ").read_bytes():
                    left.append((entry / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
        return left

    def kill(self) -> None:
        """For the end of a test that failed."""
        self.process.kill()
        self.process.wait()


LONG = ("--budget.env-steps", "10000000", "--saves.every", "10000000")


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path / "run", *LONG)
    yield command
    command.kill()


def test_a_terminated_run_saves_and_leaves_no_process(begun: Command) -> None:
    """Also where the signal is for its process group, as those of `timeout` and of terminals
    are."""
    begun.waits_for(begun.has_stored)
    os.killpg(begun.process.pid, signal.SIGTERM)
    code, told = begun.ended()
    assert code == 143
    assert told[-1].startswith("stopped; ")
    assert "--resume goes on from the last checkpoint, at environment step " in told[-1]
    assert len(checkpoint.complete_checkpoints(begun.folder / "checkpoints")) == 1
    assert (begun.folder / "weights" / "last.safetensors").is_file()


@pytest.mark.long
def test_a_run_that_is_terminated_while_ray_starts_leaves_no_process(begun: Command) -> None:
    begun.waits_for(lambda: begun.part("gcs_server"))
    begun.process.send_signal(signal.SIGTERM)
    code, told = begun.ended()
    assert (code, told[-1]) == (143, "stopped before the run began")
    assert not begun.folder.exists(), "the same command can be given again"


@pytest.mark.parametrize("part", ["raylet", pytest.param("gcs_server", marks=pytest.mark.long)])
def test_the_death_of_ray_itself_is_one_sentence(part: str, begun: Command) -> None:
    begun.waits_for(begun.has_stored)
    os.kill(begun.part(part), signal.SIGKILL)
    code, told = begun.ended()
    assert code == 1
    assert told[-1].startswith(
        f"error: Ray's own process `{part.removesuffix('_server')}` has died"
    )


@pytest.mark.long
def test_a_run_whose_ray_died_is_resumed(begun: Command) -> None:
    begun.waits_for(begun.has_stored)
    os.kill(begun.part("raylet"), signal.SIGKILL)
    begun.ended()
    stored = len(list((begun.folder / "store").glob("*.arrow")))
    again = Command(begun.folder, *LONG, "--budget.env-steps", "3000", "--resume")
    code, _ = again.ended()
    assert code == 0
    summary = json.loads((begun.folder / "summary.json").read_text())
    assert stored > 3 and summary["env_steps"] >= 3000
