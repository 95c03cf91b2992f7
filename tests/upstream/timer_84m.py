"""Timer-84m by sktime alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from common import Result, from_series, main, to_series
from safetensors.torch import load_file
from sktime.libs.timer.modeling_timer import TimerConfig, TimerForPrediction
from torch import Tensor


def load(path: str) -> torch.nn.Module:
    # With transformers 5 from_pretrained leaves the rotary buffers uninitialised, and a property hides the class's loss.
    config = TimerConfig.from_dict(json.loads((Path(path) / "config.json").read_text()))
    model = TimerForPrediction(config)
    model._loss_function = model._modules.pop("loss_function")
    state = load_file(Path(path) / "model.safetensors")
    model.load_state_dict(state)
    return model.to(next(iter(state.values())).dtype).eval()


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    """The class's own loss, of series that are normalised as its generation normalises them."""
    patch, length = model.config.input_token_len, context.shape[1] + target.shape[1]
    past = to_series(context)
    series = (torch.cat((past, to_series(target)), dim=1) - past.mean(-1, keepdim=True)) / past.std(-1, keepdim=True)
    # The class takes whole patches only: those, and of the prediction beyond the last one what there is of the target.
    whole, rest = length // patch * patch, length % patch
    error = model(input_ids=series[:, : whole - patch], labels=series[:, patch:whole], use_cache=False, return_dict=True).loss
    if rest == 0:
        return error
    last = model(input_ids=series[:, :whole], max_output_length=rest, use_cache=False, return_dict=True).logits
    end = (last - series[:, whole:]).square().mean()
    return (error * (whole - patch) + end * rest) / (length - patch)


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    # The rounds of TSGenerationMixin._greedy_search; generate itself needs transformers 4.
    series = to_series(context)
    length = series.shape[1] + prediction_length
    while series.shape[1] < length:
        missing = length - series.shape[1]
        step = model(input_ids=series, revin=True, max_output_length=missing, use_cache=False, return_dict=True)
        series = torch.cat((series, step.logits), dim=1)
    return {"mean": from_series(series[:, context.shape[1] :], context.shape[2])}


if __name__ == "__main__":
    main(load, loss, forecast)
