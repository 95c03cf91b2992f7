"""Chronos-Bolt by chronos-forecasting alone."""

from __future__ import annotations

import torch
from chronos import BaseChronosPipeline, ChronosBoltPipeline
from common import Result, from_series, main, to_series
from torch import Tensor


def load(path: str) -> torch.nn.Module:
    return BaseChronosPipeline.from_pretrained(path, local_files_only=True).model.eval()


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    return model(context=to_series(context), target=to_series(target)).loss


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    pipeline = ChronosBoltPipeline(model)
    levels = pipeline.quantiles
    series = list(to_series(context))
    quantiles, mean = pipeline.predict_quantiles(series, prediction_length=prediction_length, quantile_levels=levels)
    channels = context.shape[2]
    return {
        "mean": from_series(mean, channels),
        "quantiles": {level: from_series(quantiles[..., index], channels) for index, level in enumerate(levels)},
    }


if __name__ == "__main__":
    main(load, loss, forecast)
