"""The run folder: all that evaluate, plots and `--resume` need, and how it is opened.

run.json  metrics.jsonl  summary.json  weights/  checkpoints/  store/  tensorboard/  plots/
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import platform
import shutil
import textwrap
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from bigdm_ray.errors import RunFailed, UserError, full_disk, install
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.files import ENDING, remove_leftovers
from bigdm_ray.replay.shard import publish, write_failure
from bigdm_ray.training.config import Run, read_run
from bigdm_ray.training.params import Weights

STORE_WAIT_S = 60.0
"""Seconds to wait for an earlier writer of the store: Ray ends the actors of a driver that was
killed, but not at once."""
LOCKS = (".lock", ".store.lock")
PARTS = ("store", "checkpoints", "weights")
LOOPS = {True: "lock-step", False: "asynchronous"}


class RunFolder:
    """The paths of a run.

    `claim` makes or reopens one for writing and locks it against a second writer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "store"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.begun = False
        self._lock: IO[str] | None = None

    def weights(self, which: str) -> Path:
        """Where the `last` or `best` weights are, or those of a milestone."""
        return self.path / "weights" / f"{which}.safetensors"

    def milestones(self) -> list[str]:
        """The names of the weights that `--saves.milestones` kept, the oldest first."""
        return sorted(path.stem for path in (self.path / "weights").glob("step-*.safetensors"))

    @property
    def loop(self) -> str | None:
        """How the run that the folder holds began: one of LOOPS, or None in a run.json that does
        not say it."""
        began: str | None = read_json(self.path / "run.json").get("loop")
        return began

    @contextlib.contextmanager
    def hold(self, run: Run, resume: bool, exact: bool) -> Iterator[RunFolder]:
        """`claim`, and `release` at the end.

        A new run that an error or a signal ends before it has `begun` leaves its folder as it was.
        So its command can be given again for the same folder, once what it was refused for (a
        device, a missing package) is mended.
        """
        there, new = self.path.exists(), not (self.path / "run.json").is_file()
        self.claim(run, resume, exact)
        try:
            yield self
        except (UserError, KeyboardInterrupt):
            if new and not self.begun:
                self._undo()
                if there:
                    self.path.mkdir(exist_ok=True)
            raise
        finally:
            self.release()

    def claim(self, run: Run, resume: bool, exact: bool) -> RunFolder:
        """Make the folder for `run`, or with `resume` reopen the one that holds it.

        Raises UserError.

        `exact` runs are in lock-step. They drop what was stored after their checkpoint and play it
        again, which an asynchronous run must never do, so neither kind is resumed as the other. A
        resume first waits for the actors of a killed driver to end.
        """
        self.check(run, resume, exact)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not resume:
                self.require_vacant()  # another may have begun and ended a run here meanwhile
                played = {} if run.offline else {"backend": backend_of(run)}
                about = {"loop": LOOPS[exact], **played, "versions": versions()}
                publish(
                    self.path / "run.json", json.dumps(run.to_json() | about, indent=1).encode()
                )
            for folder in (self.store, self.checkpoints, self.path / "weights"):
                folder.mkdir(exist_ok=True)
            self.hold_store().close()
            remove_leftovers(self.path)  # pictures and evaluations may be written by others now
            for folder in (self.store, self.checkpoints, self.path / "weights"):
                remove_leftovers(folder, alone=True)
        except BlockingIOError:
            self.release()
            raise UserError(
                f"--folder {self.path} is in use by another process; wait for it to end"
            ) from None
        except OSError as error:
            self.release()
            if full_disk(error):
                raise write_failure(self.path, error) from None
            raise UserError(
                f"--folder {self.path} cannot be written: {error.strerror}; choose another folder"
            ) from None
        except UserError:
            self.release()
            raise
        return self

    def check(self, run: Run, resume: bool, exact: bool) -> None:
        """Raise UserError where `claim` would refuse what is here; nothing is made."""
        if not resume:
            self.require_vacant()
        elif (self.path / "run.json").is_file():
            self._same(run, exact)
        else:
            raise UserError(
                f"--resume: there is no run in {self.path}; leave --resume out to begin one there"
            )

    def _undo(self) -> None:
        """Remove the folder: run.json after what a run has made, so a kill here is no dead end."""
        with contextlib.suppress(OSError):
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name not in ("run.json", *LOCKS):
                    path.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def free(self) -> None:
        """`require_vacant`, and without what killed beginnings left.

        Raises UserError and OSError.
        """
        self.require_vacant()
        if self.path.is_dir():
            for path in self.path.iterdir():
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()

    def require_vacant(self) -> None:
        """Raise UserError unless there is nothing here, or what killed beginnings of runs left."""
        if (self.path / "run.json").is_file():
            what = "already holds a run; give --resume to go on with it"
        elif self.path.is_dir():
            if all(_left_over(path) for path in self.path.iterdir()):
                return
            what = "is not empty and holds no run; empty it"
        elif self.path.exists() or self.path.is_symlink():
            what = "is a file; remove it"
        else:
            return
        raise UserError(f"--folder {self.path} {what}, or choose another folder")

    def hold_store(self) -> IO[str]:
        """The right to write the store, for as long as the file is open and this process lives.

        Raises RunFailed where another keeps it.
        """
        held = (self.path / ".store.lock").open("w")
        patience = time.monotonic() + STORE_WAIT_S
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return held
            except BlockingIOError:
                if time.monotonic() > patience:
                    held.close()
                    raise RunFailed(
                        f"{self.store} is still being written by another process; end it, then"
                        " --resume"
                    ) from None
                time.sleep(0.05)

    def _same(self, run: Run, exact: bool) -> None:
        """Refuse to resume another run, or a damaged one; the budget and the machines may change,
        nothing else."""
        theirs = read_run(self.path)
        if (best := self.weights("best")).is_file():
            Weights.load(best)  # it is wanted when the run ends
        written = read_json(self.path / "run.json")
        began = written.get("loop", LOOPS[exact])
        if began != LOOPS[exact]:
            how = (
                "with --local, or with --machines.lock-step true"
                if not exact
                else "without --local and --machines.lock-step, or with --serve as it began"
            )
            raise UserError(
                f"--folder {self.path} holds a run that began as {began}; resume it {how}"
            )
        if differs := difference(run, theirs):
            raise UserError(
                f"--folder {self.path} holds another run ({differs}); give --resume and --folder"
                " alone to go on with that one, or choose another folder"
            )
        backends = written.get("backend", {})
        for task in (use.task for use in run.tasks if not run.offline):
            backend = backends.get(task.name) if run.several else backends or None
            if backend in (None, task.backend):
                continue
            why = (
                f"on the fast environments, whose package {task.missing_module()!r} is missing"
                f" here; install it with: {install(task.extra)}"
            )
            if backend == "reference":
                uninstall = "".join(f"uninstall {package}, or " for package in task.fast_needs)
                why = (
                    "on gymnasium's environments, but the fast ones would play here;"
                    f" {uninstall}begin anew in another folder"
                )
            raise UserError(f"--folder {self.path} holds a run that began {why}")

    def release(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, whole or not at all."""
        publish(self.summary_file, json.dumps(summary, indent=1).encode())


def _left_over(path: Path) -> bool:
    """Whether a killed beginning of a run leaves it: a lock, half a run.json, an empty folder."""
    if path.name in PARTS and path.is_dir() and not path.is_symlink():
        return not any(path.iterdir())
    return path.name in LOCKS or fnmatch(path.name, f".run.json.*{ENDING}")


def backend_of(run: Run) -> str | dict[str, str]:
    """Which environments play here, as run.json tells it; of several tasks by their names."""
    if not run.several:
        return run.only.task.backend
    return {use.name: use.task.backend for use in run.tasks}


SAME = (
    "algorithm",
    "task",
    "dataset",
    "start",
    "seed",
    "rollouts",
    "evaluations",
    "saves",
    "machines",
)
"""What a run and its resume share: all but the budget, and of the machines the precision alone."""


def difference(run: Run, other: Run, names: tuple[str, ...] = SAME) -> str | None:
    """The first of these parts that `other` has and `run` has not, in words; None where they are
    equal. Datasets are equal by their content."""
    mine, theirs = run.to_json(), other.to_json()
    for run_json in (mine, theirs):
        several = run_json.pop("tasks", None)
        uses = several or [{"task": run_json["task"], "dataset": run_json["dataset"]}]
        hashes = [use["dataset"] and use["dataset"]["sha256"] for use in uses]
        run_json["dataset"] = hashes if several else hashes[0]  # they may lie elsewhere
        if several:
            run_json["task"] = [f"{use['task']} with weight {use['weight']:g}" for use in uses]
        run_json["start"] = run_json["start"] and run_json["start"]["learner_step"]
        run_json["machines"] = {"precision": run_json["machines"]["precision"]}
    for name in names:
        here, there = mine[name], theirs[name]
        if here != there and isinstance(here, dict) and here.keys() == there.keys():
            inner = next(key for key in here if here[key] != there[key])
            name, here, there = f"{name}.{inner}", here[inner], there[inner]
        if here != there:
            return f"{name} is {_short(there)}, here {_short(here)}"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def versions() -> dict[str, str]:
    """Versions of everything that a score depends on."""
    names = (
        "bigdm-ray",
        "ray",
        "torch",
        "numpy",
        "pyarrow",
        "gymnasium",
        "envpool",
        "box2d",
        "vizdoom",
        "mujoco",
        "ale-py",
        "stable_baselines3",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def milestone(clock: int) -> str:
    """The name of the weights that are kept at a number of environment steps, or of learner steps
    on a dataset."""
    return f"step-{clock:012d}"


def summary_of(folder: Path) -> dict[str, Any]:
    """The content of a run's summary.json, nothing where it has none yet. Raises UserError."""
    path = RunFolder(folder).summary_file
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is broken ({error}); remove it, and have it written again with `run --resume`"
        ) from None


