"""Chronos-2 by chronos-forecasting alone."""

from __future__ import annotations

import math

import torch
from chronos import BaseChronosPipeline, Chronos2Pipeline
from common import Result, main, to_series
from torch import Tensor


def load(path: str) -> torch.nn.Module:
    return BaseChronosPipeline.from_pretrained(path, local_files_only=True).model.eval()


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    # What Chronos2Dataset hands to the Trainer of Chronos2Pipeline.fit: one group a window, no covariates known.
    batch, length, channels = target.shape
    return model(
        context=to_series(context),
        future_target=to_series(target),
        future_covariates=torch.full((batch * channels, length), torch.nan),
        group_ids=torch.arange(batch * channels) // channels,
        num_output_patches=math.ceil(length / model.chronos_config.output_patch_size),
    ).loss


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    pipeline = Chronos2Pipeline(model)
    levels = pipeline.quantiles
    # Windows one after another, each a task of its own.
    inputs = [window.T.contiguous() for window in context]
    quantiles, mean = pipeline.predict_quantiles(inputs, prediction_length=prediction_length, quantile_levels=levels)
    values = torch.stack(quantiles).transpose(1, 2)
    return {
        "mean": torch.stack(mean).transpose(1, 2),
        "quantiles": {level: values[..., index] for index, level in enumerate(levels)},
    }


if __name__ == "__main__":
    main(load, loss, forecast)
