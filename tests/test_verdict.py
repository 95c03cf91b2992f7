"""The verdict: chosen by validation, honest about the test part and about noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sff_fast.training import WindowErrors, choose, verdict
from sff_fast.training.labels import label_runs
from sff_fast.training.result import build_metrics
from sff_fast.training.statistics import mean_and_std, paired_interval, student_quantile

ZERO = {"val_mse": 0.5, "test_mse": 0.4, "test_mae": 0.3}


def entry(strategy, val, test, seed=0, alpha=None):
    return {"strategy": strategy, "alpha": alpha, "seed": seed, "val_mse": val, "test_mse": test, "test_mae": test}


def flat_windows(errors, span=20):
    """Windows that begin at each row."""
    windows = WindowErrors(span)
    windows.add(torch.arange(len(errors)), {"mse": torch.from_numpy(errors)})
    return windows


def test_the_lowest_validation_error_is_shipped_although_another_tests_better():
    runs = [entry("ff", 0.45, 0.30), entry("sff", 0.44, 0.39, alpha=0.7)]
    assert choose(ZERO, runs).best is runs[1]
    assert verdict(ZERO, runs) == (
        "Ship sff (alpha 0.7): it has the lowest validation MSE (0.4400, zero-shot 0.5000). On the test part "
        "sff (alpha 0.7) has an MSE of 0.3900 against zero-shot's 0.4000; sff (alpha 0.7) is 30.0 % worse than ff; "
        "sff (alpha 0.7) is 2.5 % better than zero-shot; ff is 25.0 % better than zero-shot. "
        "One seed cannot tell that from seed noise."
    )


def test_the_zero_shot_model_is_shipped_when_zero_shot_validates_better():
    runs = [entry("ff", 0.6, 0.2), entry("lp", 0.55, 0.1)]
    assert not choose(ZERO, runs).ship
    text = verdict(ZERO, runs)
    assert text.startswith(
        "Ship the zero-shot model: it has the lowest validation MSE (0.5000; the best tuned one is lp with 0.5500)"
    )
    assert "an MSE of 0.1000 against zero-shot's 0.4000; lp is 50.0 % better than ff; lp is 75.0 % better than zero-shot" in text


def test_seeds_and_windows_make_a_sentence_with_intervals():
    seeds = range(5)
    runs = [entry("ff", 0.55, 0.44 + 0.0001 * (seed % 3), seed) for seed in seeds]
    runs += [entry("sff", 0.54, 0.42 + 0.0002 * (seed % 2), seed, alpha=0.9) for seed in seeds]
    generator = np.random.default_rng(0)
    shape = 1 + 0.1 * generator.standard_normal(400)
    windows = [flat_windows(run["test_mse"] * shape) for run in runs]
    metrics = build_metrics({}, ZERO, runs, windows, flat_windows(0.4 * shape))
    assert metrics["verdict"] == (
        "Ship the zero-shot model: it has the lowest validation MSE (0.5000; the best tuned one is sff (alpha 0.9) "
        "with mean 0.5400). On the test part sff (alpha 0.9) has a mean MSE of 0.4201 against zero-shot's 0.4000; "
        "sff (alpha 0.9) lowers the test MSE by 4.5 % [4.5, 4.6] over ff; both are worse than zero-shot, by 5.0 % [4.9, 5.1] and "
        "10.0 % [9.9, 10.2]. The 95 % intervals are over 5 seeds and 8 blocks of windows, corrected for 3 comparisons."
    )
    one = metrics["comparisons"][0]
    assert (one["a"], one["b"], one["covers"], one["better"]) == ("sff", "ff", "seeds and windows", 5)
    assert one["effect_size"] < -50  # in standard deviations over seeds


def test_one_seed_with_windows_speaks_of_the_windows_alone():
    shape = 1 + 0.8 * np.random.default_rng(1).standard_normal(400)
    runs = [entry("ff", 0.45, 0.42)]
    metrics = build_metrics({}, ZERO, runs, [flat_windows(0.42 * shape)], flat_windows(0.4 * shape))
    (one,) = metrics["comparisons"]
    assert (one["ci_low"], one["ci_high"], one["covers"], one["effect_size"]) == (None, None, "windows", None)
    assert 0 < one["windows_ci_low"] < one["difference"] < one["windows_ci_high"]
    assert metrics["verdict"].endswith(
        "ff raises the test MSE by 5.0 % [4.6, 5.4] over zero-shot. The 95 % intervals are over windows alone: "
        "one seed cannot tell that from seed noise."
    )


def test_three_seeds_are_said_to_be_few():
    text = verdict(ZERO, [entry("ff", 0.4, 0.3 + seed / 100, seed) for seed in range(3)])
    assert text.endswith("The 95 % intervals are over 3 seeds on these windows alone; so few seeds show large differences only.")


def told(a, b, percent, low, high, **more):
    """A comparison as ``metrics.json`` has it; b's error is 1, so a difference is a hundredth of its percentage."""
    bounds = {"ci_low": low / 100, "ci_high": high / 100, "windows_ci_low": None, "windows_ci_high": None}
    shares = {"percent": percent, "percent_low": low, "percent_high": high}
    facts = {"n": 5, "covers": "seeds and windows", "corrected_for": 3, "blocks": 8}
    return {"a": a, "b": b, "difference": percent / 100, **bounds, **shares, **facts, **more}


