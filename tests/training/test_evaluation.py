"""Evaluation: streams of its own, the reference environments, and the same score whenever it is
asked for."""

import dataclasses
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest

from bigdm_ray.envs import find_task
from bigdm_ray.errors import RunFailed
from bigdm_ray.training.config import configure
from bigdm_ray.training.evaluation import Evaluator, Score, bootstrap_interval, evaluate, play
from bigdm_ray.training.learner import Learner
from bigdm_ray.training.metrics import TerminalReporter
from bigdm_ray.training.rollout import RandomPolicy

COMMAND = {"desired_return": 8.0, "desired_horizon": 10.0}


def policy_of(task):
    return RandomPolicy(find_task(task).signature())


def test_a_score_is_the_same_whenever_and_on_whatever_environment_it_is_asked_for():
    """An evaluator keeps its environments; what it scored before, and how much, does not show."""
    run = configure(
        "udrl", "toy-mixed", ["--algorithm.hidden", "16,16", "--algorithm.channels", "4,4"]
    )
    weights = Learner(run.algorithm, {"toy-mixed": find_task("toy-mixed").signature()}, 5).weights(
        0
    )
    kept, fresh = Evaluator(run), Evaluator(run)

    def score(who, episodes, purpose, round):
        return who.score(weights, {"toy-mixed": COMMAND}, episodes, purpose, round)["toy-mixed"]

    score(kept, 7, "validation", 0)
    score(kept, 60, "final", 0)
    score(kept, 7, "validation", 3)
    a, b = score(kept, 7, "validation", 1), score(fresh, 7, "validation", 1)
    np.testing.assert_array_equal(a.returns, b.returns)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    for purpose, round in (("validation", 2), ("final", 1)):
        assert not np.array_equal(a.returns, score(fresh, 7, purpose, round).returns)
    kept.close()
    fresh.close()


def test_episodes_are_played_on_the_reference_with_the_command_given():
    task = find_task("lunarlander-sparse")
    played = play(
        policy_of("lunarlander-sparse"),
        task,
        {"desired_return": np.full(3, 200, np.float32)},
        3,
        1,
        "final",
        0,
    )
    assert [e.command for e in played.episodes] == [{"desired_return": 200.0}] * 3
    env = task.make(3, played.episodes[0].seed, "reference")
    np.testing.assert_array_equal(
        env.reset(np.arange(3)).observations[""],
        np.stack([e.observations[""][0] for e in played.episodes]),
    )
    env.close()
    assert {e.source for e in played.episodes} == {"final"}


def test_an_interval_does_not_pass_what_returns_can_be():
    """Most reach the limit of 500: the mean's interval ends there, and is the normal one
    elsewhere."""
    many = np.array([500.0] * 48 + [100.0, 20.0])
    for returns in (many, -many):
        score = Score(returns, np.full(50, 5), COMMAND).summary(find_task("toy-vector"))
        assert abs(score["return_low"]) <= 500 and abs(score["return_high"]) <= 500
    usual = np.random.default_rng(0).normal(50, 10, 400)
    told = Score(usual, np.full(400, 5), COMMAND).summary(find_task("toy-vector"))
    assert told["return_high"] - told["return_low"] == pytest.approx(2 * 1.96 / 2, rel=0.15)


def test_the_summary_is_what_the_numbers_say():
    score = Score(np.array([1.0, 2, 3, 6]), np.array([5, 5, 6, 8]), COMMAND)
    told = score.summary(
        dataclasses.replace(find_task("toy-vector"), reference_returns=(2.0, 12.0))
    )
    std = math.sqrt(14 / 4)
    assert told["return_mean"] == 3 and told["return_std"] == pytest.approx(std)
    assert 1 <= told["return_low"] < 3 < told["return_high"] <= 6
    assert (
        told["return_min"],
        told["return_max"],
        told["length_mean"],
        told["return_episodes"],
    ) == (1, 6, 6, 4)
    assert told["normalized_score"] == pytest.approx(10)
    assert score.summary(find_task("lunarlander"))["normalized_score"] is None


