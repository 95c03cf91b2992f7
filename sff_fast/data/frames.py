"""Read tables that are in memory or in a columnar file: DataFrame, NumPy array, parquet, .npy."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, require
from .raw import RawTable

# What numpy raises for a damaged file depends on the byte of its header, a Python literal, that is hit.
_NPY_DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, MemoryError, OSError, RecursionError, SyntaxError, TypeError, ValueError),
    tokenize.TokenError,
)


def from_array(values: np.ndarray, source: str = "the array") -> RawTable:
    """Take a numeric array [T, C] or [T]; the columns are named ``column_1``, ``column_2``, …"""
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise DataError(f"{source}: expected an array of shape [time, channels] or [time], got {list(values.shape)}")
    if values.dtype.kind not in "fiub":
        raise DataError(f"{source}: expected numbers, got an array of dtype {values.dtype}")
    if 0 in values.shape:
        raise DataError(f"{source} is empty: expected an array of shape [time, channels], got {list(values.shape)}")
    names = [f"column_{number + 1}" for number in range(values.shape[1])]
    return RawTable(source, names, [np.array(column, dtype=np.float64) for column in values.T])


def from_dataframe(frame: Any, source: str = "the DataFrame") -> RawTable:
    """Take a pandas DataFrame; an index of dates becomes the first column, another index is left out."""
    pandas = require("pandas", "data")
    names = [str(name) for name in frame.columns]
    columns = [_from_series(frame.iloc[:, i], names[i], source, pandas) for i in range(len(names))]
    notes = [note for name, kind in zip(names, frame.dtypes) for note in _zone_notes(name, getattr(kind, "tz", None))]
    if isinstance(frame.index, (pandas.DatetimeIndex, pandas.PeriodIndex)):
        index = frame.index.to_timestamp() if isinstance(frame.index, pandas.PeriodIndex) else frame.index
        name = str(frame.index.name or "date")
        while name in names:
            name = f"index_{name}"
        names.insert(0, name)
        columns.insert(0, _from_series(index.to_series(), name, source, pandas))
        notes += _zone_notes(name, getattr(index, "tz", None))
    elif isinstance(frame.index, pandas.MultiIndex):
        raise DataError(f"{source} has an index of several levels: expected one row for each time step; reset the index")
    elif not pandas.api.types.is_numeric_dtype(frame.index.dtype):
        notes.append(f"the index, such as {frame.index[:1].tolist()}, holds no time stamps of pandas and was left out")
    return _checked(RawTable(source, names, columns, notes=notes))


def read_parquet(path: Path) -> RawTable:
    """Read a parquet file with pyarrow."""
    parquet = require("pyarrow.parquet", "data")
    arrow = require("pyarrow", "data")
    source = str(path)
    try:
        table = parquet.ParquetFile(source).read()
    except FileNotFoundError as error:
        raise DataError(f"cannot read the data file {source!r}: it does not exist; check the path") from error
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read the parquet file {source!r}: {' '.join(str(error).split())}") from error
    columns = [_from_arrow(table.column(i), name, source, arrow) for i, name in enumerate(table.column_names)]
    notes = [note for field in table.schema for note in _zone_notes(field.name, getattr(field.type, "tz", None))]
    return _checked(RawTable(source, list(table.column_names), columns, notes=notes))


def read_npy(path: Path) -> RawTable:
    """Read a NumPy file of plain numbers (no pickled objects)."""
    source = str(path)
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"cannot read the data file {source!r}: it does not exist; check the path") from error
    except _NPY_DAMAGE as error:
        raise DataError(f"cannot read the NumPy file {source!r}: {' '.join(str(error).split())}") from error
    return from_array(values, repr(source))


def _checked(raw: RawTable) -> RawTable:
    if raw.n_rows == 0:
        raise DataError(f"{raw.source!r} is empty: expected a row for each time step and a column for each channel")
    for name in raw.names:
        if raw.names.count(name) > 1:
            raise DataError(f"{raw.source!r}: {raw.names.count(name)} columns are named {name!r}; rename them")
    return raw


def _zone_notes(name: str, zone: Any) -> list[str]:
    """What to say of a column of time stamps in a zone of its own; nothing of those without one or in UTC."""
    if zone is None or str(zone) == "UTC":
        return []
    return [f"the time stamps in column {name!r} were converted to UTC from {zone}"]


def _from_series(series: Any, name: str, source: str, pandas: Any) -> np.ndarray:
    types = pandas.api.types
    if types.is_datetime64_any_dtype(series.dtype):
        if getattr(series.dtype, "tz", None) is not None:
            series = series.dt.tz_convert("UTC").dt.tz_localize(None)
        return series.to_numpy().astype("datetime64[us]")
    if types.is_complex_dtype(series.dtype):
        raise DataError(f"{source}, column {name!r}: expected real numbers, got complex ones")
    if types.is_numeric_dtype(series.dtype) or types.is_bool_dtype(series.dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    missing = series.isna().to_numpy()
    return _from_objects(list(series), missing)


def _from_arrow(column: Any, name: str, source: str, arrow: Any) -> np.ndarray:
    kind = column.type
    types = arrow.types
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if types.is_timestamp(kind) or types.is_date(kind):
        try:
            return column.cast(arrow.timestamp("us")).to_numpy().astype("datetime64[us]")
        except arrow.ArrowInvalid as error:
            raise DataError(f"{source!r}, column {name!r}: expected time stamps of whole microseconds, got {kind}") from error
    if types.is_boolean(kind):
        column = column.cast(arrow.uint8())
        kind = column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        values = column.cast(arrow.float64(), safe=False)
        return np.array(values.to_numpy(zero_copy_only=False), dtype=np.float64)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        objects = column.to_pylist()
        return _from_objects(objects, np.array([value is None for value in objects], dtype=bool))
    raise DataError(f"{source!r}, column {name!r}: expected numbers, dates or text, got {kind}; leave the column out")


def _from_objects(objects: list[Any], missing: np.ndarray) -> np.ndarray:
    """Objects of any kind: numbers if all of them are, else their texts."""
    if missing.all():
        return np.full(len(objects), np.nan)
    texts: list[str | None] = [None if gone else str(value).strip() for value, gone in zip(objects, missing)]
    try:
        if not any(isinstance(value, str) for value in objects):
            return np.array([np.nan if gone else float(value) for value, gone in zip(objects, missing)])
    except (TypeError, ValueError):
        pass  # Dates and other objects are judged by their text.
    return np.array(texts, dtype=object)
