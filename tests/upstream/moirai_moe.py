"""MOIRAI-MoE by uni2ts alone: its own module, loss and predictor. The package has no trainer for it."""

from __future__ import annotations

import torch
import uni2ts_import  # noqa: F401  Before anything of uni2ts.
from common import Result, main
from moirai import predicted
from torch import Tensor
from uni2ts.loss.packed import PackedNLLLoss
from uni2ts.model.moirai_moe import MoiraiMoEForecast, MoiraiMoEModule

PATCH = 16


def load(path: str) -> MoiraiMoEModule:
    return MoiraiMoEModule.from_pretrained(path, local_files_only=True).eval()


def loss(model: MoiraiMoEModule, context: Tensor, target: Tensor) -> Tensor:
    """Next-patch prediction of a decoder, written out for one window of one channel at a time."""
    losses = []
    for past, future in zip(context, target, strict=True):
        for channel in range(past.shape[1]):
            assert past.shape[1] == 1, "channels that attend to each other are not written out here"
            left, right = -len(past) % PATCH, -len(future) % PATCH
            values = torch.cat((torch.zeros(left), past[:, channel], future[:, channel], torch.zeros(right)))
            seen = torch.cat((torch.zeros(left), torch.ones(len(past) + len(future)), torch.zeros(right))).bool()
            patches, seen = values.view(1, -1, PATCH), seen.view(1, -1, PATCH)
            count = patches.shape[1]
            ahead = torch.arange(count)[None] >= (len(past) + left) // PATCH
            one, time = torch.ones(1, count, dtype=torch.long), torch.arange(count)[None]
            distribution = model(patches, seen, one, time, one - 1, ahead, PATCH * one)
            # The distribution at a patch is that of the next one.
            following = torch.cat((patches[:, 1:], torch.zeros(1, 1, PATCH)), dim=1)
            following_seen = torch.cat((seen[:, 1:], torch.zeros(1, 1, PATCH, dtype=torch.bool)), dim=1)
            following_ahead = torch.cat((ahead[:, 1:], torch.zeros(1, 1, dtype=torch.bool)), dim=1)
            losses.append(PackedNLLLoss()(distribution, following, following_ahead, following_seen, one, one - 1))
    return torch.stack(losses).mean()


def forecast(model: MoiraiMoEModule, context: Tensor, prediction_length: int, seed: int, num_samples: int | None) -> Result:
    forecaster = MoiraiMoEForecast(
        prediction_length=prediction_length,
        target_dim=context.shape[2],
        feat_dynamic_real_dim=0,
        past_feat_dynamic_real_dim=0,
        context_length=context.shape[1],
        module=model,
        patch_size=PATCH,
        num_samples=num_samples,
    )
    return predicted(forecaster, context, seed)


if __name__ == "__main__":
    main(load, loss, forecast)
