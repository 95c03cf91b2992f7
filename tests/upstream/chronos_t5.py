"""Chronos-T5 by chronos-forecasting alone."""

from __future__ import annotations

import torch
from chronos import BaseChronosPipeline, ChronosConfig, ChronosModel, ChronosPipeline
from common import Result, from_series, main, to_series
from torch import Tensor


def load(path: str) -> torch.nn.Module:
    return BaseChronosPipeline.from_pretrained(path, local_files_only=True).model.model.eval()


def loss(model: torch.nn.Module, context: Tensor, target: Tensor) -> Tensor:
    # scripts/training/train.py: ChronosDataset.to_hf_format with windows of prediction_length, padded by NaN at the end.
    config = ChronosConfig(**model.config.chronos_config)
    series, future = to_series(context), to_series(target)
    padding = torch.full((len(future), config.prediction_length - future.shape[1]), torch.nan)
    tokenizer = config.create_tokenizer()
    input_ids, attention_mask, scale = tokenizer.context_input_transform(series)
    labels, labels_mask = tokenizer.label_input_transform(torch.cat((future, padding), dim=1), scale)
    labels[labels_mask == 0] = -100
    if padding.shape[1]:
        # The end token follows the last value.
        labels[:, future.shape[1]], labels[:, -1] = config.eos_token_id, -100
    return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss


def forecast(model: torch.nn.Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    config = ChronosConfig(**model.config.chronos_config)
    pipeline = ChronosPipeline(tokenizer=config.create_tokenizer(), model=ChronosModel(config=config, model=model))
    torch.manual_seed(seed)
    samples = pipeline.predict(list(to_series(context)), prediction_length=prediction_length, num_samples=num_samples)
    torch.manual_seed(seed)
    _, mean = pipeline.predict_quantiles(to_series(context), prediction_length=prediction_length, num_samples=num_samples)
    return {"mean": from_series(mean, context.shape[2]), "samples": from_series(samples, context.shape[2])}


if __name__ == "__main__":
    main(load, loss, forecast)
