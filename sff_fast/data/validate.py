"""Checks of tables and windows. Each raises one line: which file, row and column, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ArgumentError, DataError
from .gaps import ADVICE

if TYPE_CHECKING:
    from .frequency import Frequency
    from .split import Borders

Place = Callable[[int], str]

_HOUR = 3_600_000_000
"""Microseconds."""
_CLOCKS = "; if clocks were set back there, write local times with their offset from UTC, such as +01:00"


def check_finite(values: np.ndarray, columns: Sequence[str], source: str, place: Place) -> None:
    """Refuse infinite values and values whose squares overflow float64."""
    for index, name in enumerate(columns):
        column = values[:, index]
        bad = np.flatnonzero(np.isinf(column))
        if len(bad):
            raise DataError(
                f"{source!r}, {place(bad[0])}, column {name!r}: expected a finite number, got {column[bad[0]]}"
                f"{_and_more(len(bad))}; correct it, or leave the value empty and choose how to fill gaps"
            )
        huge = np.flatnonzero(np.abs(column) > 1e100)
        if len(huge):
            raise DataError(
                f"{source!r}, {place(huge[0])}, column {name!r}: {column[huge[0]]:g} is too large to compute with"
                f"{_and_more(len(huge))}; correct it or use another unit"
            )


def check_no_missing(values: np.ndarray, columns: Sequence[str], source: str, place: Place) -> None:
    """Refuse NaN, naming the first column that has one, its first row and how many there are."""
    missing = np.isnan(values)
    if not missing.any():
        return
    counts = missing.sum(axis=0)
    index = int(np.flatnonzero(counts)[0])
    others = int((counts > 0).sum()) - 1
    also = f", and {others} other column{'s' if others > 1 else ''}" if others else ""
    if counts[index] == len(values):
        raise DataError(
            f"{source!r}, column {columns[index]!r}: all {len(values)} values are missing{also}; "
            "leave the column out (drop=True, --drop)"
        )
    first = int(np.flatnonzero(missing[:, index])[0])
    raise DataError(
        f"{source!r}, {place(first)}, column {columns[index]!r}: the value is missing (NaN), "
        f"{counts[index]} of {len(values)} in this column{also}; {ADVICE}"
    )


def check_filled(values: np.ndarray, columns: Sequence[str], source: str, place: Place, fill: str) -> None:
    """Refuse what ``fill`` could not fill: values at the edges and columns without any value."""
    missing = np.isnan(values)
    if not missing.any():
        return
    index = int(np.flatnonzero(missing.any(axis=0))[0])
    if missing[:, index].all():
        check_no_missing(values, columns, source, place)
    first = int(np.flatnonzero(missing[:, index])[0])
    there = np.flatnonzero(~missing[:, index])
    edge, rows = ("begins", int(there[0])) if first == 0 else ("ends", len(values) - 1 - int(there[-1]))
    raise DataError(
        f"{source!r}, {place(first)}, column {columns[index]!r}: the column {edge} with {counted(rows, 'missing value')}, "
        f"which fill={fill!r} cannot fill; cut these rows off (drop=True, --drop, does it)"
    )


def check_stamps_present(missing: np.ndarray, column: str, source: str, place: Place) -> None:
    """Refuse rows without a time stamp."""
    gone = np.flatnonzero(missing)
    if len(gone):
        raise DataError(
            f"{source!r}, {place(gone[0])}, column {column!r}: the time stamp is missing{_and_more(len(gone))}; "
            "write it or remove the row"
        )


def check_increasing(timestamps: np.ndarray, column: str, source: str, place: Place) -> None:
    """Refuse missing, repeated and descending time stamps."""
    check_stamps_present(np.isnat(timestamps), column, source, place)
    steps = np.diff(timestamps).astype(np.int64)
    if len(steps) and (steps < 0).all():
        raise DataError(f"{source!r}, column {column!r}: the rows run backwards in time; sort them")
    bad = np.flatnonzero(steps <= 0)
    if not len(bad):
        return
    row = int(bad[0]) + 1
    stamp = show_time(timestamps[row])
    clocks = _CLOCKS if _set_back_an_hour(steps) else ""
    if steps[row - 1] == 0:
        repeated = int((steps == 0).sum())
        raise DataError(
            f"{source!r}, {place(row)}, column {column!r}: the time stamp {stamp} occurs twice"
            f"{_and_more(repeated)}; remove one of the rows, keep the first of each (drop=True, --drop), or name the column that "
            f"tells the series of a long table (id_column, --id-column){clocks}"
        )
    advice = "sort the rows by time"
    if len(np.unique(timestamps)) < len(timestamps):
        advice = (
            "time stamps repeat, so sorting alone does not help: name the column that tells the series of a long table "
            f"(id_column, --id-column){clocks}"
        )
    raise DataError(
        f"{source!r}, {place(row)}, column {column!r}: {stamp} comes after {show_time(timestamps[row - 1])}; {advice}"
    )


def _set_back_an_hour(steps: np.ndarray) -> bool:
    """Whether every step that is not forward is one of the usual length, taken from a clock that was set back by an hour."""
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0
    return bool((steps[steps <= 0] == usual - _HOUR).all())


def check_regular(
    timestamps: np.ndarray, frequency: Frequency | None, column: str, source: str, place: Place, drop: bool, fill: bool
) -> None:
    """Refuse uneven time stamps unless rows may be filled in (``fill``) or taken as they are (``drop``)."""
    if len(timestamps) < 3:
        return
    if frequency is None:
        if drop:
            return
        values, counts = np.unique(np.diff(timestamps), return_counts=True)
        usual = values[np.argmax(counts)]
        row = int(np.flatnonzero(np.diff(timestamps) != usual)[0]) + 1
        raise DataError(
            f"{source!r}, {place(row)}, column {column!r}: the time stamps are irregular, the first uneven step is "
            f"{show_time(timestamps[row - 1])} to {show_time(timestamps[row])}; resample the table to a fixed step, "
            "or take the rows as they are (drop=True, --drop)"
        )
    positions = frequency.positions(timestamps)
    assert positions is not None
    gaps = np.flatnonzero(np.diff(positions) > 1)
    if not len(gaps) or drop or fill:
        return
    row = int(gaps[0]) + 1
    missing = int(positions[-1]) + 1 - len(timestamps)
    raise DataError(
        f"{source!r}, {place(row)}, column {column!r}: rows are missing between {show_time(timestamps[row - 1])} and "
        f"{show_time(timestamps[row])}, {missing} in all for a step of {frequency}; insert and fill them "
        '(fill="interpolate" or "ffill", --fill) or take the rows as they are (drop=True, --drop)'
    )


def constant_columns(train: np.ndarray) -> np.ndarray:
    """Indices of the columns that have one single value in the train part."""
    return np.flatnonzero(train.max(axis=0) == train.min(axis=0))


def check_not_constant(train: np.ndarray, columns: Sequence[str], source: str, part: str) -> None:
    """Refuse a channel that is constant in the rows that standardise it; ``part`` is what messages call them."""
    constant = constant_columns(train)
    if len(constant):
        index = int(constant[0])
        raise DataError(
            f"{source!r}, column {columns[index]!r}: constant in {part} (always {train[0, index]:g} in "
            f"{len(train)} rows){_and_more(len(constant), 'column')}; leave it out (drop=True, --drop)"
        )


def check_long_enough(
    borders: Borders, needed_rows: int | None, n_rows: int, context_length: int, prediction_length: int, source: str
) -> None:
    """Refuse a table in which a part has no window of context and horizon, or validation or test no row of its own."""
    for part in ("train", "val", "test"):
        begin, end = getattr(borders, part)
        own = 0 if part == "train" else max(prediction_length, 1)
        if end - begin >= context_length + max(prediction_length, own):
            continue
        rows = end - begin
        if needed_rows is None:
            advice = "use a shorter context or horizon"
        else:
            advice = (
                f"the table needs at least {needed_rows} rows and has {n_rows}: use a longer one, or a shorter context or horizon"
            )
        if prediction_length:
            needs = f"{context_length} (context) + {prediction_length} (horizon) = {context_length + prediction_length}"
        else:
            needs = f"{context_length}{' and one row of the part itself' if own else ''}"
        raise DataError(
            f"{source!r}: too short: the {part} part has {rows} rows with its context, one window needs {needs}; {advice}"
        )


def check_positive(name: str, value: int, least: int = 1) -> None:
    """Refuse a length that is not a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, got {value!r}")


def show_time(stamp: np.datetime64) -> str:
    """A time stamp without the digits that say nothing."""
    text = str(stamp.astype("datetime64[us]")).replace("T", " ")
    return text.removesuffix(".000000").removesuffix(":00") if text.endswith(":00.000000") else text.removesuffix(".000000")


def counted(number: int, noun: str) -> str:
    """A number and what it counts, such as ``1 row`` or ``2 rows``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def were(number: int) -> str:
    """``was`` for one thing, ``were`` for others."""
    return "was" if number == 1 else "were"


def _and_more(count: int, noun: str = "value") -> str:
    return f", and {count - 1} more {noun}{'s' if count > 2 else ''}" if count > 1 else ""
