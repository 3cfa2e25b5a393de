"""Kills of the product at every step on the file system, and the same command again.

    python tests/kills/harness.py CASE ...           every step of these cases (default: of all)
    python tests/kills/harness.py CASE --points 5    five of its steps
    python tests/kills/harness.py CASE --full-disk   the disk is full from a step on: no kill
    python tests/kills/harness.py CASE --stop        SIGTERM in place of SIGKILL

A command runs in a fork of this process, in which all that it imports is there already. Its steps
on the file system are counted: files opened to write, written and closed, synced, renamed, removed,
folders made. For each step another fork is killed before it (a write: when half of it is done).
Then the same command is given again, as a user would, with --resume where there is a run by now. It
must end well, come to the same as a command that nothing has disturbed, and leave nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py  # noqa: E402  (after the environment is set)
import numpy as np  # noqa: E402
from making import dataset_of  # noqa: E402
from steps import How, forked  # noqa: E402

from bigdm_ray.doors import door  # noqa: E402
from bigdm_ray.formats import importing, writer  # noqa: E402
from bigdm_ray.formats.dataset import Dataset  # noqa: E402
from bigdm_ray.formats.exporting import export_dataset  # noqa: E402
from bigdm_ray.replay import Store  # noqa: E402
from bigdm_ray.training import checkpoint, recording  # noqa: E402
from bigdm_ray.training.config import configure, read_run  # noqa: E402
from bigdm_ray.training.loop import train_local  # noqa: E402
from bigdm_ray.training.params import Weights  # noqa: E402
from bigdm_ray.weights import main as weights_door  # noqa: E402

THERE = re.compile("exists already|already holds a run|is not empty")
"""What a command may say that had been killed when all was done."""


@dataclass(frozen=True)
class Case:
    """A command that makes a folder, and how what it made is compared."""

    door: str
    words: str  # with {inputs} and {out} in place of folders
    made: Callable[[Path], Any]
    begun: str = ""  # the folder of inputs that `out` is a copy of when the command is first given

    def run(self, inputs: Path, out: Path) -> int:
        """Give the command, with --resume where there is a run."""
        words = [word.format(inputs=inputs, out=out) for word in self.words.split()]
        if self.door == "run" and (out / "run.json").is_file():
            words.append("--resume")
        return door(importlib.import_module(f"bigdm_ray.{self.door}").main, words)


def files(out: Path) -> dict[str, Any]:
    """All files by their names; weights as what they hold, for their metadata stand in no order."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(out))] = data = path.read_bytes()
            if path.parent.name == "weights" and path.suffix == ".safetensors":
                weights = Weights.load(path)
                arrays = {name: values.tobytes() for name, values in weights.arrays.items()}
                data = (weights.version, weights.command, weights.score, arrays)
                found[str(path.relative_to(out))] = data
    return found


def named(out: Path) -> list[str]:
    """The names of what is in a run folder, folders too.

    Not counted are event files, one a process, columns that are made where they are missing, and
    shards that something needs: which episodes lie together depends on when they were compacted.
    Checkpoints go by their order: a run that is stopped before its first has one more of them.
    """
    run = read_run(out)
    living = Store(out / "store", run.retention, write=False).open().living_shards()
    shards = sorted(path.name for path in (out / "store").glob("*.arrow"))
    needed = {
        *(ref.name for ref in living),
        *checkpoint.named_shards(out / "checkpoints"),
        *shards[-1:],
    }
    saves = sorted(path.name for path in (out / "checkpoints").glob("save-*"))
    names = [
        re.sub(
            r"save-\d+", lambda found: f"save {saves.index(found[0])}", str(path.relative_to(out))
        )
        for path in out.rglob("*")
        if path.name not in needed
    ]
    return sorted(n for n in names if not n.startswith("tensorboard/") and not n.endswith(".npy"))


