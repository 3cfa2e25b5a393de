"""Holding foreign episodes against a signature: dtypes, shapes, ranges and finite numbers, many
episodes at a time.

What a leaf of the signature says is what is stored: floats become float32, picked numbers int32,
pictures uint8. An action that lies outside its box by no more than 1e-6 of the bound's size (at
least 1e-6) is rounding and is put on the bound; one further out is an error, and so is every value
that is not finite. The message names file, episode, field and step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from bigdm_ray.envs.signature import PICKED, Leaf, Signature
from bigdm_ray.errors import UserError
from bigdm_ray.formats.signatures import field_name
from bigdm_ray.replay.episode import Episode

TOLERANCE = 1e-6
ROUNDING = 1e-5
"""By what share of itself a number may change when it is kept in another precision."""
Locator = Callable[[int], str]
"""Where the k-th episode of a batch is, for messages."""


def conform(batch: Sequence[Episode], signature: Signature, place: Locator) -> list[Episode]:
    """The episodes with their arrays as the signature has them.

    Raises UserError for the first that cannot be.
    """
    if not batch:
        return []
    lengths = np.array([len(episode.rewards) for episode in batch], np.int64)
    if not lengths.all():
        raise refusal(place(int(np.argmin(lengths))), "rewards", "it has no steps")
    for what, expected in (
        ("observations", signature.observations.keys()),
        ("actions", signature.actions.keys()),
    ):
        for k, episode in enumerate(batch):
            if getattr(episode, what).keys() != expected:
                path = sorted(getattr(episode, what).keys() ^ expected)[0]
                raise refusal(
                    place(k),
                    field_name(what, path),
                    "it is missing" if path in expected else "the task has no such field",
                )
    rewards = _rewards(batch, lengths, place)
    observations = {
        p: _leaf("observations", p, leaf, [e.observations[p] for e in batch], lengths + 1, place)
        for p, leaf in signature.observations.items()
    }
    actions = {
        p: _leaf("actions", p, leaf, [e.actions[p] for e in batch], lengths, place)
        for p, leaf in signature.actions.items()
    }
    out, end = [], 0
    for k, (episode, length) in enumerate(zip(batch, lengths.tolist(), strict=True)):
        start, end = end, end + length
        seen = slice(start + k, end + k + 1)
        out.append(
            dataclasses.replace(
                episode,
                observations={path: values[seen] for path, values in observations.items()},
                actions={path: values[start:end] for path, values in actions.items()},
                rewards=rewards[start:end],
            )
        )
    return out


def _rewards(batch: Sequence[Episode], lengths: np.ndarray, place: Locator) -> np.ndarray:
    flat = np.concatenate([episode.rewards.reshape(len(episode.rewards), -1) for episode in batch])
    ends = np.cumsum(lengths)
    if flat.shape[1] != 1 or flat.dtype.kind not in "biuf":
        raise refusal(
            place(0),
            "rewards",
            f"one number a step is expected, not {flat.shape[1]} of type {flat.dtype}",
        )
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(flat[:, 0], np.float32)
    _none(~np.isfinite(flat), flat, ends, "rewards", place, "is not a finite float32")
    return flat


def _leaf(
    what: str, path: str, leaf: Leaf, parts: list[np.ndarray], rows: np.ndarray, place: Locator
) -> np.ndarray:
    """One leaf of all episodes as one array `[sum(rows), ...]`."""
    name = field_name(what, path)
    for k, part in enumerate(parts):
        if len(part) != rows[k]:
            steps = rows[k] - (what == "observations")
            raise refusal(
                place(k),
                name,
                f"it has {len(part):,} entries where {rows[k]:,} belong to {steps:,} steps",
            )
        if part.shape[1:] != leaf.shape and part.size != rows[k] * leaf.size:
            raise refusal(
                place(k),
                name,
                f"an entry has the shape {list(part.shape[1:])} where {list(leaf.shape)} is"
                " expected",
            )
        if part.dtype.kind not in "biuf":
            raise refusal(place(k), name, f"numbers are expected, not {part.dtype}")
    flat = np.concatenate(parts).reshape(-1, *leaf.shape)
    ends = np.cumsum(rows)
    if leaf.kind in PICKED:
        return _picked(flat, leaf, ends, name, place)
    if np.dtype(leaf.dtype).kind == "f":
        return _real(flat, leaf, ends, name, place, what == "actions")
    return _whole(flat, leaf, ends, name, place, what == "actions")


def _real(
    flat: np.ndarray, leaf: Leaf, ends: np.ndarray, name: str, place: Locator, bounded: bool
) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = flat.astype(leaf.dtype, copy=False)
    _none(~np.isfinite(cast), flat, ends, name, place, f"is not a finite {leaf.dtype}")
    return _bounded(cast, leaf, ends, name, place) if bounded else cast


def _bounded(
    values: np.ndarray, leaf: Leaf, ends: np.ndarray, name: str, place: Locator
) -> np.ndarray:
    if leaf.low is None or leaf.high is None:
        return values
    low, high = (
        np.array(bound, values.dtype).reshape(leaf.shape) for bound in (leaf.low, leaf.high)
    )
    outside = (values < low) | (values > high)
    if not outside.any():
        return values
    room = [np.maximum(TOLERANCE, TOLERANCE * np.abs(bound)) for bound in (low, high)]
    _none(
        (values < low - room[0]) | (values > high + room[1]),
        values,
        ends,
        name,
        place,
        "lies outside its space",
        low,
        high,
    )
    clipped: np.ndarray = np.clip(values, low, high)
    return clipped


def _whole(
    flat: np.ndarray, leaf: Leaf, ends: np.ndarray, name: str, place: Locator, bounded: bool
) -> np.ndarray:
    """A leaf of whole numbers: pictures, text, integer boxes."""
    info = np.iinfo(leaf.dtype)
    if flat.dtype != leaf.dtype:
        if flat.dtype.kind == "f":
            _none(flat != np.floor(flat), flat, ends, name, place, "is not a whole number")
        _none(
            (flat < info.min) | (flat > info.max),
            flat,
            ends,
            name,
            place,
            f"does not fit {leaf.dtype}",
        )
    cast = flat.astype(leaf.dtype, copy=False)
    return _bounded(cast, leaf, ends, name, place) if bounded and leaf.kind == "tensor" else cast


def _picked(
    flat: np.ndarray, leaf: Leaf, ends: np.ndarray, name: str, place: Locator
) -> np.ndarray:
    choices = np.array(leaf.choices).reshape(leaf.shape)
    bad = (flat < 0) | (flat >= choices)
    if flat.dtype.kind == "f":
        bad = ~((flat >= 0) & (flat < choices) & (flat == np.floor(flat)))
    _none(
        bad, flat, ends, name, place, "lies outside its space", np.zeros_like(choices), choices - 1
    )
    picked: np.ndarray = flat.astype(leaf.dtype, copy=False)
    return picked


def _none(
    bad: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray,
    name: str,
    place: Locator,
    why: str,
    *bounds: np.ndarray,
) -> None:
    """Raise UserError for the first value that is bad."""
    if not bad.any():
        return
    index = np.unravel_index(int(np.argmax(bad)), bad.shape)
    k = int(np.searchsorted(ends, index[0], side="right"))
    step = int(index[0]) - int(ends[k - 1] if k else 0)
    element = f", element {', '.join(str(int(i)) for i in index[1:])}" if len(index) > 1 else ""
    space = f" [{bounds[0][index[1:]]:g}, {bounds[1][index[1:]]:g}]" if bounds else ""
    raise refusal(place(k), name, f"step {step}{element}: {values[index]:g} {why}{space}")


def check_next_observations(
    after: np.ndarray, seen: np.ndarray, ends: np.ndarray, field: str, place: Locator
) -> None:
    """What was seen after a step `[n, ...]` must be finite, and what the next step of the episode
    saw, but for rounding.

    `ends` are rows that no other row of the same episode follows here, `place` says where a row is.
    Raises UserError.
    """
    if after.shape != seen.shape:
        raise refusal(
            place(0),
            field,
            f"an entry has the shape {list(after.shape[1:])} where {list(seen.shape[1:])} is"
            " expected",
        )
    inner = np.ones(len(after), bool)
    inner[ends[ends < len(after)]] = inner[len(after) - 1 :] = False
    theirs, mine, goes_on = after[:-1], seen[1:], inner[:-1].reshape(-1, *[1] * (after.ndim - 1))
    if after.dtype.kind == "f":
        bad = ~np.isfinite(after)
        bad[:-1] &= ~goes_on | np.isfinite(mine)  # the next step's own number is told of elsewhere
        if bad.any():
            index = np.unravel_index(int(np.argmax(bad)), bad.shape)
            raise refusal(place(int(index[0])), field, f"{after[index]:g} is not a finite number")
        rounding = max(
            [
                ROUNDING,
                *(float(np.finfo(one.dtype).eps) for one in (after, seen) if one.dtype.kind == "f"),
            ]
        )
        differ = (
            ~np.isclose(theirs, mine, rtol=rounding, atol=TOLERANCE) & np.isfinite(mine) & goes_on
        )
    else:
        differ = (theirs != mine) & goes_on
    if differ.any():
        index = np.unravel_index(int(np.argmax(differ)), differ.shape)
        why = (
            f"{theirs[index]:g} is not what the next step saw, {mine[index]:g}: rows are missing or"
            " out of order"
        )
        raise refusal(place(int(index[0])), field, why)


def refusal(place: str, field: str, why: str) -> UserError:
    """The one sentence for an episode that cannot be taken in."""
    return UserError(f"{place}, field {field!r}: {why}; nothing was imported")


def kept_seed(seed: int | np.integer) -> int:
    """The seed of an episode, as far as 64 bits hold it: 0, as where none is told, for larger
    ones."""
    return int(seed) if abs(int(seed)) < 2**63 else 0


def as_truth_values(flags: np.ndarray, field: str, place: Locator) -> np.ndarray:
    """Flags `[n]` as bool; `place` says where the k-th is.

    Raises UserError for NaN and for every number but 0 and 1.
    """
    if flags.dtype == bool:
        return flags
    bad = (flags != 0) & (flags != 1)
    if bad.any():
        k = int(np.argmax(bad))
        raise refusal(place(k), field, f"{flags[k]:g} is no flag; 0 or 1 is expected")
    return flags.astype(bool)


def check_ends(
    terminated: np.ndarray,
    truncated: np.ndarray,
    ends: np.ndarray,
    place: Locator,
    names: tuple[str, str],
) -> np.ndarray:
    """Whether each episode terminated: `[n]` bool, from flags `[sum(T)]` that may be set at last
    steps only.

    `ends [n]` are the cumulative lengths. An episode with both flags terminated; one with neither
    broke off and counts as truncated. Raises UserError for a flag in the middle of an episode, and
    for what is no flag.
    """

    def episode(at: int) -> int:
        return int(np.searchsorted(ends, at, side="right"))

    over, cut = (
        as_truth_values(flags, name, lambda at: place(episode(at)))
        for flags, name in ((terminated, names[0]), (truncated, names[1]))
    )
    for flags, name in ((over, names[0]), (cut, names[1])):
        if np.count_nonzero(flags) > np.count_nonzero(flags[ends - 1]):
            early = flags.copy()
            early[ends - 1] = False
            at = int(np.argmax(early))
            k = episode(at)
            raise refusal(
                place(k),
                name,
                f"step {at - int(ends[k - 1] if k else 0)} ends the episode, but more steps follow",
            )
    return np.asarray(over[ends - 1])
