"""A run in a process that may take 100 MB of addresses more than it has; prints the error."""

from __future__ import annotations

import resource
import warnings
from pathlib import Path

import numpy as np
import torch

from sff_fast.adapters import tiny
from sff_fast.data import ForecastData, Table
from sff_fast.errors import SffFastError
from sff_fast.training import finetune


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = np.arange(12000)
    table = Table(np.stack([np.sin(rows / 7), np.cos(rows / 11)], axis=1), ["a", "b"])
    data = ForecastData(table, "0.8,0.1,0.1", 960, 96)
    finetune(tiny("timer"), data, "sff", epochs=1, max_steps=1, batch_size=2, device="cpu")  # whatever is loaded late
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), resource.RLIM_INFINITY))
    try:
        finetune(tiny("timer"), data, "sff", epochs=1, batch_size=8192, device="cpu", eval_batch_size=16)
    except SffFastError as error:
        print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
