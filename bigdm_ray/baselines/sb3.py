"""A2C and DQN of Stable-Baselines3, the baselines of Upside-Down RL's paper (Srivastava et al. 2019, section 3.3).

Stable-Baselines3 plays, stores and learns in this process; what it trained is exported at each evaluation and save. Its
environments are ours, EnvPool's where the task has them, behind a vector environment that keeps the two ends of an
episode apart. Nothing is pickled: networks, optimizer and replay buffer are saved as arrays. The presets of LunarLander
are those of the RL Zoo (DLR-RM/rl-baselines3-zoo, hyperparams/a2c.yml and dqn.yml).

    python -m bigdm_ray.run dqn lunarlander
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bigdm_ray.algorithms.base import Mode, Policy
from bigdm_ray.baselines.actor import Actor, ActorPolicy, layers_of, plain_leaves
from bigdm_ray.baselines.base import Bench, Foreign, Turn, below, load_optimizer, optimizer_state, prefixed, sound, spaces_of
from bigdm_ray.envs.task import Signature
from bigdm_ray.envs.vector import VectorEnv
from bigdm_ray.settings import setting

MEAN = {"evaluations.mode": "mean"}
"""Stable-Baselines3 scores its policies without their noise."""

BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True)
class Sb3(Foreign):
    """What both have in common."""

    library: ClassVar[str] = "Stable-Baselines3"
    needs: ClassVar[tuple[str, ...]] = ("stable_baselines3",)
    online: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    @abstractmethod
    def learner(self, env: Any, bench: Bench) -> Any:
        """The library's own object."""

    def trainer(self, bench: Bench) -> Sb3Trainer:
        """See Foreign."""
        return Sb3Trainer(self, bench)

    @property
    @abstractmethod
    def rows(self) -> int:
        """Environments that are played side by side."""

    @abstractmethod
    def exported(self, learner: Any) -> dict[str, np.ndarray]:
        """The state of our network, out of the library's."""


@dataclass(frozen=True)
class A2c(Sb3):
    """Hyperparameters of advantage actor-critic (Mnih et al. 2016); the defaults are the library's."""

    name: ClassVar[str] = "a2c"

    hidden: tuple[int, ...] = setting((64, 64), "widths of the layers of the policy, and of the value function", low=1)
    environments: int = setting(8, "environments that are played side by side", low=1)
    n_steps: int = setting(5, "steps of each environment before a learner step", low=1)
    learning_rate: float = setting(7e-4, "RMSProp's learning rate", above=0, high=1)
    decay: bool = setting(False, "whether the learning rate falls to 0 along a straight line over --budget.env-steps")
    gamma: float = setting(0.99, "discount", low=0, high=1)
    gae_lambda: float = setting(1.0, "lambda of generalised advantages; 1 is n-step returns", low=0, high=1)
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0)
    value_coefficient: float = setting(0.5, "weight of the value loss", low=0)
    max_norm: float = setting(0.5, "gradients are scaled down to this norm", above=0)

    @property
    def rows(self) -> int:
        """See Sb3."""
        return self.environments

    def build(self, signatures: Mapping[str, Signature]) -> Actor:
        """See Algorithm: tanh layers to logits, or to the means of a Gaussian whose deviations depend on nothing."""
        (signature,) = signatures.values()
        discrete = plain_leaves(signature, self.name)[3].kind == "discrete"
        return Actor(signature, self.name, self.hidden, "tanh", "logits" if discrete else "gaussian", free_std=not discrete)

    def policy(self, model: nn.Module, mode: Mode) -> Policy:
        """See Algorithm."""
        return ActorPolicy(model, mode)

    def learner(self, env: Any, bench: Bench) -> Any:
        """See Sb3."""
        from stable_baselines3 import A2C

        made = A2C(
            "MlpPolicy",
            env,
            learning_rate=self.learning_rate,
            n_steps=self.n_steps,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            ent_coef=self.entropy_coefficient,
            vf_coef=self.value_coefficient,
            max_grad_norm=self.max_norm,
            policy_kwargs={"net_arch": list(self.hidden)},
            seed=bench.seed,
            device=bench.device,
        )
        if self.decay:  # over the whole run, which is trained in many calls of `learn`
            made.lr_schedule = lambda _: self.learning_rate * max(0.0, 1.0 - made.num_timesteps / bench.budget)
        return made

    def exported(self, learner: Any) -> dict[str, np.ndarray]:
        """See Sb3."""
        policy = learner.policy
        return layers_of(policy.mlp_extractor.policy_net, policy.action_net, log_std=getattr(policy, "log_std", None))

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """See Algorithm."""
        zoo = {"algorithm.gamma": 0.995, "algorithm.learning_rate": 8.3e-4, "algorithm.decay": True, "algorithm.entropy_coefficient": 1e-5}
        lander = {"default": MEAN | zoo | {"budget.env_steps": 1_000_000, "evaluations.every": 100_000, "saves.every": 200_000}}
        return {"lunarlander": lander, "lunarlander-sparse": lander, "*": {"default": MEAN}}


