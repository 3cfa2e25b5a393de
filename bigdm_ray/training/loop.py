"""THE LOOP: episodes flow one way round the ring. Read this page first.

    warm-up episodes, played at random
    repeat until the budget is spent
        the learner takes the steps it owes
        commands are asked for, from the best living episodes
        episodes are played to their end and stored
        when due: evaluate, report, save

`loop` is the whole of a lock-step run. Who does the verbs is a Crew: `LocalCrew` in this process, or actors of Ray
(`distributed/crew.py`), with the same results bit for bit. `Session` is the bookkeeping that both this loop and the
asynchronous one of `distributed/loop.py` share: counters, what is due, reports, the best weights, the summary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bigdm_ray import stopping
from bigdm_ray.algorithms.base import Columns
from bigdm_ray.errors import RunFailed
from bigdm_ray.progress import say
from bigdm_ray.replay.store import ShardRef, Store, Table
from bigdm_ray.settings import to_json
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint, Counters
from bigdm_ray.training.config import Run, task_for
from bigdm_ray.training.evaluation import Evaluator, Score
from bigdm_ray.training.learner import Learner, Progress
from bigdm_ray.training.metrics import JsonLines, Listener, Means, Now, Report
from bigdm_ray.training.params import Weights
from bigdm_ray.training.player import Player
from bigdm_ray.training.rollout import Played
from bigdm_ray.training.run_folder import (
    RunFolder,
    load_score,
    milestone,
    save_weights,
    summary_of,
    versions,
)
from bigdm_ray.training.start import check_living, dataset_store, drop_later, take_over, whole
from bigdm_ray.training.streams import rng
from bigdm_ray.training.trackers import writers

FEWEST = 3
"""Evaluations before the final one that a run has, however short its budget, unless its flags say how often."""
BARREN_ROUNDS = 3
"""Rounds in a row without one sound episode after which a run ends."""


@dataclass(frozen=True)
class Round:
    """What playing and storing a round came to."""

    added: Table
    version: tuple[int, int]  # of the weights that played
    env_steps: int
    discarded: int
    problems: list[str]
    busy_s: float  # seconds spent playing, all actors together


class Crew(Protocol):
    """Who does the verbs of the loop."""

    def play(self, round: int, saves: int, commands: Columns, count: int, random: bool) -> Round:
        """Play a round in all groups and store it; returns once it is acknowledged."""

    def learn(self, steps: int) -> Progress:
        """Take learner steps on the stored episodes."""

    def table(self) -> Table:
        """The living episodes."""

    def weights(self) -> Weights:
        """The network as it is now."""

    def score(
        self,
        weights: Weights,
        command: dict[str, float],
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Score:
        """Evaluate weights; `on_end` hears of how many episodes have ended since it last did."""

    def save(self, write: Callable[[int, dict[str, np.ndarray], list[ShardRef]], Any]) -> None:
        """Compact the store, hand (learner step, learner state, shards) to `write`, then unlink what no checkpoint names."""

    def close(self) -> None:
        """Let go of everything."""


def loop(session: Session, crew: Crew) -> None:
    """Train in lock-step until the budget is spent."""
    run, counters = session.run, session.counters
    session.begin()
    if counters.round == 0 and run.algorithm.warm_up():
        count = run.algorithm.warm_up()
        with session.now.busy("warm-up: random episode", count):
            session.played(crew.play(0, 0, {}, count, random=True))
    while not session.spent():
        session.learn(crew, session.owed(crew.table()))
        if session.spent():
            break
        count = run.algorithm.per_iteration()
        commands = session.ask(crew.table(), counters.round, count)
        with session.now.busy("playing episode", count):
            session.played(
                crew.play(
                    counters.round,
                    counters.saves,
                    commands,
                    count,
                    random=not counters.learner_step,
                )
            )
        attend(session, crew)
    session.learn(crew, session.owed(crew.table()))


def study(session: Session, crew: Crew) -> None:
    """Train on a dataset: the same loop, with nothing to play and all steps owed at once.

    A signal to stop has it save where it stands: a resume from there comes to the same bit for bit.
    """
    session.begin()
    try:
        if session.cut_short:
            attend(session, crew)
        while not session.spent():
            with stopping.held():
                session.learn(crew, session.stride())
            attend(session, crew)
    except KeyboardInterrupt:
        if stopping.asked():
            session.save_between(crew)
        raise


def attend(session: Session, crew: Crew) -> None:
    """Evaluate, save and report where it is due."""
    session.evaluate_if_due(crew)
    with stopping.held():
        if session.save_due():
            session.save(crew)
        elif session.report_due():
            session.report()


class Session:
    """The bookkeeping of a run: counters, what is due, reports, best weights, summary."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        listeners: list[Listener],
        resumed: Checkpoint | None,
        exact: bool,
    ) -> None:
        self.run = run
        self.task = task_for(run)
        self.folder = folder
        self.counters = resumed.counters if resumed else Counters()
        if resumed and not exact:
            self.counters.incarnation += 1
        if not exact:  # a lock-step run comes to them again; this one may have kept better weights since its checkpoint
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
        self.now = Now()
        self.seen()
        for listener in listeners:
            if callable(watch := getattr(listener, "watch", None)):
                watch(self.now)
        self._means = Means(resumed.means if resumed and exact else None)
        self.cut_short = bool(resumed and resumed.means)
        """Whether its checkpoint was written between two reports: what was due may be so still."""
        self._began = time.monotonic()
        self._before = self.counters.wall_s
        self._mark = (time.monotonic(), self.counters.env_steps, self.counters.learner_step)
        self.command: dict[str, float] = {}
        self.problems: list[str] = []
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

    def spent(self) -> bool:
        """Whether the budget is used up, or a listener has stopped the run."""
        return self._stopped or self.share() >= 1

    def owed(self, table: Table) -> int:
        """Learner steps that are owed now and that the budget allows."""
        if not len(table):
            return 0
        owed = (
            self.run.algorithm.owed(self.counters.env_steps, self.counters.episodes)
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
        """What evaluations, saves and reports are counted in: environment steps, or learner steps on a dataset."""
        return self.counters.learner_step if self.run.dataset else self.counters.env_steps

    def stride(self, most: int = 100) -> int:
        """Steps of the clock until something is due; at most `most`, so that a budget of minutes is kept."""
        run, now = self.run, self.clock
        ends = [
            (now // every + 1) * every
            for every in (run.evaluations.every, run.saves.every, run.saves.report_every)
        ]
        return max(1, min(*ends, run.total, now + most) - now)

    def ask(self, table: Table, round: int, count: int) -> Columns:
        """The commands of a round, capped at what the task can pay."""
        if not len(table):
            return {}
        commands = self.run.algorithm.ask(table, rng(self.run.seed, "ask", round), count)
        if self.task.max_return is not None and "desired_return" in commands:
            commands["desired_return"] = np.minimum(
                commands["desired_return"], np.float32(self.task.max_return)
            )
        return commands

    def evaluation_due(self) -> bool:
        """Whether an evaluation's step count has been passed.

        Where that was not typed, a budget of any kind that is shorter has FEWEST of them too.
        """
        if not self.task.plays or not self.counters.learner_step:
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

    def learn(self, crew: Crew, steps: int) -> None:
        """Have the crew take learner steps, and note them."""
        with self.now.busy("learner step", steps):
            self.learned(crew.learn(steps))

    def evaluate_if_due(self, crew: Crew) -> None:
        """Have the crew score the weights, where that is due."""
        if not self.evaluation_due():
            return
        weights, episodes = crew.weights(), self.run.evaluations.episodes
        command = self.run.algorithm.evaluation_command(crew.table())
        number = self.counters.evaluations
        with self.now.busy("evaluation: episode", episodes):
            score = crew.score(weights, command, episodes, "validation", number, self.now.advance)
        with stopping.held():
            self.evaluated(score, weights)

    def seen(self) -> None:
        """Show the counters to those who look between two reports."""
        now, counters = self.now, self.counters
        now.env_steps, now.episodes = counters.env_steps, counters.episodes
        now.learner_steps = counters.learner_step

    # --- what the loop tells

    def played(self, round: Round) -> None:
        """Count a round. Raises RunFailed where rounds bring no sound episode any more."""
        counters = self.counters
        counters.round += 1
        counters.env_steps += round.env_steps
        counters.episodes += len(round.added)
        counters.arrive(round.added.serials.tolist())
        counters.discarded += round.discarded
        counters.barren = 0 if len(round.added) else counters.barren + 1
        counters.play_s += round.busy_s
        self.problems = (self.problems + round.problems)[-100:]
        if counters.barren >= BARREN_ROUNDS:
            raise RunFailed(
                f"the environments of {self.run.task} brought no whole episode in {BARREN_ROUNDS} rounds; the last: "
                f"{round.problems[-1] if round.problems else 'nothing was played'}"
            )
        if len(round.added):
            staleness = (
                counters.learner_step - round.version[1]
                if round.version[0] == counters.incarnation
                else 0
            )
            means = {
                "play/return_mean": float(round.added.returns.mean()),
                "play/length_mean": float(round.added.lengths.mean()),
                "play/staleness": float(max(0, staleness)),
            }
            self._means.add(means, len(round.added))
            self.now.played = means["play/return_mean"]
            self.now.staleness = int(means["play/staleness"])
        self.seen()

    def learned(self, progress: Progress) -> None:
        """Note where the learner stands. Answers of calls in flight may come in any order; only `rolled_back` takes steps back."""
        self.counters.learner_step = max(self.counters.learner_step, progress.step)
        self.counters.learn_s += progress.busy_s
        self.counters.learned += progress.steps
        if progress.steps:
            self._means.add(progress.metrics, progress.steps)
        self.seen()

    def note(self, problems: list[str]) -> None:
        """Tell of what is wrong and does not end the run: at once on standard error, and in the summary."""
        for problem in problems:
            say(f"note: {problem}")
        self.problems = (self.problems + problems)[-100:]

    def rolled_back(self, step: int, incarnation: int) -> None:
        """The learners went back to a checkpoint: the steps since then are owed again."""
        self.counters.learner_step = step
        self.counters.incarnation = incarnation

    def evaluated(self, score: Score, weights: Weights, at: int | None = None) -> None:
        """Report a validation score; keep the best weights."""
        counters = self.counters
        counters.evaluations = max(
            counters.evaluations + 1, self.clock // self.run.evaluations.every
        )
        self.command = score.command
        self._missing(score)
        report: Report = {
            "time/env_steps": float(counters.env_steps if at is None else at),
            "time/learner_steps": float(weights.version[1]),
        }
        report |= {
            f"evaluation/{k}": float(v)
            for k, v in score.summary(self.task).items()
            if v is not None
        }
        report |= {f"evaluation/{k}": v for k, v in (score.latency() | score.command).items()}
        self._tell(report)
        mean = float(score.returns.mean())
        if counters.best_return is None or mean > counters.best_return:
            counters.best_return = mean
            save_weights(self.folder, "best", weights, score.command, mean)

    def report(self, extra: Report | None = None) -> None:
        """Tell the listeners the means since the last report."""
        counters = self.counters
        counters.reports = self.clock // self.run.saves.report_every
        now = time.monotonic()
        counters.wall_s = self._before + now - self._began
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
        means = self._means.take()
        losses = {name: value for name, value in means.items() if name.startswith("train/")}
        self._losses = losses or self._losses
        self._tell(report | means | (extra or {}))

    def _tell(self, report: Report) -> None:
        """Tell every listener. One that answers True stops the run, as if its budget ended now."""
        for listener in self._listeners:
            answer = listener(report)
            self._stopped |= isinstance(answer, bool | np.bool_) and bool(answer)

    def save(self, crew: Crew) -> tuple[Weights, dict[str, float]]:
        """Report, then write a checkpoint, and the same weights with their command; these two.

        Of a run whose end is saved already the weights alone are written.
        """
        counters, ended = self.counters, self._ended()
        if not ended:
            counters.saves = max(counters.saves + 1, self.clock // self.run.saves.every)
            self.report()

        weights, command = self._write(crew, new=not ended)
        if self.run.saves.milestones:
            save_weights(self.folder, milestone(self.clock), weights, command, None)
        return weights, command

    def save_between(self, crew: Crew) -> None:
        """Write a checkpoint as if nothing had been: no report, and in place of the last one."""
        self.counters.wall_s = self._before + time.monotonic() - self._began
        self._write(crew, new=True)

    def _write(self, crew: Crew, new: bool) -> tuple[Weights, dict[str, float]]:
        """Write a checkpoint if it is `new`, and the same weights with their command; these two."""
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
                crew.table().ids[: 0 if self.run.dataset else None],
                self.run.identity,
                self._means.state(),
            )

        with self.now.busy("saving"):
            crew.save(write)
        command = self.run.algorithm.evaluation_command(crew.table()) if len(crew.table()) else {}
        save_weights(self.folder, "last", saved[0], command, None)
        return saved[0], command

    def finish(self, crew: Crew) -> dict[str, Any]:
        """Save, score the last and the best weights on fresh seeds, and write the summary. Raises RunFailed without episodes.

        Where there is no environment the losses stand in place of scores.
        """
        if not self.counters.episodes and self.run.dataset is None:
            raise RunFailed(
                "the budget was spent before a single episode was stored; give --budget.minutes or --budget.env-steps more"
            )
        stopped = self._stopped and not self.share() >= 1
        weights, command = self.save(crew)
        if self.task.plays:
            scores = self._scores(crew, weights, command)
        else:
            before = summary_of(self.folder.path).get("losses", {})
            scores = {"losses": self._losses or before}
        counters = self.counters
        counters.wall_s = self._before + time.monotonic() - self._began
        summary = {
            "algorithm": self.run.algorithm.name,
            "task": self.run.task,
            "preset": self.run.preset,
            "seed": self.run.seed,
            "env_steps": counters.env_steps,
            "learner_steps": counters.learner_step,
            "episodes": counters.episodes,
            "episodes_discarded": counters.discarded,
            **scores,
            "dataset": to_json(self.run.dataset),
            "start": to_json(self.run.start),
            "command": command,
            "mode": self.run.evaluations.mode,
            "wall_s": counters.wall_s,
            "rollout_env_steps_per_s": counters.env_steps / max(counters.play_s, 1e-9),
            "learner_steps_per_s": counters.learned / max(counters.learn_s, 1e-9),
            "incarnation": counters.incarnation,
            "stopped": stopped,
            "problems": self.problems,
            "versions": versions(),
        }
        self.folder.write_summary(summary)
        return summary

    def _scores(self, crew: Crew, weights: Weights, command: dict[str, float]) -> dict[str, Any]:
        """What the summary says of the last weights, and of the best."""
        score = self._final(crew, weights, command, 0)
        last = score.summary(self.task)
        best_mean, best_command = float(score.returns.mean()), command
        best_path = self.folder.weights("best")
        if best_path.is_file():
            best = Weights.load(best_path)
            if best.version != weights.version:
                best_command = command if best.command is None else best.command
                best_mean = float(self._final(crew, best, best_command, 1).returns.mean())
        else:
            save_weights(self.folder, "best", weights, command, float(score.returns.mean()))
        return {
            **last,
            **score.latency(),
            "best_return_mean": best_mean,
            "best_command": best_command,
            "best_normalized_score": self.task.normalized_score(float(best_mean)),
        }

    def _final(self, crew: Crew, weights: Weights, command: dict[str, float], round: int) -> Score:
        """A score on fresh seeds."""
        episodes = self.run.evaluations.final_episodes
        which = "the last weights" if round == 0 else "the best weights"
        with self.now.busy(f"final evaluation of {which}: episode", episodes):
            score = crew.score(weights, command, episodes, "final", round, self.now.advance)
        self._missing(score)
        return score

    def _missing(self, score: Score) -> None:
        """Tell of episodes that a score is not of: it may be better or worse for want of them."""
        if score.discarded:
            whole = len(score.returns) + score.discarded
            self.note([f"a score lacks {score.discarded} of {whole} episodes: {score.problems[0]}"])

    def close(self) -> None:
        """Close the files of the listeners that have any."""
        for listener in self._listeners:
            if callable(close := getattr(listener, "close", None)):
                close()


class LocalCrew:
    """Every verb in this process: no Ray."""

    def __init__(
        self, run: Run, folder: RunFolder, resumed: Checkpoint | None, now: Now | None = None
    ) -> None:
        torch.set_num_threads(run.machines.threads)
        self._run = run
        self._now = now or Now()
        task = task_for(run)
        self._folder = folder
        flat = run.saves.flat_mib << 20
        self.store = (
            dataset_store(run)
            if run.dataset
            else Store(folder.store, run.algorithm.retention(), flat)
        )
        machines, signatures = run.machines, {run.task: task.signature()}
        self.learner = Learner(
            run.algorithm,
            signatures,
            run.seed,
            machines.device,
            compile=machines.compile,
            precision=machines.precision,
        )
        if resumed:
            self.learner.load(resumed.learner, resumed.counters.learner_step)
            if run.dataset is None:
                self.store.open(leave=checkpoint.outlived_shards(folder.checkpoints))
                check_living(self.store.table, self.store.problems, resumed)
        self._player = Player(run)
        self._evaluator = Evaluator(run)
        self._incarnation = resumed.counters.incarnation if resumed else 0

    def play(self, round: int, saves: int, commands: Columns, count: int, random: bool) -> Round:
        """See Crew."""
        weights = None if random else self.weights()
        before = self._player.busy_s
        parts: list[Played] = []
        for group in range(self._run.groups):
            share = self._run.share(count, group)
            mine = {name: values[share] for name, values in commands.items()}
            if share.stop > share.start:
                parts.append(
                    self._player.play(
                        weights,
                        round,
                        group,
                        (saves, self._incarnation, 0),
                        mine,
                        share.stop - share.start,
                        self._now.advance,
                    )
                )
        receipt = self.store.add([episode for part in parts for episode in part.episodes])
        version = weights.version if weights else (self._incarnation, 0)
        return gathered(parts, receipt.added, version, self._player.busy_s - before)

    def learn(self, steps: int) -> Progress:
        """See Crew."""
        return self.learner.update({self._run.task: self.store}, steps, self._now.advance)

    def table(self) -> Table:
        """See Crew."""
        return self.store.table

    def weights(self) -> Weights:
        """See Crew."""
        return self.learner.weights(self._incarnation)

    def score(
        self,
        weights: Weights,
        command: dict[str, float],
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Score:
        """See Crew."""
        return self._evaluator.score(weights, command, episodes, purpose, round, on_end)

    def save(self, write: Callable[[int, dict[str, np.ndarray], list[ShardRef]], Any]) -> None:
        """See Crew."""
        if self._run.dataset:
            write(self.learner.step, self.learner.state(), [])
            return
        write(self.learner.step, self.learner.state(), self.store.compact())
        self.store.release(checkpoint.named_shards(self._folder.checkpoints))

    def close(self) -> None:
        """See Crew."""
        self._player.close()
        self._evaluator.close()


def gathered(parts: list[Played], added: Table, version: tuple[int, int], busy_s: float) -> Round:
    """The parts that groups played as one round."""
    problems = [problem for part in parts for problem in part.problems]
    return Round(
        added,
        version,
        sum(p.env_steps for p in parts),
        sum(p.discarded for p in parts),
        problems,
        busy_s,
    )


def train_local(
    run: Run, folder: Path, resume: bool = False, listeners: list[Listener] | None = None
) -> dict[str, Any]:
    """Train in this process; the summary. Raises UserError, and RunFailed with everything stored so far kept."""
    with RunFolder(folder).claimed(run, resume, exact=True) as home, contextlib.ExitStack() as end:
        take_over(run, home)
        resumed, damage = whole(run, home) if resume or run.start else (None, [])
        drop_later(home)
        session = Session(
            run,
            home,
            [*writers(run, folder), *(listeners or [])],
            resumed,
            exact=True,
        )
        end.callback(session.close)
        session.note(damage)
        crew = LocalCrew(run, home, resumed, session.now)
        end.callback(crew.close)
        (study if run.dataset else loop)(session, crew)
        return session.finish(crew) | {"folder": str(folder)}
