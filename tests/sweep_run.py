"""A fresh process that makes one run, or a sweep of two alphas: ``sweep_run.py finetune|sweep mapped|kept FOLDER``.

The model is a Timer of 36 million parameters, loaded from safetensors (mapped) or made from random numbers (kept). Prints one
line of JSON: the peak of the process's own memory, and the model's size, in bytes.

Own memory is what is resident without pages of files: libraries and checkpoints, which the system drops and reads again as it
likes. The peak is read at the end of every short stretch between two batches, and both reading and what is taken off are of
that stretch, so that neither another program's need of memory nor the machine's load has a say.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
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

run_module = importlib.import_module("sff_fast.training.run")


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
        with OwnPeak() as watch:
            finetune(adapter, data, "sff", out=folder, progress=watch, **options)
        return {**found, "peak": watch.peak}
    found["host_bytes"] = Snapshot(adapter.model, adapter.source).host_bytes
    del adapter
    gc.collect()
    return_freed_memory()
    with OwnPeak() as watch:
        sweep(opened, data, (0.5, 0.9), (0,), folder, baselines=(), progress=watch, **options)
    return {**found, "peak": watch.peak}


class OwnPeak:
    """The peak of this process's own memory while it is entered; a progress that reads it at every batch.

    Runs begin a measurement of the peak for themselves: what was before is read first.
    """

    def __init__(self) -> None:
        self.peak = 0

    def __enter__(self) -> OwnPeak:
        reset_peak_memory("cpu")
        run_module.reset_peak_memory = self.begin_run
        return self

    def begin_run(self, device: str) -> None:
        self.read()

    def __exit__(self, *exception: object) -> None:
        self.read()
        run_module.reset_peak_memory = reset_peak_memory

    def read(self) -> None:
        of_files = int(Path("/proc/self/statm").read_text().split()[2]) * resource.getpagesize()
        self.peak = max(self.peak, peak_memory("cpu") - of_files)
        reset_peak_memory("cpu")

    def start(self, total: int, label: str) -> None:
        self.read()

    def update(self, n: int, **fields: object) -> None:
        self.read()

    def epoch(self, record: dict[str, object]) -> None: ...

    def close(self) -> None:
        self.read()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
