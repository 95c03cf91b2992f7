"""TimesFM 2.5 by Google's package alone. It has no trainer: the loss is written out after Google's fine-tuner."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from common import Result, from_series, main, to_series
from safetensors.torch import load_file
from timesfm import ForecastConfig
from timesfm.timesfm_2p5 import timesfm_2p5_torch
from torch import Tensor

_PUBLISHED = timesfm_2p5_torch.TimesFM_2p5_200M_torch_module


def load(path: str) -> torch.nn.Module:
    file = Path(path) / "model.safetensors"
    timesfm_2p5_torch.TimesFM_2p5_200M_torch_module = _narrow(load_file(file))
    try:
        wrapper = timesfm_2p5_torch.TimesFM_2p5_200M_torch.from_pretrained(path, local_files_only=True, torch_compile=False)
    finally:
        timesfm_2p5_torch.TimesFM_2p5_200M_torch_module = _PUBLISHED
    return wrapper.model


def _narrow(state: dict[str, Tensor]) -> type[torch.nn.Module]:
    """The package's class for the tests' narrow models of two layers, whose sizes are all the width."""
    width, config = len(state["tokenizer.output_layer.weight"]), _PUBLISHED.config
    narrow, layers = dict(input_dims=width, hidden_dims=width), config.stacked_transformers
    layer = dataclasses.replace(layers.transformer, model_dims=width, hidden_dims=width, num_heads=4)
    long = len(state["output_projection_quantiles.output_layer.weight"])
    config = dataclasses.replace(
        config,
        output_quantile_len=long // 10,
        tokenizer=dataclasses.replace(config.tokenizer, hidden_dims=width, output_dims=width),
        stacked_transformers=dataclasses.replace(layers, num_layers=2, transformer=layer),
        output_projection_point=dataclasses.replace(config.output_projection_point, **narrow),
        output_projection_quantiles=dataclasses.replace(config.output_projection_quantiles, output_dims=long, **narrow),
    )
    return type("Narrow", (_PUBLISHED,), {"config": config})


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    """Google's fine-tuner's mean squared error and quantile losses, of what the package decodes."""
    past, future = to_series(context), to_series(target)
    left = -past.shape[1] % 32
    past = torch.nn.functional.pad(past, (left, 0))
    mean, deviation = past.mean(1, keepdim=True), past.std(1, keepdim=True)
    past, future = (past - mean) / deviation, (future - mean) / deviation
    mask = torch.zeros_like(past, dtype=torch.bool)
    mask[:, :left] = True
    chunks = []
    for start in range(0, future.shape[1], 128):
        seen = torch.cat((past, future[:, :start]), dim=1)
        seen_mask = torch.cat((mask, torch.zeros(len(past), start, dtype=torch.bool)), dim=1)
        points, _, _ = model.decode(128, seen, seen_mask)
        chunks.append(points[:, -1])
    prediction = torch.cat(chunks, dim=1)
    _, spreads, _ = model.decode(128, past, mask)
    for channel in (1, 2, 3, 4, 6, 7, 8, 9):
        reach = spreads[:, : prediction.shape[1]]
        prediction[..., channel] = reach[..., channel] - reach[..., 5] + prediction[..., 5]
    prediction = prediction[:, : future.shape[1]]
    total = torch.mean((prediction[..., 0] - future) ** 2)
    for i, level in enumerate(model.config.quantiles):
        error = future - prediction[..., i + 1]
        total = total + torch.mean(2 * torch.where(level * error >= 0, level * error, -error * (1.0 - level)))
    return total


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    wrapper = object.__new__(timesfm_2p5_torch.TimesFM_2p5_200M_torch)
    wrapper.model = model
    wrapper.compile(
        ForecastConfig(
            max_context=context.shape[1],
            max_horizon=prediction_length,
            normalize_inputs=True,
            use_continuous_quantile_head=True,
            force_flip_invariance=True,
            infer_is_positive=False,
            fix_quantile_crossing=True,
        )
    )
    point, channels = wrapper.forecast(prediction_length, list(to_series(context).numpy()))
    count = context.shape[2]
    found = torch.from_numpy(channels)
    quantiles = {level: from_series(found[..., i + 1], count) for i, level in enumerate(model.config.quantiles)}
    return {"mean": from_series(torch.from_numpy(point), count), "quantiles": quantiles}


if __name__ == "__main__":
    main(load, loss, forecast)
