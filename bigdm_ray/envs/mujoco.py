"""Suite `mujoco`: Hopper, HalfCheetah, Walker2d, Ant, Humanoid and Reacher, version 5 as gymnasium
registers them.

EnvPool's copies, compiled against the pinned MuJoCo, play; gymnasium's are the reference.
`reference_returns` are the constants of D4RL (Farama-Foundation/D4RL, d4rl/infos.py), which were
measured on older versions of the same bodies; Humanoid and Reacher have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import envpool_rows

if TYPE_CHECKING:
    import gymnasium


def body(name: str, env_id: str, reference_returns: tuple[float, float] | None, about: str) -> Task:
    """A body of gymnasium's MuJoCo suite."""

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        import gymnasium

        return gymnasium.make(env_id, render_mode=render_mode)

    return Task(
        name,
        env,
        envpool_rows(env_id),
        extra="mujoco",
        needs=("mujoco",),
        fast_needs=("envpool",),
        reference_returns=reference_returns,
        about=about,
    )


TASKS = {
    task.name: task
    for task in (
        body("hopper", "Hopper-v5", (-20.272305, 3234.3), "hop forward on one leg"),
        body(
            "halfcheetah",
            "HalfCheetah-v5",
            (-280.178953, 12135.0),
            "run forward on two legs in the plane",
        ),
        body(
            "walker2d", "Walker2d-v5", (1.629008, 4592.3), "walk forward on two legs in the plane"
        ),
        body("ant", "Ant-v5", (-325.6, 3879.7), "run forward on four legs"),
        body("humanoid", "Humanoid-v5", None, "run forward on two legs in space"),
        body("reacher", "Reacher-v5", None, "reach a random point with a two-jointed arm"),
    )
}
