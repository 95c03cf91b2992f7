"""TimesFM 2.5 by transformers alone."""

from __future__ import annotations

from typing import Any

from common import Result, from_series, main, to_series
from torch import Tensor
from transformers import TimesFm2_5ModelForPrediction


def load(path: str) -> TimesFm2_5ModelForPrediction:
    return TimesFm2_5ModelForPrediction.from_pretrained(path, local_files_only=True).eval()


def loss(model: TimesFm2_5ModelForPrediction, context: Tensor, target: Tensor) -> Tensor:
    return called(model, context, future_values=to_series(target)).loss


def forecast(
    model: TimesFm2_5ModelForPrediction, context: Tensor, prediction_length: int, seed: int, num_samples: int | None
) -> Result:
    output, channels = called(model, context), context.shape[2]
    full = output.full_predictions[:, :prediction_length]
    quantiles = {level: from_series(full[..., i + 1], channels) for i, level in enumerate(model.config.quantiles)}
    return {"mean": from_series(output.mean_predictions[:, :prediction_length], channels), "quantiles": quantiles}


def called(model: TimesFm2_5ModelForPrediction, context: Tensor, **inputs: Any) -> Any:
    """As Google's example for fine-tuning calls the class, and without a floor at zero."""
    padded = -(-context.shape[1] // 32) * 32
    return model(past_values=list(to_series(context)), forecast_context_len=padded, truncate_negative=False, **inputs)


if __name__ == "__main__":
    main(load, loss, forecast)
