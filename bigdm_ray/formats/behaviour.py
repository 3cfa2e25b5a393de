"""Behaviour: who acted in an episode and with how much noise, as the one line of text that
`Episode.source` holds.

    sac-final sto sigma 0.05 eps 0.3 stage 4

`sigma` is the standard deviation of Gaussian noise on actions whose box is [-1, 1], `eps` the share
of uniformly random actions, `stage` the place of a block in a mixture, 0 being the poorest. What is
zero or not known is left out.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["sample", "mean", "plan"]
"""How a policy acts."""

MODES: tuple[str, ...] = get_args(Mode)
OWN_OR_MODES = ("own", *MODES)
"""What `--mode` takes: `own` is the mode of the run's own evaluations."""

_NUMBER = r"[-+.\deE]+"
_NOISE = rf"(?: sigma (?P<sigma>{_NUMBER}))?(?: eps (?P<eps>{_NUMBER}))?"
_LINE = re.compile(
    rf"(?: (?P<policy>.*?))??(?: (?P<mode>det|sto|{'|'.join(MODES)}))?{_NOISE}(?: stage"
    r" (?P<stage>\d{1,4}))?",
    re.DOTALL,
)
"""With a space before its first word, so that a line may begin with any of them. Files keep a stage
in 16 bits."""


@dataclass(frozen=True)
class Behaviour:
    """See the module. `str` gives the line, `read` takes it apart again."""

    policy: str
    mode: str = ""
    sigma: float = 0.0
    eps: float = 0.0
    stage: int | None = None

    def __str__(self) -> str:
        words = [self.policy, self.mode]
        words += [f"sigma {self.sigma:g}"] if self.sigma else []
        words += [f"eps {self.eps:g}"] if self.eps else []
        words += [f"stage {self.stage}"] if self.stage is not None else []
        return " ".join(word for word in words if word)

    @staticmethod
    def read(line: str) -> Behaviour:
        """The behaviour of a line; one that was not written here is all `policy`."""
        found = _LINE.fullmatch(f" {line}")
        try:
            assert found is not None
            sigma, eps, stage = (found[name] for name in ("sigma", "eps", "stage"))
            return Behaviour(
                found["policy"] or "",
                found["mode"] or "",
                float(sigma or 0),
                float(eps or 0),
                None if stage is None else int(stage),
            )
        except ValueError:
            return Behaviour(line)


def with_stage(line: str, stage: int) -> str:
    """The line with another stage."""
    return str(dataclasses.replace(Behaviour.read(line), stage=stage))
