"""A series with one labelled anomaly, standardised and cut into windows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ArgumentError, DataError
from . import validate
from .forecast import standardised, without_constants
from .scaler import Scaler
from .split import Borders
from .table import Table, read_table
from .ucr import Labels, labels_of


@dataclass(frozen=True)
class SeriesBatch:
    """Some windows, standardised.

    Args:
        values: float32 [B, L, C].
        index: int64 [B], the windows' numbers in their set.
        start: int64 [B], the first row of each window in the table.
        scored: int64 [B, 2], the rows of each window whose errors count: the first, and the one after the last, counted
            from the window's own beginning.
    """

    values: torch.Tensor
    index: torch.Tensor
    start: torch.Tensor
    scored: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> SeriesBatch:
        """The same windows on a device; the numbers stay on the CPU."""
        return SeriesBatch(self.values.to(device), self.index, self.start, self.scored)


class SeriesWindows:
    """Windows over all channels of a series.

    Args:
        series: float32 [T, C].
        border: First row and row after the last of the rows that are scored.
        length: Rows in a window.
        starts: int64 [N], first row of each window.
        scored: int64 [N, 2]; see :class:`SeriesBatch`.
    """

    def __init__(
        self, series: torch.Tensor, border: tuple[int, int], length: int, starts: torch.Tensor, scored: torch.Tensor
    ) -> None:
        self.border = border
        self._starts, self._scored = starts, scored
        width = series.shape[1]
        self._width, self._length = width, length
        self._rows = series.reshape(-1).unfold(0, length * width, width)

    def __len__(self) -> int:
        return len(self._starts)

    def positions(self, indices: torch.Tensor) -> tuple[torch.Tensor, None]:
        """First row of each window; windows have all channels."""
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(self)):
            raise ArgumentError(f"indices must lie from 0 to {len(self) - 1}, got {int(indices.min())} to {int(indices.max())}")
        return self._starts[indices], None

    def batch(self, indices: torch.Tensor) -> SeriesBatch:
        """Gather windows.

        Args:
            indices: int64 [B], each from 0 to ``len(self) - 1``, in any order.

        Returns:
            The windows, in new contiguous memory.
        """
        start = self.positions(indices)[0]
        values = self._rows.index_select(0, start).view(len(start), self._length, self._width)
        return SeriesBatch(values, indices.to(torch.int64), start, self._scored[indices])


class AnomalyData:
    """The train, validation and test windows of a series whose first part is normal.

    Training takes every window of the train rows. Validation (the last ``val_share`` of the normal part) and test (all that
    follows it) are covered by windows so that every row is scored once, with at least ``segment_length`` rows of the window
    before it. The rows of the test part are put together to segments of ``segment_length``, counted from its beginning; less
    than half of one at the end joins the last.

    Source: the protocol of Liu et al., "Timer", ICML 2024, arXiv:2402.02368, section 4.3 (windows of 768 rows, segments of
    96); its code has no validation part, and leaves out what does not fill a last window.

    Args:
        table: See :func:`read_table`.
        train_end: The row after the last of the normal part.
        anomaly: The anomaly's first row and the row after its last.
        context_length: Rows of a window, more than ``segment_length``. Default 768.
        stride: Rows between the starts of neighbouring train windows. Default 1.
        train_fraction: Share of the train windows to use, evenly spaced. Default 1.
        segment_length: Rows in a segment. Default 96.
        val_share: Share of the normal part that is validation, above 0 and below 1. Default 0.1.

    Raises:
        DataError: The series is too short, a channel is constant in the train part, or the anomaly lies outside.
        ArgumentError: A length or share is invalid.
    """

    task = "anomaly"
    prediction_length = 0
    channel_independent = False

    def __init__(
        self,
        table: Table,
        train_end: int,
        anomaly: tuple[int, int],
        context_length: int = 768,
        stride: int = 1,
        train_fraction: float = 1.0,
        *,
        segment_length: int = 96,
        val_share: float = 0.1,
    ) -> None:
        for name, value in (("context_length", context_length), ("stride", stride), ("segment_length", segment_length)):
            validate.check_positive(name, value)
        for name, value, most in (("train_fraction", train_fraction, 1.0), ("val_share", val_share, 0.9)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                raise ArgumentError(f"{name} must be above 0 and at most {most:g}, got {value!r}")
        if context_length <= segment_length:
            raise ArgumentError(f"context_length must be above segment_length ({segment_length}), got {context_length}")
        labels = Labels(train_end, *anomaly)
        if not 0 < labels.train_end <= labels.begin < labels.end <= len(table):
            raise DataError(
                f"{table.source!r}: the anomaly must lie after the normal part and within the {len(table)} rows, got rows "
                f"{labels.begin} to {labels.end} after {labels.train_end} normal ones"
            )
        val_rows = max(1, int(labels.train_end * val_share))
        train_rows = labels.train_end - val_rows
        if train_rows < context_length:
            raise DataError(
                f"{table.source!r}: too short: the normal part has {labels.train_end} rows, {val_rows} of them for validation, "
                f"one window needs {context_length}; use a shorter context_length"
            )
        self.table: Table = without_constants(table, (0, train_rows))
        self.labels = labels
        self.context_length = context_length
        self.segment_length = segment_length
        self.stride = stride
        self.train_fraction: float = float(train_fraction)
        self.val_share: float = float(val_share)
        self.borders: Borders = Borders((0, train_rows), (train_rows, labels.train_end), (labels.train_end, len(table)))
        self.scaler: Scaler = Scaler.fit(self.table.values[:train_rows])
        self.series: torch.Tensor = torch.from_numpy(standardised(self.table, self.scaler))
        self.train: SeriesWindows = self._train_windows()
        self.val: SeriesWindows = self._covering(self.borders.val)
        self.test: SeriesWindows = self._covering(self.borders.test)

    @classmethod
    def from_ucr(cls, path: str | os.PathLike[str], *args: Any, fill: str | None = None, **options: Any) -> AnomalyData:
        """Read a file of the UCR anomaly archive, whose name tells where training ends and where the anomaly lies.

        Args:
            path: The file, one value a line.
            *args: ``context_length`` and what follows it.
            fill: As for :func:`read_table`. Rows are never left out: that would move the labels.
            **options: The other arguments.

        Raises:
            DataError: The name or the file is not of the archive's form.
        """
        labels = labels_of(Path(path))
        return cls(read_table(path, fill=fill), labels.train_end, (labels.begin, labels.end), *args, **options)

    @property
    def columns(self) -> list[str]:
        """Names of the channels that are used."""
        return self.table.columns

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Nothing about a window changes from epoch to epoch."""

    def describe(self) -> dict[str, Any]:
        """The data, how it was split and what was done to it, for ``metrics.json``."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {
            **self.table.describe(),
            "task": self.task,
            "train_end": self.labels.train_end,
            "anomaly": [self.labels.begin, self.labels.end],
            "borders": {part: list(windows.border) for part, windows in parts.items()},
            "context_length": self.context_length,
            "prediction_length": self.prediction_length,
            "segment_length": self.segment_length,
            "stride": self.stride,
            "channel_independent": self.channel_independent,
            "train_fraction": self.train_fraction,
            "val_share": self.val_share,
            "windows": {part: len(windows) for part, windows in parts.items()},
            "scaler": self.scaler.to_json(),
        }

    def _train_windows(self) -> SeriesWindows:
        end = self.borders.train[1]
        starts = torch.arange(0, end - self.context_length + 1, self.stride)
        kept = max(1, int(len(starts) * self.train_fraction))
        starts = starts[torch.arange(kept) * len(starts) // kept]
        scored = torch.tensor([0, self.context_length]).expand(len(starts), 2)
        return SeriesWindows(self.series, self.borders.train, self.context_length, starts, scored)

    def _covering(self, border: tuple[int, int]) -> SeriesWindows:
        """Windows whose scored rows are those of a part, each once."""
        length = self.context_length
        starts, scored = [], []
        at, end = border
        while at < end:
            start = min(at - self.segment_length, end - length)
            until = min(start + length, end)
            starts.append(start)
            scored.append((at - start, until - start))
            at = until
        return SeriesWindows(self.series, border, length, torch.tensor(starts), torch.tensor(scored))
