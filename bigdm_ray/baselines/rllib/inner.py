"""What rests on parts of RLlib that it does not promise to keep: all of it stands here and in
`modules.py`.

`tests/baselines/test_rllib.py` holds each against the version that is installed.
"""

from __future__ import annotations

from typing import Any

import torch

MODULE = "default_policy"
"""RLlib's name for the only module."""


def learn(learner: Any, batch: dict[str, torch.Tensor]) -> None:
    """One learner step on a batch of n rows; its metrics stay in the learner, unreduced."""
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    size = len(batch["obs"])
    rows = MultiAgentBatch({MODULE: SampleBatch(batch)}, size)
    learner.update(batch=rows, _no_metrics_reduce=True)


def learn_from_episodes(learner: Any, pieces: list[Any], env_steps: int, config: Any) -> int:
    """PPO's epochs over episodes of RLlib; the learner steps that were taken."""
    learner.update(
        episodes=pieces,
        timesteps={"num_env_steps_sampled_lifetime": env_steps},
        num_epochs=config.num_epochs,
        minibatch_size=config.minibatch_size,
        shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
        _no_metrics_reduce=True,
    )
    trained = int(learner.metrics.peek((MODULE, "num_module_steps_trained")))
    steps: int = round(trained / config.minibatch_size)
    return steps


def take_metrics(learner: Any) -> dict[str, Any]:
    """The newest numbers of the module by name, which the learner then forgets."""
    told: dict[str, Any] = learner.metrics.peek(MODULE, default={})
    learner.metrics.reduce()
    return told


def count_iterations(learner: Any, steps: int) -> None:
    """Tell CQL's learner how many steps it has taken.

    It looks that up in its metrics: once they are forgotten it would clone for ever.
    """
    from ray.rllib.utils.metrics import ALL_MODULES
    from ray.tune.result import TRAINING_ITERATION

    learner.metrics.log_value((ALL_MODULES, TRAINING_ITERATION), steps, reduce="sum")


def temperature(learner: Any) -> torch.Tensor:
    """The logarithm of the temperature of SAC and CQL."""
    found: torch.Tensor = learner.curr_log_alpha[MODULE]
    return found


def kl_coefficient(learner: Any) -> torch.Tensor:
    """The weight of PPO's divergence."""
    found: torch.Tensor = learner.curr_kl_coeffs_per_module[MODULE]
    return found


def squared_advantage(learner: Any) -> torch.Tensor:
    """What MARWIL divides advantages by the root of."""
    found: torch.Tensor = learner.moving_avg_sqd_adv_norms_per_module[MODULE]
    return found
