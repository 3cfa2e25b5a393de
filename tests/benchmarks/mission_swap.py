"""Whether a policy does what it is told: GoTo levels of BabyAI, where another object of the room is
told in place of the level's own.

    python -m tests.benchmarks.mission_swap RUN                   babyai/go-to-local, 100 episodes
    python -m tests.benchmarks.mission_swap RUN --task babyai/go-to-local-s8n7 --episodes 50
    python -m tests.benchmarks.mission_swap RUN --json FILE

RUN is a run of one task or of several. Each episode is played twice, in the same grid: told the
level's own mission, and told to go to another object that the level has put into the agent's room,
of another kind or colour. Reported are the success on the right mission; the success at the new
goal, when the new one is told; and the share of these episodes in which the old goal was reached
before the new one, or in its stead. Whatever the policy, some pass before the old object on their
way: BabyAI's bot, which does what it is told, shows how many. MiniGrid's own verifiers decide who
stands before what, and episodes end as those of the level do, with the mission that is told.

It is a script, and no flag of `evaluate`, for it opens the levels of one suite.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

TASK = "babyai/go-to-local"
SEED = 1


@dataclass(frozen=True)
class Outcome:
    """What an episode came to."""

    told: bool  # whether the goal that was told was reached
    old: bool  # whether the level's own was, before it or in its stead


class SwappedMission(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A GoTo level whose mission is another one that its grid allows, or, without `swap`, its own.

    `outcomes` has what each episode came to. Grids are those of the level, seed by seed, but for
    the few that hold nothing else to go to. Raises ValueError for a level of other missions.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], swap: bool) -> None:
        super().__init__(env)
        self.level: Any = env.unwrapped
        self.outcomes: list[Outcome] = []
        self.own: Any = None
        """The level's own mission."""
        self._swap, self._old = swap, False
        self._chance = np.random.default_rng(0)
        self._generate = self.level.gen_mission
        self.level.gen_mission = self._gen_mission

    def _gen_mission(self) -> None:
        from minigrid.envs.babyai.core.roomgrid_level import RejectSampling
        from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc

        self._generate()
        self.own = self.level.instrs
        if not isinstance(self.own, GoToInstr):
            raise ValueError(
                f"the mission {self.own.surface(self.level)!r} has no other to swap it with; a"
                " level where one goes to an object is expected"
            )
        if not self._swap:
            return
        if not (found := self._others()):
            raise RejectSampling("there is nothing else to go to")
        self.level.instrs = GoToInstr(ObjDesc(*found[self._chance.integers(len(found))]))

    def _others(self) -> list[tuple[str, str]]:
        """Kinds and colours of what lies in the agent's room and the level's own mission does not
        mean."""
        own, _ = self.own.desc.find_matching_objs(self.level)
        meant = {id(thing) for thing in own}
        here = self.level.room_from_pos(*self.level.agent_pos).objs
        things = [thing for thing in here if thing.type in ("ball", "box", "key")]
        old = {(thing.type, thing.color) for thing in things if id(thing) in meant}
        return sorted({(thing.type, thing.color) for thing in things} - old)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """See gymnasium."""
        if seed is not None:
            self._chance = np.random.default_rng(seed)
        told = self.env.reset(seed=seed, options=options)
        self.own.reset_verifier(self.level)
        self._old = False
        return told

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See gymnasium."""
        seen, reward, terminated, truncated, more = self.env.step(action)
        if int(action) == self.level.actions.drop:
            self.level.update_objs_poss(self.own)
        self._old = self._old or self.own.verify(int(action)) == "success"
        if terminated or truncated:
            self.outcomes.append(Outcome(float(reward) > 0, self._old))
        return seen, reward, terminated, truncated, more


Play = Callable[[Callable[[], SwappedMission], int], None]
"""Plays so many episodes in environments of which a call makes one."""


def measure_swap(
    make: Callable[[], gymnasium.Env[Any, Any]], play: Play, episodes: int
) -> dict[str, Any]:
    """What comes of right and of swapped missions where `play` plays, in levels that `make`
    makes."""
    found: dict[bool, list[Outcome]] = {}
    for swap in (False, True):
        made: list[SwappedMission] = []

        def one(swap: bool = swap, made: list[SwappedMission] = made) -> SwappedMission:
            made.append(SwappedMission(make(), swap))
            return made[-1]

        play(one, episodes)
        found[swap] = [outcome for env in made for outcome in env.outcomes]
    right, new = (float(np.mean([o.told for o in found[swap]])) for swap in (False, True))
    return {
        "episodes": len(found[True]),
        "right": right,
        "new": new,
        "old": float(np.mean([o.old for o in found[True]])),
        "new_of_right": new / right if right else None,
    }


def measure_run(folder: Path, task: str, episodes: int, mode: str, seed: int) -> dict[str, Any]:
    """What a trained run does in one of its tasks with right and with swapped missions."""
    from bigdm_ray.envs.vector import GymnasiumRows
    from bigdm_ray.training.acting import command_of, policy_of
    from bigdm_ray.training.evaluation import ROWS, constant
    from bigdm_ray.training.loaded import load
    from bigdm_ray.training.rollout import EpisodeOrigin, rollout
    from bigdm_ray.training.streams import rng

    loaded = load(folder).of(task)
    policy, used = policy_of(loaded, mode)
    commands = constant(command_of(loaded), episodes)

    def play(make: Callable[[], SwappedMission], count: int) -> None:
        rows = GymnasiumRows(make, min(ROWS, count), seed)
        origin = EpisodeOrigin(0, 0, loaded.run.task, (0, 0), "swap", seed, loaded.task.max_return)
        try:
            rollout(policy, rows, commands, count, rng(seed, "mission swap"), origin)
        finally:
            rows.close()

    found = measure_swap(lambda: loaded.task.env(None), play, episodes)
    return {"run": str(folder), "task": loaded.run.task, "mode": used, "seed": seed} | found


def describe_swap(found: dict[str, Any]) -> str:
    """A measurement in words."""
    ratio = found["new_of_right"]
    share = "" if ratio is None else f", {ratio:.0%} as often as the right one"
    return (
        f"{found['episodes']} episodes each: told the level's own mission it is reached in"
        f" {found['right']:.0%}; told another, that one is reached in {found['new']:.0%}{share},"
        f" the old one before it or in its stead in {found['old']:.0%}"
    )


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--mode", default="own")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    given = parser.parse_args()
    found = measure_run(given.run, given.task, given.episodes, given.mode, given.seed)
    print(describe_swap(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
