"""Ray has a folder, a token and addresses of its own; what keeps it from them is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray
import torch
from helpers import tiny
from ray.exceptions import AuthenticationError

from bigdm_ray.distributed import cluster as cluster_module
from bigdm_ray.distributed import session_folder
from bigdm_ray.distributed.cluster import START_ATTEMPTS, cluster
from bigdm_ray.distributed.loop import train_on_ray
from bigdm_ray.distributed.session_folder import LONGEST, PREFIX, SessionFolder, last_words
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training.config import configure

DEVICE = [
    ("--device cuda", 0, "no usable GPU"),
    ("--device cuda:1", 2, "picks a GPU for --local; with Ray say --device cuda"),
    ("--device cuda --learners 3", 2, "--learners is 3, but this machine has 2"),
    ("--device tpu", 0, "auto, cpu, cuda or cuda:N is expected"),
]


@pytest.mark.parametrize(("flags", "gpus", "told"), DEVICE)
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


def long_folder(tmp_path: Path) -> Path:
    """A folder below which Ray's sockets have no room in their paths."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    return long


def test_a_folder_whose_path_is_too_long_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = long_folder(tmp_path)
    monkeypatch.setenv("TMPDIR", str(long))
    made = SessionFolder()
    assert len(f"{made.path}/{LONGEST}".encode()) <= 107
    assert made.path.parent.stat().st_mode & 0o777 == 0o700
    assert list(long.iterdir()) == [] == list(made.path.parent.iterdir())
    made.remove()
    assert not made.path.parent.exists()


def test_without_a_place_for_its_folder_ray_names_each_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = long_folder(tmp_path)
    monkeypatch.setattr(session_folder, "candidate_folders", lambda: [long])
    with pytest.raises(RunFailed, match=r"x \(its path is too long\); make room .* --local trains"):
        SessionFolder()
    monkeypatch.setattr(session_folder, "ROOM", 1 << 60)
    with pytest.raises(RunFailed, match=r"x \(\d+ MiB free, \d+ are needed\)"):
        SessionFolder()
    assert list(long.iterdir()) == []


def test_the_folders_of_the_dead_are_swept_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as place:
        monkeypatch.setattr(session_folder, "candidate_folders", lambda: [Path(place)])
        alive = SessionFolder()
        dead = Path(place, f"{PREFIX}killed")
        (dead / "r" / "session").mkdir(parents=True)
        other = Path(place, "another-program")
        other.mkdir()
        mine = SessionFolder()
        assert not dead.exists()
        assert other.exists() and alive.path.parent.exists()
        alive.remove()
        mine.remove()
        assert list(Path(place).iterdir()) == [other]


def test_a_ray_that_does_not_come_up_is_tried_again_then_told_and_the_run_folder_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    monkeypatch.setattr(cluster_module, "_look_again", lambda: None)  # another Ray may run here

    def times_out(**settings: object) -> None:
        logs = Path(str(settings["_temp_dir"]), "session_1", "logs")
        logs.mkdir(parents=True)
        stamp = "[2026-11-30 20:11:26,971"
        (logs / "raylet.err").write_text(
            f"{stamp} C 1 1] (raylet) thread.cc:1: no more threads\n"
            f"{stamp} E 1 1] @ 0x7f (unknown)\n"
        )
        folders.append(logs)
        raise Exception("The current node timed out during startup.")  # as Ray does, by this class

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", times_out)
    monkeypatch.setattr(ray, "shutdown", lambda **_: None)
    with pytest.raises(RunFailed, match=r"timed out during startup. thread.cc:1: no more threads"):
        train_on_ray(tiny(""), tmp_path / "run")
    assert len(folders) == START_ATTEMPTS
    assert [logs for logs in folders if logs.exists()] == []
    assert not (tmp_path / "run").exists()


def test_the_last_words_of_a_dead_actor_are_quoted(tmp_path: Path) -> None:
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    wrote = ":job_id:01\n:actor_name:RolloutActor\nFatal Python error: Aborted\nThread 1:\n"
    (logs / "worker-ab-01-77.err").write_text(wrote)
    (logs / "worker-cd-01-7.err").write_text(":job_id:01\n")
    assert last_words(tmp_path, "The actor died.\n\tpid: 77\n") == "Fatal Python error: Aborted"
    assert last_words(tmp_path, "The actor died.\n\tpid: 7\n") == ""
    assert last_words(tmp_path, "The actor died.") == ""


@pytest.mark.parametrize("wrong", [False, True])
def test_a_cluster_that_turns_us_away_is_named(
    wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**_: object) -> None:
        if wrong:
            raise ConnectionError("Failed to connect") from RuntimeError("InvalidAuthToken: ...")
        raise AuthenticationError("no authentication token was found")

    monkeypatch.setattr(cluster_module, "_look_again", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuses)
    told = r"--address 'head:6379' cannot be joined.*token.*~/.ray/auth_token"
    with (
        pytest.raises(UserError, match=told),
        cluster(configure("udrl", "toy-vector", ["--address", "head:6379"])),
    ):
        pytest.fail("it was joined")


ALONE = """
import json, os, sys
import ray
from bigdm_ray.distributed.cluster import own_ray
from helpers import answers, listeners

with own_ray(2):
    node = ray._private.worker._global_node

    @ray.remote
    class Actor:
        def token(self):
            return os.environ["RAY_AUTH_TOKEN"]

    actor = Actor.remote()
    token = ray.get(actor.token.remote())
    found = listeners(os.getpid())
    folder = os.path.dirname(node.temp_dir)
    told = [
        path
        for top, _, names in os.walk(folder)
        for path in (os.path.join(top, name) for name in names)
        if os.path.isfile(path) and token in open(path, errors="replace").read()
    ]
    asks = f"GcsClient(address={node.gcs_address!r}).internal_kv_get(b'session_name', b'session')"
    client = [sys.executable, "-c", f"from ray._raylet import GcsClient; {asks}"]
    import subprocess
    stranger = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"}
    refused = subprocess.run(client, env=stranger | {"RAY_AUTH_MODE": "disabled"},
                             capture_output=True, text=True, timeout=600).stderr
    print(json.dumps({
        "listeners": found, "folder": folder, "mode": os.stat(folder).st_mode & 0o777, "told": told,
        "metrics": [status for _, port in found if (status := answers(port, "/metrics"))],
        "refused": refused, "long": len(token),
    }))
print(json.dumps({"left": os.path.exists(folder), "token": "RAY_AUTH_TOKEN" in os.environ}))
"""


@pytest.mark.slow
@pytest.mark.ray(own=True)
def test_a_ray_of_ones_own_is_closed_to_others_and_needs_neither_home_nor_a_short_tmpdir(
    tmp_path: Path,
) -> None:
    """No socket off loopback, no metrics, no stranger, no token in a file, nothing left."""
    home = tmp_path / "no-home"
    named = {name for name in os.environ if name.startswith("RAY_AUTH")}
    env = {name: value for name, value in os.environ.items() if name not in named}
    env |= {"TMPDIR": str(long_folder(tmp_path)), "HOME": str(home)}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    during, after = map(json.loads, done.stdout.splitlines()[-2:])
    assert len(during["listeners"]) >= 6  # the gcs, the raylet, workers, this process
    assert [at for at in during["listeners"] if at[0] not in ("127.0.0.1", "::1")] == []
    assert set(during["metrics"]) <= {401}
    assert "AuthenticationError" in during["refused"]
    assert during["long"] == 64 and during["told"] == []
    assert during["mode"] == 0o700 and not home.exists()
    assert after == {"left": False, "token": False}
