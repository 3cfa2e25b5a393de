"""A2C, DQN and PPO of Stable-Baselines3: the baselines of Upside-Down RL's paper (Srivastava et al.
2019, section 3.3), and one that learns from pictures.

Stable-Baselines3 plays, stores and learns in this process; what it trained is exported at each
evaluation and save. Its environments are ours, EnvPool's where the task has them, behind a vector
environment that keeps the two ends of an episode apart. Nothing is pickled: networks, optimizer and
replay buffer are saved as arrays. The presets of LunarLander are those of the RL Zoo
(DLR-RM/rl-baselines3-zoo, hyperparams/a2c.yml and dqn.yml).

Pictures are shrunk and stacked before the library sees them, and its features extractor is our
`ImageLayers`. PPO is called `sb3-ppo`, for `ppo` is RLlib's, whose connectors keep every step of
every episode as Python objects. Its presets of Atari's games are made for one processor core: a
quarter of the usual pixels, and few channels.

    python -m bigdm_ray.run dqn lunarlander
    python -m bigdm_ray.run sb3-ppo pong --local
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bigdm_ray.algorithms.base import Mode, Policy, Presets, own_flags
from bigdm_ray.baselines.actor import (
    FrameView,
    ImageLayers,
    LayeredActor,
    LayeredActorPolicy,
    convolution_state,
    layers_of,
    plain_leaves,
)
from bigdm_ray.baselines.base import (
    ExternalAlgorithm,
    TrainerContext,
    TrainerResult,
    add_prefix,
    load_optimizer,
    optimizer_state,
    require_sound,
    spaces_of,
    strip_prefix,
)
from bigdm_ray.envs.signature import Signature
from bigdm_ray.envs.vector import VectorEnv
from bigdm_ray.errors import UserError
from bigdm_ray.replay.windows import merge_stack
from bigdm_ray.settings import setting

MEAN = {"evaluations.mode": "mean"}
"""Stable-Baselines3 scores its policies without their noise."""

GAMES = ("breakout", "pong", "qbert", "seaquest")
"""Those with presets, and their sticky forms."""

BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True)
class Sb3(ExternalAlgorithm):
    """What they have in common."""

    library: ClassVar[str] = "Stable-Baselines3"
    needs: ClassVar[tuple[str, ...]] = ("stable_baselines3",)
    online: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    frame_stack: int = setting(1, "pictures: how many of the last ones are seen", low=1)
    shrink: int = setting(
        1,
        "pictures: they are shrunk to the brightest of each square of so many pixels a side",
        low=1,
    )
    channels: tuple[int, ...] = setting(
        (16, 32), "pictures: channels of the convolutions", low=1, high=65_536
    )
    features: int = setting(
        256,
        "pictures: width of the layer that follows the convolutions and feeds the others",
        low=1,
        high=65_536,
    )
    clip_rewards: bool = setting(False, "whether training sees the sign of a reward in its place")

    @abstractmethod
    def learner(self, env: Any, context: TrainerContext) -> Any:
        """The library's own object."""

    def trainer(self, context: TrainerContext) -> Sb3Trainer:
        """See ExternalAlgorithm."""
        return Sb3Trainer(self, context)

    @property
    @abstractmethod
    def rows(self) -> int:
        """Environments that are played side by side."""

    @abstractmethod
    def export_state(self, learner: Any) -> dict[str, np.ndarray]:
        """The state of our network, out of the library's."""

    @property
    def steps_per_count(self) -> int:
        """Learner steps of what the library counts as one."""
        return 1

    @property
    def frame_view(self) -> FrameView:
        """How a picture is seen."""
        return FrameView(self.frame_stack, self.shrink, self.channels, self.features)

    def networks(self, env: Any, hidden: tuple[int, ...]) -> dict[str, Any]:
        """The library's `policy_kwargs` for an environment of `make_vector_env`: our convolutions
        where it shows pictures, then these layers."""
        shape = env.observation_space.shape
        kwargs: dict[str, Any] = {"net_arch": list(hidden)}
        if len(shape) == 1:
            return kwargs
        return kwargs | {
            "features_extractor_class": extractor(),
            "features_extractor_kwargs": {
                "pictures": ImageLayers(shape, self.channels, self.features),
                "features": self.features,
            },
            "normalize_images": False,
        }


