"""What a naive forecast gets wrong in the train part: the scale of MASE."""

from __future__ import annotations

import re

import numpy as np

_SEASONS = {"s": 3600, "min": 1440, "h": 24, "D": 1, "W": 1, "B": 5, "M": 12, "Q": 4, "Y": 1}
_FREQUENCY = re.compile(r"(\d*)([A-Za-z]+)")


def season_of(frequency: str | None) -> int:
    """Rows in a season: a day of hourly or shorter steps, a year of months or quarters, a working week; else 1.

    Args:
        frequency: As a table has it, such as ``"h"``, ``"15min"`` or ``"M"``; None where it is unknown.

    Returns:
        The season; 1 too where a step of several units does not divide it.

    Source: the seasons of the M4 competition (Makridakis et al. 2020, table 1) and those that gluonts gives shorter steps.
    """
    match = _FREQUENCY.fullmatch(frequency or "")
    if match is None or match[2] not in _SEASONS:
        return 1
    season, rest = divmod(_SEASONS[match[2]], int(match[1] or 1))
    return season if season > 0 and rest == 0 else 1


def naive_errors(train: np.ndarray, season: int) -> np.ndarray:
    """Mean absolute error of repeating the value of one season before.

    Args:
        train: float64 [T, C], the train part.
        season: Rows in a season, m; where T is not above it, 1 takes its place.

    Returns:
        float64 [C]: the mean of ``|x[t] - x[t - m]|`` over t; NaN where there is a single row.

    Source: Hyndman & Koehler, "Another look at measures of forecast accuracy", Int. J. Forecasting 22, 2006, section 2.5.
    """
    values = np.asarray(train, dtype=np.float64)
    lag = season if len(values) > season else 1
    if len(values) <= lag:
        return np.full(values.shape[1], np.nan)
    return np.abs(values[lag:] - values[:-lag]).mean(axis=0)
