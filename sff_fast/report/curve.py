"""The error as a function of alpha: the one drawing of it, for sweeps and for comparisons of several alphas."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sff_fast.report import rows, theme
from sff_fast.report.panels import Panel, draw_legend, shorten
from sff_fast.training.statistics import paired_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZERO = "zero-shot"
LINES = (ZERO, "ff", "tfs")
"""Strategies that are lines across the picture in a comparison: what smoothing is to beat."""
_ZOOM_RATIO = 3.0
"""Where a line stretches the axis by more than this, a second panel leaves it out."""
_MARKERS = "osD^vPX*"
_CLOSE = 0.09
"""Names of alphas that are nearer than this share of the axis are turned, so as not to touch."""


@dataclasses.dataclass(frozen=True)
class Mean:
    """An error, mean over seeds.

    Attributes:
        value: The mean.
        low: Lower bound of its 95 % interval; None with one seed.
        high: Upper bound.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Mean | None:
        """Of the errors of several seeds, with Student's t interval; None without any, or where one is not finite."""
        if not values or any(value is None or not math.isfinite(value) for value in values):
            return None
        return cls(*paired_interval(values))


@dataclasses.dataclass(frozen=True)
class Point:
    """One alpha.

    Attributes:
        alpha: Place on the horizontal axis.
        error: Its error.
        label: Its name in words.
        chosen: Whether validation chose it.
        rest: What else it differs by, such as ``head=0.5``; points that share it are one line.
    """

    alpha: float
    error: Mean
    label: str
    chosen: bool
    rest: str = ""


def curve_panels(title: str, words: str, strategy: str, points: Sequence[Point], lines: dict[str, Mean]) -> list[Panel]:
    """An error against alpha, bands over seeds, with strategies without alpha as lines across.

    Args:
        title: Heading.
        words: What the error is, such as ``"validation MSE"``.
        strategy: Whose alpha it is; gives the colour.
        points: Every alpha.
        lines: Every line, by its strategy.

    Returns:
        One panel; two where a line is so far off that the curve would be flat beside it.
    """
    drawn = [_panel(title, words, strategy, points, lines)]
    curve = [point.error.value for point in points]
    if not curve:
        return drawn
    span = max(max(curve) - min(curve), 1e-9 * max(curve))
    off = {name: max(line.value - max(curve), min(curve) - line.value) for name, line in lines.items()}
    near = {name: line for name, line in lines.items() if off[name] <= _ZOOM_RATIO * span}
    if len(near) < len(lines):
        drawn.append(_panel(f"{title}, the curve alone", words, strategy, points, near))
    return drawn


def _panel(title: str, words: str, strategy: str, points: Sequence[Point], lines: dict[str, Mean]) -> Panel:
    def draw(ax: Axes, palette: theme.Palette) -> None:
        for name, line in lines.items():
            _draw_line(ax, palette, name, line)
        _draw_curves(ax, palette, strategy, points)
        _draw_choice(ax, palette, points)
        if points or lines:
            ax.set_ylim(*_limits([point.error for point in points], list(lines.values())))
        ticks = sorted({point.alpha for point in points})
        ax.set_xticks(ticks)
        close = any(b - a < _CLOSE * (ticks[-1] - ticks[0]) for a, b in itertools.pairwise(ticks))
        ax.tick_params(axis="x", labelsize=8.5, labelrotation=45 if close else 0)
        ax.set_xlabel("alpha, the share of the pre-trained weights")
        ax.set_ylabel(words)
        ax.grid(axis="y", color=palette["grid"], linewidth=0.8, zorder=0)
        draw_legend(ax, palette)

    chosen = next((point.label for point in points if point.chosen), None)
    parts = [f"Line chart of the {words} by alpha, mean over seeds: {'; '.join(map(_told, points))}."]
    if chosen is not None:
        parts.append(f"Chosen: alpha {chosen}.")
    if lines:
        across = (f"{theme.style(name).label} {rows.format_error(line.value)}" for name, line in lines.items())
        parts.append(f"Lines: {', '.join(across)}.")
    return Panel(title, " ".join(parts), draw)


def _told(point: Point) -> str:
    error = point.error
    between = "" if error.low is None else f" ({rows.format_error(error.low)} to {rows.format_error(error.high)})"
    return f"alpha {point.label} {rows.format_error(error.value)}{between}"


def _draw_line(ax: Axes, palette: theme.Palette, name: str, line: Mean) -> None:
    look = theme.style(name)
    ax.axhline(line.value, color=palette[look.role], linestyle=look.linestyle, linewidth=1.5, label=look.label, zorder=2)
    if line.low is not None:
        ax.axhspan(line.low, line.high, color=palette[look.role], alpha=0.12, linewidth=0, zorder=1)


def _draw_curves(ax: Axes, palette: theme.Palette, strategy: str, points: Sequence[Point]) -> None:
    look, families = theme.style(strategy), {}
    for point in sorted(points, key=lambda point: point.alpha):
        families.setdefault(point.rest, []).append(point)
    for number, rest in enumerate(dict.fromkeys(point.rest for point in points)):
        members = families[rest]
        ax.plot(
            [point.alpha for point in members],
            [point.error.value for point in members],
            color=palette[look.role],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="-" if number == 0 else (0, (2 + number, 1)),
            markersize=5,
            linewidth=1.7,
            label=f"{look.label}, {shorten(rest, 24)}" if rest else look.label,
            zorder=4,
        )
        banded = [point for point in members if point.error.low is not None]
        ends = [point.error.low for point in banded], [point.error.high for point in banded]
        ax.fill_between([point.alpha for point in banded], *ends, color=palette[look.role], alpha=0.18, linewidth=0, zorder=3)


def _draw_choice(ax: Axes, palette: theme.Palette, points: Sequence[Point]) -> None:
    ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.2, "linestyle": "none"}
    for point in points:
        if point.chosen:
            ax.plot(point.alpha, point.error.value, markeredgecolor=palette["ink"], label="chosen", zorder=6, **ring)


def _limits(points: Sequence[Mean], lines: Sequence[Mean]) -> tuple[float, float]:
    """Keep wide bands of two or three seeds from flattening everything: means decide, bands may be cut."""
    means = [entry.value for entry in (*points, *lines)]
    ends = [end for entry in (*points, *lines) for end in (entry.low, entry.high) if end is not None]
    low, high = min(means), max(means)
    room = max(high - low, 0.02 * abs(high), 1e-12)
    return max(min([low, *ends]), low - room, 0.0) - 0.06 * room, min(max([high, *ends]), high + room) + 0.06 * room
