"""RLlib at work: its Learner and its environment runners, without the Algorithm that usually drives them.

An Algorithm of RLlib starts a Ray even for one process, samples its replay as objects (39 to 78 environment steps a second were
measured for DQN), and reads datasets through Ray Data. Here its two parts are called directly: the Learner (RLModule, loss,
optimizers, target networks, connectors) and SingleAgentEnvRunners, in this process or as actors. PPO's iteration is RLlib's own.
SAC's replay is a ring of steps drawn alike, and batches of datasets are drawn by our Store. Where RLlib's networks are not the papers',
`rllib_modules.py` has others.

Nothing is pickled into files: modules, optimizers and what a learner holds beside them are saved as arrays.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from typing import Any

import numpy as np
import torch

from bigdm_ray.baselines.actor import plain_leaves
from bigdm_ray.baselines.base import (
    Bench,
    Turn,
    below,
    from_unit,
    load_optimizer,
    optimizer_state,
    prefixed,
    sound,
    spaces_of,
    to_unit,
)
from bigdm_ray.baselines.rllib import MODULE, Cql, Playing, Ppo, Rllib, Sac, Squashed, Studying
from bigdm_ray.baselines.rllib_modules import joint_catalog
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import RunFailed, UserError

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
SEED_STRIDE = 10_000
"""Between the seeds of two runners' environments."""


def quiet() -> None:
    """Keep RLlib from warning of its own defaults and deprecations. It sets its loggers up when it is imported."""
    import ray.rllib  # noqa: F401

    for name in ("ray", "ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)


class RllibTrainer:
    """See Trainer: what all have in common, which is the Learner."""

    def __init__(self, algorithm: Rllib, bench: Bench) -> None:
        quiet()
        self.algorithm, self.bench = algorithm, bench
        self.path, self.seen, self.action_path, self.action = plain_leaves(
            bench.task.signature(), algorithm.name
        )
        self.config = configured(algorithm, bench, self.action.kind == "discrete")
        spaces = (spaces_of(self.seen), spaces_of(self.action, unit=True))
        self.learner = self.config.build_learner(spaces={MODULE: spaces})
        self.module = self.learner.module[MODULE].unwrapped()
        self.learner_steps = 0

    def step(self, steps: int) -> Turn:
        """See Trainer."""
        raise NotImplementedError

    def learned(self, batch: dict[str, torch.Tensor]) -> None:
        """One learner step of RLlib on a batch of n rows."""
        from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

        size = len(batch["obs"])
        self.learner.update(
            batch=MultiAgentBatch({MODULE: SampleBatch(batch)}, size), _no_metrics_reduce=True
        )
        self.learner_steps += 1

    def metrics(self) -> dict[str, float]:
        """The newest losses, and the learner's own record of them forgotten."""
        told = self.learner.metrics.peek(MODULE, default={})
        self.learner.metrics.reduce()
        out = {}
        for name, value in told.items():
            if name.startswith(
                ("num_", "weights_seq", "diff_", "last_", "module_train")
            ) or isinstance(value, list | dict):
                continue
            number = float(
                value.detach().float().mean() if isinstance(value, torch.Tensor) else np.mean(value)
            )
            if math.isfinite(number):
                out[f"train/{'loss' if name == self.learner.TOTAL_LOSS_KEY else name}"] = number
            elif name == self.learner.TOTAL_LOSS_KEY:
                raise RunFailed(
                    f"the loss of {self.algorithm.name} is {number} after {self.learner_steps:,} learner steps: training has diverged"
                )
        return out

    def weights(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        return self.algorithm.exported(self.module)

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        state = {
            f"module/{name}": value.detach().cpu().numpy().copy()
            for name, value in self.module.state_dict().items()
        }
        for name, optimizer in self.learner.get_optimizers_for_module(MODULE):
            state |= prefixed(f"optimizer/{name}/", optimizer_state(optimizer))
        state |= {
            f"memory/{name}": value.detach().cpu().numpy().copy()
            for name, value in self.algorithm.memory(self.learner).items()
        }
        return state | {"count/learner_steps": np.array(self.learner_steps)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        kept, mine = below(state, "module/"), self.module.state_dict()
        if {name: value.shape for name, value in kept.items()} != {
            name: tuple(value.shape) for name, value in mine.items()
        }:
            raise UserError(
                f"this checkpoint holds other networks than {self.algorithm.name} trains now; begin a run in another folder"
            )
        self.module.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in kept.items()}
        )
        for name, optimizer in self.learner.get_optimizers_for_module(MODULE):
            load_optimizer(optimizer, below(state, f"optimizer/{name}/"))
        for name, value in self.algorithm.memory(self.learner).items():
            value.data.copy_(torch.from_numpy(np.array(state[f"memory/{name}"])))
        self.learner_steps = int(state["count/learner_steps"])

    def close(self) -> None:
        """See Trainer."""
        self.learner.shutdown()


def configured(algorithm: Rllib, bench: Bench, discrete: bool) -> Any:
    """RLlib's AlgorithmConfig for a run."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    config = algorithm.settings().framework("torch").debugging(seed=bench.seed, log_level="ERROR")
    config.learners(
        num_learners=0, num_gpus_per_learner=1 if bench.device.startswith("cuda") else 0
    )
    network = DefaultModelConfig(**algorithm.network(discrete))
    if isinstance(algorithm, Squashed):
        return config.rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=algorithm.module(config),
                catalog_class=joint_catalog(),
                model_config=network,
            )
        )
    return config.rl_module(model_config=network)


# --- from datasets


class StudyingTrainer(RllibTrainer):
    """CQL, IQL and MARWIL: our Store draws, RLlib's Learner learns."""

    algorithm: Studying

    def __init__(self, algorithm: Studying, bench: Bench) -> None:
        super().__init__(algorithm, bench)
        assert bench.store is not None
        self._scale = algorithm.reward_scale(bench.store)
        self._prepared = algorithm.prepare(bench, self.path, self.learner)

    def step(self, steps: int) -> Turn:
        """See Trainer: so many learner steps."""
        self._count()
        for _ in range(steps):
            self.learned(self.batch())
        return Turn(0, steps, metrics=self.metrics())

    def _count(self) -> None:
        """CQL looks up in its metrics how many steps it has taken: once they are forgotten it would clone for ever."""
        if isinstance(self.algorithm, Cql):
            from ray.rllib.utils.metrics import ALL_MODULES
            from ray.tune.result import TRAINING_ITERATION

            self.learner.metrics.log_value(
                (ALL_MODULES, TRAINING_ITERATION), self.learner_steps, reduce="sum"
            )

    def batch(self) -> dict[str, torch.Tensor]:
        """The columns of RLlib for one learner step: a pure function of the seed and the learner step."""
        store, algorithm = self.bench.store, self.algorithm
        assert store is not None
        chance = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.bench.seed, self.learner_steps]))
        )
        windows = store.draw(algorithm.view(), chance, algorithm.batch)
        actions = windows.actions[self.action_path][:, 0]
        columns = {
            "obs": windows.observations[self.path][:, 0].astype(np.float32, copy=False),
            "actions": actions.astype(np.int64)
            if self.action.kind == "discrete"
            else to_unit(actions, self.action),
            "rewards": windows.rewards[:, 0] * np.float32(self._scale),
        }
        if windows.terminated is not None:
            columns |= {
                "new_obs": windows.next_observations[self.path][:, 0].astype(
                    np.float32, copy=False
                ),
                "terminateds": windows.terminated[:, 0],
            }
        batch = {
            name: torch.from_numpy(np.ascontiguousarray(values)).to(self.bench.device)
            for name, values in columns.items()
        }
        return batch | algorithm.targets(self._prepared, windows.annotations, self.module)


