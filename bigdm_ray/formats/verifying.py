"""Holding shards against the signature that their dataset's card, or their run's task, tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bigdm_ray.envs.signature import PICKED, Leaf, Signature
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.replay.shard import SUFFIX, ClosedShard, CorruptShard, NewerShard, Shard


def strange_shards(folder: Path, signature: Signature) -> list[str]:
    """A sentence for each shard whose arrays are not what the signature says; it is left as it is.

    Compared are leaves, shapes, types and choices. Shards that cannot be opened are passed over:
    `replay.store.verify` names them, and what is not finite.
    """
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            shard = Shard.open(path)
        except (CorruptShard, NewerShard, ClosedShard):
            continue
        why = _strange("observations", shard.observations | shard.held, signature.observations)
        why = why or _strange("actions", shard.actions, signature.actions)
        if why:
            found.append(f"shard {path}: {why}")
    return found


def _strange(what: str, arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Leaf]) -> str | None:
    """The first difference, in words."""
    if arrays.keys() != leaves.keys():
        path = sorted(arrays.keys() ^ leaves.keys())[0]
        return (
            f"its field {field_name(what, path)!r} is {'unknown' if path in arrays else 'missing'}"
        )
    for path, leaf in leaves.items():
        values, name = arrays[path], field_name(what, path)
        if values.shape[1:] != leaf.shape or str(values.dtype) != leaf.dtype:
            got, expected = (
                f"{dtype} {list(shape)}"
                for dtype, shape in ((values.dtype, values.shape[1:]), (leaf.dtype, leaf.shape))
            )
            return f"its {name} are {got} where {expected} is expected"
        if leaf.kind in PICKED:
            choices = np.array(leaf.choices).reshape(leaf.shape)
            bad = (values < 0) | (values >= choices)
            if bad.any():
                most = np.broadcast_to(choices, values.shape)[bad][0] - 1
                return f"its {name} have a {values[bad][0]} where 0 to {most} are expected"
    return None
