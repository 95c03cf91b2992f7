"""Building blocks of the synthetic corpus: trends, seasonalities, Gaussian processes, ARMA processes, events.

Every function makes ``n`` series of ``length`` values at once, float32 [n, length], from a ``numpy.random.Generator``.
Nothing loops over series; what must run through time (recursive filters) loops over time with all series side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

#: Pairs of periods that occur together in recorded data, in samples, with weights; 0 means "no second period".
#: Hourly (24, 168), half-hourly (48, 336), quarter-hourly (96, 672), ten-minute (144), five-minute (288), daily
#: (7, 30, 365), weekly (52), monthly (12), quarterly (4), and shift work (8, 12).
CALENDARS = (
    (24, 0, 8),
    (24, 168, 6),
    (24, 12, 4),
    (24, 8, 1),
    (12, 0, 3),
    (7, 0, 3),
    (7, 30, 1),
    (7, 365.25, 1),
    (52, 0, 2),
    (4, 0, 1),
    (48, 336, 2),
    (96, 672, 1),
    (144, 0, 1),
    (288, 0, 1),
)
#: The share of series whose periods are log-uniform between 3 and half of the length instead.
RANDOM_PERIODS = 0.3

_EPS = 1e-6


def log_uniform(rng: Generator, low: float, high: float, size: int | tuple[int, ...]) -> np.ndarray:
    """Draw from the log-uniform distribution on [low, high], float32."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size)).astype(np.float32)


def standardise(x: np.ndarray) -> np.ndarray:
    """Give every series mean 0 and population standard deviation 1; a constant one stays constant."""
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.maximum(x.std(axis=1, keepdims=True), _EPS)


def periods(rng: Generator, n: int, length: int) -> np.ndarray:
    """Two periods for each series, in samples, float32 [n, 2]; 0 in the second place means that there is none."""
    table = np.array(CALENDARS)
    drawn = table[rng.choice(len(table), size=n, p=table[:, 2] / table[:, 2].sum()), :2].astype(np.float32)
    free = rng.random(n) < RANDOM_PERIODS
    drawn[free] = log_uniform(rng, 3, length / 2, (n, 2))[free]
    drawn[free & (rng.random(n) < 0.5), 1] = 0
    return drawn


def trend(rng: Generator, n: int, length: int) -> np.ndarray:
    """Linear, piecewise linear with up to 5 knots, or logistic trends, standardised."""
    t = np.linspace(-1, 1, length, dtype=np.float32)
    kind = rng.integers(3, size=(n, 1))
    knots = rng.uniform(-1, 1, (5, n, 1)).astype(np.float32)
    bends = rng.standard_normal((5, n, 1), dtype=np.float32) * (rng.random((5, n, 1)) < 0.5)
    piecewise = rng.standard_normal((n, 1), dtype=np.float32) * t
    for knot, bend in zip(knots, bends, strict=True):
        piecewise += 2 * bend * np.maximum(t - knot, 0)
    steepness = log_uniform(rng, 2, 30, (n, 1))
    logistic = 1 / (1 + np.exp(-steepness * (t - knots[0])))
    sign = rng.choice(np.array([-1, 1], dtype=np.float32), (n, 1))
    return standardise(np.where(kind == 0, sign * t, np.where(kind == 1, piecewise, sign * logistic)))


