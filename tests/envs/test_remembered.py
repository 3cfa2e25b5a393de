"""Signatures remembered on disk: what is wrong with them costs an environment, not a run."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from bigdm_ray.envs import remembered, task
from bigdm_ray.envs.task import Task, find_task
from bigdm_ray.errors import RunFailed

NAME = "toy-mixed"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A cache of one's own; a list that grows where an environment says its signature."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task._signature_by_name.cache_clear()
    said, here = [], Task.signature_here
    monkeypatch.setattr(
        Task, "signature_here", lambda self: (said.append(self.name), here(self))[1]
    )
    yield said
    task._signature_by_name.cache_clear()


def again(name=NAME):
    task._signature_by_name.cache_clear()
    return find_task(name).signature()


def entry():
    (file,) = remembered.folder().iterdir()
    return file


def test_it_is_looked_at_once_and_read_from_then_on(made, tmp_path):
    first = again()
    assert made == [NAME] and remembered.folder() == tmp_path / "bigdm-ray" / "signatures"
    assert again() == first and again() == first and made == [NAME]
    assert json.loads(entry().read_text())["key"]["task"] == "toys/toy-mixed"


def test_in_one_process_no_number_of_tasks_is_too_many(made):
    names = [f"gymnasium:CartPole-v1?max_episode_steps={n}" for n in range(10, 80)]
    found = [find_task(name).signature() for name in names]
    count = len(made)
    assert [find_task(name).signature() for name in names] == found and len(made) == count


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "cut", "bit", "other", "kinds"])
def test_what_is_not_whole_is_as_if_it_were_not_there(made, damage):
    first, text = again(), entry().read_text()
    told = json.loads(text)
    if damage == "other":
        told["key"]["task"] = "another"
    if damage == "kinds":
        told["signature"]["actions"] = [[[]]]
        told["sum"] = remembered._sum({"key": told["key"], "signature": told["signature"]})
    damaged = {"cut": text[:-40], "bit": text.replace("float32", "float64", 1)}
    entry().write_text(
        json.dumps(told) if damage in ("other", "kinds") else damaged.get(damage, damage)
    )
    assert again() == first and made == [NAME, NAME]
    assert again() == first and made == [NAME, NAME], "it is written anew"


def test_where_nothing_can_be_written_nothing_is(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert again() == again() and made == [NAME, NAME]


def test_it_holds_for_the_packages_and_files_that_it_was_made_with(made, tmp_path, monkeypatch):
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "one.py").write_text("")
    key = remembered.key_of("a/b", [suite], ["numpy"])
    assert key == remembered.key_of("a/b", [suite], ["numpy"])
    assert key != remembered.key_of("a/b?c=1", [suite], ["numpy"])
    assert key != remembered.key_of("a/b", [suite], ["torch"])
    monkeypatch.setattr(remembered.metadata, "version", lambda name: "another")
    assert key != remembered.key_of("a/b", [suite], ["numpy"])
    monkeypatch.undo()
    os.utime(suite / "one.py", (1, 1))
    assert key != remembered.key_of("a/b", [suite], ["numpy"])
    assert remembered.key_of("a/b", [suite], ["nothing_of_the_kind"]) is None


def test_code_of_ones_own_is_not_remembered(made, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Own(CartPoleEnv): pass\ngymnasium.register('Own-v0', 'mine:Own')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mine:Own-v0", "gymnasium:Own-v0"):
        again(name), again(name)
        assert made.count(name) == 2
    assert not remembered.folder().exists()
    again("gymnasium:CartPole-v1?sutton_barto_reward=true")
    assert "sutton_barto_reward=true" in entry().read_text()
    sys.modules.pop("mine")


def test_a_memory_that_is_not_true_is_forgotten_and_said(made):
    first = again()
    wrong = dataclasses.replace(first, actions={})
    remembered.remember(task._key(find_task(NAME)), wrong)
    assert again() == wrong
    with pytest.raises(RunFailed, match=r"are not what was remembered of them .* start again"):
        find_task(NAME).make(2, 0)
    assert again() == first
    env = find_task(NAME).make(2, 0)
    assert env.reset(np.arange(2)).is_sound
    env.close()
