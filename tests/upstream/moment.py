"""MOMENT by momentfm alone."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from common import Result, main
from momentfm import MOMENTPipeline
from torch import Tensor


def load(path: str) -> MOMENTPipeline:
    """The folder as it is: its config.json says which head the model has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MOMENTPipeline.from_pretrained(str(path), local_files_only=True)
    model.init()
    return model.eval()


def loss(model: MOMENTPipeline, context: Tensor, target: Tensor) -> Tensor:
    # As in the package's tutorial on forecasting: the mean squared error.
    return F.mse_loss(predict(model, context, target.shape[1]), target)


def forecast(model: MOMENTPipeline, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    return {"mean": predict(model, context, prediction_length)}


def predict(model: MOMENTPipeline, context: Tensor, prediction_length: int) -> Tensor:
    x, input_mask = window(model, context)
    if model.task_name == "forecasting":
        found = model(x_enc=x, input_mask=input_mask)
    else:
        found = model.short_forecast(x_enc=x, input_mask=input_mask, forecast_horizon=prediction_length)
    return found.forecast[:, :, :prediction_length].transpose(1, 2)


def window(model: MOMENTPipeline, values: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros before the beginning up to the model's length, masked, as in the package's data sets."""
    batch, length, channels = values.shape
    x, input_mask = torch.zeros(batch, channels, model.seq_len), torch.zeros(batch, model.seq_len)
    x[:, :, model.seq_len - length :] = values.transpose(1, 2)
    input_mask[:, model.seq_len - length :] = 1
    return x, input_mask


if __name__ == "__main__":
    main(load, loss, forecast)