@dataclass(frozen=True)
class Sb3ActorCritic(Sb3):
    """What A2C and PPO have in common: a policy of tanh layers, a value function of its own layers,
    several environments in turn."""

    hidden: tuple[int, ...] = setting(
        (64, 64),
        "widths of the layers of the policy, and of the value function",
        low=1,
        high=65_536,
        empty=True,
    )
    environments: int = setting(8, "environments that are played side by side", low=1)
    decay: bool = setting(
        False, "whether the learning rate falls to 0 along a straight line over --budget.env-steps"
    )
    gamma: float = setting(0.99, "discount", low=0, high=1)
    value_coefficient: float = setting(0.5, "weight of the value loss", low=0)
    max_norm: float = setting(0.5, "gradients are scaled down to this norm", above=0)

    @property
    def rows(self) -> int:
        """See Sb3."""
        return self.environments

    def build(self, signatures: Mapping[str, Signature]) -> LayeredActor:
        """See Algorithm: tanh layers to logits, or to the means of a Gaussian whose deviations
        depend on nothing."""
        (signature,) = signatures.values()
        discrete = plain_leaves(signature, self.name, pictures=True)[3].kind == "discrete"
        return LayeredActor(
            signature,
            self.name,
            self.hidden,
            "tanh",
            "logits" if discrete else "gaussian",
            free_std=not discrete,
            frame_view=self.frame_view,
        )

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """See Algorithm."""
        return LayeredActorPolicy(model, mode)

    @abstractmethod
    def make_learner(self, env: Any, shared: dict[str, Any]) -> Any:
        """The library's own object, made with these settings and those of one's own."""

    def learner(self, env: Any, context: TrainerContext) -> Any:
        """See Sb3."""
        shared = {
            "gamma": self.gamma,
            "vf_coef": self.value_coefficient,
            "max_grad_norm": self.max_norm,
            "policy_kwargs": self.networks(env, self.hidden),
            "seed": context.seed,
            "device": context.device,
        }
        made = self.make_learner(env, shared)
        if self.decay:  # over the whole run, which is trained in many calls of `learn`
            rate = made.learning_rate
            made.lr_schedule = lambda _: rate * max(0.0, 1.0 - made.num_timesteps / context.budget)
        return made

    def export_state(self, learner: Any) -> dict[str, np.ndarray]:
        """See Sb3."""
        policy = learner.policy
        layers = layers_of(
            policy.mlp_extractor.policy_net,
            policy.action_net,
            log_std=getattr(policy, "log_std", None),
        )
        return convolution_state(policy.features_extractor) | layers


A2C_ZOO = {
    "algorithm.gamma": 0.995,
    "algorithm.learning_rate": 8.3e-4,
    "algorithm.decay": True,
    "algorithm.entropy_coefficient": 1e-5,
}
A2C_LANDER = {
    "default": MEAN
    | A2C_ZOO
    | {"budget.env_steps": 1_000_000, "evaluations.every": 100_000, "saves.every": 200_000}
}
A2C_PRESETS: Presets = {
    "lunarlander": A2C_LANDER,
    "lunarlander-sparse": A2C_LANDER,
    "*": {"default": MEAN},
}


@dataclass(frozen=True)
class Sb3A2c(Sb3ActorCritic):
    """Hyperparameters of advantage actor-critic (Mnih et al. 2016); the defaults are the
    library's."""

    name: ClassVar[str] = "a2c"
    presets: ClassVar[Presets] = A2C_PRESETS

    n_steps: int = setting(5, "steps of each environment before a learner step", low=1)
    learning_rate: float = setting(7e-4, "RMSProp's learning rate", above=0, high=1)
    gae_lambda: float = setting(
        1.0, "lambda of generalised advantages; 1 is n-step returns", low=0, high=1
    )
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0)

    def make_learner(self, env: Any, shared: dict[str, Any]) -> Any:
        """See Sb3ActorCritic."""
        from stable_baselines3 import A2C

        own: dict[str, Any] = {
            "n_steps": self.n_steps,
            "gae_lambda": self.gae_lambda,
            "ent_coef": self.entropy_coefficient,
        }
        return A2C("MlpPolicy", env, self.learning_rate, **own, **shared)


