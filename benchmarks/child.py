"""What benchmarks/whole.py runs in fresh processes; prints one line of JSON.

``child.py cold MODEL ours|"second model" THREADS`` and ``child.py memory MODEL THREADS``
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from models import ALPHA, FACTORIES, interpolate_with

import sff_fast
from sff_fast import smooth, tracing  # noqa: F401  (the imports that a first call would make)


def cold(name: str, contender: str, threads: int) -> dict[str, float]:
    """Seconds of the first and only smoothing of this process."""
    torch.set_num_threads(threads)
    factory = FACTORIES[name]
    model = factory()
    begin = time.perf_counter()
    if contender == "ours":
        sff_fast.smooth_(model, sff_fast.trace(factory), ALPHA, seed=1)
    else:
        interpolate_with(model, factory())
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "elements": sum(p.numel() for p in model.parameters())}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def memory(name: str, threads: int) -> dict[str, float]:
    """Bytes by which the peak of resident memory grows, the plan being there and code and heap warm."""
    small = torch.nn.Linear(300, 300)
    sff_fast.smooth_(small, lambda: torch.nn.Linear(300, 300), threads=threads)
    plan, model = sff_fast.trace(FACTORIES[name]), FACTORIES[name]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _peak()
    sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads)
    return {"bytes": _peak() - before, "elements": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    kind, name, *rest = sys.argv[1:]
    print(json.dumps(cold(name, rest[0], int(rest[1])) if kind == "cold" else memory(name, int(rest[0]))))
