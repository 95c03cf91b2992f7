"""Errors of point and probabilistic forecasts, over all windows and with each window counted once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import ArgumentError
from .quantile import LEVELS, distances, loss_name
from .sums import NotFiniteError, Sum, to_double


class ForecastMetrics:
    """Accumulates errors for each horizon step and channel.

    Sums are float64 and compensated (Neumaier), on the CPU, so the result does not depend on the size of the batches
    beyond the last digits, and a short last batch counts as much as its windows do. Only sums are kept.

    MSE, MAE, RMSE and CRPS are in the scale of what is given (standardised data in this package). sMAPE and the weighted
    quantile loss depend on where zero lies, so they are computed in the data's own units. MASE has no unit.

    * MASE: mean of ``|error| / s``, s the mean absolute error of the seasonal naive forecast in the train part, for each
      channel; a channel without such an error is left out. Source: Hyndman & Koehler 2006.
    * sMAPE: mean of ``2 |y - f| / (|y| + |f|)``, from 0 to 2, 0 where both are 0. Source: Makridakis et al., "The M4
      competition: 100,000 time series and 61 forecasting methods", Int. J. Forecasting 36, 2020.
    * wql: ``2 * sum of pinball losses / sum of |y|``, mean over the levels. Source: Park et al., "Learning quantile
      functions without quantile crossing for distribution-free time series forecasting", AISTATS 2022, as gluonts has it.
    * crps: of sample paths that of their empirical distribution (Gneiting & Raftery 2007, equation 21); of quantiles twice
      the mean pinball loss over the levels, which is its approximation by a sum (Gneiting & Ranjan, "Comparing density
      forecasts using threshold- and quantile-weighted scoring rules", JBES 29, 2011): compare only equal levels.

    Args:
        prediction_length: Steps of the horizon, H.
        n_channels: Channels of the data, C.
        mean: What the standardisation subtracted from each channel [C]. Default: 0.
        std: What it divided by [C]. Default: 1.
        naive: s of MASE, in the scale of what is given [C]; None leaves MASE out.
    """

    def __init__(
        self,
        prediction_length: int,
        n_channels: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        naive: Sequence[float] | None = None,
    ) -> None:
        for name, value in (("prediction_length", prediction_length), ("n_channels", n_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.prediction_length = prediction_length
        self.n_channels = n_channels
        self.windows = 0
        self._mean = self._for_channels("mean", [0.0] * n_channels if mean is None else mean)
        self._std = self._for_channels("std", [1.0] * n_channels if std is None else std)
        self._naive = None if naive is None else self._for_channels("naive", naive)
        self._counts = torch.zeros(n_channels, dtype=torch.int64)
        self._sums: dict[str, Sum] = {}
        self._levels: tuple[float, ...] = ()
        self._from_samples = False

    def update(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        channel: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        quantiles: Mapping[float, torch.Tensor] | None = None,
        samples: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Add a batch of windows.

        Args:
            prediction: [B, H, C], or [B, H, 1] with ``channel``; any floating dtype and device.
            target: The same shape.
            channel: int64 [B], the channel of each window of a channel-independent batch (``Batch.channel``).
            index: int64 [B], the windows' numbers (``Batch.index``), to name one in an error. Default: counted.
            quantiles: Level to a tensor of the same shape; the same levels in every batch.
            samples: [B, S, H, C], sample paths.

        Returns:
            ``mse`` and ``mae`` of each window, float64 [B] on the CPU.

        Raises:
            NotFiniteError: A value is NaN or infinite; names the first such window. Nothing of the batch is added.
            ArgumentError: The shapes do not fit.
        """
        width = self.n_channels if channel is None else 1
        expected = [len(prediction), self.prediction_length, width]
        given = {"prediction": prediction, "target": target}
        given.update({f"quantiles[{level}]": values for level, values in (quantiles or {}).items()})
        for name, tensor in given.items():
            if list(tensor.shape) != expected:
                raise ArgumentError(f"{name} must have the shape {expected}, got {list(tensor.shape)}")
        if samples is not None and (samples.dim() != 4 or [samples.shape[0], *samples.shape[2:]] != expected):
            wanted = f"[{expected[0]}, samples, {expected[1]}, {expected[2]}]"
            raise ArgumentError(f"samples must have the shape {wanted}, got {list(samples.shape)}")
        if channel is not None:
            self._check_channel(channel, len(prediction))
        levels = tuple(sorted(quantiles or (LEVELS if samples is not None else ())))
        if self.windows and levels != self._levels:
            raise ArgumentError(f"quantiles must have the levels {list(self._levels)} of the first batch, got {list(levels)}")
        predicted, wanted = to_double(prediction), to_double(target)
        error = predicted - wanted
        squared = error.square()
        if not torch.isfinite(squared).all():
            self._refuse(predicted, wanted, squared, channel, index)
        losses = distances(wanted, quantiles, samples, levels)
        for name, values in losses.items():
            if not torch.isfinite(values).all():
                self._refuse_distribution(name, values, channel, index)
        mean, std = (self._row(values, channel) for values in (self._mean, self._std))
        absolute = error.abs()
        errors = {"mse": squared.mean(dim=(1, 2)), "mae": absolute.mean(dim=(1, 2))}
        if len(prediction) == 0:
            return errors
        actual, forecast = wanted * std + mean, predicted * std + mean
        size = actual.abs() + forecast.abs()
        ratio = 2 * (actual - forecast).abs() / size.where(size > 0, 1.0)
        parts = {"squared": squared, "absolute": absolute, "ratio": ratio, "magnitude": actual.abs(), **losses}
        for name, values in parts.items():
            total = self._sums.setdefault(name, Sum(self.n_channels, self.prediction_length))
            total.add(_by_channel(values, channel, self.n_channels))
        if channel is None:
            self._counts += len(prediction)
        else:
            self._counts += torch.bincount(channel.to("cpu", torch.int64), minlength=self.n_channels)
        self.windows += len(prediction)
        self._levels, self._from_samples = levels, samples is not None
        return errors

    # --- over everything --------------------------------------------------------------------------------------------

    @property
    def mse(self) -> float:
        """Mean squared error over all windows, horizon steps and channels."""
        return self._mean_of("squared")

    @property
    def mae(self) -> float:
        """Mean absolute error over all windows, horizon steps and channels."""
        return self._mean_of("absolute")

    @property
    def rmse(self) -> float:
        """Square root of :attr:`mse`."""
        return math.sqrt(self.mse)

    def to_json(self) -> dict[str, Any]:
        """All of them under their names, each also ``_per_horizon`` and ``_per_channel``, with the number of windows."""
        result: dict[str, Any] = {"mse": self.mse, "mae": self.mae, "rmse": self.rmse}
        details = {"mse": "squared", "mae": "absolute", "smape": "ratio", "crps": "crps"}
        if self._naive is not None:
            result["mase"], by_horizon, by_channel = self._scaled()
            result.update({"mase_per_horizon": by_horizon, "mase_per_channel": by_channel})
        result["smape"] = self._mean_of("ratio")
        if self._levels:
            result["wql"], by_horizon, by_channel = self._weighted(self._levels)
            result.update({"wql_per_horizon": by_horizon, "wql_per_channel": by_channel})
            result["wql_per_level"] = {f"{level:g}": self._weighted([level])[0] for level in self._levels}
            result["crps"] = self._mean_of("crps")
            result["crps_of"] = "samples" if self._from_samples else f"{len(self._levels)} quantiles"
        result["windows"] = self.windows
        for name, key in details.items():
            if name in result:
                result[f"{name}_per_horizon"] = self._per_horizon(key)
                result[f"{name}_per_channel"] = self._per_channel(key)
        result["rmse_per_horizon"] = [math.sqrt(value) for value in result["mse_per_horizon"]]
        result["rmse_per_channel"] = [None if value is None else math.sqrt(value) for value in result["mse_per_channel"]]
        return result

    # --- inside -----------------------------------------------------------------------------------------------------

    def _for_channels(self, name: str, values: Sequence[float]) -> torch.Tensor:
        tensor = torch.as_tensor(values, dtype=torch.float64)
        if list(tensor.shape) != [self.n_channels]:
            raise ArgumentError(
                f"{name} must have one number for each of the {self.n_channels} channels, got {list(tensor.shape)}"
            )
        return tensor

    def _row(self, values: torch.Tensor, channel: torch.Tensor | None) -> torch.Tensor:
        """Numbers by channel in the shape of a batch."""
        return values if channel is None else values[channel.to("cpu")].view(-1, 1, 1)

    def _value(self, name: str) -> torch.Tensor:
        self._window_channels()
        return self._sums[name].value()

    def _mean_of(self, name: str) -> float:
        count = self._window_channels() * self.prediction_length
        return math.fsum(self._value(name).flatten().tolist()) / count

    def _per_horizon(self, name: str) -> list[float]:
        return (self._value(name).sum(dim=0) / self._window_channels()).tolist()

    def _per_channel(self, name: str) -> list[float | None]:
        sums = self._value(name).sum(dim=1)
        counts = (self._counts * self.prediction_length).tolist()
        return [float(part) / count if count else None for part, count in zip(sums, counts)]

    def _scaled(self) -> tuple[float | None, list[float] | None, list[float | None]]:
        """MASE, over the channels that have a scale."""
        sums, steps = self._value("absolute"), self.prediction_length
        known = (self._naive > 0) & (self._counts > 0)
        scaled = sums[known] / self._naive[known, None]
        count = int(self._counts[known].sum())
        per_channel = [
            float(sums[c].sum() / self._naive[c]) / (int(self._counts[c]) * steps) if known[c] else None
            for c in range(self.n_channels)
        ]
        if not count:
            return None, None, per_channel
        return math.fsum(scaled.flatten().tolist()) / (count * steps), (scaled.sum(dim=0) / count).tolist(), per_channel

    def _weighted(self, levels: Sequence[float]) -> tuple[float | None, list[float | None], list[float | None]]:
        """The weighted quantile loss, mean over the levels, in the data's own units."""
        loss = torch.stack([self._value(loss_name(level)) for level in levels]).mean(dim=0) * 2 * self._std[:, None]
        size = self._value("magnitude")

        def ratios(dim: int) -> list[float | None]:
            pairs = zip(loss.sum(dim).tolist(), size.sum(dim).tolist(), strict=True)
            return [part / whole if whole > 0 else None for part, whole in pairs]

        total = math.fsum(size.flatten().tolist())
        whole = math.fsum(loss.flatten().tolist()) / total if total > 0 else None
        return whole, ratios(0), ratios(1)

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

    def _refuse_distribution(
        self, name: str, values: torch.Tensor, channel: torch.Tensor | None, index: torch.Tensor | None
    ) -> None:
        """Raise NotFiniteError for the first window whose quantiles or samples cannot be averaged."""
        row, step, column = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
        window = self.windows + row if index is None else int(index[row])
        where = f"window {window}, horizon step {step + 1}, channel {column if channel is None else int(channel[row])}"
        what = "the distribution" if name == "crps" else f"the {name}"
        raise NotFiniteError(
            f"{what} of the forecast is not finite in {where}: the weights have diverged; lower the learning rate or use a "
            "higher precision"
        )


def _by_channel(errors: torch.Tensor, channel: torch.Tensor | None, n_channels: int) -> torch.Tensor:
    """Sum errors [B, H, C] over the batch, giving [channels, H]."""
    if channel is None:
        return errors.sum(dim=0).T
    result = torch.zeros(n_channels, errors.shape[1], dtype=torch.float64)
    return result.index_add_(0, channel.to("cpu"), errors[:, :, 0])
