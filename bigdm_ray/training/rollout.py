"""Rollout: a policy plays commands to their end.

The only caller of `env.step` in training and in evaluation.

Every episode begun is played to its end and counts: taking the first n that finish is biased
towards short ones. Only living rows are acted for and stepped. A row that raises, turns NaN or goes
on for `LONGEST` steps is discarded, counted and reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from bigdm_ray.algorithms.base import Columns, Policy, State, take
from bigdm_ray.algorithms.online import Persistence
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.vector import Arrays, Step, VectorEnv
from bigdm_ray.replay.episode import Episode, EpisodeId, hold_leaves

LONGEST = 1_000_000
"""Steps after which an episode is given up: budgets are looked at between rollouts, and this one
may have no end."""

LOG_BYTES, LOG_STEPS = 16 * 2**20, 256
"""What the steps of all rows may take side by side before they are copied out, row by row."""


@dataclass(frozen=True)
class RolloutResult:
    """What a rollout brings back: whole episodes in the order of their commands, and what went
    wrong."""

    episodes: list[Episode]
    env_steps: int = 0  # steps of these episodes
    discarded: int = 0  # episodes thrown away
    problems: list[str] = field(default_factory=list)  # one sentence for each, at most ten
    stopped: bool = False  # Ctrl-C ended it before all episodes had ended
    # seconds of each call of the policy, and the rows that it acted for
    calls: list[tuple[float, int]] = field(default_factory=list)
    # whether each episode's task was done at any of its steps, where its environment tells
    successes: list[bool] | None = None


@dataclass(frozen=True)
class EpisodeOrigin:
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
    origin: EpisodeOrigin,
    on_step: Callable[[], None] | None = None,
    persistence: Persistence = Persistence(),  # noqa: B008, it is frozen
    on_end: Callable[[int], None] | None = None,
    stoppable: bool = False,
) -> RolloutResult:
    """Play `count` episodes, one for each row of `commands`, in the rows of `env`.

    A row that ends takes the next command that waits. `on_step` is called after each step of the
    living rows (videos take their frames there), `on_end` after those at which episodes end, with
    their number. Where it is `stoppable`, Ctrl-C ends it with the episodes that have ended by then:
    of those begun together the shortest.
    """
    table = _Rows(policy, env, commands, count, origin)
    chance, every = persistence.probability, persistence.every
    ended = 0
    try:
        while len(table.live):
            uniforms = rng.random((len(table.live), policy.uniforms), np.float32)
            if chance:
                table.hold(
                    uniforms, rng.random(len(table.live)) < chance if table.begun else None, every
                )
            table.step(uniforms, origin.max_return)
            if on_step is not None:
                on_step()
            if on_end is not None and table.ended > ended:
                on_end(table.ended - ended)
                ended = table.ended
    except KeyboardInterrupt:
        if not stoppable:
            raise
        return replace(table.finish(), stopped=True)
    return table.finish()


class _Log:
    """What n rows saw, did and were paid, a few steps of all of them side by side.

    Each row's steps are copied out when its episode ends and, of all rows, when the log is full: it
    never holds more than `LOG_BYTES`, or one step of each row.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._arrays: dict[str, np.ndarray] = {}  # name -> [capacity, n, ...]
        self._capacity = 0
        self._at = 0  # the next step's place in the log
        # where in the log each row's episode, or its rest, begins
        self._begun = np.zeros(n, np.int64)
        self._parts: list[list[dict[str, np.ndarray]]] = [[] for _ in range(n)]

    def add(self, rows: np.ndarray, step: dict[str, np.ndarray]) -> None:
        """Note a step of `rows [m]`, arrays `[m, ...]` by name."""
        if self._at == self._capacity:
            self._turn(rows, step)
        everyone = len(rows) == self._n
        for name, values in step.items():
            if everyone:
                self._arrays[name][self._at] = values
            else:
                self._arrays[name][self._at, rows] = values
        self._at += 1

    def cut(self, row: int) -> list[dict[str, np.ndarray]]:
        """The episode of a row so far, as parts that follow each other; the row's next one begins
        here."""
        parts, self._parts[row] = self._parts[row], []
        if self._at > self._begun[row]:
            parts.append(self._held(row))
        self._begun[row] = self._at
        return parts

    def _held(self, row: int) -> dict[str, np.ndarray]:
        """A row's steps in the log: views."""
        span = slice(int(self._begun[row]), self._at)
        return {name: values[span, row] for name, values in self._arrays.items()}

    def _turn(self, rows: np.ndarray, step: dict[str, np.ndarray]) -> None:
        """Copy out what the rows hold, and begin the log anew."""
        if not self._arrays:
            size = sum(values.nbytes // len(rows) for values in step.values()) * self._n
            self._capacity = int(np.clip(LOG_BYTES // max(1, size), 1, LOG_STEPS))
            self._arrays = {
                name: np.empty((self._capacity, self._n, *values.shape[1:]), values.dtype)
                for name, values in step.items()
            }
        for row in rows.tolist() if self._at else ():
            if self._at > self._begun[row]:
                held = self._held(row)
                self._parts[row].append({name: values.copy() for name, values in held.items()})
        self._at = 0
        self._begun[:] = 0


class _Rows:
    """The state of a rollout: for each living row its episode's number, observation, command and
    policy memory."""

    def __init__(
        self, policy: Policy, env: VectorEnv, commands: Columns, count: int, origin: EpisodeOrigin
    ) -> None:
        self._policy, self._env, self._asked, self._count = policy, env, commands, count
        self._origin = origin
        n = min(env.n, count)
        self.live = np.arange(n)  # environment rows
        self.begun = False  # whether a step has been taken
        self._episode = np.arange(n)  # the command that each plays
        self._next = n
        self._state: State = policy.start(n)
        self._rewards = np.zeros(n, np.float32)
        self._first = np.ones(n, bool)
        self._fresh = True  # whether any of them is
        self._held: np.ndarray | None = None  # the random numbers of the step before, `[rows, k]`
        self._commands = {name: values[:n].copy() for name, values in commands.items()}
        step = env.reset(self.live)
        self._observations = step.observations
        self._log = _Log(n)
        self._steps = 0  # of all rows
        self._since = np.zeros(n, np.int64)  # the number of steps when each row's episode began
        self._limit = LONGEST  # the number of steps at which the oldest of them has become too long
        self._ended: dict[int, Episode] = {}
        self._broken: dict[int, str] = {}
        self._calls: list[tuple[float, int]] = []
        self._done: np.ndarray | None = None  # whether each row's task was, where that is told
        self._succeeded: dict[int, bool] = {}
        if not step.is_sound:
            self._settle(step)

    @property
    def ended(self) -> int:
        """How many episodes have ended, well or not."""
        return self._next - len(self.live)

    def hold(self, uniforms: np.ndarray, again: np.ndarray | None, every: int) -> None:
        """Where `again [rows]` is set, give a row the `uniforms [rows, k]` of its step before once
        more: in one of `every` episodes, and not at its first step. None: there was no step yet."""
        if again is not None and self._held is not None:
            again &= (self._episode % every == 0) & ~self._first
            np.copyto(uniforms, self._held, where=again[:, None])
        self._held = uniforms

    def step(self, uniforms: np.ndarray, max_return: float | None) -> None:
        """Act for every living row, step it, and settle those that ended."""
        seen = self._observations
        began = time.perf_counter()
        actions, self._state = self._policy.act(
            self._state, seen, self._rewards, self._commands, self._first, uniforms
        )
        self._calls.append((time.perf_counter() - began, len(self.live)))
        step = self._env.step(self.live, actions)
        self.begun = True
        if step.success is not None:
            self._done = np.zeros(self._env.n, bool) if self._done is None else self._done
            self._done[self.live] |= step.success
        self._steps += 1
        self._log.add(
            self.live,
            {
                **{f"observations/{path}": values for path, values in seen.items()},
                **{f"actions/{path}": values for path, values in actions.items()},
                "rewards": step.rewards,
            },
        )
        self._commands = self._policy.after(self._commands, step.rewards, max_return)
        self._observations, self._rewards = step.observations, step.rewards
        if self._fresh:
            self._first = np.zeros(len(self.live), bool)
            self._fresh = False
        if step.any_ended or self._steps >= self._limit or not step.is_sound:
            self._settle(step)

    def _settle(self, step: Step) -> None:
        """Cut the episodes that ended, give their rows to waiting commands, drop the rest."""
        problems = step.problems()
        if self._steps >= self._limit:
            for k in np.flatnonzero(
                (self._steps - self._since >= LONGEST) & ~step.terminated & ~step.truncated
            ).tolist():
                problems.setdefault(
                    k,
                    f"it did not end in {LONGEST:,} steps; give its environment a time limit"
                    " (gymnasium.wrappers.TimeLimit)",
                )
        done = step.terminated | step.truncated
        done[list(problems)] = True
        ended = np.flatnonzero(done)
        for k in ended.tolist():
            number, parts = int(self._episode[k]), self._log.cut(int(self.live[k]))
            if k in problems:
                self._broken[number] = problems[k]
            else:
                last = {path: values[k] for path, values in step.observations.items()}
                self._ended[number] = self._episode_of(
                    number, parts, last, bool(step.terminated[k])
                )
                if self._done is not None:
                    self._succeeded[number] = bool(self._done[self.live[k]])
        if self._done is not None:
            self._done[self.live[ended]] = False
        self._replace(ended)

    def _episode_of(
        self,
        number: int,
        parts: list[dict[str, np.ndarray]],
        last: dict[str, np.ndarray],
        terminated: bool,
    ) -> Episode:
        origin = self._origin

        def whole(name: str, more: tuple[np.ndarray, ...] = ()) -> np.ndarray:
            return np.concatenate([*(part[name] for part in parts), *more])

        return Episode(
            hold_leaves(
                {path: whole(f"observations/{path}", (v[None],)) for path, v in last.items()},
                self._env.signature.per_episode,
            ),
            {path: whole(f"actions/{path}") for path in self._env.signature.actions},
            whole("rewards"),
            terminated,
            EpisodeId(origin.round, origin.group, number),
            origin.task,
            {name: float(values[number]) for name, values in self._asked.items()},
            origin.version,
            origin.source,
            origin.seed,
        )

    def _replace(self, ended: np.ndarray) -> None:
        waiting = min(len(ended), self._count - self._next)
        again, over = ended[:waiting], ended[waiting:]
        fresh: Step | None = None
        if waiting:
            numbers = np.arange(self._next, self._next + waiting)
            self._next += waiting
            self._episode[again] = numbers
            self._first[again] = True
            self._fresh = True
            self._since[again] = self._steps
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
            self.live, self._episode, self._since = (
                self.live[keep],
                self._episode[keep],
                self._since[keep],
            )
            self._rewards, self._first = self._rewards[keep], self._first[keep]
            self._held = None if self._held is None else self._held[keep]
            self._observations = {path: v[keep] for path, v in self._observations.items()}
            self._commands = {name: v[keep] for name, v in self._commands.items()}
            if self._state and len(self.live):
                self._state = take(self._state, np.flatnonzero(keep))
        self._limit = int(self._since.min(initial=self._steps)) + LONGEST
        if fresh is not None and not fresh.is_sound:
            broken = {int(numbers[k]): why for k, why in fresh.problems().items()}
            self._broken |= broken
            self._replace(np.flatnonzero(np.isin(self._episode, list(broken))))

    def finish(self) -> RolloutResult:
        """The episodes that ended well, each with the mean return of all of them."""
        episodes = [self._ended[number] for number in sorted(self._ended)]
        done = [self._succeeded[number] for number in sorted(self._succeeded)]
        peers = float(np.mean([episode.total_return for episode in episodes])) if episodes else 0.0
        episodes = [replace(episode, merit=peers) for episode in episodes]
        problems = [
            f"an episode of {self._origin.task} is discarded: {why}"
            for why in list(self._broken.values())[:10]
        ]
        return RolloutResult(
            episodes,
            sum(e.length for e in episodes),
            len(self._broken),
            problems,
            calls=self._calls,
            successes=None if self._done is None else done,
        )


class RandomPolicy(Policy):
    """Uniformly random actions: the warm-up of Algorithm 1, and the floor that scores are compared
    with.

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
