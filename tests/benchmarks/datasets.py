"""Import of foreign episodes: speed by format and length of episodes, and anonymous memory for a
file of any size.

    python -m tests.benchmarks.datasets            steps per CPU-second
    python -m tests.benchmarks.datasets --gib 12   peak of RssAnon while a synthetic file of 12 GiB
                                                   comes in; twice that on disk

Episodes look like HalfCheetah's (17 float32 seen, 6 applied), or hold 84 x 84 grey pictures. The
task's environment and the imports of packages are paid once, before the clock runs. Files are made
in a temporary folder (--where DIR) and removed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.formats.exporting import export_dataset
from bigdm_ray.formats.importing import import_dataset
from bigdm_ray.formats.writer import Writer
from bigdm_ray.replay.episode import FOREIGN, Episode, EpisodeId
from tests.benchmarks.common import header, measure, row
from tests.benchmarks.memory import anonymous_mib

TASK = "halfcheetah"
STEPS = 400_000
SEEN, DONE = 17, 6


def signature() -> Signature:
    """HalfCheetah's."""
    return Signature(
        {"": Leaf("tensor", (SEEN,), "float32")},
        {"": Leaf("tensor", (DONE,), "float32", (-1.0,) * DONE, (1.0,) * DONE)},
    )


def episodes(length: int, steps: int) -> list[Episode]:
    """Made-up episodes that together have so many steps."""
    chance = np.random.default_rng(0)
    made = []
    for number in range(steps // length):
        seen = chance.random((length + 1, SEEN), np.float32)
        done = chance.random((length, DONE), np.float32)
        made.append(
            Episode(
                {"": seen},
                {"": done},
                chance.random(length, np.float32),
                number % 2 == 0,
                EpisodeId(0, FOREIGN, number),
                TASK,
            )
        )
    return made


def sources(folder: Path, length: int) -> dict[str, Path]:
    """The same episodes in every format."""
    writer = Writer(folder / "own", {}, TASK, signature())
    writer.add(episodes(length, STEPS))
    dataset = writer.finish("own", "made up", {"environment": "HalfCheetah-v5"})
    made = {"dataset of this project": folder / "own"}
    for name in ("parquet", "steps", "minari"):
        export_dataset(dataset, name, folder / name, quiet=True)
        made[name] = folder / name
    made["d4rl"] = d4rl(folder / "halfcheetah.hdf5", STEPS, length)
    return made


def d4rl(path: Path, steps: int, length: int) -> Path:
    """A D4RL file, written a block at a time."""
    import h5py

    chance = np.random.default_rng(0)
    block = 100 * length
    shapes: dict[str, Any] = {
        "observations": (SEEN,),
        "next_observations": (SEEN,),
        "actions": (DONE,),
        "rewards": (),
        "terminals": (),
        "timeouts": (),
    }
    with h5py.File(path, "w") as file:
        made = {
            name: file.create_dataset(
                name,
                (steps, *shape),
                dtype=bool if name in ("terminals", "timeouts") else np.float32,
            )
            for name, shape in shapes.items()
        }
        for at in range(0, steps, block):
            rows = min(block, steps - at)
            for name in ("observations", "actions", "rewards"):
                made[name][at : at + rows] = chance.random((rows, *shapes[name]), np.float32)
            seen = made["observations"][at : at + rows]
            made["next_observations"][at : at + rows] = np.concatenate(
                [seen[1:], chance.random((1, SEEN), np.float32)]
            )
            made["timeouts"][at : at + rows] = np.arange(at, at + rows) % length == length - 1
    return path


def big_parquet(path: Path, gib: float, length: int = 1000) -> int:
    """Episode Parquet of so many GiB, 500 episodes a row group; its steps."""
    bytes_a_step = 4 * (SEEN + DONE + 1)
    count = int(gib * 2**30 / (bytes_a_step * length))
    chance = np.random.default_rng(0)
    kinds = {
        "observations": pa.large_list(pa.float32()),
        "actions": pa.large_list(pa.float32()),
        "rewards": pa.large_list(pa.float32()),
    }
    kinds |= {"terminated": pa.bool_(), "truncated": pa.bool_(), "env_id": pa.string()}
    with pq.ParquetWriter(
        path, pa.schema(kinds), compression="none", use_dictionary=["env_id"]
    ) as writer:
        for at in range(0, count, 500):
            rows = min(500, count - at)
            lists = {
                name: (length + extra) * width
                for name, width, extra in (
                    ("observations", SEEN, 1),
                    ("actions", DONE, 0),
                    ("rewards", 1, 0),
                )
            }
            columns: dict[str, Any] = {
                name: pa.LargeListArray.from_arrays(
                    pa.array(np.arange(rows + 1) * size),
                    pa.array(chance.random(rows * size, np.float32)),
                )
                for name, size in lists.items()
            }
            columns |= {
                "terminated": [False] * rows,
                "truncated": [True] * rows,
                "env_id": ["HalfCheetah-v5"] * rows,
            }
            writer.write_table(pa.table(columns, schema=pa.schema(kinds)), row_group_size=500)
    return count * length


def speed(where: Path) -> None:
    """Print a figure for each format and length of episodes."""
    for length in (1000, 100):
        with tempfile.TemporaryDirectory(dir=where) as text:
            folder = Path(text)
            for name, source in sources(folder, length).items():

                def work(source: Path = source, out: Path = folder / "out") -> float:
                    shutil.rmtree(out, ignore_errors=True)
                    return float(import_dataset([str(source)], out, TASK, quiet=True).steps)

                row(
                    f"import {name}, episodes of {length:,} steps",
                    "steps",
                    measure(work, repeats=3),
                )


def memory(where: Path, gib: float) -> None:
    """Print the peak of anonymous memory while a large file comes in."""
    for name in ("parquet", "d4rl"):
        with tempfile.TemporaryDirectory(dir=where) as text:
            folder = Path(text)
            path = folder / ("halfcheetah.hdf5" if name == "d4rl" else "big.parquet")
            if name == "parquet":
                big_parquet(path, gib)
            else:
                d4rl(path, int(gib * 2**30 / (4 * (2 * SEEN + DONE + 1) + 2)), 1000)
            peak, over = [anonymous_mib()], threading.Event()

            def watch(peak: list[float] = peak, over: threading.Event = over) -> None:
                while not over.wait(0.02):
                    peak[0] = max(peak[0], anonymous_mib())

            watcher = threading.Thread(target=watch)
            before = anonymous_mib()
            watcher.start()
            began = time.perf_counter()
            made = import_dataset([str(path)], folder / "out", TASK, quiet=True)
            seconds = time.perf_counter() - began
            over.set()
            watcher.join()
            size = path.stat().st_size / 2**30
            print(
                f"{name} of {size:.1f} GiB, {made.steps:,} steps in {seconds:,.0f} s: RssAnon"
                f" {before:.0f} MiB before, at most {peak[0]:.0f} MiB"
            )


def main() -> None:
    """Speed, or with --gib memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gib", type=float, help="size of the file whose import's memory is watched"
    )
    parser.add_argument("--where", type=Path, help="where temporary files go")
    given = parser.parse_args()
    header()
    if given.gib is None:
        speed(given.where)
    else:
        memory(given.where, given.gib)


if __name__ == "__main__":
    main()
