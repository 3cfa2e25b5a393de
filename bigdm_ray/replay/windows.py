"""View and Windows: what an algorithm wants drawn, as a value, and the batch that answers it.

What to draw is apart from how it is fetched: `View.rows` deals in episode numbers and time steps
only, the Store turns them into arrays. The same View with the same table and the same random stream
always names the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bigdm_ray.replay.table import Table

DERIVED = ("returns_to_go", "episode_return", "steps_remaining")


@dataclass(frozen=True)
class View:
    """How windows are drawn.

    length             K steps a window
    weight             `episode`: every episode alike, then a step uniformly; `length`: every step
                       alike; `whole`: every episode alike, from its first step; `full`: every
                       episode by its length, then a window that is as full as it can be
    anchor             the drawn step is the window's first (`start`) or last (`end`) one
    pad                the side on which steps outside the episode are left empty
    columns            derived columns to add: `returns_to_go` (sum of rewards from this step on,
                       added up in float64), `episode_return` (the same of the whole episode) and
                       `steps_remaining` (steps left, this one included, so 1 at the last)
    best               only the best episodes by return that together hold at most this fraction of
                       all steps; at least one
    above              only episodes with at least this return
    stack              image leaves carry their last `stack` frames along the channel axis; the
                       first frame is repeated
    next_observation   add the observations that followed each step
    terminals          add whether the episode terminated at each step: what bootstrapping stops at.
                       A time limit is no termination
    annotations        columns to add that the algorithm has computed itself (`Store.annotate`)
    among              only the steps at which this annotation is above 0, each alike
    hindsight          add what was observed later in the episode, as a goal that was reached: at
                       its end (`last`), or at a step drawn uniformly from those behind the drawn
                       one (`later`), of which the first `ahead` count where it is not 0. Steps from
                       the goal on are left out of the window
    prompts            the share of windows that come with a prompt: `prompt_length` steps of an
                       episode that the same source played, half of them its last ones, half begin
                       at any of its steps (Reed et al. 2022, section 2.3)
    """

    length: int = 1
    weight: Literal["episode", "length", "whole", "full"] = "episode"
    anchor: Literal["start", "end"] = "start"
    pad: Literal["left", "right"] = "right"
    columns: tuple[str, ...] = ()
    best: float = 1.0
    above: float | None = None
    stack: int = 1
    next_observation: bool = False
    terminals: bool = False
    annotations: tuple[str, ...] = ()
    among: str = ""
    hindsight: Literal["", "last", "later"] = ""
    ahead: int = 0
    prompts: float = 0.0
    prompt_length: int = 8

    def __post_init__(self) -> None:
        unknown = set(self.columns) - set(DERIVED)
        if unknown or self.length < 1 or self.stack < 1 or not 0 < self.best <= 1:
            raise ValueError(f"a View that cannot be drawn: {self}; derived columns are {DERIVED}")

    def eligible_episodes(self, table: Table) -> np.ndarray:
        """Positions in `table` of the episodes that may be drawn, ascending. [e] int64"""
        return table.memoize((self.best, self.above), lambda: self._eligible(table))

    def _eligible(self, table: Table) -> np.ndarray:
        rows = np.arange(len(table))
        if self.best < 1.0 and len(table):
            held = np.cumsum(table.lengths[table.by_return])
            within = int(np.searchsorted(held, int(self.best * held[-1]), side="right"))
            rows = np.sort(table.by_return[: max(within, 1)])
        if self.above is not None:
            rows = rows[table.returns[rows] >= self.above]
        return rows

    def rows(
        self, table: Table, rng: np.random.Generator, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`size` draws: positions in `table` and the drawn steps, both [size] int64.

        Raises ValueError if none may be drawn.
        """
        among = None if self.best == 1.0 and self.above is None else self.eligible_episodes(table)
        lengths = table.lengths if among is None else table.lengths[among]
        if len(lengths) == 0:
            raise ValueError(
                "no episode may be drawn: the store is empty, or none passes the view's `best` and"
                " `above`"
            )
        if self.weight in ("episode", "whole"):
            chosen = rng.integers(0, len(lengths), size)
            steps = (rng.random(size) * lengths[chosen] * (self.weight == "episode")).astype(
                np.int64
            )
        else:
            ends = (
                table.ends
                if among is None
                else table.memoize((self.best, self.above, "ends"), lambda: np.cumsum(lengths))
            )
            flat = rng.integers(0, ends[-1], size)
            chosen = np.searchsorted(ends, flat, side="right")
            steps = flat - (ends[chosen] - lengths[chosen])
            if self.weight == "full":  # as uniformly over the first steps of full windows
                room = np.maximum(lengths[chosen] - self.length, 0) + 1
                steps = steps * room // lengths[chosen]
        return (chosen if among is None else among[chosen]), steps

    def goal_steps(
        self, steps: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """At which observation the goal of each drawn step is reached `[B]` int64, from the next to
        the episode's last; without hindsight the last."""
        if self.hindsight != "later":
            return lengths
        left = lengths - steps
        reached: np.ndarray = (
            steps
            + 1
            + (
                rng.random(len(steps)) * (np.minimum(left, self.ahead) if self.ahead else left)
            ).astype(np.int64)
        )
        return reached

    def prompt_rows(
        self, table: Table, rng: np.random.Generator, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which of the windows, drawn from the episodes `positions` `[B]`, get a prompt, `[m]`,
        ascending; position and first step of each prompt, `[m]` int64."""
        prompted = np.flatnonzero(rng.random(len(positions)) < self.prompts)
        chance, last = rng.random(len(prompted)), rng.random(len(prompted)) < 0.5
        within = rng.random(len(prompted))
        eligible = self.eligible_episodes(table)
        sources = table.sources[eligible]
        chosen = np.zeros(len(prompted), np.int64)
        for source in np.unique(table.sources[positions[prompted]]):
            mine = np.flatnonzero(table.sources[positions[prompted]] == source)
            among = eligible[sources == source]
            chosen[mine] = among[(chance[mine] * len(among)).astype(np.int64)]
        lengths = table.lengths[chosen]
        ends = np.maximum(lengths - self.prompt_length, 0)
        return prompted, chosen, np.where(last, ends, (within * lengths).astype(np.int64))

    def span(self, steps: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The time steps of each window `[B, K]` int64, clipped into the episode, and the mask
        `[B, K]` of real ones."""
        if self.length == 1:
            return steps[:, None], np.ones((len(steps), 1), bool)
        if self.anchor == "start":
            first, count = steps, np.minimum(lengths - steps, self.length)
        else:
            first = np.maximum(steps - self.length + 1, 0)
            count = steps - first + 1
        place = np.arange(self.length)[None, :]
        if self.pad == "left":
            place = place - (self.length - count)[:, None]
        mask = (place >= 0) & (place < count[:, None])
        return first[:, None] + np.clip(place, 0, count[:, None] - 1), mask


@dataclass(frozen=True)
class Windows:
    """A batch of B windows of K steps; every array is `[B, K, ...]`, zero where `mask` is False."""

    observations: dict[str, np.ndarray]
    actions: dict[str, np.ndarray]
    rewards: np.ndarray  # float32
    mask: np.ndarray  # bool, True on real steps
    timesteps: np.ndarray  # int64, the step's place in its episode
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # derived, float32
    next_observations: dict[str, np.ndarray] = field(default_factory=dict)
    annotations: dict[str, np.ndarray] = field(default_factory=dict)  # float32
    terminated: np.ndarray | None = None  # bool, where the view asks for it
    # observations that were reached later `[B, ...]`, where the view asks for them
    goals: dict[str, np.ndarray] = field(default_factory=dict)
    prompts: Windows | None = None  # of some of the windows, where the view asks for them
    prompted: np.ndarray | None = None  # int64 [m], ascending: which windows these are


def stacked_steps(timesteps: np.ndarray, stack: int) -> np.ndarray:
    """The steps whose frames make a stack, oldest first: `[..., stack]`; before the start the first
    one is repeated."""
    return np.asarray(np.maximum(timesteps[..., None] + np.arange(1 - stack, 1), 0))


def push_frame(stacks: np.ndarray, frames: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Stacks `[n, stack, ...]` with the frames `[n, ...]` at their ends; where `first [n]`, a stack
    is filled with its frame."""
    pushed = np.concatenate([stacks[:, 1:], frames[:, None]], 1)
    pushed[first] = frames[first][:, None]
    return pushed


def merge_stack(frames: np.ndarray) -> np.ndarray:
    """`[..., stack, channels, height, width]` as `[..., stack * channels, height, width]`: how
    frames become channels.

    Windows and acting policies both use this, so that they cannot disagree.
    """
    *lead, stack, channels, height, width = frames.shape
    return frames.reshape(*lead, stack * channels, height, width)
