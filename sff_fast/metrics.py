"""Errors of point forecasts, over all windows and with each window counted once."""

from __future__ import annotations

import math
from typing import Any

import torch

from .errors import ArgumentError, SffFastError


class NotFiniteError(SffFastError, ArithmeticError):
    """A forecast or target is NaN or infinite."""


class ForecastMetrics:
    """Accumulates squared and absolute errors for each horizon step and channel.

    Sums are float64 and compensated (Neumaier), on the CPU, so the result does not depend on the size of the batches
    beyond the last digits, and a short last batch counts as much as its windows do.

    Args:
        prediction_length: Steps of the horizon, H.
        n_channels: Channels of the data, C.
    """

    def __init__(self, prediction_length: int, n_channels: int) -> None:
        for name, value in (("prediction_length", prediction_length), ("n_channels", n_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.prediction_length = prediction_length
        self.n_channels = n_channels
        self.windows = 0
        self._counts = torch.zeros(n_channels, dtype=torch.int64)
        self._squared = _Sum(n_channels, prediction_length)
        self._absolute = _Sum(n_channels, prediction_length)

    def update(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        channel: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Add a batch of windows.

        Args:
            prediction: [B, H, C], or [B, H, 1] with ``channel``; any floating dtype and device.
            target: The same shape.
            channel: int64 [B], the channel of each window of a channel-independent batch (``Batch.channel``).
            index: int64 [B], the windows' numbers (``Batch.index``), to name one in an error. Default: counted.

        Returns:
            ``mse`` and ``mae`` of each window, float64 [B] on the CPU.

        Raises:
            NotFiniteError: A value is NaN or infinite; names the first such window. Nothing of the batch is added.
            ArgumentError: The shapes do not fit.
        """
        width = self.n_channels if channel is None else 1
        expected = [len(prediction), self.prediction_length, width]
        for name, tensor in (("prediction", prediction), ("target", target)):
            if list(tensor.shape) != expected:
                raise ArgumentError(f"{name} must have the shape {expected}, got {list(tensor.shape)}")
        if channel is not None:
            self._check_channel(channel, len(prediction))
        predicted = prediction.detach().to("cpu", torch.float64)
        wanted = target.detach().to("cpu", torch.float64)
        error = predicted - wanted
        squared = error.square()
        if not torch.isfinite(squared).all():
            self._refuse(predicted, wanted, squared, channel, index)
        self._squared.add(_by_channel(squared, channel, self.n_channels))
        absolute = error.abs()
        self._absolute.add(_by_channel(absolute, channel, self.n_channels))
        if channel is None:
            self._counts += len(prediction)
        else:
            self._counts += torch.bincount(channel.to("cpu", torch.int64), minlength=self.n_channels)
        self.windows += len(prediction)
        return {"mse": squared.mean(dim=(1, 2)), "mae": absolute.mean(dim=(1, 2))}

    def sums(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """What :meth:`add_sums` takes: sums of errors [4, C, H] with what rounding lost, windows by channel, windows."""
        parts = [part for total in (self._squared, self._absolute) for part in total.parts()]
        return torch.stack(parts), self._counts.clone(), self.windows

    def add_sums(self, errors: torch.Tensor, counts: torch.Tensor, windows: int) -> None:
        """Add what another process has accumulated (:meth:`sums`)."""
        for total, parts in ((self._squared, errors[:2]), (self._absolute, errors[2:])):
            for part in parts:
                total.add(part)
        self._counts += counts
        self.windows += windows

    @property
    def mse(self) -> float:
        """Mean squared error over all windows, horizon steps and channels."""
        return self._mean(self._squared)

    @property
    def mae(self) -> float:
        """Mean absolute error over all windows, horizon steps and channels."""
        return self._mean(self._absolute)

    @property
    def rmse(self) -> float:
        """Square root of :attr:`mse`."""
        return math.sqrt(self.mse)

    @property
    def mse_per_horizon(self) -> list[float]:
        """Mean squared error of each horizon step."""
        return self._per_horizon(self._squared)

    @property
    def mae_per_horizon(self) -> list[float]:
        """Mean absolute error of each horizon step."""
        return self._per_horizon(self._absolute)

    @property
    def mse_per_channel(self) -> list[float | None]:
        """Mean squared error of each channel; None for a channel without a window."""
        return self._per_channel(self._squared)

    @property
    def mae_per_channel(self) -> list[float | None]:
        """Mean absolute error of each channel; None for a channel without a window."""
        return self._per_channel(self._absolute)

    def to_json(self) -> dict[str, Any]:
        """All of them under their names, with the number of windows."""
        return {
            "mse": self.mse,
            "mae": self.mae,
            "rmse": self.rmse,
            "windows": self.windows,
            "mse_per_horizon": self.mse_per_horizon,
            "mae_per_horizon": self.mae_per_horizon,
            "mse_per_channel": self.mse_per_channel,
            "mae_per_channel": self.mae_per_channel,
        }

    def _mean(self, total: _Sum) -> float:
        return math.fsum(total.value().flatten().tolist()) / (self._window_channels() * self.prediction_length)

    def _per_horizon(self, total: _Sum) -> list[float]:
        return (total.value().sum(dim=0) / self._window_channels()).tolist()

    def _per_channel(self, total: _Sum) -> list[float | None]:
        self._window_channels()
        sums = total.value().sum(dim=1)
        counts = (self._counts * self.prediction_length).tolist()
        return [float(part) / count if count else None for part, count in zip(sums, counts)]

    def _window_channels(self) -> int:
        if self.windows == 0:
            raise ArgumentError("there are no errors to average: no window was added")
        return int(self._counts.sum())

    def _check_channel(self, channel: torch.Tensor, n: int) -> None:
        if channel.dtype != torch.int64 or list(channel.shape) != [n]:
            raise ArgumentError(f"channel must be int64 of shape [{n}], got {channel.dtype} {list(channel.shape)}")
        if n and (int(channel.min()) < 0 or int(channel.max()) >= self.n_channels):
            raise ArgumentError(f"channel must lie from 0 to {self.n_channels - 1}, got {channel.tolist()[:8]}")

    def _refuse(
        self,
        predicted: torch.Tensor,
        wanted: torch.Tensor,
        squared: torch.Tensor,
        channel: torch.Tensor | None,
        index: torch.Tensor | None,
    ) -> None:
        """Raise NotFiniteError for the first window with a value that cannot be averaged."""
        row, step, column = (int(i) for i in (~torch.isfinite(squared)).nonzero()[0])
        window = self.windows + row if index is None else int(index[row])
        name = column if channel is None else int(channel[row])
        where = f"window {window}, horizon step {step + 1}, channel {name}"
        value, target = float(predicted[row, step, column]), float(wanted[row, step, column])
        if not math.isfinite(target):
            raise NotFiniteError(f"the target is {target} in {where}: check the data")
        what = f"is {value}" if not math.isfinite(value) else f"({value:g}) is too large to square"
        bad = int((~torch.isfinite(squared)).flatten(1).any(dim=1).sum())
        raise NotFiniteError(
            f"the forecast {what} in {where} ({bad} of {len(predicted)} windows of this batch are not finite): "
            "the weights have diverged; lower the learning rate or use a higher precision"
        )


class _Sum:
    """A compensated float64 sum for each channel and horizon step.

    Source: Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen", 1974.
    """

    def __init__(self, n_channels: int, prediction_length: int) -> None:
        self._total = torch.zeros(n_channels, prediction_length, dtype=torch.float64)
        self._lost = torch.zeros_like(self._total)

    def add(self, part: torch.Tensor) -> None:
        total = self._total + part
        larger = torch.where(self._total.abs() >= part.abs(), self._total, part)
        smaller = torch.where(self._total.abs() >= part.abs(), part, self._total)
        self._lost += (larger - total) + smaller
        self._total = total

    def value(self) -> torch.Tensor:
        return self._total + self._lost

    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._total, self._lost


def _by_channel(errors: torch.Tensor, channel: torch.Tensor | None, n_channels: int) -> torch.Tensor:
    """Sum errors [B, H, C] over the batch, giving [channels, H]."""
    if channel is None:
        return errors.sum(dim=0).T
    result = torch.zeros(n_channels, errors.shape[1], dtype=torch.float64)
    return result.index_add_(0, channel.to("cpu"), errors[:, :, 0])
