"""The loop of algorithms that another library trains: its turns between our evaluations, reports
and checkpoints.

The library holds environments, replay and networks; Session keeps the counters, Evaluator scores
our network with its weights on the reference environments, and a checkpoint has all arrays that the
library needs to go on. A resumed run begins new episodes and new random numbers, so it goes on from
its checkpoint but does not repeat what an uninterrupted one had done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bigdm_ray import stopping
from bigdm_ray.algorithms.base import Mode
from bigdm_ray.baselines.base import (
    ExternalAlgorithm,
    Trainer,
    TrainerContext,
    TrainerResult,
    add_prefix,
    strip_prefix,
)
from bigdm_ray.errors import UserError
from bigdm_ray.replay.store import ShardRef, Store, Table
from bigdm_ray.training import checkpoint
from bigdm_ray.training.checkpoint import Checkpoint
from bigdm_ray.training.config import Run
from bigdm_ray.training.evaluation import Evaluator, Scores
from bigdm_ray.training.learner import LearnerProgress, pick_device
from bigdm_ray.training.loop import RoundResult, Session
from bigdm_ray.training.metrics import Listener
from bigdm_ray.training.params import Commands, Weights
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.start import dataset_store
from bigdm_ray.training.streams import derived_seed, seed_torch
from bigdm_ray.training.trackers import writers


def train_foreign(
    run: Run,
    folder: Path,
    resume: bool = False,
    listeners: list[Listener] | None = None,
    actors: int = 0,
) -> dict[str, Any]:
    """Train with the algorithm's library, `actors` processes playing beside this one; the summary.

    Raises UserError and RunFailed.
    """
    check_external(run)
    with RunFolder(folder).hold(run, resume, exact=False) as home, contextlib.ExitStack() as end:
        resumed = checkpoint.last_checkpoint(home.checkpoints, run.identity) if resume else None
        session = Session(
            run,
            home,
            [*writers(run, folder), *(listeners or [])],
            resumed,
            exact=False,
        )
        end.callback(session.close)
        assert isinstance(run.algorithm, ExternalAlgorithm)
        with session.now.busy(f"starting {run.algorithm.library}"):
            executor = ExternalExecutor(session, resumed, actors)
        end.callback(executor.close)
        drive(session, executor)
        return session.finish(executor) | {"folder": str(folder)}


def check_external(run: Run) -> ExternalAlgorithm:
    """The algorithm, once all that can be said against the run has been. Raises UserError."""
    algorithm = check_external_settings(run)
    task = run.only.task
    algorithm.require()
    signature = task.signature()
    algorithm.policy(
        algorithm.build({task.name: signature}), cast(Mode, run.evaluations.mode), signature
    )
    return algorithm


def check_external_settings(run: Run) -> ExternalAlgorithm:
    """The algorithm, if the run asks for nothing that its library has not, which is not imported.

    Raises UserError.
    """
    algorithm = run.algorithm
    assert isinstance(algorithm, ExternalAlgorithm)
    if run.machines.learners > 1:
        raise UserError(
            f"{algorithm.name} is trained by {algorithm.library} on one learner, but --learners is"
            f" {run.machines.learners}; leave it out"
        )
    if run.machines.actors > 1 and not algorithm.on_ray:
        raise UserError(
            f"{algorithm.name} plays and learns in one process, but --actors is"
            f" {run.machines.actors}; leave it out"
        )
    for name, given, plain in (
        ("compile", run.machines.compile, False),
        ("precision", run.machines.precision, "float32"),
    ):
        if given != plain:
            raise UserError(
                f"{algorithm.name} is trained by {algorithm.library}, but --machines.{name} is"
                f" {str(given).lower()}; leave it out"
            )
    if not run.only.task.plays:
        raise UserError(
            f"{algorithm.name} is trained by {algorithm.library}, which asks an environment what it"
            " sees and does, but the dataset has none; take an algorithm of our own, such as bc"
        )
    return algorithm


def drive(session: Session, executor: ExternalExecutor) -> None:
    """Train until the budget is spent. A signal to stop has it save where its turn ends."""
    session.begin()
    try:
        while not session.is_spent():
            with stopping.hold_signals():
                executor.turn(session)
            session.evaluate_if_due(executor)
            with stopping.hold_signals():
                if session.save_due():
                    session.save(executor)
                elif session.report_due():
                    session.report()
    except KeyboardInterrupt:
        if stopping.is_stop_asked() and session.clock:
            session.save_between(executor)
        raise


class ExternalExecutor:
    """A Trainer and an Evaluator, as the executor that Session saves and finishes with."""

    def __init__(self, session: Session, resumed: Checkpoint | None, actors: int) -> None:
        run, self._counters = session.run, session.counters
        assert isinstance(run.algorithm, ExternalAlgorithm)
        torch.set_num_threads(run.machines.threads)
        self._store: Store | None = dataset_store(run, run.only) if run.offline else None
        seed = derived_seed(run.seed, "foreign", self._counters.incarnation)
        seed_torch(run.seed, "foreign", self._counters.incarnation)
        device = str(pick_device(run.machines.device))
        self._trainer: Trainer = run.algorithm.trainer(
            TrainerContext(
                run.only.task,
                seed,
                run.total,
                device,
                actors,
                self._store,
                run.machines.patience_s,
            )
        )
        if resumed is not None:
            self._trainer.restore(strip_prefix(resumed.learner, "foreign/"))
        self._task = run.task
        self._evaluator = Evaluator(run)
        self._stride = run.algorithm.stride

    def turn(self, session: Session) -> None:
        """Let the library train a little, and count what it did."""
        began = time.perf_counter()
        with session.now.busy(session.run.algorithm.name):
            turn = self._trainer.step(session.stride(self._stride))
        busy_s = time.perf_counter() - began
        counters = session.counters
        session.note_progress(
            LearnerProgress(
                counters.learner_step + turn.learner_steps, turn.learner_steps, turn.metrics, busy_s
            )
        )
        if turn.returns:
            session.note_round(
                RoundResult(
                    ended_episodes(turn),
                    (counters.incarnation, counters.learner_step),
                    turn.env_steps,
                    0,
                    [],
                    busy_s,
                )
            )
        else:  # no episode has ended, and none needs to
            counters.env_steps += turn.env_steps
            counters.play_s += busy_s
            session.show_counters()

    def tables(self) -> dict[str, Table]:
        """See SessionBackend. The library keeps its episodes to itself."""
        return {self._task: self._store.table if self._store is not None else Table()}

    def weights(self) -> Weights:
        """See SessionBackend."""
        return Weights(
            (self._counters.incarnation, self._counters.learner_step), self._trainer.weights()
        )

    def score(
        self,
        weights: Weights,
        commands: Commands,
        episodes: int,
        purpose: str,
        round: int,
        on_end: Callable[[int], None] | None = None,
    ) -> Scores:
        """See SessionBackend."""
        return self._evaluator.score(weights, commands, episodes, purpose, round, on_end)

    def save(self, write: Callable[[int, dict[str, np.ndarray], list[ShardRef]], Any]) -> None:
        """See SessionBackend."""
        state = add_prefix("model/", self._trainer.weights()) | add_prefix(
            "foreign/", self._trainer.state()
        )
        write(self._counters.learner_step, state, [])

    def close(self) -> None:
        """See SessionBackend."""
        self._trainer.close()
        self._evaluator.close()


def ended_episodes(turn: TrainerResult) -> Table:
    """The episodes that ended in a turn, without ids of their own."""
    count = len(turn.returns)
    return Table(
        np.zeros((count, 3), np.int64),
        np.array(turn.returns, np.float64),
        np.array(turn.lengths, np.int64),
        np.zeros(count),
    )