SIDES = (("sff", "ff"), ("sff", "zero-shot"), ("ff", "zero-shot"))


@pytest.mark.parametrize(
    ("intervals", "words"),
    [
        (  # the example of all: smoothing helps, and nothing is worth it
            ((-1.2, -2.0, -0.4), (3.0, 2.0, 4.0), (4.2, 3.0, 5.4)),
            "sff (alpha 0.9) lowers the test MSE by 1.2 % [0.4, 2.0] over ff; "
            "both are worse than zero-shot, by 3.0 % [2.0, 4.0] and 4.2 % [3.0, 5.4].",
        ),
        (
            ((1.2, 0.4, 2.0), (-3.0, -4.0, -2.0), (-4.2, -5.4, -3.0)),
            "sff (alpha 0.9) raises the test MSE by 1.2 % [0.4, 2.0] over ff; "
            "both are better than zero-shot, by 3.0 % [2.0, 4.0] and 4.2 % [3.0, 5.4].",
        ),
        (
            ((-0.3, -1.1, 0.5), (-3.0, -4.0, -2.0), (-2.7, -5.4, 0.0)),
            "sff (alpha 0.9) cannot be told from ff: -0.3 % [-1.1, 0.5]; "
            "sff (alpha 0.9) lowers the test MSE by 3.0 % [2.0, 4.0] over zero-shot; "
            "ff cannot be told from zero-shot: -2.7 % [-5.4, 0.0].",
        ),
        (
            ((-5.0, -6.0, -4.0), (-2.0, -3.0, -1.0), (3.0, 2.0, 4.0)),
            "sff (alpha 0.9) lowers the test MSE by 5.0 % [4.0, 6.0] over ff; "
            "sff (alpha 0.9) lowers the test MSE by 2.0 % [1.0, 3.0] over zero-shot; "
            "ff raises the test MSE by 3.0 % [2.0, 4.0] over zero-shot.",
        ),
        (
            ((0.0, 0.0, 0.0), (0.0, -1.0, 1.0), (0.0, -1.0, 1.0)),
            "sff (alpha 0.9) and ff have the same test MSE; sff (alpha 0.9) and zero-shot have the same test MSE; "
            "ff and zero-shot have the same test MSE.",
        ),
    ],
)
@pytest.mark.parametrize("zero_shot_wins", [True, False])
def test_every_outcome_has_its_sentence(intervals, words, zero_shot_wins):
    runs = [entry("ff", 0.45, 0.4, seed) for seed in range(5)] + [entry("sff", 0.44, 0.3, seed, alpha=0.9) for seed in range(5)]
    zero_shot = {**ZERO, "val_mse": 0.4 if zero_shot_wins else 0.5}
    text = verdict(zero_shot, runs, [told(*side, *interval) for side, interval in zip(SIDES, intervals)])
    first = (
        "Ship the zero-shot model: it has the lowest validation MSE (0.4000; the best tuned one is sff (alpha 0.9) "
        "with mean 0.4400)."
        if zero_shot_wins
        else "Ship sff (alpha 0.9), seed 0: it has the lowest mean validation MSE (0.4400, zero-shot 0.5000)."
    )
    assert text == (
        f"{first} On the test part sff (alpha 0.9) has a mean MSE of 0.3000 against zero-shot's 0.4000; {words} "
        "The 95 % intervals are over 5 seeds and 8 blocks of windows, corrected for 3 comparisons."
    )


