"""Decision Transformer: training against Hugging Face's network, latency of acting, and evaluation of many episodes at once.

    python -m tests.benchmarks.sequences                 training and acting with random weights of the paper's size
    python -m tests.benchmarks.sequences --run RUN       also evaluation of a trained Hopper run, 20 episodes

Training: batches of 64 windows of 20 steps, dropout 0.1, AdamW, gradients cut down to 0.25, one thread. Hugging Face's network has no
data path of its own: it gets our windows, whose drawing is counted on both sides. They take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.common import header, in_turns, made_up

STEPS, REPEATS, EPISODES, LENGTH = 10, 5, 100, 1_000
BATCH, CONTEXT = 64, 20


def ours(store) -> Callable[[], None]:
    """A learner step as `run dt DATASET --local` takes it."""
    from bigdm_ray.algorithms.dt import Dt
    from bigdm_ray.envs import find_task
    from bigdm_ray.training.learner import Learner

    learner = Learner(Dt(), {"hopper": find_task("hopper").signature()}, 1)
    print(f"parameters: ours {sum(p.numel() for p in learner.model.parameters()):,}", end="")
    return lambda: learner.update({"hopper": store}, 1)


def theirs(store) -> Callable[[], None]:
    """The same step with Hugging Face's network, as its users write it."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    from bigdm_ray.algorithms.dt import Dt

    warnings.filterwarnings("ignore")
    config = DecisionTransformerConfig(state_dim=11, act_dim=3, hidden_size=128, n_layer=3, n_head=1, max_ep_len=1000)
    model = DecisionTransformerModel(config).train()
    print(f", Hugging Face's {sum(p.numel() for p in model.parameters()):,}")
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


def training() -> None:
    """Time steps per CPU-second of both, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        store = made_up(Path(folder), EPISODES, LENGTH)
        spent = in_turns({"dt, ours": ours(store), "Hugging Face": theirs(store)}, REPEATS, STEPS, BATCH * CONTEXT)
    rates = {name: statistics.median(values) for name, values in spent.items()}
    for name, rate in rates.items():
        print(f"{name:<32}{rate:>10,.0f} time steps trained per CPU-second")
    print(f"ratio {rates['dt, ours'] / rates['Hugging Face']:.2f}")


def acting() -> None:
    """Milliseconds an action with a full window, one environment; actions per CPU-second, 64 of them."""
    from bigdm_ray.algorithms.dt import Dt
    from bigdm_ray.envs import find_task

    signature = find_task("hopper").signature()
    for cached in (False, True):
        algorithm = Dt(cached=cached)
        policy = algorithm.policy(algorithm.build({"hopper": signature}).eval(), "sample")
        for rows in (1, 64):
            state, chance, spent = policy.start(rows), np.random.default_rng(0), []
            for t in range(120 if rows == 1 else 60):
                seen = {"": chance.normal(size=(rows, 11)).astype(np.float32)}
                command = {"desired_return": np.full(rows, 3600.0, np.float32)}
                began = time.process_time()
                _, state = policy.act(state, seen, np.zeros(rows, np.float32), command, np.full(rows, t == 0), np.zeros((rows, policy.uniforms), np.float32))
                spent.append(time.process_time() - began)
            late = np.array(spent[CONTEXT + 5 :]) * 1000
            name = f"{'cached' if cached else 'exact'}, {rows} at once"
            p50, p99 = np.percentile(late, 50), np.percentile(late, 99)
            print(f"{name:<32}{p50:>10.2f} ms p50 {p99:>8.2f} ms p99 {1000 * rows / p50:>10,.0f} actions per CPU-second")


def evaluating(folder: Path) -> None:
    """Wall seconds of 20 episodes one after the other, and together, exact and cached."""
    from bigdm_ray.training.acting import policy_of
    from bigdm_ray.training.evaluation import evaluate
    from bigdm_ray.training.run_folder import load

    loaded, episodes = load(folder), 20
    waits, means = {}, {}
    for name, cached, rows in (("one at a time", False, 1), ("together, exact", False, episodes), ("together, cached", True, episodes)):
        policy, _ = policy_of(loaded, "own", cached)
        env = loaded.task.make(rows, 0, "reference")
        began = time.perf_counter()
        score = evaluate(policy, loaded.task, loaded.command, episodes, 7, "benchmark", 0, env)
        waits[name], means[name] = time.perf_counter() - began, float(score.returns.mean())
        env.close()
    for name, seconds in waits.items():
        print(f"{name:<32}{seconds:>10.1f} s for {episodes} episodes, mean return {means[name]:.0f}, {waits['one at a time'] / seconds:.2f} times as fast")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="a trained dt run on hopper, to evaluate")
    given = parser.parse_args()
    header()
    training()
    acting()
    if given.run:
        evaluating(given.run)


if __name__ == "__main__":
    main()
