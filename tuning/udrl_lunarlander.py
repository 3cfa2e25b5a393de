"""Sweep UDRL's hyperparameters on LunarLander over the grid of the paper (appendix B) with Ray
Tune.

    python tuning/udrl_lunarlander.py --folder runs/tune-lunarlander
            48 samples of 2 million steps, 2 at a time
    python tuning/udrl_lunarlander.py --folder runs/tune-lunarlander
            the same again goes on where it was stopped
    python tuning/udrl_lunarlander.py --dashboard   with Ray's web page, whose address is told
    tensorboard --logdir runs/tune-lunarlander/trials   curves; the tab HParams compares the trials
    python tuning/udrl_lunarlander.py --help

A trial is an ordinary run with a run folder of its own (FOLDER/trials/ID), trained in one process
(`--local`) on one CPU, so what Tune reserves is exactly what a trial uses. A trial through actors
would not be: they ask Ray for nodes of their own choice (SPREAD), stand outside the trial's
placement group, and would wait for CPUs that Tune holds. To use a cluster, raise --concurrent:
trials, not their parts, are spread over it, and FOLDER must lie where all nodes see it.

Each evaluation is reported to Tune under the names of metrics.jsonl. ASHA stops a trial at a rung
(a number of environment steps) unless its score is among the best 1 / factor of those that came
there before; the factor is the ratio of the rungs. A trial that fails is listed with its error and
tried again when the sweep is taken up again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray import stopping
from bigdm_ray.distributed.cluster import cluster
from bigdm_ray.doors import Parser, door
from bigdm_ray.errors import UserError
from bigdm_ray.replay.shard import publish
from bigdm_ray.training.config import Run, configure, run_from_json
from bigdm_ray.training.loop import train_local
from bigdm_ray.training.metrics import Report

# isort: split
from ray import tune  # after bigdm_ray.distributed, which sets what Ray reads when it is imported

SCORE, STEPS = "evaluation/return_mean", "time/env_steps"

GRID: dict[str, Any] = {
    "hidden": [
        [32],
        [32, 32],
        [32, 64],
        [32, 64, 64],
        [32, 64, 64, 64],
        [64],
        [64, 64],
        [64, 128],
        [64, 128, 128],
        [64, 128, 128, 128],
    ],
    "batch_size": [512, 768, 1024, 1536, 2048],
    "horizon_scale": [0.01, 0.015, 0.02, 0.025, 0.03],
    "return_scale": [0.01, 0.015, 0.02, 0.025, 0.03],
    "last_few": [25, 50, 75, 100],
    "learning_rate": [float(f"{rate:.6g}") for rate in np.logspace(-4, -2, 101)],
    "episodes_per_iteration": [10, 20, 30, 40],
    "n_updates_per_iter": [100, 150, 200, 250, 300],
    "warm_up_episodes": [10, 30, 50],
    "replay_size": [300, 400, 500, 600, 700],
}
"""Fields of `Udrl` and the values that the paper drew them from."""


def trial(config: dict[str, Any], base: dict[str, Any], root: str) -> None:
    """One run of the sweep; it goes on from its checkpoint where its folder holds one."""
    run = run_from_json(base | {"algorithm": base["algorithm"] | config})
    folder = Path(root) / "trials" / tune.get_context().get_trial_id()

    def report(metrics: Report) -> None:
        if SCORE in metrics:  # other reports carry no score that a scheduler could judge
            tune.report(metrics)

    train_local(run, folder, resume=(folder / "run.json").is_file(), listeners=[report])


def directory_name(trial: Any) -> str:
    """Tune's own folder of a trial has the name of its run folder."""
    return str(trial.trial_id)


