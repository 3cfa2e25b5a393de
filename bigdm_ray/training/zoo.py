"""Zoo: trained policies in the package. `zoo:NAME` stands for a run folder that is opened to act.

Each is a folder of `bigdm_ray/zoo/` that `packing.py` has made: run.json, summary.json, card.json
and the last weights. The package may lie where nothing can be written, so what is made of a policy
goes to `runs/zoo-NAME`.
"""

from __future__ import annotations

import os
from pathlib import Path

from bigdm_ray.errors import RunFailed, UserError, suggest_names

PREFIX = "zoo:"
HOME = Path(__file__).parent.parent / "zoo"


def zoo() -> dict[str, Path]:
    """The folders of the policies that the package ships, by name, sorted."""
    return {file.parent.name: file.parent for file in sorted(HOME.glob("*/run.json"))}


def is_zoo(folder: str | os.PathLike[str]) -> bool:
    """Whether a policy of the zoo is meant."""
    return os.fspath(folder).startswith(PREFIX)


def locate(folder: str | os.PathLike[str]) -> Path:
    """The run folder that is meant, `zoo:NAME` or its path.

    Raises UserError for an unknown name.
    """
    text = os.fspath(folder)
    if not is_zoo(folder):
        return Path(folder)
    known, name = zoo(), text.removeprefix(PREFIX)
    if name not in known:
        near = suggest_names(name, list(known)) if known else "; this installation has none"
        raise UserError(f"unknown policy {text!r}{near}")
    return known[name]


def results(folder: str | os.PathLike[str]) -> Path:
    """Where what is made of a run goes: its folder; of the zoo a folder of `runs`, which is made.

    Raises RunFailed.
    """
    if not is_zoo(folder):
        return Path(folder)
    place = Path("runs") / os.fspath(folder).replace(":", "-")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {place}: {error.strerror}; go to another folder") from None
    return place