def test_training_from_scratch_may_win_and_is_told_beside_full_fine_tuning():
    runs = [entry(name, val, 0.3, seed) for name, val in (("tfs", 0.41), ("ff", 0.42)) for seed in range(5)]
    runs += [entry("sff", 0.43, 0.3, seed, alpha=0.9) for seed in range(5)]
    table = [told("tfs", "ff", -2.0, -3.0, -1.0), told("sff", "ff", 9.0, 8.0, 10.0)]
    table += [told("tfs", "zero-shot", -6.0, -7.0, -5.0), told("ff", "zero-shot", -4.0, -5.0, -3.0)]
    assert verdict(ZERO, runs, table) == (
        "Ship tfs, seed 0: it has the lowest mean validation MSE (0.4100, zero-shot 0.5000). On the test part "
        "tfs has a mean MSE of 0.3000 against zero-shot's 0.4000; tfs lowers the test MSE by 2.0 % [1.0, 3.0] over ff; "
        "both are better than zero-shot, by 6.0 % [5.0, 7.0] and 4.0 % [3.0, 5.0]. "
        "The 95 % intervals are over 5 seeds and 8 blocks of windows, corrected for 3 comparisons."
    )


def test_where_full_fine_tuning_wins_smoothing_is_told_beside_it():
    runs = [entry("ff", 0.42, 0.3, seed) for seed in range(5)] + [entry("sff", 0.43, 0.3, seed, alpha=0.9) for seed in range(5)]
    table = [told(*side, *interval) for side, interval in zip(SIDES, ((9.0, 8.0, 10.0), (-1.0, -3.0, 1.0), (-9.0, -10.0, -8.0)))]
    text = verdict(ZERO, runs, table)
    assert text.startswith(
        "Ship ff, seed 0: it has the lowest mean validation MSE (0.4200, zero-shot 0.5000). On the test part ff"
    )
    assert (
        "; sff (alpha 0.9) raises the test MSE by 9.0 % [8.0, 10.0] over ff; sff (alpha 0.9) cannot be told from zero-shot"
        in text
    )
    assert "; ff lowers the test MSE by 9.0 % [8.0, 10.0] over zero-shot." in text


def test_a_tie_goes_to_zero_shot():
    assert not choose(ZERO, [entry("ff", 0.5, 0.1)]).ship


def test_it_is_said_when_the_chosen_model_tests_worse():
    assert "ff is 10.0 % worse than zero-shot" in verdict(ZERO, [entry("ff", 0.4, 0.44)])


def test_the_mean_over_seeds_decides_not_the_luckiest_run():
    lucky = [entry("ff", 0.30, 0.4, seed=0), entry("ff", 0.60, 0.4, seed=1)]
    steady = [entry("sff", 0.42, 0.39, seed=0, alpha=0.5), entry("sff", 0.41, 0.38, seed=1, alpha=0.5)]
    choice = choose(ZERO, lucky + steady)
    assert choice.best is steady[1]
    assert choice.val_mse == pytest.approx(0.415)


def test_alphas_are_candidates_of_their_own():
    runs = [entry("sff", 0.45, 0.4, alpha=0.3), entry("sff", 0.42, 0.4, alpha=0.9)]
    assert choose(ZERO, runs).best is runs[1]
    assert label_runs(runs) == ["sff-alpha0.3", "sff-alpha0.9"]
    assert label_runs([*runs[:1], entry("ff", 0.4, 0.4)]) == ["sff", "ff"]


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ((0.30, 0.31, 0.32), "ff lowers the test MSE by 22.5 % [16.3, 28.7] over zero-shot"),
        ((0.30, 0.45, 0.40), "ff cannot be told from zero-shot: -4.2 % [-51.6, 43.3]"),
        ((0.50, 0.51, 0.52), "ff raises the test MSE by 27.5 % [21.3, 33.7] over zero-shot"),
    ],
)
def test_seed_noise_is_stated_with_its_interval(tests, words):
    text = verdict(ZERO, [entry("ff", 0.4 + seed / 1000, test, seed) for seed, test in enumerate(tests)])
    assert words in text
    assert text.startswith("Ship ff, seed 0: it has the lowest mean validation MSE (0.4010")


