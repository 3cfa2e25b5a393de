"""A few hundred mutants of every kind: each is refused in one sentence, told, or comes in where
nothing could tell.

Longer by hand: `python -m tests.fuzz --count 1000`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bigdm_ray.errors import UserError
from tests.fuzz import pool
from tests.fuzz.kinds import KINDS, Command, Kind
from tests.fuzz.mutate import INNER, RAW, VICTIM, mutated, of_bytes, of_json
from tests.fuzz.pool import FAULTS, run, scratch

COUNTS = {
    "shards": 32,
    "forged": 32,
    "checkpoints": 12,
    "runs": 15,
    "weights": 12,
    "metrics": 12,
    "cards": 24,
    "sets": 18,
    "decision": 40,
    "bins": 24,
    "minari-text": 8,
}
"""Mutants of kinds some of whose commands play, learn or draw; of the others there are more."""


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


@pytest.mark.parametrize("name", KINDS)
def test_no_mutant_ends_otherwise_than_it_may(name: str, root: Path) -> None:
    count = COUNTS.get(name, 50)
    found = list(run(KINDS[name], 0, range(count), root))
    assert sorted(one.index for one in found) == list(range(count))
    faults = [one for one in found if one.outcome in FAULTS]
    shown = [f"--kind {name} --only {one.index}: {one.outcome}: {one.text}" for one in faults]
    assert not faults, "\n".join(shown)
    unseen = name == "progress"  # what does not fit is imported anew, so that nothing differs
    assert unseen or {one.outcome for one in found} - {"same"}, "no change was seen"


def test_a_mutant_is_made_again_from_its_seed_and_number(tmp_path: Path) -> None:
    for suffix, data in ((".bin", bytes(range(256)) * 9), (".json", b'{"a": [1, {"b": "c"}]}')):
        made = []
        for number in (3, 3, 4):
            path = tmp_path / f"file{suffix}"
            path.write_bytes(data)
            mutated(path, np.random.default_rng([1, number]))
            made.append(path.read_bytes())
        assert made[0] == made[1] != made[2]


def test_mutations_change_every_part_of_a_file() -> None:
    data, sizes, touched = bytes(1000), set(), set()
    for number in range(600):
        out, what = of_bytes(data, np.random.default_rng(number))
        sizes.add(np.sign(len(out) - len(data)))
        touched |= {at for at, value in enumerate(out[:1000]) if value}
        assert what
    assert sizes == {-1, 0, 1} and len(touched) > 500
    whole = json.dumps({"a": {"b": [1, 2.5, "text"]}, "c": None}).encode()
    texts = {of_json(whole, np.random.default_rng(number))[0].decode() for number in range(900)}
    for wanted in (*RAW.values(), VICTIM, "extra", "\\ud800"):
        assert any(wanted in text for text in texts), wanted[:20]
    assert set(INNER) == {".json", ".jsonl", ".safetensors", ".gz", ".parquet", ".hdf5"}


def _kill(_: Path) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def _spin(_: Path) -> int:
    end = time.process_time() + 60
    while time.process_time() < end:
        pass
    return 0


def _raise(_: Path) -> int:
    raise KeyError("nothing caught it")


def _refuse(message: str) -> int:
    raise UserError(message)


def _chatter(_: Path) -> int:
    print("first\nerror: second", file=sys.stderr)
    return 2


def _move(folder: Path) -> int:
    (folder.parent / VICTIM).rename(folder / "gone")
    return 0


@pytest.mark.parametrize(
    ("go", "outcome", "told"),
    [
        (_kill, "signal", "SIGSEGV"),
        (_spin, "hang", "SIGPROF"),
        (_raise, "traceback", "KeyError at "),
        (lambda f: bytearray(1 << 40) and 0, "memory", "not enough memory"),
        (lambda f: _refuse("wrong; do this"), "refused", "wrong; do this"),
        (_chatter, "untidy", "first"),
        (_move, "escape", ""),
        (lambda f: 0, "silent", ""),
    ],
    ids=["signal", "hang", "traceback", "memory", "refused", "untidy", "escape", "silent"],
)
def test_what_became_of_a_mutant_is_seen(
    go: object, outcome: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample opens well; what its mutant does is seen, and the child after a dead one goes
    on."""
    monkeypatch.setattr(pool, "CPU_S", 0.2)
    sound = b"sound"

    def opened(folder: Path) -> int:
        return 0 if (folder / "file").read_bytes() == sound else int(go(folder) or 0)  # type: ignore[operator]

    command = Command("open", opened, lambda f: (f / "file").read_text(errors="replace"))
    kind = Kind("made", lambda f: (f / "file").write_bytes(sound), ("file",), (command,), True)
    found = list(run(kind, 0, range(4), tmp_path))
    assert [one.index for one in found] == [0, 1, 2, 3]
    changed = [one for one in found if one.outcome != "same"]
    assert len(changed) >= 3
    for one in changed:
        assert one.outcome == outcome and told in one.text, one
