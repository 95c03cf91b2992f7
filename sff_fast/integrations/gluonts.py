"""GluonTS: an adapter as a predictor, whose forecasts ``gluonts.model.evaluate_model`` takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from sff_fast.adapters import Adapter
from sff_fast.data import Scaler
from sff_fast.errors import ArgumentError, DataError, require

require("gluonts", "integrations")
from gluonts.dataset.util import forecast_start  # noqa: E402  (behind the message that says how to install it)
from gluonts.model import Forecast, QuantileForecast, SampleForecast  # noqa: E402
from gluonts.model.predictor import Predictor  # noqa: E402


class AdapterPredictor(Predictor):
    """Forecasts the entries of a GluonTS dataset with an adapter's model.

    Every entry is standardised by the mean and standard deviation of its own context, and the forecast is in its own units:
    a family with sample paths gives a ``SampleForecast``, any other a ``QuantileForecast`` with ``mean`` and its quantiles.

    Args:
        adapter: The model.
        context_length: Time steps that it sees, the last ones of each entry.
        prediction_length: Time steps to forecast.
        scaler: Standardises instead, such as the scaler of the fine-tuning (``ForecastData.scaler``); of one channel for
            entries of one, else of as many as the entries have. Default None.
        batch_size: Entries of one channel that are forecast at once, default 32.
        seed: For families that draw sample paths, default 0.
        num_samples: How many paths they draw. Default: the family's own number.

    Raises:
        ArgumentError: A length is not accepted by the model, or ``batch_size`` is no positive integer.
    """

    def __init__(
        self,
        adapter: Adapter,
        context_length: int,
        prediction_length: int,
        *,
        scaler: Scaler | None = None,
        batch_size: int = 32,
        seed: int = 0,
        num_samples: int | None = None,
    ) -> None:
        adapter.check_lengths(context_length, prediction_length)
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ArgumentError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        super().__init__(prediction_length)
        self.adapter, self.context_length, self.scaler = adapter, context_length, scaler
        self.batch_size, self.seed, self.num_samples = batch_size, seed, num_samples

    def predict(self, dataset: Iterable[dict[str, Any]], **_: Any) -> Iterator[Forecast]:
        """Forecast what follows each entry.

        Args:
            dataset: Entries with ``start`` (a pandas Period), ``target`` ([T], or [C, T]) and perhaps ``item_id``.

        Yields:
            A forecast an entry, in order: arrays of [H], or [H, C] for targets of two axes.

        Raises:
            DataError: A target is shorter than the context, holds what is not finite there, or is constant.
        """
        batch: list[dict[str, Any]] = []
        for entry in dataset:
            batch.append(entry)
            if len(batch) == self.batch_size:
                yield from self._forecast(batch)
                batch = []
        if batch:
            yield from self._forecast(batch)

    def _forecast(self, entries: list[dict[str, Any]]) -> Iterator[Forecast]:
        pasts = [self._past(entry) for entry in entries]
        scalers = [self.scaler or Scaler.fit(past) for past in pasts]
        device = next(self.adapter.model.parameters()).device
        contexts = [torch.from_numpy(s.transform(p).astype(np.float32)) for s, p in zip(scalers, pasts)]
        if self.adapter.channel_independent:
            rows = torch.cat([context.T.unsqueeze(2) for context in contexts])
            groups = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        else:
            groups = [context.unsqueeze(0) for context in contexts]
        found: list[tuple[Any, ...]] = []
        for group in groups:
            result = self.adapter.forecast(
                group.contiguous().to(device), self.prediction_length, seed=self.seed, num_samples=self.num_samples
            )
            keys, values = self._arrays(result)
            found += [(keys, one) for one in values]
        position = 0
        for entry, past, scaler in zip(entries, pasts, scalers):
            count = past.shape[1] if self.adapter.channel_independent else 1
            own = found[position : position + count]
            position += count
            # [K, H, C] of one entry, in its own units
            values = scaler.inverse(np.concatenate([one for _, one in own], axis=2))
            yield self._as_forecast(entry, own[0][0], values)

    def _past(self, entry: dict[str, Any]) -> np.ndarray:
        """[L, C] the end of a target, float64."""
        name = repr(entry.get("item_id", "the entry"))
        target = np.asarray(entry["target"], dtype=np.float64)
        past = (target[None] if target.ndim == 1 else target)[:, -self.context_length :].T
        if past.shape[0] < self.context_length:
            raise DataError(f"{name} has {past.shape[0]} steps, expected at least context_length ({self.context_length})")
        if not np.isfinite(past).all():
            raise DataError(f"{name} holds NaN or infinity in its last {self.context_length} steps: fill them first")
        if self.scaler is None and not (past.std(axis=0) > 0).all():
            raise DataError(f"{name} is constant over its last {self.context_length} steps: give a scaler=")
        if self.scaler is not None and len(self.scaler.mean) != past.shape[1]:
            raise ArgumentError(f"scaler must have one mean for each of the {past.shape[1]} channels of {name}")
        return past

    @staticmethod
    def _arrays(result: Any) -> tuple[list[str] | None, list[np.ndarray]]:
        """What the arrays are, None for sample paths; and [K, H, C] of each item of a batch."""
        if result.samples is not None:
            return None, list(result.samples.double().cpu().numpy())
        quantiles = result.quantiles or {}
        keys = ["mean", *(f"{level:g}" for level in sorted(quantiles))]
        stacked = torch.stack([result.mean, *(quantiles[level] for level in sorted(quantiles))], dim=1)
        return keys, list(stacked.double().cpu().numpy())

    @staticmethod
    def _as_forecast(entry: dict[str, Any], keys: list[str] | None, values: np.ndarray) -> Forecast:
        if np.asarray(entry["target"]).ndim == 1:
            values = values[:, :, 0]
        common = {"start_date": forecast_start(entry), "item_id": entry.get("item_id")}
        if keys is None:
            return SampleForecast(values, **common)
        return QuantileForecast(values, forecast_keys=keys, **common)
