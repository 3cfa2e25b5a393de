"""Rounds that wait to be stored share one call, and one sync; one that is lost on the way is played
again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from bigdm_ray.distributed.actors import CallFault
from bigdm_ray.distributed.loop import Driver, FinishedRound
from bigdm_ray.replay import Table
from bigdm_ray.replay.store import Receipt


class Storing(Driver):
    """A driver whose replay actor keeps what it is called with, and answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.tasks: list[str] = []
        self.counted: list[list[int]] = []
        self.again: list[int] = []
        self.fault = CallFault.ARGUMENT
        self._jobs, self._waiting, self._storing = {}, [], 0
        self._playing, self._episodes_in_flight, self._warming_up = {0: 0}, 100, 0
        slot = SimpleNamespace(
            generation=0,
            call=self._called,
            note_answer=lambda: None,
            handle_failure=lambda generation, error: self.fault,
        )
        self.executor: Any = SimpleNamespace(replay=slot, note_stored=lambda task, receipt: None)
        self.session: Any = SimpleNamespace(
            evaluation_due=lambda: False,
            note_round=lambda round: self.counted.append(round.added.serials.tolist()),
        )
        self._evaluating = False

    def _called(self, method: str, task: str, *data: str) -> int:
        self.sent.append(data)
        self.tasks.append(task)
        return len(self.sent)

    def finished(self, round: int, episodes: int, task: str = "") -> None:
        """A group has played a round of so many sound episodes, which is in flight until stored."""
        self._playing[0] += 1
        summary = {"round": round, "episodes": episodes, "version": (0, 0), "problems": []}
        summary |= {"env_steps": 1, "discarded": 0, "busy_s": 0.0, "cpu_s": 0.0}
        summary |= {"task": task}
        again = lambda: self.again.append(round)  # noqa: E731
        self._waiting.append(FinishedRound(0, f"{round}", summary, episodes, again))
        self._commit()

    def answer(self, *serials: int) -> None:
        """The oldest call is answered."""
        added = Table(lengths=np.ones(len(serials), np.int64), serials=np.array(serials, np.int64))
        self._jobs.pop(min(self._jobs)).done([Receipt(added, [])])

    def lose(self, fault: CallFault) -> None:
        """The oldest call fails."""
        self.fault = fault
        self._jobs.pop(min(self._jobs)).lost(RuntimeError("lost"))


def test_rounds_that_wait_go_in_one_call() -> None:
    driver = Storing()
    for round, episodes in enumerate((2, 1, 0, 3)):
        driver.finished(round, episodes)
    assert driver.sent == [("0",)]
    driver.answer(0, 1)
    assert driver.sent == [("0",), ("1", "3")] and driver.counted == [[0, 1]]
    assert [job.rounds for job in driver._jobs.values()] == [(1, 2, 3)]
    driver.answer(2, 3, 4, 5)
    assert driver.counted == [[0, 1], [2], [], [3, 4, 5]]
    assert not driver._jobs and driver._episodes_in_flight == 94


def test_of_rounds_that_went_together_the_lost_one_alone_is_played_again() -> None:
    driver = Storing()
    for round in range(3):
        driver.finished(round, 1)
    driver.answer(0)
    driver.lose(CallFault.ARGUMENT)  # 1 and 2 went together
    assert driver.sent[2:] == [("1",), ("2",)] and driver.again == []
    driver.finished(3, 1)
    assert len(driver.sent) == 4, "it waits for those that are under way"
    driver.lose(CallFault.ARGUMENT)
    assert driver.again == [1]
    driver.answer(1)
    driver.answer(2)
    assert driver.counted == [[0], [1], [2]] and driver.sent[4] == ("3",)
    assert not driver._jobs and driver._playing == {0: 1}


def test_the_same_rounds_go_again_where_the_replay_actor_died() -> None:
    driver = Storing()
    for round in range(3):
        driver.finished(round, 1)
    driver.answer(0)
    driver.lose(CallFault.DEATH)
    assert driver.sent == [("0",), ("1", "2"), ("1", "2")]
    driver.answer(1, 2)
    assert driver.counted == [[0], [1], [2]] and driver.again == []


def test_rounds_of_a_task_go_together() -> None:
    driver = Storing()
    for round, task in enumerate(("a", "b", "a", "b", "a")):
        driver.finished(round, 1, task)
    for serials in ((0,), (0, 1), (1, 2)):
        driver.answer(*serials)
    assert driver.sent == [("0",), ("1", "3"), ("2", "4")] and driver.tasks == ["a", "b", "a"]
    assert driver.counted == [[0], [0], [1], [1], [2]] and not driver._jobs
