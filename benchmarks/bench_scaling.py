"""How does the cost of smoothing a sharded model grow with parameters, tensors and ranks?

One rank of a group whose other ranks are only pretended (its collectives would move nothing, and smoothing calls none) holds
the rows that FSDP2 gives it. Time is modelled as ``seconds = base + tensor * tensors + element * local elements``, fitted by
least squares of the relative error over the grid below; the largest relative error is printed with the coefficients. Then the
model is applied to 10^11 parameters on 1,000 ranks.

Run from the repository root: ``python benchmarks/bench_scaling.py``. A few seconds on an idle machine.
"""

from __future__ import annotations

import itertools
import statistics
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import sff_fast
from sff_fast.distributions import Normal
from sff_fast.plan import InitPlan, ParameterPlan, Segment

COLUMNS = 256
RANKS = (8, 1000)
TENSORS = (10, 100, 300)
LOCAL = (100_000, 1_000_000, 10_000_000)
"""Elements that the rank holds."""


def rank_of(ranks: int, tensors: int, local: int) -> tuple[nn.Module, InitPlan]:
    """A rank's part of a model of equal matrices, and the whole model's plan."""
    rows = max(1, local // tensors // COLUMNS)
    shape = (rows * ranks, COLUMNS)
    mesh = init_device_mesh("cpu", (ranks,))
    model, parameters = nn.Module(), []
    for i in range(tensors):
        part = DTensor.from_local(torch.zeros(rows, COLUMNS), mesh, [Shard(0)], run_check=False)
        model.register_parameter(f"w{i}", nn.Parameter(part))
        segment = Segment.whole(Normal(0.0, 0.02), shape[0] * COLUMNS, f"w{i}")
        parameters.append(ParameterPlan(f"w{i}", shape, torch.float32, (segment,)))
    return model, InitPlan(parameters)


def measure(ranks: int, tensors: int, local: int, runs: int = 5) -> tuple[int, float]:
    """Local elements and median seconds of one smoothing."""
    dist.init_process_group("fake", rank=ranks // 2, world_size=ranks, store=FakeStore())
    try:
        model, plan = rank_of(ranks, tensors, local)
        seconds = []
        for _ in range(runs + 1):
            begin = time.perf_counter()
            sff_fast.smooth_(model, plan, alpha=0.7, again=True)
            seconds.append(time.perf_counter() - begin)
        return sum(p.to_local().numel() for p in model.parameters()), statistics.median(seconds[1:])
    finally:
        dist.destroy_process_group()


def main() -> int:
    """Measure the grid, fit the model, extrapolate."""
    torch.set_num_threads(1)
    rows, seconds = [], []
    print(f"{'ranks':>6} {'tensors':>8} {'local elements':>15} {'ms':>9}")
    for ranks, tensors, local in itertools.product(RANKS, TENSORS, LOCAL):
        held, time_taken = measure(ranks, tensors, local)
        rows.append((1.0, tensors, held))
        seconds.append(time_taken)
        print(f"{ranks:>6} {tensors:>8} {held:>15,} {1e3 * time_taken:>9.3f}")
    x, y = np.array(rows), np.array(seconds)
    fit, *_ = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)
    worst = np.abs(x @ fit / y - 1).max()
    base, tensor, element = fit
    print(f"base {1e3 * base:.2f} ms, {1e6 * tensor:.1f} us a tensor, {1e9 * element:.3f} ns a local element on one thread")
    print(f"largest relative error of the model {worst:.0%}; number of ranks: not in the model")
    whole = f"{base + tensor * 1000 + element * 1e8:.3f} s on one thread a rank, of which tensors {tensor * 1e3:.3f} s"
    print(f"10^11 parameters in 1,000 tensors on 1,000 ranks: {whole}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
