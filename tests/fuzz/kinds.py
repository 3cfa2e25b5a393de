"""What is mutated and how it is opened: a small valid sample of each kind of file, and the commands
that read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray import data, evaluate, plots, reproduce, run, weights
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.pictures.curves import read_curve
from bigdm_ray.replay import Retention, Store
from bigdm_ray.training.config import configure
from bigdm_ray.training.loaded import load
from bigdm_ray.training.loop import LocalExecutor, Session
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.start import drop_later, last_whole_checkpoint

SMALL = [
    "--algorithm.hidden",
    "16",
    "--algorithm.batch-size",
    "16",
    "--algorithm.n-updates-per-iter",
    "5",
    "--algorithm.episodes-per-iteration",
    "5",
    "--algorithm.warm-up-episodes",
    "5",
    "--algorithm.replay-size",
    "12",
    "--evaluations.episodes",
    "2",
    "--evaluations.final-episodes",
    "2",
    "--evaluations.every",
    "120",
    "--saves.every",
    "60",
    "--saves.report-every",
    "30",
]
PLAYS = ["udrl", "toy-vector", *SMALL, "--local", "--quiet"]
NO_SUM = "the format has no checksum"


@dataclasses.dataclass(frozen=True)
class Command:
    """One way to open a sample: `go(folder)` gives an exit code, `result(folder)` what came in, as
    text."""

    name: str
    go: Callable[[Path], int]
    result: Callable[[Path], str]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file. `sealed`: it carries a checksum, so no change may come in without a word."""

    name: str
    # kinds of one function have one sample, of partial ones their own
    make: Callable[[Path], object]
    patterns: tuple[str, ...]  # of the files that are mutated
    opens: tuple[Command, ...]
    sealed: bool = False
    forged: bool = False  # checksums are made right again
    why: str = NO_SUM  # a change may come in

    def files(self, folder: Path) -> list[Path]:
        """The files of a sample that are mutated, in the same order each time."""
        return sorted(path for pattern in self.patterns for path in folder.glob(pattern))

    def inner(self, folder: Path) -> list[Path]:
        """The folders of a sample, in which a name that climbs ends."""
        return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")

    def command(self, index: int) -> Command:
        """What opens the mutant of this number."""
        return self.opens[index % len(self.opens)]


