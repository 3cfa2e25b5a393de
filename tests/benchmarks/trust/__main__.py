"""Train the peers of chosen cells: see the package."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs import find_task
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.replay.shard import publish
from bigdm_ray.tables.base import Cell, find_grid
from bigdm_ray.tables.folders import TableFolders
from bigdm_ray.tables.peers import peer_file
from tests.benchmarks.common import Peer, header
from tests.benchmarks.conservative import scored
from tests.benchmarks.trust import bail_authors, jannerm, kzl, with_d3rlpy

PEERS = (with_d3rlpy, bail_authors, kzl, jannerm)


def main() -> None:
    """Train the peers of the chosen cells that are not there yet, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--peer", required=True, help="a Python that has what the peer needs")
    parser.add_argument("--code", type=Path, help="a checkout of the peer's repository")
    parser.add_argument("--only", action="append", default=[], help="words of the cells' names")
    parser.add_argument("--scale", choices=("quick", "paper"), default="quick")
    parser.add_argument("--data", type=Path, default=Path("datasets"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    header()
    grid = find_grid(given.table)
    shelf = TableFolders(grid, given.scale, given.data, given.results, Path())
    for cell in shelf.choose_cells(given.only):
        path = peer_file(shelf, cell)
        known = [peer for peer in PEERS if (grid.name, cell.column) in peer.COLUMNS]
        if known and not path.is_file():
            result = trained(shelf, cell, known[0], given.peer, given.code)
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(path, json.dumps(result, indent=1).encode())
            print(f"{cell.name}: {result['normalized_score']:.1f}, {result['peer']}", flush=True)


def trained(
    shelf: TableFolders, cell: Cell, kind: Any, python: str, code: Path | None
) -> dict[str, Any]:
    """What a cell's peer came to: its last policy, over as many episodes as the cell's final
    evaluation."""
    run = shelf.run(cell)
    algorithm: Any = run.algorithm
    steps, episodes = run.budget.learner_steps, run.evaluations.final_episodes
    assert steps is not None
    began = time.monotonic()
    task = find_task(Dataset.open(shelf.data / cell.target).task)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        kind.write(shelf.data / cell.target, file)
        program = kind.program(cell, algorithm).replace("FILE", str(file))
        for name in set(re.findall(r"\[([a-z_]+)\]", program)):
            if hasattr(algorithm, name):
                program = program.replace(f"[{name}]", str(getattr(algorithm, name)))
        version = ""
        if code is not None:
            program = program.replace("CODE", str(code.resolve()))
            version = subprocess.run(
                ["git", "-C", code, "rev-parse", "--short", "HEAD"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        peer = Peer(
            python,
            program.replace("VERSION", version),
            SEED=cell.seed,
            BATCH=algorithm.batch_size,
            STEPS=steps,
            EPISODES=episodes,
        )
        cpu, _ = peer.turn(steps)
        returns = (
            np.array(peer.ask(json.dumps({"play": episodes})))
            if kind.PLAYS
            else scored(peer, task.name, episodes)
        )
        peer.close()
    mended = ", mended" if cell.column in getattr(kind, "MENDED", {}) else ""
    return {
        "schema_version": 1,
        **shelf.request_of(cell),
        "peer": f"{kind.NAME} {peer.version}{mended}",
        "learner_steps": steps,
        "batch_size": algorithm.batch_size,
        "sha256": shelf.sha256(cell),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(ddof=1)),
        "return_episodes": episodes,
        "normalized_score": task.normalized_score(float(returns.mean())),
        "cpu_s": cpu,
        "wall_s": time.monotonic() - began,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