@dataclass(frozen=True)
class Dqn(Sb3):
    """Hyperparameters of deep Q-learning (Mnih et al. 2015) with multi-step targets; the defaults are the library's but for its exploration."""

    name: ClassVar[str] = "dqn"

    hidden: tuple[int, ...] = setting((64, 64), "widths of the layers", low=1)
    environments: int = setting(1, "environments that are played side by side", low=1)
    learning_rate: float = setting(1e-4, "Adam's learning rate", above=0, high=1)
    buffer_size: int = setting(1_000_000, "steps that are kept", low=1)
    learning_starts: int = setting(100, "steps that are played before learning begins", low=0)
    batch_size: int = setting(32, "steps drawn for one learner step", low=1)
    gamma: float = setting(0.99, "discount", low=0, high=1)
    n_steps: int = setting(1, "rewards that are summed before a target bootstraps", low=1)
    train_freq: int = setting(4, "steps of each environment between two bouts of learning", low=1)
    gradient_steps: int = setting(1, "learner steps of a bout; -1 takes as many as were played", low=-1)
    target_update_interval: int = setting(10_000, "environment steps between two copies of the network to its target", low=1)
    exploration_steps: int = setting(100_000, "environment steps over which the share of random actions falls to its last value", low=1)
    exploration_final: float = setting(0.05, "share of random actions after that; `sample` acts with it", low=0, high=1)
    max_norm: float = setting(10.0, "gradients are scaled down to this norm", above=0)

    @property
    def rows(self) -> int:
        """See Sb3."""
        return self.environments

    def build(self, signatures: Mapping[str, Signature]) -> Actor:
        """See Algorithm: ReLU layers to the value of each action."""
        (signature,) = signatures.values()
        return Actor(signature, self.name, self.hidden, "relu", "values")

    def policy(self, model: nn.Module, mode: Mode) -> Policy:
        """See Algorithm."""
        return ActorPolicy(model, mode, self.exploration_final)

    def learner(self, env: Any, bench: Bench) -> Any:
        """See Sb3."""
        from stable_baselines3 import DQN

        made = DQN(
            "MlpPolicy",
            env,
            learning_rate=self.learning_rate,
            buffer_size=self.buffer_size,
            learning_starts=self.learning_starts,
            batch_size=self.batch_size,
            gamma=self.gamma,
            n_steps=self.n_steps,
            train_freq=self.train_freq,
            gradient_steps=self.gradient_steps,
            target_update_interval=self.target_update_interval,
            exploration_final_eps=self.exploration_final,
            max_grad_norm=self.max_norm,
            policy_kwargs={"net_arch": list(self.hidden)},
            seed=bench.seed,
            device=bench.device,
        )
        fall = (1.0 - self.exploration_final) / self.exploration_steps
        made.exploration_schedule = lambda _: max(self.exploration_final, 1.0 - fall * made.num_timesteps)
        made.exploration_rate = 1.0
        return made

    def exported(self, learner: Any) -> dict[str, np.ndarray]:
        """See Sb3."""
        return layers_of(learner.q_net)

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """See Algorithm. The zoo explores for 0.12 of its 100,000 steps."""
        zoo = {
            "hidden": (256, 256),
            "learning_rate": 6.3e-4,
            "batch_size": 128,
            "buffer_size": 50_000,
            "learning_starts": 0,
            "target_update_interval": 250,
            "gradient_steps": -1,
            "exploration_steps": 12_000,
            "exploration_final": 0.1,
        }
        own = {f"algorithm.{name}": value for name, value in zoo.items()}
        lander = {"default": MEAN | own | {"budget.env_steps": 1_000_000, "evaluations.every": 50_000, "saves.every": 100_000}}
        return {"lunarlander": lander, "lunarlander-sparse": lander, "*": {"default": MEAN}}


ALGORITHMS = (A2c, Dqn)


