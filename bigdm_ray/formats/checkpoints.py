"""Checkpoints of others, as files: arrays from safetensors, settings from a config.json beside
them. A pickle is never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from bigdm_ray.errors import UserError
from bigdm_ray.jsons import read_json

Arrays = dict[str, np.ndarray]

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
SCRIPT = (
    "a pickle, which may run any code when it is read; turn it into safetensors where you trust it:"
    " `import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in"
    " torch.load(FILE, weights_only=True).items()}, 'model.safetensors')`"
)


def read_weights(source: Path) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and config.json ({} where there is none) of a folder with model.safetensors, or of a
    safetensors file. Raises UserError."""
    file = source / "model.safetensors" if source.is_dir() else source
    if source.is_dir() and not file.is_file():
        pickles = sorted(path.name for path in source.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise UserError(f"{source} holds {pickles[-1]}, {SCRIPT}")
    if not file.is_file():
        raise UserError(
            f"there are no weights at {file}; a folder with model.safetensors and config.json, or a"
            " .safetensors file, is expected"
        )
    if file.suffix in PICKLES:
        raise UserError(f"{file} is {SCRIPT}")
    from safetensors.torch import load_file  # numpy has no bfloat16

    config = file.parent / "config.json"
    try:
        arrays = {
            name: values.float().numpy() if values.is_floating_point() else values.numpy()
            for name, values in load_file(file).items()
        }
        said = read_json(config) if config.is_file() else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{source} cannot be read as safetensors with a config.json ({error})"
        ) from None
    return arrays, said
