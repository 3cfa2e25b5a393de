"""Peers' own code on our datasets, at the learner steps, batch size and layers of a table's cell.

    python -m tests.benchmarks.trust value-based --peer PEER/bin/python --only hopper --only seed=1
    python -m bigdm_ray.reproduce value-based --show            prints them as "peer, same data"

PEER is a virtual environment with d3rlpy 2.8.1. What the cell's algorithm has a setting for (rates,
kernel, threshold, numbers of samples, first steps of another kind) is as in the cell; the rest is
as in d3rlpy's own reproductions (reproductions/offline/). Each peer plays its most likely actions
on our environments; its policy is asked through pipes, so it acts with its own code. A finished
cell is a small JSON file under docs/results/peers, beside the cells that `reproduce` keeps, and is
not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from bigdm_ray.envs import find_task
from bigdm_ray.replay.shard import publish
from bigdm_ray.tables.base import Cell, find_grid
from bigdm_ray.tables.folders import TableFolders
from bigdm_ray.tables.peers import peer_file
from tests.benchmarks.common import Peer, header
from tests.benchmarks.conservative import CQL, program, scored, transitions

IQL = """d3rlpy.algos.IQLConfig(
    batch_size=BATCH, actor_learning_rate=[actor_learning_rate],
    critic_learning_rate=[critic_learning_rate], weight_temp=[beta], max_weight=100.0,
    expectile=[expectile], actor_encoder_factory=layers, critic_encoder_factory=layers,
    value_encoder_factory=layers,
    actor_optim_factory=d3rlpy.optimizers.AdamFactory(
        lr_scheduler_factory=d3rlpy.optimizers.CosineAnnealingLRFactory(T_max=STEPS)
    ),
    reward_scaler=d3rlpy.preprocessing.ReturnBasedRewardScaler(multiplier=[return_range]),
)"""
BCQ = """d3rlpy.algos.BCQConfig(
    batch_size=BATCH, actor_learning_rate=[learning_rate], critic_learning_rate=[learning_rate],
    imitator_learning_rate=[learning_rate], lam=[min_share], beta=[kl_weight],
    action_flexibility=[perturbation], n_action_samples=[candidates], actor_encoder_factory=layers,
    critic_encoder_factory=layers,
    imitator_encoder_factory=layers,
)"""
BEAR = """d3rlpy.algos.BEARConfig(
    batch_size=BATCH, actor_learning_rate=[policy_learning_rate],
    critic_learning_rate=[critic_learning_rate], imitator_learning_rate=[vae_learning_rate],
    alpha_learning_rate=[multiplier_learning_rate], temp_learning_rate=0.0,
    initial_temperature=1e-20, mmd_sigma=[sigma], mmd_kernel="[kernel]",
    n_mmd_action_samples=[matched], alpha_threshold=[threshold], lam=[min_share],
    vae_kl_weight=[kl_weight], n_target_samples=[target_actions], n_action_samples=[candidates],
    warmup_steps=[warm_start], actor_encoder_factory=layers,
    critic_encoder_factory=layers,
    imitator_encoder_factory=layers,
)"""
"""Words in brackets are settings of our algorithm."""
LEARNERS = {"CQL": CQL, "IQL": IQL, "BCQ": BCQ, "BEAR": BEAR}


def main() -> None:
    """Train the peers of the chosen cells that are not there yet, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--peer", required=True, help="a Python that has d3rlpy")
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
        if cell.column in LEARNERS and not path.is_file():
            result = trained(shelf, cell, given.peer)
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(path, json.dumps(result, indent=1).encode())
            print(f"{cell.name}: {result['normalized_score']:.1f}, {result['peer']}", flush=True)


def trained(shelf: TableFolders, cell: Cell, python: str) -> dict[str, Any]:
    """What a cell's peer came to: its last policy, over as many episodes as the cell's final
    evaluation."""
    run = shelf.run(cell)
    algorithm: Any = run.algorithm
    steps, episodes = run.budget.learner_steps, run.evaluations.final_episodes
    assert steps is not None
    if tuple(algorithm.hidden) != (256, 256):
        raise SystemExit(
            f"{cell.name} has layers of {algorithm.hidden}, but the peer's have 256-256"
        )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        task = find_task(transitions(shelf.data / cell.target, file))
        learner = LEARNERS[cell.column]
        for name in set(re.findall(r"\[([a-z_]+)\]", learner)):
            learner = learner.replace(f"[{name}]", str(getattr(algorithm, name)))
        peer = Peer(
            python,
            program(learner).replace("FILE", str(file)),
            SEED=cell.seed,
            BATCH=algorithm.batch_size,
            STEPS=steps,
        )
        cpu, _ = peer.turn(steps)
        returns = scored(peer, task.name, episodes)
        peer.close()
    return {
        "schema_version": 1,
        **shelf.request_of(cell),
        "peer": f"d3rlpy {peer.version}",
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
