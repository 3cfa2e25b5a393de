"""Random streams named by counters: never saved, the same wherever and whenever they are asked
for."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def rng(seed: int, name: str, *counters: int) -> np.random.Generator:
    """The stream of a purpose (`draw`, `ask`, `play`, `evaluate`, ...) at some counters, each >=
    0."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *counters]))
    )


def derived_seed(seed: int, name: str, *counters: int) -> int:
    """A 31-bit seed for foreign libraries, from the same kind of name."""
    return int(
        np.random.SeedSequence([seed, zlib.crc32(name.encode()), *counters]).generate_state(1)[0]
        & 0x7FFFFFFF
    )


def seed_torch(seed: int, name: str, *counters: int) -> None:
    """Set torch's random state for what follows (initial weights, dropout).

    Not `torch.manual_seed`: without a GPU that queues a call with its traceback, for ever.
    """
    number = derived_seed(seed, name, *counters)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
