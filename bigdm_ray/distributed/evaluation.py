"""Evaluation in parts on many actors: each plays the next part that waits, and who plays it does
not show in the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from bigdm_ray.distributed.actors import ActorSlot, CallFault, EvaluatorActor
from bigdm_ray.distributed.cluster import cluster, cpu_options
from bigdm_ray.distributed.waiting import Wait
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.training.config import Machines, Run
from bigdm_ray.training.evaluation import Score
from bigdm_ray.training.params import Weights


def evaluate_on_actors(
    run: Run,
    task: str,
    weights: Weights,
    command: dict[str, float],
    parts: list[int],
    purpose: str,
    actors: int,
    address: str,
    on_end: Callable[[int], None],
) -> list[Score]:
    """Play parts of so many episodes each of one of the run's tasks with the seed and the mode of
    `run`; their scores in the order of the parts.

    A part whose actor dies, or whose answer is lost, is played again. `on_end` hears of how many
    episodes a part that has ended was. Ctrl-C leaves out what has not ended.
    Raises UserError and RunFailed, also where no part has ended for as long as the run's patience
    is with the episodes of one.
    """
    settings = dataclasses.replace(
        run,
        machines=Machines(
            actors=min(actors, len(parts)),
            device="cpu",
            address=address,
            threads=run.machines.threads,
            patience=run.machines.patience,
        ),
    )
    scores: dict[int, Score] = {}
    with cluster(settings):
        slots: list[ActorSlot] = []
        try:
            for _ in range(settings.machines.actors):
                setup = (settings.to_json(),)
                slots.append(ActorSlot("evaluator", EvaluatorActor, cpu_options(), setup))
            patience_s = run.machines.patience_s
            wait = Wait(
                lambda: f"{len(parts) - len(scores)} of {len(parts)} parts to be played",
                None if patience_s is None else patience_s * max(parts),
                "add machines, or ask for less (--actors), and evaluate again",
            )
            _play(slots, task, weights, command, parts, purpose, scores, on_end, wait)
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
    return [scores[number] for number in sorted(scores)]


def _play(
    slots: list[ActorSlot],
    task: str,
    weights: Weights,
    command: dict[str, float],
    parts: list[int],
    purpose: str,
    scores: dict[int, Score],
    on_end: Callable[[int], None],
    wait: Wait,
) -> None:
    """Fill `scores`, by the numbers of the parts, as they end."""
    shared = ray.put(weights)
    waiting = list(range(len(parts)))[::-1]
    # its part, None while it is set up
    running: dict[Any, tuple[ActorSlot, int, int | None]] = {
        s.ready: (s, s.generation, None) for s in slots
    }
    wait.news()
    while len(scores) < len(parts):
        ready, _ = ray.wait(list(running), num_returns=1, timeout=wait.seconds())
        wait.check()
        if not ready:
            continue
        wait.news()
        (ref,) = ready
        slot, generation, number = running.pop(ref)
        try:
            answer = ray.get(ref)
        except RayError as error:
            what = slot.handle_failure(generation, error)
            if what is CallFault.ARGUMENT:
                shared = ray.put(weights)
            if number is not None:
                waiting.append(number)
            running[slot.ready] = slot, slot.generation, None
            continue
        if number is not None:
            slot.note_answer()
            scores[number] = answer
            on_end(parts[number])
        if waiting:
            number = waiting.pop()
            running[slot.call("part", task, shared, command, parts[number], purpose, number)] = (
                slot,
                slot.generation,
                number,
            )
