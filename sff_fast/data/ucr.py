"""File names of the UCR anomaly archive, which tell where training ends and where the anomaly lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

_NAME = re.compile(r"(?:.*_)?(\d+)_(\d+)_(\d+)\.[A-Za-z.]+")


@dataclass(frozen=True)
class Labels:
    """Where the normal part of a series ends, and which rows are the anomaly; rows are counted from 0.

    Args:
        train_end: The row after the last of the part without anomalies.
        begin: The anomaly's first row.
        end: The row after its last.
    """

    train_end: int
    begin: int
    end: int


def labels_of(path: Path) -> Labels:
    """Read ``<anything>_<train end>_<anomaly begin>_<anomaly end>.<ending>``.

    The archive counts rows from 1 and includes both ends of the anomaly.

    Args:
        path: A file of the archive; only its name is looked at.

    Raises:
        DataError: The name is of another form, or the anomaly does not come after the train part.

    Source: Wu & Keogh, "Current time series anomaly detection benchmarks are flawed and are creating the illusion of
        progress", TKDE 2021; the archive's own description.
    """
    match = _NAME.fullmatch(path.name)
    expected = "expected <name>_<train end>_<anomaly begin>_<anomaly end>.txt, as in the UCR anomaly archive"
    if match is None:
        raise DataError(f"{str(path)!r}: {expected}; rename the file so")
    train_end, first, last = (int(number) for number in match.groups())
    if not 0 < train_end < first <= last:
        raise DataError(
            f"{str(path)!r}: {expected} with train end < begin <= end, got {train_end}, {first} and {last}; rename the file"
        )
    return Labels(train_end, first - 1, last)
