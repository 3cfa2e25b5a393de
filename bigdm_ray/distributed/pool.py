"""The rollout actors: a group has one of its own, and another stands in while that is missing.

A machine may be gone for good. What it was to play is then played by those that are left, so that
no round waits for an actor that has no place.
"""

from __future__ import annotations

from bigdm_ray.distributed.actors import ActorSlot

GRACE_S = 10.0
"""Seconds for which a round waits for an actor that is made anew, before another plays it."""


class WorkerPool:
    """See the module."""

    def __init__(self, slots: list[ActorSlot]) -> None:
        self._slots = slots
        self._last: dict[int, tuple[ActorSlot, int, int]] = {}

    def choose(self, group: int) -> ActorSlot:
        """Who plays for a group now."""
        own = self._slots[group % len(self._slots)]
        if own.stands():
            return own
        standing = self._standing()
        return standing[group % len(standing)] if standing else own

    def attempt(self, group: int, slot: ActorSlot) -> int:
        """How often a group's environments had to be begun anew, with this call by `slot`.

        Streams of chance go by it: where another actor goes on, it must not play the same again.
        """
        attempt = slot.generation
        if group in self._last:
            before, generation, attempt = self._last[group]
            attempt += (before, generation) != (slot, slot.generation)
        self._last[group] = slot, slot.generation, attempt
        return attempt

    def stuck(self, slot: ActorSlot) -> bool:
        """Whether a slot has had no actor for so long that what waits for it should not."""
        return slot.missing_s() > GRACE_S

    def others(self) -> bool:
        """Whether any actor stands."""
        return bool(self._standing())

    def _standing(self) -> list[ActorSlot]:
        return [slot for slot in self._slots if slot.stands()]

    def count_missing(self) -> str:
        """How many are missing, in words."""
        count = len(self._slots) - len(self._standing())
        return f"{count} of {len(self._slots)} rollout actor(s) (1 CPU each)"