def seasonality(rng: Generator, period: np.ndarray, length: int) -> np.ndarray:
    """Periodic series, standardised.

    Sums of up to 6 harmonics whose amplitudes fall as a random power of their order, from a plain sine to sharp
    profiles; a quarter is pushed through tanh towards square waves, another quarter through a power to lone pulses.

    Args:
        rng: Source of randomness.
        period: Period in samples, float32 [n], all positive.
        length: Samples.
    """
    n = len(period)
    t = np.arange(length, dtype=np.float32)
    turns = t / period[:, None] + rng.random((n, 1), dtype=np.float32)
    turns -= np.floor(turns)  # float32 sines of large angles would lose the phase
    angle = np.float32(2 * np.pi) * turns
    base = np.empty((n, length), dtype=np.complex64)
    base.real, base.imag = np.cos(angle), np.sin(angle)
    orders = np.arange(1, 7, dtype=np.float32)
    most = np.minimum(rng.integers(1, 7, n), np.maximum(period / 2, 1))  # no harmonic beyond the Nyquist frequency
    amplitude = rng.standard_normal((n, 6), dtype=np.float32) + 1j * rng.standard_normal((n, 6), dtype=np.float32)
    amplitude *= orders ** -rng.uniform(0.5, 2.5, (n, 1)).astype(np.float32) * (orders <= most[:, None])
    amplitude[:, 0] += 0.5 * np.exp(1j * rng.uniform(0, 2 * np.pi, n))
    amplitude = amplitude.astype(np.complex64)
    power, x = base, (amplitude[:, :1] * base).real
    for k in range(1, 6):
        power = power * base
        x = x + (amplitude[:, k : k + 1] * power).real
    x = standardise(x)
    shape = rng.integers(4, size=n)
    square, pulse = shape == 0, shape == 1
    x[square] = np.tanh(log_uniform(rng, 0.5, 8, (n, 1))[square] * x[square])
    x[pulse] = np.exp(np.clip(log_uniform(rng, 0.3, 2, (n, 1))[pulse] * x[pulse], None, 6))
    return standardise(x)


def recursive_filter(noise: np.ndarray, pole_a: np.ndarray, pole_b: np.ndarray) -> np.ndarray:
    """Run x[t] = (a + b) x[t-1] - a b x[t-2] + noise[t] from rest.

    Args:
        noise: float32 [n, length].
        pole_a: Complex or real [n], of magnitude at most 1.
        pole_b: Real where ``pole_a`` is real, its conjugate otherwise, [n].

    Returns:
        float32 [n, length].
    """
    first = np.real(pole_a + pole_b).astype(np.float32)
    second = -np.real(pole_a * pole_b).astype(np.float32)
    x = np.ascontiguousarray(noise.T)  # time first: each step reads and writes one row
    before, last = np.zeros_like(x[0]), np.zeros_like(x[0])
    for row in x:
        row += first * last + second * before
        before, last = last, row
    return np.ascontiguousarray(x.T)


def arma(rng: Generator, n: int, length: int) -> np.ndarray:
    """ARMA(4, 1) processes with random poles, standardised.

    Two second-order sections in a row, each with two real poles (time constants log-uniform from 1 to 2000 samples, one
    in ten a unit root) or a damped oscillation; half of the series have one section only, a tenth is white noise. Half
    have Gaussian innovations, half Student's t with 4 degrees of freedom.
    """
    burn_in = length // 4
    total = burn_in + length
    noise = rng.standard_normal((n, total), dtype=np.float32)
    heavy = rng.random(n) < 0.5
    chi2 = rng.standard_gamma(2.0, (int(heavy.sum()), total), dtype=np.float32)  # chi-square(4) / 2
    noise[heavy] *= np.sqrt(2 / np.maximum(chi2, 1e-3))  # Student's t: normal over sqrt(chi-square / 4)
    x = noise + rng.uniform(-0.8, 0.8, (n, 1)).astype(np.float32) * np.roll(noise, 1, axis=1)  # MA(1)
    sections = rng.choice(3, size=n, p=(0.1, 0.5, 0.4))
    for section in (1, 2):
        real_a = np.exp(-1 / log_uniform(rng, 1, 2000, n))
        real_a = np.where(rng.random(n) < 0.1, 1.0, real_a)
        real_b = np.where(rng.random(n) < 0.5, 0.0, np.exp(-1 / log_uniform(rng, 0.5, 30, n)))
        decay = np.exp(-1 / log_uniform(rng, 5, 500, n))
        oscillation = decay * np.exp(2j * np.pi / periods(rng, n, length)[:, 0])
        complex_pair = rng.random(n) < 0.25
        pole_a = np.where(complex_pair, oscillation, real_a)
        pole_b = np.where(complex_pair, oscillation.conj(), real_b)
        active = sections >= section
        x[active] = standardise(recursive_filter(x[active], pole_a[active], pole_b[active]))
    return standardise(x[:, burn_in:])