def digest(*parts: Any) -> str:
    """A short text that differs where a part does; arrays by their bytes."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            made.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        else:
            made.update(repr(part).encode(errors="surrogatepass"))
    return made.hexdigest()[:16]


def of_weights(path: Path) -> str:
    """The arrays of a file of weights and their version."""
    found = Weights.load(path)
    return digest(
        found.version, *(one for name in sorted(found.arrays) for one in (name, found.arrays[name]))
    )


def of_dataset(folder: Path) -> str:
    """What a dataset that was made holds."""
    made = Dataset.open(folder)
    return digest(made.to_json() | {"source": ""})


# --- runs


def make_run(folder: Path) -> None:
    """A run that has ended, with two checkpoints and several shards."""
    code = run.main([*PLAYS, "--budget.env-steps", "300", "--folder", str(folder / "run")])
    assert code == 0


def resume(folder: Path) -> int:
    """`run ... --resume`, a little further."""
    return run.main(
        [*PLAYS, "--budget.env-steps", "310", "--folder", str(folder / "run"), "--resume"]
    )


def restore(folder: Path) -> int:
    """What `run --resume` does before the first step: the folder is claimed, checkpoint and
    episodes are taken up."""
    asked = configure("udrl", "toy-vector", [*SMALL, "--budget.env-steps", "310"])
    with RunFolder(folder / "run").hold(asked, True, exact=True) as home:
        found, damage = last_whole_checkpoint(asked, home)
        drop_later(asked, home)
        session = Session(asked, home, [], found, exact=True)
        session.note(damage)
        session.close()
        executor = LocalExecutor(asked, home, found)
        arrays = executor.weights().arrays
        executor.close()
    told = digest(*(one for name in sorted(arrays) for one in (name, arrays[name])))
    (folder / "restored").write_text(told)
    return 0


def look(folder: Path) -> int:
    """`bigdm_ray.load` of both weights, and the clock of the run."""
    for which in ("last", "best"):
        load(folder / "run", which)
    return 0


def looked(folder: Path) -> str:
    """What `look` has seen."""
    found = [load(folder / "run", which) for which in ("last", "best")]
    return digest(
        found[0].run.to_json(),
        *((one.command, one.version) for one in found),
        *(value.numpy() for one in found for value in one.model.state_dict().values()),
    )


def resumed(folder: Path) -> str:
    """The network, how it was scored, and the episodes that live."""
    summary = json.loads((folder / "run/summary.json").read_text())
    scores = [summary[name] for name in sorted(summary) if "return" in name]
    return digest(of_weights(folder / "run/weights/last.safetensors"), scores, lived(folder))


def lived(folder: Path) -> str:
    """Every byte of the episodes that a reader of the store sees."""
    store = Store(folder / "run/store", Retention(), 0, write=False).open()
    return digest(*(part for n in range(len(store.table)) for part in parts_of(store.episode(n))))


def parts_of(episode: Any) -> list[Any]:
    """What an episode holds."""
    fields = dataclasses.asdict(episode)
    leaves = [fields.pop(name) for name in ("observations", "actions")]
    flat = [one for arrays in leaves for name in sorted(arrays) for one in (name, arrays[name])]
    return [*flat, fields.pop("rewards"), fields]


def open_store(folder: Path) -> int:
    """A writer's store and every episode of it, as the loop opens them; what was set aside is
    told."""
    import sys

    store = Store(folder / "run/store", Retention(), 64 << 20).open()
    for problem in store.problems:
        print(f"note: {problem}", file=sys.stderr)
    for n in range(len(store.table)):
        store.episode(n)
    return 0


def printed(_: Path) -> str:
    """What was printed."""
    import sys

    sys.stdout.flush()
    return Path("/proc/self/fd/1").read_text(errors="replace")


def evaluated(folder: Path) -> str:
    """The returns of an evaluation."""
    found = json.loads((folder / "run/evaluation.json").read_text())
    return digest(found["returns"], found["command"])


def drawn(folder: Path) -> str:
    """The numbers beside a picture."""
    return (folder / "out/learning_curve.json").read_text()


RESUME = Command("run --resume", resume, resumed)
RESTORE = Command(
    "what --resume takes up", restore, lambda f: (f / "restored").read_text() + lived(f)
)
LOOK = Command("load", look, looked)
VERIFY = Command("data verify", lambda f: data.main(["verify", str(f / "run")]), printed)
STORE = Command("open the store", open_store, lived)
START = Command(
    "run --from",
    lambda f: run.main(
        [*PLAYS, "--budget.env-steps", "20", "--from", str(f / "run"), "--folder", str(f / "next")]
    ),
    lambda f: of_weights(f / "next/weights/last.safetensors"),
)
SCORES = tuple(
    Command(
        f"evaluate --weights {which}",
        lambda f, which=which: evaluate.main(  # type: ignore[misc]
            [str(f / "run"), "--episodes", "2", "--weights", which]
        ),
        evaluated,
    )
    for which in ("last", "best")
)
PLOT = Command("plots", lambda f: plots.main([str(f / "run"), "--out", str(f / "out")]), drawn)
CURVE = Command(
    "read_curve",
    lambda f: 0 * len(str(read_curve(f / "run"))),
    lambda f: digest(repr(read_curve(f / "run"))),
)
RECORD = Command(
    "data record",
    lambda f: data.main(
        ["record", str(f / "run"), "--folder", str(f / "set"), "--episodes", "2", "--quiet"]
    ),
    lambda f: of_dataset(f / "set"),
)


# --- datasets


def make_dataset(folder: Path) -> None:
    """A dataset of six episodes."""
    from sources import dataset

    dataset(folder / "set", "toy-vector")


def learn(folder: Path) -> int:
    """`run bc DATASET`."""
    flags = [
        "--local",
        "--quiet",
        "--budget.learner-steps",
        "2",
        "--algorithm.hidden",
        "8",
        "--algorithm.batch-size",
        "4",
        "--evaluations.final-episodes",
        "1",
    ]
    return run.main(["bc", str(folder / "set"), *flags, "--folder", str(folder / "run")])


DATASET = (
    Command("data show", lambda f: data.main(["show", str(f / "set")]), printed),
    Command("data verify", lambda f: data.main(["verify", str(f / "set")]), printed),
    Command("data list", lambda f: data.main(["list", str(f)]), printed),
    Command("run bc", learn, lambda f: of_weights(f / "run/weights/last.safetensors")),
    Command(
        "data export",
        lambda f: data.main(
            ["export", str(f / "set"), "--to", "parquet", "--folder", str(f / "out"), "--quiet"]
        ),
        lambda f: digest(*(p.read_bytes() for p in sorted((f / "out").rglob("*.parquet")))),
    ),
    Command(
        "data merge",
        lambda f: data.main(["merge", str(f / "set"), "--folder", str(f / "other"), "--quiet"]),
        lambda f: of_dataset(f / "other"),
    ),
)


# --- files of others


def make_d4rl(folder: Path) -> None:
    """HDF5 as D4RL has it."""
    from making import played
    from sources import d4rl_file

    d4rl_file(folder / "s.hdf5", played("toy-continuous", 6).episodes)


def make_progress(folder: Path) -> None:
    """An import that was killed with three shards written, and its source."""
    from bigdm_ray.formats import writer

    make_d4rl(folder)
    if (pid := os.fork()) == 0:
        writer.SHARD_EPISODES = 2
        writer.Writer.finish = lambda *_: os._exit(0)  # type: ignore[method-assign]
        go_on(folder)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0 and len(list(folder.glob(".set.importing/*.arrow"))) == 3


def go_on(folder: Path) -> int:
    """The same `data import` again, of the same words."""
    os.chdir(folder)
    return data.main(["import", "s.hdf5", "--task", "toy-continuous", "--folder", "set", "--quiet"])


def make_parquet(folder: Path) -> None:
    """A row an episode, without and with what this project says of it, packed and not."""
    from making import played
    from sources import episode_parquet, rows_of

    from bigdm_ray.formats.exporting import export_dataset

    episode_parquet(folder / "s.parquet", rows_of(played("toy-continuous", 6).episodes))
    make_own(folder)
    export_dataset(Dataset.open(folder / "own"), "parquet", folder / "ours", True)
    shutil.move(next((folder / "ours").glob("*.parquet")), folder / "t.parquet")
    drop(folder / "own", folder / "ours")


def make_own(folder: Path) -> None:
    """A dataset of this project, to be exported."""
    from sources import dataset

    dataset(folder / "own", "toy-continuous")


def drop(*folders: Path) -> None:
    """Leave nothing of folders behind."""
    for folder in folders:
        shutil.rmtree(folder)


def make_steps(folder: Path) -> None:
    """A row a step, without and with what this project says of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from making import played
    from sources import step_columns

    from bigdm_ray.formats.exporting import export_dataset

    episodes = played("toy-continuous", 6).episodes
    columns = {
        name: pa.array([one.tolist() if isinstance(one, np.ndarray) else one for one in values])
        for name, values in step_columns(episodes).items()
    }
    pq.write_table(pa.table(columns), folder / "s.parquet", compression="none")
    make_own(folder)
    export_dataset(Dataset.open(folder / "own"), "steps", folder / "ours", True)
    shutil.move(next((folder / "ours").glob("*.parquet")), folder / "t.parquet")
    drop(folder / "own", folder / "ours")


