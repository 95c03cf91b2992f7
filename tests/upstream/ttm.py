"""TinyTimeMixer by granite-tsfm alone."""

from __future__ import annotations

from common import Result, main
from torch import Tensor
from tsfm_public.models.tinytimemixer import TinyTimeMixerForPrediction


def load(path: str) -> TinyTimeMixerForPrediction:
    return TinyTimeMixerForPrediction.from_pretrained(path, local_files_only=True).eval()


def loss(model: TinyTimeMixerForPrediction, context: Tensor, target: Tensor) -> Tensor:
    return model(past_values=context, future_values=target).loss


def forecast(
    model: TinyTimeMixerForPrediction, context: Tensor, prediction_length: int, seed: int, num_samples: int | None
) -> Result:
    return {"mean": model(past_values=context).prediction_outputs[:, :prediction_length]}


if __name__ == "__main__":
    main(load, loss, forecast)
