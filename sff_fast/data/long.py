"""Tables in long format, a row for each series and time step, made wide: a column for each series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from . import validate
from .raw import RawTable

# Names under which tables keep which series a row belongs to, in lower case.
ID_NAMES = ("unique_id", "item_id", "series_id", "ts_id", "series", "id")
_REPEATED = 0.25
_SHORTEST = 0.5


def find_id(raw: RawTable, stamps: np.ndarray | None, date_column: str | None) -> str | None:
    """The column that tells the series of a long table, or None for a table in wide format.

    A table is long where time stamps repeat (in a quarter of the rows or more, or at all beside a column with a usual
    name) and there is a column named as in :data:`ID_NAMES`, or else a single column of text.
    """
    if stamps is None:
        return None
    repeated = len(stamps) - len(np.unique(stamps))
    others = [name for name in raw.names if name != date_column]
    named = [name for usual in ID_NAMES for name in others if name.lower() == usual]
    if named and (repeated or _is_constant(raw.columns[raw.names.index(named[0])])):
        return named[0]
    text = [name for name in others if raw.columns[raw.names.index(name)].dtype == object]
    return text[0] if len(text) == 1 and repeated >= _REPEATED * len(stamps) else None


def series_of(raw: RawTable, id_column: str) -> np.ndarray:
    """The name of each row's series.

    Raises:
        DataError: One is missing.
    """
    column = raw.columns[raw.names.index(id_column)]
    missing = np.array([value is None for value in column]) if column.dtype == object else column != column
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise DataError(
            f"{raw.source!r}, {raw.place(row)}, column {id_column!r}: the name of the series is missing, in {missing.sum()} of "
            f"{len(missing)} rows; write it or remove the rows"
        )
    return np.array([value if isinstance(value, str) else f"{value:g}" for value in column], dtype=object)


def widen(
    raw: RawTable,
    stamps: np.ndarray,
    date_column: str,
    id_column: str,
    names: Sequence[str],
    values: np.ndarray,
    drop: bool,
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """One row for each time stamp that any series has, one column for each series (and value, where there are several).

    Args:
        raw: The table, for its name, places and notes.
        stamps: ``datetime64[us]`` [rows], in any order.
        date_column: Their column.
        id_column: The column of the series' names.
        names: The value columns.
        values: float64 [rows, value columns].
        drop: Leave out repeated rows and series that cover less than half of the time steps.

    Returns:
        Time stamps [T], strictly increasing; column names; values [T, columns], NaN where a series has no row.

    Raises:
        DataError: A time stamp or a series' name is missing, or a series has a time stamp twice.
    """
    validate.check_stamps_present(np.isnat(stamps), date_column, raw.source, raw.place)
    ids, series = np.unique(series_of(raw, id_column), return_inverse=True)
    grid, step = np.unique(stamps, return_inverse=True)
    cell = series * len(grid) + step
    _, first, counts = np.unique(cell, return_index=True, return_counts=True)
    raw.notes.append(f"the table is long: its {len(cell)} rows belong to {len(ids)} series by column {id_column!r}")
    if (counts > 1).any():
        kept = np.zeros(len(cell), dtype=bool)
        kept[first] = True
        left = int((~kept).sum())
        row = int(np.flatnonzero(~kept)[0])
        what = f"the time stamp {validate.show_time(stamps[row])} of the series {ids[series[row]]!r}"
        if not drop:
            others = f", as do {left - 1} more" if left > 1 else ""
            raise DataError(
                f"{raw.source!r}, {raw.place(row)}, column {date_column!r}: {what} occurs twice{others}; "
                "remove one of the rows, or keep the first of each (drop=True, --drop)"
            )
        repeat = "row repeats" if left == 1 else "rows repeat"
        raw.notes.append(f"{left} {repeat} a time stamp of its series and {validate.were(left)} left out, such as {what}")
        series, step, values = series[kept], step[kept], values[kept]
    wide = np.full((len(grid), len(ids), len(names)), np.nan)
    wide[step, series] = values
    there = np.zeros((len(grid), len(ids)), dtype=bool)
    there[step, series] = True
    rows = there.sum(axis=0)
    short = np.flatnonzero(rows < _SHORTEST * len(grid))
    if drop and len(short):
        told = ", ".join(f"{ids[index]!r} ({rows[index]})" for index in short[:8])
        more = f" and {len(short) - 8} more" if len(short) > 8 else ""
        raw.notes.append(
            f"{len(short)} series {'has' if len(short) == 1 else 'have'} rows for less than half of the {len(grid)} time steps "
            f"and {validate.were(len(short))} left out: {told}{more}"
        )
        keep = np.setdiff1d(np.arange(len(ids)), short)
        if not len(keep):
            raise DataError(
                f"{raw.source!r}: none of the {len(ids)} series has rows for half of the {len(grid)} time steps, so none is "
                "left; give series of about the same time"
            )
        ids, wide = ids[keep], wide[:, keep]
        used = ~np.isnan(wide).all(axis=(1, 2))
        grid, wide = grid[used], wide[used]
    columns = [name if len(names) == 1 else f"{name} {value}" for name in ids for value in names]
    return grid, columns, wide.reshape(len(grid), len(columns))


def _is_constant(column: np.ndarray) -> bool:
    return len(column) > 1 and column.dtype.kind in "Of" and bool((column == column[0]).all())
