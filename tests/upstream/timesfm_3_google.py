"""TimesFM 3 by Google's package alone. It has no trainer: the loss is written out after Google's fine-tuner."""

from __future__ import annotations

import torch
from common import Result, main
from timesfm3 import TimesFM3Forecaster
from torch import Tensor

_FORECASTERS: dict[torch.nn.Module, TimesFM3Forecaster] = {}


def load(path: str) -> torch.nn.Module:
    forecaster = TimesFM3Forecaster.from_pretrained(path, device="cpu", local_files_only=True)
    _FORECASTERS[forecaster.model] = forecaster
    return forecaster.model


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    """Google's fine-tuner's quantile losses, of what the package decodes."""
    deviation = context.std(1, keepdim=True, correction=0)
    # The forecaster rounds the horizon up to whole output patches, which changes how the last patches are joined.
    whole = -(-target.shape[1] // model.output_patch_len) * model.output_patch_len
    prediction = model.decode(context.transpose(1, 2), whole)[:, :, : target.shape[1]]
    total = torch.zeros(())
    for i, level in enumerate(model.quantiles):
        error = (target - prediction[..., i].transpose(1, 2)) / deviation
        total = total + torch.mean(2 * torch.where(level * error >= 0, level * error, -error * (1.0 - level)))
    return total


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    windows = list(context.transpose(1, 2).numpy())
    found = list(_FORECASTERS[model].predict_batch(windows, prediction_length, return_quantiles=True))
    mean = torch.stack([torch.from_numpy(one.forecast) for one in found]).transpose(1, 2)
    values = torch.stack([torch.from_numpy(one.quantiles) for one in found])
    quantiles = {level: values[..., i].transpose(1, 2) for i, level in enumerate(model.quantiles)}
    return {"mean": mean, "quantiles": quantiles}


if __name__ == "__main__":
    main(load, loss, forecast)
