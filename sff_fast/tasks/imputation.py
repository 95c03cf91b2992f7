"""Imputation: errors of the hidden points."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..metrics import NotFiniteError, Sum
from ..metrics.sums import to_double
from .base import Evaluation


class ImputationEvaluation(Evaluation):
    """MSE and MAE over hidden points: of every rate, and their mean over the rates, for each channel too."""

    def __init__(self, data: Any, part: str) -> None:
        super().__init__(data, part)
        shape = (len(data.mask_rates), len(data.columns))
        self._squared, self._absolute = Sum(*shape), Sum(*shape)
        self._counts = torch.zeros(shape, dtype=torch.int64)
        self._windows = 0

    @classmethod
    def check(cls, adapter: Any, data: Any) -> None:
        """The model must impute, in windows of this length."""
        adapter.check_task("imputation", data.context_length)

    def predict(self, adapter: Any, batch: Any, seed: int) -> torch.Tensor:
        """The model's values at every point."""
        return adapter.impute(batch.values, batch.mask, seed=seed)

    def update(self, output: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        """Add the errors at the hidden points."""
        hidden = ~batch.mask.to("cpu")
        error = torch.where(hidden, to_double(output) - to_double(batch.values), 0.0)
        if not torch.isfinite(error).all():
            row, step, column = (int(i) for i in (~torch.isfinite(error)).nonzero()[0])
            channel = column if batch.channel is None else int(batch.channel[row])
            raise NotFiniteError(
                f"the imputed value is not finite in window {int(batch.index[row])}, row {step + 1}, channel {channel}: "
                "the weights have diverged; lower the learning rate or use a higher precision"
            )
        rates = len(self._counts)
        channels = torch.arange(self._counts.shape[1]).expand(len(error), -1) if batch.channel is None else batch.channel[:, None]
        cell = (batch.rate[:, None] * self._counts.shape[1] + channels).flatten()

        def gathered(values: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(self._counts.numel(), dtype=values.dtype)
            return total.index_add_(0, cell, values.sum(dim=1).flatten()).view(rates, -1)

        squared, absolute = error.square(), error.abs()
        self._squared.add(gathered(squared))
        self._absolute.add(gathered(absolute))
        self._counts += gathered(hidden.to(torch.int64))
        self._windows += len(error)
        points = hidden.sum(dim=(1, 2))
        return {"mse": squared.sum(dim=(1, 2)) / points, "mae": absolute.sum(dim=(1, 2)) / points}

    def to_json(self) -> dict[str, Any]:
        """The errors, with the number of windows and of hidden points."""
        mse, mae = self._by_rate(self._squared), self._by_rate(self._absolute)
        names = [f"{rate:g}" for rate in self.data.mask_rates]
        whole = _mean(mse)
        return {
            "mse": whole,
            "mae": _mean(mae),
            "rmse": math.sqrt(whole),
            "windows": self._windows,
            "hidden_points": int(self._counts.sum()),
            "mse_per_rate": dict(zip(names, mse, strict=True)),
            "mae_per_rate": dict(zip(names, mae, strict=True)),
            "mse_per_channel": self._by_channel(self._squared),
            "mae_per_channel": self._by_channel(self._absolute),
        }

    def _by_rate(self, total: Sum) -> list[float]:
        counts = self._counts.sum(dim=1).tolist()
        return [math.fsum(row) / count for row, count in zip(total.value().tolist(), counts, strict=True) if count]

    def _by_channel(self, total: Sum) -> list[float | None]:
        """Mean over the rates of each channel's mean."""
        values = total.value() / self._counts
        return [float(column.mean()) if counts.all() else None for column, counts in zip(values.T, self._counts.T, strict=True)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
