"""MOIRAI-2 by uni2ts alone: its own module, loss and predictor. The package has no trainer for it."""

from __future__ import annotations

import numpy as np
import torch
import uni2ts_import  # noqa: F401  Before anything of uni2ts.
from common import Result, from_series, main, to_series
from gluonts.dataset.common import ListDataset
from torch import Tensor
from uni2ts.loss.packed import PackedQuantileMAELoss
from uni2ts.model.moirai2 import Moirai2Forecast, Moirai2Module


def load(path: str) -> Moirai2Module:
    return Moirai2Module.from_pretrained(path, local_files_only=True).eval()


def loss(model: Moirai2Module, context: Tensor, target: Tensor) -> Tensor:
    """Blocks of patches, each predicted at the patch before it, written out for one series at a time."""
    size, block, levels = model.patch_size, model.num_predict_token, model.quantile_levels
    losses = []
    for past, future in zip(to_series(context), to_series(target), strict=True):
        left, right = -len(past) % size, -len(future) % size
        values = torch.cat((torch.zeros(left), past, future, torch.zeros(right)))
        seen = torch.cat((torch.zeros(left), torch.ones(len(past) + len(future)), torch.zeros(right))).bool()
        patches, seen = values.view(1, -1, size), seen.view(1, -1, size)
        count, first = patches.shape[1], (len(past) + left) // size
        ahead = torch.arange(count)[None] >= first
        one, time = torch.ones(1, count, dtype=torch.long), torch.arange(count)[None]
        output, scaled = model(patches, seen, one, time, one - 1, ahead, training_mode=True)
        output = output.view(count, block, len(levels) * size)
        prediction = torch.zeros(1, count, len(levels) * size)
        for patch in range(first, count):
            start = first + (patch - first) // block * block
            prediction[0, patch] = output[start - 1, patch - start]
        losses.append(PackedQuantileMAELoss(levels)(prediction, scaled, ahead, seen, one, one - 1))
    return torch.stack(losses).mean()


def forecast(model: Moirai2Module, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    series = to_series(context).numpy()
    forecaster = Moirai2Forecast(
        prediction_length=prediction_length,
        target_dim=1,
        feat_dynamic_real_dim=0,
        past_feat_dynamic_real_dim=0,
        context_length=context.shape[1],
        module=model,
    )
    predictor = forecaster.create_predictor(batch_size=len(series), device="cpu")
    found = list(predictor.predict(ListDataset([{"start": "2020-01-01", "target": one} for one in series], freq="h")))

    def gathered(rows: list[np.ndarray]) -> Tensor:
        return from_series(torch.from_numpy(np.stack(rows)).float(), context.shape[2])

    quantiles = {level: gathered([one.quantile(level) for one in found]) for level in model.quantile_levels}
    return {"mean": gathered([one.mean for one in found]), "quantiles": quantiles}


if __name__ == "__main__":
    main(load, loss, forecast)
