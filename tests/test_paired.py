"""Paired intervals over seeds and windows: what they are made of, and how often they hold what they should."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sff_fast.errors import ArgumentError
from sff_fast.training import WindowErrors
from sff_fast.training.blocks import block_length, calibration, variance_of_mean
from sff_fast.training.paired import Sample, WindowSeries, intervals

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import verdict_coverage

SPAN = 240


def series(errors, span=SPAN, channels=1):
    windows = WindowErrors(span)
    for channel in range(channels):
        windows.add(torch.arange(len(errors)), {"mse": torch.from_numpy(errors)}, torch.full((len(errors),), channel))
    return WindowSeries.of(windows, "mse")


def sample(differences, span=SPAN):
    """Differences [S, T] as a sample: the partner's errors are 1."""
    first = [series(row + 1, span) for row in differences]
    second = [series(np.ones(len(row)), span) for row in differences]
    return Sample.of(range(len(differences)), differences.mean(axis=1), first, second)


def smooth(generator, shape, rows, width=48):
    return verdict_coverage.smooth_noise(generator, shape, rows, width)


# ---------------------------------------------------------------------- what an interval is made of
def test_without_windows_it_is_students_interval_for_pairs():
    values = [0.1, -0.3, 0.25, 0.4]
    (found,) = intervals([Sample.of(range(4), values)])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert (found.covers, found.degrees, found.together) == ("seeds", {"seeds": 3}, 1)


