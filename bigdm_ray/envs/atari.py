"""Suite `atari`: Breakout, Qbert, Pong and Seaquest of the Arcade Learning Environment, as Decision
Transformer plays them.

One observation is one 84x84 grey frame `[1, 84, 84]` uint8, shrunk by area: the larger of the last
two of four emulated frames at each point. Nothing is stacked here; `View.stack` and policies stack.
One action of the game's minimal set is held for the four frames. Before an episode's first
observation 1 to 30 frames pass without action; no FIRE is pressed, so in Breakout the policy
serves. Rewards are the game's points, never clipped. An episode ends with the last life, or is
truncated after 27,000 steps: 108,000 frames, half an hour of the console's time.

`NAME` repeats no action by chance, as Decision Transformer is evaluated (Chen et al. 2021;
kzl/decision-transformer, atari/mingpt/trainer_atari.py); in `NAME-sticky` the console keeps the
previous action with probability 0.25 at each frame (Machado et al. 2018, section 5), as when the
DQN replay data were played.

gymnasium's `AtariPreprocessing` over ale-py, which brings the games' ROMs, is the reference;
EnvPool plays. After the same number of idle frames both show the same frames and pay the same
rewards, but for the frame in which the last life ends: the reference shows the one before once
more. (Seaquest may begin one frame off what its idle frames say.)

`reference_returns` are the scores of a random policy and of a human gamer, rounded as in Chen et
al. 2021, so that the normalised score is the paper's gamer-normalised score in percent. The
unrounded pairs are 1.7 and 30.5, 163.9 and 13455, -20.7 and 14.6, 68.4 and 42054.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bigdm_ray.envs.task import Task
from bigdm_ray.envs.vector import envpool_rows

if TYPE_CHECKING:
    import gymnasium

STEPS = 27_000
SKIP = 4
IDLE = 30
STICKY = 0.25


def game(
    name: str,
    ale: str,
    sticky: float,
    reference_returns: tuple[float, float] | None,
    max_return: float | None,
    about: str,
) -> Task:
    """A game of the Arcade Learning Environment.

    `ale` is its name there ("MsPacman"), `sticky` the probability, at each frame, that the console
    keeps the previous action. Observations are `[1, 84, 84]` uint8, returns are points. Making an
    environment of a game that ale-py does not bring raises gymnasium's NameNotFound.
    """

    def env(render_mode: str | None) -> gymnasium.Env[Any, Any]:
        import ale_py
        import cv2
        import gymnasium
        from gymnasium.wrappers import AtariPreprocessing, TimeLimit

        cv2.setNumThreads(1)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else it prints its name
        gymnasium.register_envs(ale_py)
        frames = gymnasium.make(
            f"ALE/{ale}-v5",
            render_mode=render_mode,
            disable_env_checker=True,
            obs_type="grayscale",
            frameskip=1,  # AtariPreprocessing skips
            repeat_action_probability=sticky,  # ALE's own default is 0.25
            full_action_space=False,
            max_num_frames_per_episode=0,  # its limit would count the idle frames
        )
        steps: gymnasium.Env[Any, Any] = TimeLimit(
            AtariPreprocessing(
                frames, noop_max=IDLE, frame_skip=SKIP, screen_size=84, terminal_on_life_loss=False
            ),
            STEPS,
        )
        steps.metadata = {**frames.metadata, "render_fps": 60 // SKIP}
        return steps

    fast = envpool_rows(
        f"{ale}-v5",
        stack_num=1,
        frame_skip=SKIP,
        noop_max=IDLE,
        use_fire_reset=False,  # its default presses FIRE
        repeat_action_probability=sticky,
        full_action_space=False,
        episodic_life=False,
        zero_discount_on_life_loss=False,
        reward_clip=False,
        gray_scale=True,
        img_height=84,
        img_width=84,
        use_inter_area_resize=True,
        max_episode_steps=STEPS,
    )
    return Task(
        name,
        env,
        fast,
        None,
        "atari",
        ("ale_py", "cv2"),
        max_return,
        reference_returns,
        about,
        fast_needs=("envpool",),
    )


def with_and_without_sticky(
    name: str,
    ale: str,
    reference_returns: tuple[float, float],
    max_return: float | None,
    about: str,
) -> tuple[Task, Task]:
    """The game as Decision Transformer is evaluated on it, and with sticky actions."""
    return (
        game(name, ale, 0.0, reference_returns, max_return, about),
        game(
            f"{name}-sticky",
            ale,
            STICKY,
            reference_returns,
            max_return,
            f"{about}; one frame in four repeats the action before",
        ),
    )


TASKS = {
    task.name: task
    for pair in (
        with_and_without_sticky(
            "breakout",
            "Breakout",
            (2.0, 30.0),
            864.0,
            "clear two walls of bricks with a ball that has to be served",
        ),
        with_and_without_sticky(
            "qbert", "Qbert", (164.0, 13455.0), None, "hop over a pyramid and paint its cubes"
        ),
        with_and_without_sticky(
            "pong", "Pong", (-21.0, 15.0), 21.0, "play table tennis until one side has 21 points"
        ),
        with_and_without_sticky(
            "seaquest",
            "Seaquest",
            (68.0, 42055.0),
            None,
            "save divers with a submarine, and come up for air",
        ),
    )
    for task in pair
}
