"""Suite `metaworld`: the 50 tasks of Meta-World v3 (Yu et al. 2019): an arm and one object.

An observation is one vector `[39]`: hand, gripper and objects now (18) and a step before (18), and
where the goal is (3), which is shown. An action is `[4]`: where the hand moves, and the grip. Each
episode draws object and goal anew. A step pays 0 to 10 by how far the task has come; no episode
terminates. Steps tell whether the task is done (`Step.success`): an episode in which any step is
counts as a success, which its return does not tell.

Episodes last 100 steps, as JAT's (`jat.py`): uniformly random actions then have the returns that
JAT gives for random ones, so that returns stand beside theirs; at Meta-World's own limit of 500
they would be several times as high. JAT's experts were trained for return; the scripted policies
of Meta-World, which `reference_returns` are of, succeed as often but take their time.

`TRAIN` are the 45 tasks that ML45 learns from, `TEST` the 5 that it holds back. The package
`metaworld` is the reference; EnvPool's tasks, compiled against the pinned MuJoCo, play, but for ten
(`OTHERWISE`) that pay otherwise than the reference does.
`reference_returns` (`metaworld.json`) are of 56 episodes each on both, of 24 on the reference for
those ten, and of 100 random ones and 150 of the expert for tasks whose experts were recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import envpool_rows
from bigdm_ray.jsons import read_json

if TYPE_CHECKING:
    import gymnasium

STEPS = 100

ABOUT = {
    "assembly": "put a ring over a peg",
    "basketball": "put a ball into a basket",
    "bin-picking": "move a cube from one bin into the other",
    "box-close": "put the lid on a box",
    "button-press": "press a button in a wall",
    "button-press-topdown": "press a button from above",
    "button-press-topdown-wall": "press a button from above, past a wall",
    "button-press-wall": "press a button, past a wall",
    "coffee-button": "press the button of a coffee machine",
    "coffee-pull": "pull a mug away from a coffee machine",
    "coffee-push": "push a mug under a coffee machine",
    "dial-turn": "turn a dial by half a turn",
    "disassemble": "lift a ring off a peg",
    "door-close": "close a door",
    "door-lock": "lock a door by turning its lock",
    "door-open": "open a door by its handle",
    "door-unlock": "unlock a door by turning its lock",
    "drawer-close": "push a drawer shut",
    "drawer-open": "pull a drawer open",
    "faucet-close": "turn a faucet clockwise",
    "faucet-open": "turn a faucet counter-clockwise",
    "hammer": "hammer a screw into the wall",
    "hand-insert": "put the hand into a hole",
    "handle-press": "press a handle down",
    "handle-press-side": "press a handle down from the side",
    "handle-pull": "pull a handle up",
    "handle-pull-side": "pull a handle up from the side",
    "lever-pull": "pull a lever up",
    "peg-insert-side": "put a peg into a hole in the side of a box",
    "peg-unplug-side": "pull a peg out of the side of a box",
    "pick-out-of-hole": "lift a puck out of a hole",
    "pick-place": "pick up a puck and hold it at the goal",
    "pick-place-wall": "pick up a puck and hold it at a goal behind a wall",
    "plate-slide": "slide a plate into a cabinet",
    "plate-slide-back": "slide a plate out of a cabinet",
    "plate-slide-back-side": "slide a plate out of a cabinet sideways",
    "plate-slide-side": "slide a plate into a cabinet sideways",
    "push": "push a puck to the goal",
    "push-back": "pull a puck back to the goal",
    "push-wall": "push a puck to the goal, around a wall",
    "reach": "move the hand to the goal",
    "reach-wall": "move the hand to the goal, past a wall",
    "shelf-place": "put a puck on a shelf",
    "soccer": "kick a ball into the goal",
    "stick-pull": "pull a box by a stick",
    "stick-push": "push a box by a stick",
    "sweep": "sweep a puck off the table",
    "sweep-into": "sweep a puck into a hole",
    "window-close": "push a window shut",
    "window-open": "push a window open",
}
TEST = ("bin-picking", "box-close", "door-lock", "door-unlock", "hand-insert")
"""The tasks that ML45 holds back."""
OTHERWISE = (
    "dial-turn",
    "door-lock",
    "hammer",
    "pick-place",
    "push-back",
    "push-wall",
    "shelf-place",
    "soccer",
    "sweep",
    "sweep-into",
)
"""Tasks in which random actions or the scripted policy have another mean return on EnvPool than on
the reference, by three standard errors or more: 112 against 230 for random ones in `door-lock`."""
TRAIN = tuple(name for name in ABOUT if name not in TEST)
"""The tasks that ML45 learns from."""


def _environment(name: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """A task of Meta-World, its goal shown, object and goal drawn anew in each episode."""
    import gymnasium
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    class Drawn(gymnasium.Wrapper[Any, Any, Any, Any]):
        """Draws by the seed of a reset; Meta-World itself has seeds of its own."""

        def __init__(self) -> None:
            kind = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-v3-goal-observable"]
            made = kind(seed=0, render_mode=render_mode)
            made._freeze_rand_vec, made.seeded_rand_vec = False, True
            super().__init__(made)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            if seed is not None:
                self.unwrapped.seed(seed)  # type: ignore[attr-defined]  # of Meta-World alone
            return self.env.reset(options=options)

    return gymnasium.wrappers.TimeLimit(Drawn(), STEPS)


_RETURNS: dict[str, list[float]] = read_json(Path(__file__).with_suffix(".json"))


def manipulation(name: str, about: str) -> Task:
    """One of Meta-World's tasks."""
    camel = "".join(part.capitalize() for part in name.split("-"))
    returns = _RETURNS.get(name)
    pool = envpool_rows(
        f"MetaWorld/{camel}-v3", partially_observable=False, max_episode_steps=STEPS
    )
    return Task(
        name,
        lambda render_mode: _environment(name, render_mode),
        None if name in OTHERWISE else pool,
        extra="metaworld",
        needs=("metaworld", "mujoco"),
        fast_needs=() if name in OTHERWISE else ("envpool",),
        max_return=10.0 * STEPS,
        reference_returns=None if returns is None else (returns[0], returns[1]),
        about=about,
    )


TASKS = {name: manipulation(name, about) for name, about in ABOUT.items()}
