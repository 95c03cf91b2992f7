"""A table split, standardised and cut into windows for forecasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ArgumentError, DataError
from . import validate
from .scaler import Scaler
from .split import Borders, parse_split, split_borders
from .table import Table
from .windows import WindowSet


class ForecastData:
    """The train, validation and test windows of a table.

    ``train_fraction`` keeps ``max(1, int(n * f))`` of the n train windows, evenly spaced over the whole train part and
    all channels: the few-shot protocol of the Timer code base (``subset_rand_ratio`` in
    data_provider/data_loader_benchmark.py), which takes every ``int(1 // f)``-th window. That rule leaves out the end of
    the train part when 1/f is not a whole number in floating point (for 0.1 it takes every 9th) and all but the first
    channels for f above one half; here window k is number ``k * n // m`` of n, which is the same where 1/f is whole and
    covers everything otherwise. (Other code bases keep the first rows of the train part instead, so compare results
    only within one protocol.) The scaler is always fitted on the full train part, as in that code base, so that errors
    of different fractions are on one scale.

    Args:
        table: See :func:`read_table`.
        split: ``"ett-hour"``, ``"ett-minute"`` or shares such as ``"0.7,0.1,0.2"``.
        context_length: Rows of context.
        prediction_length: Rows of horizon.
        stride: Rows between the starts of neighbouring windows, in all three parts. Default 1: all windows.
        channel_independent: Whether a window holds one channel (default) or all of them.
        train_fraction: Share of the train windows to use, above 0 up to 1. Default 1.

    Raises:
        DataError: The table is too short, or a channel is constant in the train part (with ``table.drop`` such channels
            are left out), or a value is too far off to be standardised in float32.
        ArgumentError: A length, the split or the fraction is invalid.
    """

    task = "forecast"
    _least_horizon = 1

    def __init__(
        self,
        table: Table,
        split: str | Sequence[float],
        context_length: int,
        prediction_length: int,
        stride: int = 1,
        channel_independent: bool = True,
        train_fraction: float = 1.0,
    ) -> None:
        validate.check_positive("stride", stride)
        validate.check_positive("prediction_length", prediction_length, self._least_horizon)
        if isinstance(train_fraction, bool) or not isinstance(train_fraction, (int, float)) or not 0 < train_fraction <= 1:
            raise ArgumentError(f"train_fraction must be above 0 and at most 1, got {train_fraction!r}")
        self.split: str | tuple[float, float, float] = parse_split(split)
        self.borders: Borders = split_borders(len(table), split, context_length, prediction_length, table.source)
        self.table: Table = without_constants(table, self.borders.train)
        self.context_length = context_length
        self.prediction_length = prediction_length
        self.stride = stride
        self.channel_independent = channel_independent
        self.train_fraction: float = float(train_fraction)
        self.scaler: Scaler = Scaler.fit(self.table.values[slice(*self.borders.train)])
        series = torch.from_numpy(standardised(self.table, self.scaler))
        self._series = series.T.contiguous() if channel_independent else series
        self.val: WindowSet = self._windows(self.borders.val)
        self.test: WindowSet = self._windows(self.borders.test)
        everything = self._windows(self.borders.train)
        self.train: WindowSet = everything
        if train_fraction < 1:
            self.train = self._windows(self.borders.train, max(1, int(len(everything) * train_fraction)))

    @property
    def columns(self) -> list[str]:
        """Names of the channels that are used."""
        return self.table.columns

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Nothing about a forecasting window changes from epoch to epoch."""

    @property
    def series(self) -> torch.Tensor:
        """The standardised series that the windows are cut from, float32 [T, C] (a view)."""
        return self._series.T if self.channel_independent else self._series

    def describe(self) -> dict[str, Any]:
        """The data, how it was split and what was done to it, for ``metrics.json``."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {
            **self.table.describe(),
            "split": self.split if isinstance(self.split, str) else ",".join(f"{share:g}" for share in self.split),
            "borders": {part: list(windows.border) for part, windows in parts.items()},
            "context_length": self.context_length,
            "prediction_length": self.prediction_length,
            "stride": self.stride,
            "channel_independent": self.channel_independent,
            "train_fraction": self.train_fraction,
            "windows": {part: len(windows) for part, windows in parts.items()},
            "scaler": self.scaler.to_json(),
        }

    def _windows(self, border: tuple[int, int], subset: int | None = None) -> WindowSet:
        return WindowSet(
            self._series,
            border,
            self.context_length,
            self.prediction_length,
            self.stride,
            self.channel_independent,
            subset,
        )


def without_constants(table: Table, border: tuple[int, int], part: str = "the train part") -> Table:
    """Refuse channels that are constant where they are standardised, or leave them out where the table was read with ``drop``.

    Args:
        table: The table.
        border: First row and the row after the last of those that standardise the channels.
        part: What messages call these rows.

    Raises:
        DataError: A channel is constant there, and the table was not read with ``drop``, or all of them are.
    """
    train = table.values[slice(*border)]
    constant = validate.constant_columns(train)
    if not len(constant):
        return table
    if not table.drop:
        validate.check_not_constant(train, table.columns, table.source, part)
    keep = [i for i in range(len(table.columns)) if i not in set(constant.tolist())]
    if not keep:
        raise DataError(f"{table.source!r}: every channel is constant in {part}, so there is nothing to learn")
    names = ", ".join(repr(table.columns[i]) for i in constant)
    what = f"the channel {names} is" if len(constant) == 1 else f"the channels {names} are"
    return table.select(keep, f"{what} constant in {part} and {validate.were(len(constant))} left out")


def standardised(table: Table, scaler: Scaler) -> np.ndarray:
    """The values, standardised, float32 [T, C]; a value that float32 cannot hold is refused by name."""
    scaled = scaler.transform(table.values)
    limit = np.finfo(np.float32).max
    bad = np.argwhere(~(np.abs(scaled) <= limit))
    if len(bad):
        row, index = bad[0]
        raise DataError(
            f"{table.source!r}, row {row + 1}, column {table.columns[index]!r}: {table.values[row, index]:g} is too far "
            f"from the train part (mean {scaler.mean[index]:g}, std {scaler.std[index]:g}) for float32; correct it"
        )
    return scaled.astype(np.float32)
