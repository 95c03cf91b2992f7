"""What the tests of the kernels share: backends by name, and tasks made by hand."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import HARDWARE

from sff_fast import table
from sff_fast.backends import cpu, reference
from sff_fast.distributions import Constant, Normal, TruncNormal, Uniform
from sff_fast.plan import ParameterPlan, Segment

ISAS = ("baseline", "avx2", "avx512")
BACKENDS = ("reference", *ISAS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DISTRIBUTIONS = {
    "constant": Constant(0.25),
    "uniform": Uniform(-0.3, 0.7),
    "normal": Normal(0.1, 0.02),
    "trunc_normal": TruncNormal(0.0, 0.02, -0.04, 0.04),
    "trunc_normal_wide": TruncNormal(0.0, 1.0, -10.0, 10.0),
    "trunc_normal_upper": TruncNormal(0.0, 1.0, 3.0, 9.0),
    "trunc_normal_lower": TruncNormal(0.5, 1.0, -7.0, -5.0),
}
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def forced_isa(isa: str) -> Iterator[None]:
    """The compiled kernels of one instruction set; skips where the machine lacks it."""
    if cpu._cpu is None:
        pytest.fail(f"the native module is absent: {cpu.why_absent()}")
    before = os.environ.get("SFF_FAST_ISA")
    os.environ["SFF_FAST_ISA"] = isa
    try:
        try:
            cpu._cpu.isa(isa)
        except ValueError:
            pytest.skip(f"{HARDWARE}this machine has no {isa}")
        yield
    finally:
        if before is None:
            del os.environ["SFF_FAST_ISA"]
        else:
            os.environ["SFF_FAST_ISA"] = before


def run(backend: str, tasks: list[table.BoxTask], threads: int = 1) -> None:
    """Run a table with ``"reference"`` or the compiled kernels of an instruction set."""
    if backend == "reference":
        reference.run(tasks)
        return
    with forced_isa(backend):
        cpu.run(tasks, threads)


def philox(backend: str) -> Callable[[int, int, int, int], np.ndarray]:
    """(seed, stream, first block, count) -> words [count, 4] of a backend."""
    if backend == "reference":

        def words(seed: int, stream: int, block: int, count: int) -> np.ndarray:
            block = block - (1 << 64) if block >= 1 << 63 else block
            blocks = torch.arange(count, dtype=torch.int64) + block
            return torch.stack(reference.philox(seed, stream, blocks), dim=-1).numpy().astype(np.uint32)

        return words

    def compiled(seed: int, stream: int, block: int, count: int) -> np.ndarray:
        with forced_isa(backend):
            return cpu._cpu.philox(seed, stream, block, count, backend)

    return compiled


def whole(distribution: object, n: int, dtype: torch.dtype = torch.float32, name: str = "w") -> ParameterPlan:
    """The plan of a one-dimensional parameter that is one draw."""
    return ParameterPlan(name, (n,), dtype, (Segment.whole(distribution, n, name),) if n else ())


def tasks_for(
    tensor: torch.Tensor,
    distribution: object,
    *,
    shrink: float = 0.7,
    perturb: float = 0.3,
    seed: int = 20261122,
    rounding: str = "nearest",
    shift: int = 0,
) -> list[table.BoxTask]:
    """Tasks that smooth a one-dimensional tensor; ``shift`` moves it along its draw."""
    tasks = table.build([(whole(distribution, tensor.numel(), tensor.dtype), tensor, shrink, perturb)], None, seed, rounding)
    return [dataclasses.replace(t, draw_offset=t.draw_offset + shift, logical_offset=t.logical_offset + shift) for t in tasks]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes as integers, so that NaN and signed zeros compare."""
    return tensor.contiguous().view(INTEGER[tensor.element_size()])


def weights(n: int, dtype: torch.dtype, seed: int = 7) -> torch.Tensor:
    """Something like pre-trained weights."""
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)