def trained(out: Path) -> dict[str, Any]:
    """What a run has come to: weights, episodes, reports but for times, and the names of files."""
    run = read_run(out)
    table = Store(out / "store", run.retention, write=False).open().table
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": named(out),
        "weights": [data for name, data in files(out).items() if name.startswith("weights/")],
        "episodes": (table.ids.tolist(), table.returns.tolist()),
        "reports": [
            {k: v for k, v in line.items() if not re.search(r"_per_s$|wall_s$|_ms$", k)}
            for line in lines
        ],
    }


def hdf5(out: Path) -> dict[str, Any]:
    """The files, HDF5's as what they hold: they note the time at which they were made."""
    found: dict[str, Any] = {}
    for name, data in files(out).items():
        found[name] = data
        if name.endswith(".hdf5"):
            found[name] = values = {}
            with h5py.File(out / name) as file:
                file.visititems(
                    lambda at, one, values=values: values.update(
                        {at: np.asarray(one).tobytes() if isinstance(one, h5py.Dataset) else None}
                    )
                )
    return found


PLAYS = (
    "udrl toy-vector --folder {out} --local --quiet --budget.env-steps 500 --saves.every 200 "
    "--saves.report-every 150 --evaluations.every 150 --evaluations.episodes 2 "
    "--evaluations.final-episodes 2 --algorithm.hidden 8 --algorithm.warm-up-episodes 10 "
    "--algorithm.n-updates-per-iter 3 --algorithm.replay-size 20"
)
STUDIES = (
    "bc {inputs}/data --folder {out} --local --quiet --budget.learner-steps 10 --saves.every 4 "
    "--saves.report-every 3 --evaluations.every 4 --evaluations.episodes 2 "
    "--evaluations.final-episodes 2 --algorithm.hidden 8"
)
EXPORTS = ("minari", "parquet", "steps")
CASES = {
    "run": Case("run", PLAYS, trained),
    "run --resume": Case("run", PLAYS, trained, "cut"),
    "run on a dataset": Case("run", STUDIES, trained),
    "import": Case("data", "import {inputs}/minari --folder {out} --quiet", files),
    "merge": Case("data", "merge {inputs}/data {inputs}/more --folder {out} --quiet", files),
    "record": Case("data", "record --random toy-vector --steps 600 --folder {out} --quiet", files),
    **{
        f"export to {to}": Case(
            "data", f"export {{inputs}}/data --to {to} --folder {{out}} --quiet", hdf5
        )
        for to in EXPORTS
    },
    "weights import": Case("weights", "import {inputs}/theirs --task hopper --folder {out}", files),
    "weights export": Case("weights", "export {inputs}/dt --folder {out}", files),
}
CUT = 130
"""The step at which the run is killed that `run --resume` goes on with: it has two checkpoints."""


def prepare(inputs: Path) -> None:
    """What the cases read; small shards and frequent saves, so that there is much to interrupt."""
    writer.SHARD_EPISODES, importing.BATCH_EPISODES = 8, 5
    recording.STRETCH_STEPS, recording.SAVE_EVERY_S, recording.ROWS = 100, 0.0, 4
    dataset_of(inputs / "data", "toy-vector", 20)
    dataset_of(inputs / "more", "toy-vector", 12, seed=2)
    export_dataset(Dataset.open(inputs / "data"), "minari", inputs / "minari", quiet=True)
    dataset_of(inputs / "hopper", "hopper", 2)
    flags = (
        "--algorithm.width 8 --algorithm.layers 1 --algorithm.context 3 --budget.learner-steps 2 "
        "--evaluations.episodes 1 --evaluations.final-episodes 1"
    )
    train_local(configure("dt", str(inputs / "hopper"), flags.split()), inputs / "dt")
    cut = forked(lambda: CASES["run"].run(inputs, inputs / "cut"), inputs / "log", at=CUT)
    assert cut.code == -signal.SIGKILL and len(list((inputs / "cut" / "checkpoints").iterdir())) > 1
    assert weights_door(["export", str(inputs / "dt"), "--folder", str(inputs / "theirs")]) == 0