def stationary_covariance(rng: Generator, n: int, n_lags: int) -> np.ndarray:
    """Random covariance functions composed of kernels by sums and products.

    One to four of: periodic, radial basis function, Matern 1/2, 3/2 and 5/2, rational quadratic; sums and products of
    covariance functions are covariance functions.

    Args:
        rng: Source of randomness.
        n: Functions.
        n_lags: Number of lags, 0 to n_lags - 1 samples.

    Returns:
        float32 [n, n_lags] with value 1 at lag 0.

    Source: Duvenaud et al., "Structure Discovery in Nonparametric Regression through Compositional Kernel Search",
        ICML 2013; as a corpus: Ansari et al., "Chronos", 2024 (KernelSynth).
    """
    lag = np.arange(n_lags, dtype=np.float32)
    count = rng.integers(1, 5, n)
    result = np.zeros((n, n_lags), dtype=np.float32)
    for j in range(4):
        kind = rng.integers(6, size=n)
        scale = log_uniform(rng, 3, n_lags, (n, 1))
        period = periods(rng, n, n_lags)[:, :1]
        width = log_uniform(rng, 0.3, 2, (n, 1))
        mixture = log_uniform(rng, 0.1, 5, (n, 1))
        weight = log_uniform(rng, 0.2, 2, (n, 1))
        product = rng.random(n) < 0.5
        active = j < count
        for k, kernel in enumerate(_KERNELS):
            rows = np.flatnonzero(active & (kind == k))
            value = kernel(lag, scale[rows], period[rows], width[rows], mixture[rows])
            multiply = (product[rows] & (j > 0))[:, None]
            result[rows] = np.where(multiply, result[rows] * value, result[rows] + weight[rows] * value)
    return result / result[:, :1]


def _periodic(lag: np.ndarray, scale: np.ndarray, period: np.ndarray, width: np.ndarray, mixture: np.ndarray):
    return np.exp(-2 * (np.sin(np.float32(np.pi) * ((lag / period) % 1)) / width) ** 2)


def _rbf(lag: np.ndarray, scale: np.ndarray, period: np.ndarray, width: np.ndarray, mixture: np.ndarray):
    return np.exp(-0.5 * (lag / scale) ** 2)


def _matern_12(lag: np.ndarray, scale: np.ndarray, period: np.ndarray, width: np.ndarray, mixture: np.ndarray):
    return np.exp(-lag / scale)


def _matern_32(lag: np.ndarray, scale: np.ndarray, period: np.ndarray, width: np.ndarray, mixture: np.ndarray):
    r = np.float32(3**0.5) * lag / scale
    return (1 + r) * np.exp(-r)


def _matern_52(lag: np.ndarray, scale: np.ndarray, period: np.ndarray, width: np.ndarray, mixture: np.ndarray):
    r = np.float32(5**0.5) * lag / scale
    return (1 + r + r * r / 3) * np.exp(-r)


def _rational_quadratic(lag: np.ndarray, scale: np.ndarray, period: np.ndarray, width: np.ndarray, mixture: np.ndarray):
    return (1 + (lag / scale) ** 2 / (2 * mixture)) ** -mixture


_KERNELS = (_periodic, _rbf, _matern_12, _matern_32, _matern_52, _rational_quadratic)


