"""Demonstrations: episodes of experts as datasets, the poor ones left out.

All episodes of a task are played first, in parts of PART that follow from the seed alone, into the
hidden folder `.NAME.played`; whoever plays a part, and in which order, does not show. Then those
that are good enough become the dataset NAME. A recording that was interrupted goes on: parts that
are whole stay, the one that was being played goes on where it last saved (`training/recording.py`).

Good enough is, as for Gato (Reed et al. 2022, section 3.1), a return of at least 80 % of the
expert's: of a program the mean of its episodes, of what was trained the best mean of W episodes in
a row, W = min(1000, 0.1 N). Returns may be negative, so the share is taken of the way from a random
policy's return up: random + 0.8 (expert - random). Where the expert is hardly above the random
policy there is no such way, and all episodes stay. Both returns stand in the dataset's card.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.envs.task import Task, find_task
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.experts.base import Expert, find_expert
from bigdm_ray.formats.dataset import CARD, Dataset
from bigdm_ray.formats.writer import Writer, keep_on_interruption
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.shard import publish, write_failure
from bigdm_ray.training.evaluation import constant, gap_problem
from bigdm_ray.training.recording import (
    ROWS,
    RecordingPosition,
    RecordingRequest,
    record,
    versions_of_recording,
)
from bigdm_ray.training.rollout import EpisodeOrigin, RandomPolicy, rollout
from bigdm_ray.training.streams import derived_seed, rng

PART = 256
"""Episodes of a part."""
SHARE = 0.8
"""The way from a random policy's return to the expert's that an episode must have come."""
LONGEST_WINDOW, WINDOW_SHARE = 1_000, 0.1
"""Episodes over which a trained expert's return is averaged: at most, and of all."""
RANDOM_EPISODES = 100
"""Episodes of the random policy."""
PLAN = "plan.json"


@dataclass(frozen=True)
class Wanted:
    """Whose episodes are recorded where: of a task's own expert, or of a run."""

    task: str
    episodes: int
    seed: int
    root: str
    run: str | None = None

    @property
    def folder(self) -> Path:
        """The dataset's folder: `ROOT/babyai-go-to-local`."""
        return Path(self.root) / find_task(self.task).full_name.replace("/", "-").replace(":", "-")

    @property
    def played_folder(self) -> Path:
        """Where its parts are."""
        return self.folder.with_name(f".{self.folder.name}.played")

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.episodes // PART)

    def find(self) -> tuple[Task, Expert]:
        """The task, and who does it. Raises UserError where nobody is known."""
        if self.run is None:
            task = find_task(self.task)
            return task, find_expert(task)
        from bigdm_ray.experts.trained import find_trained

        return find_trained(self.run)

    def said(self, expert: Expert) -> str:
        """What the card's source begins with."""
        return f"{self.episodes:,} episodes of the expert {expert.source}, seed {self.seed}"


@dataclass(frozen=True)
class Recorded:
    """A dataset of demonstrations, and how it came about."""

    dataset: Dataset
    expert: str
    played: int
    steps: int  # of all that was played
    random_return: float
    expert_return: float
    threshold: float
    no_gap: str | None  # why all episodes stay, where they do
    success_rate: float | None
    cpu_s: float

    def line(self) -> str:
        """All of it in one line."""
        kept, out = self.dataset.episodes, self.played - self.dataset.episodes
        words = [f"{self.dataset.task}: {kept:,} of {self.played:,} episodes of {self.expert} kept"]
        if self.no_gap is not None:
            words.append(f"no gap ({self.no_gap}), so none is left out")
        elif out:
            words.append(f"{out:,} below {self.threshold:,.4g} left out")
        words.append(f"{self.dataset.steps:,} steps")
        words.append(f"random {self.random_return:,.4g}, expert {self.expert_return:,.4g}")
        if self.success_rate is not None:
            words.append(f"success {100 * self.success_rate:.1f} %")
        words.append(f"{self.played / max(self.cpu_s, 1e-3):,.4g} episodes per CPU-second")
        return "; ".join(words)


def is_recorded(wanted: Wanted, expert: Expert) -> bool:
    """Whether the dataset is there already. Raises UserError where another one stands there."""
    folder = wanted.folder
    if not folder.exists():
        return False
    if (folder / CARD).is_file() and Dataset.open(folder).source.startswith(wanted.said(expert)):
        return True
    raise UserError(
        f"{folder} exists already and is not {wanted.said(expert)}; choose another --folder, or"
        " delete it first"
    )


def begin(wanted: Wanted, task: Task, expert: Expert) -> list[int]:
    """The parts that have yet to be played; parts of another plan are removed.

    Raises RunFailed where the disk does not take it.
    """
    plan = {
        "said": wanted.said(expert),
        "made_of": [*expert.made_of, expert.command, list(expert.version)],
        "signature": task.signature().to_json(),
        "versions": versions_of_recording(task, expert.backend),
    }
    plan = json.loads(json.dumps(plan))
    try:
        told = read_json(wanted.played_folder / PLAN)
    except (OSError, ValueError):
        told = None
    try:
        if told != plan:
            shutil.rmtree(wanted.played_folder, ignore_errors=True)
        wanted.played_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(wanted.played_folder, error) from None
    publish(wanted.played_folder / PLAN, json.dumps(plan).encode())
    return [number for number in range(wanted.parts) if not _told(wanted, number)]


