"""The files that come with the package: hourly weather of three airports and a small pre-trained Timer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sff_fast.data import Table, read_table

_ASSETS = Path(__file__).resolve().parent / "assets"


def weather_path() -> Path:
    """The weather as a gzipped CSV file, for ``--data``; what it holds and where it is from: ``assets/README.md``."""
    return _ASSETS / "nyc-weather-2013.csv.gz"


def model_path() -> Path:
    """The folder of the small Timer (``model.safetensors``, ``config.json``), for ``sff_fast.load("timer", ...)``."""
    return _ASSETS / "timer-small"


def weather() -> Table:
    """Hourly weather of the New York airports EWR, JFK and LGA in 2013.

    Returns:
        A table of 8730 hours in UTC and 18 channels, ``EWR_temp`` to ``LGA_visib``: temperature and dew point in
        Fahrenheit, relative humidity in percent, wind speed in miles an hour, pressure at sea level in millibar,
        visibility in miles.

    Raises:
        DataError: The file is missing or damaged.
    """
    return replace(read_table(weather_path()), source=weather_path().name)
