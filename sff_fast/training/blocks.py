"""The variance of a mean over time, from blocks of neighbouring windows, and how far it can be trusted.

Windows that begin within a span (context and horizon together) share rows, so their errors are correlated, and time is drawn
in blocks of consecutive windows. The mean square of the means of all blocks, the end joined to the beginning, is the variance
of the circular block bootstrap in closed form. Taken as it is it is too small, for two reasons that do not vanish with the
few blocks of a test part: correlation that reaches across a block's ends is lost, and the mean was taken off first. With a
correlation over 80 % of a block's length and ten blocks a quarter of the variance is lost, and intervals of 95 % hold in 91.

Both are put right for one model of the correlation: that of two windows in proportion to the rows they share. It is the
longest that overlap alone makes (errors that are sums of independent contributions of rows), so for shorter ones the variance
is a little too large, never too small. The model gives the factor, and the degrees of freedom of the chi-square distribution
that has the estimate's mean and variance; with them, few long blocks get the critical values that they need.

Blocks are as long as a span where there are four spans or fewer, and grow with the root of the number of spans beyond: the
longer they are, the less it matters that correlation may outlast the overlap (seasons, regimes), and the fewer there are. That
order makes the coverage error of an interval least, not the variance's own error (which would be a third root).

Sources: Kuensch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics 1989 (blocks, and
their bias); Politis & Romano, "A circular block-resampling procedure for stationary data", 1992; Kiefer & Vogelsang, "A new
asymptotic theory for heteroskedasticity-autocorrelation robust tests", Econometric Theory 2005 (critical values for blocks
that are a part of the whole); Sun, Phillips & Jin, "Optimal bandwidth selection in heteroskedasticity-autocorrelation robust
testing", Econometrica 2008 (the order of the length); Satterthwaite, "An approximate distribution of estimates of variance
components", Biometrics Bulletin 1946 (the degrees of freedom of a weighted sum of chi-squares).
"""

from __future__ import annotations

import functools
import math

import numpy as np

FEWEST_SPANS = 2
"""With less than that many spans nothing can be said about time."""


def block_length(starts: int, span: int) -> int:
    """Starts in a block.

    Args:
        starts: Starts of windows in all.
        span: Starts within a window's length, at least 1.
    """
    return max(span, round(math.sqrt(starts * span) / 2))


def variance_of_mean(deviations: np.ndarray, span: int) -> tuple[float, float] | None:
    """The variance of a mean over time, and its degrees of freedom.

    Args:
        deviations: float64 [T], the values in the order of time, without their mean.
        span: Starts within a window's length, at least 1.

    Returns:
        Both; None with fewer than two spans.
    """
    starts = len(deviations)
    if starts < FEWEST_SPANS * span:
        return None
    block = block_length(starts, span)
    sums = np.cumsum(np.concatenate([[0.0], deviations, deviations[: block - 1]]))
    means = (sums[block:] - sums[:-block]) / block
    factor, degrees = calibration(starts, span, block)
    return factor * float(np.mean(means**2)), degrees


@functools.lru_cache(maxsize=64)
def calibration(starts: int, span: int, block: int) -> tuple[float, float]:
    """What makes the mean square of block means the variance of the mean of all, if correlation is shared rows alone.

    In frequencies both are sums: the mean square of block means is that of the periodogram, each frequency weighted by what a
    block's mean lets through, and the ordinates are independent chi-squares in proportion to the spectrum.

    Args:
        starts: Starts of windows in all, at least two spans.
        span: Starts over which correlation falls to nothing, in a straight line.
        block: Starts in a block.

    Returns:
        The factor, and the degrees of freedom of the estimate.
    """
    frequencies = np.pi * np.arange(1, starts) / starts
    passed = (np.sin(block * frequencies) / (block * np.sin(frequencies))) ** 2
    spectrum = (np.sin(span * frequencies) / np.sin(frequencies)) ** 2 / span
    shares = passed * spectrum / starts
    lags = np.arange(1 - span, span)
    variance = math.fsum((1 - np.abs(lags) / starts) * (1 - np.abs(lags) / span)) / starts
    return variance / float(shares.sum()), float(shares.sum() ** 2 / (shares**2).sum())
