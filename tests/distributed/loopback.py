"""A Ray cluster on loopback: each machine is a `ray start` with an address and labels of its own.

Where the kernel lets us, a machine has a mount namespace in which the folder of the runs is another
one, and empty: what goes on there with no file of the driver's machine.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from helpers import descendants

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "OMP_NUM_THREADS": "1",
}
ATTEMPTS = 3
"""Times that a machine is started: Ray gives one up that is slow to, as where all are busy."""
HIDE = 'mount --make-rprivate / && mount -t tmpfs none "$0" && exec "$@"'


@functools.cache
def namespaces() -> bool:
    """Whether a process may have mounts of its own here."""
    try:
        return not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


def start_ray(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A `ray start --block` that stands."""
    told: list[str] = []
    for _ in range(ATTEMPTS):
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )
        assert process.stdout is not None
        for line in iter(process.stdout.readline, ""):
            told.append(line)
            if "Ray runtime started" in line:
                return process
        kill_all(process)
    raise AssertionError(f"a machine did not start: {''.join(told)[-2000:]}")


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a process with all below it."""
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class Machines:
    """The machines by name; the first, `head`, is the driver's."""

    def __init__(self, hidden: Path) -> None:
        """`hidden` is the folder that all machines but the head see as an empty one."""
        self._hidden = hidden
        self.folder = Path(tempfile.mkdtemp(prefix="lb-", dir="/tmp"))  # short, for sockets' names
        with (
            socket.create_server(("127.0.0.1", 0)) as probe,
            socket.create_server(("127.0.0.1", 0)) as other,
        ):
            self.port, self._client_port = probe.getsockname()[1], other.getsockname()[1]
        self.environment = SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._count = 0

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, role: str, cpus: int) -> None:
        """Start a machine; returns when it is part of the cluster."""
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block"]
        ray += ["--num-cpus", str(cpus), "--labels", f"bigdm/role={role}", "--disable-usage-stats"]
        ray += ["--min-worker-port", "0", "--max-worker-port", "0"]
        ray += ["--object-store-memory", "200000000"]
        environment = os.environ | self.environment
        if name == "head":
            ray += ["--head", "--node-ip-address", "127.0.0.1", "--port", str(self.port)]
            ray += ["--include-dashboard", "false", "--temp-dir", str(self.folder / "r")]
            ray += ["--ray-client-server-port", str(self._client_port)]
        else:
            self._count += 1
            ray += ["--address", self.address, "--node-ip-address", f"127.0.0.{20 + self._count}"]
            own = self.folder / name
            own.mkdir(exist_ok=True)
            environment["TMPDIR"] = str(own)
            if namespaces():
                ray = ["unshare", "-m", "sh", "-c", HIDE, str(self._hidden), *ray]
        self._processes[name] = start_ray(ray, environment)

    def left_behind(self, name: str) -> list[str]:
        """What runs have left in the folder for temporary files of a machine, but the head."""
        return [path.name for path in (self.folder / name).glob("bigdm-ray-*")]

    def processes(self, name: str) -> dict[int, str]:
        """The processes of a machine: id and command line."""
        return descendants(self._processes[name].pid)

    def kill(self, name: str) -> None:
        """Lose a machine, with all that runs on it, at once."""
        kill_all(self._processes.pop(name))

    def close(self) -> None:
        """Lose all of them."""
        for name in [*self._processes][::-1]:
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)
