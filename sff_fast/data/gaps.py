"""What is done about missing values and missing rows: nothing unless asked, and all of it is noted."""

from __future__ import annotations

import numpy as np

from ..errors import ArgumentError, DataError
from .frequency import Frequency

FILLS = ("interpolate", "ffill")
ADVICE = 'fill the gaps (fill="interpolate" or "ffill", --fill) or leave the rows out (drop=True, --drop)'


def check_fill(fill: str | None) -> None:
    """Raise ArgumentError unless ``fill`` is a known way to fill gaps, or None."""
    if fill is not None and fill not in FILLS:
        raise ArgumentError(f"fill must be one of {', '.join(map(repr, FILLS))} or None, got {fill!r}")


def insert_missing_rows(
    values: np.ndarray, timestamps: np.ndarray, frequency: Frequency, source: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Add a row of NaN for each step that has none.

    Args:
        values: float64 [T, C].
        timestamps: ``datetime64[us]`` [T], strictly increasing.
        frequency: Their step.
        source: The table's name in messages.

    Returns:
        Values and time stamps with one row for each step, and the number of rows added.

    Raises:
        DataError: More rows would be added than there are, so the step is not what it seems.
    """
    positions = frequency.positions(timestamps)
    assert positions is not None
    added = int(positions[-1]) + 1 - len(values)
    if added == 0:
        return values, timestamps, 0
    if added > len(values):
        raise DataError(
            f"{source!r}: {added} rows are missing for a step of {frequency}, more than the {len(values)} that are "
            "there; use a part of the table without such gaps"
        )
    filled = np.full((len(values) + added, values.shape[1]), np.nan)
    filled[positions] = values
    return filled, frequency.grid(timestamps), added


def fill_values(values: np.ndarray, fill: str) -> np.ndarray:
    """Fill NaN along time; what has no value before it (and, to interpolate, after it) stays NaN.

    Args:
        values: float64 [T, C].
        fill: ``"interpolate"`` (a straight line between the neighbours) or ``"ffill"`` (the last value before).

    Returns:
        A copy.
    """
    result = values.copy()
    rows = np.arange(len(values))
    for column in result.T:
        known = np.flatnonzero(~np.isnan(column))
        if len(known) in (0, len(column)):
            continue
        if fill == "interpolate":
            inside = slice(known[0], known[-1] + 1)
            column[inside] = np.interp(rows[inside], known, column[known])
        else:
            before = np.searchsorted(known, rows, side="right") - 1
            column[known[0] :] = column[known[before[known[0] :]]]
    return result


def longest_run(missing: np.ndarray) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
