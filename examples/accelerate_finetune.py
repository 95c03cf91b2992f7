"""Smoothed fine-tuning in a loop of one's own under ``accelerate launch``.

``accelerate launch --cpu --num_processes 2 examples/accelerate_finetune.py``. accelerate wraps model and optimizer; batches come
from :class:`sff_fast.distributed.WindowSampler`, so that they are those of one process, and evaluation counts each window once.
"""

from __future__ import annotations

import json

import torch
from accelerate import Accelerator
from torchrun_finetune import waves

import sff_fast
from sff_fast import distributed

BATCH, EPOCHS, LR, SEED = 32, 2, 1e-3, 0


def main() -> None:
    """Train, then print the validation error before and after from the main process."""
    accelerator = Accelerator(cpu=True)
    adapter = sff_fast.tiny("timer")
    data = sff_fast.ForecastData(waves(), "0.6,0.2,0.2", context_length=96, prediction_length=24)
    sff_fast.smooth_(adapter.model, adapter.plan(), alpha=0.7, seed=SEED)
    # Losses are methods of the adapter: a Program is the module whose forward pass calls them.
    program = distributed.Program(adapter.model)
    optimizer = sff_fast.FusedAdamW(adapter.model.parameters(), lr=LR)
    program, optimizer = accelerator.prepare(program, optimizer)
    rank, size = accelerator.process_index, accelerator.num_processes
    sampler = distributed.WindowSampler(len(data.train), BATCH, SEED, rank, size)
    with distributed.join("cpu") as group:  # the group that accelerate made
        before = sff_fast.evaluate(adapter, data, "val", device="cpu", group=group)
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            adapter.model.train()
            for i, indices in enumerate(sampler):
                loss = program(adapter.loss, data.train.batch(torch.tensor(indices)))
                accelerator.backward(loss * sampler.weight(i))
                optimizer.step()
                optimizer.zero_grad()
        after = sff_fast.evaluate(adapter, data, "val", device="cpu", group=group)
    if accelerator.is_main_process:
        print(json.dumps({"before": before["mse"], "after": after["mse"], "windows": after["windows"]}), flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
