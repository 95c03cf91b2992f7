"""Drawings and rows of a sweep: validation error against alpha, and the one test that was made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sff_fast.report import panels, render, rows, theme
from sff_fast.report.panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "sweep.png"
#: Where a baseline stretches the axis by more than this, a second panel leaves it out.
_ZOOM_RATIO = 3.0
_MARKERS = "osD^vPX*"
ZERO = "zero-shot"
COLUMNS = ("alpha", "seeds", "val MSE", "95 % interval", "vs zero-shot", "time", "")


def write_picture(out_dir: str | os.PathLike[str], metrics: Mapping[str, Any]) -> Path:
    """Draw ``sweep.png``.

    Args:
        out_dir: An existing folder.
        metrics: The content of a sweep's ``metrics.json``.

    Returns:
        The file.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    path = Path(out_dir) / PICTURE
    render.to_png(path, [*sweep_panels(metrics), panels.comparison_panels(metrics)[0]], 3)
    return path


def table_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Every alpha as text, in the order of :data:`COLUMNS`."""
    reference = metrics["zero_shot"].get("val_mse")
    found = []
    for point in metrics["sweep"]["points"]:
        mean, low, high = (point[key] for key in ("val_mse_mean", "ci_low", "ci_high"))
        note = "chosen" if point["chosen"] else ""
        if point["left_out_after"] is not None:
            note = f"left out after {len(point['seeds'])} seeds"
        found.append(
            [
                point["label"],
                str(len(point["seeds"])),
                "not finite" if mean is None else rows.format_error(mean),
                "" if low is None else f"{rows.format_error(low)} to {rows.format_error(high)}",
                "" if mean is None or not reference else theme.format_change(mean, reference),
                theme.format_seconds(point["seconds"]),
                note,
            ]
        )
    return found


def sweep_panels(metrics: Mapping[str, Any]) -> list[Panel]:
    """Validation MSE against alpha, bands over seeds, with the zero-shot model and the baselines as lines.

    Args:
        metrics: The content of a sweep's ``metrics.json``.

    Returns:
        One panel; two where a baseline is so far off that the curve would be flat beside it.
    """
    found = metrics["sweep"]
    points = [point for point in found["points"] if point["val_mse_mean"] is not None]
    zero_shot = metrics["zero_shot"].get("val_mse")
    lines = [line for line in found["baselines"] if line["val_mse_mean"] is not None]
    title = "Validation MSE by alpha"
    drawn = [_panel(title, points, lines, zero_shot)]
    curve = [point["val_mse_mean"] for point in points]
    levels = {line["strategy"]: line["val_mse_mean"] for line in lines} | ({} if zero_shot is None else {ZERO: zero_shot})
    if curve:
        span = max(curve) - min(curve)
        near = {
            name
            for name, level in levels.items()
            if max(level - max(curve), min(curve) - level) <= _ZOOM_RATIO * max(span, 1e-9 * max(curve))
        }
        if near != set(levels):
            left = [line for line in lines if line["strategy"] in near]
            drawn.append(_panel(f"{title}, the curve alone", points, left, zero_shot if ZERO in near else None))
    return drawn


def _panel(title: str, points: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], zero_shot: float | None) -> Panel:
    families: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        rest = ", ".join(f"{name}={value:g}" for name, value in point["groups"].items())
        families.setdefault(rest, []).append(point)

    def draw(ax: Axes, palette: theme.Palette) -> None:
        if zero_shot is not None:
            look = theme.style(ZERO)
            ax.axhline(zero_shot, color=palette[look.role], linestyle=look.linestyle, linewidth=1.4, label=look.label, zorder=2)
        for line in lines:
            look = theme.style(line["strategy"])
            mean = line["val_mse_mean"]
            ax.axhline(mean, color=palette[look.role], linestyle=look.linestyle, linewidth=1.5, label=look.label, zorder=2)
            if line["ci_low"] is not None:
                ax.axhspan(line["ci_low"], line["ci_high"], color=palette[look.role], alpha=0.12, linewidth=0, zorder=1)
        for number, (rest, members) in enumerate(families.items()):
            members = sorted(members, key=lambda point: point["alpha"])
            x = [point["alpha"] for point in members]
            ax.plot(
                x,
                [point["val_mse_mean"] for point in members],
                color=palette["sff"],
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="-" if number == 0 else (0, (2 + number, 1)),
                markersize=5,
                linewidth=1.7,
                label=f"SFF, {panels.shorten(rest, 24)}" if rest else "SFF",
                zorder=4,
            )
            with_band = [point for point in members if point["ci_low"] is not None]
            if with_band:
                ax.fill_between(
                    [point["alpha"] for point in with_band],
                    [point["ci_low"] for point in with_band],
                    [point["ci_high"] for point in with_band],
                    color=palette["sff"],
                    alpha=0.18,
                    linewidth=0,
                    zorder=3,
                )
        for point in points:
            if point["chosen"]:
                ax.plot(
                    point["alpha"],
                    point["val_mse_mean"],
                    marker="o",
                    markersize=11,
                    markerfacecolor="none",
                    markeredgecolor=palette["ink"],
                    markeredgewidth=1.2,
                    linestyle="none",
                    label="chosen",
                    zorder=6,
                )
        _limit(ax, points, lines, zero_shot)
        ax.set_xticks(sorted({point["alpha"] for point in points}))
        ax.tick_params(axis="x", labelsize=8.5, labelrotation=45 if len(points) > 6 else 0)
        ax.set_xlabel("alpha, the share of the pre-trained weights")
        ax.set_ylabel("validation MSE")
        ax.grid(axis="y", color=palette["grid"], linewidth=0.8, zorder=0)
        panels.draw_legend(ax, palette)

    told = "; ".join(f"alpha {point['label']} {rows.format_error(point['val_mse_mean'])}" for point in points)
    chosen = next((point["label"] for point in points if point["chosen"]), None)
    others = [f"{theme.style(line['strategy']).label} {rows.format_error(line['val_mse_mean'])}" for line in lines]
    others += [] if zero_shot is None else [f"zero-shot {rows.format_error(zero_shot)}"]
    alt = f"Line chart of the validation MSE by alpha, mean over seeds: {told}. Chosen: alpha {chosen}."
    return Panel(title, alt + (f" Lines: {', '.join(others)}." if others else ""), draw)


def _limit(ax: Axes, points: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], zero_shot: float | None) -> None:
    """Keep wide bands of two or three seeds from flattening everything: means decide, bands may be cut."""
    means = [entry["val_mse_mean"] for entry in (*points, *lines)] + ([] if zero_shot is None else [zero_shot])
    ends = [entry[key] for entry in (*points, *lines) for key in ("ci_low", "ci_high") if entry[key] is not None]
    low, high = min(means), max(means)
    room = max(high - low, 0.02 * abs(high), 1e-12)
    ax.set_ylim(max(min([low, *ends]), low - room, 0.0) - 0.06 * room, min(max([high, *ends]), high + room) + 0.06 * room)
