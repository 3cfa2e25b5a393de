"""Session: what it counts, whatever the order in which answers come."""

from __future__ import annotations

from bigdm_ray.training.config import configure
from bigdm_ray.training.learner import Progress
from bigdm_ray.training.loop import Session
from bigdm_ray.training.run_folder import RunFolder


def test_answers_that_overtake_each_other_owe_no_step_twice(tmp_path):
    run = configure("udrl", "toy-vector")
    home = RunFolder(tmp_path / "run").claim(run, False, exact=False)
    session = Session(run, home, [], None, exact=False)
    for step in (40, 20, 60):  # of three calls of 20 steps, the second was answered first
        session.learned(Progress(step, 20, {"train/loss": 1.0}))
    assert session.counters.learner_step == 60 and session.counters.learned == 60
    session.learned(Progress(100, 20))
    session.learned(Progress(80, 20))
    assert session.counters.learner_step == 100
    session.rolled_back(50, 1)
    session.learned(Progress(70, 20))
    assert session.counters.learner_step == 70
    session.close()
    home.release()