def make_minari(data_format: str, folder: Path, task: str = "toy-continuous") -> None:
    """A dataset written by Minari itself."""
    from making import played
    from sources import minari_folder

    warnings.simplefilter("ignore")  # it asks for descriptions of what is made up
    made = minari_folder(folder / "root", task, played(task, 4).episodes, data_format)
    shutil.move(made, folder / "s")
    drop(folder / "root")


def make_dqn(folder: Path) -> None:
    """The replay of a DQN agent, as Dopamine logs it."""
    import gzip
    import io

    chance = np.random.default_rng(1)
    n = 24
    columns = {
        "observation": chance.integers(0, 256, (n, 32, 32)).astype(np.uint8),
        "action": chance.integers(0, 3, n).astype(np.int32),
        "reward": chance.normal(size=n).astype(np.float32),
        "terminal": (np.arange(n) % 8 == 7).astype(np.uint8),
    }
    (folder / "s").mkdir()
    for name, values in (columns | {"add_count": np.array(n)}).items():
        raw = io.BytesIO()
        np.save(raw, values)
        file = f"{'' if name == 'add_count' else '$store$_'}{name}_ckpt.0.gz"
        (folder / "s" / file).write_bytes(gzip.compress(raw.getvalue(), 1, mtime=0))


def make_layout(kind: str, folder: Path) -> None:
    """A file or folder in one of the layouts of `formats/layouts.py`."""
    import layouts
    from making import played

    episodes = played("toy-continuous", 5).episodes
    if kind == "npz":
        np.savez_compressed(folder / "s.npz", **layouts.arrays(episodes))
    elif kind == "lerobot":
        for name, version in (("s", "v2.1"), ("t", "v3.0")):
            layouts.lerobot(folder / name, episodes, version)
    elif kind == "d3rlpy":
        layouts.d3rlpy_file(folder / "s.h5", episodes)
    else:
        layouts.json_lines(folder / "s.json", episodes)
        layouts.json_lines(folder / "t.json", episodes, multi=True)


