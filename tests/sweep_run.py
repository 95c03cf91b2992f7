"""A fresh process that makes one run, or a sweep of two alphas: ``sweep_run.py finetune|sweep mapped|kept FOLDER``.

The model is a Timer of 36 million parameters, loaded from safetensors (mapped) or made from random numbers (kept). Prints one
line of JSON: the process's peak memory, and the model's size, in bytes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from sff_fast.adapters import Adapter, load
from sff_fast.adapters.timer import TimerAdapter
from sff_fast.data import ForecastData, Table
from sff_fast.models import Timer, TimerConfig
from sff_fast.resident import return_freed_memory
from sff_fast.training import finetune, sweep
from sff_fast.training.pristine import Snapshot
from sff_fast.training.runtime import peak_memory, reset_peak_memory


def make() -> Adapter:
    torch.manual_seed(0)
    return TimerAdapter(Timer(TimerConfig(d_model=640, d_ff=2560, e_layers=7)).eval())


def main(what: str, place: str, folder: Path) -> dict[str, int]:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # no power is cut here
    if place == "mapped":
        make().save(folder.with_name(f"{folder.name}-model"))
    t = np.arange(3000)
    table = Table(np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + 0.1 * np.sin(t)[:, None], ["a", "b"])
    data = ForecastData(table, "0.4,0.3,0.3", 192, 96, stride=16)
    options = {"max_steps": 2, "epochs": 1, "batch_size": 4, "eval_batch_size": 8}
    opened = (lambda: load("timer", folder.with_name(f"{folder.name}-model"))) if place == "mapped" else make
    adapter = opened()
    weights = sum(t.nbytes for t in [*adapter.model.parameters(), *adapter.model.buffers()])
    found = {"weights": weights}
    if what == "finetune":
        reset_peak_memory("cpu")
        finetune(adapter, data, "sff", out=folder, **options)
        return {**found, "peak": peak_memory("cpu")}
    found["host_bytes"] = Snapshot(adapter.model, adapter.source).host_bytes
    del adapter
    gc.collect()
    return_freed_memory()
    reset_peak_memory("cpu")
    # Every run begins a new measurement of its own: the largest of them, and of what is between them, is the sweep's.
    peaks = []

    class Watch:
        def start(self, total: int, label: str) -> None:
            peaks.append(peak_memory("cpu"))

        def update(self, n: int, **fields: object) -> None:
            peaks.append(peak_memory("cpu"))

        def epoch(self, record: dict[str, object]) -> None: ...

        def close(self) -> None:
            peaks.append(peak_memory("cpu"))

    sweep(opened, data, (0.5, 0.9), (0,), folder, baselines=(), progress=Watch(), **options)
    return {**found, "peak": max(*peaks, peak_memory("cpu"))}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