def test_several_intervals_are_as_wide_as_bonferroni_makes_them():
    values = [0.1, -0.3, 0.25, 0.4]
    found = intervals([Sample.of(range(4), values)] * 5)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.99)
    for one in found:
        assert (one.low, one.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_variance_over_windows_is_that_of_drawn_blocks():
    rows = 1600
    block = block_length(rows, SPAN)
    values = smooth(np.random.default_rng(3), (1,), rows)
    variance, _ = variance_of_mean(values[0] - values.mean(), SPAN)
    # Blocks drawn for real, so many that a mean of whole blocks has the variance of one of them by their number.
    starts = np.random.default_rng(4).integers(0, rows, size=(40_000, 4, 1))
    drawn = values[0][(starts + np.arange(block)) % rows].mean(axis=(1, 2))
    factor, _ = calibration(rows, SPAN, block)
    assert variance == pytest.approx(factor * 4 * drawn.var(), rel=0.03)  # 40,000 draws know a variance to 0.7 %


@pytest.mark.parametrize(("starts", "span"), [(2 * SPAN, SPAN), (7 * 60 + 11, 60), (40 * 30, 30), (200, 1)])
def test_the_factor_makes_the_variance_right_where_windows_are_correlated_by_the_rows_they_share(starts, span):
    generator = np.random.default_rng(31)
    found, degrees = zip(*(variance_of_mean(x - x.mean(), span) for x in smooth(generator, (4000,), starts, span)))
    # Of a moving average over a span: the autocovariance is 1 - lag / span.
    lags = np.arange(1, span)
    truth = (1 + 2 * ((1 - lags / starts) * (1 - lags / span)).sum()) / starts
    # 4000 values know the mean of a chi-square of two degrees to 1.6 %. The model joins the end to the beginning as the blocks
    # are joined, the values are not: with two spans that is 8 %, and the less the more spans there are.
    assert np.mean(found) == pytest.approx(truth, rel=0.05 + 0.2 * (span / starts) ** 2 + (0.1 if starts < 3 * span else 0))
    assert 2 * np.mean(found) ** 2 / np.var(found) == pytest.approx(degrees[0], rel=0.2)


def test_blocks_are_a_span_long_and_grow_with_the_root_of_their_number():
    assert [block_length(spans * 60, 60) for spans in (2, 4, 16, 64)] == [60, 60, 120, 240]
    assert variance_of_mean(np.zeros(119), 60) is None
    assert variance_of_mean(np.zeros(120), 60)[0] == 0


def test_degrees_of_freedom_grow_with_the_blocks():
    degrees = [calibration(spans * 60, 60, block_length(spans * 60, 60))[1] for spans in (2, 4, 10, 40, 160)]
    assert degrees == sorted(degrees)
    assert 1 <= degrees[0] < 3 < degrees[2] < 10 < degrees[3] < degrees[4] < 160


def test_squared_half_widths_of_seeds_and_windows_add_up():
    generator = np.random.default_rng(5)
    values = 0.3 * generator.standard_normal((5, 1)) + smooth(generator, (1,), 12 * SPAN)
    one = sample(values)
    together, alone, one_seed = (
        intervals([each])[0] for each in (one, Sample.of(range(5), one.means), Sample((0,), one.means[:1], one.over_time, SPAN))
    )
    half, of_seeds, of_windows = ((each.high - each.low) / 2 for each in (together, alone, one_seed))
    assert half == pytest.approx(np.hypot(of_seeds, of_windows))
    assert (together.covers, alone.covers, one_seed.covers) == ("seeds and windows", "seeds", "windows")
    assert together.degrees == {**alone.degrees, **one_seed.degrees}
    assert of_seeds == pytest.approx(stats.t.ppf(0.975, 4) * np.std(one.means, ddof=1) / np.sqrt(5))
    variance, degrees = variance_of_mean(one.over_time, SPAN)
    assert of_windows == pytest.approx(stats.t.ppf(0.975, degrees) * np.sqrt(variance))


def test_two_alike_seeds_do_not_widen_an_interval_that_windows_make():
    generator = np.random.default_rng(8)
    values = 1e-6 * generator.standard_normal((2, 1)) + smooth(generator, (1,), 40 * SPAN)
    both, one_seed = intervals([sample(values)])[0], intervals([sample(values[:1])])[0]
    assert both.high - both.low == pytest.approx(one_seed.high - one_seed.low, rel=1e-3)


def test_windows_overlap_as_far_as_context_and_horizon_whatever_the_stride():
    for stride, overlap in ((1, 240), (7, 35), (240, 1), (500, 1)):
        starts = np.arange(500) * stride
        assert WindowSeries(starts, np.ones(500), np.ones(500), SPAN).overlap == overlap
        assert overlap * stride >= SPAN


def test_channels_and_series_of_a_row_move_together():
    windows = WindowErrors(20)
    windows.add(torch.tensor([5, 6, 5, 5]), {"mse": torch.tensor([1.0, 2.0, 3.0, 8.0])}, series=torch.tensor([0, 0, 0, 1]))
    one = WindowSeries.of(windows, "mse")
    assert (one.starts.tolist(), one.counts.tolist(), one.errors.tolist()) == ([5, 6], [3, 1], [4, 2])


def test_channels_that_repeat_each_other_tell_no_more_than_one():
    generator = np.random.default_rng(6)
    errors = smooth(generator, (2,), 6 * SPAN)
    narrow, wide = (
        intervals([Sample.of([0], [0.0], [series(errors[0], channels=n)], [series(errors[1], channels=n)])])[0] for n in (1, 7)
    )
    assert narrow == wide


def test_a_test_part_without_two_spans_leaves_the_seeds_or_nothing():
    values = np.random.default_rng(7).standard_normal((4, 2 * SPAN - 1))
    (found,) = intervals([sample(values)])
    assert (found.covers, found.degrees) == ("seeds", {"seeds": 3})
    (found,) = intervals([sample(values[:1])])
    assert (found.low, found.high, found.covers) == (None, None, None)
    (found,) = intervals([sample(np.random.default_rng(7).standard_normal((1, 2 * SPAN)))])
    assert found.covers == "windows"


def test_rows_count_as_often_as_windows_begin_there():
    starts, counts = np.arange(2), np.array([1.0, 3.0])
    one, other = (WindowSeries(starts, counts, np.array(errors), 1) for errors in ([5.0, 2.0], [1.0, 2.0]))
    found = Sample.of([0], [1.0], [one], [other])  # over all four windows the difference is (4 + 3 * 0) / 4
    assert found.over_time.tolist() == [0.5 * (4 - 1), 1.5 * (0 - 1)]


def test_other_windows_cannot_be_paired():
    errors = np.ones(500)
    with pytest.raises(ArgumentError, match="runs can be compared only over the same windows"):
        Sample.of([0], [0.0], [series(errors)], [series(errors[1:])])


# ---------------------------------------------------------------------- how often it holds
def test_sff_against_sff_with_other_seeds_is_no_difference():
    same = {"of_time": 0.0}  # one method twice: what differs is the runs
    verdicts = []
    for sff, *_ in verdict_coverage.trials(100, 2, 5, 10 * SPAN, 0.0, **same):
        assert (sff["a"], sff["b"], sff["covers"]) == ("sff", "ff", "seeds and windows")
        verdicts.append(sff["ci_low"] <= 0 <= sff["ci_high"])
    assert sum(verdicts) >= 90


def test_a_planted_difference_is_found():
    found = []
    for sff, *_ in verdict_coverage.trials(50, 2, 5, 20 * SPAN, 0.1):
        found.append(sff["ci_high"] < 0)
        assert sff["ci_low"] < sff["difference"] < sff["ci_high"]
    assert sum(found) >= 45  # at a fixed seed; two standard deviations of the difference are 0.05


def test_the_interval_of_one_comparison_holds_as_often_as_it_says():
    """No correction for several, nothing that seeds add: what is left is the blocks."""
    generator = np.random.default_rng(10)
    for spans, width in ((4, 192), (10, 48), (10, 192), (10, 240), (40, 240)):
        rows = spans * SPAN
        held = []
        for x in smooth(generator, (400,), rows, width):
            (found,) = intervals([Sample((0,), np.array([x.mean()]), x - x.mean(), SPAN)])
            held.append(found.low <= 0 <= found.high)
        # Of 400 a binomial of 95 % has 380 and a deviation of 4.4: two and a half of them. Shorter correlation holds more often.
        assert sum(held) >= 369, (spans, width)
        assert sum(held) <= (391 if width == 240 else 400), (spans, width)


@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_intervals_of_several_comparisons_hold_together_as_often_as_they_say(seeds):
    # Seeds and windows as sources, five strategies: 11 intervals that must hold together.
    held = [
        all(low <= 0 <= high for low, high in map(verdict_coverage.bounds, entries))
        for entries in verdict_coverage.trials(60, 6, seeds, 10 * SPAN, 0.0)
    ]
    assert sum(held) >= 54  # 95 % of 60 are 57, and a deviation is 1.7; at a fixed seed


def test_windows_taken_as_independent_would_find_differences_that_are_not_there():
    generator = np.random.default_rng(9)
    wrong = right = 0
    for _ in range(40):
        values = smooth(generator, (1,), 10 * SPAN)
        (blocks,) = intervals([sample(values)])
        wrong += stats.ttest_1samp(values[0], 0).pvalue < 0.05
        right += blocks.low <= 0 <= blocks.high
    assert wrong >= 20
    assert right >= 36
