"""CPU-seconds of a planned action, with random weights of the reference's size (4 layers, 4 heads,
width 128, 100 bins), and of training.

    python -m tests.benchmarks.planning   both bodies, one environment and sixteen
    python -m tests.benchmarks.planning --bodies halfcheetah --environments 1 --repeats 5
    python -m tests.benchmarks.planning --training   a learner step beside the original's, rebuilt
                                                     plainly
    python -m tests.benchmarks.planning --original FOLDER --fork FOLDER
            plans of one environment beside theirs, in turns; FOLDERs are checkouts of
            jannerm/trajectory-transformer and Howuhh/faster-trajectory-transformer

HalfCheetah: 17 + 6 numbers, 5 transitions ahead, 32 beams of 2 expansions. Hopper: 11 + 3, 15
ahead, 128 of 2. The context is full, as it is from the fifth step of an episode on. Actions are
filtered as in the official repository (cdf 0.6), but by the fork, which has no such filter. One
thread. Of a checkout only the network, the discretiser and the search are imported, none of which
asks for a simulator.

Training: Hopper's 16 tokens, batches of 32 windows of 10, dropout 0.1, AdamW, gradients cut down to
1; drawing windows and making tokens of them is counted on both sides. The original is rebuilt
(`tests/plain_trajectory.py`): heads of all dimensions at all places, attention by an explicit
softmax, windows taken and discretised one by one; it computes in float32. They take turns.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from tests.benchmarks.common import Peer, header, in_turns

BODIES = {"halfcheetah": (17, 6, 5, 32), "hopper": (11, 3, 15, 128)}
PUBLISHED = {"halfcheetah": (17.5, 5.5, 0.6), "hopper": (89.9, 33.9, 8.0)}
"""CPU-seconds an action that are known of the original code and of its cached fork, on another
machine; and what is to be reached."""


class Body:
    """A planner with random weights, and some situations to plan in."""

    def __init__(
        self, name: str, environments: int, positions: Literal["learned", "rotary"] = "learned"
    ) -> None:
        import torch

        from bigdm_ray.models.trajectory import TrajectoryTransformer
        from bigdm_ray.planning.beam import Planner
        from bigdm_ray.planning.sampling import SearchSettings
        from bigdm_ray.tokens.bins import Bins

        seen, acted, horizon, beams = BODIES[name]
        dims = seen + acted + 2
        torch.manual_seed(0)
        net = (
            TrajectoryTransformer([0] * dims, 100, 10, 128, 4, 4, positions=positions)
            .eval()
            .requires_grad_(False)
        )
        self._planner = Planner(
            net,
            Bins([0] * dims),
            seen,
            acted,
            SearchSettings(horizon, beams, 2, k_act=0, cdf_act=0.6),
        )
        self._past = torch.randint(0, 100, (environments, 4, dims))
        self._state = torch.randint(0, 100, (environments, seen))
        self._chance = np.random.default_rng(0)

    def plan(self) -> None:
        """Plan an action for each environment."""
        numbers = self._planner.numbers(self._chance.random((len(self._state), 2), np.float32))
        self._planner.plan(self._past, self._state, numbers)


PROGRAM = """import importlib, json, sys, time, types
import numpy as np, torch
answers, sys.stdout = sys.stdout, sys.stderr
torch.set_num_threads(1)
torch.manual_seed(0)
for name in PACKAGES:
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [FOLDER + "/" + name.replace(".", "/")]
seen, acted, horizon, beams = SEEN, ACTED, HORIZON, BEAMS
dims = seen + acted + 2
tokens = torch.randint(0, 100, (1, 4 * dims + seen))
made_up = np.random.default_rng(0).normal(size=(1000, dims)).astype(np.float32)
SETUP
for line in sys.stdin:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(int(line)):
        plan()
    took = [time.process_time() - cpu, time.perf_counter() - wall, ""]
    print(json.dumps(took), file=answers, flush=True)
"""
"""A Peer that plans: packages without what their `__init__` would import, so that only the files
asked for are loaded."""

ORIGINAL = """
sys.modules["trajectory.utils"].Silent = importlib.import_module("trajectory.utils.progress").Silent
importlib.import_module("trajectory.utils.arrays").DEVICE = "cpu"
from trajectory.models.transformers import GPT
from trajectory.search.core import beam_plan
from trajectory.utils.discretization import QuantileDiscretizer
net = GPT(types.SimpleNamespace(
    vocab_size=100, block_size=10 * dims - 1, n_layer=4, n_head=4, n_embd=128, observation_dim=seen,
    action_dim=acted, transition_dim=dims,
    action_weight=5, reward_weight=1, value_weight=1, embd_pdrop=0.1, resid_pdrop=0.1,
    attn_pdrop=0.1,
)).eval()
bins = QuantileDiscretizer(made_up, 100)
def plan():
    beam_plan(
        net, lambda probs: bins.value_fn(probs, "mean"), tokens, horizon, beams, 2, seen, acted,
        0.99, 5, verbose=False, k_obs=1, cdf_act=0.6
    )
