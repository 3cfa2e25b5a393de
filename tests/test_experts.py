"""Experts: what is recorded of them, what is left out, and that a stopped recording goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from making import played

from bigdm_ray.data import main
from bigdm_ray.doors import door
from bigdm_ray.envs import find_task
from bigdm_ray.experts import demonstrations
from bigdm_ray.formats.dataset import Dataset


def record(*words: str) -> int:
    return door(main, ["experts", *words, "--quiet"])


def test_babyais_bot_is_recorded_with_the_returns_that_scores_are_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("babyai/go-to-obj", "--episodes", "12", "--folder", str(tmp_path))
    assert record(*words) == 0
    told = capsys.readouterr().out
    assert "12 of 12 episodes of babyai-bot kept" in told and "success 100.0 %" in told
    data = Dataset.open(tmp_path / "babyai-go-to-obj")
    store = data.store()
    assert data.task == "go-to-obj" and len(store.table) == 12
    grid = data.signature.observations["image"]
    assert grid.kind == "grid" and grid.shape == (7, 7, 3) and grid.dtype == "uint8"
    assert data.signature.observations["mission"].per == "episode"
    assert (store.table.returns > 0.5).all()
    random, expert = data.reference_returns or (0.0, 0.0)
    assert random < 0.5 < expert
    assert record(*words) == 0
    assert "recorded already" in capsys.readouterr().out


def test_the_scripted_policy_of_the_arm_succeeds(tmp_path: Path) -> None:
    assert record("metaworld/reach", "--episodes", "4", "--folder", str(tmp_path)) == 0
    store = Dataset.open(tmp_path / "metaworld-reach").store()
    assert store.table.lengths.tolist() == [100] * 4
    random, expert = find_task("metaworld/reach").reference_returns or (0.0, 0.0)
    assert store.table.returns.mean() > (random + expert) / 2


def test_what_has_no_expert_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record("pendulum", "--folder", str(tmp_path)) == 2
    told = capsys.readouterr().err
    assert "no expert" in told and "Traceback" not in told
    assert record("--folder", str(tmp_path)) == 2
    assert "give the tasks to be recorded" in capsys.readouterr().err


def test_a_recording_that_was_stopped_goes_on_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstrations, "PART", 4)
    words = ("babyai/go-to-obj", "--episodes", "12", "--folder")
    assert record(*words, str(tmp_path / "whole")) == 0
    play, played = demonstrations.play_part, []

    def stop(*given: object) -> list[str]:
        played.append(given)
        if len(played) == 3:
            raise KeyboardInterrupt
        return play(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(demonstrations, "play_part", stop)
    assert record(*words, str(tmp_path / "cut")) != 0
    assert not (tmp_path / "cut" / "babyai-go-to-obj" / "dataset.json").exists()
    assert record(*words, str(tmp_path / "cut")) == 0
    assert len(played) == 4, "the two that were finished are not played again"
    hashes = {Dataset.open(tmp_path / n / "babyai-go-to-obj").sha256 for n in ("whole", "cut")}
    assert len(hashes) == 1


def test_an_experts_return_is_that_of_its_best_stretch_where_it_was_trained():
    returns = np.repeat([0.0, 10.0, 4.0], 10)
    assert demonstrations.expert_return(returns, learned=False) == pytest.approx(14 / 3)
    assert demonstrations.expert_return(returns, learned=True) == 10.0  # windows of three
    assert demonstrations.expert_return(np.array([-5.0]), learned=True) == -5.0
    rising = np.arange(40_000.0)
    assert demonstrations.expert_return(rising, learned=True) == rising[-1000:].mean()


def test_poor_episodes_are_left_out_by_the_way_from_random_up(tmp_path, monkeypatch):
    """Returns may be negative: 80 % of a negative number would be above the expert."""
    monkeypatch.setattr(demonstrations, "RANDOM_EPISODES", 8)
    assert record("lunarlander", "--episodes", "12", "--folder", str(tmp_path)) == 0
    data = Dataset.open(tmp_path / "box2d-lunarlander")
    low, high = data.reference_returns
    assert low < 0 < high
    returns = data.returns()[0]
    assert (returns >= low + 0.8 * (high - low)).all() and len(returns) <= 12


def test_an_expert_that_never_succeeds_is_one_sentence_and_what_was_recorded_stays(
    tmp_path, capsys
):
    """The bot raises in this level, in every episode."""
    words = ("four-rooms", "babyai/put-next-s5n2-carrying", "--episodes", "2")
    assert record(*words, "--folder", str(tmp_path)) == 1
    told = capsys.readouterr()
    assert "four-rooms: 2 of 2 episodes" in told.out and "success 100.0 %" in told.out
    assert told.err.count("never succeeded in 2 episodes") == 1 and "Traceback" not in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fourrooms-four-rooms"]


def test_a_dataset_of_another_recording_is_not_taken_for_this_one(tmp_path, capsys):
    assert record("four-rooms", "--episodes", "2", "--folder", str(tmp_path)) == 0
    assert record("four-rooms", "--episodes", "3", "--folder", str(tmp_path)) == 2
    assert "exists already and is not 3 episodes of the expert" in capsys.readouterr().err


def test_both_backends_tell_missions_and_successes_alike():
    for backend in ("fast", "reference"):
        seen = played("go-to-obj", 2, 1, 2, backend).episodes[0].observations
        words = bytes(seen["mission"][0]).rstrip(b"\0").decode()
        assert words.startswith("go to ") and seen["mission"].strides[0] == 0
        assert seen["image"].shape[1:] == (7, 7, 3)
        told = played("metaworld/reach", 1, 1, 1, backend)
        assert told.successes == [False], "random actions do not reach the goal"


def test_what_another_engine_plays_otherwise_or_without_end_the_reference_plays():
    assert find_task("metaworld/door-lock").backend == "reference"
    assert find_task("synth-s5r2").backend == "reference"
    assert find_task("metaworld/reach").backend == find_task("go-to-local").backend == "fast"
