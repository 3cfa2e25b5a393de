"""Decision Transformer: training against peers, latency of acting, and evaluation of many episodes
at once.

    python -m tests.benchmarks.sequences   training and acting against Hugging Face's network
    python -m tests.benchmarks.sequences --peer PEER/bin/python
            also d3rlpy's; PEER is a virtual environment with d3rlpy 2.8.1
    python -m tests.benchmarks.sequences --corl FILE
            also CORL's; FILE is its algorithms/offline/dt.py
    python -m tests.benchmarks.sequences --acting   no training
    python -m tests.benchmarks.sequences --evaluate 100
            only evaluation of 100 Hopper episodes, random weights
    python -m tests.benchmarks.sequences --evaluate 100 --run RUN
            the same with a trained dt run on hopper

Training: batches of 64 windows of 20 steps, dropout 0.1, AdamW, gradients cut down to 0.25, one
thread, a dataset of the same size in memory, float32 but for `dt, ours, bf16`. Hugging Face's
network has no data path of its own: it gets our windows, whose drawing is counted on both sides.
d3rlpy and CORL draw with their own code; of CORL's file only the network and the dataset's class
are run. They take turns.

Acting: one environment, a window of 20 steps that is full, one thread; of the peers' own code what
their users call for an action (d3rlpy's wrapper that keeps the history, the forward pass of the
others), with random weights.

Evaluation: episodes one after the other against together (50 rows), exact and cached, on
gymnasium's environments, in wall time. What is played differs between the three by rounding and,
when cached, by the policy, so the ratio is that of the rates in environment steps.
"""

from __future__ import annotations

import argparse
import ast
import random
import tempfile
import time
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.common import Peer, d3rlpy, header, in_turns, made_up

STEPS, REPEATS, EPISODES, LENGTH, ACTIONS = 10, 5, 100, 1_000, 100
BATCH, CONTEXT = 64, 20


def ours(store, precision: str = "float32") -> Callable[[], None]:
    """A learner step as `run dt DATASET --local --machines.precision PRECISION` takes it."""
    from bigdm_ray.algorithms.dt import Dt
    from bigdm_ray.envs import find_task
    from bigdm_ray.training.learner import Learner

    learner = Learner(Dt(), {"hopper": find_task("hopper").signature()}, 1, precision=precision)
    print(f"parameters: ours {sum(p.numel() for p in learner.model.parameters()):,}")
    return lambda: learner.update({"hopper": store}, 1)


def hugging_face() -> nn.Module:
    """Hugging Face's network of the same size."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    warnings.filterwarnings("ignore")
    model = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=11, act_dim=3, hidden_size=128, n_layer=3, n_head=1, max_ep_len=1000
        )
    )
    print(f"parameters: Hugging Face's {sum(p.numel() for p in model.parameters()):,}")
    return model


def theirs(store) -> Callable[[], None]:
    """The same step with Hugging Face's network, as its users write it."""
    from bigdm_ray.algorithms.dt import Dt

    model = hugging_face().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4)
    view, chance = Dt().view(), np.random.default_rng(1)

    def step() -> None:
        windows = store.draw(view, chance, BATCH)
        mask = torch.from_numpy(windows.mask)
        actions = torch.from_numpy(windows.actions[""])
        out = model(
            states=torch.from_numpy(windows.observations[""]),
            actions=actions,
            rewards=None,
            returns_to_go=torch.from_numpy(windows.columns["returns_to_go"])[..., None] * 0.001,
            timesteps=torch.from_numpy(windows.timesteps),
            attention_mask=mask.long(),
        )
        loss = ((out.action_preds - actions) ** 2)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return step


def of_corl(file: Path) -> tuple[nn.Module, Any]:
    """CORL's network of the same size and its dataset's class; the rest of its file wants d4rl and
    a tracker."""
    wanted = {"pad_along_axis", "SequenceDataset", "TransformerBlock", "DecisionTransformer"}
    tree = ast.parse(file.read_text())
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted
    ]
    if missing := wanted - {node.name for node in tree.body}:
        raise SystemExit(f"{file} is not CORL's dt.py: it has no {', '.join(sorted(missing))}")
    scope = {
        "np": np,
        "torch": torch,
        "nn": torch.nn,
        "random": random,
        "IterableDataset": torch.utils.data.IterableDataset,
    }
    scope |= {
        name: getattr(typing, name)
        for name in ("Any", "DefaultDict", "Dict", "List", "Optional", "Tuple", "Union")
    }
    exec(compile(tree, str(file), "exec"), scope)
    rates = {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1}
    model = scope["DecisionTransformer"](11, 3, CONTEXT, 1000, 128, 3, 1, **rates)
    print(f"parameters: CORL's {sum(p.numel() for p in model.parameters()):,}")
    return model, scope["SequenceDataset"]


