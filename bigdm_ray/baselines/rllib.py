"""PPO, SAC, CQL, IQL and MARWIL of RLlib: their hyperparameters, and the networks that act for them.

RLlib's RLModules, losses and optimizers learn, and its environment runners play (`rllib_trainer.py` says how). PPO and SAC play
through Ray with `--actors` runners, or in this process with `--local`. CQL, IQL and MARWIL learn from a dataset. Discrete
actions are for PPO and MARWIL. Neither observations nor rewards are normalised, but for IQL's rewards (`return_range`).

    python -m bigdm_ray.run ppo lunarlander --local
    python -m bigdm_ray.run iql data/hopper-medium
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.algorithms.base import Judge, Mode, Policy, Prelude, own_flags
from bigdm_ray.baselines.actor import Actor, ActorPolicy, layers_of, plain_leaves, stacked
from bigdm_ray.baselines.base import Bench, Foreign, below, to_unit
from bigdm_ray.envs.signature import Signature
from bigdm_ray.errors import UserError
from bigdm_ray.replay.returns import discounted, episode_groups
from bigdm_ray.replay.store import Store
from bigdm_ray.replay.windows import View
from bigdm_ray.settings import setting

if TYPE_CHECKING:
    from bigdm_ray.baselines.rllib_trainer import RllibTrainer

MEAN = {"evaluations.mode": "mean"}
"""Policies are scored without their noise, as in the papers."""


@dataclass(frozen=True)
class Rllib(Foreign):
    """What all of them have in common."""

    library: ClassVar[str] = "RLlib"
    needs: ClassVar[tuple[str, ...]] = ("ray.rllib",)

    hidden: tuple[int, ...] = setting(
        (256, 256), "widths of the layers of the policy, and of each critic", low=1
    )

    @abstractmethod
    def settings(self) -> Any:
        """RLlib's AlgorithmConfig with these hyperparameters."""

    @abstractmethod
    def network(self, discrete: bool) -> dict[str, Any]:
        """What RLlib's DefaultModelConfig is made with."""

    @abstractmethod
    def exported(self, module: Any) -> dict[str, np.ndarray]:
        """The state of our network, out of RLlib's module."""

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """What a learner of RLlib holds beside its module and its optimizers."""
        return {}

    def policy(self, model: nn.Module, mode: Mode, signature: Signature | None = None) -> Policy:
        """See Algorithm."""
        return ActorPolicy(model, mode)


class Gaussian(Rllib):
    """Layers to logits, or to the means of a Gaussian whose deviations depend on nothing; the critic has layers of its own."""

    activation: ClassVar[str] = "tanh"

    def build(self, signatures: Mapping[str, Signature]) -> Actor:
        """See Algorithm."""
        (signature,) = signatures.values()
        discrete = plain_leaves(signature, self.name)[3].kind == "discrete"
        return Actor(
            signature,
            self.name,
            self.hidden,
            self.activation,
            "logits" if discrete else "gaussian",
            free_std=not discrete,
            scaled=True,
        )

    def network(self, discrete: bool) -> dict[str, Any]:
        """See Rllib."""
        return {
            "fcnet_hiddens": list(self.hidden),
            "fcnet_activation": self.activation,
            "vf_share_layers": False,
            "free_log_std": not discrete,
        }

    def exported(self, module: Any) -> dict[str, np.ndarray]:
        """See Rllib."""
        return layers_of(
            module.encoder.actor_encoder, module.pi, log_std=getattr(module.pi, "log_std", None)
        )


