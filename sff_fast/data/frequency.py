"""Infer the sampling step of a table from its time stamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DAY = 86_400_000_000
_UNITS = (("W", 7 * _DAY), ("D", _DAY), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000), ("ms", 1_000))
_MONTHS = {1: "M", 3: "Q", 12: "Y"}


@dataclass(frozen=True)
class Frequency:
    """The step between two rows.

    Args:
        kind: ``"fixed"`` (count microseconds), ``"months"`` (count calendar months) or ``"business"`` (Monday to
            Friday, count days).
        count: How many of them make a step.
        last_day: For months: whether the rows lie on the last day of a month.
    """

    kind: str
    count: int
    last_day: bool = False

    def __str__(self) -> str:
        if self.kind == "business":
            return "B"
        if self.kind == "months":
            return _MONTHS.get(self.count, f"{self.count}M")
        for name, size in _UNITS:
            if self.count % size == 0:
                return name if self.count == size else f"{self.count // size}{name}"
        return f"{self.count}us"

    def positions(self, timestamps: np.ndarray) -> np.ndarray | None:
        """Number of steps from the first row to each row, or None when a row lies between two steps."""
        if self.kind == "fixed":
            since = (timestamps - timestamps[0]).astype(np.int64)
            return since // self.count if not (since % self.count).any() else None
        if self.kind == "business":
            days = timestamps.astype("datetime64[D]")
            return np.busday_count(days[0], days).astype(np.int64)
        months = timestamps.astype("datetime64[M]").astype(np.int64)
        since = months - months[0]
        return since // self.count if not (since % self.count).any() else None

    def grid(self, timestamps: np.ndarray) -> np.ndarray:
        """All time stamps from the first to the last, one for each step."""
        positions = self.positions(timestamps)
        assert positions is not None
        steps = np.arange(positions[-1] + 1)
        first = timestamps[0]
        if self.kind == "fixed":
            return first + (steps * self.count).astype("timedelta64[us]")
        if self.kind == "business":
            day = first.astype("datetime64[D]")
            return np.busday_offset(day, steps).astype("datetime64[us]") + (first - day.astype("datetime64[us]"))
        month = first.astype("datetime64[M]")
        starts = month + steps * self.count
        within = first - month.astype("datetime64[us]")
        if self.last_day:
            clock = first - first.astype("datetime64[D]").astype("datetime64[us]")
            return ((starts + 1).astype("datetime64[D]") - 1).astype("datetime64[us]") + clock
        return starts.astype("datetime64[us]") + within


def infer_frequency(timestamps: np.ndarray) -> Frequency | None:
    """Find the step of strictly increasing time stamps.

    The most common difference is the step when every difference is a multiple of it, so gaps do not hide it. Months,
    quarters, years and working days are recognised too.

    Args:
        timestamps: ``datetime64[us]``, at least two.

    Returns:
        The step, or None when the time stamps are irregular.
    """
    differences = np.diff(timestamps).astype(np.int64)
    values, counts = np.unique(differences, return_counts=True)
    # The smallest of the most common ones, so that two rows either side of one gap do not make the gap the step.
    step = Frequency("fixed", int(values[np.argmax(counts)]))
    if len(values) == 1 and values[0] < 28 * _DAY:
        return step
    return _months(timestamps) or _business(timestamps) or (step if step.positions(timestamps) is not None else None)


def _months(timestamps: np.ndarray) -> Frequency | None:
    if len(timestamps) < 3:
        return None
    month = timestamps.astype("datetime64[M]")
    within = timestamps - month.astype("datetime64[us]")
    length = (month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")
    day = within.astype("timedelta64[D]")
    clock = within - day
    last_day = bool((length - day == np.timedelta64(1, "D")).all()) and len(np.unique(clock)) == 1
    if len(np.unique(within)) != 1 and not last_day:
        return None
    differences = np.diff(month).astype(np.int64)
    values, counts = np.unique(differences, return_counts=True)
    step = Frequency("months", int(values[np.argmax(counts)]), last_day)
    return step if values[0] > 0 and step.positions(timestamps) is not None else None


def _business(timestamps: np.ndarray) -> Frequency | None:
    days = timestamps.astype("datetime64[D]")
    if len(timestamps) < 6 or len(np.unique(timestamps - days.astype("datetime64[us]"))) != 1:
        return None
    if not np.is_busday(days).all() or len(np.unique(days)) != len(days):
        return None
    steps = np.busday_count(days[:-1], days[1:])
    # Without a Friday followed by a Monday a run of weekdays is daily data.
    weekend = (np.diff(days).astype(np.int64) == 3) & (steps == 1)
    return Frequency("business", 1) if (steps == 1).mean() > 0.5 and weekend.any() else None
