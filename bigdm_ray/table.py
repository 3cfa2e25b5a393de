"""Compare runs: `python -m bigdm_ray.table RUN RUN ...`, one row each, from their summaries.

    python -m bigdm_ray.table runs/udrl-cartpole-*
    python -m bigdm_ray.table runs/* --markdown > results.md

Nothing is played: the scores are those of each run's own final evaluation. On a terminal the
columns are aligned; through a pipe, or with --markdown, it is a Markdown table. Runs that have not
ended are left out, with a note. `python -m bigdm_ray.evaluate RUN RUN ...` plays first. Runs of
several tasks have a second table, by suite: mean and, in brackets, interquartile mean of normalised
scores, of what `evaluate` has played where it has, and the CPU time that the runs took.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import UserError
from bigdm_ray.tables.many_runs import compare_by_suite
from bigdm_ray.tables.runs import WORDS, align, align_columns, markdown, require_summary, row
from bigdm_ray.training.zoo import locate


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(
        prog="python -m bigdm_ray.table",
        description="One row for each run, from its summary; nothing is played.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", metavar="RUN", type=Path, nargs="+", help="run folders")
    parser.add_argument(
        "--markdown", action="store_true", help="a Markdown table on a terminal too"
    )
    given = parser.parse(arguments)
    rows, several = [], []
    for folder in given.folders:
        try:
            summary = require_summary(locate(folder))
            rows.append(row(folder, summary))
            if "tasks" in summary:
                several.append((locate(folder), summary))
        except UserError as error:
            if len(given.folders) == 1:
                raise
            print(f"note: {error}", file=sys.stderr)
    if not rows:
        raise UserError("none of these folders holds a run that has ended; nothing to compare")
    plain = sys.stdout.isatty() and not given.markdown
    print(align_columns(rows) if plain else markdown(rows))
    if several:
        head, own = compare_by_suite(several)
        print()
        print(align(head, own, WORDS) if plain else markdown(own, head))
    return 0


if __name__ == "__main__":
    raise SystemExit(door(main))
