"""The page of the lecture: each command is one that the commands take, each picture is there."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from making import dataset_of

from bigdm_ray import cli
from bigdm_ray.doors import Parser
from bigdm_ray.errors import UserError
from bigdm_ray.pictures.base import pictures
from bigdm_ray.tables.base import grids, overviews
from bigdm_ray.training import config

PAGE = Path(__file__).parent.parent / "docs" / "lecture.md"
TEXT = PAGE.read_text()
COMMANDS = re.findall(r"^    (bigdm .*)$", TEXT, re.MULTILINE)
PLACEHOLDER = re.compile(r"DATA|RUN(-[A-Z0-9]+)?")
WORDS = ("done", "short", "missing")


class Taken(BaseException):
    """The words of a command are such as it takes; it is stopped there."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("lecture") / "data", "toy-continuous", 2).folder


def taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What the parser of a command makes of its words; nothing behind it is run."""
    parse = Parser.parse

    def parsed(self: Parser, arguments: list[str]) -> None:
        raise Taken(parse(self, arguments))

    monkeypatch.setattr(Parser, "parse", parsed)
    with pytest.raises(Taken) as found:
        importlib.import_module(f"bigdm_ray.{words[0]}").main(words[1:])
    return found.value.args[0]


def test_the_page_has_commands():
    assert len(COMMANDS) > 20 and TEXT.count("\nbigdm ") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_taken(command, data, monkeypatch):
    _, name, *words = shlex.split(command)
    assert name in cli.DOORS
    if name == "run":
        if "--from" in words:  # a run that is not there yet
            at = words.index("--from")
            assert PLACEHOLDER.fullmatch(words[at + 1])
            del words[at : at + 2]
        words = [str(data) if word == "DATA" else word for word in words]
        assert config.parse(words).run.algorithm.name == words[0]
        return
    given = taken([name, *words], monkeypatch)
    if name == "reproduce":
        assert given.table in grids() | overviews()
        if given.table in grids():
            grid = grids()[given.table]
            for word in given.only:
                assert any(word in part for part in (*grid.rows, *grid.columns)), word
    if name == "plots":
        asked = [n for n, p in pictures().items() if not p.default and getattr(given, n)]
        assert len(asked) <= 1
        for folder in given.folders:
            assert PLACEHOLDER.fullmatch(str(folder)) or folder.parts[0] == "runs"


def test_a_command_with_a_wrong_flag_would_be_found(data, monkeypatch):
    with pytest.raises(UserError, match=r"unknown argument '--algorithm\.disc'"):
        config.parse(["tt", str(data), "--algorithm.disc", "uniform"])
    with pytest.raises(UserError, match="unknown argument '--weightings'"):
        importlib.import_module("bigdm_ray.plots").main(["RUN", "--weightings"])


def test_every_picture_is_there_and_small():
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert len(shown) >= 8
    for name in shown:
        assert 0 < (PAGE.parent / name).stat().st_size < 150_000, name


def test_every_slide_is_done_short_or_missing():
    said = re.findall(r"\*\*(done|short|missing)\*\*", TEXT)
    assert set(said) == set(WORDS)
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    for section in sections:
        assert re.search(r"\*\*(done|short|missing)\*\*", section), section.partition("\n")[0]


def test_the_page_is_easy_to_read():
    lines = TEXT.splitlines()
    assert len(lines) <= 250 and max(map(len, lines)) <= 100