def _part(wanted: Wanted, number: int) -> Path:
    return wanted.played_folder / f"part-{number:05d}"


def _told(wanted: Wanted, number: int) -> dict[str, Any] | None:
    """What was noted of a part that is whole; None where it is not."""
    try:
        told: dict[str, Any] = read_json(_part(wanted, number).with_suffix(".json"))
    except (OSError, ValueError):
        return None
    return told if (_part(wanted, number) / CARD).is_file() else None


def play_part(wanted: Wanted, number: int) -> list[str]:
    """Play a part, or go on with it; what was wrong with episodes that were discarded.

    Raises UserError and RunFailed, as `record`.
    """
    task, expert = wanted.find()
    folder, began = _part(wanted, number), time.process_time()
    ends: list[RecordingPosition] = []
    shutil.rmtree(folder, ignore_errors=True)  # one that nothing was noted of
    count = min(PART, wanted.episodes - number * PART)
    asked = RecordingRequest(
        expert.policy,
        task,
        expert.source,
        expert.version,
        expert.command,
        episodes=count,
        seed=derived_seed(wanted.seed, "demonstrations", number),
        rows=min(ROWS, count),
        made_of=expert.made_of,
        backend=expert.backend,
    )
    _, problems = record([asked], folder, expert.source, quiet=True, on_end=ends.append)
    position = ends[0]
    noted = {"successes": position.successes, "cpu_s": time.process_time() - began}
    publish(folder.with_suffix(".json"), json.dumps(noted).encode())
    return problems


def finish(wanted: Wanted) -> Recorded:
    """Make the dataset of what was played, and remove that.

    Raises RunFailed where the expert never succeeded: then nothing is kept.
    """
    task, expert = wanted.find()
    parts = [Dataset.open(_part(wanted, number)) for number in range(wanted.parts)]
    told = [_told(wanted, number) or {} for number in range(wanted.parts)]
    returns = np.concatenate([part.returns()[0] for part in parts])
    low = random_return(task, wanted.seed)
    high = expert_return(returns, expert.learned)
    rate = _success_rate(task, returns, [one.get("successes") for one in told])
    if rate == 0.0 or (rate is None and high <= low):
        shutil.rmtree(wanted.played_folder, ignore_errors=True)
        did = "never succeeded" if rate == 0.0 else "was no better than a random policy"
        raise RunFailed(
            f"{task.name}: its expert {expert.source} {did} in {len(returns):,} episodes (return"
            f" {high:,.4g}, random {low:,.4g}); nothing is kept"
        )
    no_gap = "the expert is below the random policy" if high <= low else gap_problem((low, high))
    threshold = -np.inf if no_gap else low + SHARE * (high - low)
    kept = int((returns >= threshold).sum())
    rest = f"{kept:,} of them with a return of at least {threshold:,.6g}"
    source = f"{wanted.said(expert)}; {rest if no_gap is None else f'no gap: {no_gap}'}"
    writer = Writer(wanted.folder, {"source": source}, task.name, task.signature())
    with keep_on_interruption(writer):
        good = (episode for episode in _stream(parts) if episode.total_return >= threshold)
        for episode in itertools.islice(good, sum(writer.taken), None):
            writer.add([episode])
        dataset = writer.finish(
            wanted.folder.name,
            source,
            versions_of_recording(task, expert.backend),
            (low, high) if low < high else None,
        )
    shutil.rmtree(wanted.played_folder, ignore_errors=True)
    return Recorded(
        dataset,
        expert.source,
        len(returns),
        sum(part.steps for part in parts),
        low,
        high,
        threshold,
        no_gap,
        rate,
        sum(float(one.get("cpu_s", 0.0)) for one in told),
    )


def _stream(parts: list[Dataset]) -> Iterator[Episode]:
    for part in parts:
        yield from part.stream()


def _success_rate(task: Task, returns: np.ndarray, successes: list[int | None]) -> float | None:
    """The share of episodes in which the task was done; None where nothing tells."""
    told = [one for one in successes if one is not None]
    if len(told) == len(successes):
        return sum(told) / len(returns)
    return None if task.success is None else float((returns > task.success).mean())


def random_return(task: Task, seed: int) -> float:
    """The mean return of uniformly random actions."""
    made_with = derived_seed(seed, "random returns", 0)
    env = task.make(ROWS, made_with)
    try:
        played = rollout(
            RandomPolicy(task.signature()),
            env,
            constant({}, RANDOM_EPISODES),
            RANDOM_EPISODES,
            rng(seed, "random returns", 0),
            EpisodeOrigin(0, 0, task.name, (0, 0), "random", made_with),
        )
    finally:
        env.close()
    if not played.episodes:
        raise RunFailed(f"no random episode of {task.name} could be played: {played.problems[0]}")
    return float(np.mean([episode.total_return for episode in played.episodes]))


def expert_return(returns: np.ndarray, learned: bool) -> float:
    """What an expert attains, of the returns `[N]` of its episodes in their order; see the
    module."""
    if not learned:
        return float(returns.mean())
    window = max(1, min(LONGEST_WINDOW, int(WINDOW_SHARE * len(returns))))
    sums = np.cumsum(np.concatenate([[0.0], returns]))
    return float((sums[window:] - sums[:-window]).max() / window)
