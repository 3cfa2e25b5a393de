"""Packing: what it takes to act, out of a run folder, for others to have.

    run.json  summary.json  card.json  weights/last.safetensors

The card says what the policy is, what it learned from, and what it returned in the last `evaluate`
of these weights. `load`, `evaluate` and `plots` open the folder as they open a run's; the package's
own policies (`zoo.py`) are such folders.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from bigdm_ray.errors import UserError
from bigdm_ray.formats.exporting import write_folder_whole
from bigdm_ray.jsons import read_json
from bigdm_ray.replay.shard import publish
from bigdm_ray.training.config import describe_run
from bigdm_ray.training.loaded import Loaded, load
from bigdm_ray.training.run_folder import RunFolder, summary_of

SCORE = (
    "return_mean",
    "return_std",
    "return_low",
    "return_high",
    "return_episodes",
    "normalized_score",
    "length_mean",
    "mode",
    "seed",
)


def pack(folder: Path, out: Path, which: str = "last", words: str = "") -> dict[str, Any]:
    """Make `out` of the run in `folder`, with `which` weights; the card.

    `words` are the card's description, by default the run's own words for itself. Raises UserError
    where these weights were not scored by `evaluate` last, or `out` is taken; RunFailed where the
    disk does not take it.
    """
    loaded = load(folder, which)
    report = _report(loaded, folder, which)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--folder {out} is not empty; choose another")
    run, summary = read_json(folder / "run.json"), summary_of(folder)
    for told in (run, summary):  # where the data lay is nobody else's
        if told.get("dataset"):
            told["dataset"]["folder"] = told["dataset"]["name"]
            told["dataset"]["source"] = Path(told["dataset"]["source"]).name
    card = {
        "schema_version": 1,
        "description": words or describe_run(loaded.run),
        "algorithm": loaded.run.algorithm.name,
        "task": loaded.run.task,
        "trained": {
            "preset": loaded.run.preset,
            "seed": loaded.run.seed,
            "dataset": run["dataset"]["name"] if run.get("dataset") else None,
            "env_steps": summary["env_steps"],
            "learner_steps": loaded.version[1],
            "wall_s": round(summary["wall_s"]),
        },
        "parameters": sum(one.numel() for one in loaded.model.parameters()),
        "command": report["command"],
        "score": {name: report[name] for name in SCORE},
        "versions": report["versions"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    weights = RunFolder(folder).weights(which).read_bytes()
    with write_folder_whole(out) as hidden:
        (hidden / "weights").mkdir()
        publish(RunFolder(hidden).weights("last"), weights)
        for name, value in (("run", run), ("summary", summary), ("card", card)):
            publish(hidden / f"{name}.json", json.dumps(value, indent=1).encode())
    return card


def _report(loaded: Loaded, folder: Path, which: str) -> dict[str, Any]:
    """What `evaluate` has left, which must be of these weights as they act by themselves."""
    try:
        report: dict[str, Any] = read_json(folder / "evaluation.json")
    except (OSError, ValueError):  # there is none, or a damaged one
        report = {}
    whole = {*SCORE, "command", "version", "versions"} <= report.keys() and not report.get("acting")
    theirs = whole and report["version"] == list(loaded.version)
    if not theirs or report["command"] != loaded.command or not loaded.summary.get("wall_s"):
        raise UserError(
            f"the {which} weights of {folder} have no score to go with them; score them first, as "
            f"they act by themselves: python -m bigdm_ray.evaluate {folder} --weights {which}"
        )
    return report
