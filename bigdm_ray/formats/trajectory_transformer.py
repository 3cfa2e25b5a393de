"""Trajectory Transformer checkpoints of others: the state dict of the original repository, and that
of its cached fork.

The original is jannerm/trajectory-transformer (`GPT`), the fork
Howuhh/faster-trajectory-transformer. Both have separate matrices or one for queries, keys and
values, a table of all dimensions' tokens, a table of places, and a head for each dimension: the
head at place i predicts dimension i + 1, here it is named by what it predicts. The fork has no stop
token. Their discretisers are thresholds of each dimension, of which a value that coincides with
several has the last. Arrays by name come in and go out; no network is made here.

The fork is meant as it is since its commit 213e58d (April 2023). Before, its residual stream was
the normed input, with the same names and shapes: older weights are not told apart, and predict
nonsense.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bigdm_ray.errors import UserError
from bigdm_ray.formats.checkpoints import PICKLES, Arrays
from bigdm_ray.jsons import read_json

ORIGINAL = {"ln1": "norm1", "attn.proj": "out", "ln2": "norm2", "mlp.0": "up", "mlp.2": "down"}
FORK = {
    "norm1": "norm1",
    "attention.out_proj": "out",
    "norm2": "norm2",
    "mlp.0": "up",
    "mlp.2": "down",
}
KINDS = ("weight", "bias")
PAGE = "docs/trajectory_transformer.md"


@dataclass(frozen=True)
class TrajectoryTransformerCheckpoint:
    """A checkpoint of others in this project's names, and the sizes that can be read off it; heads
    of attention cannot."""

    arrays: Arrays
    width: int
    layers: int
    dims: int  # tokens of a transition
    bins: int
    window: int  # transitions
    stop: bool


def is_state_dict(arrays: Arrays) -> bool:
    """Whether these are the names of a Trajectory Transformer's state dict."""
    return {"tok_emb.weight", "pos_emb"} <= arrays.keys()


def from_published(source: str, arrays: Arrays) -> TrajectoryTransformerCheckpoint:
    """A checkpoint's arrays by this project's names.

    Raises UserError for one that is incomplete, or another network.
    """
    original = "ln_f.weight" in arrays
    if "goal_emb.weight" in arrays:
        raise UserError(
            f"{source} is the network that is conditioned on goals, which this project does not"
            " have"
        )
    try:
        tokens, places, heads = arrays["tok_emb.weight"], arrays["pos_emb"], _heads(source, arrays)
        layers = 1 + max(
            (int(m.group(1)) for name in arrays if (m := re.match(r"blocks\.(\d+)\.", name))),
            default=0,
        )
        out: Arrays = {
            f"net.transformer.norm.{kind}": arrays[f"{'ln_f' if original else 'norm'}.{kind}"]
            for kind in KINDS
        }
        for layer in range(layers):
            mine, theirs = f"net.transformer.blocks.{layer}", f"blocks.{layer}"
            for kind in KINDS:
                out |= {
                    f"{mine}.{name}.{kind}": arrays[f"{theirs}.{other}.{kind}"]
                    for other, name in (ORIGINAL if original else FORK).items()
                }
                parts = (
                    [f"attn.{part}.{kind}" for part in ("query", "key", "value")]
                    if original
                    else [f"attention.in_proj_{kind}"]
                )
                out[f"{mine}.qkv.{kind}"] = np.concatenate(
                    [arrays[f"{theirs}.{part}"] for part in parts]
                )
    except KeyError as missing:
        raise UserError(
            f"{source} has no {missing}: it is incomplete, or another network than the original"
            " Trajectory Transformer"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{source} has queries, keys and values that do not go together ({error})"
        ) from None
    dims, classes, width = heads.shape
    bins = classes - original
    window = (places.shape[-2] + 1) // dims if places.ndim == 3 else 0
    if tokens.shape != (bins * dims + original, width):
        raise UserError(
            f"{source} embeds {_shape(tokens)}, but {bins * dims + original} tokens of width"
            f" {width} are expected beside heads of {_shape(heads)}"
        )
    if places.shape not in ((1, window * dims - 1, width), (1, window * dims, width)) or window < 2:
        raise UserError(
            f"{source} has places of {_shape(places)}, but those of whole transitions of {dims}"
            " tokens, two at least, are expected"
        )
    _regular(source, out, width)
    context = window * dims - 1
    for layer in range(layers):
        _values_hidden(source, arrays.get(f"blocks.{layer}.attn.mask"), dims, 0)
        _values_hidden(source, arrays.get(f"blocks.{layer}.attn_mask"), dims, 1)
    out["net.transformer.table"] = places[0, :context]
    out["net.embedding.weight"] = (
        tokens if original else np.concatenate([tokens, np.zeros_like(tokens[:1])])
    )
    heads = heads if original else np.concatenate([heads, np.zeros_like(heads[:, :1])], 1)
    out["net.heads"] = np.roll(heads, 1, 0)
    return TrajectoryTransformerCheckpoint(
        {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()},
        width,
        layers,
        dims,
        bins,
        window,
        original,
    )