# --- from play


class PlayingTrainer(RllibTrainer):
    """PPO and SAC: RLlib's runners play our environments, here or in processes beside this one."""

    def __init__(self, algorithm: Ppo | Sac, bench: Bench) -> None:
        super().__init__(algorithm, bench)
        from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

        self.env_steps = 0
        self._sums: dict[str, tuple[float, int]] = {}
        configs = [self._runner_config(index) for index in range(max(1, bench.actors))]
        if bench.actors == 0:
            with (
                warnings.catch_warnings()
            ):  # a second run of this process registers the runner's environment again
                warnings.filterwarnings("ignore", message=".*already in registry")
                self._runners = [SingleAgentEnvRunner(config=configs[0], worker_index=0)]
        else:
            import ray

            remote = ray.remote(SingleAgentEnvRunner).options(
                num_cpus=1, num_gpus=0, runtime_env={"env_vars": ONE_THREAD}
            )
            self._runners = [
                remote.remote(config=config, worker_index=index + 1)
                for index, config in enumerate(configs)
            ]
        self._sync()

    def _runner_config(self, index: int) -> Any:
        seed = (self.bench.seed + SEED_STRIDE * index) % 2**31
        assert isinstance(self.algorithm, Playing)
        rows = self.algorithm.environments
        make = functools.partial(
            environments, self.bench.task.name, self.algorithm.name, rows, seed
        )
        config = self.config.copy(copy_frozen=False).environment(env=make)
        return config.env_runners(
            num_env_runners=self.bench.actors,
            num_envs_per_env_runner=rows,
            gym_env_vectorize_mode="vector_entry_point",
        )

    def _each(self, verb: str, *arguments: Any, **more: Any) -> list[Any]:
        """Call a method of every runner, all at once where they are actors. Raises RunFailed where one has died."""
        if self.bench.actors == 0:
            return [getattr(self._runners[0], verb)(*arguments, **more)]
        import ray

        try:
            return list(
                ray.get(
                    [getattr(runner, verb).remote(*arguments, **more) for runner in self._runners]
                )
            )
        except ray.exceptions.RayActorError as error:
            raise RunFailed(
                f"a process that plays for {self.algorithm.name} has died ({type(error).__name__}); --resume goes on from the last checkpoint"
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RunFailed) else error) from None

    def _sync(self) -> None:
        """Give the runners the newest policy."""
        self._each(
            "set_state",
            {"rl_module": self.learner.module.get_state(inference_only=True), "weights_seq_no": 0},
        )

    def played(self, steps: int, random: bool = False) -> tuple[list[Any], list[float], list[int]]:
        """RLlib's episodes (or the pieces of them) of about so many steps; returns and lengths of those that ended."""
        share = math.ceil(steps / len(self._runners))
        pieces = [
            piece
            for part in self._each("sample", num_timesteps=share, random_actions=random)
            for piece in part
        ]
        returns, lengths = [], []
        for piece in pieces:
            total, length = self._sums.pop(piece.id_, (0.0, 0))
            total, length = total + float(np.sum(piece.get_rewards())), length + len(piece)
            if piece.is_done:
                returns.append(total)
                lengths.append(length)
            else:
                self._sums[piece.id_] = (total, length)
        self.env_steps += sum(len(piece) for piece in pieces)
        return pieces, returns, lengths

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer."""
        return super().state() | {"count/env_steps": np.array(self.env_steps)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        super().restore(state)
        self.env_steps = int(state["count/env_steps"])
        self._sync()

    def close(self) -> None:
        """See Trainer."""
        if self.bench.actors == 0:
            self._runners[0].stop()
        else:
            import ray

            for runner in self._runners:
                ray.kill(runner)
        super().close()


class PpoTrainer(PlayingTrainer):
    """An iteration: play a batch, learn from it in some epochs, hand out the policy."""

    algorithm: Ppo

    def step(self, steps: int) -> Turn:
        """See Trainer: one whole iteration, whatever was asked for."""
        before = self.env_steps
        pieces, returns, lengths = self.played(self.algorithm.train_batch)
        timesteps = {"num_env_steps_sampled_lifetime": self.env_steps}
        config = self.config
        self.learner.update(
            episodes=pieces,
            timesteps=timesteps,
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
            _no_metrics_reduce=True,
        )
        trained = int(self.learner.metrics.peek((MODULE, "num_module_steps_trained")))
        taken = round(trained / config.minibatch_size)
        self.learner_steps += taken
        self._sync()
        return Turn(self.env_steps - before, taken, returns, lengths, self.metrics())


class SacTrainer(PlayingTrainer):
    """Play a fragment, keep its steps, take learner steps on steps drawn alike from all that are kept."""

    algorithm: Sac

    def __init__(self, algorithm: Sac, bench: Bench) -> None:
        super().__init__(algorithm, bench)
        self._kept = Ring(
            min(algorithm.buffer_size, bench.budget + SEED_STRIDE), self.seen.size, self.action.size
        )
        self._chance = np.random.default_rng(bench.seed)

    def step(self, steps: int) -> Turn:
        """See Trainer."""
        algorithm = self.algorithm
        before, learned = self.env_steps, self.learner_steps
        returns: list[float] = []
        lengths: list[int] = []
        metrics: dict[str, float] = {}
        while self.env_steps - before < steps:
            pieces, ended, long = self.played(
                algorithm.fragment, random=self.env_steps < algorithm.learning_starts
            )
            returns, lengths = returns + ended, lengths + long
            self._kept.add(pieces)
            owed = (
                algorithm.updates * max(0, self.env_steps - algorithm.learning_starts)
                - self.learner_steps
            )
            for _ in range(math.floor(owed)):
                self.learned(self._kept.draw(self._chance, algorithm.batch_size, self.bench.device))
            if owed >= 1:
                self._sync()
                metrics = (
                    self.metrics()
                )  # here, because RLlib keeps the graphs of all errors until they are reported
        return Turn(
            self.env_steps - before, self.learner_steps - learned, returns, lengths, metrics
        )

    def state(self) -> dict[str, np.ndarray]:
        """See Trainer: with the steps that are kept."""
        return super().state() | prefixed("kept/", self._kept.state())

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See Trainer."""
        super().restore(state)
        self._kept.restore(below(state, "kept/"))


