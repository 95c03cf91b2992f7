"""How much of a parameter is kept and how much is drawn: alpha, or shrink and perturb, by name patterns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from sff_fast.errors import ArgumentError

Factors = list[tuple[str, float, float]]
"""(pattern, shrink, perturb) in order; the first pattern that matches a name counts."""


def parse_factors(alpha: Any, shrink: Any, perturb: Any) -> Factors:
    """Check the factors that a user gave.

    Args:
        alpha: A number in [0, 1] or a mapping of patterns to numbers; None for 0.7 where the others are None too.
        shrink: A finite number or a mapping, together with ``perturb`` and without ``alpha``.
        perturb: A finite number or a mapping of the same patterns.

    Raises:
        ArgumentError: A factor is out of range, or they do not go together.
    """
    if shrink is None and perturb is None:
        alphas = _by_pattern("alpha", 0.7 if alpha is None else alpha)
        for pattern, value in alphas.items():
            if not 0.0 <= value <= 1.0:
                raise ArgumentError(
                    f"alpha must be a number from 0 to 1 (the share of the pre-trained weights), got {value!r} for {pattern!r}"
                )
        return [(pattern, value, 1.0 - value) for pattern, value in alphas.items()]
    if alpha is not None:
        raise ArgumentError("pass alpha, or shrink and perturb, not both")
    if shrink is None or perturb is None:
        raise ArgumentError(f"shrink and perturb go together, got shrink={shrink!r} and perturb={perturb!r}")
    shrinks, perturbs = _by_pattern("shrink", shrink), _by_pattern("perturb", perturb)
    patterns = list(shrinks if isinstance(shrink, Mapping) else perturbs)
    for label, given, values in (("shrink", shrink, shrinks), ("perturb", perturb, perturbs)):
        if isinstance(given, Mapping) and list(values) != patterns:
            raise ArgumentError(
                f"shrink and perturb need the same patterns in the same order, {label} has {list(values)}, expected {patterns}"
            )
    return [
        (
            p,
            shrinks[p] if isinstance(shrink, Mapping) else shrinks["*"],
            perturbs[p] if isinstance(perturb, Mapping) else perturbs["*"],
        )
        for p in patterns
    ]


def match_factors(names: Sequence[str], factors: Factors) -> dict[str, tuple[float, float]]:
    """Name to (shrink, perturb) by the first pattern that matches; names that match nothing are left out.

    Raises:
        ArgumentError: A pattern matches no name.
    """
    matched, hit = {}, set()
    for name in names:
        hit.update(pattern for pattern, _, _ in factors if fnmatchcase(name, pattern))
        for pattern, a, b in factors:
            if fnmatchcase(name, pattern):
                matched[name] = (a, b)
                break
    idle = [pattern for pattern, _, _ in factors if pattern not in hit]
    if idle and names:
        raise ArgumentError(
            f"no parameter matches the pattern {idle[0]!r}; the model has {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
    return matched


def _by_pattern(label: str, given: Any) -> dict[str, float]:
    items = dict(given) if isinstance(given, Mapping) else {"*": given}
    if not items:
        raise ArgumentError(f"{label} is an empty mapping: give at least one pattern")
    for pattern, value in items.items():
        if not isinstance(pattern, str):
            raise ArgumentError(f"{label} maps name patterns to numbers, got the key {pattern!r}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ArgumentError(f"{label} must be a finite number, got {value!r} for {pattern!r}")
    return {pattern: float(value) for pattern, value in items.items()}