class Squashed(Rllib):
    """ReLU layers to a Gaussian squashed by tanh; two critics of action and observation."""

    gamma: float

    def module(self, config: Any) -> Any:
        """The class of the RLModule that learns; RLlib's own for its AlgorithmConfig."""
        return config.get_default_rl_module_spec().module_class

    def build(self, signatures: Mapping[str, Signature]) -> Actor:
        """See Algorithm."""
        (signature,) = signatures.values()
        return Actor(signature, self.name, self.hidden, "relu", "squashed", scaled=True)

    def network(self, discrete: bool) -> dict[str, Any]:
        """See Rllib: the first layer is its encoder, the others are its head."""
        first, *others = self.hidden
        return {
            "fcnet_hiddens": [first],
            "fcnet_activation": "relu",
            "head_fcnet_hiddens": others,
            "head_fcnet_activation": "relu",
        }

    def exported(self, module: Any) -> dict[str, np.ndarray]:
        """See Rllib."""
        return layers_of(module.pi_encoder, module.pi)

    def judge(
        self,
        model: nn.Module,
        store: Store | None,
        kept: Callable[[], Mapping[str, np.ndarray]],
    ) -> Judge:
        """See Algorithm: RLlib's critics, out of the checkpoint."""
        assert isinstance(model, Actor)
        arrays, scale = below(dict(kept()), "foreign/module/"), 1.0
        if isinstance(self, Studying):
            if store is None:
                raise UserError(
                    f"what {self.name} multiplies rewards by comes from its dataset, which does "
                    "not lie where the run found it; put it there"
                )
            scale = self.reward_scale(store)
        critics = [stacked(arrays, f"{name}_encoder.", f"{name}.") for name in ("qf", "qf_twin")]

        def values(seen: dict[str, Tensor], acted: dict[str, Tensor]) -> Tensor:
            packed = torch.from_numpy(to_unit(acted[model.action_path].numpy(), model.action))
            rows = torch.cat([seen[model.path].float(), packed], -1)
            return torch.minimum(*(critic(rows)[:, 0] for critic in critics)) / scale

        return Judge(values, self.gamma)


class Tempered(Squashed):
    """Squashed, with a temperature that is learned."""

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """See Rllib."""
        return {"log_alpha": learner.curr_log_alpha[MODULE]}


@dataclass(frozen=True)
class Playing(Rllib):
    """Algorithms that learn from what they play."""

    online: ClassVar[bool] = True
    offline: ClassVar[bool] = False
    on_ray: ClassVar[bool] = True

    environments: int = setting(8, "environments that each runner plays side by side", low=1)


@dataclass(frozen=True)
class Studying(Rllib):
    """Algorithms that learn from a dataset."""

    stride: ClassVar[int] = 50

    batch_size: int = setting(256, "steps drawn for one learner step", low=1, high=1_000_000)

    def trainer(self, bench: Bench) -> RllibTrainer:
        """See Foreign."""
        from bigdm_ray.baselines.rllib_trainer import StudyingTrainer

        return StudyingTrainer(self, bench)

    def view(self, step: int = 0) -> View:
        """See Algorithm: every step alike, with the observation that followed it."""
        return View(weight="length", next_observation=True, terminals=True)

    @property
    def batch(self) -> int:
        """See Algorithm."""
        return self.batch_size

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """See Algorithm."""
        return {"*": {"default": MEAN}}

    def reward_scale(self, store: Store) -> float:
        """What rewards are multiplied by."""
        return 1.0

    def prepare(self, bench: Bench, path: str, learner: Any) -> Any:
        """What is computed once from the episodes, for `targets`. `path` is that of the observation, `learner` RLlib's."""
        return None

    def targets(
        self, prepared: Any, annotations: dict[str, np.ndarray], module: Any
    ) -> dict[str, Tensor]:
        """More columns of a batch of n rows."""
        return {}


