"""What a source holds beside what is read: named in a note, refused where it may tell of ends.

A column that no reader knows is mostly of no harm (log-probabilities, positions of a simulator).
One that marks ends, left out, would give episodes that are none: longer, shorter, or two in one.
The name is all that there is to go by.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from bigdm_ray.errors import quote_value, sentence
from bigdm_ray.formats.checks import refusal

SHOWN = 12
"""Names that a note lists, at most."""

HARMLESS = ("infos", "info", "metadata")
"""Groups of whatever an environment or an author tells besides; D4RL's and Minari's."""

_ENDS = re.compile(
    r"terminal|terminat|trunc|time_?outs?|done|episode|traj|rollout|unroll|absorb|time_?limit"
)
"""Parts of names that tell of ends in the data that the field shares."""
_WORDS = {"end", "ends", "ended", "eps", "ep", "first", "last", "reset", "resets", "mask", "masks"}
_WORDS |= {"fold", "folds", "start", "starts", "boundary", "boundaries"}
_AMOUNTS = {"return", "returns", "reward", "rewards", "score", "scores", "seed", "seeds"}
"""Numbers of a whole episode, whose names speak of episodes but not of where they end."""


def tells_ends(name: str) -> bool:
    """Whether a column of this name may say where episodes end: `is_last`, `traj_ids`, `isDone`."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = set(re.findall(r"[a-z]+", plain))
    if words & _AMOUNTS:
        return False
    return bool(_ENDS.search(plain) or words & _WORDS)


def unread_names(names: Iterable[str], known: Collection[str], place: str) -> tuple[str, ...]:
    """The names that are neither `known` nor harmless, sorted.

    Raises UserError for one that may tell of ends.
    """
    beside = sorted(
        name for name in names if name not in known and name.partition("/")[0] not in HARMLESS
    )
    for name in beside:
        if tells_ends(name):
            raise refusal(
                place,
                name,
                "it is not known here and may say where episodes end: give it a name that is "
                f"known ({', '.join(sorted(known))}) where it is one of these, or leave it out",
            )
    return tuple(beside)


def unread_note(source: str, beside: tuple[str, ...]) -> str:
    """The sentence that tells what was not read."""
    more = f" and {len(beside) - SHOWN:,} more" if len(beside) > SHOWN else ""
    names = ", ".join(quote_value(name) for name in beside[:SHOWN])
    return sentence(f"{source} holds more than episodes have, which was not read: {names}{more}")
