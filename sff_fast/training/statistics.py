"""Means over seeds and paired differences with Student's t interval, without a statistics package."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for the deviation of a single value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean of paired differences and its two-sided Student t interval.

    Args:
        differences: One difference for each pair.
        level: Coverage of the interval.

    Returns:
        Mean, lower and upper bound; the bounds are None with a single pair.
    """
    mean, std = mean_and_std(differences)
    if std is None:
        return mean, None, None
    half = student_quantile(level, len(differences) - 1) * std / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def student_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| <= t) = level for Student's distribution.

    Args:
        level: Two-sided probability, strictly between 0 and 1.
        degrees: Degrees of freedom, at least 1.

    Source: Abramowitz & Stegun 26.7.3 and 26.7.4 (the distribution for integer degrees), solved by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        if _student_probability(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_probability(theta: float, degrees: int) -> float:
    """P(|T| <= t) for theta = atan(t / sqrt(degrees))."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= cosine * cosine * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    if odd:
        return 2.0 / math.pi * (theta + sine * total)
    return sine * total