PPO_OWN = {
    "hidden": (),
    "frame_stack": 4,
    "shrink": 2,
    "clip_rewards": True,
    "environments": 16,
    "n_steps": 64,
    "epochs": 4,
    "batch_size": 256,
    "learning_rate": 7e-4,
    "entropy_coefficient": 0.01,
}
PPO_REST = {
    "evaluations.every": 200_000,
    "evaluations.episodes": 4,
    "evaluations.final_episodes": 20,
    "saves.every": 50_000,
    "saves.report_every": 10_000,
}
PPO_ATARI = {"default": own_flags(PPO_OWN) | PPO_REST}
PPO_PRESETS: Presets = {
    game + sticky: PPO_ATARI for game in GAMES for sticky in ("", "-sticky")
} | {"*": {"default": MEAN}}
"""Atari's are of our own making; sampled actions are scored, as when it learns."""


@dataclass(frozen=True)
class Sb3Ppo(Sb3ActorCritic):
    """Hyperparameters of proximal policy optimisation (Schulman et al. 2017); the defaults are the
    library's."""

    name: ClassVar[str] = "sb3-ppo"
    presets: ClassVar[Presets] = PPO_PRESETS

    n_steps: int = setting(256, "steps of each environment before a bout of learning", low=1)
    epochs: int = setting(10, "passes over these steps", low=1)
    batch_size: int = setting(
        64,
        "steps of one learner step; a divisor of --algorithm.environments times"
        " --algorithm.n-steps",
        low=2,
        high=1_000_000,
    )
    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    gae_lambda: float = setting(0.95, "lambda of generalised advantages", low=0, high=1)
    clip: float = setting(0.2, "how far the ratio of probabilities may leave 1", above=0, high=1)
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0)

    @property
    def steps_per_count(self) -> int:
        """See Sb3: the library counts passes."""
        return self.environments * self.n_steps // self.batch_size

    def build(self, signatures: Mapping[str, Signature]) -> LayeredActor:
        """See Sb3ActorCritic.

        Raises UserError for a batch size that does not divide the steps of a bout.
        """
        if (steps := self.environments * self.n_steps) % self.batch_size:
            raise UserError(
                f"--algorithm.batch-size is {self.batch_size}, but a divisor of the {steps:,} steps"
                " of a bout is expected"
            )
        return super().build(signatures)

    def make_learner(self, env: Any, shared: dict[str, Any]) -> Any:
        """See Sb3ActorCritic."""
        from stable_baselines3 import PPO

        own: dict[str, Any] = {
            "clip_range": self.clip,
            "gae_lambda": self.gae_lambda,
            "ent_coef": self.entropy_coefficient,
        }
        return PPO(
            "MlpPolicy",
            env,
            self.learning_rate,
            self.n_steps,
            self.batch_size,
            self.epochs,
            **own,
            **shared,
        )


