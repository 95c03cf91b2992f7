"""Intervals of paired differences whose noise has two sources: the seeds of the runs and the windows they were tested on.

Every seed is tested on the same windows, so the two are crossed: drawing anew means other seeds (the outer unit) and other
stretches of time (for all seeds the same ones). For a mean the bootstrap over seeds and blocks of windows has a variance in
closed form, which is used instead of replicates, so that an interval has no noise of its own: that of the mean over seeds,
with n / (n - 1), plus that of the mean over time (:mod:`blocks`). What varies between runs of one seed and over time counts in
both, as it does in the bootstrap of crossed sources, which errs to the safe side.

The half width is the root of the sum of both sources' squared half widths, each with Student's t of its own degrees of
freedom. With one source that is Student's interval; with two normal ones it holds at least as often as it says, however few
the seeds and whichever source is the larger, which Satterthwaite's weights do not: over two or three seeds they trust a
variance that is small by chance.

Several intervals are made to hold together by Bonferroni's correction, which is valid whatever the comparisons share. The
sharper max-t method was measured and left: it estimates how comparisons are correlated from the same few seeds, and with 3
and 5 of them all of 11 intervals held in 74 and 91 % of cases instead of 95.

Sources: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007 (crossed sources); Banerjee, "Approximate confidence
interval for linear functions of means of k populations when the population variances are not equal", Sankhya 1960, and Ruben,
"A simple conservative and robust solution of the Behrens-Fisher problem", Sankhya A 2002 (the half width).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..errors import ArgumentError
from .blocks import block_length, variance_of_mean
from .statistics import student_quantile
from .windows import WindowErrors


@dataclasses.dataclass(frozen=True)
class WindowSeries:
    """One run's error over time: the mean over all windows (channels and series) that begin at a row.

    Attributes:
        starts: int64 [T], increasing: the rows.
        counts: float64 [T], windows that begin there.
        errors: float64 [T], their mean error.
        span: Rows that a window covers.
    """

    starts: np.ndarray
    counts: np.ndarray
    errors: np.ndarray
    span: int

    @classmethod
    def of(cls, windows: WindowErrors, metric: str) -> WindowSeries:
        """The series of a metric of some windows."""
        starts, place = np.unique(windows["start"].astype(np.int64), return_inverse=True)
        counts = np.bincount(place, minlength=len(starts)).astype(np.float64)
        sums = np.bincount(place, weights=windows[metric].astype(np.float64), minlength=len(starts))
        return cls(starts, counts, sums / counts, windows.span)

    @property
    def overlap(self) -> int:
        """Starts within a window's length of the first, at the densest place: their windows share rows."""
        return int((np.searchsorted(self.starts, self.starts + self.span) - np.arange(len(self.starts))).max())


@dataclasses.dataclass(frozen=True)
class Sample:
    """Paired differences of two strategies.

    Attributes:
        seeds: The seeds, in the order of ``means``.
        means: float64 [S], the difference of each seed, over all windows.
        over_time: float64 [T], the deviation of the difference at each start, mean over seeds, from the overall mean,
            weighted by its windows; None where windows are not known.
        overlap: Starts within a window's length.
    """

    seeds: tuple[int, ...]
    means: np.ndarray
    over_time: np.ndarray | None
    overlap: int = 1

    @classmethod
    def of(
        cls,
        seeds: Sequence[int],
        means: Sequence[float],
        first: Sequence[WindowSeries] | None = None,
        second: Sequence[WindowSeries] | None = None,
    ) -> Sample:
        """The differences ``first - second``, a pair a seed.

        Args:
            seeds: The seeds.
            means: The difference of each seed over all windows.
            first: The error of each seed over time; None where windows are not known.
            second: That of its partner.

        Raises:
            ArgumentError: Partners were tested on different windows.
        """
        means = np.asarray(means, dtype=np.float64)
        if first is None or second is None:
            return cls(tuple(seeds), means, None)
        one = first[0]
        for other in (*first, *second):
            if not (np.array_equal(one.starts, other.starts) and np.array_equal(one.counts, other.counts)):
                raise ArgumentError("runs can be compared only over the same windows: evaluate them on the same part of the data")
        difference = np.mean([a.errors - b.errors for a, b in zip(first, second, strict=True)], axis=0)
        weights = one.counts / one.counts.mean()
        return cls(tuple(seeds), means, weights * (difference - np.average(difference, weights=one.counts)), one.overlap)

    @property
    def blocks(self) -> float:
        """Blocks that the windows make; 0 where windows are not known."""
        return 0.0 if self.over_time is None else len(self.over_time) / block_length(len(self.over_time), self.overlap)


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval for a mean difference, one of several that hold together.

    Attributes:
        difference: The mean over seeds.
        low: Lower bound; None where nothing can be said.
        high: Upper bound.
        covers: What would vary in a repetition: ``"seeds and windows"``, ``"seeds"``, ``"windows"`` or None. With one seed
            only the windows can be spoken of, with windows that make less than two spans only the seeds.
        degrees: Degrees of freedom of each source, by its name.
        together: How many intervals hold together, this one included: Bonferroni's correction is for so many.
    """

    difference: float
    low: float | None
    high: float | None
    covers: str | None
    degrees: dict[str, float]
    together: int


def intervals(samples: Sequence[Sample], level: float = 0.95) -> list[Interval]:
    """The intervals of several mean differences, all of which hold together with a probability of at least ``level``.

    Args:
        samples: The differences.
        level: Probability that all of them hold.
    """
    parts = [_variances(sample) for sample in samples]
    together = max(1, sum(bool(known) for known in parts))
    return [_interval(sample, known, level, together) for sample, known in zip(samples, parts)]


def _variances(sample: Sample) -> dict[str, tuple[float, float]]:
    """What the mean difference would vary with: the variance of each source that is known, and its degrees of freedom."""
    n, known = len(sample.means), {}
    if n > 1:
        known["seeds"] = (float(sample.means.var(ddof=1)) / n, n - 1)
    of_windows = None if sample.over_time is None else variance_of_mean(sample.over_time, sample.overlap)
    if of_windows is not None:
        known["windows"] = of_windows
    return known


def _interval(sample: Sample, known: dict[str, tuple[float, float]], level: float, together: int) -> Interval:
    mean = math.fsum(sample.means) / len(sample.means)
    degrees = {name: freedom for name, (_, freedom) in known.items()}
    if not known:
        return Interval(mean, None, None, None, degrees, together)
    each = 1 - (1 - level) / together
    half = math.sqrt(math.fsum(student_quantile(each, freedom) ** 2 * variance for variance, freedom in known.values()))
    return Interval(mean, mean - half, mean + half, " and ".join(known), degrees, together)
