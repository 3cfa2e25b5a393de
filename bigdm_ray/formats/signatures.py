"""Signatures that files tell, and two of them held against each other.

Whoever wrote a file may have written anything, so that a signature is checked before it is used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bigdm_ray.envs.signature import PICKED, Leaf, Signature
from bigdm_ray.errors import UserError, one_line
from bigdm_ray.formats.claims import expect_size
from bigdm_ray.jsons import read_json


def misfit(theirs: Signature, mine: Signature) -> str | None:
    """The first difference between the arrays of a source and those of a task, in words; bounds and
    dtypes do not count."""
    for what, a, b in (
        ("observations", theirs.observations, mine.observations),
        ("actions", theirs.actions, mine.actions),
    ):
        if a.keys() != b.keys():
            path = sorted(a.keys() ^ b.keys())[0]
            return f"its {what} {'have' if path in a else 'lack'} {path!r}"
        for path in a:
            if _form(a[path]) != _form(b[path]):
                return (
                    f"its {field_name(what, path)} are {describe_leaf(a[path])} where"
                    f" {describe_leaf(b[path])} is expected"
                )
    return None


def _form(leaf: Leaf) -> tuple[str, int | tuple[int, ...], tuple[int, ...]]:
    """Numbers may be shaped otherwise; a picture or a grid of other axes is another one."""
    return leaf.kind, leaf.shape if leaf.kind in ("grid", "image") else leaf.size, leaf.choices


def describe_leaf(leaf: Leaf) -> str:
    """A leaf for messages."""
    if leaf.kind == "discrete":
        return f"discrete of {' x '.join(map(str, leaf.choices))}"
    return f"{leaf.kind} {list(leaf.shape)}"


def field_name(what: str, path: str) -> str:
    """`observations`, or `observations/arm/joints`."""
    return f"{what}/{path}" if path else what


def sound_signature(data: Any, where: str) -> Signature:
    """The signature of a file's JSON, or of its text. Raises UserError where it is none."""
    try:
        return checked_signature(read_json(data) if isinstance(data, str) else data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{where} carries a broken signature ({one_line(error)}); nothing was imported"
        ) from None


def checked_signature(data: Any) -> Signature:
    """The signature of JSON that anyone may have written.

    Raises KeyError, TypeError, ValueError or AttributeError where it is none.
    """
    signature = Signature.from_json(data)
    for leaves in (signature.observations.values(), signature.actions.values()):
        for leaf in leaves:
            _sound_leaf(leaf)
        expect_size(sum(leaf.size for leaf in leaves), len(leaves))
    if not signature.observations or not signature.actions:
        raise ValueError("it has no leaves")
    return signature


def _sound_leaf(leaf: Leaf) -> None:
    whole = all(isinstance(n, int) and n > 0 for n in (*leaf.shape, *leaf.choices))
    kinds = {"tensor": "fiu", "discrete": "i", "grid": "u", "image": "u", "text": "u"}
    elements = math.prod(leaf.shape)
    bounds = all(
        bound is None or (len(bound) == elements and all(type(n) in (int, float) for n in bound))
        for bound in (leaf.low, leaf.high)
    )
    picked = len(leaf.choices) == (elements if leaf.kind in PICKED else 0)
    if not (whole and bounds and picked and np.dtype(leaf.dtype).kind in kinds[leaf.kind]):
        raise ValueError(f"the leaf {leaf}")