@dataclass(frozen=True)
class Ppo(Gaussian, Playing):
    """Hyperparameters of proximal policy optimisation (Schulman et al. 2017)."""

    name: ClassVar[str] = "ppo"

    train_batch: int = setting(2048, "environment steps of an iteration", low=1)
    minibatch: int = setting(64, "steps of a learner step", low=1)
    epochs: int = setting(10, "passes over the steps of an iteration", low=1)
    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    gamma: float = setting(0.99, "discount", low=0, high=1)
    gae_lambda: float = setting(0.95, "lambda of generalised advantages", low=0, high=1)
    clip: float = setting(0.2, "how far the probability ratio may leave 1", above=0)
    value_clip: float = setting(
        1e6, "squared errors of the value are clipped at this, which stops their gradient", above=0
    )
    value_coefficient: float = setting(0.5, "weight of the value loss", low=0)
    entropy_coefficient: float = setting(0.0, "weight of the entropy bonus", low=0)
    kl_coefficient: float = setting(
        0.0, "first weight of the divergence from the policy that played; 0 leaves it out", low=0
    )
    max_norm: float = setting(0.5, "gradients are scaled down to this norm", above=0)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.ppo import PPOConfig

        return PPOConfig().training(
            lr=self.learning_rate,
            gamma=self.gamma,
            lambda_=self.gae_lambda,
            clip_param=self.clip,
            vf_clip_param=self.value_clip,
            vf_loss_coeff=self.value_coefficient,
            entropy_coeff=self.entropy_coefficient,
            use_kl_loss=self.kl_coefficient > 0,
            kl_coeff=self.kl_coefficient,
            grad_clip=self.max_norm,
            grad_clip_by="global_norm",
            train_batch_size_per_learner=self.train_batch,
            minibatch_size=min(self.minibatch, self.train_batch),
            num_epochs=self.epochs,
        )

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """See Rllib."""
        return {"kl_coefficient": learner.curr_kl_coeffs_per_module[MODULE]}

    def trainer(self, bench: Bench) -> RllibTrainer:
        """See Foreign."""
        from bigdm_ray.baselines.rllib_trainer import PpoTrainer

        return PpoTrainer(self, bench)

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """See Algorithm. LunarLander: the RL Zoo's discount, lambda, entropy and epochs, with a smaller iteration."""
        zoo = {
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "entropy_coefficient": 0.01,
            "epochs": 4,
            "train_batch": 4096,
        }
        counted = {
            "budget.env_steps": 1_000_000,
            "evaluations.every": 100_000,
            "saves.every": 100_000,
        }
        lander = {"default": MEAN | own_flags(zoo) | counted}
        body = {"default": MEAN | counted}
        bodies = dict.fromkeys(("hopper", "halfcheetah", "walker2d", "reacher"), body)
        return {
            "lunarlander": lander,
            "lunarlander-sparse": lander,
            **bodies,
            "*": {"default": MEAN},
        }


@dataclass(frozen=True)
class Sac(Tempered, Playing):
    """Hyperparameters of soft actor-critic (Haarnoja et al. 2018) with a temperature that is learned."""

    name: ClassVar[str] = "sac"
    stride: ClassVar[int] = 500

    environments: int = setting(1, "environments that each runner plays side by side", low=1)
    fragment: int = setting(32, "environment steps between two bouts of learning", low=1)
    updates: float = setting(1.0, "learner steps for each environment step", above=0)
    batch_size: int = setting(256, "steps drawn for one learner step", low=1, high=1_000_000)
    buffer_size: int = setting(1_000_000, "steps that are kept, drawn alike", low=1)
    learning_starts: int = setting(
        10_000, "steps that are played at random before learning begins", low=0
    )
    actor_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the policy", above=0, high=1
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics", above=0, high=1
    )
    alpha_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the temperature", above=0, high=1
    )
    gamma: float = setting(0.99, "discount", low=0, high=1)
    tau: float = setting(
        0.005,
        "share of the critics that their targets take over at each learner step",
        above=0,
        high=1,
    )
    initial_alpha: float = setting(1.0, "temperature at the start", above=0)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.sac import SACConfig

        return SACConfig().training(
            actor_lr=self.actor_learning_rate,
            critic_lr=self.critic_learning_rate,
            alpha_lr=self.alpha_learning_rate,
            gamma=self.gamma,
            tau=self.tau,
            initial_alpha=self.initial_alpha,
            train_batch_size_per_learner=self.batch_size,
        )

    def trainer(self, bench: Bench) -> RllibTrainer:
        """See Foreign."""
        from bigdm_ray.baselines.rllib_trainer import SacTrainer

        return SacTrainer(self, bench)

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """See Algorithm. The defaults are those of the paper's MuJoCo runs."""
        body = {
            "default": MEAN
            | {
                "budget.env_steps": 1_000_000,
                "evaluations.every": 25_000,
                "saves.every": 100_000,
                "saves.report_every": 2_000,
            }
        }
        return {
            **dict.fromkeys(("hopper", "halfcheetah", "walker2d", "reacher"), body),
            "*": {"default": MEAN},
        }


