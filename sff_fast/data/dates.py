"""Parse the time stamps of a table: one format for a whole column, never a guess for a single row."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

# Names under which tables keep their time stamps, in lower case.
DATE_NAMES = ("date", "datetime", "date_time", "timestamp", "time", "time_stamp", "ds", "utc", "day", "month", "year")

_CLOCK = r"(?:[ T]\s*(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?"
_ZONE = r"\s*(Z|UTC|[+-]\d\d:?\d\d|[+-]\d\d)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})([-/.])(\d{{1,2}})(?:\2(\d{{1,2}}))?{_CLOCK}{_ZONE}", re.IGNORECASE)
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}}){_CLOCK}{_ZONE}", re.IGNORECASE)
_COMPACT = re.compile(rf"(\d{{4}})()(\d\d)(\d\d){_CLOCK}{_ZONE}", re.IGNORECASE)
_ISO_LINES = re.compile(r"(?:\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?\n)*")
_ZONES = {"Z": "UTC"}
_HINT = "write dates as YYYY-MM-DD HH:MM:SS"


@dataclass(frozen=True)
class ParsedDates:
    """Time stamps, and what was assumed to read them (None when nothing was)."""

    timestamps: np.ndarray
    note: str | None = None


def looks_like_date(text: str) -> bool:
    """Whether a text has the form of a date; the day may still be impossible."""
    return any(pattern.fullmatch(text.strip()) for pattern in (_YEAR_FIRST, _YEAR_LAST))


def parse_dates(texts: np.ndarray, source: str, column: str, place: Callable[[int], str]) -> ParsedDates:
    """Parse a column of texts.

    Year-first dates (``2016-07-01 00:00``, ``2016/07/01``, ``20160701``), day-first or month-first dates
    (``31.12.2016``, ``12/31/2016``; which of the two is decided over the whole column), with or without time and zone.
    Time stamps with a zone are converted to UTC.

    Args:
        texts: Object array of text, no missing values.
        source: The table's name in messages.
        column: The column's name in messages.
        place: Names a row in messages.

    Returns:
        ``datetime64[us]`` for each row.

    Raises:
        DataError: A row has another format than the first, or an impossible or ambiguous date.
    """
    joined = "\n".join(texts) + "\n"
    if len(set(map(len, texts))) == 1 and _ISO_LINES.fullmatch(joined):
        try:
            return ParsedDates(np.array(texts, dtype="datetime64[us]"))
        except ValueError:
            pass  # An impossible day: the slow way below finds its row.
    pattern = next((p for p in (_YEAR_FIRST, _YEAR_LAST, _COMPACT) if p.fullmatch(texts[0])), None)
    fields = []
    for row, text in enumerate(texts):
        match = pattern.fullmatch(text) if pattern else None
        if match is None:
            other = "" if row == 0 else f" in the format of {texts[0]!r}"
            raise DataError(f"{source!r}, {place(row)}, column {column!r}: expected a date{other}, got {text!r}; {_HINT}")
        fields.append(match.groups())
    zoned = [field[-1] is not None for field in fields]
    if any(zoned) and not all(zoned):
        row = zoned.index(not zoned[0])
        raise DataError(
            f"{source!r}, {place(row)}, column {column!r}: {texts[row]!r} mixes time stamps with and without a time "
            "zone; write all of them in one way"
        )
    notes = []
    if pattern is _YEAR_LAST:
        fields, note = _order_day_and_month(fields, source, column, place)
        notes.append(note)
    if any(zoned):
        offsets = sorted({_ZONES.get(field[-1].upper(), field[-1]) for field in fields})
        mixed = f" from {len(offsets)} different offsets ({', '.join(offsets[:4])}{' …' if len(offsets) > 4 else ''})"
        notes.append(f"the time stamps in column {column!r} were converted to UTC{mixed if len(offsets) > 1 else ''}")
    stamps = np.empty(len(fields), dtype="datetime64[us]")
    for row, field in enumerate(fields):
        stamp = _stamp(field)
        if stamp is None:
            raise DataError(f"{source!r}, {place(row)}, column {column!r}: no such date or time: {texts[row]!r}; {_HINT}")
        stamps[row] = stamp
    return ParsedDates(stamps, "; ".join(notes) or None)


def parse_numbers(values: np.ndarray, column: str) -> np.ndarray | None:
    """Read numbers as time stamps: days as YYYYMMDD, or seconds, milli-, micro- or nanoseconds since 1970.

    Args:
        values: float64, no missing values.
        column: The column's name; ``year`` lets increasing whole numbers of four digits be years.

    Returns:
        ``datetime64[us]``, or None when the numbers are neither.
    """
    if not np.isfinite(values).all() or len(values) == 0 or (values != np.floor(values)).any():
        return None
    low, high = values.min(), values.max()
    if column.lower() == "year" and low >= 1000 and high <= 2999 and (np.diff(values) > 0).all():
        return (values.astype(np.int64) - 1970).astype("datetime64[Y]").astype("datetime64[us]")
    if low >= 18000101 and high <= 22001231:
        stamps = [_stamp((str(int(v))[:4], "", str(int(v))[4:6], str(int(v))[6:], *[None] * 5)) for v in values]
        if all(stamp is not None for stamp in stamps):
            return np.array(stamps, dtype="datetime64[us]")
    # 1971 to 2200, which leaves the four units apart from each other.
    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        if 31536000 * factor <= low and high <= 7258118400 * factor:
            return values.astype(np.int64).astype(f"datetime64[{unit}]").astype("datetime64[us]")
    return None


def _order_day_and_month(
    fields: list[tuple[str | None, ...]], source: str, column: str, place: Callable[[int], str]
) -> tuple[list[tuple[str | None, ...]], str]:
    """Decide over the whole column whether day or month comes first; return year-first fields."""
    firsts = np.array([int(field[0]) for field in fields])
    seconds = np.array([int(field[2]) for field in fields])
    day_first = [(f[3], f[1], f[2], f[0], *f[4:]) for f in fields]
    month_first = [(f[3], f[1], f[0], f[2], *f[4:]) for f in fields]
    if fields[0][1] == "." or (firsts > 12).any():
        return day_first, f"the dates in column {column!r} were read with the day first"
    if (seconds > 12).any():
        return month_first, f"the dates in column {column!r} were read with the month first"
    orders = [
        (candidate, name)
        for candidate, name in ((day_first, "day"), (month_first, "month"))
        if _is_increasing([_stamp(field) for field in candidate])
    ]
    if len(orders) != 1:
        raise DataError(f"{source!r}, {place(0)}, column {column!r}: cannot tell whether day or month comes first; {_HINT}")
    return orders[0][0], f"the dates in column {column!r} were read with the {orders[0][1]} first"


def _is_increasing(stamps: list[np.datetime64 | None]) -> bool:
    if any(stamp is None for stamp in stamps):
        return False
    return bool((np.diff(np.array(stamps, dtype="datetime64[us]")) > np.timedelta64(0)).all())


def _stamp(field: tuple[str | None, ...]) -> np.datetime64 | None:
    """Build a time stamp from (year, _, month, day, hour, minute, second, fraction, zone); None if it is impossible."""
    year, _, month, day, hour, minute, second, fraction, zone = field
    digits = ((fraction or "") + "000000")[:6]
    text = f"{year}-{int(month or 1):02d}-{int(day or 1):02d}T{int(hour or 0):02d}:{minute or '00'}:{second or '00'}.{digits}"
    try:
        stamp = np.datetime64(text, "us")
    except ValueError:
        return None
    if zone and zone.upper() not in ("Z", "UTC"):
        minutes = int(zone[1:3]) * 60 + int(zone[3:].lstrip(":") or 0)
        stamp -= np.timedelta64(minutes if zone[0] == "+" else -minutes, "m")
    return stamp
