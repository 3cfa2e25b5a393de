"""Recording: episodes of a policy as a dataset, with noise on its actions where a medium or a
replay set is wanted.

With probability `epsilon` a step's action is uniformly random; otherwise it is the policy's own,
clipped to its box, plus Gaussian noise of deviation `sigma` (a box counts as [-1, 1]), clipped
again. Stored are the actions that were really applied. Episodes are played on the task's fast
environments, every one to its end, in rounds. Environments cannot be saved, so they are made anew,
from a seed that counts, for each stretch of whole rounds. Between two stretches a recording that
was interrupted goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigdm_ray.algorithms.base import Columns, Policy, State
from bigdm_ray.envs.signature import Leaf, Signature
from bigdm_ray.envs.task import Backend, Task
from bigdm_ray.envs.vector import Arrays, VectorEnv
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.formats.dataset import Dataset
from bigdm_ray.formats.tasks import spec_of
from bigdm_ray.formats.writer import Writer, keep_on_interruption
from bigdm_ray.models.heads import normals
from bigdm_ray.progress import Progress
from bigdm_ray.replay.episode import Episode
from bigdm_ray.training.evaluation import constant
from bigdm_ray.training.rollout import EpisodeOrigin, RandomPolicy, rollout
from bigdm_ray.training.run_folder import versions
from bigdm_ray.training.streams import derived_seed, rng

ROWS = 32
"""Environments side by side, and episodes a round, where a RecordingRequest does not say it."""
BARREN_ROUNDS = 3
"""Rounds in a row without a sound episode that end a recording."""
STRETCH_STEPS = 20_000
"""Steps after which a round is the last of its stretch."""
ALWAYS = ("python", "bigdm-ray", "torch", "numpy", "gymnasium")
"""Packages that take part in every recording."""
SAVE_EVERY_S = 30.0
"""Seconds between two saves, at least; a save waits for the end of a stretch."""


class NoisyPolicy(Policy):
    """A policy with noise on its actions; see the module. Its memory is the inner policy's."""

    def __init__(
        self, inner: Policy, signature: Signature, sigma: float = 0.0, epsilon: float = 0.0
    ) -> None:
        self._inner, self._leaves = inner, signature.actions
        self._sigma, self._epsilon = sigma, epsilon
        self._random = RandomPolicy(signature)
        self._sizes = {path: leaf.size for path, leaf in signature.actions.items() if _boxed(leaf)}
        if sigma and not self._sizes:
            raise UserError(
                f"--action-noise is {sigma:g}, but this task has no continuous actions within"
                " bounds; use --epsilon"
            )
        self.uniforms = inner.uniforms + 1 + self._random.uniforms + sum(self._sizes.values())

    def empty(self, n: int) -> State:
        """See Policy."""
        return self._inner.start(n)

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
        own, coin, at_random, noise = np.split(
            uniforms, np.cumsum([self._inner.uniforms, 1, self._random.uniforms]), axis=1
        )
        actions, after = self._inner.act(state, observations, rewards, commands, first, own)
        used = 0
        for path, size in self._sizes.items():
            actions = actions | {
                path: self._noised(self._leaves[path], actions[path], noise[:, used : used + size])
            }
            used += size
        if self._epsilon:
            drawn, _ = self._random.act({}, observations, rewards, commands, first, at_random)
            instead = coin[:, 0] < self._epsilon
            actions = {
                path: np.where(instead.reshape(-1, *[1] * (v.ndim - 1)), drawn[path], v).astype(
                    v.dtype
                )
                for path, v in actions.items()
            }
        return actions, after

    def _noised(self, leaf: Leaf, actions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        low, high = (
            np.array(bound, np.float64).reshape(leaf.shape) for bound in (leaf.low, leaf.high)
        )
        normal = normals(torch.from_numpy(uniforms).double()).numpy().reshape(actions.shape)
        moved = np.clip(actions, low, high) + self._sigma * (high - low) / 2.0 * normal
        clipped: np.ndarray = np.clip(moved, low, high).astype(leaf.dtype)
        return clipped

    def after(self, commands: Columns, rewards: np.ndarray, max_return: float | None) -> Columns:
        """See Policy."""
        return self._inner.after(commands, rewards, max_return)


def _boxed(leaf: Leaf) -> bool:
    return (
        leaf.kind == "tensor"
        and np.dtype(leaf.dtype).kind == "f"
        and leaf.low is not None
        and leaf.high is not None
    )


@dataclass(frozen=True)
class RecordingRequest:
    """What is to be recorded.

    Of `episodes` and `steps` one is given; `steps` takes whole episodes until they reach it.
    """

    policy: Policy | Callable[[VectorEnv], Policy]  # or what makes it for the environments
    task: Task
    source: str  # who acts, as `Episode.source` has it
    version: tuple[int, int] = (0, 0)
    command: dict[str, float] | None = None
    episodes: int | None = None
    steps: int | None = None
    seed: int = 1
    rows: int = ROWS  # environments side by side, and episodes a round
    # what else the episodes follow from, as JSON: only the same goes on where it was interrupted
    made_of: tuple[Any, ...] = ()
    backend: Backend = "fast"


@dataclass(frozen=True)
class RecordingPosition:
    """How far recordings have come."""

    recording: int = 0  # the one that goes on
    stretch: int = 0  # of its stretches; the next of its rounds; its episodes and steps so far
    round: int = 0
    episodes: int = 0
    steps: int = 0
    successes: int | None = None  # of all recordings, where the environments tell


class NoWholeEpisode(RunFailed):
    """No episode can be played to its end."""


def record(
    asked: Sequence[RecordingRequest],
    folder: Path,
    source: str,
    quiet: bool = False,
    on_end: Callable[[RecordingPosition], None] | None = None,
) -> tuple[Dataset, list[str]]:
    """Play recordings of one task, one after another, and write them as the new dataset `folder`,
    whose card names `source`. `on_end` hears how far they came, before the dataset appears.

    The second value is what went wrong with episodes that were discarded, since it went on. Raises
    UserError for a folder that exists, or RunFailed: where no episode can be played to its end
    nothing is left; what a full disk or Ctrl-C interrupts waits for the same call.
    """
    task = asked[0].task
    task.require()
    writer = Writer(folder, _plan(asked, source), task.name, task.signature(), marked=True)
    place = RecordingPosition(**(writer.mark or {}))
    problems: list[str] = []
    steps = [one.steps for one in asked if one.steps is not None]
    saved = time.monotonic()
    with (
        keep_on_interruption(writer),
        Progress(
            folder.name,
            sum(steps) if len(steps) == len(asked) else None,
            sum(writer.lengths),
            quiet,
        ) as bar,
    ):
        for number in range(place.recording, len(asked)):
            if number != place.recording:
                place = RecordingPosition(number, successes=place.successes)
            while not _enough(asked[number], place.episodes, place.steps):
                try:
                    for episodes, ahead in _stretch(asked[number], place, problems):
                        writer.add(episodes)
                        bar.advance(sum(episode.length for episode in episodes))
                        place = ahead
                except NoWholeEpisode:
                    writer.discard()
                    raise
                if time.monotonic() - saved >= SAVE_EVERY_S:
                    writer.save(asdict(place))
                    saved = time.monotonic()
        if on_end is not None:
            on_end(place)
        told = versions_of_recording(task, asked[0].backend)
        return writer.finish(folder.name, source, told), problems


def versions_of_recording(task: Task, backend: Backend = "fast") -> dict[str, str]:
    """What a recording of this task is made with, for its card.

    The id that the environment is registered with, whose environments play (`EnvPool`, `gymnasium`,
    or `bigdm-ray` for arrays of our own), and versions of the packages that take part.
    """
    spec, fast = spec_of(task), backend == task.backend == "fast"
    pooled = "EnvPool" if "envpool" in task.fast_needs else "bigdm-ray"
    parts = [] if spec is None else re.split(r"[.:]", str(spec.entry_point))
    modules = {
        name.lower().replace("_", "-")
        for name in (*task.needs, *(task.fast_needs if fast else ()), *parts)
    }
    told = {} if spec is None else {"environment": str(spec.id)}
    took_part = {
        name: version for name, version in versions().items() if name in (*ALWAYS, *modules)
    }
    return told | {"backend": pooled if fast else "gymnasium"} | took_part


def _plan(asked: Sequence[RecordingRequest], source: str) -> dict[str, Any]:
    """What an interrupted recording must have in common with one that goes on."""
    each = [
        [
            one.source,
            one.version,
            one.command,
            one.episodes,
            one.steps,
            one.seed,
            one.rows,
            one.made_of,
        ]
        for one in asked
    ]
    task = asked[0].task
    return {
        "recordings": each,
        "source": source,
        "task": task.name,
        "signature": task.signature().to_json(),
        "versions": versions(),
    }


def _stretch(
    asked: RecordingRequest, begun: RecordingPosition, problems: list[str]
) -> Iterator[tuple[list[Episode], RecordingPosition]]:
    """The rounds of a stretch: episodes in the order of their commands, up to what is asked for,
    and the place that they lead to."""
    seed = derived_seed(asked.seed, "record environments", begun.stretch)
    rows = asked.rows if asked.episodes is None else min(asked.rows, asked.episodes)
    env = asked.task.make(rows, seed, asked.backend)
    policy = asked.policy if isinstance(asked.policy, Policy) else asked.policy(env)
    place, barren = begun, 0
    try:
        while place.stretch == begun.stretch and not _enough(asked, place.episodes, place.steps):
            wanted = (
                asked.rows
                if asked.episodes is None
                else min(asked.rows, asked.episodes - place.episodes)
            )
            origin = EpisodeOrigin(
                place.round,
                0,
                asked.task.name,
                asked.version,
                asked.source,
                seed,
                asked.task.max_return,
            )
            played = rollout(
                policy,
                env,
                constant(asked.command or {}, wanted),
                wanted,
                rng(asked.seed, "record", place.round),
                origin,
            )
            problems += played.problems
            barren = 0 if played.episodes else barren + 1
            if barren == BARREN_ROUNDS:
                raise NoWholeEpisode(
                    f"no episode of {asked.task.name} could be played to its end in {BARREN_ROUNDS}"
                    f" rounds: {played.problems[0]}"
                )
            kept: list[Episode] = []
            count, steps = place.episodes, place.steps
            for episode in played.episodes:
                if _enough(asked, count, steps):
                    break
                kept.append(episode)
                count, steps = count + 1, steps + episode.length
            over = steps - begun.steps >= STRETCH_STEPS
            successes = place.successes
            if played.successes is not None:
                successes = (successes or 0) + sum(played.successes[: len(kept)])
            place = RecordingPosition(
                place.recording, place.stretch + over, place.round + 1, count, steps, successes
            )
            yield kept, place
    finally:
        env.close()


def _enough(asked: RecordingRequest, count: int, steps: int) -> bool:
    return (asked.episodes is not None and count >= asked.episodes) or (
        asked.steps is not None and steps >= asked.steps
    )
