"""Rollout: a policy plays commands to their end. The only caller of `env.step` in training and in evaluation.

Every episode begun is played to its end and counts: taking the first n that finish is biased towards short ones.
Only living rows are acted for and stepped. A row that raises, turns NaN or goes on for `LONGEST` steps is discarded, counted and reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from bigdm_ray.algorithms.base import Columns, Persistence, Policy, State, take
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.vector import Arrays, Step, VectorEnv
from bigdm_ray.replay.episode import Episode, EpisodeId

LONGEST = 1_000_000
"""Steps after which an episode is given up: budgets are looked at between rollouts, and this one may have no end."""


@dataclass(frozen=True)
class Played:
    """What a rollout brings back: whole episodes in the order of their commands, and what went wrong."""

    episodes: list[Episode]
    env_steps: int = 0  # steps of these episodes
    discarded: int = 0  # episodes thrown away
    problems: list[str] = field(default_factory=list)  # one sentence for each, at most ten
    stopped: bool = False  # Ctrl-C ended it before all episodes had ended
    calls: list[tuple[float, int]] = field(
        default_factory=list
    )  # seconds of each call of the policy, and the rows that it acted for


@dataclass(frozen=True)
class Origin:
    """What is written into the episodes of one rollout beside their arrays."""

    round: int
    group: int
    task: str
    version: tuple[int, int]
    source: str
    seed: int
    max_return: float | None = None


def rollout(
    policy: Policy,
    env: VectorEnv,
    commands: Columns,
    count: int,
    rng: np.random.Generator,
    origin: Origin,
    on_step: Callable[[], None] | None = None,
    persistence: Persistence = Persistence(),  # noqa: B008, it is frozen
    on_end: Callable[[int], None] | None = None,
    stoppable: bool = False,
) -> Played:
    """Play `count` episodes, one for each row of `commands`, in the rows of `env`.

    A row that ends takes the next command that waits. `on_step` is called after each
    step of the living rows (videos take their frames there), `on_end` after those at which episodes end, with their number.
    Where it is `stoppable`, Ctrl-C ends it with the episodes that have ended by then: of those begun together the shortest.
    """
    table = _Rows(policy, env, commands, count)
    last: np.ndarray | None = None
    ended = 0
    try:
        while len(table.live):
            uniforms = rng.random((len(table.live), policy.uniforms), np.float32)
            if last is not None:
                again = (rng.random(len(table.live)) < persistence.probability) & table.persistent(
                    persistence.every
                )
                uniforms[again] = last[table.live[again]]
            if persistence.probability:
                last = np.zeros((env.n, policy.uniforms), np.float32) if last is None else last
                last[table.live] = uniforms
            table.step(uniforms, origin.max_return)
            if on_step is not None:
                on_step()
            if on_end is not None and table.ended > ended:
                on_end(table.ended - ended)
                ended = table.ended
    except KeyboardInterrupt:
        if not stoppable:
            raise
        return replace(table.finish(commands, origin), stopped=True)
    return table.finish(commands, origin)


class _Rows:
    """The state of a rollout: for each living row its episode's number, observation, command and policy memory."""

    def __init__(self, policy: Policy, env: VectorEnv, commands: Columns, count: int) -> None:
        self._policy, self._env, self._asked, self._count = policy, env, commands, count
        n = min(env.n, count)
        self.live = np.arange(n)  # environment rows
        self._episode = np.arange(n)  # the command that each plays
        self._next = n
        self._state: State = policy.start(n)
        self._rewards = np.zeros(n, np.float32)
        self._first = np.ones(n, bool)
        self._commands = {name: values[:n].copy() for name, values in commands.items()}
        step = env.reset(self.live)
        self._observations = step.observations
        self._log: list[tuple[np.ndarray, Arrays, Arrays, np.ndarray]] = []
        self._begun = np.zeros(n, np.int64)  # the length of the log when each row's episode began
        self._limit = (
            LONGEST  # the length of the log at which the oldest of them has become too long
        )
        self._final: dict[int, tuple[Arrays, bool]] = {}
        self._broken: dict[int, str] = {}
        self._calls: list[tuple[float, int]] = []
        if not step.sound:
            self._settle(step)

    @property
    def ended(self) -> int:
        """How many episodes have ended, well or not."""
        return self._next - len(self.live)

    def persistent(self, every: int) -> np.ndarray:
        """The living rows in one of `every` episodes, behind its first step. [rows] bool"""
        rows: np.ndarray = (self._episode % every == 0) & ~self._first
        return rows

    def step(self, uniforms: np.ndarray, max_return: float | None) -> None:
        """Act for every living row, step it, and settle those that ended."""
        seen = self._observations
        began = time.perf_counter()
        actions, self._state = self._policy.act(
            self._state, seen, self._rewards, self._commands, self._first, uniforms
        )
        self._calls.append((time.perf_counter() - began, len(self.live)))
        step = self._env.step(self.live, actions)
        self._log.append((self._episode, seen, actions, step.rewards))
        self._commands = self._policy.after(self._commands, step.rewards, max_return)
        self._observations, self._rewards = step.observations, step.rewards
        self._first = np.zeros(len(self.live), bool)
        if (
            step.terminated.any()
            or step.truncated.any()
            or len(self._log) >= self._limit
            or not step.sound
        ):
            self._settle(step)

    def _settle(self, step: Step) -> None:
        """Note the ends, give their rows to waiting commands, drop the rest."""
        problems = step.problems()
        if len(self._log) >= self._limit:
            for k in np.flatnonzero(
                (len(self._log) - self._begun >= LONGEST) & ~step.terminated & ~step.truncated
            ).tolist():
                problems.setdefault(
                    k,
                    f"it did not end in {LONGEST:,} steps; give its environment a time limit (gymnasium.wrappers.TimeLimit)",
                )
        for k, why in problems.items():
            self._broken[int(self._episode[k])] = why
        done = step.terminated | step.truncated
        done[list(problems)] = True
        for k in np.flatnonzero(done).tolist():
            number = int(self._episode[k])
            if number not in self._broken:
                self._final[number] = (
                    {path: v[k].copy() for path, v in step.observations.items()},
                    bool(step.terminated[k]),
                )
        self._replace(np.flatnonzero(done))

    def _replace(self, ended: np.ndarray) -> None:
        waiting = min(len(ended), self._count - self._next)
        again, over = ended[:waiting], ended[waiting:]
        fresh: Step | None = None
        if waiting:
            numbers = np.arange(self._next, self._next + waiting)
            self._next += waiting
            self._episode = self._episode.copy()
            self._episode[again] = numbers
            self._first[again] = True
            self._begun[again] = len(self._log)
            fresh = self._env.reset(self.live[again])
            self._observations = {path: v.copy() for path, v in self._observations.items()}
            for path, values in fresh.observations.items():
                self._observations[path][again] = values
            for name, values in self._asked.items():
                self._commands[name][again] = values[numbers]
            self._rewards = self._rewards.copy()
            self._rewards[again] = 0
        if len(over):
            keep = np.ones(len(self.live), bool)
            keep[over] = False
            self.live, self._episode, self._begun = (
                self.live[keep],
                self._episode[keep],
                self._begun[keep],
            )
            self._rewards, self._first = self._rewards[keep], self._first[keep]
            self._observations = {path: v[keep] for path, v in self._observations.items()}
            self._commands = {name: v[keep] for name, v in self._commands.items()}
            self._state = take(self._state, np.flatnonzero(keep))
        self._limit = int(self._begun.min(initial=len(self._log))) + LONGEST
        if fresh is not None and not fresh.sound:
            broken = {int(numbers[k]): why for k, why in fresh.problems().items()}
            self._broken |= broken
            self._replace(np.flatnonzero(np.isin(self._episode, list(broken))))

    def finish(self, commands: Columns, origin: Origin) -> Played:
        """Cut the log into episodes."""
        owner = (
            np.concatenate([entry[0] for entry in self._log])
            if self._log
            else np.zeros(0, np.int64)
        )
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(self._count + 1))

        def column(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(parts)[order]

        rewards = (
            column([entry[3] for entry in self._log]) if self._log else np.zeros(0, np.float32)
        )
        observations = (
            {
                p: column([entry[1][p] for entry in self._log])
                for p in self._env.signature.observations
            }
            if self._log
            else {}
        )
        actions = (
            {p: column([entry[2][p] for entry in self._log]) for p in self._env.signature.actions}
            if self._log
            else {}
        )
        episodes = []
        for number in sorted(self._final):
            here = slice(int(ends[number]), int(ends[number + 1]))
            last, terminated = self._final[number]
            episodes.append(
                Episode(
                    {
                        path: np.concatenate([values[here], last[path][None]])
                        for path, values in observations.items()
                    },
                    {path: values[here] for path, values in actions.items()},
                    rewards[here],
                    terminated,
                    EpisodeId(origin.round, origin.group, number),
                    origin.task,
                    {name: float(values[number]) for name, values in commands.items()},
                    origin.version,
                    origin.source,
                    origin.seed,
                )
            )
        peers = float(np.mean([episode.total_return for episode in episodes])) if episodes else 0.0
        episodes = [replace(episode, peers=peers) for episode in episodes]
        problems = [
            f"an episode of {origin.task} is discarded: {why}"
            for why in list(self._broken.values())[:10]
        ]
        return Played(
            episodes,
            sum(e.length for e in episodes),
            len(self._broken),
            problems,
            calls=self._calls,
        )


class RandomPolicy(Policy):
    """Uniformly random actions: the warm-up of Algorithm 1, and the floor that scores are compared with.

    An unbounded continuous element is drawn from U[-1, 1].
    """

    def __init__(self, signature: Signature) -> None:
        self._leaves = signature.actions
        self.uniforms = sum(leaf.size for leaf in self._leaves.values())

    def act(
        self,
        state: State,
        observations: Arrays,
        rewards: np.ndarray,
        commands: Columns,
        first: np.ndarray,
        uniforms: np.ndarray,
    ) -> tuple[Arrays, State]:
        """See Policy."""
        out, used = {}, 0
        for path, leaf in self._leaves.items():
            out[path] = self._draw(leaf, uniforms[:, used : used + leaf.size]).reshape(
                len(uniforms), *leaf.shape
            )
            used += leaf.size
        return out, state

    @staticmethod
    def _draw(leaf: Leaf, uniforms: np.ndarray) -> np.ndarray:
        if leaf.kind == "discrete":
            picked: np.ndarray = np.floor(uniforms * np.array(leaf.choices)).astype(leaf.dtype)
            return picked
        low = np.array(leaf.low if leaf.low is not None else [-1.0] * leaf.size, np.float32)
        high = np.array(leaf.high if leaf.high is not None else [1.0] * leaf.size, np.float32)
        drawn: np.ndarray = (low + uniforms * (high - low)).astype(leaf.dtype)
        return drawn