def corl(file: Path, store) -> Callable[[], None]:
    """The same step with CORL's network and its dataset's class, on the same episodes."""
    model, kind = of_corl(file)
    rows = [store.episode(i) for i in range(len(store.table))]
    data = object.__new__(kind)
    data.dataset = [
        {
            "observations": e.observations[""][:-1],
            "actions": e.actions[""],
            "rewards": e.rewards,
            "returns": e.rewards[::-1].cumsum()[::-1],
        }
        for e in rows
    ]
    seen = np.concatenate([one["observations"] for one in data.dataset])
    lengths = np.array([e.length for e in rows])
    data.reward_scale, data.seq_len, data.sample_prob = 0.001, CONTEXT, lengths / lengths.sum()
    data.state_mean, data.state_std = seen.mean(0, keepdims=True), seen.std(0, keepdims=True) + 1e-6
    loader = iter(torch.utils.data.DataLoader(data, BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4)

    def step() -> None:
        states, actions, returns, times, mask = next(loader)
        out = model(states.float(), actions, returns.float(), times, ~mask.to(torch.bool))
        loss = (
            torch.nn.functional.mse_loss(out, actions, reduction="none") * mask.unsqueeze(-1)
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return step


DT = """
dt = d3rlpy.algos.DecisionTransformerConfig(
    batch_size=BATCH, context_size=CONTEXT, learning_rate=1e-4,
    encoder_factory=d3rlpy.models.VectorEncoderFactory([128], exclude_last_activation=True),
    optim_factory=d3rlpy.optimizers.GPTAdamWFactory(weight_decay=1e-4, clip_grad_norm=0.25),
    observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
    reward_scaler=d3rlpy.preprocessing.MultiplyRewardScaler(0.001),
).create()
dt.build_with_dataset(data)
dt.config.observation_scaler.fit_with_trajectory_slicer(data.episodes, data.trajectory_slicer)
"""
D3RLPY = d3rlpy(DT, "dt.update(data.sample_trajectory_batch(BATCH, length=CONTEXT))")
D3RLPY_ACTS = d3rlpy(
    f"{DT}actor = dt.as_stateful_wrapper(target_return=3600)\n",
    "actor.predict(chance.normal(size=11).astype(np.float32), 1.0)",
)


def training(python: str | None, file: Path | None) -> None:
    """Time steps per CPU-second of all, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        store = made_up(Path(folder), EPISODES, LENGTH)
        sides: dict[str, Callable[[], object] | Peer] = {
            "dt, ours": ours(store),
            "dt, ours, bf16": ours(store, "bf16"),
            "Hugging Face": theirs(store),
        }
        if python:
            sides["d3rlpy"] = Peer(
                python, D3RLPY, EPISODES=EPISODES, LENGTH=LENGTH, BATCH=BATCH, CONTEXT=CONTEXT
            )
        if file:
            sides["CORL"] = corl(file, store)
        spent = in_turns(sides, REPEATS, STEPS)
    rates = {name: STEPS * BATCH * CONTEXT / took.medians[0] for name, took in spent.items()}
    for name, rate in rates.items():
        side = sides[name]
        label = f"{name} {side.version}" if isinstance(side, Peer) else name
        ratio = (
            ""
            if name.startswith("dt")
            else (
                f"   ours is {rates['dt, ours'] / rate:.2f} times as fast, bf16"
                f" {rates['dt, ours, bf16'] / rate:.2f}"
            )
        )
        print(f"{label:<32}{rate:>10,.0f} time steps trained per CPU-second{ratio}")


def actor(cached: bool, rows: int) -> Callable[[], object]:
    """An action of so many environments, as a run of `dt` takes it: its policy with random weights,
    on made-up observations."""
    from bigdm_ray.algorithms.dt import Dt
    from bigdm_ray.envs import find_task

    signature = find_task("hopper").signature()
    algorithm = Dt(cached=cached)
    policy = algorithm.policy(algorithm.build({"hopper": signature}).eval(), "sample")
    state, chance, first = policy.start(rows), np.random.default_rng(0), np.full(rows, True)
    command, rewards, uniforms = (
        {"desired_return": np.full(rows, 3600.0, np.float32)},
        np.zeros(rows, np.float32),
        np.zeros((rows, policy.uniforms), np.float32),
    )

    def step() -> None:
        nonlocal state, first
        seen = {"": chance.normal(size=(rows, 11)).astype(np.float32)}
        _, state = policy.act(state, seen, rewards, command, first, uniforms)
        first = np.full(rows, False)

    return step


def acting() -> None:
    """Milliseconds an action with a full window, one environment; actions per CPU-second, 64 of
    them."""
    for cached in (False, True):
        for rows in (1, 64):
            step, spent = actor(cached, rows), []
            for _ in range(220 if rows == 1 else 60):
                began = time.process_time()
                step()
                spent.append(time.process_time() - began)
            late = np.array(spent[CONTEXT + 5 :]) * 1000
            name = f"{'cached' if cached else 'exact'}, {rows} at once"
            p50, p99 = np.percentile(late, 50), np.percentile(late, 99)
            print(
                f"{name:<32}{p50:>10.2f} ms p50 {p99:>8.2f} ms p99 {1000 * rows / p50:>10,.0f}"
                " actions per CPU-second"
            )


def acting_beside(python: str | None, file: Path | None) -> None:
    """Milliseconds an action of one environment, all in turns: ours, and the peers' networks on a
    full window as their users call them."""
    from bigdm_ray.envs import find_task

    chance = np.random.default_rng(0)
    size = find_task("hopper").signature().observations[""].size
    history = {
        name: torch.from_numpy(chance.normal(size=(1, CONTEXT, n)).astype(np.float32))
        for name, n in (("states", size), ("actions", 3))
    }
    returns, times = torch.full((1, CONTEXT, 1), 3.6), torch.arange(CONTEXT)[None]
    theirs = hugging_face().eval()

    @torch.no_grad()
    def hugging() -> None:
        mask = torch.ones(1, CONTEXT)
        theirs(
            **history, rewards=None, returns_to_go=returns, timesteps=times, attention_mask=mask
        ).action_preds[0, -1].numpy()

    sides: dict[str, Callable[[], object] | Peer] = {
        "dt, ours, exact": actor(False, 1),
        "dt, ours, cached": actor(True, 1),
        "Hugging Face": hugging,
    }
    if python:
        sides["d3rlpy"] = Peer(
            python, D3RLPY_ACTS, EPISODES=2, LENGTH=LENGTH, BATCH=BATCH, CONTEXT=CONTEXT
        )
    if file:
        network = of_corl(file)[0].eval()

        @torch.no_grad()
        def corls() -> None:
            network(history["states"], history["actions"], returns[..., 0], times)[0, -1].numpy()

        sides["CORL"] = corls
    spent = in_turns(sides, REPEATS, ACTIONS)
    ours = spent["dt, ours, exact"].medians[0]
    for name, took in spent.items():
        ratio = (
            ""
            if name.startswith("dt")
            else f"   {took.medians[0] / ours:.2f} times as long as ours, exact"
        )
        print(f"{name:<32}{1000 * took.medians[0] / ACTIONS:>10.2f} ms of CPU an action{ratio}")


def evaluating(folder: Path | None, episodes: int) -> None:
    """Wall seconds of so many episodes one after the other, and together, exact and cached; and the
    rates in environment steps."""
    from bigdm_ray.algorithms.dt import Dt
    from bigdm_ray.envs import find_task
    from bigdm_ray.training.acting import policy_of
    from bigdm_ray.training.evaluation import ROWS, evaluate
    from bigdm_ray.training.loaded import load

    task, command = find_task("hopper"), {"desired_return": 3600.0}
    torch.manual_seed(0)
    model = Dt().build({"hopper": task.signature()}).eval()
    loaded = load(folder) if folder else None
    if loaded is not None:
        task, command = loaded.task, loaded.command
    rates: dict[str, float] = {}
    for name, cached, rows in (
        ("one at a time", False, 1),
        ("together, exact", False, ROWS),
        ("together, cached", True, ROWS),
    ):
        policy = (
            Dt(cached=cached).policy(model, "sample")
            if loaded is None
            else policy_of(loaded, "own", cached)[0]
        )
        env = task.make(min(rows, episodes), 0, "reference")
        began = time.perf_counter()
        score = evaluate(policy, task, command, episodes, 7, "benchmark", 0, env)
        seconds, steps = time.perf_counter() - began, int(score.lengths.sum())
        env.close()
        rates[name] = steps / seconds
        print(
            f"{name:<24}{seconds:>8.1f} s for {episodes} episodes of {steps / episodes:,.0f} steps,"
            f" mean return {score.returns.mean():,.0f}, {rates[name]:,.0f} steps per wall second,"
            f" {rates[name] / rates['one at a time']:.2f} times as fast"
        )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", help="a Python that has d3rlpy")
    parser.add_argument("--corl", type=Path, help="CORL's algorithms/offline/dt.py")
    parser.add_argument("--acting", action="store_true", help="no training")
    parser.add_argument(
        "--evaluate",
        type=int,
        metavar="EPISODES",
        help="only evaluate so many Hopper episodes, one at a time and together",
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="a trained dt run on hopper, to evaluate in place of random weights",
    )
    given = parser.parse_args()
    header()
    if given.evaluate or given.run:
        evaluating(given.run, given.evaluate or 100)
        return
    if not given.acting:
        training(given.peer, given.corl)
    acting()
    acting_beside(given.peer, given.corl)


if __name__ == "__main__":
    main()
