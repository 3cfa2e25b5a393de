"""Suite `classic`: CartPole, Acrobot, MountainCar and Pendulum, as gymnasium registers them, stepped by EnvPool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import envpool_rows

if TYPE_CHECKING:
    import gymnasium


def classic(name: str, env_id: str, max_return: float, about: str) -> Task:
    """A task of gymnasium's classic control."""

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        import gymnasium

        return gymnasium.make(env_id, render_mode=render_mode)

    return Task(name, env, envpool_rows(env_id), extra="fast", fast_needs=("envpool",), max_return=max_return, about=about)


TASKS = {
    task.name: task
    for task in (
        classic("cartpole", "CartPole-v1", 500.0, "balance a pole on a cart, at most 500 steps"),
        classic("acrobot", "Acrobot-v1", 0.0, "swing two links up, -1 a step"),
        classic("mountaincar", "MountainCar-v0", 0.0, "drive out of a valley, -1 a step"),
        classic("pendulum", "Pendulum-v1", 0.0, "swing a pendulum up, one continuous torque"),
    )
}
