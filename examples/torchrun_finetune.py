"""Smoothed fine-tuning by several processes.

``torchrun --nproc-per-node 2 examples/torchrun_finetune.py --parallel fsdp --out runs/job``, again with ``--resume`` after a
process was killed, on any number of processes. Every process loads the model and reads the data; one writes.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

import sff_fast
from sff_fast import distributed
from sff_fast.data import Table


def waves(rows: int = 700) -> Table:
    """Two noisy waves, hourly: what stands for the user's table here (``sff_fast.read_table``)."""
    t = np.arange(rows)
    values = np.stack([np.sin(t / 3), np.cos(t / 5)], axis=1) + 0.1 * np.random.default_rng(0).normal(size=(rows, 2))
    stamps = np.datetime64("2024-01-01T00", "us") + t * np.timedelta64(1, "h").astype("timedelta64[us]")
    return Table(values, ["first", "second"], stamps, "h", "waves.csv")


def main() -> None:
    """Read the options, train, print the best epoch and its test error from the first process."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    options.add_argument("--optimizer", default="fused-adamw")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--micro-batch", type=int)
    options.add_argument("--checkpoint-every", type=int)
    options.add_argument("--out")
    options.add_argument("--resume", action="store_true")
    options.add_argument("--overwrite", action="store_true")
    given = options.parse_args()
    adapter = sff_fast.tiny("timer")
    data = sff_fast.ForecastData(waves(), "0.6,0.2,0.2", context_length=96, prediction_length=24)
    with distributed.join("cpu") as group:
        result = sff_fast.finetune(adapter, data, "sff", device="cpu", **vars(given))
    if group.writes:
        print(json.dumps({"best_epoch": result.best_epoch, "test_mse": result.test_mse}), flush=True)


if __name__ == "__main__":
    main()
