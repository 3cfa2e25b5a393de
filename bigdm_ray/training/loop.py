"""THE LOOP: episodes flow one way round the ring. Read this page first.

    warm-up episodes, played at random
    repeat until the budget is spent, of several tasks in turn
        the learner takes the steps it owes
        commands are asked for, from the best living episodes
        episodes are played to their end and stored
        when due: evaluate, report, save

`loop` is the whole of a lock-step run. Who does the verbs is an Executor: `LocalExecutor` in this
process, or actors of Ray (`distributed/executor.py`), with the same results bit for bit. `Session`
is the bookkeeping that both this loop and the asynchronous one of `distributed/loop.py` share:
counters, what is due, reports, the best weights, the summary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bigdm_ray import stopping
from bigdm_ray.algorithms.base import Columns
from bigdm_ray.errors import RunFailed
from bigdm_ray.progress import say
from bigdm_ray.replay.episode import Episode
from bigdm_ray.replay.mixture import Mixture
from bigdm_ray.replay.store import Receipt, ShardRef, Table
from bigdm_ray.settings import to_json
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint, Counters, TaskCounters
from bigdm_ray.training.config import Run
from bigdm_ray.training.cpu import cpu_seconds
from bigdm_ray.training.evaluation import Evaluator, Score, Scores, mean_normalized_score, merit
from bigdm_ray.training.learner import Learner, LearnerProgress
from bigdm_ray.training.metrics import (
    TOKENS,
    CurrentActivity,
    JsonLines,
    Listener,
    Report,
    RunningMeans,
    by_task,
)
from bigdm_ray.training.outside import Outside, Parcel, check_outside
from bigdm_ray.training.params import Commands, Weights, commands_of_task, flatten_commands
from bigdm_ray.training.rollout import RolloutResult
from bigdm_ray.training.rollout_worker import RolloutWorker
from bigdm_ray.training.run_folder import (
    RunFolder,
    load_score,
    milestone,
    save_weights,
    summary_of,
    versions,
)
from bigdm_ray.training.start import (
    count_stored,
    dataset_stores,
    drop_later,
    last_whole_checkpoint,
    take_over,
)
from bigdm_ray.training.stores import Stores, store_places
from bigdm_ray.training.streams import rng
from bigdm_ray.training.trackers import writers

FEWEST = 3
"""Evaluations before the final one that a run has, however short its budget, unless its flags say
how often."""
WAIT_S = 0.5
"""Seconds that a run which plays nothing waits for episodes, before it looks at its clock."""
BARREN_ROUNDS = 3
"""Rounds of a task in a row without one sound episode after which it is given up, and with its last
task a run."""


@dataclass(frozen=True)
class RoundResult:
    """What playing and storing a round came to."""

    added: Table
    version: tuple[int, int]  # of the weights that played
    env_steps: int
    discarded: int
    problems: list[str]
    busy_s: float  # seconds spent playing, all actors together
    task: str = ""  # which of several
    cpu_s: float = 0.0  # CPU seconds of them


class SessionBackend(Protocol):
    """What Session scores, saves and finishes with: whoever holds the network and the episodes."""

    def tables(self) -> dict[str, Table]:
        """The living episodes by task."""

    def weights(self) -> Weights:
        """The network as it is now."""

    def score(
        self,
        weights: Weights,
        commands: Commands,
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Scores:
        """Evaluate weights in the tasks that `commands` are given for, `episodes` of each.

        `on_end` hears of how many episodes have ended since it last did.
        """

    def save(self, write: Callable[[int, dict[str, np.ndarray], list[ShardRef]], Any]) -> None:
        """Compact the store, hand (learner step, learner state, shards) to `write`, then unlink
        what no checkpoint names."""

    def close(self) -> None:
        """Let go of everything."""


class Executor(SessionBackend, Protocol):
    """Who does the verbs of the loop, too."""

    def play(
        self, task: str, round: int, saves: int, commands: Columns, count: int, random: bool
    ) -> RoundResult:
        """Play a round of a task in all groups and store it; returns once it is acknowledged.

        It may be called where signals are held: they are raised while it plays, not while it
        stores.
        """

    def store(self, task: str, episodes: list[Episode]) -> Receipt:
        """Store episodes of a task that others have played; returns once they are acknowledged."""

    def learn(self, steps: int) -> LearnerProgress:
        """Take learner steps on the stored episodes."""


def loop(session: Session, executor: Executor) -> None:
    """Train in lock-step until the budget is spent.

    A signal to stop before the first checkpoint has it save where it stands; a run that takes
    episodes of others, which repeats nothing, at any time.
    """
    session.begin()
    try:
        take_turns(session, executor)
    except KeyboardInterrupt:
        counters = session.counters
        if session.outside is not None:
            here = counters.episodes > 0
        else:
            here = counters.round > 0 and not counters.saves
        if stopping.is_stop_asked() and here:
            session.save_between(executor)
        raise


def take_turns(session: Session, executor: Executor) -> None:
    """The loop itself.

    Where a signal ends it, what was played is counted, and learner steps are whole.
    """
    run, counters = session.run, session.counters
    own = run.rollouts.own
    while own and counters.round < len(run.tasks) and (count := run.online_algorithm.warm_up()):
        task = run.tasks[counters.round].name
        doing = f"warm-up{session.of(task)}: random episode"
        with session.now.busy(doing, count), stopping.hold_signals():
            session.note_round(executor.play(task, counters.round, 0, {}, count, random=True))
    while not session.is_spent():
        with stopping.hold_signals():
            session.learn(executor, session.owed(executor.tables()))
        if session.is_spent():
            break
        if session.outside is not None:
            receive(session, executor, session.outside, 0.0 if own else WAIT_S)
        if not own:
            attend(session, executor)
            continue
        count, task = run.online_algorithm.per_iteration(), session.turn(counters.round)
        table = executor.tables()[task]
        commands = session.ask(task, table, counters.round, count)
        with session.now.busy(f"playing{session.of(task)} episode", count), stopping.hold_signals():
            session.note_round(
                executor.play(
                    task,
                    counters.round,
                    counters.saves,
                    commands,
                    count,
                    random=not counters.learner_step or not len(table),
                )
            )
        attend(session, executor)
    with stopping.hold_signals():
        session.learn(executor, session.owed(executor.tables()))


def receive(session: Session, executor: Executor, outside: Outside, wait_s: float) -> None:
    """Tell others how the run stands; store, count and acknowledge the episodes that they sent.

    Where there are none, they are waited for so many seconds.
    """
    told = outside.told
    if told is None or told.weights.version[1] != session.counters.learner_step:
        outside.publish(executor.weights(), executor.tables())
    else:
        outside.publish(told.weights, executor.tables())
    parcels = outside.take(wait_s)
    fresh = session.pick_uncounted(parcels)
    with stopping.hold_signals():
        for task in dict.fromkeys(parcel.task for parcel in fresh):
            episodes = [parcel.episode for parcel in fresh if parcel.task == task]
            session.note_arrivals(task, executor.store(task, episodes).added, episodes)
        outside.acknowledge(parcels)


def study(session: Session, executor: Executor) -> None:
    """Train on a dataset: the same loop, with nothing to play and all steps owed at once.

    A signal to stop has it save where it stands: a resume from there comes to the same bit for bit.
    """
    session.begin()
    try:
        if session.cut_short:
            attend(session, executor)
        while not session.is_spent():
            with stopping.hold_signals():
                session.learn(executor, session.stride())
            attend(session, executor)
    except KeyboardInterrupt:
        if stopping.is_stop_asked():
            session.save_between(executor)
        raise


def attend(session: Session, executor: Executor) -> None:
    """Evaluate, save and report where it is due."""
    session.evaluate_if_due(executor)
    with stopping.hold_signals():
        if session.save_due():
            session.save(executor)
        elif session.report_due():
            session.report()


def commands_for(
    run: Run, task: str, table: Table, chance: np.random.Generator, count: int
) -> Columns:
    """Commands of so many new episodes of a task, capped at what it can pay; none without any."""
    if not len(table):
        return {}
    commands = run.online_algorithm.ask(table, chance, count)
    most = run.use(task).task.max_return
    if most is not None and "desired_return" in commands:
        commands["desired_return"] = np.minimum(commands["desired_return"], np.float32(most))
    return commands


class Session:
    """The bookkeeping of a run: counters, what is due, reports, best weights, summary."""

    apart = False
    """Whether others than this process play, learn and score, and tell what it costs them."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        listeners: list[Listener],
        resumed: Checkpoint | None,
        exact: bool,
        outside: Outside | None = None,
    ) -> None:
        """`outside` is where others send episodes to, in a run that is served."""
        self.run = run
        self.outside = outside
        self.tasks = {use.name: use.task for use in run.tasks}
        self.folder = folder
        self.counters = resumed.counters if resumed else Counters()
        if run.several and not self.counters.tasks:
            self.counters.tasks = {use.name: TaskCounters() for use in run.tasks}
        self.cut_short = bool(resumed and resumed.means)
        """Whether its checkpoint was written between two reports: what was due may be so still."""
        # what was played has left no regular checkpoint, whose environments would begin anew too
        unsaved = not run.offline and not self.counters.saves and self.counters.env_steps > 0
        if resumed and (not exact or unsaved):
            self.counters.incarnation += 1  # environments that are made here are others than before
        # a lock-step run comes to them again; this one may have kept better weights since its
        # checkpoint
        if not exact:
            self.counters.best_return = max(
                (
                    m
                    for m in (self.counters.best_return, load_score(folder.weights("best")))
                    if m is not None
                ),
                default=None,
            )
        self.lines = JsonLines(folder.metrics, resumed.metrics_offset if resumed else 0)
        self._listeners: list[Listener] = [self.lines, *listeners]
        self.now = CurrentActivity()
        self.show_counters()
        for listener in listeners:
            if callable(watch := getattr(listener, "watch", None)):
                watch(self.now)
        self._means = RunningMeans(resumed.means if resumed and exact else None)
        self._began = time.monotonic()
        self._before = self.counters.wall_s
        self._cpu = cpu_seconds() - self.counters.cpu_s
        self._mark = (time.monotonic(), self.counters.env_steps, self.counters.learner_step)
        self.problems: list[str] = []
        self.deaths: dict[str, dict[str, int]] = {}
        self._losses: Report = {}
        self._went_on_at = self._place() if resumed else None
        self._stopped = False

    def begin(self) -> None:
        """Everybody is in place: the clock of `--budget.minutes` starts."""
        self.folder.begun = True
        self.now.doing = ""
        self._began = time.monotonic()
        self._mark = (self._began, self.counters.env_steps, self.counters.learner_step)
        for listener in self._listeners:
            if callable(begin := getattr(listener, "begin", None)):
                begin()

    # --- what the loop asks

    def is_spent(self) -> bool:
        """Whether the budget is used up, or a listener has stopped the run."""
        return self._stopped or self.share() >= 1

    def of(self, task: str) -> str:
        """Which task, in words that stand behind others; nothing where there is one."""
        return f" {task}," if self.run.several else ""

    def turn(self, round: int) -> str:
        """The task of a round: they take turns, but for those that are given up."""
        names = list(self.tasks)
        first = round % len(names)
        ordered = [*names[first:], *names[:first]]
        return next((name for name in ordered if not self._given_up(name)), ordered[0])

    def _given_up(self, task: str) -> bool:
        counters = self.counters
        barren = counters.tasks[task].barren if counters.tasks else counters.barren
        return barren >= BARREN_ROUNDS

    def owed(self, tables: Mapping[str, Table]) -> int:
        """Learner steps that are owed now and that the budget allows: each task owes what it would
        owe alone."""
        played = {task: self.counters.tasks.get(task, self.counters) for task in tables}
        tasks = [task for task, table in tables.items() if len(table)]
        if not tasks:
            return 0
        owed = (
            sum(
                self.run.online_algorithm.owed(played[task].env_steps, played[task].episodes)
                for task in tasks
            )
            + self.counters.began_at
            - self.counters.learner_step
        )
        limit = self.run.budget.learner_steps
        return max(
            0,
            owed
            if limit is None
            else min(owed, limit + self.counters.began_at - self.counters.learner_step),
        )

    @property
    def clock(self) -> int:
        """What evaluations, saves and reports are counted in: environment steps, or learner steps
        on a dataset."""
        return self.counters.learner_step if self.run.offline else self.counters.env_steps

    def stride(self, most: int = 100) -> int:
        """Steps of the clock until something is due; at most `most`, so that a budget of minutes is
        kept."""
        run, now = self.run, self.clock
        ends = [
            (now // every + 1) * every
            for every in (run.evaluations.every, run.saves.every, run.saves.report_every)
        ]
        return max(1, min(*ends, run.total, now + most) - now)

    def ask(self, task: str, table: Table, round: int, count: int) -> Columns:
        """The commands of a round of a task, capped at what it can pay."""
        return commands_for(self.run, task, table, rng(self.run.seed, "ask", round), count)

    def commands(self, tables: Mapping[str, Table]) -> dict[str, dict[str, float]]:
        """What the policy is scored with, of several tasks for those that can be: they have
        episodes and are not given up."""
        return {
            task: self.run.algorithm.evaluation_command(table)
            for task, table in tables.items()
            if not self.run.several or (len(table) and not self._given_up(task))
        }

    @property
    def plays(self) -> bool:
        """Whether there is an environment to score in."""
        return all(task.plays for task in self.tasks.values())

    def evaluation_due(self) -> bool:
        """Whether an evaluation's step count has been passed.

        Where that was not typed, a budget of any kind that is shorter has FEWEST of them too.
        """
        if not self.plays or not self.counters.learner_step:
            return False
        due = self.clock // self.run.evaluations.every
        if "evaluations.every" not in (self.run.typed or ()):
            due = max(due, min(FEWEST, int(self.share() * (FEWEST + 1))))
        return due > self.counters.evaluations

    def share(self) -> float:
        """The share of the budget that is spent: of the one that is nearest to its end."""
        budget, counters = self.run.budget, self.counters
        shares = [self.clock / self.run.total]
        if budget.learner_steps is not None:
            shares.append((counters.learner_step - counters.began_at) / budget.learner_steps)
        if budget.minutes is not None:
            shares.append((time.monotonic() - self._began) / (60 * budget.minutes))
        return max(shares)

    def report_due(self) -> bool:
        """Whether a report's step count has been passed."""
        return self.clock // self.run.saves.report_every > self.counters.reports

    def save_due(self) -> bool:
        """Whether a checkpoint's step count has been passed."""
        return self.clock // self.run.saves.every > self.counters.saves

    def _place(self) -> tuple[int, int, int, int]:
        counters = self.counters
        return counters.env_steps, counters.round, counters.learner_step, counters.saves

    def _ended(self) -> bool:
        """Whether this goes on from the checkpoint of the run's end, and nothing has come since.

        What is due is saved as soon as the clock has passed it, so that one more is the end's.
        """
        ahead = self.counters.saves > self.clock // self.run.saves.every
        return ahead and self._went_on_at == self._place()

    def learn(self, executor: Executor, steps: int) -> None:
        """Have the executor take learner steps, and note them."""
        with self.now.busy("learner step", steps):
            self.note_progress(executor.learn(steps))

    def evaluate_if_due(self, executor: SessionBackend) -> None:
        """Have the executor score the weights, where that is due."""
        if not self.evaluation_due():
            return
        weights, episodes = executor.weights(), self.run.evaluations.episodes
        commands = self.commands(executor.tables())
        number = self.counters.evaluations
        with self.now.busy("evaluation: episode", episodes * len(commands)):
            scores = executor.score(
                weights, commands, episodes, "validation", number, self.now.advance
            )
        with stopping.hold_signals():
            self.note_evaluation(scores, weights)

    def show_counters(self) -> None:
        """Show the counters to those who look between two reports."""
        now, counters = self.now, self.counters
        now.env_steps, now.episodes = counters.env_steps, counters.episodes
        now.learner_steps = counters.learner_step

    # --- what the loop tells

    def note_round(self, round: RoundResult) -> None:
        """Count a round. Raises RunFailed where rounds bring no sound episode any more."""
        counters = self.counters
        counters.round += 1
        counters.env_steps += round.env_steps
        counters.episodes += len(round.added)
        counters.discarded += round.discarded
        counters.barren = 0 if len(round.added) else counters.barren + 1
        counters.play_s += round.busy_s
        self._spend(round.cpu_s)
        self.problems = (self.problems + round.problems)[-100:]
        own = counters.tasks.get(round.task)
        (own or counters).arrive(round.added.serials.tolist())
        if own is not None:
            own.env_steps += round.env_steps
            own.episodes += len(round.added)
            own.barren = 0 if len(round.added) else own.barren + 1
        task = round.task if own is not None else self.run.title
        if (own or counters).barren >= BARREN_ROUNDS:
            why = (
                f"the environments of {task} brought no whole episode in {BARREN_ROUNDS} rounds;"
                f" the last: {round.problems[-1] if round.problems else 'nothing was played'}"
            )
            if all(map(self._given_up, self.tasks)):
                raise RunFailed(why)
            if own is not None and own.barren == BARREN_ROUNDS:
                self.note([f"{task} is played no more: {why}"])
        if len(round.added):
            staleness = (
                counters.learner_step - round.version[1]
                if round.version[0] == counters.incarnation
                else 0
            )
            mean, behind = float(round.added.returns.mean()), float(max(0, staleness))
            means = {
                "play/return_mean": mean,
                "play/length_mean": float(round.added.lengths.mean()),
                "play/staleness": behind,
            }
            if own is not None:
                means = {f"{task}/{name}": value for name, value in means.items()}
                means["play/staleness"] = behind
            self._means.add(means, len(round.added))
            self.now.played = mean if own is None else None
            self.now.staleness = int(behind)
        self.show_counters()

    def pick_uncounted(self, parcels: list[Parcel]) -> list[Parcel]:
        """Those whose episodes have not come before, each once."""
        found = {one.episode.id: one for one in parcels}
        return [one for id, one in found.items() if not self.counters.is_counted(id)]

    def note_arrivals(self, task: str, added: Table, episodes: list[Episode]) -> None:
        """Count episodes of others that are stored: they owe learner steps as one's own do."""
        counters, own = self.counters, self.counters.tasks.get(task)
        counters.env_steps += int(added.lengths.sum())
        counters.episodes += len(added)
        if own is not None:
            own.env_steps += int(added.lengths.sum())
            own.episodes += len(added)
        (own or counters).arrive(added.serials.tolist())
        counters.count_outside(episode.id for episode in episodes)
        behind = [
            max(0, counters.learner_step - episode.version[1])
            for episode in episodes
            if episode.version[0] == counters.incarnation
        ]
        prefix = f"{task}/" if self.run.several else ""
        means = {
            f"{prefix}outside/return_mean": float(added.returns.mean()),
            f"{prefix}outside/length_mean": float(added.lengths.mean()),
            "outside/staleness": float(np.mean(behind or [0])),
        }
        self._means.add(means, len(added))
        self.show_counters()

    def note_progress(self, progress: LearnerProgress) -> None:
        """Note where the learner stands.

        Answers of calls in flight may come in any order; only `roll_back` takes steps back.
        """
        self.counters.learner_step = max(self.counters.learner_step, progress.step)
        self.counters.learn_s += progress.busy_s
        self.counters.learn_cpu_s += progress.cpu_s
        self._spend(progress.cpu_s)
        self.counters.learned += progress.steps
        if progress.steps:
            self._means.add(progress.metrics, progress.steps)
        self.show_counters()

    def _spend(self, cpu_s: float) -> None:
        """Count CPU seconds of others."""
        if self.apart:
            self._cpu -= cpu_s

    def _note_times(self) -> None:
        """Wall and CPU time, those of earlier parts of the run among them."""
        self.counters.wall_s = self._before + time.monotonic() - self._began
        self.counters.cpu_s = cpu_seconds() - self._cpu

    def note(self, problems: list[str]) -> None:
        """Tell of what is wrong and does not end the run: at once on standard error, and in the
        summary."""
        for problem in problems:
            say(f"note: {problem}")
        self.problems = (self.problems + problems)[-100:]

    def note_death(self, kind: str, cause: str) -> None:
        """Tell of a process, a machine or a payload that is lost and will be replaced."""
        causes = self.deaths.setdefault(kind, {})
        causes[cause] = causes.get(cause, 0) + 1
        say(f"note: lost: {kind} ({cause}); the run goes on")

    def roll_back(self, step: int, incarnation: int) -> None:
        """The learners went back to a checkpoint: the steps since then are owed again."""
        self.counters.learner_step = step
        self.counters.incarnation = incarnation

    def note_evaluation(self, scores: Scores, weights: Weights, at: int | None = None) -> None:
        """Report validation scores; keep the best weights."""
        counters = self.counters
        self._spend(sum(score.cpu_s for score in scores.values()))
        counters.evaluations = max(
            counters.evaluations + 1, self.clock // self.run.evaluations.every
        )
        self._missing(scores)
        report: Report = {
            "time/env_steps": float(counters.env_steps if at is None else at),
            "time/learner_steps": float(weights.version[1]),
        }
        for task, score in scores.items():
            name = f"{task}/evaluation" if self.run.several else "evaluation"
            summary = score.summary(self.tasks[task]) if len(score.returns) else {}
            told = {k: float(v) for k, v in summary.items() if v is not None}
            told |= score.latency() | score.command
            report |= {f"{name}/{k}": v for k, v in told.items()}
        if self.run.several and (over_all := mean_normalized_score(scores, self.tasks)) is not None:
            report["evaluation/normalized_score"] = over_all
        self._tell(report)
        mean = merit(scores, self.tasks)
        if mean is not None and (counters.best_return is None or mean > counters.best_return):
            counters.best_return = mean
            save_weights(self.folder, "best", weights, self._as_one(scores), mean)

    def _as_one(self, scores: Scores) -> dict[str, float]:
        """The commands of some scores, as a file keeps them."""
        return flatten_commands(
            {task: score.command for task, score in scores.items()}, self.run.several
        )

    def report(self, extra: Report | None = None) -> None:
        """Tell the listeners the means since the last report."""
        counters = self.counters
        counters.reports = self.clock // self.run.saves.report_every
        now = time.monotonic()
        self._note_times()
        since, steps, learned = self._mark
        elapsed = max(now - since, 1e-9)
        self._mark = (now, counters.env_steps, counters.learner_step)
        report: Report = {
            "time/env_steps": float(counters.env_steps),
            "time/learner_steps": float(counters.learner_step),
            "time/episodes": float(counters.episodes),
            "time/discarded": float(counters.discarded),
            "time/wall_s": counters.wall_s,
            "time/env_steps_per_s": (counters.env_steps - steps) / elapsed,
            "time/learner_steps_per_s": (counters.learner_step - learned) / elapsed,
        }
        means = by_task(self._means.take())
        if TOKENS in means:
            report["time/tokens_per_s"] = means[TOKENS] * report["time/learner_steps_per_s"]
        losses = {name: value for name, value in means.items() if name.startswith("train/")}
        self._losses = losses or self._losses
        self._tell(report | means | (extra or {}))

    def _tell(self, report: Report) -> None:
        """Tell every listener. One that answers True stops the run, as if its budget ended now."""
        for listener in self._listeners:
            answer = listener(report)
            self._stopped |= isinstance(answer, bool | np.bool_) and bool(answer)

    def save(self, executor: SessionBackend) -> tuple[Weights, Commands]:
        """Report, then write a checkpoint, and the same weights with their commands; these two.

        Of a run whose end is saved already the weights alone are written.
        """
        counters, ended = self.counters, self._ended()
        if not ended:
            counters.saves = max(counters.saves + 1, self.clock // self.run.saves.every)
            self.report()

        weights, commands = self._write(executor, new=not ended)
        if self.run.saves.milestones:
            command = flatten_commands(commands, self.run.several)
            save_weights(self.folder, milestone(self.clock), weights, command, None)
        return weights, commands

    def save_between(self, executor: SessionBackend) -> None:
        """Write a checkpoint as if nothing had been: no report, and in place of the last one."""
        self._note_times()
        self._write(executor, new=True)

    def _write(self, executor: SessionBackend, new: bool) -> tuple[Weights, Commands]:
        """Write a checkpoint if it is `new`, and the same weights with their commands; these
        two."""
        counters, saved = self.counters, list[Weights]()

        def write(step: int, learner: dict[str, np.ndarray], shards: list[ShardRef]) -> None:
            counters.learner_step = step
            arrays = {name[6:]: v for name, v in learner.items() if name.startswith("model/")}
            saved.append(Weights((counters.incarnation, step), arrays))
            if not new:
                checkpoint.drop_old(self.folder.checkpoints)
                return
            checkpoint.write(
                self.folder.checkpoints,
                counters,
                shards,
                self.lines.offset,
                learner,
                self._living(executor),
                self.run.identity,
                self._means.state(),
            )

        with self.now.busy("saving"):
            executor.save(write)
        filled = {task: table for task, table in executor.tables().items() if len(table)}
        commands = self.commands(filled) if filled else {task: {} for task in self.tasks}
        save_weights(
            self.folder, "last", saved[0], flatten_commands(commands, self.run.several), None
        )
        return saved[0], commands

    def _living(self, executor: SessionBackend) -> dict[str, np.ndarray]:
        """The ids of the living episodes that were played, by the folder of their store."""
        tables, stop = executor.tables(), 0 if self.run.offline else None
        return {place: tables[task].ids[:stop] for task, place in store_places(self.run).items()}

    def finish(self, executor: SessionBackend) -> dict[str, Any]:
        """Save, score the last and the best weights on fresh seeds, and write the summary.

        Raises RunFailed without episodes.

        Where there is no environment the losses stand in place of scores.
        """
        if not self.counters.episodes and not self.run.offline:
            raise RunFailed(
                "the budget was spent before a single episode was stored; give --budget.minutes or"
                " --budget.env-steps more"
            )
        stopped = self._stopped and not self.share() >= 1
        weights, commands = self.save(executor)
        if self.plays:
            scores = self._scores(executor, weights, commands)
        else:
            before = summary_of(self.folder.path).get("losses", {})
            scores = {"losses": self._losses or before}
        counters = self.counters
        self._note_times()
        summary = {
            "algorithm": self.run.algorithm.name,
            "task": self.run.title,
            "preset": self.run.preset,
            "seed": self.run.seed,
            "env_steps": counters.env_steps,
            "learner_steps": counters.learner_step,
            "episodes": counters.episodes,
            "episodes_discarded": counters.discarded,
            **scores,
            **(
                {"datasets": {use.name: to_json(use.dataset) for use in self.run.tasks}}
                if self.run.several
                else {"dataset": to_json(self.run.dataset)}
            ),
            "start": to_json(self.run.start),
            "command": flatten_commands(commands, self.run.several),
            "mode": self.run.evaluations.mode,
            "wall_s": counters.wall_s,
            "cpu_s": counters.cpu_s,
            "learn_cpu_s": counters.learn_cpu_s,
            "rollout_env_steps_per_s": counters.env_steps / max(counters.play_s, 1e-9),
            "learner_steps_per_s": counters.learned / max(counters.learn_s, 1e-9),
            "incarnation": counters.incarnation,
            "stopped": stopped,
            "problems": self.problems,
            "deaths": self.deaths,
            "versions": versions(),
        }
        self.folder.write_summary(summary)
        self.now.doing = "ending environments and actors"
        return summary

    def _scores(
        self, executor: SessionBackend, weights: Weights, commands: Commands
    ) -> dict[str, Any]:
        """What the summary says of the last weights, and of the best."""
        last = self._final(executor, weights, commands, 0)
        best_scores, best_commands = last, commands
        best_path = self.folder.weights("best")
        if best_path.is_file():
            best = Weights.load(best_path)
            if best.version != weights.version:
                best_commands = self._commands(best, commands)
                best_scores = self._final(executor, best, best_commands, 1)
        else:
            score = merit(last, self.tasks)
            save_weights(
                self.folder, "best", weights, flatten_commands(commands, self.run.several), score
            )
        told = {
            task: self._told(task, score, best_scores.get(task), best_commands.get(task, {}))
            for task, score in last.items()
        }
        if not self.run.several:
            return told[self.run.task]
        return {
            "tasks": told,
            "normalized_score": mean_normalized_score(last, self.tasks),
            "best_normalized_score": mean_normalized_score(best_scores, self.tasks),
        }

    def _commands(self, best: Weights, commands: Commands) -> Commands:
        """What the best weights were scored with; the last ones' commands where that is not
        known."""
        if best.command is None:
            return commands
        if not self.run.several:
            return {self.run.task: best.command}
        return {task: commands_of_task(best.command, task) or own for task, own in commands.items()}

    def _told(
        self, task: str, last: Score, best: Score | None, best_command: dict[str, float]
    ) -> dict[str, Any]:
        """What the summary says of a task."""
        if not len(last.returns) or best is None or not len(best.returns):
            return {"problems": last.problems + (best.problems if best is not None else [])}
        best_mean = float(best.returns.mean())
        return {
            **last.summary(self.tasks[task]),
            **last.latency(),
            "best_return_mean": best_mean,
            "best_command": best_command,
            "best_normalized_score": self.tasks[task].normalized_score(best_mean),
        }

    def _final(
        self, executor: SessionBackend, weights: Weights, commands: Commands, round: int
    ) -> Scores:
        """Scores on fresh seeds."""
        episodes = self.run.evaluations.final_episodes
        which = "the last weights" if round == 0 else "the best weights"
        with self.now.busy(f"final evaluation of {which}: episode", episodes * len(commands)):
            scores = executor.score(weights, commands, episodes, "final", round, self.now.advance)
        self._spend(sum(score.cpu_s for score in scores.values()))
        self._missing(scores)
        return scores

    def _missing(self, scores: Scores) -> None:
        """Tell of episodes that a score is not of: it may be better or worse for want of them."""
        for task, score in scores.items():
            if score.discarded:
                whole = len(score.returns) + score.discarded
                name = f"the score of {task}" if self.run.several else "a score"
                lacks = f"{name} lacks {score.discarded} of {whole} episodes"
                self.note([f"{lacks}: {score.problems[0]}"])

    def close(self) -> None:
        """Close the files of the listeners that have any."""
        for listener in self._listeners:
            if callable(close := getattr(listener, "close", None)):
                close()


class LocalExecutor:
    """Every verb in this process: no Ray."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        resumed: Checkpoint | None,
        now: CurrentActivity | None = None,
        exact: bool = True,
    ) -> None:
        """`exact`: a resume repeats what came after its checkpoint; else all that is stored
        counts."""
        torch.set_num_threads(run.machines.threads)
        self._run = run
        self._now = now or CurrentActivity()
        self._folder = folder
        flat = run.saves.flat_mib << 20
        self._played = None if run.offline else Stores(run, folder, flat)
        self._sources = dataset_stores(run) if self._played is None else self._played.by_task
        machines = run.machines
        self.learner = Learner(
            run.learned_algorithm,
            {use.name: use.task.signature() for use in run.tasks},
            run.seed,
            machines.device,
            compile=machines.compile,
            precision=machines.precision,
            mixture=Mixture({use.name: use.weight for use in run.tasks}),
        )
        if resumed and resumed.learner:
            self.learner.load(resumed.learner, resumed.counters.learner_step)
        if resumed and self._played is not None:
            outlived = checkpoint.outlived_shards(folder.checkpoints) if exact else ()
            self._played.open(leave=outlived)
            if exact:
                self._played.check_living(resumed)
        self._player = RolloutWorker(run)
        self._evaluator = Evaluator(run)
        self._incarnation = resumed.counters.incarnation if resumed else 0

    def play(
        self, task: str, round: int, saves: int, commands: Columns, count: int, random: bool
    ) -> RoundResult:
        """See Executor."""
        weights = None if random else self.weights()
        before = self._player.busy_s
        parts: list[RolloutResult] = []
        with stopping.release_signals():
            for group in range(self._run.groups):
                share = self._run.share(count, group)
                mine = {name: values[share] for name, values in commands.items()}
                if share.stop > share.start:
                    parts.append(
                        self._player.play(
                            task,
                            weights,
                            round,
                            group,
                            (saves, self._incarnation, 0),
                            mine,
                            share.stop - share.start,
                            self._now.advance,
                        )
                    )
        receipt = self._sources[task].add([e for part in parts for e in part.episodes])
        version = weights.version if weights else (self._incarnation, 0)
        busy_s = self._player.busy_s - before
        return gather_round(parts, receipt.added, version, busy_s, task)

    def store(self, task: str, episodes: list[Episode]) -> Receipt:
        """See Executor."""
        assert self._played is not None
        return self._played.by_task[task].add(episodes)

    def learn(self, steps: int) -> LearnerProgress:
        """See Executor."""
        drawn = {task: store for task, store in self._sources.items() if len(store.table)}
        enough = None if self._run.offline else stopping.is_stop_asked
        return self.learner.update(drawn, steps, self._now.advance, enough)

    def tables(self) -> dict[str, Table]:
        """See Executor."""
        return {task: store.table for task, store in self._sources.items()}

    def weights(self) -> Weights:
        """See Executor."""
        return self.learner.weights(self._incarnation)

    def score(
        self,
        weights: Weights,
        commands: Commands,
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Scores:
        """See Executor."""
        return self._evaluator.score(weights, commands, episodes, purpose, round, on_end)

    def save(self, write: Callable[[int, dict[str, np.ndarray], list[ShardRef]], Any]) -> None:
        """See Executor."""
        if self._played is None:
            write(self.learner.step, self.learner.state(), [])
            return
        names = self._played.name_shards(self._played.compact())
        write(self.learner.step, self.learner.state(), names)
        self._played.release(checkpoint.named_shards(self._folder.checkpoints))

    def close(self) -> None:
        """See Executor."""
        self._player.close()
        self._evaluator.close()


def gather_round(
    parts: list[RolloutResult], added: Table, version: tuple[int, int], busy_s: float, task: str
) -> RoundResult:
    """The parts that groups played as one round."""
    problems = [problem for part in parts for problem in part.problems]
    return RoundResult(
        added,
        version,
        sum(p.env_steps for p in parts),
        sum(p.discarded for p in parts),
        problems,
        busy_s,
        task,
    )


def train_local(
    run: Run,
    folder: Path,
    resume: bool = False,
    listeners: list[Listener] | None = None,
    outside: Outside | None = None,
) -> dict[str, Any]:
    """Train in this process; the summary.

    With `outside` it takes episodes of others, and is resumed as asynchronous runs are. Raises
    UserError, and RunFailed with everything stored so far kept.
    """
    exact = outside is None
    check_outside(run, served=not exact)
    with RunFolder(folder).hold(run, resume, exact) as home, contextlib.ExitStack() as end:
        take_over(run, home)
        resumed, damage = None, list[str]()
        if resume or run.start:
            resumed, damage = (last_whole_checkpoint if exact else count_stored)(run, home)
        if exact:
            drop_later(run, home)
        everyone = [*writers(run, folder), *(listeners or [])]
        session = Session(run, home, everyone, resumed, exact, outside)
        end.callback(session.close)
        session.note(damage)
        with session.now.busy("making network, optimizers and environments"):
            executor = LocalExecutor(run, home, resumed, session.now, exact)
        end.callback(executor.close)
        (study if run.offline else loop)(session, executor)
        if outside is not None:
            outside.close()
        return session.finish(executor) | {"folder": str(folder)}
