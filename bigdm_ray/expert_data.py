"""`data experts`: demonstrations of the experts that are known, a dataset a task."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def run_experts(given: argparse.Namespace) -> int:
    """`experts`: see `record_experts`."""
    from bigdm_ray.expert_recording import record_experts

    return record_experts(given)


def expert_arguments(parser: argparse.ArgumentParser, whole: Callable[[str], int]) -> None:
    """The arguments of `experts`; `whole` reads a whole number from 1 up."""
    parser.add_argument(
        "names",
        metavar="SUITE[/TASK]",
        nargs="*",
        help="tasks, or suites, of which each task is recorded",
    )
    parser.add_argument(
        "--episodes",
        metavar="N",
        type=whole,
        default=1000,
        help="episodes to play of each task (default: 1000)",
    )
    parser.add_argument(
        "--from",
        dest="run",
        metavar="RUN",
        help="a trained run as the expert: a run folder, or a policy that ships (zoo:NAME)",
    )
    parser.add_argument(
        "--actors",
        metavar="N",
        type=whole,
        default=1,
        help="processes of Ray that play; 1, the default: this process, without Ray",
    )
    parser.add_argument(
        "--folder",
        metavar="ROOT",
        type=Path,
        required=True,
        help="where the datasets go, a folder a task: ROOT/babyai-go-to-local",
    )
    parser.set_defaults(act=run_experts)
