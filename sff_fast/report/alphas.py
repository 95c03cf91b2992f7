"""The error as a function of alpha, where a strategy was run with several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sff_fast.report import rows, theme
from sff_fast.report.panels import Panel, draw_legend
from sff_fast.training.statistics import mean_and_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Strategies that are lines across the picture: what smoothing is to beat.
LINES = ("zero-shot", "ff", "tfs")


def alpha_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """Validation and test MSE by alpha, mean over seeds with one standard deviation, with the strategies without alpha.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        Two panels for each strategy that ran with at least two different numbers, none for others.
    """
    panels = []
    strategies = dict.fromkeys(run["strategy"] for _, run in rows.tuned_runs(metrics))
    for strategy in strategies:
        for key, title in (("val_mse", "Validation MSE by alpha"), ("test_mse", "Test MSE by alpha")):
            curve = _curve(metrics, strategy, key)
            if len(curve) > 1:
                heading = title if strategy == "sff" else f"{theme.style(strategy).label}: {title}"
                chosen = rows.preferred_alphas(metrics).get(strategy)
                panels.append(_panel(strategy, curve, _lines(metrics, key), heading, key, chosen))
    return panels


def _curve(metrics: Mapping[str, Any], strategy: str, key: str) -> list[tuple[float, float, float | None]]:
    """alpha, mean and standard deviation over seeds, by ascending alpha."""
    found: dict[float, list[float]] = {}
    for _, run in rows.tuned_runs(metrics):
        alpha, value = run.get("alpha"), run.get(key)
        if run["strategy"] == strategy and isinstance(alpha, (int, float)) and value is not None and math.isfinite(value):
            found.setdefault(float(alpha), []).append(value)
    return [(alpha, *mean_and_std(values)) for alpha, values in sorted(found.items())]


def _lines(metrics: Mapping[str, Any], key: str) -> dict[str, float]:
    """The mean error of each strategy in :data:`LINES` that was measured."""
    found = {"zero-shot": [metrics["zero_shot"].get(key)]}
    for _, run in rows.tuned_runs(metrics):
        if run["strategy"] in LINES:
            found.setdefault(run["strategy"], []).append(run.get(key))
    finite = {name: [v for v in values if v is not None and math.isfinite(v)] for name, values in found.items()}
    return {name: mean_and_std(finite[name])[0] for name in LINES if finite.get(name)}


def _panel(
    strategy: str,
    curve: Sequence[tuple[float, float, float | None]],
    lines: Mapping[str, float],
    title: str,
    key: str,
    chosen: str | None,
) -> Panel:
    values = [mean for _, mean, _ in curve]
    words = {"val_mse": "validation MSE", "test_mse": "test MSE"}[key]
    near = [*values, *(v for name, v in lines.items() if name != "tfs")]
    span = max(near) - min(near)
    # Training from scratch may lie far above: then the line is left out of the picture and named in the text.
    shown = {name: v for name, v in lines.items() if name != "tfs" or abs(v - values[0]) <= 3 * max(span, 1e-12)}

    def draw(ax: Axes, palette: theme.Palette) -> None:
        look = theme.style(strategy)
        alphas = [alpha for alpha, _, _ in curve]
        for name, value in shown.items():
            other = theme.style(name)
            ax.axhline(value, color=palette[other.role], linestyle=other.linestyle, linewidth=1.5, label=other.label, zorder=2)
        if all(spread is not None for _, _, spread in curve):
            low = [mean - spread for _, mean, spread in curve]
            high = [mean + spread for _, mean, spread in curve]
            ax.fill_between(alphas, low, high, color=palette[look.role], alpha=0.16, linewidth=0, zorder=1)
        style = {"linestyle": look.linestyle, "marker": look.marker, "markersize": 5, "linewidth": 1.7}
        ax.plot(alphas, values, color=palette[look.role], label=look.label, zorder=4, **style)
        for alpha, mean, _ in curve:
            if theme.format_alpha(alpha) == chosen:
                ring = {"color": palette["ink"], "markerfacecolor": "none", "markeredgewidth": 1.2}
                ax.plot(alpha, mean, marker="o", markersize=11, linestyle="none", zorder=5, **ring)
        ax.set_xlabel("alpha, share of the pre-trained weights")
        ax.set_ylabel(words)
        ax.grid(axis="y", color=palette["grid"], linewidth=0.8, zorder=0)
        draw_legend(ax, palette)

    parts = "; ".join(
        f"{alpha:g} {rows.format_error(mean)}" + ("" if spread is None else f" plus or minus {rows.format_error(spread)}")
        for alpha, mean, spread in curve
    )
    across = "; ".join(f"{theme.style(name).label} {rows.format_error(value)}" for name, value in lines.items())
    return Panel(title, f"Line chart of the {words} by alpha: {parts}. Lines: {across}. Validation prefers {chosen}.", draw)
