"""Demonstrations of the experts that are known, task after task: what `data experts` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from bigdm_ray.envs.task import find_task, tasks
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.experts import demonstrations
from bigdm_ray.experts.demonstrations import Wanted
from bigdm_ray.progress import Progress, say

Parts = Iterator[tuple[int, list[str] | None, str]]
"""Of each part that has ended: which it is, what was wrong in it, and why there is none."""


def record_experts(given: argparse.Namespace) -> int:
    """`experts`: record what is asked for, task after task; a line for each. The exit code is 1
    where a task could not be recorded; the others are.

    Raises UserError, before anything is played.
    """
    play = _on_actors(given.actors) if given.actors > 1 else _here
    failed = 0
    for wanted in _wanted(given):
        try:
            print(_record(wanted, play, given.quiet), flush=True)
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
    return 1 if failed else 0


def _wanted(given: argparse.Namespace) -> list[Wanted]:
    """Every task that is asked for; a suite's without an expert are named and left out.

    Raises UserError.
    """

    def of(name: str) -> Wanted:
        return Wanted(name, given.episodes, given.seed, str(given.folder), given.run)

    if given.run is not None:
        from bigdm_ray.experts.trained import find_trained

        task, _ = find_trained(given.run)
        if any(find_task(name).name != task.name for name in given.names):
            raise UserError(f"{given.run} does {task.name}; leave the names out, or give that one")
        return [of(task.name)]
    if not given.names:
        raise UserError("give the tasks to be recorded, or suites of them, or --from RUN")
    found: dict[str, Wanted] = {}
    suites = {task.suite for task in tasks().values()}
    for name in given.names:
        listed = [one for one, task in tasks().items() if task.suite == name]
        for one in listed if name in suites else [find_task(name).name]:
            wanted = of(one)
            try:
                wanted.find()
            except UserError as error:
                if name not in suites or not str(error).startswith("no expert"):
                    raise
                say(f"note: {error}")
                continue
            found[one] = wanted
    if not found:
        raise UserError(f"no expert is known for any task of {', '.join(given.names)}")
    return list(found.values())


def _record(wanted: Wanted, play: Callable[[Wanted, list[int]], Parts], quiet: bool) -> str:
    """Record a task, or go on with it; a line that says what came of it."""
    task, expert = wanted.find()
    if demonstrations.is_recorded(wanted, expert):
        return f"{task.name}: recorded already, in {wanted.folder}"
    missing = demonstrations.begin(wanted, task, expert)
    if slow := task.slow_reason():
        say(f"note: {slow}")
    done = wanted.parts - len(missing)
    count, before = wanted.episodes, min(done * demonstrations.PART, wanted.episodes)
    why = ""
    with Progress(wanted.folder.name, count, before, quiet, units="episodes") as bar:
        for number, problems, failure in play(wanted, missing):
            if problems is None:
                why = why or failure
                continue
            for problem in problems:
                say(problem)
            bar.advance(min(demonstrations.PART, count - number * demonstrations.PART))
    if why:
        raise RunFailed(f"{task.name}: {why}; what was played stays for the same command")
    return demonstrations.finish(wanted).line()


def _here(wanted: Wanted, parts: list[int]) -> Parts:
    """The parts one after another, in this process."""
    for number in parts:
        yield number, demonstrations.play_part(wanted, number), ""


def _on_actors(count: int) -> Callable[[Wanted, list[int]], Parts]:
    """The parts side by side in `count` processes of Ray."""

    def play(wanted: Wanted, parts: list[int]) -> Parts:
        from bigdm_ray.distributed.map import run_side_by_side

        jobs = [(wanted, number) for number in parts]
        for at, problems, why in run_side_by_side(demonstrations.play_part, jobs, count):
            yield parts[at], problems, why

    return play
