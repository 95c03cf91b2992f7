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
    assert (found.covers, found.degrees, found.together) == ("seeds", 3, 1)


def test_several_intervals_are_as_wide_as_bonferroni_makes_them():
    values = [0.1, -0.3, 0.25, 0.4]
    found = intervals([Sample.of(range(4), values)] * 5)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.99)
    for one in found:
        assert (one.low, one.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_variance_over_windows_is_that_of_drawn_blocks():
    rows, block = 1200, SPAN
    values = smooth(np.random.default_rng(3), (1,), rows)
    one = sample(values)
    (found,) = intervals([one])
    # Blocks drawn for real: 5 of them make the 1200 rows again.
    starts = np.random.default_rng(4).integers(0, rows, size=(40_000, rows // block, 1))
    drawn = values[0][(starts + np.arange(block)) % rows].mean(axis=(1, 2))
    degrees = rows // block - 1
    half = stats.t.ppf(0.975, degrees) * drawn.std() * np.sqrt((degrees + 1) / degrees)
    assert (found.covers, found.degrees) == ("windows", degrees)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.015)  # 40,000 draws know a deviation to 0.35 %
    assert found.difference == pytest.approx(values.mean())


def test_the_variance_over_seeds_and_windows_is_that_of_both_drawn_anew():
    generator = np.random.default_rng(5)
    seeds, rows = 12, 12 * SPAN
    values = 0.3 * generator.standard_normal((seeds, 1)) + smooth(generator, (1,), rows)
    (found,) = intervals([sample(values)])
    chosen = generator.integers(0, seeds, size=(20_000, seeds))
    starts = generator.integers(0, rows, size=(20_000, 12))
    wrapped = np.concatenate([values, values[:, :SPAN]], axis=1)
    sums = np.cumsum(np.concatenate([np.zeros((seeds, 1)), wrapped], axis=1), axis=1)
    blocks = (sums[:, SPAN:-1] - sums[:, : -SPAN - 1]) / SPAN  # the mean of every block, for each seed
    drawn = np.array([blocks[np.ix_(some, at)].mean() for some, at in zip(chosen, starts)])
    half = stats.t.ppf(0.975, found.degrees) * drawn.std() * np.sqrt(12 / 11)  # n / (n - 1) is the same for both sources
    assert found.covers == "seeds and windows"
    assert found.degrees > 11  # of both sources together
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_blocks_are_as_long_as_context_and_horizon_whatever_the_stride():
    for stride, block in ((1, 240), (7, 35), (240, 1), (500, 1)):
        starts = np.arange(500) * stride
        assert WindowSeries(starts, np.ones(500), np.ones(500), SPAN).block == block
        assert block * stride >= SPAN


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


def test_a_test_part_without_two_blocks_leaves_the_seeds_or_nothing():
    values = np.random.default_rng(7).standard_normal((4, 2 * SPAN - 1))
    (found,) = intervals([sample(values)])
    assert (found.covers, found.degrees) == ("seeds", 3)
    (found,) = intervals([sample(values[:1])])
    assert (found.low, found.high, found.covers) == (None, None, None)
    (found,) = intervals([sample(np.random.default_rng(7).standard_normal((1, 2 * SPAN)))])
    assert (found.covers, found.degrees) == ("windows", 1)


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_give_their_own_degrees_of_freedom_alone(seeds):
    generator = np.random.default_rng(8)
    values = 1e-6 * generator.standard_normal((seeds, 1)) + smooth(generator, (1,), 40 * SPAN)
    (found,) = intervals([sample(values)])
    assert found.degrees == seeds - 1


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
    for sff, *_ in verdict_coverage.trials(50, 2, 5, 20 * SPAN, 0.08):
        found.append(sff["ci_high"] < 0)
        assert sff["ci_low"] < sff["difference"] < sff["ci_high"]
    assert sum(found) >= 45  # at a fixed seed


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Seeds and windows as sources, five strategies: 11 intervals that must hold together.
    held = [
        all(low <= 0 <= high for low, high in map(verdict_coverage.bounds, entries))
        for entries in verdict_coverage.trials(60, 6, 5, 10 * SPAN, 0.0)
    ]
    assert sum(held) >= 54  # of 95 %, at a fixed seed


def test_windows_taken_as_independent_would_find_differences_that_are_not_there():
    generator = np.random.default_rng(9)
    wrong = right = 0
    for _ in range(40):
        values = smooth(generator, (1,), 10 * SPAN)
        (naive,) = intervals([sample(values, span=1)])
        (blocks,) = intervals([sample(values)])
        wrong += not naive.low <= 0 <= naive.high
        right += blocks.low <= 0 <= blocks.high
    assert wrong >= 20
    assert right >= 34