def scheduler(rungs: tuple[int, ...], env_steps: int) -> Any:
    """ASHA with these rungs; those at the end of the budget or past it stop nothing.

    Raises UserError.
    """
    factors = {b / max(a, 1) for a, b in itertools.pairwise(rungs)} or {2.0}
    if not rungs or rungs[0] < 1 or min(factors) <= 1 or max(factors) - min(factors) > 1e-6:
        raise UserError(
            f"--rungs is {','.join(map(str, rungs))}, but growing numbers of steps with one ratio"
            " are expected, as in 500000,1000000,2000000"
        )
    early = [rung for rung in rungs if rung < env_steps]
    if not early:
        return tune.schedulers.FIFOScheduler()
    return tune.schedulers.ASHAScheduler(
        time_attr=STEPS,
        max_t=early[-1] + 1,
        grace_period=early[0],
        reduction_factor=factors.pop(),
        stop_last_trials=False,
    )


def sweep(
    base: Run,
    folder: Path,
    *,
    space: Mapping[str, Any] = GRID,
    samples: int = 48,
    rungs: tuple[int, ...] = (500_000, 1_000_000, 2_000_000),
    concurrent: int = 2,
    verbose: int = 1,
    dashboard: bool = False,
) -> list[dict[str, Any]]:
    """Try `samples` draws from `space` on top of `base`; the rows of the table, best first (also in
    FOLDER/table.json).

    Lists in `space` are drawn from uniformly; anything else is a search space of Tune's. With
    `dashboard` the address of Ray's web page is told. Raises UserError.
    """
    root = folder.resolve()
    settings = {name: value for name, value in base.to_json().items() if name != "machines"}
    settings |= {
        "space": {name: str(values) for name, values in space.items()},
        "samples": samples,
        "rungs": list(rungs),
    }
    asha = scheduler(rungs, base.budget.env_steps)
    claim(root, settings)
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = (
        "1"  # a trial may end before its first evaluation
    )
    state = str(root / "tune")
    # a Ray that is started here has a CPU for each trial
    crowd = dataclasses.replace(base.machines, actors=concurrent)
    with cluster(dataclasses.replace(base, machines=crowd), dashboard):
        trainable = tune.with_resources(
            tune.with_parameters(trial, base=base.to_json(), root=str(root)), {"cpu": 1}
        )
        if tune.Tuner.can_restore(state):
            tuner = tune.Tuner.restore(
                state, trainable=trainable, resume_unfinished=True, resume_errored=True
            )
        else:
            config = tune.TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=samples,
                scheduler=asha,
                search_alg=tune.search.basic_variant.BasicVariantGenerator(
                    max_concurrent=concurrent, random_state=base.seed
                ),
                trial_dirname_creator=directory_name,
            )
            drawn = {
                name: tune.choice(values) if isinstance(values, list) else values
                for name, values in space.items()
            }
            where = tune.RunConfig(name="tune", storage_path=str(root), verbose=verbose)
            tuner = tune.Tuner(trainable, param_space=drawn, tune_config=config, run_config=where)
        rows = ranked([row(result, root, list(space)) for result in tuner.fit()])
    publish(
        root / "table.json",
        json.dumps({"task": base.task, "seed": base.seed, "trials": rows}, indent=1).encode(),
    )
    return rows


def claim(root: Path, settings: dict[str, Any]) -> None:
    """Make the sweep's folder, or make sure that it holds the same sweep. Raises UserError."""
    file = root / "sweep.json"
    if file.is_file():
        theirs = json.loads(file.read_text())
        for name, mine in json.loads(json.dumps(settings)).items():
            if theirs.get(name) != mine:
                raise UserError(
                    f"--folder {root} holds another sweep ({name} differs from sweep.json); repeat"
                    " its flags, or choose another folder"
                )
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"--folder {root} is not empty and holds no sweep; choose another folder")
    else:
        root.mkdir(parents=True, exist_ok=True)
        publish(file, json.dumps(settings, indent=1).encode())


