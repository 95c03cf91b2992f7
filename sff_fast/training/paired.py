"""Intervals of paired differences whose noise has two sources: the seeds of the runs and the windows they were tested on.

Every seed is tested on the same windows, so the two are crossed: drawing anew means other seeds (the outer unit) and other
stretches of time (for all seeds the same ones). Neighbouring windows overlap and are no independent observations: time is
drawn in blocks of consecutive windows, each as long as a window's context and horizon together, with all channels and series
of a time step in one block. For a mean the bootstrap over seeds and blocks has a variance in closed form, which is used
instead of replicates, so that an interval has no noise of its own; with the usual n / (n - 1) for both sources.

Several intervals are made to hold together by Bonferroni's correction, which is valid whatever the comparisons share. The
sharper max-t method was measured and left: it estimates how comparisons are correlated from the same few seeds, and with 3
and 5 of them all of 11 intervals held in 74 and 91 % of cases instead of 95.

Sources: Kuensch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics 1989 (blocks);
Politis & Romano, "A circular block-resampling procedure for stationary data", 1992; Owen, "The pigeonhole bootstrap", Annals
of Applied Statistics 2007 (crossed sources); Satterthwaite, "An approximate distribution of estimates of variance
components", Biometrics Bulletin 1946 (degrees of freedom of a sum of variances).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..errors import ArgumentError
from .statistics import student_quantile
from .windows import WindowErrors

FEW_SEEDS = 3
"""With more than one seed and up to so many the seeds alone give the degrees of freedom."""


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
    def block(self) -> int:
        """Starts in a block: as many as lie within a window's length of the first, at the densest place."""
        return int((np.searchsorted(self.starts, self.starts + self.span) - np.arange(len(self.starts))).max())


@dataclasses.dataclass(frozen=True)
class Sample:
    """Paired differences of two strategies.

    Attributes:
        seeds: The seeds, in the order of ``means``.
        means: float64 [S], the difference of each seed, over all windows.
        over_time: float64 [T], the deviation of the difference at each start, mean over seeds, from the overall mean,
            weighted by its windows; None where windows are not known.
        block: Starts in a block.
    """

    seeds: tuple[int, ...]
    means: np.ndarray
    over_time: np.ndarray | None
    block: int = 1

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
        return cls(tuple(seeds), means, weights * (difference - np.average(difference, weights=one.counts)), one.block)

    @property
    def blocks(self) -> float:
        """Blocks that the windows make; 0 where windows are not known."""
        return 0.0 if self.over_time is None else len(self.over_time) / self.block

    def block_means(self) -> np.ndarray | None:
        """The mean of every block of consecutive starts, the end joined to the beginning; None below two blocks."""
        if self.blocks < 2:
            return None
        sums = np.cumsum(np.concatenate([[0.0], self.over_time, self.over_time[: self.block - 1]]))
        return (sums[self.block :] - sums[: -self.block]) / self.block


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval for a mean difference, one of several that hold together.

    Attributes:
        difference: The mean over seeds.
        low: Lower bound; None where nothing can be said.
        high: Upper bound.
        covers: What would vary in a repetition: ``"seeds and windows"``, ``"seeds"``, ``"windows"`` or None. With one seed
            only the windows can be spoken of, with less than two blocks of windows only the seeds.
        degrees: Degrees of freedom.
        together: How many intervals hold together, this one included: Bonferroni's correction is for so many.
    """

    difference: float
    low: float | None
    high: float | None
    covers: str | None
    degrees: int | None
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


def _variances(sample: Sample) -> list[tuple[str, float, float]]:
    """What the mean difference would vary with: the name of each source that is known, its variance, and degrees of freedom."""
    n, blocks, known = len(sample.means), sample.block_means(), []
    if n > 1:
        known.append(("seeds", float(sample.means.var(ddof=1)) / n, n - 1))
    if blocks is not None:
        degrees = sample.blocks - 1
        known.append(("windows", float(np.mean(blocks**2)) / degrees, degrees))
    return known


def _interval(sample: Sample, known: Sequence[tuple[str, float, float]], level: float, together: int) -> Interval:
    mean = math.fsum(sample.means) / len(sample.means)
    if not known:
        return Interval(mean, None, None, None, None, together)
    variance = math.fsum(part for _, part, _ in known)
    freedom = variance**2 / math.fsum(part**2 / degrees for _, part, degrees in known) if variance > 0 else known[0][2]
    # A variance over two or three seeds is too vague for Satterthwaite's weights, which then trust a small one.
    few = 1 < len(sample.means) <= FEW_SEEDS
    degrees = len(sample.means) - 1 if few else max(1, math.floor(freedom + 1e-9))
    half = student_quantile(1 - (1 - level) / together, degrees) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, " and ".join(name for name, _, _ in known), degrees, together)
