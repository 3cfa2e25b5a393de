"""Texts as pieces: the vocabulary travels with the weights, as a buffer that nobody trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bigdm_ray.errors import UserError
from bigdm_ray.tokens.text import Vocabulary

PAD = -1
"""Where a text has no more pieces."""


class Pieces(nn.Module):
    """UTF-8 texts, padded with zeros, as numbers of pieces."""

    model: Tensor  # [bytes] uint8, the SentencePiece model

    def __init__(self, vocabulary: str, most: int) -> None:
        """`most` pieces of a text are read. Raises UserError for a vocabulary that is not there."""
        super().__init__()
        self._vocabulary = Vocabulary.load(vocabulary)
        self._name = vocabulary
        self._known: dict[bytes, list[int]] = {}
        self.most, self.size = most, self._vocabulary.size
        data = np.frombuffer(self._vocabulary.data, np.uint8).copy()
        self.register_buffer("model", torch.from_numpy(data))

    def check(self) -> None:
        """Raise UserError where the weights were trained with another vocabulary."""
        if self.model.cpu().numpy().tobytes() != self._vocabulary.data:
            raise UserError(
                f"these weights are of another vocabulary than {self._name!r} is here; give the one"
                " that they were trained with (--algorithm.vocabulary)"
            )

    def encode(self, text: bytes) -> list[int]:
        """The numbers of a text's first pieces."""
        text = text.rstrip(b"\0")
        found = self._known.get(text)
        if found is None:
            if len(self._known) > 100_000:
                self._known.clear()
            found = self._known[text] = self._vocabulary.encode(text)[: self.most]
        return found

    def rows(self, texts: list[bytes]) -> np.ndarray:
        """Texts as pieces `[n, p]` int64, with PAD behind the shorter ones; p is at least 1."""
        found = [self.encode(text) for text in texts]
        out = np.full((len(found), max([1, *map(len, found)])), PAD, np.int64)
        for row, pieces in zip(out, found, strict=True):
            row[: len(pieces)] = pieces
        return out
