"""A dataset as the programs of peers read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_episodes(folder: Path, file: Path) -> None:
    """All episodes, one behind the other: `observations [sum of (T + 1), d]`, `actions`, `rewards
    [sum of T]`, `lengths [n]`, `terminated [n]`."""
    from bigdm_ray.formats.dataset import Dataset

    store = Dataset.open(folder).store()
    episodes = [store.episode(i) for i in range(len(store.table))]
    np.savez(
        file,
        observations=np.concatenate([episode.observations[""] for episode in episodes]),
        actions=np.concatenate([episode.actions[""] for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        lengths=np.array([episode.length for episode in episodes]),
        terminated=np.array([episode.terminated for episode in episodes]),
    )


READ = """import json, os, random, sys, time, types, warnings
warnings.filterwarnings("ignore")
import numpy as np, torch
torch.set_num_threads(1)
random.seed(SEED); np.random.seed(SEED); torch.manual_seed(SEED)
answers, sys.stdout = sys.stdout, sys.stderr

def module(called, **has):
    made = types.ModuleType(called)
    made.__dict__.update(has)
    sys.modules[called] = made
    return made

held = dict(np.load("FILE"))
begins = np.concatenate([[0], np.cumsum(held["lengths"])])
paths = [
    {
        "observations": held["observations"][a + i : b + i],
        "next_observations": held["observations"][a + i + 1 : b + i + 1],
        "actions": held["actions"][a:b],
        "rewards": held["rewards"][a:b],
        "terminals": np.arange(a, b) == (b - 1 if ended else -1),
    }
    for i, (a, b, ended) in enumerate(zip(begins, begins[1:], held["terminated"]))
]
"""
"""What the programs begin with: `paths`, the episodes; `module(name, ...)` stands in for a library
that the peer imports without using it here; `answers` is where lines are answered, as peers print
what they like."""
PLAYED = """
class Old:
    def __init__(self):
        import gymnasium
        self.env, self.episodes = gymnasium.make("ENVIRONMENT"), 0
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space
        self.unwrapped, self.name, self.max_episode_steps = self, "ENVIRONMENT", 1000

    def reset(self):
        self.episodes += 1
        return self.env.reset(seed=1000 * SEED + self.episodes)[0]

    def step(self, action):
        seen, reward, terminated, truncated, _ = self.env.step(action)
        return seen, float(reward), terminated or truncated, {}
"""
"""gymnasium's environment behind gym's old interface."""
ENVIRONMENTS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