def row(result: Any, root: Path, names: list[str]) -> dict[str, Any]:
    """A trial in the table.

    Its score is the final one of a finished run, else that of its last evaluation.
    """
    folder = root / "trials" / Path(result.path).name
    metrics = result.metrics or {}
    summary, run = (
        json.loads(file.read_text()) if (file := folder / name).is_file() else {}
        for name in ("summary.json", "run.json")
    )
    # a trial that has neither begun nor failed shows none
    drawn = run.get("algorithm") or result.config or {}
    state = (
        "failed"
        if result.error
        else "finished"
        if summary
        else "stopped"
        if metrics.get("done")
        else "unfinished"
    )
    return {
        "score": summary.get("return_mean", metrics.get(SCORE)),
        "score_episodes": int(
            summary.get("return_episodes", metrics.get("evaluation/return_episodes", 0))
        ),
        "env_steps": int(summary.get("env_steps", metrics.get(STEPS, 0))),
        "state": state,
        "error": str(getattr(result.error, "cause", None) or result.error).strip().splitlines()[-1]
        if result.error
        else None,
        "folder": str(folder),
        "hyperparameters": {name: drawn[name] for name in names if name in drawn},
    }


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first; trials without a score last."""
    return sorted(rows, key=lambda r: -np.inf if r["score"] is None else r["score"], reverse=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'score':>8} {'steps':>11}  {'state':<10} {'folder':<28} hyperparameters"]
    for r in rows:
        score = "-" if r["score"] is None else f"{r['score']:.1f}"
        short = Path(r["folder"])
        values = r["error"] or ", ".join(
            f"{name}={value}" for name, value in r["hyperparameters"].items()
        )
        lines.append(
            f"{score:>8} {r['env_steps']:>11,}  {r['state']:<10}"
            f" {short.parent.name + '/' + short.name:<28} {values}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The door."""
    parser = Parser(
        prog="python tuning/udrl_lunarlander.py",
        description="Ray Tune over the UDRL grid of the paper.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", default="lunarlander", help="lunarlander or lunarlander-sparse")
    parser.add_argument("--samples", type=int, default=48, help="draws from the grid")
    parser.add_argument(
        "--env-steps",
        type=int,
        default=2_000_000,
        help="environment steps of a trial that is not stopped",
    )
    parser.add_argument(
        "--rungs",
        default="500000,1000000,2000000",
        help="environment steps at which the worse trials are stopped",
    )
    parser.add_argument(
        "--concurrent",
        type=int,
        default=2,
        help="trials at a time, one CPU each; a sweep that is taken up again keeps its first",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/tune-udrl-lunarlander"),
        help="where everything goes; a stopped sweep is taken up again",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the draws, and of every run")
    parser.add_argument(
        "--address", default="local", help="Ray cluster to join; `local` starts one on this machine"
    )
    parser.add_argument(
        "--dashboard",
        action="store_true",
        help="show Ray's web page while the sweep goes on; its address is told",
    )
    given = parser.parse(arguments)
    try:
        rungs = tuple(int(rung) for rung in given.rungs.split(","))
    except ValueError:
        raise UserError(
            f"--rungs is {given.rungs!r}, but integers joined by commas are expected"
        ) from None
    if given.samples < 1 or given.concurrent < 1:
        raise UserError("--samples and --concurrent must be at least 1")
    flags = [
        "--preset",
        "none",
        "--seed",
        str(given.seed),
        "--device",
        "cpu",
        "--address",
        given.address,
        "--budget.env-steps",
        str(given.env_steps),
    ]
    base = configure("udrl", given.task, flags)
    try:
        rows = sweep(
            base,
            given.folder,
            samples=given.samples,
            rungs=rungs,
            concurrent=given.concurrent,
            dashboard=given.dashboard,
        )
    except (
        KeyboardInterrupt
    ):  # Tune itself ends a sweep at Ctrl-C, and what it has come to is shown
        rows = []
    else:
        print(table(rows))
        print(f"table: {given.folder / 'table.json'}")
    if len(rows) < given.samples or any(r["state"] == "unfinished" for r in rows):
        print("stopped before its end; the same command goes on with it", file=sys.stderr)
        return stopping.code()
    return 0


if __name__ == "__main__":
    raise SystemExit(door(main))
