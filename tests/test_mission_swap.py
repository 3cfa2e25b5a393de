"""Missions that are swapped: a policy that does what it is told reaches the new goal, one that does
not the old."""

from __future__ import annotations

import gymnasium
import pytest

pytest.importorskip("minigrid")

from minigrid.utils.baby_ai_bot import BabyAIBot

from tests.benchmarks.mission_swap import SwappedMission, describe_swap, measure_swap


def level(name="BabyAI-GoToLocal-v0"):
    return gymnasium.make(name, disable_env_checker=True)


def bot(obeys):
    """BabyAI's bot, told the mission that stands in the observation, or always the level's own."""

    def play(make, episodes):
        env = make()
        for seed in range(episodes):
            env.reset(seed=seed)
            told = env.level.instrs
            env.level.instrs = told if obeys else env.own
            player, ended, action = BabyAIBot(env.level), False, None
            env.level.instrs = told
            while not ended:
                done = action == env.level.actions.done
                action = env.level.actions.done if done else player.replan(action)
                _, _, terminated, truncated, _ = env.step(action)
                ended = terminated or truncated

    return play


def test_the_bot_follows_the_mission_that_it_is_told():
    found = measure_swap(level, bot(obeys=True), 25)
    assert found["episodes"] == 25 and found["right"] == found["new"] == 1.0
    assert found["old"] < 0.3 and found["new_of_right"] == 1.0
    assert "told another, that one is reached in 100%" in describe_swap(found)


def test_who_ignores_the_mission_reaches_the_old_goal():
    found = measure_swap(level, bot(obeys=False), 15)
    assert found["right"] == found["old"] == 1.0 and found["new"] < 0.4


def test_the_grid_stays_and_the_words_are_of_another_object_in_it():
    own, swapped = SwappedMission(level(), False), SwappedMission(level(), True)
    for seed in range(8):
        before, _ = own.reset(seed=seed)
        after, _ = swapped.reset(seed=seed)
        assert (before["image"] == after["image"]).all()
        assert before["direction"] == after["direction"]
        assert before["mission"] == own.own.surface(own.level) != after["mission"]
        kind, colour = swapped.level.instrs.desc.type, swapped.level.instrs.desc.color
        assert after["mission"].endswith(f"{colour} {kind}")
        assert any((o.type, o.color) == (kind, colour) for o in swapped.level.grid.grid if o)
    with pytest.raises(ValueError, match="has no other to swap it with; a level where one goes to"):
        SwappedMission(level("BabyAI-Open-v0"), True).reset(seed=0)
