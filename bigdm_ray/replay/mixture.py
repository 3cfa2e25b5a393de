"""Mixture: one batch out of several sources, by weight.

A **source** is anything that draws: the store of a run, a dataset, a corpus. One draw of chance
splits the batch over the sources; then each is drawn from once, for its share only, with a stream
of chance of its own. Everything follows from the one stream that the caller names by the learner
step: all ranks and a resumed run draw the same. A batch of one source is what that source draws
with the caller's stream, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bigdm_ray.errors import UserError
from bigdm_ray.replay.windows import View, Windows


class Source(Protocol):
    """Anything that draws."""

    def draw(
        self,
        view: View,
        rng: np.random.Generator,
        size: int,
        rank: int = 0,
        world: int = 1,
        turn: int = 0,
    ) -> Windows:
        """`size` windows as `view` wants them; of these rank r of w fetches its share.

        What is drawn is a pure function of the view, the stream, the size, `turn` (the number of
        the draw) and what the source holds. Raises ValueError where it holds nothing to draw.
        """


@dataclass(frozen=True)
class Mixture:
    """How often each source is drawn from, by name: its share of the windows is that of its weight.

    Only the ratio of the weights counts. A weight of 0 is a source that is never drawn from. Raises
    UserError for weights that are no shares.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(
                    f"the weight of {name!r} is {weight}, but a number of at least 0 is expected"
                )
        if not any(self.weights.values()):
            raise UserError(
                "a mixture has nothing to draw from; give at least one source a weight above 0"
            )

    @staticmethod
    def uniform(names: Iterable[str]) -> Mixture:
        """All sources alike."""
        return Mixture(dict.fromkeys(names, 1.0))

    def names_drawn(self, names: Iterable[str]) -> list[str]:
        """Those of the sources that are drawn from, by name. Raises UserError where there is none.

        Sources that are not among `names` leave their share to the others.
        """
        known = sorted(names)
        if unknown := [name for name in known if name not in self.weights]:
            raise UserError(
                f"the mixture has no weight for {unknown[0]!r}, only for "
                f"{', '.join(sorted(self.weights))}"
            )
        if found := [name for name in known if self.weights[name] > 0]:
            return found
        raise UserError(
            f"no source with a weight above 0 is at hand, only {', '.join(known) or 'none at all'}"
        )

    def counts(self, names: Iterable[str], rng: np.random.Generator, size: int) -> dict[str, int]:
        """How many of `size` windows come from each source that is drawn from, by name.

        One multinomial draw; no chance is used where there is one source.
        """
        names = self.names_drawn(names)
        if len(names) == 1:
            return {names[0]: size}
        weights = np.array([self.weights[name] for name in names], np.float64)
        return dict(
            zip(names, rng.multinomial(size, weights / weights.sum()).tolist(), strict=True)
        )

    def draw(
        self,
        sources: Mapping[str, Source],
        views: Mapping[str, View],
        rng: np.random.Generator,
        size: int,
        rank: int = 0,
        world: int = 1,
        turn: int = 0,
    ) -> dict[str, Windows]:
        """`size` windows in all, by source; one that gives none of this batch is left out.

        The windows of each source are split over the ranks. Which rank comes first goes round, so
        that many small parts do not all fall to the last one. A rank may get windows of a source
        that have no rows.
        """
        counts = self.counts(sources, rng, size)
        streams = rng.spawn(len(counts)) if len(counts) > 1 else [rng]
        return {
            name: sources[name].draw(
                views[name], stream, count, (rank + place) % world, world, turn
            )
            for place, (stream, (name, count)) in enumerate(
                zip(streams, counts.items(), strict=True)
            )
            if count
        }