def load_score(weights: Path) -> float | None:
    """The mean return that a weights file was kept for, None where there is no such file.

    Raises UserError.
    """
    return Weights.load(weights).score if weights.is_file() else None


def save_weights(
    folder: RunFolder, which: str, weights: Weights, command: dict[str, float], score: float | None
) -> None:
    """Write `weights/WHICH.safetensors` with the command it was scored with. Raises RunFailed."""
    dataclasses.replace(weights, command=command, score=score).save(folder.weights(which))


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all. Raises RunFailed."""
    try:
        remove_leftovers(path.parent, path.name)
        publish(path, json.dumps(data, indent=1).encode())
    except (RunFailed, OSError) as error:
        cause = error.__context__ if isinstance(error, RunFailed) else error
        raise RunFailed(
            f"cannot write {path}: {getattr(cause, 'strerror', error)}; make its folder writable or"
            " free some space"
        ) from None


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The reports of a run's metrics.jsonl; a last line that is still being written is left out.

    Raises UserError.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"there is no run in {folder}: it holds no run.json")
    path = RunFolder(folder).metrics
    *lines, rest = path.read_text(errors="replace").split("\n") if path.is_file() else [""]
    reports: list[dict[str, float]] = []
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            report = read_json(line, object)
        except ValueError as error:
            if number > len(lines) and line.startswith("{"):
                break
            raise UserError(
                f"line {number} of {path} is not JSON ({error}); remove it and try again"
            ) from None
        if not isinstance(report, dict):
            raise UserError(
                f"line {number} of {path} is not a report ({textwrap.shorten(line, 40)}); remove it"
                " and try again"
            )
        reports.append(report)
    return reports
