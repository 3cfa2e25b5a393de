"""Weights: a version and `{name: array}`, as they travel and are stored (safetensors).

The file's metadata hold the version and, where they are known, the command that the weights were
scored with and the score that they were kept for: one file, so that no kill parts weights from
their command. Folders of before have these two in a JSON file beside the weights, which is read
where the metadata have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json, whole_number
from bigdm_ray.replay.shard import publish

SCHEMA_VERSION = 1


def array_of(values: Tensor) -> np.ndarray:
    """A copy of a tensor on the CPU, copied once."""
    here = values.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    out: np.ndarray = here.numpy()
    return out


@dataclass(frozen=True)
class Weights:
    """The network's state: version (incarnation, learner step) and arrays by parameter or buffer
    name."""

    version: tuple[int, int]
    arrays: dict[str, np.ndarray]
    command: dict[str, float] | None = None  # that they were scored with; None where it is unknown
    score: float | None = None  # mean return, of several tasks score, that they were kept for

    @staticmethod
    def of(model: nn.Module, version: tuple[int, int]) -> Weights:
        """A copy of the model's state on the CPU."""
        return Weights(
            version, {name: array_of(value) for name, value in model.state_dict().items()}
        )

    def into(self, model: nn.Module) -> None:
        """Copy these weights into the model. Raises UserError where names or shapes differ."""
        state = model.state_dict()
        if missing := sorted(set(state) ^ set(self.arrays)):
            raise UserError(
                f"these weights do not fit the network: {missing[0]!r} stands on one side only;"
                " they belong to another algorithm, task or size"
            )
        for name, target in state.items():
            if tuple(target.shape) != self.arrays[name].shape:
                raise UserError(
                    f"these weights do not fit the network: {name!r} is"
                    f" {list(self.arrays[name].shape)} where {list(target.shape)} is expected; they"
                    " belong to another algorithm, task or size"
                )
            if target.device.type == "cpu":  # arrays that came by Ray are read-only
                np.copyto(target.numpy(), self.arrays[name], casting="unsafe")
            else:
                target.copy_(torch.from_numpy(np.array(self.arrays[name])))

    def save(self, path: Path) -> None:
        """Write them as safetensors, whole or not at all. Raises RunFailed on a full disk."""
        meta = {"schema_version": str(SCHEMA_VERSION), "version": json.dumps(list(self.version))}
        if self.command is not None:
            meta |= {"command": json.dumps(self.command), "return_mean": json.dumps(self.score)}
        publish(path, save_safetensors(self.arrays, meta))
        with contextlib.suppress(OSError):  # of weights that an older version has put here
            path.with_suffix(".json").unlink(missing_ok=True)

    @staticmethod
    def load(path: Path) -> Weights:
        """Read what `save` wrote. Raises UserError for a missing, torn or foreign file."""
        if not path.is_file():
            raise UserError(f"there are no weights at {path}")
        try:
            data = path.read_bytes()
            arrays = load_safetensors(data)
            size = int.from_bytes(data[:8], "little")
            meta = read_json(data[8 : 8 + size]).get("__metadata__", {})
            incarnation, step = read_json(meta["version"], list)
            schema = int(meta["schema_version"])
            version = (whole_number(incarnation, "incarnation"), whole_number(step, "learner step"))
            told = (
                None
                if "command" not in meta
                else _told(read_json(meta["command"]), read_json(meta["return_mean"], object))
            )
        except (
            OSError,
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            raise UserError(
                f"{path} does not hold weights of this project ({error}); remove it, and have it "
                "written again with `run --resume`"
            ) from None
        if schema > SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {schema}, newer than the {SCHEMA_VERSION} known here:"
                " update bigdm_ray"
            )
        return Weights(version, arrays, *(_beside(path) if told is None else told))


Commands = Mapping[str, dict[str, float]]
"""A command for each task."""


def flatten_commands(commands: Commands, several: bool) -> dict[str, float]:
    """The commands of a run's tasks as a file keeps them: of several, `TASK/NAME` for each
    number."""
    if not several:
        return dict(*commands.values())
    return {f"{task}/{name}": v for task, own in commands.items() for name, v in own.items()}


def commands_of_task(command: Mapping[str, float], task: str) -> dict[str, float]:
    """What `flatten_commands` has of one of several tasks."""
    start = f"{task}/"
    return {name.removeprefix(start): v for name, v in command.items() if name.startswith(start)}


CommandAndScore = tuple[dict[str, float], float | None]
"""A command and a mean return."""


def _told(command: Any, score: Any) -> CommandAndScore:
    """Raises ValueError, TypeError or AttributeError for what is neither."""
    numbers = {str(name): float(value) for name, value in command.items()}
    return numbers, None if score is None else float(score)


def _beside(weights: Path) -> CommandAndScore | tuple[None, None]:
    """What the JSON beside weights of an older version says. Raises UserError for a broken one."""
    path = weights.with_suffix(".json")
    if not path.is_file():
        return None, None
    try:
        found = read_json(path)
        return _told(found["command"], found.get("return_mean"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is broken ({error}); remove it and {weights.name}, and have both written "
            "again with `run --resume`"
        ) from None
