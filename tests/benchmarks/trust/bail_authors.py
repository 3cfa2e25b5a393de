"""BAIL by its authors (lanyavik/BAIL): returns, envelope, selection and cloning are their
functions.

The envelope takes as many of their epochs, of 80 % of the pairs in batches of 800, as come nearest
to the cell's steps on it.
"""

from __future__ import annotations

from typing import Any

from bigdm_ray.tables.base import Cell
from tests.benchmarks.trust.data import READ, write_episodes

COLUMNS = {("imitation", "BAIL")}
NAME, PLAYS = "lanyavik/BAIL", False

PROGRAM = """
sys.path.insert(0, "CODE/spinup/spinup/algos/BAIL")
import bail_training, utils
# copy=False meant asarray until NumPy 2
utils.np = module("old_numpy", **{**np.__dict__, "array": lambda x, copy=True: np.asarray(x)})
module("gym")
for name in ("spinup", "spinup.utils", "spinup.algos"):
    module(name, __path__=[])
module("spinup.utils.logx", EpochLogger=None)
module("spinup.utils.run_utils", setup_logger_kwargs=None)
module("spinup.algos.BAIL", utils=utils, bail_training=bail_training)
sys.modules["spinup.algos.BAIL.bail_training"] = bail_training
import main_get_mcret, main_static_bail

class Quiet:
    def store(self, **told):
        pass

def train(steps):
    buffer = utils.ReplayBuffer()
    for path in paths:
        for s, n, a, r, d in zip(*(path[key] for key in (
            "observations", "next_observations", "actions", "rewards", "terminals"
        ))):
            buffer.add((s, n, a, float(r), float(d)))
    states, returns = main_get_mcret.calculate_mc_gain(buffer, 1000, [discount])
    states, returns = np.array(states), np.array(returns, np.float32)
    an_epoch = int(0.8 * len(states)) // 800 + 1
    envelope, _ = bail_training.train_upper_envelope(
        states, returns, states.shape[1], SEED,
        upper_learning_rate=[envelope_learning_rate], weight_decay=[envelope_decay],
        num_epoches=round([envelope_steps] / an_epoch), k=[envelope_k],
    )
    chosen, _, _ = main_static_bail.select_batch_ue(
        buffer, states, returns, envelope, SEED, [envelope_k], None, [selected]
    )
    acted = paths[0]["actions"].shape[1]
    policy = bail_training.BC(states.shape[1], acted, 1.0, [learning_rate], 0)
    policy.train(chosen, steps - [envelope_steps], BATCH, Quiet())
    return policy.actor

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, list):
        with torch.no_grad():
            print(json.dumps(actor(torch.tensor(asked)).tolist()), file=answers, flush=True)
        continue
    cpu, wall = time.process_time(), time.perf_counter()
    actor = train(asked)
    told = [time.process_time() - cpu, time.perf_counter() - wall, "VERSION"]
    print(json.dumps(told), file=answers, flush=True)
"""
write = write_episodes


def program(cell: Cell, algorithm: Any) -> str:
    """See the package."""
    return READ + PROGRAM
