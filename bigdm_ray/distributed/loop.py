"""The loop of `training/loop.py` with its calls in flight: episodes are played while the learner
learns.

The driver hands out work and reads summaries of a few hundred bytes; episodes and weights pass it
by as references. It decides how many learner steps are owed, so there is no rate limiter that could
deadlock: at most two calls in flight for a rollout actor and for the learners, and no rollout
starts while more steps are owed than the weights may be stale. A call that died with its actor is
made again, a round whose episodes are lost is played again; the learner's steps since its
checkpoint are owed again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from bigdm_ray import stopping
from bigdm_ray.algorithms.base import Columns
from bigdm_ray.distributed.actors import ActorSlot, CallFault
from bigdm_ray.distributed.cluster import cluster
from bigdm_ray.distributed.executor import RayExecutor, round_result
from bigdm_ray.distributed.waiting import Wait, in_vain
from bigdm_ray.errors import RunFailed, UserError, full_disk, full_memory
from bigdm_ray.replay.store import Receipt
from bigdm_ray.training.config import Run
from bigdm_ray.training.loop import WAIT_S, Session, loop, receive, study
from bigdm_ray.training.metrics import Listener
from bigdm_ray.training.outside import Outside, check_outside
from bigdm_ray.training.params import Commands
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.start import (
    count_stored,
    drop_later,
    last_whole_checkpoint,
    take_over,
)
from bigdm_ray.training.trackers import writers

IN_FLIGHT = 2
"""Calls that wait at the learners, and rounds of a group that are not stored yet, at most: one
runs, the next one is there when it ends. Where storing is slow, playing waits for it."""
ARRIVALS_S = 0.1
"""Seconds between two looks at what others have sent, in a run that is served."""
LOOK_S = 1.0
"""Seconds between two looks at who is missing, or has not answered for too long."""


def train_on_ray(
    run: Run,
    folder: Path,
    resume: bool = False,
    listeners: list[Listener] | None = None,
    dashboard: bool = False,
    outside: Outside | None = None,
) -> dict[str, Any]:
    """Train with Ray; the summary.

    Raises UserError, and RunFailed with everything stored so far kept.

    With `dashboard` the address of Ray's web page is told; with `outside` the run takes episodes of
    others.
    """
    check_outside(run, served=outside is not None)
    with RunFolder(folder).hold(run, resume, exact=runs_in_lock_step(run)) as home:
        try:
            with cluster(run, dashboard):
                return _train(run, folder, home, resume, listeners or [], outside)
        except RayTaskError as error:
            if is_for_user(error.cause):  # without the traceback that Ray adds
                raise error.cause from None
            raise


def is_for_user(cause: BaseException) -> bool:
    """Whether what an actor raised is for the user: a mistake, want of disk or memory."""
    full = (isinstance(cause, OSError) and full_disk(cause)) or full_memory(cause)
    return full or isinstance(cause, UserError)


def runs_in_lock_step(run: Run) -> bool:
    """Whether a resume repeats the run: a run on a dataset has nothing to do side by side."""
    return run.machines.lock_step or run.offline


def _train(
    run: Run,
    folder: Path,
    home: RunFolder,
    resume: bool,
    listeners: list[Listener],
    outside: Outside | None,
) -> dict[str, Any]:
    exact = runs_in_lock_step(run)
    take_over(run, home)
    resumed, damage = None, list[str]()
    if resume or run.start:
        resumed, damage = (last_whole_checkpoint if exact else count_stored)(run, home)
    if exact:
        drop_later(run, home)
    with contextlib.ExitStack() as end:
        everyone = [*writers(run, folder), *listeners]
        session = Session(run, home, everyone, resumed, exact, outside)
        session.apart = True
        end.callback(session.close)
        session.note(damage)
        driver = Driver(session)
        with session.now.busy("starting actors and learners"):
            executor = RayExecutor(
                run,
                folder,
                resumed if exact else None,
                session.counters.incarnation,
                driver.roll_back,
                session.note_death,
            )
        end.callback(executor.close)
        if exact:
            (study if run.offline else loop)(session, executor)
        else:
            driver.drive(executor)
        if outside is not None:
            outside.close()
        return session.finish(executor) | {"folder": str(folder)}


@dataclass
class PendingCall:
    """A call in flight: what to do with its answer, or where it has none."""

    refs: list[Any]
    done: Callable[[Any], None]
    lost: Callable[[BaseException], None]
    what: str  # it is to do
    slot: ActorSlot | None = None  # whose call it is
    learning: bool = False
    rounds: tuple[int, ...] = ()  # of episodes that are being played or stored
    again: Callable[[], None] | None = None  # has a round played by another actor
    drop: Callable[[], None] | None = None  # has it played by none
    times: int = 1  # the patience that is had with it
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class FinishedRound:
    """A round of a group that waits to be stored."""

    group: int
    data: Any  # a reference to the bytes of a shard
    summary: dict[str, Any]
    count: int  # episodes that were asked for
    again: Callable[[], None]  # plays it once more


class Driver:
    """Asynchronous training: keeps rollouts, storing, learning and evaluation in flight until the
    budget is spent."""

    executor: RayExecutor

    def __init__(self, session: Session) -> None:
        self.session = session
        self._jobs: dict[Any, PendingCall] = {}
        self._playing = {group: 0 for group in range(session.run.groups)}
        self._learning = 0
        self._owed_in_flight = 0
        self._evaluating = False
        self._plays = session.run.rollouts.own
        self._warm_up_asked = session.counters.round > 0 or not self._plays
        self._warming_up = 0
        self._next_round = session.counters.round
        self._episodes_in_flight = 0
        self._waiting: list[FinishedRound] = []
        self._storing = 0
        self._wait = Wait(self._awaited)
        self._draining = False
        self._look_at = 0.0

    def roll_back(self, step: int, incarnation: int) -> None:
        """The learners were made anew: calls that the dead ones held are not waited for, their
        steps are owed again."""
        self._jobs = {ref: job for ref, job in self._jobs.items() if not job.learning}
        self._learning = self._owed_in_flight = 0
        self.session.roll_back(step, incarnation)

    def drive(self, executor: RayExecutor) -> None:
        """Until the budget is spent: hand out, wait, read. A signal to stop has it save first."""
        self.executor = executor
        session = self.session
        session.begin()
        with stopping.hold_signals() as asked:
            while not session.is_spent() and not asked():
                self._hand_out()
                if self.session.outside is not None:
                    receive(session, executor, self.session.outside, 0 if self._jobs else WAIT_S)
                    self._evaluate_if_due()
                elif not self._jobs:
                    raise RunFailed(
                        "nothing is left to do, although the budget is not spent: the learner owes "
                        "no steps and no rollout may start"
                    )
                self._settle(timeout=1.0 if self.session.outside is None else ARRIVALS_S)
                if session.save_due():
                    self._save()
                elif session.report_due():
                    session.report({"play/in_flight": float(sum(self._playing.values()))})
            if asked():
                self._save()
        self._drain()

    def _settle(self, timeout: float) -> None:
        if not self._jobs:
            self._wait.news()
            return
        refs = list(self._jobs)
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if ready:
            self._wait.news()
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            job = self._jobs.pop(ref, None)
            if job is None:  # of learners that were made anew meanwhile
                continue
            try:
                answer = ray.get(job.refs)
            except RayError as error:
                job.lost(error)
            else:
                job.done(answer)
        self._wait.check()
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_S
            self._stand_in()
            self._expire(now)

    def _awaited(self) -> str:
        """What is waited for, in words."""
        counted = Counter(job.what for job in self._jobs.values())
        calls = ", ".join(f"{count} to {what}" for what, count in counted.items())
        missing = sum(not slot.stands() for slot in self.executor.workers)
        lack = f", without {self.executor.pool.count_missing()}" if missing else ""
        return f"an answer of {len(self._jobs)} call(s) ({calls}{lack})"

    def _stand_in(self) -> None:
        """Rounds do not wait for an actor that is missing for long: another plays them.

        Where there is no other, and the budget is spent, they are not played at all.
        """
        pool = self.executor.pool
        stuck = {slot for slot in self.executor.workers if pool.stuck(slot)}
        others = bool(stuck) and pool.others()
        for ref, job in list(self._jobs.items()) if others or (stuck and self._draining) else ():
            act = job.again if others else job.drop
            if job.slot in stuck and act is not None:
                del self._jobs[ref]
                act()

    def _expire(self, now: float) -> None:
        """Raise RunFailed where a call has been waited for for too long."""
        patience_s = self.session.run.machines.patience_s
        if patience_s is None:
            return
        for job in self._jobs.values():
            waited = now - max(job.since, job.slot.heard if job.slot is not None else 0.0)
            if waited > patience_s * job.times:
                raise in_vain(f"an answer to a call to {job.what}", waited)

    def _drain(self) -> None:
        """Store what is being played, then take the learner steps that are still owed."""
        self._draining = True
        while self._jobs:
            self._settle(timeout=1.0)
        self.session.learn(self.executor, self._owed())
        self.session.counters.round, self.session.counters.open_rounds = self._next_round, []

    def _save(self) -> None:
        counters = self.session.counters
        in_flight = {round for job in self._jobs.values() for round in job.rounds}
        counters.open_rounds = sorted(in_flight | {one.summary["round"] for one in self._waiting})
        counters.round = self._next_round
        self.session.save(self.executor)

    # --- handing out

    def _hand_out(self) -> None:
        session, run = self.session, self.session.run
        if not self._warm_up_asked:
            self._warm_up_asked = True
            for task in session.tasks:
                for group in range(run.groups):
                    self._warming_up += self._play(
                        task,
                        group,
                        {},
                        run.share(run.online_algorithm.warm_up(), group),
                        random=True,
                    )
        begun = session.counters.learner_step > 0 or not self._owed()
        if self._plays and not self._warming_up and begun:
            self._start_rollouts()
        self._start_learning()

    def _owed(self) -> int:
        if self._warming_up and self.session.run.several:  # statistics are taken of all of them
            return 0
        return self.session.owed(self.executor.tables())

    def _start_rollouts(self) -> None:
        run = self.session.run
        share = run.share(run.online_algorithm.per_iteration(), 0)
        count = max(1, share.stop - share.start)
        for group in sorted(self._playing, key=lambda g: self._playing[g]):
            while (
                self._playing[group] < IN_FLIGHT
                and self._owed() <= run.machines.max_staleness
                and not self._enough()
            ):
                task = self.session.turn(self._next_round)
                table = self.executor.tables()[task]
                commands = self.session.ask(task, table, self._next_round, count)
                self._play(
                    task,
                    group,
                    commands,
                    slice(0, count),
                    random=not commands and bool(run.algorithm.commands),
                )

    def _enough(self) -> bool:
        """Whether what is in flight will spend the environment steps that are left, by the mean
        length so far."""
        counters = self.session.counters
        mean = counters.env_steps / max(1, counters.episodes)
        return (
            counters.env_steps + self._episodes_in_flight * mean
            >= self.session.run.budget.env_steps
        )

    def _play(self, task: str, group: int, commands: Columns, share: slice, random: bool) -> int:
        """Begin a round of a group; how many were begun."""
        if share.stop == share.start:
            return 0
        round, self._next_round = self._next_round, self._next_round + 1
        self._playing[group] += 1
        self._episodes_in_flight += share.stop - share.start
        self._submit_play(task, round, group, commands, share, random)
        return 1

    def _submit_play(
        self, task: str, round: int, group: int, commands: Columns, share: slice, random: bool
    ) -> None:
        weights = self.executor.weights_ref
        slot, generation, (data, summary) = self.executor.submit(
            task, round, group, self.session.counters.saves, commands, share, random
        )

        count = share.stop - share.start

        def again() -> None:
            self._submit_play(task, round, group, commands, share, random)

        def drop() -> None:
            self._playing[group] -= 1
            self._episodes_in_flight -= count

        def lost(error: BaseException) -> None:
            if slot.handle_failure(generation, error) is CallFault.ARGUMENT:
                self.executor.renew_weights(weights)
            again()

        def done(answer: list[Any]) -> None:
            slot.note_answer()
            self._waiting.append(FinishedRound(group, data, answer[0], count, again))
            self._commit()

        self._jobs[summary] = PendingCall(
            [summary],
            done,
            lost,
            "play a round",
            slot,
            rounds=(round,),
            again=again,
            drop=drop,
            times=max(1, count),
        )

    def _commit(self) -> None:
        """Store what waits of a task, in one call and with one sync; while it is under way others
        wait."""
        if self._waiting and not self._storing:
            task = self._waiting[0].summary["task"]
            together = [one for one in self._waiting if one.summary["task"] == task]
            self._waiting = [one for one in self._waiting if one.summary["task"] != task]
            self._store(together)

    def _store(self, together: list[FinishedRound]) -> None:
        """Store rounds of a task; one that is lost on the way is played again."""
        slot = self.executor.replay
        generation = slot.generation
        sent = [one.data for one in together if one.summary["episodes"]]
        task = together[0].summary["task"]
        ref = slot.call("add", task, *sent)
        self._storing += 1

        def lost(error: BaseException) -> None:
            self._storing -= 1
            if slot.handle_failure(generation, error) is not CallFault.ARGUMENT:
                self._store(together)
            elif len(together) > 1:  # which one it was shows when each goes by itself
                for one in together:
                    self._store([one])
            else:
                together[0].again()
                self._commit()

        def done(answer: list[Any]) -> None:
            self._storing -= 1
            slot.note_answer()
            receipt: Receipt = answer[0]
            self.executor.note_stored(task, receipt)
            end = 0
            for one in together:
                start, end = end, end + one.summary["episodes"]
                added = receipt.added.take(np.arange(start, end))
                self._playing[one.group] -= 1
                self._episodes_in_flight -= one.count
                self._warming_up = max(0, self._warming_up - 1)
                self.session.note_round(round_result(Receipt(added, []), [one.summary]))
            self._evaluate_if_due()
            self._commit()

        rounds = tuple(one.summary["round"] for one in together)
        self._jobs[ref] = PendingCall([ref], done, lost, "store rounds", slot, rounds=rounds)

    def _start_learning(self) -> None:
        while self._learning < IN_FLIGHT:
            steps = min(
                self._owed() - self._owed_in_flight,
                self.session.run.online_algorithm.steps_per_call(),
            )
            if steps <= 0:
                return
            self._learn(steps)

    def _learn(self, steps: int) -> None:
        learners = self.executor.learners
        generation = learners.generation
        weights, *progress = learners.update(self.executor.moves(), steps)
        self._learning += 1
        self._owed_in_flight += steps

        def lost(error: BaseException) -> None:
            self.executor.learners_lost(generation, error, progress)

        def done(answer: list[Any]) -> None:
            self._learning -= 1
            self._owed_in_flight -= steps
            for job in self._jobs.values():  # the next one begins now
                job.since = time.monotonic() if job.learning else job.since
            self.executor.note_update(answer[0], weights)
            self.session.note_progress(answer[0])

        for rank, ref in enumerate(progress):  # any of them may be the first to tell of a death
            act = (lambda answer: None) if rank else done
            self._jobs[ref] = PendingCall(
                [ref], act, lost, "learn", learning=True, times=max(1, steps)
            )

    # --- evaluation

    def _evaluate_if_due(self) -> None:
        if self._evaluating or not self.session.evaluation_due():
            return
        self._evaluating = True
        commands = self.session.commands(self.executor.tables())
        self._score(
            self.executor.weights_ref,
            commands,
            self.session.counters.evaluations,
            self.session.counters.env_steps,
        )

    def _score(self, weights: Any, commands: Commands, number: int, at: int) -> None:
        slot = self.executor.evaluator
        generation = slot.generation
        ref = slot.call(
            "score", weights, commands, self.session.run.evaluations.episodes, "validation", number
        )

        def lost(error: BaseException) -> None:
            gone = slot.handle_failure(generation, error) is CallFault.ARGUMENT
            fresh = self.executor.renew_weights(weights) if gone else weights
            self._score(fresh, commands, number, at)

        def done(answer: list[Any]) -> None:
            try:
                scored = ray.get(weights)
            except ObjectLostError:  # they might be the best, and cannot be kept
                self._score(self.executor.renew_weights(weights), commands, number, at)
                return
            slot.note_answer()
            self._evaluating = False
            self.session.note_evaluation(answer[0], scored, at)

        times = max(1, self.session.run.evaluations.episodes * len(commands))
        self._jobs[ref] = PendingCall([ref], done, lost, "evaluate", slot, times=times)
