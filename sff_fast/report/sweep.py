"""Drawings and rows of a sweep: validation error against alpha, and the one test that was made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sff_fast.report import curve, panels, render, rows, theme
from sff_fast.report.panels import Panel

PICTURE = "sweep.png"
COLUMNS = ("alpha", "seeds", "val MSE", "95 % interval", "vs zero-shot", "time", "note")


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
            seeds = len(point["seeds"])
            note = f"left out after {seeds} seed{'' if seeds == 1 else 's'}"
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
        The panels.
    """
    found, zero_shot = metrics["sweep"], metrics["zero_shot"].get("val_mse")
    points = [
        curve.Point(point["alpha"], _mean(point), point["label"], point["chosen"], _rest(point["groups"]))
        for point in found["points"]
        if point["val_mse_mean"] is not None
    ]
    lines = {} if zero_shot is None else {curve.ZERO: curve.Mean(zero_shot)}
    lines |= {line["strategy"]: _mean(line) for line in found["baselines"] if line["val_mse_mean"] is not None}
    return curve.curve_panels("Validation MSE by alpha", "validation MSE", "sff", points, lines)


def _mean(entry: Mapping[str, Any]) -> curve.Mean:
    return curve.Mean(entry["val_mse_mean"], entry["ci_low"], entry["ci_high"])


def _rest(groups: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in groups.items())
