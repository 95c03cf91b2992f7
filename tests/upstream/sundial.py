"""Sundial by sktime alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import Result, from_series, main, to_series
from safetensors.torch import load_file
from sktime.forecasting.sundial import SundialDataCollator
from sktime.libs.sundial import SundialConfig, SundialForPrediction
from torch import Tensor


def load(path: str) -> torch.nn.Module:
    # With transformers 5 from_pretrained leaves the rotary buffers uninitialised.
    config = SundialConfig.from_dict(json.loads((Path(path) / "config.json").read_text()))
    model = SundialForPrediction(config)
    state = load_file(Path(path) / "model.safetensors")
    model.load_state_dict(state)
    return model.to(next(iter(state.values())).dtype).eval()


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    config, series = model.config, torch.cat((to_series(context), to_series(target)), dim=1)
    collate = SundialDataCollator(config.input_token_len, config.output_token_lens[-1], target.shape[1])
    return model(**collate(list(series)), revin=True, use_cache=False, return_dict=True).loss


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    # The steps of TSGenerationMixin.generate and of one round of its search; generate itself needs transformers 4.
    series = to_series(context)
    means = series.mean(dim=-1, keepdim=True)
    stdev = series.std(dim=-1, keepdim=True, unbiased=False) + 1e-5
    torch.manual_seed(seed)
    states = model.model(input_ids=(series - means) / stdev, use_cache=False, return_dict=True).last_hidden_state
    outputs = model.flow_loss.sample(states[:, -1], num_samples)[:, :, :prediction_length]
    outputs = outputs * stdev.unsqueeze(1).repeat(1, num_samples, 1) + means.unsqueeze(1).repeat(1, num_samples, 1)
    samples = from_series(outputs, context.shape[2])
    return {"mean": samples.mean(dim=1), "samples": samples}


if __name__ == "__main__":
    main(load, loss, forecast)