def check(name: str, root: Path, points: int, how: How) -> dict[str, Any]:
    """Every step (or `points` of them) of a case: how many, and what has failed."""
    case, inputs, log = CASES[name], root / "inputs", root / "log"

    def place() -> Path:
        out = Path(tempfile.mkdtemp(dir=root)) / "out"
        if case.begun:
            shutil.copytree(inputs / case.begun, out)
        return out

    first = place()
    whole = forked(lambda: case.run(inputs, first), log, at=0)
    if whole.code:
        return {"steps": 0, "killed": 0, "failed": [f"undisturbed: {whole.said[-2000:]}"]}
    expected = case.made(first)
    last = whole.steps
    struck_at = list(range(1, last + 1))
    if points and points < last:
        struck_at = [1 + (last - 1) * i // (points - 1) for i in range(points)]
    failed = []
    for at in struck_at:
        out = place()
        struck = forked(lambda out=out: case.run(inputs, out), log, at, how)
        problem = ""
        if how == "full" and (struck.code not in (0, 1) or "Traceback" in struck.said):
            problem = f"the full disk was told as {struck.said[-1500:]!r}"
        if how == "kill" and struck.code not in (-signal.SIGKILL, 0):
            problem = f"it was not killed, but ended {struck.code}: {struck.said[-1500:]!r}"
        if how == "stop" and (
            struck.code not in (128 + signal.SIGTERM, 0) or "Traceback" in struck.said
        ):
            problem = f"the signal ended it with {struck.code}: {struck.said[-1500:]!r}"
        left = sorted(str(path.relative_to(out.parent)) for path in out.parent.rglob("*"))
        saved = (
            out / "checkpoints" / "save-000000"
        ).is_dir()  # where it stood: see training/loop.py
        again = forked(lambda out=out: case.run(inputs, out), log)
        if not problem and again.code and not (again.code == 2 and THERE.search(again.said)):
            problem = (
                f"the same command ended {again.code}: {again.said[-1500:]!r}; it found {left}"
            )
        if not problem:
            problem = differing(case, out, expected, files_alone=saved) or ""
        if problem:
            failed.append(f"{name}, step {at} of {last}: {problem}")
        shutil.rmtree(out.parent)
    return {"steps": last, "killed": len(struck_at), "failed": failed}


def differing(case: Case, out: Path, expected: Any, files_alone: bool = False) -> str | None:
    """How what was made differs from what an undisturbed command makes, and what else was left.

    With `files_alone` only which files there are is compared.
    """
    if beside := [path.name for path in out.parent.iterdir() if path != out]:
        return f"left beside it: {beside}"
    try:
        found = case.made(out)
    except (OSError, ValueError, KeyError) as error:
        return f"what it made cannot be read: {error!r}"
    there, then = (one.get("files", list(one)) for one in (found, expected))
    if there != then:
        return f"left in it: {sorted({*there} - {*then})}, missing: {sorted({*then} - {*there})}"
    names = [name for name in expected if found[name] != expected[name] and not files_alone]
    return f"other than undisturbed: {names}" if names else None


def main() -> int:
    """Print a line of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--points", type=int, default=0, help="steps of each case (default: all)")
    parser.add_argument("--full-disk", action="store_true", help="a full disk in place of a kill")
    parser.add_argument("--stop", action="store_true", help="SIGTERM in place of a kill")
    given = parser.parse_args()
    how: How = "full" if given.full_disk else "stop" if given.stop else "kill"
    code = 0
    with tempfile.TemporaryDirectory() as root:
        prepare(Path(root) / "inputs")
        for name in given.cases or CASES:
            report = check(name, Path(root), given.points, how)
            print(json.dumps({"case": name} | report), flush=True)
            code |= bool(report["failed"])
    return code


if __name__ == "__main__":
    raise SystemExit(main())