DQN_ZOO = {
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
DQN_OWN = own_flags(DQN_ZOO)
DQN_LANDER = {
    "default": MEAN
    | DQN_OWN
    | {"budget.env_steps": 1_000_000, "evaluations.every": 50_000, "saves.every": 100_000}
}
DQN_PRESETS: Presets = {
    "lunarlander": DQN_LANDER,
    "lunarlander-sparse": DQN_LANDER,
    "*": {"default": MEAN},
}
"""The zoo explores for 0.12 of its 100,000 steps."""


@dataclass(frozen=True)
class Sb3Dqn(Sb3):
    """Hyperparameters of deep Q-learning (Mnih et al. 2015), with targets of `n_steps`, not double;
    the defaults are the library's but for its exploration."""

    name: ClassVar[str] = "dqn"
    presets: ClassVar[Presets] = DQN_PRESETS

    hidden: tuple[int, ...] = setting((64, 64), "widths of the layers", low=1, high=65_536)
    environments: int = setting(1, "environments that are played side by side", low=1)
    learning_rate: float = setting(1e-4, "Adam's learning rate", above=0, high=1)
    buffer_size: int = setting(1_000_000, "steps that are kept", low=1)
    learning_starts: int = setting(100, "steps that are played before learning begins", low=0)
    batch_size: int = setting(32, "steps drawn for one learner step", low=1, high=1_000_000)
    gamma: float = setting(0.99, "discount", low=0, high=1)
    n_steps: int = setting(1, "rewards that are summed before a target bootstraps", low=1)
    train_freq: int = setting(4, "steps of each environment between two bouts of learning", low=1)
    gradient_steps: int = setting(
        1, "learner steps of a bout; -1 takes as many as were played", low=-1
    )
    target_update_interval: int = setting(
        10_000, "environment steps between two copies of the network to its target", low=1
    )
    exploration_steps: int = setting(
        100_000,
        "environment steps over which the share of random actions falls to its last value",
        low=1,
    )
    exploration_final: float = setting(
        0.05, "share of random actions after that; `sample` acts with it", low=0, high=1
    )
    max_norm: float = setting(10.0, "gradients are scaled down to this norm", above=0)

    @property
    def rows(self) -> int:
        """See Sb3."""
        return self.environments

    def build(self, signatures: Mapping[str, Signature]) -> LayeredActor:
        """See Algorithm: ReLU layers to the value of each action."""
        (signature,) = signatures.values()
        return LayeredActor(
            signature, self.name, self.hidden, "relu", "values", frame_view=self.frame_view
        )

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """See Algorithm."""
        return LayeredActorPolicy(model, mode, self.exploration_final)

    def learner(self, env: Any, context: TrainerContext) -> Any:
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
            policy_kwargs=self.networks(env, self.hidden),
            seed=context.seed,
            device=context.device,
        )
        fall = (1.0 - self.exploration_final) / self.exploration_steps
        made.exploration_schedule = lambda _: max(
            self.exploration_final, 1.0 - fall * made.num_timesteps
        )
        made.exploration_rate = 1.0
        return made

    def export_state(self, learner: Any) -> dict[str, np.ndarray]:
        """See Sb3."""
        return convolution_state(learner.q_net) | layers_of(learner.q_net.q_net)


ALGORITHMS = (Sb3A2c, Sb3Dqn, Sb3Ppo)


