"""What the tests of the offline methods share: small settings, a store of a toy, batches, and
acting on made-up rows."""

import numpy as np
import torch
from making import stored

from bigdm_ray.baselines.bcq import Bcq
from bigdm_ray.baselines.bear import Bear
from bigdm_ray.baselines.brac import Brac
from bigdm_ray.baselines.mbop import Mbop
from bigdm_ray.envs import find_task
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.streams import rng

TASK = "toy-continuous"
SIGNATURE = find_task(TASK).signature()
SMALL = {
    Bcq: {"hidden": (32, 24), "vae_hidden": (32, 32), "batch_size": 16, "candidates": 20},
    Bear: {"hidden": (32, 24), "vae_hidden": (32, 32), "batch_size": 16, "warm_start": 3},
    Brac: {
        "hidden": (32, 24),
        "policy_hidden": (24, 24),
        "batch_size": 16,
        "clone_steps": 3,
        "warm_start": 2,
    },
    Mbop: {
        "hidden": (24, 24),
        "members": 3,
        "samples": 30,
        "horizon": 4,
        "return_horizon": 3,
        "batch_size": 16,
    },
}
KINDS = list(SMALL)


def small(kind, **more):
    return kind(**(SMALL[kind] | more))


def made(kind, folder, episodes=30, seed=1, **more):
    """A learner and the store that it learns from."""
    return Learner(small(kind, **more), {TASK: SIGNATURE}, seed), {
        TASK: stored(folder, TASK, episodes)
    }


def batch_of(algorithm, stores, step=0):
    windows = {
        task: store.draw(algorithm.view(step), rng(3, "draw", step), algorithm.batch)
        for task, store in stores.items()
    }
    return {name: torch.from_numpy(values) for name, values in algorithm.collate(windows).items()}


def act(policy, seen, seed=0, state=None, first=True, rows=None):
    """Actions and memory for rows `[n, 3]`; `rows` picks some of them with their own chance."""
    uniforms = np.random.default_rng(seed).random((len(seen), policy.uniforms), np.float32)
    keep = np.arange(len(seen)) if rows is None else np.asarray(rows)
    start = (
        policy.start(len(keep))
        if state is None
        else {name: values[keep] for name, values in state.items()}
    )
    nothing = np.zeros(len(keep), np.float32)
    actions, after = policy.act(
        start, {"": seen[keep]}, nothing, {}, np.full(len(keep), first), uniforms[keep]
    )
    return actions[""], after