"""
FORK = """
from trajectory.models.gpt.gpt import GPT
from trajectory.planning.beam import beam_plan
from trajectory.utils.discretization import KBinsDiscretizer
net = GPT(
    100, dims, seen, acted, 10 * dims, embedding_dim=128, num_layers=4, num_heads=4,
    use_sep_heads=True,
).eval()
bins = KBinsDiscretizer(made_up, 100)
def plan():
    beam_plan(net, bins, tokens, horizon, beams, 2, context_size=5, k_obs=1, k_reward=1)
"""
PEERS = {
    "original": (
        ORIGINAL,
        ("trajectory", "trajectory.utils", "trajectory.models", "trajectory.search"),
    ),
    "cached fork": (
        FORK,
        (
            "trajectory",
            "trajectory.utils",
            "trajectory.models",
            "trajectory.models.gpt",
            "trajectory.planning",
        ),
    ),
}


def peer(which: str, folder: Path, body: str) -> Peer:
    """A checkout that plans for a body."""
    if not (folder / "trajectory").is_dir():
        raise SystemExit(f"{folder} is not a checkout of the {which}: it has no folder trajectory")
    setup, packages = PEERS[which]
    program = (
        PROGRAM.replace("SETUP", setup)
        .replace("PACKAGES", repr(packages))
        .replace("FOLDER", repr(str(folder.resolve())))
    )
    return Peer(
        sys.executable,
        program,
        **dict(zip(("SEEN", "ACTED", "HORIZON", "BEAMS"), BODIES[body], strict=True)),
    )


def planning(name: str, environments: int, repeats: int, folders: dict[str, Path]) -> None:
    """CPU and wall seconds of an action: ours, and for one environment those of the checkouts, in
    turns; the first turn warms up."""
    sides: dict[str, Callable[[], None] | Peer] = {
        "ours": Body(name, environments).plan,
        "ours, rotary": Body(name, environments, "rotary").plan,
    }
    if environments == 1:
        sides |= {which: peer(which, folder, name) for which, folder in folders.items()}
    spent = {which: took.medians for which, took in in_turns(sides, repeats, 1).items()}
    original, fork, target = PUBLISHED[name]
    known = {
        "ours": f"to reach {target}",
        "ours, rotary": "another model",
        "original": f"published {original}",
        "cached fork": f"published {fork}",
    }
    for which, (cpu, wall) in spent.items():
        ratio = "" if which == "ours" else f"; ours takes 1/{cpu / spent['ours'][0]:.1f}"
        print(
            f"{name:<12}{environments:>3} environments  {which:<13}{cpu / environments:>8.3f} CPU-s"
            f" an action{wall / environments:>9.3f} s wall   ({known[which]}{ratio})",
            flush=True,
        )


BATCH, WINDOW, STEPS = 32, 10, 3


def store_of(folder: Path):
    """Made-up episodes of Hopper's size, of which half terminate."""
    from bigdm_ray.replay import Episode, EpisodeId, Store

    chance, store = np.random.default_rng(0), Store(folder)
    for i in range(100):
        seen = chance.normal(size=(501, 11)).astype(np.float32)
        acted = chance.uniform(-1, 1, (500, 3)).astype(np.float32)
        store.add(
            [
                Episode(
                    {"": seen},
                    {"": acted},
                    chance.normal(size=500).astype(np.float32),
                    bool(i % 2),
                    EpisodeId(0, 0, i),
                    "hopper",
                )
            ]
        )
    return store


def ours(store, precision: str = "float32") -> Callable[[], None]:
    """A learner step as `run tt DATASET --local --machines.precision PRECISION` takes it."""
    from bigdm_ray.algorithms.tt import Tt
    from bigdm_ray.envs import find_task
    from bigdm_ray.training.learner import Learner

    learner = Learner(
        Tt(batch_size=BATCH, termination_penalty=-100.0),
        {"hopper": find_task("hopper").signature()},
        1,
        precision=precision,
    )
    return lambda: learner.update({"hopper": store}, 1)


