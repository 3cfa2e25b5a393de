"""Mutated files over every reader: `python -m tests.fuzz --kind shards --seed 3 --only 1234`.

`mutate.py` changes files, `kinds.py` has a small valid sample of each kind and the commands that
open it, `pool.py` does it in forked children, so that a signal or a hang is seen, and says what
became of each mutant.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
_TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(_TESTS), *(str(_TESTS / name) for name in ("formats", "serving"))]
"""`making`, `sources`, `helpers_serving`"""
