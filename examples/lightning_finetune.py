"""Smoothed fine-tuning with Lightning's Trainer.

``python examples/lightning_finetune.py --devices 2``. Lightning runs the processes and the steps; batches come from
:class:`sff_fast.distributed.WindowSampler`, so that they are those of one process, and evaluation counts each window once.
"""

from __future__ import annotations

import argparse
import json

import lightning
import torch
from torch.utils.data import DataLoader
from torchrun_finetune import waves

import sff_fast
from sff_fast import distributed

BATCH, LR, SEED = 32, 1e-3, 0


class FineTuning(lightning.LightningModule):
    """An adapter's loss, and its errors over the validation part.

    Args:
        adapter: The model, smoothed.
        data: The windows.
    """

    def __init__(self, adapter: sff_fast.adapters.Adapter, data: sff_fast.ForecastData) -> None:
        super().__init__()
        self.model = adapter.model
        self.adapter, self.data = adapter, data
        self.sampler: distributed.WindowSampler | None = None

    def train_dataloader(self) -> DataLoader:
        self.sampler = distributed.WindowSampler(len(self.data.train), BATCH, SEED, self.global_rank, self.trainer.world_size)
        self.sampler.set_epoch(self.current_epoch)
        windows = self.data.train
        return DataLoader(range(len(windows)), batch_sampler=self.sampler, collate_fn=lambda i: windows.batch(torch.tensor(i)))

    def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
        return self.adapter.loss(batch) * self.sampler.weight(batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sff_fast.FusedAdamW(self.model.parameters(), lr=LR)


class Validation(lightning.Callback):
    """Errors over the whole validation part before training and after every epoch."""

    def __init__(self) -> None:
        self.errors: list[dict] = []

    def on_train_start(self, trainer: lightning.Trainer, module: FineTuning) -> None:
        self._measure(module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: FineTuning) -> None:
        self._measure(module)

    def _measure(self, module: FineTuning) -> None:
        with distributed.join("cpu") as group:  # the group that Lightning made
            self.errors.append(sff_fast.evaluate(module.adapter, module.data, "val", device="cpu", group=group))


def main() -> None:
    """Train, then print the validation errors from the first process."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--devices", type=int, default=2)
    devices = options.parse_args().devices
    adapter = sff_fast.tiny("timer")
    data = sff_fast.ForecastData(waves(), "0.6,0.2,0.2", context_length=96, prediction_length=24)
    sff_fast.smooth_(adapter.model, adapter.plan(), alpha=0.7, seed=SEED)
    validation = Validation()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[validation],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(FineTuning(adapter, data))
    if trainer.is_global_zero:
        errors = [one["mse"] for one in validation.errors]
        print(json.dumps({"before": errors[0], "after": errors[-1], "windows": validation.errors[-1]["windows"]}), flush=True)


if __name__ == "__main__":
    main()
