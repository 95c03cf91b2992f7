"""A synthetic corpus of time series to pre-train the demo's model on: seeded, vectorised, endless.

A shard is a batch of series that depends on (seed, index, n_series, length) alone, through a Philox generator keyed by
seed and index, so that a training run can be resumed at any shard without making the ones before it. The numbers repeat
on one platform and numpy version; across platforms they agree to rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator, Philox

from sff_fast.demo import components
from sff_fast.demo.components import log_uniform, standardise
from sff_fast.errors import ArgumentError

#: Share of each kind of series in a shard, in the order in which they are drawn.
KINDS = {"structural": 0.55, "gaussian_process": 0.2, "arma": 0.2, "intermittent": 0.05}

#: Probability that a finished series gets each alteration, in the order in which they are applied.
ALTERATIONS = {"regime_change": 0.08, "level_shifts": 0.08, "spikes": 0.12, "clip": 0.15, "round": 0.1}


def generator(seed: int, index: int) -> Generator:
    """A Philox generator keyed by (seed, index), both from 0 to 2**64 - 1: different pairs give independent streams."""
    # An unsigned array: of a list with a number beyond 2**63 numpy makes float64, in which neighbours become one key.
    return Generator(Philox(key=np.array([seed, index], dtype=np.uint64)))


def shard(seed: int, index: int, n_series: int = 1024, length: int = 1024) -> np.ndarray:
    """Make one shard of the corpus.

    Args:
        seed: Seed of the corpus, an integer from 0 to 2**64 - 1.
        index: Number of the shard, an integer from 0 to 2**64 - 1.
        n_series: Series in the shard, at least 8, default 1024.
        length: Samples of each series, at least 64, default 1024.

    Returns:
        float32 [n_series, length] in random order of kinds; every series has mean 0 and standard deviation 1, except
        the few that are constant (such as an intermittent series without an event), which stay so.

    Raises:
        ArgumentError: An argument lies outside of its range.
    """
    for name, value, low in (("seed", seed, 0), ("index", index, 0), ("n_series", n_series, 8), ("length", length, 64)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value < 2**64:
            raise ArgumentError(f"corpus.shard: {name} must be an integer of at least {low}, got {value!r}")
    rng = generator(seed, index)
    bounds = np.round(np.cumsum([0.0, *KINDS.values()]) * n_series).astype(int)
    parts = []
    for kind, low, high in zip(KINDS, bounds, bounds[1:], strict=False):
        # The four makers have one signature; the structural one is made here of the others' parts.
        maker = structural if kind == "structural" else getattr(components, kind)
        parts.append(standardise(maker(rng, int(high - low), length)))
    series = np.concatenate(parts)[rng.permutation(n_series)]
    return standardise(_alter(rng, series)).astype(np.float32)


def structural(rng: Generator, n: int, length: int) -> np.ndarray:
    """Trend plus one or two seasonalities plus ARMA noise, at random strengths; some of it multiplicative.

    The amplitude of a season may drift from cycle to cycle, the noise may change its scale, and one series in four is
    put through the exponential function, where growth, season and noise scale with the level.
    """
    period = components.periods(rng, n, length)
    x = _present(rng, n, 0.4) * log_uniform(rng, 0.1, 2, (n, 1)) * components.trend(rng, n, length)
    for k in (0, 1):
        strength = log_uniform(rng, 0.2, 2, (n, 1)) * (period[:, k : k + 1] > 0)
        season = components.seasonality(rng, np.where(period[:, k] > 0, period[:, k], 24), length)
        drift = _present(rng, n, 0.5) * rng.uniform(0.05, 0.8, (n, 1)).astype(np.float32)
        x = x + strength * (1 + drift * components.arma(rng, n, length)) * season
    noise = components.arma(rng, n, length)
    scale = components.changing_scale(rng, n, length)
    noise = np.where(rng.random((n, 1)) < 0.3, noise * scale, noise)
    x = standardise(x + log_uniform(rng, 0.02, 2, (n, 1)) * noise)
    growing = rng.random(n) < 0.25
    x[growing] = np.exp(np.clip(rng.uniform(0.2, 1.2, (n, 1)).astype(np.float32)[growing] * x[growing], None, 6))
    return x


def _present(rng: Generator, n: int, probability: float) -> np.ndarray:
    """1 with the given probability, else 0, float32 [n, 1]."""
    return (rng.random((n, 1)) < probability).astype(np.float32)


def _alter(rng: Generator, x: np.ndarray) -> np.ndarray:
    """Apply each alteration of ALTERATIONS to its share of the series, float32 [n, length] of unit variance."""
    n, length = x.shape
    for name, probability in ALTERATIONS.items():
        rows = np.flatnonzero(rng.random(n) < probability)
        x[rows] = _APPLY[name](rng, x, rows, length)
    return x


def _regime_change(rng: Generator, x: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """From a random time on, the series goes on as another series of the shard."""
    start = rng.integers(length // 8, length, (len(rows), 1))
    other = x[rng.integers(len(x), size=len(rows))]
    return np.where(np.arange(length) < start, x[rows], other * log_uniform(rng, 0.3, 3, (len(rows), 1)))


def _level_shifts(rng: Generator, x: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    return x[rows] + components.level_shifts(rng, len(rows), length)


def _spikes(rng: Generator, x: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    return x[rows] + components.spikes(rng, len(rows), length)


def _clip(rng: Generator, x: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """A sensor's or a quantity's limit: values beyond a random quantile, on one side, stay at the limit."""
    ordered = np.sort(x[rows], axis=1)
    at = rng.integers(int(0.15 * length), int(0.98 * length), len(rows))
    limit = ordered[np.arange(len(rows)), at][:, None]
    above = rng.random((len(rows), 1)) < 0.5
    mirrored = ordered[np.arange(len(rows)), length - 1 - at][:, None]
    return np.where(above, np.minimum(x[rows], limit), np.maximum(x[rows], mirrored))


def _round(rng: Generator, x: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """Coarse resolution: values are rounded to multiples of a random step."""
    step = log_uniform(rng, 0.02, 0.7, (len(rows), 1))
    return np.round(x[rows] / step) * step


_APPLY = {
    "regime_change": _regime_change,
    "level_shifts": _level_shifts,
    "spikes": _spikes,
    "clip": _clip,
    "round": _round,
}