def test_an_actions_latency_is_its_calls_time_by_the_rows_that_acted():
    """Percentiles are over actions: 97 of them took 2 ms each, two 5 ms, one 40 ms."""
    score = Score(
        np.zeros(1),
        np.ones(1),
        {},
        np.array([0.096, 0.010, 0.040, 0.098]),
        np.array([48, 2, 1, 49]),
    )
    assert score.latency() == {
        "act_p50_ms": pytest.approx(2),
        "act_p99_ms": pytest.approx(5),
        "acted_together": 25,
    }
    assert Score(np.zeros(1), np.ones(1), {}).latency() == {}


def test_what_is_timed_is_the_policys_acting_and_every_action_counts(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(
        "bigdm_ray.training.rollout.time", SimpleNamespace(perf_counter=lambda: clock[0])
    )

    class Slow(RandomPolicy):
        def act(self, *arguments):
            clock[0] += 0.02
            return super().act(*arguments)

        def after(self, *arguments):
            clock[0] += 1.0
            return super().after(*arguments)

    task = find_task("toy-vector")
    score, plain = (
        evaluate(kind(task.signature()), task, COMMAND, 5, 1, "final", 0)
        for kind in (Slow, RandomPolicy)
    )
    assert score.acted.sum() == score.lengths.sum() and score.acted.max() == 5
    np.testing.assert_allclose(score.seconds, 0.02)
    assert score.latency()["act_p50_ms"] == pytest.approx(20 / 5)
    assert not plain.seconds.any()
    np.testing.assert_array_equal(score.returns, plain.returns)


def test_broken_episodes_are_left_out_and_nothing_but_broken_ones_is_told():
    score = evaluate(policy_of("toy-broken"), find_task("toy-broken"), {}, 30, 1, "final", 0)
    assert 0 < len(score.returns) < 30 and (score.lengths >= 8).all()
    with pytest.raises(
        RunFailed,
        match=r"no evaluation episode of toy-nan could be played to its end: .*reward of nan",
    ):
        evaluate(policy_of("toy-nan"), find_task("toy-nan"), {}, 5, 1, "final", 0)


def test_scoring_does_not_train():
    """The weights that were scored are the weights that there were."""
    run = configure("udrl", "toy-vector", ["--algorithm.hidden", "16,16"])
    learner = Learner(run.algorithm, {"toy-vector": find_task("toy-vector").signature()}, 5)
    before = learner.state()
    evaluator = Evaluator(run)
    evaluator.score(learner.weights(0), {"toy-vector": COMMAND}, 5, "validation", 0)
    evaluator.close()
    for name, values in learner.state().items():
        np.testing.assert_array_equal(values, before[name])


def test_bootstrap_intervals_cover_the_mean_and_shrink_with_the_sample():
    chance = np.random.default_rng(0)
    widths = []
    for n in (25, 400):
        values = chance.normal(5, 2, (n, 3))
        low, high = bootstrap_interval(values)
        assert (
            low.shape == high.shape == (3,)
            and (low < values.mean(0)).all()
            and (values.mean(0) < high).all()
        )
        widths.append((high - low).mean())
        assert widths[-1] == pytest.approx(2 * 1.96 * 2 / np.sqrt(n), rel=0.35)
    assert widths[1] < widths[0] / 3
    np.testing.assert_array_equal(bootstrap_interval(values)[0], bootstrap_interval(values)[0])


@pytest.mark.parametrize(
    ("score", "says"),
    [({"evaluation/normalized_score": 71.8}, ", normalised score 71.8"), ({}, "")],
)
def test_a_terminal_shows_the_normalised_score_where_there_is_one(score, says):
    stream = io.StringIO()
    stream.isatty = lambda: True
    terminal = TerminalReporter(1000, stream)
    terminal(
        {
            "time/env_steps": 500.0,
            "evaluation/return_mean": 0.7,
            "evaluation/return_std": 0.4,
            **score,
        }
    )
    terminal.close()
    assert f"return      0.7 +- 0.4{says}\n" in stream.getvalue()
