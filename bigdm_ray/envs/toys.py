"""Suite `toys`: tiny environments with every kind of observation and action leaf, for contract
tests and first steps.

Each is solved by copying what it shows, so a policy that learns shows it within seconds; the reward
of a step is the share of the action's elements that match. Episodes last 8 to 12 steps;
`toy-memory` shows its answer on the first step only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bigdm_ray.envs.task import Task

if TYPE_CHECKING:
    import gymnasium


def toy(kind: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """A toy of one kind: `vector`, `continuous`, `image`, `mixed`, `memory`, `broken` or `nan`."""
    import gymnasium
    from gymnasium import spaces

    class Toy(gymnasium.Env[Any, Any]):
        """Show a target, pay for matching it."""

        metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (gymnasium declares it so)

        def __init__(self) -> None:
            self.render_mode = render_mode
            box = spaces.Box(-1.0, 1.0, (3,), np.float32)
            self.action_space: spaces.Space[Any] = spaces.Discrete(3)
            self.observation_space: spaces.Space[Any] = box
            if kind == "continuous":
                self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
            elif kind == "image":
                self.observation_space = spaces.Box(0, 255, (32, 32), np.uint8)
            elif kind == "mixed":
                self.observation_space = spaces.Dict(
                    {
                        "body": spaces.Dict({"joints": box, "mode": spaces.Discrete(3, start=5)}),
                        "eye": spaces.Box(0, 255, (32, 32, 3), np.uint8),
                        "flags": spaces.MultiBinary(2),
                        "mission": spaces.Text(8),
                    }
                )
                self.action_space = spaces.Dict(
                    {
                        "arm": spaces.Box(-1.0, 1.0, (2,), np.float32),
                        "grip": spaces.MultiDiscrete([2, 3]),
                        "mode": spaces.Discrete(3, start=5),
                    }
                )

        def reset(
            self, *, seed: int | None = None, options: Any = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self._length = int(self.np_random.integers(8, 13))
            self._t = 0
            self._remembered = int(self.np_random.integers(3))
            self._draw()
            return self._observe(), {}

        def _draw(self) -> None:
            self._target = self._remembered if kind == "memory" else int(self.np_random.integers(3))
            self._point = self.np_random.uniform(-0.8, 0.8, 2).astype(np.float32)

        def _observe(self) -> Any:
            one_hot = np.eye(3, dtype=np.float32)[self._target]
            if kind == "continuous":
                return np.append(self._point, np.float32(0.5))
            if kind == "memory" and self._t > 0:
                return np.zeros(3, np.float32)
            if kind == "image":
                return self._picture()
            if kind == "mixed":
                return {
                    "body": {
                        "joints": np.append(self._point, np.float32(0.0)),
                        "mode": 5 + self._target,
                    },
                    "eye": np.repeat(self._picture()[..., None], 3, -1),
                    "flags": np.array([self._target & 1, self._target >> 1], np.int8),
                    "mission": f"go {self._target}",
                }
            return one_hot

        def _picture(self) -> np.ndarray:
            picture = np.zeros((32, 32), np.uint8)
            picture[:, 11 * self._target : 11 * self._target + 10] = 255
            return picture

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if kind == "broken" and self._t == 3 and self._target == 0:
                raise RuntimeError("the simulator stopped answering")
            reward = self._reward(action)
            self._t += 1
            self._draw()
            if kind == "nan" and self._t == 3:
                reward = float("nan")
            ended = self._t >= self._length
            return (
                self._observe(),
                reward,
                ended and self._length % 2 == 0,
                ended and self._length % 2 == 1,
                {},
            )

        def _reward(self, action: Any) -> float:
            if kind == "continuous":
                return 1.0 - float(np.abs(np.asarray(action) - self._point).mean())
            if kind == "mixed":
                near = 1.0 - float(np.abs(np.asarray(action["arm"]) - self._point).mean())
                grip = (action["grip"][0] == self._target % 2) + (action["grip"][1] == self._target)
                return (near + float(grip) / 2 + float(action["mode"] == 5 + self._target)) / 3
            return float(action == self._target)

        def render(self) -> Any:
            return np.repeat(np.repeat(self._picture()[..., None], 3, -1), 4, axis=0).repeat(
                4, axis=1
            )

    return Toy()


def task(kind: str, about: str) -> Task:
    """The task `toy-<kind>`."""

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        return toy(kind, render_mode)

    return Task(
        f"toy-{kind}",
        env,
        max_return=12.0,
        reference_returns=(3.3, 10.0) if kind in ("vector", "image") else None,
        about=about,
    )


TASKS = {
    made.name: made
    for made in (
        task("vector", "copy a one-hot vector with a discrete action"),
        task("continuous", "copy two numbers with a continuous action"),
        task("image", "name the bright stripe of a 32x32 grey picture"),
        task("mixed", "a dict of tensors, picture, flags and text; a dict of three actions"),
        task("memory", "remember what the first step showed"),
        task("broken", "raises in the middle of some episodes"),
        task("nan", "pays NaN at the third step"),
    )
}
