"""Suite `box2d`: LunarLander-v3 with discrete or continuous engines, and with all reward paid at
the end.

EnvPool's LunarLander plays; gymnasium's is the reference and the one that scores are evaluated on.
The highest return that the landing can pay is about 320, which caps commanded returns.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import PayAtEnd, VectorEnv, envpool_rows

if TYPE_CHECKING:
    import gymnasium

# here, because `Task.require` imports pygame before `env` runs
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


def lander(name: str, continuous: bool, sparse: bool, about: str) -> Task:
    """A LunarLander task."""

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        import gymnasium

        return gymnasium.make("LunarLander-v3", render_mode=render_mode, continuous=continuous)

    def pay_at_end(inner: VectorEnv) -> VectorEnv:
        return PayAtEnd(inner)

    return Task(
        name,
        env,
        envpool_rows("LunarLanderContinuous-v3" if continuous else "LunarLander-v3"),
        wrap=pay_at_end if sparse else None,
        extra="box2d",
        needs=("Box2D", "pygame"),
        fast_needs=("envpool",),
        max_return=320.0,
        success=200.0,
        about=about,
    )


TASKS = {
    task.name: task
    for task in (
        lander(
            "lunarlander", False, False, "land between the flags with four discrete engine commands"
        ),
        lander("lunarlander-sparse", False, True, "the same, all reward paid at the last step"),
        lander("lunarlander-continuous", True, False, "the same with two continuous throttles"),
    )
}
