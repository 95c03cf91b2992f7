"""Read a CSV file with the standard library: exact line numbers, nothing guessed about the values."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from .dates import looks_like_date
from .raw import MISSING, RawTable

_SEPARATORS = ",;\t|"
_CHUNK_ROWS = 8192


def read_csv(path: Path) -> RawTable:
    """Read a CSV file in wide format.

    The separator (comma, semicolon, tab or bar) is the one that the first line uses most. A first line of numbers means
    that there is no header; the columns are then named ``column_1``, ``column_2``, … Blank lines are skipped, except
    that in a file of one column a blank line between values is a missing value.

    Args:
        path: A file in UTF-8, or in UTF-16 with a byte-order mark; ``.gz`` is decompressed.

    Returns:
        The columns: float64 where every value is a number or missing, else text.

    Raises:
        DataError: The file cannot be read or decoded, is empty, or a line has too many or too few values.
    """
    text = _read_text(path)
    records = _records(path, text)
    first = next(records, None)
    if first is None:
        raise DataError(f"{str(path)!r} is empty: expected a header line and a line for each time step")
    names = [name.strip() for name in first[1]]
    notes = []
    numbered = len(names) > 1 and names in ([str(i) for i in range(len(names))], ["", *map(str, range(len(names) - 1))])
    if numbered:
        notes.append("the first line counts the columns and was taken for a header")
    elif all(_is_value(name) for name in names) and any(name.lower() not in MISSING for name in names):
        records = itertools.chain([first], records)
        names = [""] * len(names)
        notes.append("the file has no header line; columns are named by their number")
    names = [name or f"column_{number}" for number, name in enumerate(names, 1)]
    _check_names(path, names)
    builders = [_Column(path, name) for name in names]
    lines: list[int] = []
    while chunk := list(itertools.islice(records, _CHUNK_ROWS)):
        for line, values in chunk:
            if len(values) != len(names):
                raise DataError(
                    f"{str(path)!r}, line {line}: expected {len(names)} values as in the header, got {len(values)}; "
                    "check separators and quotes in that line"
                )
            lines.append(line)
        for builder, values in zip(builders, zip(*(values for _, values in chunk))):
            builder.extend(values, lines[-len(chunk) :])
    if not lines:
        raise DataError(f"{str(path)!r} has a header line and no data: expected a line for each time step")
    return RawTable(str(path), names, [builder.finish() for builder in builders], np.asarray(lines), notes)


class _Column:
    """Collects a column, as numbers for as long as its values are numbers."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._numbers: list[np.ndarray] = []
        self._text: list[str | None] | None = None

    def extend(self, values: tuple[str, ...], lines: list[int]) -> None:
        if self._text is not None:
            self._text.extend(_text_or_none(value) for value in values)
            return
        try:
            self._numbers.append(numbers(values))
            return
        except ValueError as error:
            bad = error
        if any(np.isfinite(part).any() for part in self._numbers):
            row = next(row for row, value in enumerate(values) if not is_number(value))
            raise DataError(
                f"{str(self._path)!r}, line {lines[row]}, column {self._name!r}: {expected_number(values[row])}"
            ) from bad
        self._text = [None] * sum(map(len, self._numbers)) + [_text_or_none(value) for value in values]

    def finish(self) -> np.ndarray:
        if self._text is None:
            return np.concatenate(self._numbers)
        return np.array(self._text, dtype=object)


def numbers(values: tuple[str, ...] | list[str]) -> np.ndarray:
    """Convert texts to float64, missing ones to NaN; ValueError when one of them is no number."""
    try:
        result = np.array(list(map(float, values)), dtype=np.float64)
    except ValueError:
        result = np.array([float("nan") if value.strip().lower() in MISSING else float(value) for value in values])
    # Python's float() takes 1_000, which no table means as a number.
    if "_" in "".join(values):
        raise ValueError("underscore in a number")
    return result


def is_number(value: str) -> bool:
    """Whether a text is a number, or stands for a missing one."""
    try:
        numbers([value])
    except ValueError:
        return False
    return True


def expected_number(value: str) -> str:
    """Say what is wrong with a text that should be a number."""
    shown = value if len(value) <= 40 else value[:37] + "..."
    if "," in value and is_number(value.replace(",", ".", 1)):
        return f"expected a number, got {shown!r}; write the decimal comma as a point"
    if "," in value and is_number(value.replace(",", "")):
        return f"expected a number, got {shown!r}; write it without separators for the thousands"
    return f"expected a number, got {shown!r}; correct it, or leave the value empty and choose how to fill gaps"


def _text_or_none(value: str) -> str | None:
    stripped = value.strip()
    return None if stripped.lower() in MISSING else stripped


def _is_value(text: str) -> bool:
    return is_number(text) or looks_like_date(text)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is no complete gzip file ({error}): copy or compress it again") from error
    except OSError as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        raise DataError(f"cannot read the data file {str(path)!r}: {reason}; check the path") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        kind = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise DataError(f"{str(path)!r}, line {line}: this is not {kind} text; save the file as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{str(path)!r}, line {line}: holds a null character, so it is no CSV file; check the path")
    return text


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The records with the 1-based line on which each begins."""
    text = text.rstrip("\r\n")
    first_line = next((line for line in io.StringIO(text) if line.strip()), "")
    separator = max(_SEPARATORS, key=_outside_quotes(first_line).count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    line = 1
    started: int | None = None
    try:
        for values in reader:
            if started is None and any(value.strip() for value in values):
                started = len(values)
            if started == 1 and not values:
                yield line, [""]
            elif len(values) == started or any(value.strip() for value in values):
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{str(path)!r}, line {line}: {error}; check the quotes in that line") from error


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _check_names(path: Path, names: list[str]) -> None:
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if name in seen:
            raise DataError(f"{str(path)!r}: the columns {seen[name]} and {number} are both named {name!r}; rename one of them")
        seen[name] = number
