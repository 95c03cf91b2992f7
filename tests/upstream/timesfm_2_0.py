"""TimesFM 2.0 by transformers alone, with every context padded to the model's longest, as the class does by default."""

from __future__ import annotations

from common import Result, from_series, main, to_series
from torch import Tensor
from transformers import TimesFmModelForPrediction


def load(path: str) -> TimesFmModelForPrediction:
    return TimesFmModelForPrediction.from_pretrained(path, local_files_only=True).eval()


def loss(model: TimesFmModelForPrediction, context: Tensor, target: Tensor) -> Tensor:
    past = list(to_series(context))
    # The class compares its whole forecast; with a shorter horizon it computes the same, and less of it.
    longest, model.horizon_len = model.horizon_len, target.shape[1]
    try:
        return model(past_values=past, freq=[0] * len(past), future_values=to_series(target)).loss
    finally:
        model.horizon_len = longest


def forecast(
    model: TimesFmModelForPrediction, context: Tensor, prediction_length: int, seed: int, num_samples: int | None
) -> Result:
    past, channels = list(to_series(context)), context.shape[2]
    output = model(past_values=past, freq=[0] * len(past))
    full = output.full_predictions[:, :prediction_length]
    quantiles = {level: from_series(full[..., i + 1], channels) for i, level in enumerate(model.config.quantiles)}
    return {"mean": from_series(output.mean_predictions[:, :prediction_length], channels), "quantiles": quantiles}


if __name__ == "__main__":
    main(load, loss, forecast)
