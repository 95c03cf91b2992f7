"""Borders of the train, validation and test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ArgumentError, DataError
from . import validate

_DAYS = 30  # the standard ETT split counts months of 30 days
_SMALLEST_SHARE = 0.0001
_ETT = {"ett-hour": 24, "ett-minute": 24 * 4}


@dataclass(frozen=True)
class Borders:
    """First row and row after the last of each part; validation and test begin one context length early."""

    train: tuple[int, int]
    val: tuple[int, int]
    test: tuple[int, int]


def parse_split(split: str | Sequence[float]) -> str | tuple[float, float, float]:
    """Check a split: ``"ett-hour"``, ``"ett-minute"``, or three shares as ``"0.7,0.1,0.2"`` or a sequence.

    Raises:
        ArgumentError: It is none of these, or the shares are not positive or do not add up to 1.
    """
    expected = "split must be ett-hour, ett-minute or three shares such as 0.7,0.1,0.2"
    if isinstance(split, str):
        if split in _ETT:
            return split
        parts: Sequence[object] = split.split(",")
    elif isinstance(split, Sequence):
        parts = split
    else:
        raise ArgumentError(f"{expected}, got {split!r}")
    try:
        shares = tuple(float(part) for part in parts)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{expected}, got {split!r}") from error
    if len(shares) != 3:
        raise ArgumentError(f"{expected}, got {split!r} ({len(shares)} parts)")
    if not all(_SMALLEST_SHARE <= share < 1 for share in shares):
        raise ArgumentError(
            f"the shares of train, val and test must lie between 0 and 1 (at least {_SMALLEST_SHARE}), got {split!r}"
        )
    if abs(sum(shares) - 1) > 1e-6:
        raise ArgumentError(f"the shares of train, val and test must add up to 1, got {split!r} ({sum(shares):g})")
    return shares


def split_borders(
    n_rows: int,
    split: str | Sequence[float],
    context_length: int,
    prediction_length: int = 1,
    source: str = "the table",
) -> Borders:
    """Borders of the parts as the Time-Series-Library and Timer draw them.

    ``ett-hour``: 12, 4 and 4 months of 30 days of hourly rows (8640, 2880, 2880); ``ett-minute``: the same months of
    rows every 15 minutes; rows after them are not used. Shares (a, b, c): ``int(n_rows * a)`` rows train,
    ``int(n_rows * c)`` rows test at the end, the rest validation. Validation and test are extended backwards by
    ``context_length``, so that their first target row is their own first row.

    Args:
        n_rows: Rows of the table.
        split: See :func:`parse_split`.
        context_length: Rows of the context.
        prediction_length: Rows of the horizon, to check that each part holds a window; 0 for windows without one, of
            which the first of validation and test lies before the part. Default 1.
        source: The table's name in messages.

    Returns:
        The borders, as absolute rows.

    Raises:
        DataError: A part is too short for one window; says how many rows are needed.
        ArgumentError: The split or a length is invalid.

    Source: https://github.com/thuml/Time-Series-Library and https://github.com/thuml/Large-Time-Series-Model,
        data_provider/ (``border1s``, ``border2s``).
    """
    validate.check_positive("context_length", context_length)
    validate.check_positive("prediction_length", prediction_length, 0)
    parsed = parse_split(split)
    if isinstance(parsed, str) and n_rows < _part_rows(n_rows, parsed)[3]:
        raise DataError(
            f"{source!r}: the split {parsed} needs {_part_rows(n_rows, parsed)[3]} rows (20 months of 30 days) and the "
            f"table has {n_rows}: use a longer table, or shares such as --split 0.7,0.1,0.2"
        )
    borders = _borders(n_rows, parsed, context_length)
    needed = None if isinstance(parsed, str) else _needed_rows(parsed, context_length, prediction_length)
    validate.check_long_enough(borders, needed, n_rows, context_length, prediction_length, source)
    return borders


def _part_rows(n_rows: int, split: str | tuple[float, float, float]) -> tuple[int, int, int, int]:
    """Rows of train, val and test without the extension, and of all of them."""
    if isinstance(split, str):
        month = _DAYS * _ETT[split]
        return 12 * month, 4 * month, 4 * month, 20 * month
    train, test = int(n_rows * split[0]), int(n_rows * split[2])
    return train, n_rows - train - test, test, n_rows


def _borders(n_rows: int, split: str | tuple[float, float, float], context_length: int) -> Borders:
    train, val, test, end = _part_rows(n_rows, split)
    return Borders((0, train), (train - context_length, train + val), (end - test - context_length, end))


def _needed_rows(split: tuple[float, float, float], context_length: int, prediction_length: int) -> int:
    """The fewest rows with which every part holds a window."""
    train, val, test = split
    # Rounding gives the validation part up to two rows more than its share, so the search begins below P / val.
    needed = int(max((context_length + prediction_length) / train, (prediction_length - 2) / val, prediction_length / test))
    while True:
        n_train, n_val, n_test, _ = _part_rows(needed, split)
        if n_train >= context_length + prediction_length and min(n_val, n_test) >= max(prediction_length, 1):
            return needed
        needed += 1
