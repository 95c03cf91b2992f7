"""A table of channels over time, read from a file or from memory and checked."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, DataError
from . import validate
from .csv_file import expected_number, is_number, numbers, read_csv
from .dates import DATE_NAMES, looks_like_date, parse_dates, parse_numbers
from .frames import from_array, from_dataframe, read_npy, read_parquet
from .frequency import infer_frequency
from .gaps import check_fill, fill_values, insert_missing_rows, longest_run
from .long import find_id, widen
from .raw import RawTable

_LOGGER = logging.getLogger("sff_fast")
_READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".npy": read_npy,
}


@dataclass(frozen=True)
class Table:
    """Channels over time, without gaps.

    Args:
        values: float64 [T, C], in the data's own units, finite.
        columns: Name of each channel.
        timestamps: ``datetime64[us]`` [T], strictly increasing, or None.
        frequency: Step between rows as pandas writes it (``"h"``, ``"15min"``, ``"D"``, ``"B"``, ``"M"``), or None.
        source: What messages call the table.
        drop: Whether channels that are constant in the train part are left out rather than refused.
        notes: Everything that was done to the source to get here.
    """

    values: np.ndarray
    columns: list[str]
    timestamps: np.ndarray | None = None
    frequency: str | None = None
    source: str = "the table"
    drop: bool = False
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.values, dtype=np.float64)
        if values.ndim != 2 or 0 in values.shape:
            raise DataError(f"{self.source!r}: expected values of shape [time, channels], got {list(values.shape)}")
        if len(self.columns) != values.shape[1]:
            raise DataError(f"{self.source!r}: {values.shape[1]} channels but {len(self.columns)} column names")
        if self.timestamps is not None and len(self.timestamps) != len(values):
            raise DataError(f"{self.source!r}: {len(values)} rows but {len(self.timestamps)} time stamps")
        validate.check_finite(values, self.columns, self.source, _row_number)
        validate.check_no_missing(values, self.columns, self.source, _row_number)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "columns", list(self.columns))

    def __len__(self) -> int:
        return len(self.values)

    def select(self, indices: Sequence[int], note: str) -> Table:
        """The same table with some of its channels; ``note`` says why, and is logged as reading's own notes are."""
        _LOGGER.warning("%r: %s", self.source, note)
        return replace(
            self,
            values=self.values[:, indices],
            columns=[self.columns[i] for i in indices],
            notes=(*self.notes, note),
        )

    def sha256(self) -> str:
        """Hash of the column names and values, to tell whether two runs saw the same data."""
        digest = hashlib.sha256("\0".join(self.columns).encode("utf-8", "surrogateescape"))
        digest.update(np.asarray(self.values.shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.values, dtype="<f8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the table is and what was done to it, for ``metrics.json``."""
        stamps = self.timestamps
        return {
            "source": self.source,
            "rows": len(self),
            "columns": list(self.columns),
            "frequency": self.frequency,
            "first": None if stamps is None else validate.show_time(stamps[0]),
            "last": None if stamps is None else validate.show_time(stamps[-1]),
            "sha256": self.sha256(),
            "notes": list(self.notes),
        }


def read_table(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    date_column: str | None = None,
    id_column: str | None = None,
    fill: str | None = None,
    drop: bool = False,
) -> Table:
    """Read a table: wide (a row for each time step, a column for each channel) or long (a row for each series and time).

    The date column is found by its name (``date``, ``timestamp``, ``ds`` …) or else by its contents; the others must be
    numbers. Nothing is repaired unless ``fill`` or ``drop`` asks for it, and all that was done is in ``notes``.

    Args:
        source: Path of a ``.csv``, ``.tsv``, ``.txt`` (also ``.gz``), ``.parquet`` or ``.npy`` file, a pandas DataFrame,
            a NumPy array [T, C] or [T], or a Table.
        columns: Channels to use, in this order; default all numeric columns.
        date_column: Name of the column of time stamps; default: found.
        id_column: Name of the column that tells the series of each row of a long table, whose series become channels;
            default: found where time stamps repeat, see :func:`sff_fast.data.long.find_id`.
        fill: ``"interpolate"`` (straight line between the neighbours, which looks ahead in time) or ``"ffill"`` (last
            value before) for missing values and missing rows; default None: they are errors.
        drop: Leave out rows with missing values, text columns, empty columns and channels that are constant in the
            train part, all but the first of rows with one time stamp and series of a long table that cover less than half of
            its time, and accept uneven time stamps; with ``fill``, only what cannot be filled. Default False.

    Returns:
        The checked table.

    Raises:
        DataError: The source cannot be used as it is; the message names file, line and column.
        ArgumentError: ``fill``, ``columns``, ``date_column`` or ``id_column`` is invalid.
        MissingPackageError: A parquet file or DataFrame needs a package that is not installed.
    """
    check_fill(fill)
    if isinstance(source, Table):
        if columns is not None or date_column is not None or id_column is not None or fill is not None or drop:
            raise ArgumentError("columns, date_column, id_column, fill and drop apply to a source that is read, not to a Table")
        return source
    raw = _read(source)
    wanted = None if columns is None else _check_columns(raw, columns)
    stamps, date_name = _timestamps(raw, date_column, exclude=[*(wanted or []), *([id_column] if id_column else [])])
    series_name = _series_column(raw, id_column, stamps, date_name)
    names, values = _channels(raw, [name for name in (date_name, series_name) if name], wanted, drop)
    notes = raw.notes
    place = raw.place
    validate.check_finite(values, names, raw.source, place)
    if series_name is not None:
        stamps, names, values = widen(raw, stamps, date_name, series_name, names, values, drop)
        place = _by_time(stamps)
    elif drop and stamps is not None:
        stamps, values, place = _without_repeated(stamps, values, raw)
    frequency = None
    if stamps is not None:
        validate.check_increasing(stamps, date_name, raw.source, place)
        frequency = infer_frequency(stamps) if len(stamps) > 1 else None
        validate.check_regular(stamps, frequency, date_name, raw.source, place, drop, fill is not None)
        if frequency is None and len(stamps) > 2:
            notes.append("the time stamps are irregular and the rows were taken as they are")
    if drop:
        names, values = _drop_empty(names, values, notes, raw.source)
    if fill is not None:
        if stamps is not None and frequency is not None:
            values, stamps, added = insert_missing_rows(values, stamps, frequency, raw.source)
            if added:
                notes.append(
                    f"{validate.counted(added, 'missing row')} {validate.were(added)} inserted for a step of {frequency}"
                )
                place = _by_time(stamps)
        before = np.isnan(values)
        values = fill_values(values, fill)
        for index in np.flatnonzero(before.any(axis=0)):
            done = before[:, index] & ~np.isnan(values[:, index])
            if not done.any():
                continue
            count = int(done.sum())
            notes.append(
                f"{validate.counted(count, 'missing value')} in column {names[index]!r} {validate.were(count)} filled ({fill}), "
                f"the longest run was {longest_run(done)}"
            )
        if not drop:
            validate.check_filled(values, names, raw.source, place, fill)
    elif not drop:
        validate.check_no_missing(values, names, raw.source, place)
    if drop:
        keep = ~np.isnan(values).any(axis=1)
        if not keep.any():
            raise DataError(f"{raw.source!r}: every row has a missing value, so none is left; fill the gaps instead (--fill)")
        if not keep.all():
            left = int((~keep).sum())
            notes.append(
                f"{left} of {len(keep)} rows {'has' if left == 1 else 'have'} missing values and {validate.were(left)} left out"
            )
            values, stamps = values[keep], None if stamps is None else stamps[keep]
        if stamps is not None and frequency is not None:
            positions = frequency.positions(stamps)
            gaps = 0 if positions is None else int((np.diff(positions) > 1).sum())
            if gaps:
                notes.append(f"windows run across {validate.counted(gaps, 'gap')} in time")
    for note in notes:
        _LOGGER.warning("%r: %s", raw.source, note)
    return Table(values, names, stamps, None if frequency is None else str(frequency), raw.source, drop, tuple(notes))


def _read(source: Any) -> RawTable:
    if isinstance(source, np.ndarray):
        return from_array(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        if "\0" in str(path):
            raise DataError(f"{str(path)!r} is not a path: it holds a null character")
        suffixes = [suffix.lower() for suffix in path.suffixes]
        kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
        if os.path.isdir(path):  # False too for a name that is too long, which the reader then names
            raise DataError(f"{str(path)!r} is a folder: expected a data file; name the file in it")
        reader = _READERS.get(kind)
        if reader is None or (suffixes[-1] == ".gz" and reader is not read_csv):
            if not os.path.exists(path):
                raise DataError(f"cannot read the data file {str(path)!r}: it does not exist; check the path")
            raise DataError(
                f"{str(path)!r} has an unknown file type {''.join(path.suffixes[-2:]) or '(no ending)'!r}: "
                f"expected one of {', '.join(_READERS)} (also .csv.gz)"
            )
        return reader(path)
    # A DataFrame is known by its package's name, so that pandas is not imported for the other sources.
    if type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "iloc"):
        return from_dataframe(source.to_frame() if hasattr(source, "to_frame") else source)
    raise ArgumentError(
        f"data must be a path, a pandas DataFrame or a NumPy array, got {type(source).__module__}.{type(source).__name__}"
    )


def _check_columns(raw: RawTable, columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str) or not columns or len(set(columns)) != len(columns):
        raise ArgumentError(f"columns must be a list of different names, got {columns!r}")
    for name in columns:
        if name not in raw.names:
            raise ArgumentError(f"{raw.source!r} has no column {name!r}; its columns are {_listed(raw.names)}")
    return list(columns)


def _timestamps(raw: RawTable, date_column: str | None, exclude: list[str]) -> tuple[np.ndarray | None, str | None]:
    """Find and parse the time stamps; (None, None) where the table has none."""
    if date_column is not None:
        if date_column not in raw.names:
            raise ArgumentError(f"{raw.source!r} has no column {date_column!r}; its columns are {_listed(raw.names)}")
        stamps = _parse_column(raw, raw.names.index(date_column))
        if stamps is None:
            raise DataError(f"{raw.source!r}, column {date_column!r}: expected dates, got numbers that are none")
        return stamps, date_column
    named = [i for name in DATE_NAMES for i, other in enumerate(raw.names) if other.lower() == name]
    rest = [i for i in range(len(raw.names)) if i not in named]
    for index in [i for i in named + rest if raw.names[i] not in exclude]:
        column = raw.columns[index]
        if column.dtype == object:
            first = next((value for value in column if value is not None), "")
            if index not in named and not looks_like_date(first):
                continue
        elif column.dtype.kind == "f" and index not in named:
            continue
        stamps = _parse_column(raw, index)
        if stamps is not None:
            return stamps, raw.names[index]
    return None, None


def _parse_column(raw: RawTable, index: int) -> np.ndarray | None:
    column, name = raw.columns[index], raw.names[index]
    if column.dtype.kind == "M":
        return column
    if column.dtype.kind == "f":
        present = ~np.isnan(column)
        stamps = parse_numbers(column[present], name)
        if stamps is None or present.all():
            return stamps
        spread = np.full(len(column), np.datetime64("NaT"), dtype="datetime64[us]")
        spread[present] = stamps
        return spread
    missing = np.array([value is None for value in column])
    validate.check_stamps_present(missing, name, raw.source, raw.place)
    parsed = parse_dates(column, raw.source, name, raw.place)
    if parsed.note:
        raw.notes.append(parsed.note)
    return parsed.timestamps


def _channels(raw: RawTable, exclude: list[str], wanted: list[str] | None, drop: bool) -> tuple[list[str], np.ndarray]:
    """The numeric columns; the others are refused, or left out with ``drop``."""
    names, columns, text = [], [], []
    for name in wanted or raw.names:
        if name in exclude:
            continue
        column = raw.columns[raw.names.index(name)]
        if column.dtype == object:
            column = _numbers_in_text(raw, name, column)
        if column is None or column.dtype.kind == "M":
            text.append(name)
        elif wanted is None and _is_row_number(name, column):
            raw.notes.append(f"column {name!r} only numbers the rows and was left out")
        else:
            names.append(name)
            columns.append(column)
    if not names:
        raise DataError(
            f"{raw.source!r} has no numeric column: expected at least one channel of numbers, its columns are "
            f"{_listed(raw.names)}"
        )
    if text:
        index = raw.names.index(text[0])
        column = raw.columns[index]
        row = 0 if column.dtype.kind == "M" else next(r for r, value in enumerate(column) if value is not None)
        if not drop or wanted is not None:
            raise DataError(
                f"{raw.source!r}, {raw.place(row)}, column {text[0]!r}: expected numbers, the column holds "
                f"{'dates' if column.dtype.kind == 'M' else 'text'} ({str(column[row])[:40]!r}); "
                "remove the column, or leave it out (drop=True, --drop)"
            )
        holds = "holds" if len(text) == 1 else "hold"
        raw.notes.append(f"{_columns(text)} {holds} no numbers and {validate.were(len(text))} left out")
    return names, np.stack(columns, axis=1)


def _numbers_in_text(raw: RawTable, name: str, column: np.ndarray) -> np.ndarray | None:
    """Numbers that were stored as text; None for a column of words, an error for a column of numbers with some words."""
    good = [value is None or is_number(value) for value in column]
    if all(good):
        raw.notes.append(f"column {name!r} holds numbers stored as text, which were converted")
        return numbers(["" if value is None else value for value in column])
    present = sum(value is not None for value in column)
    numeric = sum(ok for ok, value in zip(good, column) if value is not None)
    bad = good.index(False)
    if 2 * numeric >= present or "write" in expected_number(column[bad]):
        raise DataError(f"{raw.source!r}, {raw.place(bad)}, column {name!r}: {expected_number(column[bad])}")
    return None


def _is_row_number(name: str, column: np.ndarray) -> bool:
    """Whether a column without a name of its own, or one named as a time, counts the rows."""
    if not (name in ("column_1", "Unnamed: 0", "index") or name.lower() in DATE_NAMES) or len(column) < 3:
        return False
    return bool((np.diff(column) == 1).all()) and column[0] in (0, 1)


def _drop_empty(names: list[str], values: np.ndarray, notes: list[str], source: str) -> tuple[list[str], np.ndarray]:
    empty = np.isnan(values).all(axis=0)
    if not empty.any():
        return names, values
    if empty.all():
        raise DataError(f"{source!r}: all values of all columns are missing; check that this is the right file")
    gone = [names[i] for i in np.flatnonzero(empty)]
    notes.append(f"{_columns(gone)} {'has' if len(gone) == 1 else 'have'} no value and {validate.were(len(gone))} left out")
    return [names[i] for i in np.flatnonzero(~empty)], values[:, ~empty]


def _series_column(raw: RawTable, id_column: str | None, stamps: np.ndarray | None, date_column: str | None) -> str | None:
    """The column that tells the series of a long table; None for a wide one."""
    if id_column is None:
        return find_id(raw, stamps, date_column)
    if id_column not in raw.names or id_column == date_column:
        raise ArgumentError(f"{raw.source!r} has no column {id_column!r} of series; its columns are {_listed(raw.names)}")
    if stamps is None:
        raise DataError(f"{raw.source!r}: a long table needs a column of time stamps; its columns are {_listed(raw.names)}")
    return id_column


def _without_repeated(stamps: np.ndarray, values: np.ndarray, raw: RawTable) -> tuple[np.ndarray, np.ndarray, validate.Place]:
    """Keep the first of neighbouring rows with one time stamp."""
    kept = np.flatnonzero(np.append(True, np.diff(stamps).astype(np.int64) != 0) | np.isnat(stamps))
    if len(kept) == len(stamps):
        return stamps, values, raw.place
    row = int(np.setdiff1d(np.arange(len(stamps)), kept)[0])
    left = len(stamps) - len(kept)
    repeat = "row repeats" if left == 1 else "rows repeat"
    raw.notes.append(
        f"{left} {repeat} a time stamp and {validate.were(left)} left out, the first in {raw.place(row)} "
        f"({validate.show_time(stamps[row])})"
    )
    return stamps[kept], values[kept], lambda number: raw.place(int(kept[number]))


def _by_time(stamps: np.ndarray) -> validate.Place:
    return lambda row: f"time {validate.show_time(stamps[row])}"


def _columns(names: Sequence[str]) -> str:
    return f"the column{'' if len(names) == 1 else 's'} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _row_number(row: int) -> str:
    return f"row {row + 1}"
