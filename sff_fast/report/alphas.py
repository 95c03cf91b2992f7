"""The error as a function of alpha in a comparison, where a strategy was run with several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sff_fast.report import curve, rows, theme
from sff_fast.report.panels import Panel

_PARTS = (("val_mse", "Validation MSE by alpha", "validation MSE"), ("test_mse", "Test MSE by alpha", "test MSE"))


def alpha_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """Validation and test MSE by alpha, with the strategies without alpha.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        Panels of both for each strategy that ran with at least two different numbers, none for others.
    """
    panels = []
    for strategy in dict.fromkeys(run["strategy"] for _, run in rows.tuned_runs(metrics)):
        for key, title, words in _PARTS:
            points = _points(metrics, strategy, key)
            if len(points) > 1:
                heading = title if strategy == "sff" else f"{theme.style(strategy).label}: {title}"
                panels += curve.curve_panels(heading, words, strategy, points, _lines(metrics, key))
    return panels


def _points(metrics: Mapping[str, Any], strategy: str, key: str) -> list[curve.Point]:
    """Every number that was an alpha, ascending; those of which a seed has no finite error are left out."""
    found: dict[float, list[float | None]] = {}
    for _, run in rows.tuned_runs(metrics):
        if run["strategy"] == strategy and isinstance(run.get("alpha"), (int, float)):
            found.setdefault(float(run["alpha"]), []).append(run.get(key))
    chosen = rows.preferred_alphas(metrics).get(strategy)
    means = {alpha: curve.Mean.of(found[alpha]) for alpha in sorted(found)}
    labels = {alpha: theme.format_alpha(alpha) for alpha in means}
    return [curve.Point(alpha, mean, labels[alpha], labels[alpha] == chosen) for alpha, mean in means.items() if mean is not None]


def _lines(metrics: Mapping[str, Any], key: str) -> dict[str, curve.Mean]:
    """Each strategy in :data:`curve.LINES` that was measured."""
    values = {curve.ZERO: [metrics["zero_shot"].get(key)]}
    for _, run in rows.tuned_runs(metrics):
        values.setdefault(run["strategy"], []).append(run.get(key))
    means = {name: curve.Mean.of(values[name]) for name in curve.LINES if name in values}
    return {name: mean for name, mean in means.items() if mean is not None}