class Sb3Trainer:
    """See Trainer: an algorithm of Stable-Baselines3 that learns in many short calls of its `learn`."""

    def __init__(self, algorithm: Sb3, bench: Bench) -> None:
        from stable_baselines3.common.logger import Logger

        self._algorithm = algorithm
        self._ended: list[tuple[float, int]] = []
        self._env = playing(bench.task.make(algorithm.rows, bench.seed), algorithm.name, self._ended)
        self._learner = algorithm.learner(self._env, bench)
        self._learner.set_logger(Logger(folder=None, output_formats=[]))

    def step(self, steps: int) -> Turn:
        """See Trainer."""
        learner = self._learner
        before, updates = learner.num_timesteps, learner._n_updates
        learner.learn(steps, log_interval=None, reset_num_timesteps=False)
        told = learner.logger.name_to_value
        metrics = {name: float(value) for name, value in told.items() if name.startswith("train/") and name != "train/n_updates"}
        learner.logger.dump()
        ended, self._ended[:] = list(self._ended), []
        returns, lengths = [total for total, _ in ended], [length for _, length in ended]
        return Turn(learner.num_timesteps - before, learner._n_updates - updates, returns, lengths, metrics)

    def weights(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        return self._algorithm.exported(self._learner)

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer: policy with its target, optimizer, counters, and the filled part of the replay buffer."""
        learner = self._learner
        policy = {name: value.detach().cpu().numpy().copy() for name, value in learner.policy.state_dict().items()}
        counts = {"steps": learner.num_timesteps, "updates": learner._n_updates, "calls": getattr(learner, "_n_calls", 0)}
        state = prefixed("policy/", policy) | prefixed("optimizer/", optimizer_state(learner.policy.optimizer))
        state |= {f"count/{name}": np.array(value) for name, value in counts.items()}
        if (buffer := getattr(learner, "replay_buffer", None)) is not None:
            filled = buffer.buffer_size if buffer.full else buffer.pos
            state |= {f"buffer/{name}": getattr(buffer, name)[:filled] for name in BUFFER} | {"count/position": np.array(buffer.pos)}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        learner = self._learner
        learner.policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in below(state, "policy/").items()})
        load_optimizer(learner.policy.optimizer, below(state, "optimizer/"))
        learner.num_timesteps, learner._n_updates = int(state["count/steps"]), int(state["count/updates"])
        if (buffer := getattr(learner, "replay_buffer", None)) is not None:
            learner._n_calls = int(state["count/calls"])
            learner.exploration_rate = learner.exploration_schedule(0.0)
            for name, kept in below(state, "buffer/").items():
                getattr(buffer, name)[: len(kept)] = kept
            buffer.pos, buffer.full = int(state["count/position"]), len(state["buffer/rewards"]) == buffer.buffer_size

    def close(self) -> None:
        """See Trainer."""
        self._env.close()


def playing(env: VectorEnv, name: str, ended: list[tuple[float, int]]) -> Any:
    """`env` as the library's vector environment: rows that end begin again at once. Return and length of each episode go to `ended`."""
    from stable_baselines3.common.vec_env import VecEnv

    path, seen, action_path, action = plain_leaves(env.signature, name)

    class Rows(VecEnv):
        """See `playing`."""

        def __init__(self) -> None:
            super().__init__(env.n, spaces_of(seen), spaces_of(action))
            self._all = np.arange(env.n)
            self._totals, self._lengths = np.zeros(env.n), np.zeros(env.n, np.int64)

        def reset(self) -> np.ndarray:
            self._totals[:], self._lengths[:] = 0, 0
            step = env.reset(self._all)
            sound(step.failures, name)
            return step.observations[path].copy()

        def step_async(self, actions: np.ndarray) -> None:
            self._actions = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            step = env.step(self._all, {action_path: self._actions.astype(action.dtype, copy=False)})
            sound(step.failures, name)
            self._totals += step.rewards
            self._lengths += 1
            observations, done = step.observations[path].copy(), step.terminated | step.truncated
            infos: list[dict[str, Any]] = [{} for _ in self._all]
            for k in np.flatnonzero(done).tolist():
                infos[k] = {"terminal_observation": observations[k].copy(), "TimeLimit.truncated": bool(not step.terminated[k])}
                ended.append((float(self._totals[k]), int(self._lengths[k])))
            if done.any():
                rows = np.flatnonzero(done)
                self._totals[rows], self._lengths[rows] = 0, 0
                begun = env.reset(rows)
                sound(begun.failures, name)
                observations[rows] = begun.observations[path]
            return observations, step.rewards.copy(), done, infos

        def close(self) -> None:
            env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * env.n  # the library asks for `render_mode` only

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * env.n

    return Rows()
