"""Run: everything that decides a run, and how one is said: in four rooms.

values.py        what a run is: Run and its settings
files.py         run.json, and YAML files
presets.py       what a run has beside what was typed
command_line.py  flags, and `configure`
"""

from bigdm_ray.training.config.command_line import RunCommand, configure, parse
from bigdm_ray.training.config.files import read_run, read_yaml, run_from_json
from bigdm_ray.training.config.presets import (
    as_begun,
    foreign_run,
    offline_defaults,
    opened,
    origin_of,
    premature,
    preset_of,
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
    acting_as,
    described,
    settings_of,
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
    "acting_as",
    "as_begun",
    "configure",
    "described",
    "foreign_run",
    "offline_defaults",
    "opened",
    "origin_of",
    "parse",
    "premature",
    "preset_of",
    "read_run",
    "read_yaml",
    "run_from_json",
    "settings_of",
    "still_rising",
]
