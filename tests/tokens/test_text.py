"""Texts as pieces: what is told comes back, and a vocabulary is made by a command."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from making import dataset_of

from bigdm_ray.data import main
from bigdm_ray.doors import door
from bigdm_ray.errors import UserError
from bigdm_ray.tokens.text import Vocabulary

SMALL = Vocabulary.load("small")


@settings(max_examples=200, deadline=None)
@given(some.text(some.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(text: str) -> None:
    told = SMALL.encode(text.encode())
    assert all(0 <= piece < SMALL.size for piece in told)
    assert SMALL.decode(told) == text.encode()


def test_words_of_missions_are_single_pieces() -> None:
    assert len(SMALL.encode(b"put the green key next to the purple ball")) == 9
    assert SMALL.size == 512


def test_a_vocabulary_is_made_by_a_command_the_same_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("open the yellow door\nopen the grey box\n" * 9)
    dataset_of(tmp_path / "data", "toy-mixed", 4)
    sources = [str(tmp_path / "lines.txt"), str(tmp_path / "data")]
    made = []
    for name in ("a.model", "b.model"):
        words = ["vocabulary", *sources, "--pieces", "300", "--file", str(tmp_path / name)]
        assert door(main, words) == 0
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] and "300 pieces" in capsys.readouterr().out
    mine = Vocabulary.load(str(tmp_path / "a.model"))
    assert mine.decode(mine.encode(b"open the grey door")) == b"open the grey door"
    assert door(main, words) == 2
    assert "exists already" in capsys.readouterr().err


WRONG = [
    (["none.txt"], [], "is no dataset and cannot be read as text"),
    (["empty.txt"], [], "there is no text to make a vocabulary of"),
    (["lines.txt"], ["--pieces", "9000"], "--pieces is 9000, but 300 to 4096"),
]


@pytest.mark.parametrize(("sources", "more", "told"), WRONG)
def test_what_makes_no_vocabulary_is_one_sentence(
    sources: list[str],
    more: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "lines.txt").write_text("some words\n")
    words = ["vocabulary", *(str(tmp_path / one) for one in sources), *more]
    assert door(main, [*words, "--file", str(tmp_path / "out.model")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out.model").exists()


def test_what_is_no_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"x.model is no SentencePiece model"):
        Vocabulary.load(str(tmp_path / "x.model"))
    with pytest.raises(UserError, match="pip install --no-deps mistral-common"):
        Vocabulary.load("mistral")
