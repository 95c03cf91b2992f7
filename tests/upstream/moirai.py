"""MOIRAI 1 by uni2ts alone: its own fine-tuning module and data transformations, its own predictor."""

from __future__ import annotations

import numpy as np
import torch
import uni2ts_import  # noqa: F401  Before anything of uni2ts.
from common import Result, main
from gluonts.dataset.common import ListDataset
from torch import Tensor
from uni2ts.data.loader import PadCollate
from uni2ts.model.moirai import MoiraiFinetune, MoiraiForecast, MoiraiModule

PATCH_SIZE = 32


def load(path: str) -> MoiraiModule:
    return MoiraiModule.from_pretrained(path, local_files_only=True).eval()


def loss(model: MoiraiModule, context: Tensor, target: Tensor, patch_size: int = PATCH_SIZE) -> Tensor:
    lengths = {"context_length": context.shape[1], "prediction_length": target.shape[1], "patch_size": patch_size}
    tuner = MoiraiFinetune(
        module=model,
        min_patches=2,
        min_mask_ratio=0.15,
        max_mask_ratio=0.5,
        max_dim=128,
        num_training_steps=1,
        num_warmup_steps=0,
        **lengths,
    )
    tuner.log = lambda *args, **options: None  # There is no trainer.
    transform = tuner.train_transform_map["ETTh1"](distance=1, **lengths)
    windows = torch.cat((context, target), dim=1).numpy()
    entries = [transform({"target": list(window.T.copy()), "window": 0, "freq": "h"}) for window in windows]
    collate = PadCollate(
        max_length=model.max_seq_len, seq_fields=tuner.seq_fields, target_field="target", pad_func_map=tuner.pad_func_map
    )
    return tuner.training_step(collate(entries), 0)


def forecast(
    model: MoiraiModule,
    context: Tensor,
    prediction_length: int,
    seed: int,
    num_samples: int | None,
    patch_size: int | str = PATCH_SIZE,
) -> Result:
    auto = patch_size == "auto"
    forecaster = MoiraiForecast(
        prediction_length=prediction_length,
        target_dim=context.shape[2],
        feat_dynamic_real_dim=0,
        past_feat_dynamic_real_dim=0,
        context_length=context.shape[1] - prediction_length * auto,
        module=model,
        patch_size=patch_size,
        num_samples=num_samples,
    )
    return predicted(forecaster, context, seed)


def predicted(forecaster: torch.nn.Module, context: Tensor, seed: int) -> Result:
    """What the predictor of a forecaster gives: sample paths, and gluonts' mean of them."""
    univariate = context.shape[2] == 1
    entries = [{"start": "2020-01-01", "target": window[:, 0] if univariate else window.T} for window in context.numpy()]
    predictor = forecaster.create_predictor(batch_size=len(entries), device="cpu")
    torch.manual_seed(seed)
    found = list(predictor.predict(ListDataset(entries, freq="h", one_dim_target=univariate)))
    samples = torch.from_numpy(np.stack([one.samples for one in found]))
    mean = torch.from_numpy(np.stack([one.mean for one in found]))
    return {"mean": mean.unsqueeze(-1), "samples": samples.unsqueeze(-1)} if univariate else {"mean": mean, "samples": samples}


if __name__ == "__main__":
    main(load, loss, forecast)
