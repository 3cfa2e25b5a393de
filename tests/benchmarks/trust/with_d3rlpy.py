"""d3rlpy's CQL, IQL, BCQ and BEAR."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bigdm_ray.tables.base import Cell
from tests.benchmarks import conservative

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
LEARNERS = {"CQL": conservative.CQL, "IQL": IQL, "BCQ": BCQ, "BEAR": BEAR}
COLUMNS = {("value-based", column) for column in LEARNERS}
NAME, PLAYS = "d3rlpy", False
MENDED = {
    "BEAR": """
import d3rlpy.algos.qlearning.torch.bear_impl as bear

def update_alpha(self, discrepancy):
    weight = bear.get_parameter(self._modules.log_alpha)
    weight.grad = torch.autograd.grad(-discrepancy, weight, retain_graph=True)[0]
    self._modules.alpha_optim.step()
    weight.data.clamp_(-5.0, 10.0)

bear.BEARImpl.update_alpha = update_alpha
"""
}
"""In d3rlpy 2.8.1 the step of BEAR's multiplier leaves minus the discrepancy's gradient in the
policy, where it cancels what the policy's own loss adds: nothing holds it to the data then."""


def write(folder: Path, file: Path) -> None:
    """The dataset as d3rlpy takes it."""
    conservative.transitions(folder, file)


def program(cell: Cell, algorithm: Any) -> str:
    """See the package."""
    if tuple(algorithm.hidden) != (256, 256):
        raise SystemExit(
            f"{cell.name} has layers of {algorithm.hidden}, but the peer's have 256-256"
        )
    learner = LEARNERS[cell.column]
    for name in set(re.findall(r"\[([a-z_]+)\]", learner)):
        learner = learner.replace(f"[{name}]", str(getattr(algorithm, name)))
    before = f"{MENDED.get(cell.column, '')}learner = "
    return conservative.program(learner).replace("learner = ", before, 1)
