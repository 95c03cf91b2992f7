"""How do smoothing, a training step and the data's part grow with parameters, tensors, ranks and windows?

Smoothing and the step are those of one rank of a group whose other ranks are only pretended: what a rank does and asks of the
others is real, what it is told is not, and no network is measured. Smoothing holds the rows that FSDP2 gives the rank, and its
time is modelled as ``seconds = base + tensor * tensors + element * local elements``, fitted by least squares of the relative
error. A step counts the bytes that DDP or FSDP2 give to and want of the others. ``benchmarks/scaling.py`` applies the models to
10^11 parameters on 1,000 ranks and writes the tables of ``docs/scaling.md``.

Times are those of the processor, one thread, so that what else runs on the machine counts little.

Run from the repository root: ``python benchmarks/bench_scaling.py``. About half a minute. ``--csv`` appends
the rows to ``benchmarks/results/scaling.csv``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import scaling
import timing
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import sff_fast
from sff_fast.backends import cpu
from sff_fast.data import Table, epoch_order
from sff_fast.distributed import Group
from sff_fast.distributed.parallel import DataParallel, FullySharded, Parallel
from sff_fast.distributions import Normal
from sff_fast.metrics import ForecastMetrics
from sff_fast.plan import InitPlan, ParameterPlan, Segment

RANKS = (8, 1000)
TENSORS = (10, 100, 300)
LOCAL = (100_000, 1_000_000, 10_000_000)
"""Elements that the rank holds."""

STEP_RANKS = (2, 8, 64, 1000)
BLOCKS, ROWS = 4, 8192
MICRO = (1, 4)
TABLE_ROWS = (10_000, 100_000, 1_000_000)
CHANNELS, CONTEXT, HORIZON = 7, 512, 96


@contextlib.contextmanager
def rank_of(ranks: int) -> Iterator[Group]:
    """Be one rank, in the middle of a group whose others do not exist."""
    _clear_sharding_prop_cache()
    dist.init_process_group("fake", rank=ranks // 2, world_size=ranks, store=FakeStore())
    try:
        yield Group(ranks // 2, ranks)
    finally:
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """Counts collectives: ``calls``, and the bytes of the whole tensors in ``gathered`` and ``reduced``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.gathered = self.reduced = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            self.calls += 1
            if "allgather" in function.__name__:
                self.gathered += args[0].nbytes  # the output, of all ranks
            if "reduce_scatter" in function.__name__:
                self.reduced += args[1].nbytes  # the input, for all ranks
        return function(*args, **(kwargs or {}))


def cpu_seconds(work: Callable[[], object], runs: int) -> float:
    """Median seconds of the processor, on one thread, after one run that does not count."""
    work()
    seconds = []
    for _ in range(runs):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


