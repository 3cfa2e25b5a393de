"""CQL of d3rlpy on a dataset of ours, scored on our environments, to hold beside `run cql` on the
same dataset.

    python -m bigdm_ray.run cql DATASET --local --seed N --algorithm.batch-size 64 \\
        --algorithm.clone-steps 0 --budget.learner-steps 100000
    python -m tests.benchmarks.conservative DATASET --peer PEER/bin/python --seed N
            PEER is a virtual environment with d3rlpy 2.8.1

Both: CQL(H) without Lagrange, layers of 256-256, batches of 64, 10 actions of each kind, weight 5,
rates 1e-4 (policy, temperature) and 3e-4 (critics), discount 0.99, targets that follow by 0.005, no
entropy in them, nothing normalised. They differ in the next state's action in the targets (RLlib
samples it, d3rlpy takes the most likely one), in the temperature's loss (RLlib's is linear in its
logarithm), and in order: d3rlpy's policy follows the critics as they are after their step, RLlib
takes all gradients before any step. Scores are of the most likely actions over 100 episodes; its
policy is asked through pipes, so it acts with its own code.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.common import Peer, header

PROGRAM = """import json, sys, time, warnings
warnings.filterwarnings("ignore")
import numpy as np, torch, d3rlpy, structlog, logging
torch.set_num_threads(1)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
d3rlpy.seed(SEED)
data = d3rlpy.dataset.MDPDataset(**np.load("FILE"))
layers = d3rlpy.models.VectorEncoderFactory([256, 256])
learner = LEARNER.create()
learner.build_with_dataset(data)
if learner.config.reward_scaler:
    learner.config.reward_scaler.fit_with_transition_picker(data.episodes, data.transition_picker)
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, list):
        print(json.dumps(learner.predict(np.array(asked, np.float32)).tolist()), flush=True)
        continue
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(asked):
        learner.update(data.sample_transition_batch(BATCH))
    took = [time.process_time() - cpu, time.perf_counter() - wall, d3rlpy.__version__]
    print(json.dumps(took), flush=True)
"""
"""A Peer that learns for a number of steps, or acts on observations `[n, d]`."""
CQL = """d3rlpy.algos.CQLConfig(
    batch_size=BATCH, actor_learning_rate=1e-4, critic_learning_rate=3e-4, temp_learning_rate=1e-4,
    alpha_learning_rate=0.0,
    actor_encoder_factory=layers, critic_encoder_factory=layers, initial_temperature=1.0,
    initial_alpha=1.0, alpha_threshold=0.0,
    conservative_weight=5.0, n_action_samples=10, soft_q_backup=False, gamma=0.99, tau=0.005,
)"""


def program(learner: str) -> str:
    """The program of a Peer whose learner is this configuration of d3rlpy."""
    return PROGRAM.replace("LEARNER", learner)


def transitions(folder: Path, file: Path) -> str:
    """Write the dataset as d3rlpy takes it; the task's name.

    Actions are as recorded: its policy's bounds are -1 and 1, as those of the bodies.
    """
    from bigdm_ray.formats.dataset import Dataset

    dataset = Dataset.open(folder)
    store = dataset.store()
    episodes = [store.episode(i) for i in range(len(store.table))]
    lengths = np.array([episode.length for episode in episodes])
    ends, terminated = (
        np.cumsum(lengths) - 1,
        np.array([episode.terminated for episode in episodes]),
    )
    terminals, timeouts = np.zeros(lengths.sum(), np.float32), np.zeros(lengths.sum(), np.float32)
    terminals[ends], timeouts[ends] = terminated, ~terminated
    np.savez(
        file,
        observations=np.concatenate([episode.observations[""][:-1] for episode in episodes]),
        actions=np.concatenate([episode.actions[""] for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        terminals=terminals,
        timeouts=timeouts,
    )
    return dataset.task


def scored(peer: Peer, name: str, episodes: int) -> np.ndarray:
    """Returns of so many episodes `[episodes]`, played by the peer on our environments."""
    from bigdm_ray.envs import find_task

    task = find_task(name)
    env = task.make(episodes, 0, "reference")
    alive, returns = np.arange(episodes), np.zeros(episodes)
    seen = env.reset(alive).observations[""]
    while len(alive):
        step = env.step(alive, {"": np.array(peer.ask(json.dumps(seen.tolist())), np.float32)})
        returns[alive] += step.rewards
        on = ~(step.terminated | step.truncated)
        alive, seen = alive[on], step.observations[""][on]
    env.close()
    return returns


def main() -> None:
    """Train, score on the way and at the end, and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--peer", required=True, help="a Python that has d3rlpy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    from bigdm_ray.envs import find_task

    header()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        task = transitions(given.dataset, file)
        peer = Peer(
            given.peer,
            program(CQL).replace("FILE", str(file)),
            SEED=given.seed,
            BATCH=given.batch_size,
        )
        turn = given.updates // 5
        for part in range(1, 6):
            cpu, wall = peer.turn(turn)
            returns = scored(peer, task, 100 if part == 5 else 10)
            error, normalised = (
                returns.std(ddof=1) / np.sqrt(len(returns)),
                find_task(task).normalized_score(float(returns.mean())),
            )
            print(
                f"d3rlpy {peer.version}, seed {given.seed}, {part * turn:,} updates: return"
                f" {returns.mean():,.1f}, standard error {error:,.1f} over {len(returns)} episodes,"
                f" normalised {normalised:.1f}; {turn / cpu:,.1f} updates per CPU-second,"
                f" {wall:,.0f} s",
                flush=True,
            )
        peer.close()


if __name__ == "__main__":
    main()
