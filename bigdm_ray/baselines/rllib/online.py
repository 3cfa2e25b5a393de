"""What PPO and SAC have in common: RLlib's runners play our environments, here or in other
processes."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bigdm_ray.baselines.actor import plain_leaves
from bigdm_ray.baselines.base import TrainerContext, from_unit, require_sound, spaces_of
from bigdm_ray.baselines.rllib.base import Rllib
from bigdm_ray.baselines.rllib.trainer import RllibTrainer
from bigdm_ray.envs.task import find_task
from bigdm_ray.errors import RunFailed
from bigdm_ray.settings import setting


@dataclass(frozen=True)
class RllibOnline(Rllib):
    """Algorithms that learn from what they play."""

    online: ClassVar[bool] = True
    offline: ClassVar[bool] = False
    on_ray: ClassVar[bool] = True

    environments: int = setting(8, "environments that each runner plays side by side", low=1)


ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

SEED_STRIDE = 10_000
"""Between the seeds of two runners' environments."""


class RllibOnlineTrainer(RllibTrainer):
    """PPO and SAC: RLlib's runners play our environments, here or in processes beside this one."""

    algorithm: RllibOnline

    def __init__(self, algorithm: RllibOnline, context: TrainerContext) -> None:
        super().__init__(algorithm, context)
        from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

        self.env_steps = 0
        self._sums: dict[str, tuple[float, int]] = {}
        configs = [self._runner_config(index) for index in range(max(1, context.actors))]
        if context.actors == 0:
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
        seed = (self.context.seed + SEED_STRIDE * index) % 2**31
        rows = self.algorithm.environments
        make = functools.partial(
            environments, self.context.task.name, self.algorithm.name, rows, seed
        )
        config = self.config.copy(copy_frozen=False).environment(env=make)
        return config.env_runners(
            num_env_runners=self.context.actors,
            num_envs_per_env_runner=rows,
            gym_env_vectorize_mode="vector_entry_point",
        )

    def _each(self, verb: str, *arguments: Any, **more: Any) -> list[Any]:
        """Call a method of every runner, all at once where they are actors.

        Raises RunFailed where one has died, or does not answer in time.
        """
        if self.context.actors == 0:
            return [getattr(self._runners[0], verb)(*arguments, **more)]
        import ray

        try:
            return list(
                ray.get(
                    [getattr(runner, verb).remote(*arguments, **more) for runner in self._runners],
                    timeout=self.context.patience_s,
                )
            )
        except ray.exceptions.GetTimeoutError:
            waited = f"{(self.context.patience_s or 0) / 60:.3g} minutes"
            raise RunFailed(
                f"waited {waited} for the {self.context.actors} process(es) that play for "
                f"{self.algorithm.name} (1 CPU each); ask for less (--actors), or give more time "
                "(--machines.patience, in minutes), then --resume"
            ) from None
        except ray.exceptions.RayActorError as error:
            raise RunFailed(
                f"a process that plays for {self.algorithm.name} has died ({type(error).__name__});"
                " --resume goes on from the last checkpoint"
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RunFailed) else error) from None

    def _sync(self) -> None:
        """Give the runners the newest policy."""
        self._each(
            "set_state",
            {"rl_module": self.learner.module.get_state(inference_only=True), "weights_seq_no": 0},
        )

    def play_episodes(
        self, steps: int, random: bool = False
    ) -> tuple[list[Any], list[float], list[int]]:
        """RLlib's episodes (or the pieces of them) of about so many steps; returns and lengths of
        those that ended."""
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
        if self.context.actors == 0:
            self._runners[0].stop()
        else:
            import ray

            for runner in self._runners:
                ray.kill(runner)
        super().close()


@functools.lru_cache(maxsize=1)
def rows_class() -> Any:
    """A gymnasium VectorEnv over one of ours: a row that has ended begins again at the next step,
    which ignores its action."""
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
            require_sound(step, self._name)
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
                require_sound(step, self._name)
                observations[go], rewards[go] = step.observations[self._path], step.rewards
                terminated[go], truncated[go] = step.terminated, step.truncated & ~step.terminated
            if len(begin):
                begun = self._env.reset(begin)
                require_sound(begun, self._name)
                observations[begin] = begun.observations[self._path]
            self._over = terminated | truncated
            return observations, rewards, terminated, truncated, {}

        def close_extras(self, **kwargs: Any) -> None:
            self._env.close()

    return Rows


def environments(task: str, name: str, rows: int, seed: int, context: Any) -> Any:
    """What RLlib's runner plays; `context` is RLlib's."""
    return rows_class()(task, name, rows, seed)