def imports(*sources: str, task: str = "toy-continuous") -> tuple[Command, ...]:
    """`data import` of each of the sources."""

    def go(folder: Path, source: str) -> int:
        out = ["--folder", str(folder / "set"), "--quiet"]
        return data.main(["import", str(folder / source), "--task", task, *out])

    return tuple(
        Command(
            f"data import {source}",
            lambda f, source=source: go(f, source),  # type: ignore[misc]
            lambda f: of_dataset(f / "set"),
        )
        for source in sources
    )


def make_decision(folder: Path) -> None:
    """A Decision Transformer in Hugging Face's layout, with what `weights export` puts beside
    it."""
    import torch
    from plain_decision import PlainDecisionTransformer
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = PlainDecisionTransformer(SEEN, ACTED, width=8, layers=1, heads=2, timesteps=20)
    (folder / "s").mkdir()
    save_file(dict(model.state_dict()), folder / "s/model.safetensors")
    (folder / "s/config.json").write_text(json.dumps({"n_head": 2, "context_length": 5}))
    statistics = {"mean": [0.0] * SEEN, "std": [1.0] * SEEN, "return_scale": 10.0}
    (folder / "s/statistics.json").write_text(json.dumps(statistics))


SEEN, ACTED = 11, 3


def import_decision(folder: Path) -> int:
    """`weights import` with the statistics beside."""
    words = f"--task hopper --folder {folder / 'run'} --target-return 3600".split()
    beside = ["--statistics", str(folder / "s/statistics.json")]
    return weights.main(["import", str(folder / "s"), *words, *beside])


def make_trajectory(folder: Path) -> None:
    """A Trajectory Transformer of the original repository and its thresholds."""
    import torch
    from plain_trajectory import PlainTrajectory
    from safetensors.torch import save_file

    torch.manual_seed(0)
    bins, window, dims = 6, 2, SEEN + ACTED + 2
    model = PlainTrajectory(SEEN, ACTED, bins=bins, window=window, width=8, layers=1, heads=2)
    save_file(dict(model.state_dict()), folder / "s.safetensors")
    rows = np.sort(np.random.default_rng(0).normal(size=(dims, bins + 1)), 1)
    (folder / "bins.json").write_text(json.dumps({"thresholds": rows.tolist()}))


def import_trajectory(folder: Path) -> int:
    """`weights import` with the thresholds."""
    words = f"--task hopper --folder {folder / 'run'} --bins {folder / 'bins.json'}".split()
    return weights.main(["import", str(folder / "s.safetensors"), *words])


# --- tables


def make_cells(folder: Path) -> None:
    """Two finished cells of a table."""
    found = sorted((Path(__file__).parents[2] / "docs/results/imitation/quick").glob("*.json"))[:2]
    (folder / "results/imitation/quick").mkdir(parents=True)
    for path in found:
        shutil.copy(path, folder / "results/imitation/quick")


def make_peers(folder: Path) -> None:
    """What peers came to beside two cells of a table, one of which is finished."""
    name = Path("value-based/quick")
    found = sorted((Path(__file__).parents[2] / "docs/results" / name).glob("*--CQL--*.json"))[:2]
    (folder / "results" / name).mkdir(parents=True)
    shutil.copy(found[0], folder / "results" / name)
    (folder / "results/peers" / name).mkdir(parents=True)
    for path in found:
        cell = json.loads(path.read_text())
        told = {"peer": "d3rlpy 2.8.1", "sha256": cell["dataset"]["sha256"]}
        kept = ("table", "scale", "row", "column", "seed", "target", "flags", "normalized_score")
        kept = (*kept, "return_mean", "return_std", "return_episodes", "task")
        told |= {name: cell[name] for name in kept}
        (folder / "results/peers" / name / path.name).write_text(json.dumps(told))


