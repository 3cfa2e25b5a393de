"""Experts: what is recorded of them, what is left out, and that a stopped recording goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

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