def sample_stationary(rng: Generator, covariance: np.ndarray) -> np.ndarray:
    """Draw one stationary Gaussian series for each covariance function, by circulant embedding.

    A covariance that has not decayed by its last lag may have an embedding with negative eigenvalues. They are set to 0
    and the variance is restored; the covariance is then approximate.

    Args:
        rng: Source of randomness.
        covariance: float32 [n, length + 1], lags 0 to length.

    Returns:
        float32 [n, length].

    Source: Dietrich and Newsam, "Fast and Exact Simulation of Stationary Gaussian Processes",
        SIAM J. Sci. Comput. 1997.
    """
    n, size = covariance.shape[0], 2 * (covariance.shape[1] - 1)
    circle = np.concatenate((covariance, covariance[:, -2:0:-1]), axis=1)
    eigenvalues = np.maximum(np.fft.rfft(circle, axis=1).real, 0).astype(np.float32)
    total = eigenvalues[:, 0] + eigenvalues[:, -1] + 2 * eigenvalues[:, 1:-1].sum(axis=1)
    eigenvalues *= (size * covariance[:, 0] / total)[:, None]
    normal = rng.standard_normal((n, size // 2 + 1, 2), dtype=np.float32)
    spectrum = normal[..., 0] + 1j * normal[..., 1]
    spectrum *= np.sqrt(eigenvalues * np.float32(size / 2))
    spectrum[:, 0] = np.sqrt(eigenvalues[:, 0] * size) * normal[:, 0, 0]
    spectrum[:, -1] = np.sqrt(eigenvalues[:, -1] * size) * normal[:, -1, 0]
    return np.fft.irfft(spectrum, n=size, axis=1)[:, : size // 2].astype(np.float32)


def gaussian_process(rng: Generator, n: int, length: int) -> np.ndarray:
    """Gaussian processes with composed kernels, standardised.

    The stationary part is :func:`stationary_covariance`. The linear kernel enters exactly: as a sum it is a random
    line, and a product with (t - c)(t' - c) is the stationary sample times (t - c).
    """
    x = sample_stationary(rng, stationary_covariance(rng, n, length + 1))
    t = np.linspace(-1, 1, length, dtype=np.float32)
    origin = rng.uniform(-1.5, 1.5, (n, 1)).astype(np.float32)
    x = np.where(rng.random((n, 1)) < 0.15, x * (t - origin), x)
    slope = rng.standard_normal((n, 1), dtype=np.float32) * (rng.random((n, 1)) < 0.2)
    return standardise(x + slope * t)


def intermittent(rng: Generator, n: int, length: int) -> np.ndarray:
    """Demand that is mostly zero: events with a seasonal probability and Gamma sizes; not standardised."""
    rate = log_uniform(rng, 0.02, 0.5, (n, 1))
    season = seasonality(rng, periods(rng, n, length)[:, 0], length)
    probability = rate * np.exp(rng.uniform(0, 1.5, (n, 1)).astype(np.float32) * season)
    size = rng.standard_gamma(2.0, (n, length), dtype=np.float32)
    return np.where(rng.random((n, length), dtype=np.float32) < probability, size, 0).astype(np.float32)


def spikes(rng: Generator, n: int, length: int) -> np.ndarray:
    """Rare impulses of either sign and Pareto size, half of them with a tail, for series of unit deviation."""
    rate = log_uniform(rng, 1 / length, 10 / length, (n, 1))
    sizes = 1 + np.minimum(rng.pareto(2.0, (n, length)), 8)
    signs = np.where(rng.random((n, length)) < rng.choice([0.0, 0.5, 1.0], (n, 1)), -1, 1)
    impulses = np.where(rng.random((n, length)) < rate, 1.5 * signs * sizes, 0).astype(np.float32)
    decay = np.where(rng.random(n) < 0.5, 0, np.exp(-1 / log_uniform(rng, 1, 20, n)))
    return recursive_filter(impulses, decay, np.zeros(n))


def level_shifts(rng: Generator, n: int, length: int) -> np.ndarray:
    """Step functions with one to four steps of normal height, std 1.5, at uniform places."""
    t = np.arange(length)
    x = np.zeros((n, length), dtype=np.float32)
    for j, count in enumerate(np.broadcast_to(rng.integers(1, 5, (n, 1)), (4, n, 1))):
        height = 1.5 * rng.standard_normal((n, 1), dtype=np.float32) * (j < count)
        x += height * (t >= rng.integers(1, length, (n, 1)))
    return x


def changing_scale(rng: Generator, n: int, length: int) -> np.ndarray:
    """Positive scales that change in time, for heteroscedastic noise: log-normal, slow, or bound to the season."""
    lag = np.arange(length + 1, dtype=np.float32)
    slow = sample_stationary(rng, np.exp(-0.5 * (lag / log_uniform(rng, 20, length, (n, 1))) ** 2))
    season = seasonality(rng, periods(rng, n, length)[:, 0], length)
    depth = rng.uniform(0.1, 0.9, (n, 1)).astype(np.float32)
    return np.exp(depth * np.where(rng.random((n, 1)) < 0.5, slow, season))
