"""Decision Transformer by its authors (kzl/decision-transformer): their `experiment`, with our
episodes and gymnasium's environment in place of D4RL's."""

from __future__ import annotations

from typing import Any

from bigdm_ray.tables.base import Cell
from tests.benchmarks.trust.data import ENVIRONMENTS, PLAYED, READ, write_episodes

COLUMNS = {("dt-context", "DT")}
NAME, PLAYS = "kzl/decision-transformer", True

PROGRAM = """
sys.path.insert(0, "CODE/gym")
import contextlib
import transformers, transformers.file_utils
transformers.file_utils.add_code_sample_docstrings = lambda *a, **b: lambda function: function
transformers.GPT2Config.n_ctx = 1024
module("gym", make=lambda name: Old())
module("wandb")
import experiment
experiment.open = lambda *given: contextlib.nullcontext()
experiment.pickle = types.SimpleNamespace(load=lambda file: paths)
played, began, took = {}, [0.0, 0.0], []
theirs = experiment.evaluate_episode_rtg

def evaluate(*given, target_return, scale, **named):
    if not took:
        took.extend([time.process_time() - began[0], time.perf_counter() - began[1], "VERSION"])
    found = theirs(*given, target_return=target_return, scale=scale, **named)
    played.setdefault(round(target_return * scale), []).append(float(found[0]))
    return found

experiment.evaluate_episode_rtg = evaluate
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, dict):
        print(json.dumps(played[round([target_return])]), file=answers, flush=True)
        continue
    began[:] = time.process_time(), time.perf_counter()
    experiment.experiment("trust", dict(
        env="BODY", dataset="ours", model_type="dt", mode="normal", K=[context], batch_size=BATCH,
        embed_dim=[width], n_layer=[layers], n_head=[heads], activation_function="relu",
        dropout=[dropout], learning_rate=[learning_rate], weight_decay=[weight_decay],
        warmup_steps=[warm_up_steps], num_eval_episodes=EPISODES, max_iters=1,
        num_steps_per_iter=asked, device="cpu", log_to_wandb=False,
    ))
    print(json.dumps(took), file=answers, flush=True)
"""
write = write_episodes


def program(cell: Cell, algorithm: Any) -> str:
    """See the package."""
    if algorithm.cosine_steps or algorithm.positions != "timesteps":
        raise SystemExit(
            f"{cell.name} has a cosine or no embedding of time steps, which the peer cannot have"
        )
    body, text = cell.target.partition("-")[0], READ + PLAYED + PROGRAM
    return text.replace("ENVIRONMENT", ENVIRONMENTS[body]).replace("BODY", body)
