"""The paired differences between strategies, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sff_fast.report import theme
from sff_fast.report.panels import Panel, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Rows in one drawing; more would not be read.
_MAX_ROWS = 16


def difference_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """One row a comparison of ``metrics["comparisons"]``: the mean difference and its 95 % interval.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        A panel for each metric that was compared; none without comparisons.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in metrics.get("comparisons", []):
        found.setdefault(entry["metric"], []).append(entry)
    return [_panel(metric, entries[:_MAX_ROWS]) for metric, entries in found.items()]


def _interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Over seeds; with a single one over windows, where that is known."""
    for low, high in (("ci_low", "ci_high"), ("windows_ci_low", "windows_ci_high")):
        if entry.get(low) is not None and entry.get(high) is not None:
            return entry[low], entry[high]
    return None


def _label(entry: Mapping[str, Any]) -> str:
    return shorten(f"{_name(entry['a'])} − {_name(entry['b'])}", 28)


def _name(label: str) -> str:
    """A label of ``metrics.json`` as the rest of the page writes it: ``sff-alpha0.7`` is ``SFF 0.7``."""
    strategy, found, alpha = label.partition("-alpha")
    return f"{theme.style(strategy).label} {alpha}" if found else theme.style(label).label


def _role(entry: Mapping[str, Any]) -> str:
    return theme.style(entry["a"].partition("-alpha")[0]).role


def _panel(metric: str, entries: Sequence[Mapping[str, Any]]) -> Panel:
    words = metric.replace("_", " ").replace("mse", "MSE").replace("mae", "MAE")

    def draw(ax: Axes, palette: theme.Palette) -> None:
        for y, entry in enumerate(entries):
            colour, interval = palette[_role(entry)], _interval(entry)
            if interval is not None:
                ax.plot(interval, (y, y), color=colour, linewidth=2.4, solid_capstyle="butt", zorder=3)
                for end in interval:
                    ax.plot(end, y, marker="|", markersize=9, markeredgewidth=1.8, color=colour, zorder=3)
            ax.plot(entry["difference"], y, marker="o", markersize=6, color=colour, zorder=4)
        ax.axvline(0, color=palette["ink"], linewidth=1.0, linestyle=(0, (4, 2)), zorder=2)
        ax.set_yticks(range(len(entries)), [_label(entry) for entry in entries])
        ax.set_ylim(len(entries) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=5)
        ax.margins(x=0.08)
        ax.grid(axis="x", color=palette["grid"], linewidth=0.8, zorder=0)
        ax.set_xlabel(f"difference of the {words}; left: the first is better", loc="left")

    texts = []
    for entry in entries:
        interval = _interval(entry)
        between = "" if interval is None else f", 95 % interval {interval[0]:.4g} to {interval[1]:.4g}"
        texts.append(f"{_label(entry)} {entry['difference']:.4g}{between}")
    return Panel(f"Differences of the {words}", f"Interval chart: {'; '.join(texts)}.", draw)