class PlainWindows:
    """Windows of tokens one by one, as the original's data set gives them: padded episodes, every
    value compared with all thresholds."""

    def __init__(self, store, bins: int = 100) -> None:
        episodes = [store.episode(i) for i in range(len(store.table.lengths))]
        rows = []
        for episode in episodes:
            rewards = episode.rewards.astype(np.float64)
            if episode.terminated:
                rewards[-1] = -100
            values = np.zeros(len(rewards))
            for t in range(len(rewards) - 2, -1, -1):
                values[t] = rewards[t + 1] + 0.99 * values[t + 1]
            rows.append(
                np.concatenate(
                    [
                        episode.observations[""][:-1],
                        episode.actions[""],
                        rewards[:, None],
                        values[:, None],
                    ],
                    1,
                )
            )
        every = np.concatenate(rows)
        self._bins = bins
        self._thresholds = np.concatenate(
            [np.sort(every, 0)[:: -(-len(every) // bins)], every.max(0, keepdims=True)]
        )
        self._rows = [np.concatenate([row, np.zeros((WINDOW - 1, row.shape[1]))]) for row in rows]
        self._lengths = [len(row) for row in rows]
        self._starts = [(i, t) for i, length in enumerate(self._lengths) for t in range(length - 1)]

    def window(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, what follows them, and the mask: `[WINDOW * dims - 1]` each."""
        episode, start = self._starts[index]
        rows = self._rows[episode][start : start + WINDOW]
        place = np.arange(len(self._thresholds))[:, None, None] + 1
        found = np.argmax((rows >= self._thresholds[:, None]) * place, 0).clip(0, self._bins - 1)
        behind = np.arange(start, start + WINDOW) >= self._lengths[episode]
        found[behind] = self._bins
        mask = np.repeat(np.arange(start, start + WINDOW) < 1000, found.shape[1])
        return found.reshape(-1)[:-1], found.reshape(-1)[1:], mask[:-1]

    def batch(self, chance: np.random.Generator):
        """`BATCH` windows, drawn evenly."""
        import torch

        drawn = [self.window(int(i)) for i in chance.integers(0, len(self._starts), BATCH)]
        return [torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True)]


def theirs(store) -> Callable[[], None]:
    """The same step as the original takes it."""
    import torch

    from tests.plain_trajectory import PlainTrajectory

    windows, chance, model = (
        PlainWindows(store),
        np.random.default_rng(1),
        PlainTrajectory(11, 3).train(),
    )
    decayed = {
        id(p) for m in model.modules() if isinstance(m, torch.nn.Linear) for p in [m.weight]
    } | {id(model.head.weight)}
    groups = [
        {
            "params": [p for p in model.parameters() if (id(p) in decayed) == on],
            "weight_decay": 0.1 * on,
        }
        for on in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, 6e-4, betas=(0.9, 0.95))

    def step() -> None:
        loss = model.loss(*windows.batch(chance))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def training(repeats: int) -> None:
    """Transitions trained per CPU-second of all, in turns, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder))
        sides = {
            "tt, ours": ours(store),
            "tt, ours, bf16": ours(store, "bf16"),
            "the original, rebuilt plainly": theirs(store),
        }
        spent = in_turns(sides, repeats, STEPS)
    units = STEPS * BATCH * WINDOW
    for name, took in spent.items():
        low, high = units / max(took.cpu), units / min(took.cpu)
        print(
            f"{name:<32}{units / took.medians[0]:>10,.0f} transitions trained per CPU-second"
            f" ({low:,.0f} to {high:,.0f})"
        )
    first, mixed, second = (took.medians[0] for took in spent.values())
    print(f"ratio {second / first:.2f}, with bf16 {second / mixed:.2f} (to reach 1.5)")


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bodies", nargs="+", default=list(BODIES), choices=list(BODIES))
    parser.add_argument("--environments", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time goes, for one plan")
    parser.add_argument("--training", action="store_true", help="training alone")
    parser.add_argument(
        "--original",
        type=Path,
        metavar="FOLDER",
        help="a checkout of jannerm/trajectory-transformer, to plan beside ours",
    )
    parser.add_argument(
        "--fork",
        type=Path,
        metavar="FOLDER",
        help="a checkout of Howuhh/faster-trajectory-transformer, to plan beside ours",
    )
    given = parser.parse_args()
    header()
    training(max(given.repeats, 5))
    if given.training:
        return
    folders = {
        which: folder
        for which, folder in (("original", given.original), ("cached fork", given.fork))
        if folder
    }
    for name in given.bodies:
        for environments in given.environments:
            planning(name, environments, given.repeats, folders)
            if given.profile:
                body = Body(name, environments)
                with cProfile.Profile(time.process_time) as profile:
                    body.plan()
                pstats.Stats(profile).sort_stats("tottime").print_stats(16)


if __name__ == "__main__":
    main()
