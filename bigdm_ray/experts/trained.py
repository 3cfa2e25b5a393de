"""Trained runs of this project as experts: `--from RUN`, a run folder or a policy that ships."""

from __future__ import annotations

from bigdm_ray.envs.task import Task
from bigdm_ray.experts.base import Expert
from bigdm_ray.formats.behaviour import Behaviour
from bigdm_ray.formats.writer import stamp
from bigdm_ray.training.acting import command_of, policy_of
from bigdm_ray.training.loaded import load
from bigdm_ray.training.run_folder import RunFolder
from bigdm_ray.training.zoo import locate


def find_trained(run: str) -> tuple[Task, Expert]:
    """The task of a run, and the run as who does it, as its own evaluations have it act.

    Raises UserError for what is no run.
    """
    loaded, home = load(run), locate(run)
    policy, mode = policy_of(loaded, "own")
    return loaded.task, Expert(
        str(Behaviour(f"{loaded.run.algorithm.name}-last", mode)),
        lambda rows: policy,
        learned=True,
        command=command_of(loaded),
        version=loaded.version,
        made_of=(stamp(home / "run.json"), stamp(RunFolder(home).weights("last"))),
    )