class Sb3Trainer:
    """See Trainer: an algorithm of Stable-Baselines3 that learns in many short calls of its
    `learn`."""

    def __init__(self, algorithm: Sb3, context: TrainerContext) -> None:
        from stable_baselines3.common.logger import Logger

        self._algorithm = algorithm
        self._ended: list[tuple[float, int]] = []
        self._env = make_vector_env(
            context.task.make(algorithm.rows, context.seed), algorithm, self._ended
        )
        self._learner = algorithm.learner(self._env, context)
        self._learner.set_logger(Logger(folder=None, output_formats=[]))

    def step(self, steps: int) -> TrainerResult:
        """See Trainer."""
        learner = self._learner
        before, updates = learner.num_timesteps, learner._n_updates
        learner.learn(steps, log_interval=None, reset_num_timesteps=False)
        told = learner.logger.name_to_value
        metrics = {
            name: float(value)
            for name, value in told.items()
            if name.startswith("train/") and name != "train/n_updates"
        }
        learner.logger.dump()
        ended, self._ended[:] = list(self._ended), []
        returns, lengths = [total for total, _ in ended], [length for _, length in ended]
        learned = (learner._n_updates - updates) * self._algorithm.steps_per_count
        return TrainerResult(learner.num_timesteps - before, learned, returns, lengths, metrics)

    def weights(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        return self._algorithm.export_state(self._learner)

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer: policy with its target, optimizer, counters, and the filled part of the
        replay buffer."""
        learner = self._learner
        policy = {
            name: value.detach().cpu().numpy().copy()
            for name, value in learner.policy.state_dict().items()
        }
        counts = {
            "steps": learner.num_timesteps,
            "updates": learner._n_updates,
            "calls": getattr(learner, "_n_calls", 0),
        }
        state = add_prefix("policy/", policy) | add_prefix(
            "optimizer/", optimizer_state(learner.policy.optimizer)
        )
        state |= {f"count/{name}": np.array(value) for name, value in counts.items()}
        if (buffer := getattr(learner, "replay_buffer", None)) is not None:
            filled = buffer.buffer_size if buffer.full else buffer.pos
            state |= {f"buffer/{name}": getattr(buffer, name)[:filled] for name in BUFFER} | {
                "count/position": np.array(buffer.pos)
            }
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        learner = self._learner
        learner.policy.load_state_dict(
            {
                name: torch.from_numpy(np.array(value))
                for name, value in strip_prefix(state, "policy/").items()
            }
        )
        load_optimizer(learner.policy.optimizer, strip_prefix(state, "optimizer/"))
        learner.num_timesteps, learner._n_updates = (
            int(state["count/steps"]),
            int(state["count/updates"]),
        )
        if (buffer := getattr(learner, "replay_buffer", None)) is not None:
            learner._n_calls = int(state["count/calls"])
            learner.exploration_rate = learner.exploration_schedule(0.0)
            for name, kept in strip_prefix(state, "buffer/").items():
                getattr(buffer, name)[: len(kept)] = kept
            buffer.pos, buffer.full = (
                int(state["count/position"]),
                len(state["buffer/rewards"]) == buffer.buffer_size,
            )

    def close(self) -> None:
        """See Trainer."""
        self._env.close()


def extractor() -> Any:
    """The library's kind of features extractor that is our `ImageLayers`."""
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Extractor(BaseFeaturesExtractor):
        """See `extractor`; each network of the policy gets convolutions of its own."""

        def __init__(self, observation_space: Any, pictures: ImageLayers, features: int) -> None:
            super().__init__(observation_space, features)
            self.pictures = copy.deepcopy(pictures)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.pictures(observations)
            return out

    return Extractor


def make_vector_env(env: VectorEnv, algorithm: Sb3, ended: list[tuple[float, int]]) -> Any:
    """`env` as the library's vector environment: rows that end begin again at once.

    Return and length of each episode go to `ended`.
    """
    from gymnasium import spaces
    from stable_baselines3.common.vec_env import VecEnv

    name, frame_view, clip = algorithm.name, algorithm.frame_view, algorithm.clip_rewards
    path, leaf, action_path, action = plain_leaves(env.signature, name, pictures=True)
    pictures = leaf.kind == "image"
    shown = spaces.Box(0, 255, frame_view.shape(leaf), np.uint8) if pictures else spaces_of(leaf)

    class Rows(VecEnv):
        """See `make_vector_env`."""

        def __init__(self) -> None:
            super().__init__(env.n, shown, spaces_of(action))
            self._all = np.arange(env.n)
            self._totals, self._lengths = np.zeros(env.n), np.zeros(env.n, np.int64)
            self._frames = frame_view.empty(env.n, leaf) if pictures else np.zeros(0, np.uint8)

        def _see(self, rows: np.ndarray, observations: np.ndarray, first: bool) -> np.ndarray:
            """What the library is shown of the observations of these rows."""
            if not pictures:
                return observations.copy()
            self._frames[rows] = frame_view.push(
                self._frames[rows], observations, np.full(len(rows), first)
            )
            return merge_stack(self._frames[rows])

        def reset(self) -> np.ndarray:
            self._totals[:], self._lengths[:] = 0, 0
            step = env.reset(self._all)
            require_sound(step, name)
            return self._see(self._all, step.observations[path], True)

        def step_async(self, actions: np.ndarray) -> None:
            self._actions = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            step = env.step(
                self._all, {action_path: self._actions.astype(action.dtype, copy=False)}
            )
            require_sound(step, name)
            self._totals += step.rewards
            self._lengths += 1
            observations, done = (
                self._see(self._all, step.observations[path], False),
                step.terminated | step.truncated,
            )
            infos: list[dict[str, Any]] = [{} for _ in self._all]
            for k in np.flatnonzero(done).tolist():
                infos[k] = {
                    "terminal_observation": observations[k].copy(),
                    "TimeLimit.truncated": bool(not step.terminated[k]),
                }
                ended.append((float(self._totals[k]), int(self._lengths[k])))
            if done.any():
                rows = np.flatnonzero(done)
                self._totals[rows], self._lengths[rows] = 0, 0
                begun = env.reset(rows)
                require_sound(begun, name)
                observations[rows] = self._see(rows, begun.observations[path], True)
            return observations, np.sign(step.rewards) if clip else step.rewards.copy(), done, infos

        def close(self) -> None:
            env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * env.n  # the library asks for `render_mode` only

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(
            self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
        ) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * env.n

    return Rows()