# ---------------------------------------------------------------------- smoothing
def sharded(ranks: int, tensors: int, local: int) -> tuple[nn.Module, InitPlan]:
    """A rank's part of a model of equal matrices, and the whole model's plan."""
    rows = max(1, local // tensors // scaling.COLUMNS)
    shape = (rows * ranks, scaling.COLUMNS)
    mesh = init_device_mesh("cpu", (ranks,))
    model, parameters = nn.Module(), []
    for i in range(tensors):
        part = DTensor.from_local(torch.zeros(rows, scaling.COLUMNS), mesh, [Shard(0)], run_check=False)
        model.register_parameter(f"w{i}", nn.Parameter(part))
        segment = Segment.whole(Normal(0.0, 0.02), shape[0] * scaling.COLUMNS, f"w{i}")
        parameters.append(ParameterPlan(f"w{i}", shape, torch.float32, (segment,)))
    return model, InitPlan(parameters)


def smoothing(ranks: int, tensors: int, local: int, runs: int) -> dict[str, object]:
    """Median seconds of one smoothing, and what it asks of kernels and other ranks."""
    with rank_of(ranks):
        model, plan = sharded(ranks, tensors, local)

        def smooth() -> None:
            sff_fast.smooth_(model, plan, alpha=0.7, again=True)

        seconds = cpu_seconds(smooth, runs)
        launches, native = [], cpu.run_table
        cpu.run_table = lambda *arguments: launches.append(1) or native(*arguments)
        try:
            with Traffic() as traffic:
                smooth()
        finally:
            cpu.run_table = native
        held = sum(p.to_local().numel() for p in model.parameters())
    measured = {"ms": 1e3 * seconds, "launches": len(launches), "calls": traffic.calls}
    return scaling.row("smoothing", ranks=ranks, tensors=tensors, elements=held, **measured)


# ---------------------------------------------------------------------- a training step
class Stack(nn.Module):
    """Equal matrices, a block each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(scaling.COLUMNS, ROWS, bias=False) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(block(x).sum() for block in self.blocks)


def step(kind: str, ranks: int, micro: int) -> dict[str, object]:
    """Bytes that a rank receives in one step of so many micro-batches, as the rings of DDP and FSDP2 move them."""
    with rank_of(ranks) as group:
        model = Stack()
        adapter = SimpleNamespace(model=model, loss=model)
        elements = sum(p.numel() for p in model.parameters())
        parallel: Parallel = DataParallel(group) if kind == "ddp" else FullySharded(group)
        parallel.place(adapter)
        batch, reduced = torch.ones(1, scaling.COLUMNS), []

        def count(state, bucket):  # torch refuses annotations that are text
            reduced.append(bucket.buffer().nbytes)
            answer: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            answer.set_result(bucket.buffer())
            return answer

        with parallel.training(adapter, batch):
            if kind == "ddp":
                parallel._module.register_comm_hook(None, count)
            with Traffic() as traffic:
                for i in range(micro):
                    with parallel.accumulating(more=i + 1 < micro):
                        parallel.loss(adapter, batch).backward()
        # A ring moves (W - 1) / W of a tensor to each rank to gather or to reduce it, and twice that to do both.
        moved = (traffic.gathered + traffic.reduced + 2 * sum(reduced)) * (ranks - 1) / ranks
    return scaling.row(
        f"{kind} step", ranks=ranks, tensors=BLOCKS, elements=elements, micro=micro, received=round(moved), calls=traffic.calls
    )


# ---------------------------------------------------------------------- data
def data(rows: int, runs: int) -> dict[str, object]:
    """What the windows of a table take in every rank: memory, an epoch's order, a batch, and the errors of a forecast."""
    values = np.random.default_rng(0).normal(size=(rows, CHANNELS))
    table = Table(values, [f"c{i}" for i in range(CHANNELS)], None, None, "noise")
    tracemalloc.start()
    windows = sff_fast.ForecastData(table, "0.7,0.1,0.2", CONTEXT, HORIZON)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    count = len(windows.train)
    indices = epoch_order(count, 0, 0)[:32]
    batch = windows.train.batch(indices)
    metrics = ForecastMetrics(HORIZON, CHANNELS)
    return scaling.row(
        "data",
        elements=rows * CHANNELS,
        windows=count,
        bytes=held,
        ms=1e3 * cpu_seconds(lambda: epoch_order(count, 0, 1), runs),
        batch_us=1e6 * cpu_seconds(lambda: windows.train.batch(indices), 20 * runs) / len(indices),
        errors_us=1e6
        * cpu_seconds(lambda: metrics.update(batch.target, batch.target, batch.channel, batch.index), 20 * runs)
        / len(indices),
    )


def main() -> int:
    """Measure everything, print the tables and write the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=5, help="counted rounds, default 5")
    options.add_argument("--csv", action="store_true", help="append the rows to benchmarks/results/scaling.csv")
    given = options.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = [smoothing(*sizes, given.runs) for sizes in itertools.product(RANKS, TENSORS, LOCAL)]
    rows += [step(kind, ranks, micro) for kind in ("ddp", "fsdp") for ranks in STEP_RANKS for micro in MICRO]
    rows += [data(count, given.runs) for count in TABLE_ROWS]
    for title, lines in scaling.tables(rows).items():
        print(f"{title}\n\n" + "\n".join(lines) + "\n")
    if given.csv:
        print(timing.write_rows("scaling", rows))
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