class Ring:
    """The newest steps: arrays `[capacity, ...]`, of which `count` rows are filled and `position` is written next."""

    def __init__(self, capacity: int, seen: int, done: int) -> None:
        self.capacity, self.count, self.position = capacity, 0, 0
        widths = {
            "obs": (seen,),
            "new_obs": (seen,),
            "actions": (done,),
            "rewards": (),
            "terminateds": (),
        }
        self.columns = {
            name: np.zeros((capacity, *width), np.float32) for name, width in widths.items()
        }

    def add(self, pieces: list[Any]) -> None:
        """Take in the steps of some episodes of RLlib, the oldest first."""
        for piece in pieces:
            if not len(piece):
                continue
            seen, last = piece.get_observations(), np.zeros(len(piece), np.float32)
            last[-1] = float(piece.is_terminated)
            rows = (self.position + np.arange(len(piece))) % self.capacity
            new = {
                "obs": seen[:-1],
                "new_obs": seen[1:],
                "actions": piece.get_actions(),
                "rewards": piece.get_rewards(),
                "terminateds": last,
            }
            for name, values in new.items():
                self.columns[name][rows] = values
            self.position = int(rows[-1] + 1) % self.capacity
            self.count = min(self.capacity, self.count + len(piece))

    def draw(self, chance: np.random.Generator, size: int, device: str) -> dict[str, torch.Tensor]:
        """`size` rows, each as likely as every other, as RLlib's learner of SAC wants them."""
        rows = chance.integers(0, self.count, size)
        batch = {
            name: torch.from_numpy(values[rows]).to(device) for name, values in self.columns.items()
        }
        return batch | {
            "n_step": torch.ones(size, device=device),
            "weights": torch.ones(size, device=device),
        }

    def state(self) -> dict[str, np.ndarray]:
        """The filled rows, the oldest first."""
        turn = -self.position if self.count == self.capacity else 0
        return {
            name: np.roll(values[: self.count], turn, 0) for name, values in self.columns.items()
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take over what `state` gave; of more rows than there is room for, the newest."""
        for name, values in state.items():
            newest = values[-self.capacity :]
            self.columns[name][: len(newest)] = newest
            self.count = len(newest)
        self.position = self.count % self.capacity


@functools.lru_cache(maxsize=1)
def rows_class() -> Any:
    """A gymnasium VectorEnv over one of ours: a row that has ended begins again at the next step, which ignores its action."""
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space

    class Rows(VectorEnv[Any, Any, Any]):
        """See `rows_class`."""

        metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  (gymnasium declares it so)

        def __init__(self, task: str, name: str, rows: int, seed: int) -> None:
            found = find_task(task)
            self._env, self._name = found.make(rows, seed), name
            self._path, seen, self._action_path, self._action = plain_leaves(
                found.signature(), name
            )
            self.num_envs = rows
            self.single_observation_space, self.single_action_space = (
                spaces_of(seen),
                spaces_of(self._action, unit=True),
            )
            self.observation_space = batch_space(self.single_observation_space, rows)
            self.action_space = batch_space(self.single_action_space, rows)
            self.action_space.seed(seed)
            self.spec = gymnasium.envs.registration.EnvSpec(id="bigdm-v0")
            self._all, self._over = np.arange(rows), np.zeros(rows, bool)

        def reset(
            self, *, seed: Any = None, options: Any = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            self._over[:] = False
            step = self._env.reset(self._all)
            sound(step, self._name)
            return step.observations[self._path].copy(), {}

        def step(
            self, actions: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
            n, begin, go = self.num_envs, np.flatnonzero(self._over), np.flatnonzero(~self._over)
            rewards, terminated, truncated = (
                np.zeros(n, np.float32),
                np.zeros(n, bool),
                np.zeros(n, bool),
            )
            observations = np.zeros(self.observation_space.shape or (n,), np.float32)
            if len(go):
                chosen = actions[go]
                moved = (
                    chosen.astype(self._action.dtype)
                    if self._action.kind == "discrete"
                    else from_unit(chosen, self._action)
                )
                step = self._env.step(go, {self._action_path: moved})
                sound(step, self._name)
                observations[go], rewards[go] = step.observations[self._path], step.rewards
                terminated[go], truncated[go] = step.terminated, step.truncated & ~step.terminated
            if len(begin):
                begun = self._env.reset(begin)
                sound(begun, self._name)
                observations[begin] = begun.observations[self._path]
            self._over = terminated | truncated
            return observations, rewards, terminated, truncated, {}

        def close_extras(self, **kwargs: Any) -> None:
            self._env.close()

    return Rows


def environments(task: str, name: str, rows: int, seed: int, context: Any) -> Any:
    """What RLlib's runner plays; `context` is RLlib's."""
    return rows_class()(task, name, rows, seed)
