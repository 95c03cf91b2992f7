"""All input words, a hundred million elements, a hundred million draws: what `make test-exhaustive` runs.

`make test` runs the same checks on a stratified sample of 2^24 words and on less data. ``tools/exhaustive.py`` runs the whole
and writes ``docs/exhaustive.md``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_cases import DISTRIBUTIONS, DTYPES, ISAS, bits, run, tasks_for
from scipy import special, stats

from sff_fast import table
from sff_fast.backends import cpu, reference
from sff_fast.distributions import Normal, TruncNormal, Uniform

ALL_WORDS = 1 << 32
CHUNK = 1 << 21
# Random words w0 with (w0 >> 1) | 1 = 1 have the smallest u, 2^-31; 2e-5 is the contract's error.
LARGEST_NORMAL = math.sqrt(62 * math.log(2)) + 2e-5
ODD = np.uint32(0x9E3779B1)


def _sized(sample: int, full: int) -> list:
    return [pytest.param(sample, id="sample"), pytest.param(full, id="all", marks=pytest.mark.exhaustive)]


def _strata(first: int, last: int, step: int) -> np.ndarray:
    """One word of each stratum of ``step`` words of [first, last), both end words of the range among them."""
    words = np.arange(first, last, step, dtype=np.uint64).astype(np.uint32)
    if step > 1:
        words += np.random.default_rng(first).integers(0, step, len(words), dtype=np.uint32)
        words[0], words[-1] = first, last - 1
    return words


def _present() -> list[str]:
    return [isa for isa in ISAS if _runs(isa)]


def _runs(isa: str) -> bool:
    try:
        cpu._cpu.isa(isa)
    except ValueError:
        return False
    return True


def _transforms(distribution: object, words: np.ndarray) -> np.ndarray:
    """The draws of the words, which every instruction set must give with the same bits."""
    task = table.pack(tasks_for(torch.zeros(4), distribution))
    first = None
    for isa in _present():
        got = cpu._cpu.transform(task, words, isa)
        if first is None:
            first = got
        assert np.array_equal(first.view(np.uint32), got.view(np.uint32)), f"{isa} differs from baseline"
    return first


# ---------------------------------------------------------------------- the transforms
@pytest.mark.parametrize("count", _sized(1 << 24, ALL_WORDS))
def test_every_word_of_both_halves_gives_finite_normal_draws_in_range(count, record_property):
    """Radius and angle at once: the second word of a pair is an odd multiple of the first, so that both run through all values.

    Finite results of both signs of the angle mean that radius, sine and cosine were finite: infinity times zero is NaN.
    """
    step = ALL_WORDS // count
    low, high, bound = math.inf, -math.inf, LARGEST_NORMAL
    for first in range(0, ALL_WORDS, CHUNK * step):
        w0 = _strata(first, first + CHUNK * step, step)
        draws = _transforms(Normal(0, 1), np.stack([w0, w0 * ODD + np.uint32(1)], axis=1).reshape(-1))
        low, high = min(low, float(draws.min())), max(high, float(draws.max()))  # NaN fails the comparison below
        assert draws.min() >= -bound
        assert draws.max() <= bound
    assert high > 6
    record_property("result", f"{count:,} words of each half on {', '.join(_present())}: all finite, in [{low:.4f}, {high:.4f}]")


@pytest.mark.parametrize("label", ["uniform", "trunc_normal", "trunc_normal_wide", "trunc_normal_upper", "trunc_normal_lower"])
@pytest.mark.parametrize(
    "count", [pytest.param(1 << 21, id="sample"), pytest.param(1 << 24, id="all", marks=pytest.mark.exhaustive)]
)
def test_every_word_gives_draws_between_the_bounds(label, count, record_property):
    """The low eight bits of a word are not used: 2^24 words are all there are."""
    distribution = DISTRIBUTIONS[label]
    bounds = [distribution.low, distribution.high] if label == "uniform" else [distribution.a, distribution.b]
    low, high = (float(np.float32(v)) for v in bounds)
    smallest, largest, last = math.inf, -math.inf, -math.inf
    for first in range(0, ALL_WORDS, ALL_WORDS // 8):
        words = _strata(first, first + ALL_WORDS // 8, ALL_WORDS // count)
        draws = _transforms(distribution, words)
        assert low <= draws.min() <= draws.max() <= high
        smallest, largest = min(smallest, float(draws.min())), max(largest, float(draws.max()))
        # Larger words give larger draws, up to the fit's error.
        assert np.diff(draws, prepend=max(last, low)).min() >= -1e-4
        last = float(draws[-1])
    record_property("result", f"{count:,} words on {', '.join(_present())}: all in [{smallest:.6g}, {largest:.6g}]")


def test_the_words_of_the_sample_and_of_the_whole_are_what_they_say():
    assert np.array_equal(_strata(8, 16, 1), np.arange(8, 16))
    sample = _strata(0, 1 << 12, 1 << 4)
    assert np.array_equal(sample >> 4, np.arange(1 << 8))
    assert (sample[0], sample[-1]) == (0, (1 << 12) - 1)
    # an odd multiplier permutes the 32-bit words
    assert (int(ODD) * pow(int(ODD), -1, 1 << 32)) % (1 << 32) == 1


# ---------------------------------------------------------------------- the kernels
PAIRS = [(d, "nearest") for d in DTYPES] + [(torch.bfloat16, "stochastic"), (torch.float16, "stochastic")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("dtype", "rounding"), PAIRS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("label", ["constant", "uniform", "normal", "trunc_normal"])
def test_reference_and_every_instruction_set_agree_on_a_hundred_million_elements(label, dtype, rounding, record_property):
    elements, part = 100_000_000, 2_500_007  # odd parts: every alignment of memory and draw
    generator = torch.Generator().manual_seed(11)
    done = 0
    while done < elements:
        n = min(part, elements - done)
        old = (torch.randn(n, generator=generator) * 0.05).to(dtype)
        expected = old.clone()
        reference.run(tasks_for(expected, DISTRIBUTIONS[label], rounding=rounding, shift=done))
        for isa in _present():
            new = old.clone()
            run(isa, tasks_for(new, DISTRIBUTIONS[label], rounding=rounding, shift=done), threads=2)
            assert torch.equal(bits(new), bits(expected)), f"{isa} differs within elements {done} to {done + n}"
        done += n
    record_property("result", f"{elements:,} elements: reference = {' = '.join(_present())}, bit for bit")


# ---------------------------------------------------------------------- the distributions
def _normal_cdf(mean: float, std: float):
    return lambda x: special.ndtr((x - mean) / std)


def _truncated_cdf(mean: float, std: float, a: float, b: float):
    low, high = special.ndtr([(a - mean) / std, (b - mean) / std])
    return lambda x: (special.ndtr((x - mean) / std) - low) / (high - low)


LAWS = {
    "uniform": (Uniform(-1, 3), lambda x: (x + 1) / 4, stats.uniform(-1, 4).ppf),
    "normal": (Normal(0.5, 2), _normal_cdf(0.5, 2), stats.norm(0.5, 2).ppf),
    "trunc_normal": (TruncNormal(0, 1, -2, 2), _truncated_cdf(0, 1, -2, 2), stats.truncnorm(-2, 2).ppf),
    "trunc_normal, one side": (TruncNormal(1, 2, 2, 9), _truncated_cdf(1, 2, 2, 9), stats.truncnorm(0.5, 4, 1, 2).ppf),
}


def _p_values(draws: torch.Tensor, cdf, quantile) -> tuple[float, float, float]:
    """Kolmogorov-Smirnov distance and p-value, and the p-value of chi-square over 1,024 bins of equal probability."""
    x = np.sort(draws.numpy())
    n, gap = len(x), 0.0
    for first in range(0, n, 1 << 22):  # the largest distance of the empirical from the exact distribution function
        exact = cdf(x[first : first + (1 << 22)].astype(np.float64))
        rank = np.arange(first, first + len(exact)) / n
        gap = max(gap, float((exact - rank).max()), float((rank + 1 / n - exact).max()))
    inner = quantile(np.arange(1, 1024) / 1024).astype(np.float32)
    counts = np.diff(np.searchsorted(x, inner), prepend=0, append=n)
    return gap, float(stats.kstwobign.sf(gap * math.sqrt(n))), float(stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("label", LAWS)
@pytest.mark.parametrize("n", _sized(1_000_000, 100_000_000))
def test_draws_pass_kolmogorov_smirnov_and_chi_square(label, n, record_property):
    distribution, cdf, quantile = LAWS[label]
    x = torch.zeros(n)
    cpu.run(tasks_for(x, distribution, shrink=0.0, perturb=1.0, seed=2026), 2)
    gap, ks, chi = _p_values(x, cdf, quantile)
    record_property("result", f"{n:,} draws: KS distance {gap:.2e}, p = {ks:.3f}; chi-square over 1,024 bins, p = {chi:.3f}")
    # A fixed seed: one of the eight p-values of a run is below 1e-4 by chance with a probability of 1e-3.
    assert min(ks, chi) > 1e-4


def test_the_distribution_tests_see_a_mean_that_is_off_by_half_a_hundredth_of_std():
    distribution, cdf, quantile = LAWS["normal"]
    x = torch.zeros(1_000_000)
    moved = Normal(distribution.mean + 0.005 * distribution.std, distribution.std)
    cpu.run(tasks_for(x, moved, shrink=0.0, perturb=1.0, seed=2026), 2)
    assert _p_values(x, cdf, quantile)[1] < 1e-2
