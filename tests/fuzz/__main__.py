"""Mutants by hand: `python -m tests.fuzz [--kind shards] [--seed 3] [--count 1000] [--only
1234]`."""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.pool import FAULTS, OUTCOMES, Outcome, run, scratch

COUNTS = {
    "shards": 3,
    "checkpoints": 0.8,
    "runs": 0.8,
    "weights": 0.8,
    "metrics": 0.8,
    "cards": 1.5,
    "sets": 1.5,
    "decision": 2,
    "bins": 2,
    "progress": 3,
    "minari-text": 1,
}
"""Mutants of a kind, as a multiple of --count: fewer where a command plays, learns, draws or
starts a process."""
USUAL = 5


def main() -> int:
    """Ask for mutants, and keep in memory what is needed for them."""
    with scratch() as root:
        return table(root)


def table(root: Path) -> int:
    """Print a table of what became of the mutants of each kind, then every fault once; 1 where
    there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="see COUNTS")
    parser.add_argument("--only", type=int, help="the number of one mutant, to show it again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--changed", type=int, default=0, help="show this many accepted changes")
    given = parser.parse_args()
    kinds = given.kind or list(KINDS)
    print(f"{'kind':<14}" + "".join(f"{name:>10}" for name in (*OUTCOMES, "seconds")))
    totals: collections.Counter[str] = collections.Counter()
    faults: list[Outcome] = []
    for name in kinds:
        began = time.monotonic()
        count = int(given.count * COUNTS.get(name, USUAL))
        indices = range(count) if given.only is None else [given.only]
        counts: collections.Counter[str] = collections.Counter()
        shown = 0
        for one in run(KINDS[name], given.seed, indices, root, given.workers):
            counts[one.outcome] += 1
            if given.only is not None:
                print(f"{one.command}: {one.outcome}\n{one.mutation}\n{one.text}")
            if one.outcome in FAULTS:
                faults.append(one)
            elif one.outcome == "changed" and shown < given.changed:
                shown += 1
                print(f"  {one.index} {one.command}: {one.mutation}")
        line = "".join(f"{counts[outcome]:>10,}" for outcome in OUTCOMES)
        print(f"{name:<14}{line}{time.monotonic() - began:>10.0f}", flush=True)
        totals += counts
    print(f"{'all':<14}" + "".join(f"{totals[outcome]:>10,}" for outcome in OUTCOMES))
    for name in kinds:
        if not KINDS[name].sealed:
            print(f"accepted although changed, {name}: {KINDS[name].why}")
    alike: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in faults:
        said = re.sub(r"\d+|'[^']*'|/\S+", "_", one.text)[:90]
        alike.setdefault((one.kind, one.outcome, said), []).append(one)
    for (kind, outcome, _), group in sorted(alike.items(), key=lambda item: -len(item[1])):
        one = group[0]
        print(f"{len(group):>6} {kind} {outcome}, --seed {given.seed} --only {one.index}")
        print(f"       {one.command}; {one.mutation[:200]}\n       {one.text[:400]}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