def show_cells(table: str, folder: Path) -> int:
    """`reproduce TABLE --show`."""
    places = [f"--{name}={folder / name}" for name in ("results", "data", "runs")]
    return reproduce.main([table, "--scale", "quick", "--show", *places])


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "shards",
            make_run,
            ("run/store/*.arrow",),
            (*(STORE, VERIFY, RESTORE) * 5, RESUME),
            sealed=True,
        ),
        Kind(
            "forged",
            make_run,
            ("run/store/*.arrow",),
            (STORE, VERIFY, RESTORE),
            forged=True,
            why="its checksums are made right again",
        ),
        Kind(
            "checkpoints",
            make_run,
            ("run/checkpoints/*/state.json", "run/checkpoints/*/*.safetensors"),
            (*(RESTORE,) * 8, RESUME, START),
        ),
        Kind(
            "runs",
            make_run,
            ("run/run.json",),
            (*(LOOK, RESTORE) * 4, SCORES[0], RESUME, PLOT, RECORD),
        ),
        Kind(
            "weights",
            make_run,
            ("run/weights/*", "run/summary.json"),
            (*(LOOK,) * 6, *SCORES, RESUME, RECORD),
        ),
        Kind(
            "metrics",
            make_run,
            ("run/metrics.jsonl", "run/summary.json"),
            (PLOT, *(CURVE,) * 8, RESTORE),
        ),
        Kind(
            "cards",
            make_dataset,
            ("set/dataset.json",),
            DATASET,
            why="the card has a checksum of the episodes, none of itself",
        ),
        Kind("sets", make_dataset, ("set/*.arrow",), DATASET, sealed=True),
        Kind("hdf5", make_d4rl, ("s.hdf5",), imports("s.hdf5")),
        Kind(
            "progress",
            make_progress,
            (".set.importing/progress.json", ".set.importing/*.arrow"),
            (Command("data import again", go_on, lambda f: of_dataset(f / "set")),),
            sealed=True,  # what does not fit is imported anew
        ),
        Kind("parquet", make_parquet, ("*.parquet",), imports("s.parquet", "t.parquet")),
        Kind("steps", make_steps, ("*.parquet",), imports("s.parquet", "t.parquet")),
        Kind("minari", partial(make_minari, "hdf5"), ("s/data/*.*",), imports("s")),
        Kind(  # texts, and pictures in JPEG, whose length varies
            "minari-text",
            partial(make_minari, "hdf5", task="toy-mixed"),
            ("s/data/*.hdf5",),
            imports("s", task="toy-mixed"),
        ),
        Kind(
            "minari-arrow",
            partial(make_minari, "arrow"),
            ("s/data/*.*", "s/data/*/*"),
            imports("s"),
        ),
        Kind("npz", partial(make_layout, "npz"), ("s.npz",), imports("s.npz")),
        Kind(
            "lerobot",
            partial(make_layout, "lerobot"),
            ("*/*/**/*.*",),
            imports("s", "t", task="none"),
        ),
        Kind("d3rlpy", partial(make_layout, "d3rlpy"), ("s.h5",), imports("s.h5")),
        Kind("rllib-json", partial(make_layout, "json"), ("*.json",), imports("s.json", "t.json")),
        Kind("dqn", make_dqn, ("s/*.gz",), imports("s", task="toy-image")),
        Kind(
            "decision",
            make_decision,
            ("s/*",),
            (
                Command(
                    "weights import",
                    import_decision,
                    lambda f: of_weights(f / "run/weights/last.safetensors"),
                ),
            ),
        ),
        Kind(
            "bins",
            make_trajectory,
            ("bins.json", "s.safetensors"),
            (
                Command(
                    "weights import --bins",
                    import_trajectory,
                    lambda f: of_weights(f / "run/weights/last.safetensors"),
                ),
            ),
        ),
        Kind(
            "cells",
            make_cells,
            ("results/*/*/*.json",),
            (Command("reproduce --show", partial(show_cells, "imitation"), printed),),
        ),
        Kind(
            "peers",
            make_peers,
            ("results/peers/*/*/*.json",),
            (Command("reproduce --show", partial(show_cells, "value-based"), printed),),
        ),
    )
}
