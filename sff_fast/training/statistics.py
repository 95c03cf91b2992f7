"""Means over seeds and paired differences with Student's t interval, without a statistics package."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

_NODES = 128
"""Enough for nine digits at one degree of freedom and beyond; the integrand is a power that bends sharply only at pi / 2."""


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


def student_quantile(level: float, degrees: float) -> float:
    """The t with P(|T| <= t) = level for Student's distribution.

    Args:
        level: Two-sided probability, strictly between 0 and 1.
        degrees: Degrees of freedom, at least 1; need not be whole.

    Source: Abramowitz & Stegun 26.7.1 (the distribution) with t = sqrt(degrees) tan(theta), which makes the integrand a power
    of cos(theta); integrated by Gauss and Legendre, solved by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves pi / 2 to the spacing of floating-point numbers there
        middle = (low + high) / 2
        if _student_probability(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_probability(theta: float, degrees: float) -> float:
    """P(|T| <= t) for theta = atan(t / sqrt(degrees))."""
    density = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    nodes, weights = _gauss_legendre()
    # Over [0, theta] rather than [-theta, theta]: the integrand is even.
    return float(theta * density * np.dot(weights, np.cos(theta / 2 * (nodes + 1)) ** (degrees - 1)))


@functools.cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1]."""
    return np.polynomial.legendre.leggauss(_NODES)
