"""Session: what it counts, whatever the order in which answers come."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bigdm_ray.errors import UserError
from bigdm_ray.training.checkpoint import Checkpoint, Counters
from bigdm_ray.training.config import configure
from bigdm_ray.training.cpu import cpu_seconds
from bigdm_ray.training.evaluation import Score
from bigdm_ray.training.learner import LearnerProgress
from bigdm_ray.training.loop import Session
from bigdm_ray.training.params import Weights
from bigdm_ray.training.run_folder import RunFolder


def test_answers_that_overtake_each_other_owe_no_step_twice(tmp_path):
    run = configure("udrl", "toy-vector")
    home = RunFolder(tmp_path / "run").claim(run, False, exact=False)
    session = Session(run, home, [], None, exact=False)
    for step in (40, 20, 60):  # of three calls of 20 steps, the second was answered first
        session.note_progress(LearnerProgress(step, 20, {"train/loss": 1.0}))
    assert session.counters.learner_step == 60 and session.counters.learned == 60
    session.note_progress(LearnerProgress(100, 20))
    session.note_progress(LearnerProgress(80, 20))
    assert session.counters.learner_step == 100
    session.roll_back(50, 1)
    session.note_progress(LearnerProgress(70, 20))
    assert session.counters.learner_step == 70
    session.close()
    home.release()


def test_a_score_that_lacks_episodes_says_so(tmp_path, capsys):
    run = configure("udrl", "toy-vector")
    home = RunFolder(tmp_path / "run").claim(run, False, exact=False)
    session = Session(run, home, [], None, exact=False)
    for discarded in (0, 3):
        score = Score(
            np.ones(5), np.ones(5), {}, discarded=discarded, problems=["it fell"] * discarded
        )
        session.note_evaluation({run.task: score}, Weights((0, 1), {"a": np.zeros(1, np.float32)}))
    assert capsys.readouterr().err == "note: a score lacks 3 of 8 episodes: it fell\n"
    assert session.problems == ["a score lacks 3 of 8 episodes: it fell"]
    session.close()
    home.release()


def test_an_asynchronous_resume_does_not_give_up_better_weights_than_its_checkpoint_knew(tmp_path):
    run = configure("udrl", "toy-vector")
    home = RunFolder(tmp_path / "run").claim(run, False, exact=False)

    def evaluated(resumed, step, mean, exact=False):
        """A session that goes on from a checkpoint evaluates once; (best return of its counters,
        step of the best weights)."""
        session = Session(run, home, [], resumed, exact)
        session.note_evaluation(
            {run.task: Score(np.full(4, mean), np.full(4, 10), {})},
            Weights((0, step), {"w": np.zeros(1)}),
        )
        session.close()
        return session.counters.best_return, Weights.load(home.weights("best")).version[1]

    def at(best):
        return Checkpoint(Counters(best_return=best), [], 0, {}, {}, {})

    assert evaluated(None, 1, 30.0) == (30.0, 1)
    assert evaluated(None, 2, 50.0) == (50.0, 2)
    assert evaluated(at(30.0), 3, 40.0) == (50.0, 2), (
        "the checkpoint was written before the best weights were"
    )
    assert evaluated(at(60.0), 4, 55.0) == (60.0, 2)
    assert evaluated(at(30.0), 5, 51.0) == (51.0, 5)
    assert evaluated(at(30.0), 6, 40.0, exact=True) == (40.0, 6), "lock-step comes to 51 again"
    Weights((0, 6), {"w": np.zeros(1)}).save(home.weights("best"))
    assert evaluated(at(30.0), 7, 40.0) == (40.0, 7), "weights of before, killed before their JSON"
    Weights((0, 6), {"w": np.zeros(1)}).save(home.weights("best"))
    home.weights("best").with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="remove it"):
        evaluated(at(30.0), 7, 40.0)
    home.release()


def test_cpu_time_is_that_of_all_processes_over_resumed_runs(tmp_path):
    """What others tell counts where they are others, and the time of processes that were started
    counts while they live and after."""
    run = configure("udrl", "toy-vector")
    home = RunFolder(tmp_path / "run").claim(run, False, exact=False)
    resumed = Checkpoint(Counters(cpu_s=100.0, learn_cpu_s=40.0), [], 0, {}, {}, {})
    for apart, least in ((False, 100.0), (True, 107.0)):
        session = Session(run, home, [], resumed, exact=True)
        session.apart = apart
        resumed.counters.learn_cpu_s = 40.0
        session.note_progress(LearnerProgress(1, 1, cpu_s=7.0))
        session._note_times()
        assert least <= session.counters.cpu_s < least + 5
        assert session.counters.learn_cpu_s == 47.0
        resumed.counters.cpu_s = 100.0
        session.close()
    home.release()
    before = cpu_seconds()
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint(1, flush=True)\ninput()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", spin], stdin=pipe, stdout=pipe) as child:
        child.stdout.readline()
        assert cpu_seconds() - before > 0.4, "it lives"
        child.stdin.close()
        child.wait()
    assert cpu_seconds() - before > 0.4, "it has ended"
