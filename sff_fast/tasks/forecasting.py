"""Forecasting: errors of the horizon, given the context."""

from __future__ import annotations

from typing import Any

import torch

from ..metrics import ForecastMetrics
from ..metrics.seasonal import naive_errors, season_of
from .base import Evaluation


class ForecastEvaluation(Evaluation):
    """Errors of forecasts; see :class:`sff_fast.metrics.ForecastMetrics`."""

    def __init__(self, data: Any, part: str) -> None:
        super().__init__(data, part)
        scaler = data.scaler
        self._season = season_of(data.table.frequency)
        train = data.table.values[slice(*data.borders.train)]
        self._metrics = ForecastMetrics(
            data.prediction_length,
            len(data.columns),
            mean=scaler.mean,
            std=scaler.std,
            naive=naive_errors(train, self._season) / scaler.std,
        )

    @classmethod
    def check(cls, adapter: Any, data: Any) -> None:
        """The model must take contexts and forecast horizons of these lengths."""
        adapter.check_lengths(data.context_length, data.prediction_length)

    def predict(self, adapter: Any, batch: Any, seed: int) -> Any:
        """The forecast of the horizon."""
        return adapter.forecast(batch.context, self.data.prediction_length, seed=seed)

    def update(self, output: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Add the errors of a forecast."""
        return self._metrics.update(
            output.mean, batch.target, batch.channel, batch.index, quantiles=output.quantiles, samples=output.samples
        )

    def to_json(self) -> dict[str, Any]:
        """All errors, and the season of MASE in rows."""
        return {**self._metrics.to_json(), "season": self._season}
