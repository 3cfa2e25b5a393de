"""Evaluation in parts on many actors: each plays the next part that waits, of whichever task, and
who plays it does not show in the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from bigdm_ray.distributed.actors import ActorSlot, CallFault, EvaluatorActor
from bigdm_ray.distributed.cluster import cluster, cpu_options
from bigdm_ray.distributed.waiting import Wait
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training.config import Machines, Run
from bigdm_ray.training.evaluation import PlannedTask, Score
from bigdm_ray.training.params import Weights

OnPart = Callable[[str, int, Score], None]
"""Hears of each part that has ended: of which task, its number, and its score."""


def evaluate_on_actors(
    run: Run,
    weights: Weights,
    plans: Mapping[str, PlannedTask],
    purpose: str,
    actors: int,
    address: str,
    on_part: OnPart,
) -> None:
    """Play what is planned of some of the run's tasks, with the seed and the mode of `run`.

    A part whose actor dies, or whose answer is lost, is played again. The parts of a task are begun
    before those of the next. Ctrl-C ends it, with what has not ended left out. Raises UserError and
    RunFailed, also where no part has ended for as long as the run's patience is with the episodes
    of one.
    """
    waiting = [(task, number) for task, plan in plans.items() for number in range(len(plan.parts))]
    settings = dataclasses.replace(
        run,
        machines=Machines(
            actors=min(actors, len(waiting)),
            device="cpu",
            address=address,
            threads=run.machines.threads,
            patience=run.machines.patience,
        ),
    )
    with cluster(settings):
        slots: list[ActorSlot] = []
        try:
            for _ in range(settings.machines.actors):
                setup = (settings.to_json(),)
                slots.append(ActorSlot("evaluator", EvaluatorActor, cpu_options(), setup))
            _play(slots, weights, plans, waiting[::-1], purpose, on_part, run.machines.patience_s)
        except KeyboardInterrupt:
            pass
        except RayTaskError as error:
            if isinstance(
                error.cause, UserError | RunFailed
            ):  # what an actor raised, without the traceback that Ray adds
                raise error.cause from None
            raise
        finally:
            for slot in slots:
                slot.stop()


def _play(
    slots: list[ActorSlot],
    weights: Weights,
    plans: Mapping[str, PlannedTask],
    waiting: list[tuple[str, int]],
    purpose: str,
    on_part: OnPart,
    patience_s: float | None,
) -> None:
    """Tell `on_part` of each part as it ends. `waiting` is played from its end, and an episode has
    `patience_s`."""
    shared = ray.put(weights)
    missing = set(waiting)
    # its part, None while it is set up
    running: dict[Any, tuple[ActorSlot, int, tuple[str, int] | None]] = {
        s.ready: (s, s.generation, None) for s in slots
    }
    count = len(waiting)
    wait = Wait(
        lambda: f"{len(missing)} of {count} parts to be played",
        None if patience_s is None else patience_s * max(max(p.parts) for p in plans.values()),
        "add machines, or ask for less (--actors), and evaluate again",
    )
    while missing:
        ready, _ = ray.wait(list(running), num_returns=1, timeout=wait.seconds())
        wait.check()
        if not ready:
            continue
        wait.news()
        (ref,) = ready
        slot, generation, part = running.pop(ref)
        try:
            answer = ray.get(ref)
        except RayError as error:
            what = slot.handle_failure(generation, error)
            if what is CallFault.ARGUMENT:
                shared = ray.put(weights)
            if part is not None:
                waiting.append(part)
            running[slot.ready] = slot, slot.generation, None
            continue
        if part is not None:
            slot.note_answer()
            task, number = part
            missing.remove(part)
            on_part(task, number, answer)
        if waiting:
            part = task, number = waiting.pop()
            plan = plans[task]
            call = slot.call(
                "part", task, shared, plan.command, plan.parts[number], purpose, number
            )
            running[call] = slot, slot.generation, part
