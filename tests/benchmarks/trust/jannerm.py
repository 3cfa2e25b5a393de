"""Trajectory Transformer by its authors (jannerm/trajectory-transformer): their dataset, bins,
network, trainer and beam search, with our episodes and gymnasium's environment in place of D4RL's.

An episode that a time limit cut off ends theirs where it ends ours.
"""

from __future__ import annotations

from typing import Any

from bigdm_ray.tables.base import Cell
from tests.benchmarks.trust.data import ENVIRONMENTS, PLAYED, READ, write_episodes

COLUMNS = {("tt", "TT quantile")}
NAME, PLAYS = "jannerm/trajectory-transformer", True

PROGRAM = """
sys.path.insert(0, "CODE")
for name in ("gym", "d4rl"):
    module(name)
package = module("trajectory.utils", __path__=["CODE/trajectory/utils"])
from trajectory.utils import arrays
arrays.DEVICE = "cpu"
package.to_np, package.to_torch = arrays.to_np, arrays.to_torch
from trajectory.utils import progress, training
package.Progress, package.Silent = progress.Progress, progress.Silent
from trajectory.datasets import sequence
from trajectory.models.transformers import GPT
from trajectory.search import beam_plan, extract_actions, make_prefix, update_context

def data(env, **named):
    ends = [np.arange(len(path["rewards"])) == len(path["rewards"]) - 1 for path in paths]
    return {
        "rewards": np.concatenate([path["rewards"] for path in paths])[:, None],
        "terminals": np.concatenate(ends)[:, None],
        "realterminals": np.concatenate([path["terminals"] for path in paths])[:, None],
        **{
            key: np.concatenate([path[key] for path in paths])
            for key in ("observations", "next_observations", "actions")
        },
    }

sequence.qlearning_dataset_with_timeouts = data
env = Old()
dataset = sequence.DiscretizedDataset(
    env, N=[bins], penalty=[termination_penalty], sequence_length=[window], step=1,
    discount=[discount], discretizer="QuantileDiscretizer",
)
block = [window] * dataset.joined_dim - 1
model = GPT(types.SimpleNamespace(
    vocab_size=[bins], block_size=block, n_layer=[layers], n_head=[heads], n_embd=[width],
    observation_dim=dataset.observation_dim, action_dim=dataset.action_dim,
    transition_dim=dataset.joined_dim, action_weight=[action_weight],
    reward_weight=[reward_weight], value_weight=[value_weight], embd_pdrop=[dropout],
    resid_pdrop=[dropout], attn_pdrop=[dropout],
))
# the schedule counts tokens that are no padding
trainer = training.Trainer(types.SimpleNamespace(
    batch_size=BATCH, learning_rate=[learning_rate], betas=(0.9, 0.95), grad_norm_clip=[max_norm],
    weight_decay=[weight_decay], lr_decay=True, warmup_tokens=[warm_up_steps] * BATCH * block,
    final_tokens=([warm_up_steps] + [decay_steps]) * BATCH * block, num_workers=0, device="cpu",
))

class Some(torch.utils.data.Dataset):
    N = [bins]

    def __init__(self, steps):
        self.chosen = np.random.permutation(len(dataset))[: steps * BATCH]
        while len(self.chosen) < steps * BATCH:
            more = np.random.permutation(len(dataset))
            self.chosen = np.concatenate([self.chosen, more])[: steps * BATCH]

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, n):
        return dataset[self.chosen[n]]

def value(probabilities):
    return dataset.discretizer.value_fn(probabilities, "mean")

def play():
    seen, total, context, over = env.reset(), 0.0, [], False
    while not over:
        prefix = make_prefix(dataset.discretizer, context, seen, True)
        plan = beam_plan(
            model, value, prefix, [horizon], [beams], [expansions], dataset.observation_dim,
            dataset.action_dim, [discount], [context], verbose=False, k_obs=[k_obs], k_act=None,
            cdf_obs=None, cdf_act=[cdf_act],
        )
        action = extract_actions(
            dataset.discretizer.reconstruct(plan), dataset.observation_dim, dataset.action_dim, t=0
        )
        later, reward, over, _ = env.step(action)
        total += reward
        context = update_context(context, dataset.discretizer, seen, action, reward, [context])
        seen = later
    return total

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, dict):
        model.eval()
        print(json.dumps([play() for _ in range(asked["play"])]), file=answers, flush=True)
        continue
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.train(model, Some(asked))
    told = [time.process_time() - cpu, time.perf_counter() - wall, "VERSION"]
    print(json.dumps(told), file=answers, flush=True)
"""
write = write_episodes


def program(cell: Cell, algorithm: Any) -> str:
    """See the package."""
    if None in (algorithm.warm_up_steps, algorithm.decay_steps):
        raise SystemExit(f"{cell.name} leaves its schedule to the dataset; give its steps")
    body = cell.target.partition("-")[0]
    return (READ + PLAYED + PROGRAM).replace("ENVIRONMENT", ENVIRONMENTS[body])
