"""Run: everything that decides a run, and how one is said: in four rooms.

values.py        what a run is: Run and its settings
files.py         run.json, and YAML files
presets.py       what a run has beside what was typed
command_line.py  flags, and `configure`
"""

from bigdm_ray.training.config.command_line import RunCommand, configure, parse
from bigdm_ray.training.config.files import read_run, read_yaml, run_from_json
from bigdm_ray.training.config.presets import (
    external_run,
    offline_defaults,
    open_start,
    origin_of,
    premature_warning,
    preset_of,
    resumed_run,
    still_rising,
)
from bigdm_ray.training.config.values import (
    Budget,
    DatasetOrigin,
    Evaluations,
    Machines,
    Rollouts,
    Run,
    Saves,
    StartingRun,
    TaskUse,
    describe_run,
    settings_of,
    with_acting_settings,
)

__all__ = [
    "Budget",
    "DatasetOrigin",
    "Evaluations",
    "Machines",
    "Rollouts",
    "Run",
    "RunCommand",
    "Saves",
    "StartingRun",
    "TaskUse",
    "configure",
    "describe_run",
    "external_run",
    "offline_defaults",
    "open_start",
    "origin_of",
    "parse",
    "premature_warning",
    "preset_of",
    "read_run",
    "read_yaml",
    "resumed_run",
    "run_from_json",
    "settings_of",
    "still_rising",
    "with_acting_settings",
]