@dataclass(frozen=True)
class Cql(Tempered, Studying):
    """Hyperparameters of conservative Q-learning, CQL(H) without Lagrange (Kumar et al. 2020); those of the authors' D4RL runs."""

    name: ClassVar[str] = "cql"
    offline_steps: ClassVar[int] = 500_000

    actor_learning_rate: float = setting(
        1e-4, "Adam's learning rate of the policy", above=0, high=1
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics", above=0, high=1
    )
    alpha_learning_rate: float = setting(
        1e-4, "Adam's learning rate of the temperature", above=0, high=1
    )
    gamma: float = setting(0.99, "discount", low=0, high=1)
    tau: float = setting(
        0.005,
        "share of the critics that their targets take over at each learner step",
        above=0,
        high=1,
    )
    initial_alpha: float = setting(1.0, "temperature of the entropy at the start", above=0)
    min_q_weight: float = setting(5.0, "weight of the conservative loss", low=0)
    actions: int = setting(
        10,
        "actions sampled from the policy here, from it there, and at random, for the conservative loss",
        low=1,
    )
    clone_steps: int = setting(
        40_000, "learner steps at the start in which the policy clones the data", low=0
    )
    deterministic_backup: bool = setting(True, "whether targets leave the entropy out")

    def prelude(self) -> Prelude | None:
        """Cloning."""
        return Prelude(self.clone_steps, ("clone_steps",), "a clone of the data")

    def module(self, config: Any) -> Any:
        """See Squashed."""
        from bigdm_ray.baselines.rllib_modules import conservative_module

        return conservative_module()

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.cql import CQLConfig

        return CQLConfig().training(
            actor_lr=self.actor_learning_rate,
            critic_lr=self.critic_learning_rate,
            alpha_lr=self.alpha_learning_rate,
            gamma=self.gamma,
            tau=self.tau,
            initial_alpha=self.initial_alpha,
            min_q_weight=self.min_q_weight,
            num_actions=self.actions,
            bc_iters=self.clone_steps,
            deterministic_backup=self.deterministic_backup,
            train_batch_size_per_learner=self.batch_size,
        )


@dataclass(frozen=True)
class Iql(Squashed, Studying):
    """Hyperparameters of implicit Q-learning (Kostrikov et al. 2021, section 5 and appendix B for MuJoCo).

    As there, the policy is a Gaussian whose mean alone is squashed and whose deviations depend on nothing. RLlib's is squashed whole: to it an action at a
    bound, where noise and clipping put many, is one of infinite size before tanh, which it cuts off at 7.25.
    """

    name: ClassVar[str] = "iql"
    offline_steps: ClassVar[int] = 500_000

    actor_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the policy", above=0, high=1
    )
    critic_learning_rate: float = setting(
        3e-4, "Adam's learning rate of the critics", above=0, high=1
    )
    value_learning_rate: float = setting(3e-4, "Adam's learning rate of the value", above=0, high=1)
    gamma: float = setting(0.99, "discount", low=0, high=1)
    tau: float = setting(
        0.005,
        "share of the critics that their targets take over at each learner step",
        above=0,
        high=1,
    )
    expectile: float = setting(
        0.7, "expectile of the critics that the value is fitted to", above=0, high=0.999
    )
    beta: float = setting(
        3.0, "inverse temperature of the advantages that weigh the policy's loss", above=0
    )
    return_range: float = setting(
        0.0,
        "rewards are scaled so that the returns of the data lie in a range so wide; 0 leaves them",
        low=0,
    )

    def build(self, signatures: Mapping[str, Signature]) -> Actor:
        """See Algorithm."""
        (signature,) = signatures.values()
        return Actor(
            signature, self.name, self.hidden, "relu", "bounded", free_std=True, scaled=True
        )

    def module(self, config: Any) -> Any:
        """See Squashed."""
        from bigdm_ray.baselines.rllib_modules import implicit_module

        return implicit_module()

    def exported(self, module: Any) -> dict[str, np.ndarray]:
        """See Rllib."""
        return layers_of(module.pi_encoder, module.pi, log_std=module.pi.log_std)

    def reward_scale(self, store: Store) -> float:
        """See Studying: the paper's standardisation of locomotion tasks."""
        spread = float(np.ptp(store.table.returns)) if self.return_range else 0.0
        return self.return_range / spread if spread else 1.0

    @classmethod
    def presets(cls) -> dict[str, dict[str, dict[str, Any]]]:
        """See Algorithm: the paper standardises the rewards of locomotion alone."""
        locomotion = {"default": MEAN | own_flags({"return_range": 1000.0})}
        return super().presets() | dict.fromkeys(
            ("hopper", "halfcheetah", "walker2d", "ant", "humanoid"), locomotion
        )

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.iql import IQLConfig

        return IQLConfig().training(
            actor_lr=self.actor_learning_rate,
            critic_lr=self.critic_learning_rate,
            value_lr=self.value_learning_rate,
            gamma=self.gamma,
            tau=self.tau,
            expectile=self.expectile,
            beta=self.beta,
            train_batch_size_per_learner=self.batch_size,
        )


