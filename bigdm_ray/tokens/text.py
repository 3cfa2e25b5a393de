"""Text as pieces of words: SentencePiece (Kudo and Richardson 2018), whose model is a file.

Any UTF-8 text can be told and comes back as it was: letters without a piece are told by their
bytes. `small`, which ships, was made of the missions of BabyAI's levels and of names of tasks by

    python -m bigdm_ray.data vocabulary DATASET... --pieces 512 --file small.model

`mistral` is the vocabulary of 32,000 pieces that the wheel `mistral-common` holds (Apache-2.0).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.errors import UserError, install

MOST = 4096
"""Pieces that a vocabulary trained here has, at most."""
MODELS = Path(__file__).parent
"""Where those lie that ship."""


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f"texts are cut into pieces by the package 'sentencepiece' ({error}); install it with: "
            f"{install('text')}"
        ) from None
    return sentencepiece


class Vocabulary:
    """Pieces by number, `size` of them. `data` is the file's content."""

    def __init__(self, data: bytes, name: str = "the vocabulary") -> None:
        """Raises UserError for what is no SentencePiece model."""
        self.data = data
        try:
            self._pieces = _library().SentencePieceProcessor(model_proto=data)
            self.size = int(self._pieces.vocab_size())
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{name} is no SentencePiece model ({str(error).splitlines()[0][:200]}); give a"
                " file that `python -m bigdm_ray.data vocabulary` has made"
            ) from None

    @staticmethod
    def load(name: str) -> Vocabulary:
        """A vocabulary that ships, `mistral`, or a file. Raises UserError for one that is not
        there."""
        path = MODELS / f"{name}.model" if "." not in name and "/" not in name else Path(name)
        if name == "mistral":
            path = _mistral()
        try:
            return Vocabulary(path.read_bytes(), str(path))
        except OSError as error:
            known = ", ".join(sorted([*(one.stem for one in MODELS.glob("*.model")), "mistral"]))
            raise UserError(
                f"there is no vocabulary {name!r} ({error.strerror}); known are {known}, or give a"
                " FILE.model"
            ) from None

    @staticmethod
    def train(texts: Iterable[str], size: int) -> Vocabulary:
        """A vocabulary of at most `size` pieces, fewer where the texts have not as many.

        The same texts give the same one. Raises UserError for no text, or for a size that is too
        small for the bytes alone.
        """
        lines = [line for text in texts for line in text.splitlines() if line.strip()]
        if not lines:
            raise UserError(
                "there is no text to make a vocabulary of; give datasets whose observations have a"
                " text, or files of text"
            )
        if not 300 <= size <= MOST:
            raise UserError(f"--pieces is {size}, but 300 to {MOST} are expected")
        out = io.BytesIO()
        try:
            _library().SentencePieceTrainer.train(
                sentence_iterator=iter(sorted(lines)),
                model_writer=out,
                vocab_size=size,
                model_type="bpe",
                byte_fallback=True,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=True,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"no vocabulary can be made of this text ({str(error)[:200]})"
            ) from None
        return Vocabulary(out.getvalue())

    def encode(self, text: bytes) -> list[int]:
        """The numbers of a UTF-8 text's pieces; bytes that are no UTF-8 are told as U+FFFD."""
        found: list[int] = self._pieces.encode(text.decode(errors="replace"))
        return found

    def decode(self, numbers: Iterable[int]) -> bytes:
        """The text of pieces."""
        told: str = self._pieces.decode([int(one) for one in numbers])
        return told.encode()


def _mistral() -> Path:
    """Where the wheel's vocabulary lies; its package is not imported, whose needs are many."""
    found = None
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        raise UserError(
            "the vocabulary 'mistral' is that of the package mistral-common, which is not"
            " installed; install it with: pip install --no-deps mistral-common"
        )
    return Path(found.origin).parent / "data" / "tokenizer.model.v1"


def words_of(name: str) -> str:
    """A task's name in words: `babyai/go-to-local` as `babyai go to local`."""
    return " ".join(re.findall(r"[a-z]+|\d+", name.lower()))


def texts_of(values: np.ndarray) -> list[str]:
    """Texts of a leaf `[n, bytes]`, padded with zeros."""
    rows = np.ascontiguousarray(values)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
