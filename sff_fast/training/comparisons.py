"""``comparisons`` of ``metrics.json``: which strategy is better than which, and how far that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .labels import ZERO_SHOT, label_runs
from .paired import Sample, WindowSeries, intervals
from .statistics import mean_and_std
from .windows import WindowErrors

LEVEL = 0.95
BASELINE = "ff"


def build_comparisons(
    zero_shot: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    windows: Sequence[WindowErrors | None] | None = None,
    zero_shot_windows: WindowErrors | None = None,
    metric: str = "mse",
) -> list[dict[str, Any]]:
    """Every strategy against full fine-tuning (where that did not run: against the first one), and against zero-shot.

    Runs are paired by their seed; the zero-shot model has none, and is the partner of all of them. Runs without a finite
    error are left out.

    Args:
        zero_shot: The ``zero_shot`` entry of ``metrics.json``.
        runs: Entries of ``runs``.
        windows: The test error of every window, for each run; None where it is not known.
        zero_shot_windows: The zero-shot model's.
        metric: What is compared, ``test_<metric>`` of the entries and ``<metric>`` of the windows.

    Returns:
        The entries: ``difference`` is the mean of a - b, so below zero where a is better; ``percent`` is that in percent of
        b's mean error. ``ci_low`` and ``ci_high`` hold for new seeds, and for new windows too where ``covers`` says so;
        ``windows_ci_low`` and ``windows_ci_high`` stand in their place with one seed, and hold for that seed alone. All
        intervals hold together with a probability of 95 % (Bonferroni, for ``corrected_for`` comparisons).
        ``effect_size`` is the mean over seeds in units of their standard deviation (Hedges' g of paired differences),
        ``better`` the number of seeds in which a had the lower error.
    """
    groups: dict[str, dict[int, tuple[float, WindowSeries | None]]] = {}
    over_time = [None] * len(runs) if windows is None else windows
    for label, run, one in zip(label_runs(runs), runs, over_time, strict=True):
        value = run[f"test_{metric}"]
        if value is not None:
            series = None if one is None else WindowSeries.of(one, metric)
            groups.setdefault(label, {})[run["seed"]] = (value, series)
    reference = zero_shot[f"test_{metric}"]
    alone = None if zero_shot_windows is None else WindowSeries.of(zero_shot_windows, metric)
    base = BASELINE if BASELINE in groups else next(iter(groups), None)
    pairs = [(label, base) for label in groups if label != base]
    pairs += [(label, ZERO_SHOT) for label in groups if reference is not None]
    table, samples, means = [], [], []
    for a, b in pairs:
        members = dict.fromkeys(groups[a], (reference, alone)) if b == ZERO_SHOT else groups[b]
        seeds = [seed for seed in groups[a] if seed in members]
        if not seeds:
            continue
        first, second = [groups[a][seed] for seed in seeds], [members[seed] for seed in seeds]
        series = [[one for _, one in side if one is not None] for side in (first, second)]
        known = all(len(side) == len(seeds) for side in series)
        table.append((a, b))
        means.append(math.fsum(value for value, _ in second) / len(seeds))
        differences = [x - y for (x, _), (y, _) in zip(first, second)]
        samples.append(Sample.of(seeds, differences, *(series if known else (None, None))))
    found = intervals(samples, LEVEL)
    return [_entry(f"test_{metric}", *row) for row in zip(table, samples, means, found)]


def _entry(metric: str, pair: tuple[str, str], sample: Sample, mean: float, interval: Any) -> dict[str, Any]:
    n = len(sample.seeds)
    of_windows = n == 1
    low, high = (None, None) if of_windows else (interval.low, interval.high)
    bounds = (interval.difference, interval.low, interval.high)
    percent = [None if bound is None or not mean else 100 * bound / mean for bound in bounds]
    return {
        "a": pair[0],
        "b": pair[1],
        "metric": metric,
        "difference": interval.difference,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "percent": percent[0],
        "percent_low": percent[1],
        "percent_high": percent[2],
        "windows_ci_low": interval.low if of_windows else None,
        "windows_ci_high": interval.high if of_windows else None,
        "covers": interval.covers,
        "level": LEVEL,
        "corrected_for": interval.together,
        "degrees": interval.degrees,
        "blocks": math.floor(sample.blocks),
        "effect_size": _effect_size(sample),
        "better": int((sample.means < 0).sum()),
    }


def _effect_size(sample: Sample) -> float | None:
    """Hedges' g of paired differences; None with less than three seeds, or where all seeds differ by the same.

    Source: Hedges, "Distribution theory for Glass's estimator of effect size", 1981 (the correction for few values).
    """
    mean, std = mean_and_std(list(sample.means))
    if not std or len(sample.means) < 3:
        return None
    return float(mean / std * (1 - 3 / (4 * (len(sample.means) - 1) - 1)))