@dataclass(frozen=True)
class Marwil(Gaussian, Studying):
    """Hyperparameters of monotonic advantage re-weighted imitation learning (Wang et al. 2018); beta 0 is behaviour cloning."""

    name: ClassVar[str] = "marwil"
    activation: ClassVar[str] = "relu"

    learning_rate: float = setting(3e-4, "Adam's learning rate", above=0, high=1)
    gamma: float = setting(0.99, "discount of the returns", low=0, high=1)
    beta: float = setting(1.0, "how much the advantages weigh", low=0)
    value_coefficient: float = setting(1.0, "weight of the value loss", low=0)
    norm_start: float | None = setting(
        None,
        "mean square that advantages are divided by the root of, at the start; default: that of the returns",
        above=0,
    )
    norm_rate: float = setting(1e-3, "how fast that follows the advantages", low=0, high=1)

    def settings(self) -> Any:
        """See Rllib."""
        from ray.rllib.algorithms.marwil import MARWILConfig

        return MARWILConfig().training(
            lr=self.learning_rate,
            gamma=self.gamma,
            beta=self.beta,
            vf_coeff=self.value_coefficient,
            moving_average_sqd_adv_norm_start=self.norm_start or 1.0,
            moving_average_sqd_adv_norm_update_rate=self.norm_rate,
            train_batch_size_per_learner=self.batch_size,
        )

    def memory(self, learner: Any) -> dict[str, Tensor]:
        """See Rllib."""
        return {"squared_advantage": learner.moving_avg_sqd_adv_norms_per_module[MODULE]}

    def view(self, step: int = 0) -> View:
        """See Algorithm."""
        return View(weight="length", annotations=("discounted_return", "discount_left", "episode"))

    def prepare(self, bench: Bench, path: str, learner: Any) -> Tensor:
        """Annotate the steps with what their value targets are made of; the last observation of each episode `[e, width]`.

        The first weights are exp(beta R / c): with RLlib's own c of 10 and returns in the hundreds they would fill Adam's
        second moments for good, so c begins as the root mean square of the returns.

        RLlib's targets are generalised advantages with lambda 1 plus the value: the discounted return to the episode's end and,
        where a time limit ended it, the discounted value of its last observation.
        """
        store = bench.store
        assert store is not None
        lengths = store.table.lengths
        returns, last, ends = [], [], []
        for group in episode_groups(store):
            returns.append(discounted(group.rewards, group.lengths, self.gamma))
            last.append(
                group.observations[path][np.cumsum(group.lengths + 1) - 1].astype(np.float32)
            )
            ends.append(group.terminated)
        which = np.repeat(np.arange(len(lengths)), lengths)
        remaining = store.table.ends[which] - np.arange(len(which))
        left = np.where(np.concatenate(ends)[which], 0.0, self.gamma**remaining).astype(np.float32)
        together = np.concatenate(returns)
        if self.norm_start is None:
            self.memory(learner)["squared_advantage"].fill_(float(np.mean(np.square(together))))
        store.annotate(
            {
                "discounted_return": together,
                "discount_left": left,
                "episode": which.astype(np.float32),
            }
        )
        return torch.from_numpy(np.concatenate(last)).to(bench.device)

    def targets(
        self, prepared: Any, annotations: dict[str, np.ndarray], module: Any
    ) -> dict[str, Tensor]:
        """See Studying: `value_targets` with the value as it is now."""
        returns, left, which = (
            torch.from_numpy(annotations[name][:, 0]).to(prepared.device)
            for name in self.view().annotations
        )
        open_ended = left > 0
        if bool(open_ended.any()):
            with torch.no_grad():
                values = module.compute_values({"obs": prepared[which[open_ended].long()]})
            returns[open_ended] += left[open_ended] * values
        return {"value_targets": returns}


MODULE = "default_policy"
"""RLlib's name for the only module."""

ALGORITHMS = (Ppo, Sac, Cql, Iql, Marwil)