def _heads(source: str, arrays: Arrays) -> np.ndarray:
    """Heads of all dimensions `[dims, classes, width]`, from one array or from a list of layers."""
    apart = sorted(
        (int(m.group(1)), value)
        for name, value in arrays.items()
        if (m := re.fullmatch(r"head\.(\d+)\.weight", name))
    )
    heads = (
        np.stack([value for _, value in apart])
        if apart and len({value.shape for _, value in apart}) == 1
        else arrays["head.weight"]
    )
    if heads.ndim != 3:
        raise UserError(f"{source} has one head for all dimensions, but one for each is expected")
    return heads


def _regular(source: str, arrays: Arrays, width: int) -> None:
    """Raise UserError where an array of a layer has another shape than the width asks for."""
    sizes = {
        "qkv": (3 * width, width),
        "out": (width, width),
        "up": (4 * width, width),
        "down": (width, 4 * width),
    }
    for name, value in arrays.items():
        layer, kind = name.split(".")[-2:]
        expected = sizes.get(layer, (width,))[: 2 if kind == "weight" else 1]
        if value.shape != expected:
            raise UserError(
                f"{source} has {name.removeprefix('net.transformer.')} of {_shape(value)}, but"
                f" {' x '.join(map(str, expected))} is expected"
            )


def _values_hidden(source: str, mask: np.ndarray | None, dims: int, hidden: int) -> None:
    """Raise UserError where a mask of attention `[..., places, places]` hides something else than
    what comes later, and values."""
    if mask is not None:
        flat = mask.reshape(-1, mask.shape[-1]) == hidden
        place = np.arange(flat.shape[1])
        if (
            flat.shape[0] != flat.shape[1]
            or (flat != ((place > place[:, None]) | (place % dims == dims - 1))).any()
        ):
            raise UserError(
                f"{source} hides other tokens from attention than later ones and the values of"
                f" transitions of {dims} tokens"
            )


def _shape(value: np.ndarray) -> str:
    return " x ".join(map(str, value.shape))


def thresholds(file: Path) -> np.ndarray:
    """Thresholds `[dims, bins + 1]` float64 of a discretiser, from a JSON or safetensors file that
    has them as `thresholds`. Raises UserError."""
    if file.suffix in PICKLES:
        raise UserError(
            f"--bins {file} is a pickle, which may run any code when it is read; make arrays of it"
            f" with the lines in {PAGE}"
        )
    try:
        found = load_file(file) if file.suffix == ".safetensors" else read_json(file)
        out = np.array(found["thresholds"], np.float64)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f'--bins {file} is not {{"thresholds": [[...], ...]}}, as JSON or safetensors, a row'
            f" for each dimension ({error})"
        ) from None
    furthest = np.finfo(np.float32).max  # beyond, they would be infinite as this project's edges
    if out.ndim != 2 or not (np.abs(out) <= furthest).all() or (np.diff(out) < 0).any():
        raise UserError(
            f"--bins {file} holds thresholds that are not rows of finite numbers in ascending"
            " order, a row for each dimension"
        )
    return out


def edges(thresholds: np.ndarray) -> np.ndarray:
    """Thresholds `[dims, bins + 1]` as edges of this project's bins, float32, strictly ascending.

    Where thresholds coincide, theirs give a value on them the last of these bins, ours the first;
    so all but the last are moved below by as little as float32 can tell, which leaves what the bins
    decode to as it was.
    """
    out = thresholds.astype(np.float32)
    for place in range(out.shape[1] - 2, -1, -1):
        out[:, place] = np.minimum(
            out[:, place], np.nextafter(out[:, place + 1], np.float32(-np.inf))
        )
    return out
