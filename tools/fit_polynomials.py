"""Prints the polynomials of ``csrc/core/distributions.h`` with their errors.

Each is a near-minimax fit in float64 on Chebyshev points by Lawson's iteratively reweighted least squares: weights grow
where the error is large until it is level. The table's last column is the error of the coefficients as the header holds
them, evaluated in float64; what float32 arithmetic adds is bounded by the tests (``tests/test_kernels.py``).

Run from the repository root: ``python tools/fit_polynomials.py``.

Sources: C. L. Lawson, "Contributions to the theory of linear least maximum approximation", thesis, UCLA, 1961; the variables
of the normal quantile are those of M. Giles, "Approximating the erfinv function", GPU Computing Gems 2011.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import erfcinv, erfinv

HEADER = Path(__file__).resolve().parents[1] / "csrc" / "core" / "distributions.h"
Function = Callable[[np.ndarray], np.ndarray]


def quantile_factor(w: np.ndarray) -> np.ndarray:
    """z / (1 - 2q) of the normal quantile z at the tail probability q, over w = -ln(4q(1 - q))."""
    x = np.sqrt(-np.expm1(-w))  # 1 - 2q
    q = np.exp(-w) / (2 * (1 + x))
    return math.sqrt(2) * np.where(w < 1, erfinv(x), erfcinv(2 * q)) / x


@dataclass(frozen=True)
class Fit:
    """One polynomial of the header.

    Attributes:
        name: What it stands for.
        function: What is fitted.
        low: Start of the interval.
        high: End of the interval.
        degree: Degree of what is fitted.
        weight: Weight of the error, as a function of the argument.
        centre: The polynomial is in powers of ``argument - centre``.
        points: Chebyshev points.
        turns: Reweightings.
        floor: Keeps a weight from vanishing.
        best: Take the best of all turns instead of the last one.
        double: The header's coefficients are float64 numbers that are scaled before they are rounded.
    """

    name: str
    function: Function
    low: float
    high: float
    degree: int
    weight: Function = np.ones_like
    centre: float = 0.0
    points: int = 4000
    turns: int = 60
    floor: float = 1e-3
    best: bool = False
    double: bool = True


QUARTER = (math.pi / 4) ** 2
TAIL_START, TAIL_END = math.sqrt(5.0), 7.6  # 7.6**2 = 57.8: tail probabilities down to 2e-26, 10.5 standard deviations

FITS = (
    Fit("(ln(1 + f) - f) / f^2", lambda f: (np.log1p(f) - f) / f**2, 0.5**0.5 - 1, 2**0.5 - 1, 5, np.abs, double=False),
    Fit("sin(t) / t over t^2", lambda z: np.sinc(np.sqrt(z) / math.pi), 0.0, QUARTER, 2),
    Fit("(cos(t) - 1) / t^2 over t^2", lambda z: (np.cos(np.sqrt(z)) - 1) / z, 1e-9, QUARTER, 2, lambda z: z),
    Fit("quantile, w < 5, over w - 2.5", quantile_factor, 0.0, 5.0, 7, np.ones_like, 2.5, 400, 300, 1e-4, True, False),
    Fit(
        "quantile, w >= 5, over sqrt(w) - 4",
        lambda s: quantile_factor(s * s),
        TAIL_START,
        TAIL_END,
        9,
        np.ones_like,
        4.0,
        400,
        300,
        1e-4,
        True,
        False,
    ),
)


def nodes(fit: Fit, count: int) -> np.ndarray:
    """Chebyshev points of the interval."""
    k = np.cos(math.pi * (np.arange(count) + 0.5) / count)
    return np.clip(k * (fit.high - fit.low) / 2 + (fit.low + fit.high) / 2, max(fit.low, 1e-9) if fit.low >= 0 else fit.low, None)


def solve(fit: Fit) -> np.ndarray:
    """Coefficients in powers of ``argument - centre``, lowest first, in float64."""
    x = nodes(fit, fit.points)
    y, weight = fit.function(x), fit.weight(x)
    middle, half = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    basis = np.polynomial.chebyshev.chebvander((x - middle) / half, fit.degree)
    level, smallest, kept = np.ones_like(x), math.inf, np.zeros(fit.degree + 1)
    for _ in range(fit.turns):
        scale = weight * np.sqrt(level)
        c = np.linalg.lstsq(basis * scale[:, None], y * scale, rcond=None)[0]
        error = np.abs((basis @ c - y) * weight)
        if not fit.best or error.max() < smallest:
            smallest, kept = error.max(), c
        level = level * (error / error.max() + fit.floor)
        level /= level.mean()
    return recentred(np.polynomial.chebyshev.cheb2poly(kept), middle, half, fit.centre)


def recentred(c: np.ndarray, middle: float, half: float, centre: float) -> np.ndarray:
    """Powers of (x - middle) / half as powers of x - centre."""
    line = np.array([(centre - middle) / half, 1 / half])
    total, power = np.zeros(1), np.ones(1)
    for coefficient in c:
        total = np.polynomial.polynomial.polyadd(total, coefficient * power)
        power = np.polynomial.polynomial.polymul(power, line)
    return total


def error_of(fit: Fit, c: np.ndarray) -> float:
    """Largest weighted error of these coefficients, on ten thousand points that the fit did not see."""
    x = nodes(fit, 10_007)
    value = np.polynomial.polynomial.polyval(x - fit.centre, c)
    return float(np.abs((value - fit.function(x)) * fit.weight(x)).max())


def in_header() -> list[np.ndarray]:
    """The coefficients that csrc/core/distributions.h holds, in the order of :data:`FITS`, lowest power first."""
    text = HEADER.read_text()

    def part(begin: str, end: str) -> str:
        return text[text.index(begin) : text.index(end, text.index(begin))]

    number = r"(-?\d\.\d+(?:e-\d+)?)"
    # The logarithm's last factor, c alone, is the exact 1 of f + f^2 Q(f); ln 2 is in the line after it.
    log = re.findall(rf"c \* {number}\)", part("scaled_log(", "return fused(exponent"))
    sine = re.findall(rf"<float>\({number} \* q", part("    F s =", "    F c ="))
    cosine = re.findall(rf"<float>\({number} \* q", part("    F c =", "c = from_bits"))
    central = re.findall(rf"L::f\({number}f\)", part("    F y = L::f(4.67", "if (Tail)"))
    tail = re.findall(rf"L::f\({number}f\)", part("        F x =", "y = select_less"))
    return [np.array([float(v) for v in reversed(found)]) for found in (log, sine, cosine, central, tail)]


def rounded(fit: Fit, c: np.ndarray) -> np.ndarray:
    """As the header holds them: float32 numbers, or float64 ones where the code scales them before rounding."""
    return c if fit.double else c.astype(np.float32).astype(np.float64)


def main() -> None:
    """Fit, and compare with the header."""
    for fit, held in zip(FITS, in_header()):
        found = solve(fit)
        print(f"{fit.name} on [{fit.low:.6g}, {fit.high:.6g}], degree {fit.degree}")
        for power, (a, b) in enumerate(zip(rounded(fit, found), held)):
            print(f"  x^{power}  fit {float(a)!r:<26} header {float(b)!r:<26} difference {a - b:+.1e}")
        print(f"  largest error: fit {error_of(fit, found):.2e}, header {error_of(fit, held):.2e}\n")


if __name__ == "__main__":
    main()
