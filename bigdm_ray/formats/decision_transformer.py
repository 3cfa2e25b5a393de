"""Decision Transformer checkpoints of others: Hugging Face's `DecisionTransformerModel`, and the
original repository's state dict.

Both have one layout (the original calls its transformer `transformer`, Hugging Face `encoder`):
GPT-2's layers, whose matrices are stored transposed, between linear embeddings and heads. Arrays by
name come in and go out; no network is made here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.formats.checkpoints import Arrays
from bigdm_ray.jsons import read_json

LAYER = {
    "ln_1": "norm1", "attn.c_attn": "qkv", "attn.c_proj": "out", "ln_2": "norm2", "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}  # fmt: skip
OUTER = {
    "embed_return": "embed_return", "embed_state": "embed_state.linear",
    "embed_action": "embed_action.linear", "embed_ln": "norm",
    "predict_action.0": "head.linear",
}  # fmt: skip
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class DecisionTransformerCheckpoint:
    """A checkpoint of others in this project's names, and the sizes that can be read off it."""

    arrays: Arrays
    width: int
    layers: int
    heads: int | None  # None where the source does not say
    timesteps: int
    seen: int
    acted: int


def from_hugging_face(
    source: str, arrays: Arrays, config: dict[str, Any]
) -> DecisionTransformerCheckpoint:
    """A checkpoint's arrays by this project's names.

    Raises UserError for one that is no Decision Transformer of this layout.
    """
    prefix = next(
        (p for p in ("encoder.", "transformer.") if f"{p}h.0.ln_1.weight" in arrays), None
    )
    if prefix is None or "embed_return.weight" not in arrays:
        raise UserError(
            f"{source} holds no Decision Transformer: it has no"
            f" {'embed_return' if prefix else 'encoder.h.0.ln_1'}.weight"
        )
    for key, expected in (
        ("activation_function", "relu"),
        ("action_tanh", True),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("layer_norm_epsilon", 1e-5),
    ):
        if config.get(key, expected) != expected:
            raise UserError(
                f"{source} has {key} {config[key]!r}, but {expected!r} is expected: another network"
                " than the paper's"
            )
    heads = config.get("n_head")
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or heads < 1):
        raise UserError(f"{source} has n_head {heads!r}, but a whole number from 1 on is expected")
    out: Arrays = {}
    layers = 1 + max(
        int(m.group(1))
        for name in arrays
        if (m := re.match(rf"{re.escape(prefix)}h\.(\d+)\.", name))
    )
    try:
        for theirs, mine in OUTER.items():
            out |= {f"{mine}.{kind}": arrays[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
        out["embed_timestep.weight"] = arrays["embed_timestep.weight"]
        out |= {
            f"transformer.norm.{kind}": arrays[f"{prefix}ln_f.{kind}"]
            for kind in ("weight", "bias")
        }
        for layer in range(layers):
            for theirs, mine in LAYER.items():
                weight = arrays[f"{prefix}h.{layer}.{theirs}.weight"]
                out[f"transformer.blocks.{layer}.{mine}.weight"] = (
                    weight.T if theirs in TRANSPOSED else weight
                )
                out[f"transformer.blocks.{layer}.{mine}.bias"] = arrays[
                    f"{prefix}h.{layer}.{theirs}.bias"
                ]
    except KeyError as missing:
        raise UserError(
            f"{source} has no {missing}: it is incomplete, or another network than the paper's"
        ) from None
    places = (
        {"wpe.weight": arrays[f"{prefix}wpe.weight"]} if f"{prefix}wpe.weight" in arrays else {}
    )
    for name, values in (out | places).items():
        rank = 1 if name.endswith(".bias") or "norm" in name else 2
        if values.ndim != rank or not values.size:
            raise UserError(
                f"{source} has an array of shape {list(values.shape)} for {name}, but {rank}"
                " dimensions that are not empty are expected"
            )
    if places:  # position 0 is added to every token
        out["norm.bias"] = out["norm.bias"] + places["wpe.weight"][0]
    width, seen = out["embed_state.linear.weight"].shape
    up = out["transformer.blocks.0.up.weight"].shape[0]
    if up != 4 * width:
        raise UserError(
            f"{source} has inner layers of {up}, but four times its width of {width} is expected"
        )
    timesteps, acted = len(out["embed_timestep.weight"]), out["head.linear.weight"].shape[0]
    return DecisionTransformerCheckpoint(
        {n: np.ascontiguousarray(v, np.float32) for n, v in out.items()},
        width,
        layers,
        heads,
        timesteps,
        seen,
        acted,
    )


def statistics_beside(source: Path) -> Path | None:
    """The file with mean and deviation of the states that `weights export` wrote beside weights,
    where it is there."""
    file = (source if source.is_dir() else source.parent) / "statistics.json"
    try:
        told = read_json(file)
    except (OSError, ValueError, RecursionError):
        return None
    return file if isinstance(told, dict) and {"mean", "std"} <= set(told) else None


def settings_beside(source: Path) -> dict[str, float]:
    """What lies beside weights that `weights export` wrote: `context` and `return_scale`, where
    they are said."""
    folder = source if source.is_dir() else source.parent
    found: dict[str, float] = {}
    for file, key, name in (
        ("config.json", "context_length", "context"),
        ("statistics.json", "return_scale", "return_scale"),
    ):
        try:
            value = read_json(folder / file)[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


def to_hugging_face(
    arrays: Arrays, heads: int, dropout: float, context: int
) -> tuple[Arrays, dict[str, Any]]:
    """This project's arrays in Hugging Face's layout, and the config.json of it.

    The heads for states and returns, which we lack, are zero.
    """
    out: Arrays = {}
    layers = 1 + max(
        int(name.split(".")[2]) for name in arrays if name.startswith("transformer.blocks.")
    )
    for name, mine in OUTER.items():
        out |= {f"{name}.{kind}": arrays[f"{mine}.{kind}"] for kind in ("weight", "bias")}
    out["embed_timestep.weight"] = arrays["embed_timestep.weight"]
    out |= {
        f"encoder.ln_f.{kind}": arrays[f"transformer.norm.{kind}"] for kind in ("weight", "bias")
    }
    for layer in range(layers):
        for name, mine in LAYER.items():
            weight = arrays[f"transformer.blocks.{layer}.{mine}.weight"]
            out[f"encoder.h.{layer}.{name}.weight"] = weight.T if name in TRANSPOSED else weight
            out[f"encoder.h.{layer}.{name}.bias"] = arrays[
                f"transformer.blocks.{layer}.{mine}.bias"
            ]
    width, seen = out["embed_state.weight"].shape
    acted = out["predict_action.0.weight"].shape[0]
    zeros = {
        "encoder.wte.weight": (1, width),
        "encoder.wpe.weight": (1024, width),
        "predict_state.weight": (seen, width),
        "predict_state.bias": (seen,),
    }
    out |= {
        name: np.zeros(shape, np.float32)
        for name, shape in {
            **zeros,
            "predict_return.weight": (1, width),
            "predict_return.bias": (1,),
        }.items()
    }
    config = {
        "architectures": ["DecisionTransformerModel"], "model_type": "decision_transformer",
        "state_dim": seen, "act_dim": acted, "hidden_size": width,
        "n_layer": layers, "n_head": heads, "n_inner": 4 * width,
        "max_ep_len": len(out["embed_timestep.weight"]), "n_positions": 1024, "vocab_size": 1,
        "activation_function": "relu", "action_tanh": True, "resid_pdrop": dropout,
        "embd_pdrop": dropout, "attn_pdrop": dropout,
        "layer_norm_epsilon": 1e-5, "context_length": context, "torch_dtype": "float32",
    }  # fmt: skip
    return {name: np.ascontiguousarray(values) for name, values in out.items()}, config
