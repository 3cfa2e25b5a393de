"""Suite `classic`: CartPole, Acrobot, MountainCar and Pendulum, as gymnasium registers them,
stepped by EnvPool.

Pendulum is stepped by gymnasium: EnvPool's moves the angle on before it cuts the speed down to its
limit of 8, so that the two part there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import envpool_rows

if TYPE_CHECKING:
    import gymnasium


def classic(name: str, env_id: str, max_return: float, about: str, pooled: bool = True) -> Task:
    """A task of gymnasium's classic control, `pooled` where EnvPool's is the same."""

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        import gymnasium

        return gymnasium.make(env_id, render_mode=render_mode)

    if not pooled:
        return Task(name, env, max_return=max_return, about=about)
    return Task(
        name,
        env,
        envpool_rows(env_id),
        extra="fast",
        fast_needs=("envpool",),
        max_return=max_return,
        about=about,
    )


TASKS = {
    task.name: task
    for task in (
        classic("cartpole", "CartPole-v1", 500.0, "balance a pole on a cart, at most 500 steps"),
        classic("acrobot", "Acrobot-v1", 0.0, "swing two links up, -1 a step"),
        classic("mountaincar", "MountainCar-v0", 0.0, "drive out of a valley, -1 a step"),
        classic(
            "pendulum",
            "Pendulum-v1",
            0.0,
            "swing a pendulum up, one continuous torque",
            pooled=False,
        ),
    )
}