def test_a_strategy_with_a_diverged_run_is_not_chosen():
    runs = [entry("ff", 0.1, 0.1, seed=0), entry("ff", None, None, seed=1), entry("lp", 0.45, 0.3)]
    assert choose(ZERO, runs).best is runs[2]
    assert verdict(ZERO, runs[:2]) == "Ship the zero-shot model: no tuned one reached a finite validation MSE."
    lost = {**ZERO, "val_mse": None}
    assert verdict(lost, runs[:2]) == "Ship no model: none reached a finite validation MSE, zero-shot neither."


def test_a_chosen_model_whose_test_error_is_not_finite_is_said_to_have_none():
    assert "no finite MSE to compare" in verdict(ZERO, [entry("ff", 0.4, None)])


def test_with_zero_shot_alone_there_is_nothing_to_choose():
    assert verdict(ZERO, []) == "Only the pre-trained model was evaluated: validation MSE 0.5000, test MSE 0.4000."


def test_a_zero_shot_model_that_is_not_finite_loses():
    text = verdict({"val_mse": None, "test_mse": None, "test_mae": None}, [entry("ff", 0.4, 0.4)])
    assert text.startswith("Ship ff: it has the lowest validation MSE (0.4000, zero-shot not finite).")


@pytest.mark.parametrize("degrees", [1, 1.5, 2, 2.06, 3, 4.99, 9, 36.25, 100, 1e4])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_student_quantiles_equal_scipys(degrees, level):
    # Both solve the same equation in double precision; tan near pi/2 costs a few digits at one degree of freedom.
    assert student_quantile(level, degrees) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees), rel=1e-9)


def test_the_paired_interval_equals_scipys():
    values = [0.1, -0.3, 0.25, 0.4]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired_interval(values) == pytest.approx((0.1125, interval.low, interval.high), rel=1e-9)
    assert paired_interval([0.5]) == (0.5, None, None)
    mean, std = mean_and_std([1.0, 2.0, 4.0])
    assert (mean, std) == (7 / 3, pytest.approx(math.sqrt(7 / 3)))


def test_summary_and_comparisons_pair_the_runs_of_a_seed():
    runs = [
        entry("ff", 0.4, 0.30, seed=0),
        entry("ff", 0.4, 0.40, seed=1),
        entry("sff", 0.4, 0.28, seed=0, alpha=0.7),
        entry("sff", 0.4, 0.36, seed=1, alpha=0.7),
        entry("sff", 0.4, 0.10, seed=2, alpha=0.7),
    ]
    metrics = build_metrics({"family": "x"}, ZERO, runs)
    assert metrics["summary"]["ff"]["test_mse_mean"] == pytest.approx(0.35)
    assert metrics["summary"]["ff"]["test_mse_std"] == pytest.approx(0.1 / math.sqrt(2))
    assert [metrics["summary"][label]["n"] for label in ("zero-shot", "ff", "sff")] == [1, 2, 3]
    pairs = {(one["a"], one["b"]): one for one in metrics["comparisons"]}
    assert list(pairs) == [("sff", "ff"), ("ff", "zero-shot"), ("sff", "zero-shot")]
    one = pairs["sff", "ff"]
    assert one["n"] == 2  # seed 2 has no partner
    assert one["difference"] == pytest.approx(-0.03)
    assert one["percent"] == pytest.approx(-0.03 / 0.35 * 100)
    half = stats.t.ppf(1 - 0.05 / 3 / 2, 1) * 0.01414213562 / math.sqrt(2)  # three intervals hold together
    assert (one["ci_low"], one["ci_high"]) == (pytest.approx(-0.03 - half), pytest.approx(-0.03 + half))
    assert pairs["sff", "zero-shot"]["difference"] == pytest.approx((0.28 + 0.36 + 0.10) / 3 - 0.4)


def test_runs_that_diverged_are_left_out_of_the_summary():
    metrics = build_metrics({}, ZERO, [entry("ff", 0.4, 0.3), entry("ff", None, None, seed=1), entry("lp", None, None)])
    assert metrics["summary"]["ff"]["n"] == 1
    assert metrics["summary"]["ff"]["test_mse_mean"] == 0.3
    assert metrics["summary"]["lp"]["test_mse_mean"] is None
    assert [(one["a"], one["b"]) for one in metrics["comparisons"]] == [("ff", "zero-shot")]
