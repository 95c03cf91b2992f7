"""Learning-rate schedules, each a pure function of where the phase is: there is no hidden state to save."""

from __future__ import annotations

import math
from collections.abc import Callable


def halving(epoch: int, step: int, total_steps: int) -> float:
    """Halved after every epoch: 1, 1/2, 1/4 ... (the paper's schedule)."""
    return 0.5**epoch


def constant(epoch: int, step: int, total_steps: int) -> float:
    """Always 1."""
    return 1.0


def cosine(epoch: int, step: int, total_steps: int) -> float:
    """Half a cosine from 1 at the phase's first step towards 0 after its last (Loshchilov & Hutter 2017, no restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total_steps) / max(1, total_steps)))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"halving": halving, "constant": constant, "cosine": cosine}
"""Name to a function (epoch in the phase, step in the phase, steps the phase can take; all from 0) -> factor on lr."""
