"""Zoo: trained policies in the package. `zoo:NAME` stands for a run folder that is opened to act.

None is shipped yet. Each is a folder of `bigdm_ray/zoo/`: a run.json, a summary.json, and weights, without episodes and
checkpoints. The package may lie where nothing can be written, so what is made of a policy goes to
`runs/zoo-NAME`.
"""

from __future__ import annotations

import os
from pathlib import Path

from bigdm_ray.errors import RunFailed, UserError, nearest

PREFIX = "zoo:"
HOME = Path(__file__).parent.parent / "zoo"


def zoo() -> dict[str, Path]:
    """The folders of the policies that the package ships, by name, sorted."""
    return {file.parent.name: file.parent for file in sorted(HOME.glob("*/run.json"))}


def located(folder: str | os.PathLike[str]) -> Path:
    """The run folder that is meant, `zoo:NAME` or its path. Raises UserError for an unknown name."""
    text = os.fspath(folder)
    if not text.startswith(PREFIX):
        return Path(folder)
    known, name = zoo(), text.removeprefix(PREFIX)
    if name not in known:
        near = nearest(name, list(known)) if known else "; this installation has none"
        raise UserError(f"unknown policy {text!r}{near}")
    return known[name]


def results(folder: str | os.PathLike[str]) -> Path:
    """Where what is made of a run goes: its folder; of the zoo a folder of `runs`, which is made.

    Raises RunFailed.
    """
    text = os.fspath(folder)
    if not text.startswith(PREFIX):
        return Path(folder)
    place = Path("runs") / text.replace(":", "-")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {place}: {error.strerror}; go to another folder") from None
    return place
