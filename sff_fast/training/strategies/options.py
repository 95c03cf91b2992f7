"""The options that belong to single strategies, with the defaults of their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..config import integer, number


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of one strategy.

    Attributes:
        name: Argument of :func:`sff_fast.finetune`, field of :class:`Settings`; on the command line with dashes.
        default: What it is where it is not given.
        low: Lower bound.
        high: Upper bound, or None.
        inclusive: Whether the lower bound itself is allowed.
    """

    name: str
    default: float
    low: float
    high: float | None = None
    inclusive: bool = True

    def resolve(self, given: Any) -> float:
        """The value, checked; the default for None.

        Raises:
            ArgumentError: It is out of bounds.
        """
        if given is None:
            return self.default
        if isinstance(self.default, int):
            return integer(self.name, given, int(self.low), None if self.high is None else int(self.high))
        return number(self.name, given, self.low, self.high, self.inclusive)


NAMES = ("penalty", "mixout_p", "ema_decay", "lora_rank", "sam_rho")
"""All such options, in the order of the help texts."""


def resolve_own(option: Option | None, given: Mapping[str, Any]) -> dict[str, float | None]:
    """The own options of a strategy: the value of its own, None for those that mean nothing to it.

    Raises:
        ArgumentError: A value is out of bounds.
    """
    return {name: option.resolve(given[name]) if option is not None and option.name == name else None for name in NAMES}
