"""The compiled CPU kernels: which instruction set they run on, and how a kernel table reaches them."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from sff_fast.errors import ArgumentError, BackendError
from sff_fast.stream import rounding_key
from sff_fast.table import TASK_DTYPE, BoxTask, pack

try:
    from sff_fast import _cpu

    _why_absent = ""
except ImportError as error:
    _cpu = None
    _why_absent = f"not compiled ({error}): `pip install --force-reinstall .` with a C++ compiler at hand, not SFF_FAST_BUILD=0"

ISAS = ("baseline", "avx2", "avx512")


def why_absent() -> str:
    """Why the kernels cannot be used, empty where they can."""
    if _cpu is None:
        return _why_absent
    if TASK_DTYPE.itemsize != _cpu.TASK_BYTES:
        return f"compiled from another version (table entries of {_cpu.TASK_BYTES} bytes, not {TASK_DTYPE.itemsize}): reinstall"
    try:
        isa()
    except (ArgumentError, BackendError) as error:
        return str(error)
    return ""


def forced_isa() -> str:
    """The instruction set that SFF_FAST_ISA asks for, empty for the widest one of this machine."""
    name = os.environ.get("SFF_FAST_ISA", "")
    if name and name not in ISAS:
        raise ArgumentError(f"SFF_FAST_ISA must be one of {', '.join(ISAS)}, got {name!r}")
    return name


def isa() -> str:
    """The instruction set in use, such as ``"avx512+bf16"``.

    Raises:
        BackendError: The machine lacks what SFF_FAST_ISA asks for.
    """
    try:
        return _isa_of(_cpu, forced_isa())
    except ValueError as error:
        raise BackendError(f"SFF_FAST_ISA={forced_isa()!r}: {error}") from error


@functools.lru_cache
def _isa_of(module: ModuleType, name: str) -> str:
    return module.isa(name)


def run(tasks: Sequence[BoxTask], threads: int | None = None) -> int:
    """Run a kernel table in place: one fork-join for all of it.

    Args:
        tasks: Disjoint boxes on the CPU.
        threads: At most this many, default ``torch.get_num_threads()``.

    Returns:
        The number of threads that took part.
    """
    return run_packed(pack(tasks), threads) if tasks else 1


def checked(tasks: Sequence[BoxTask]) -> _cpu.Table:
    """A kernel table that runs any number of times, with any seed.

    Args:
        tasks: Disjoint boxes on the CPU, whose memory stays where it is as long as the table is run.
    """
    return _cpu.Table(pack(tasks))


def run_table(table: _cpu.Table, seed: int, threads: int | None = None) -> int:
    """Run a kernel table that was checked before, with a seed of its own; see :func:`run`."""
    return table.smooth(seed, rounding_key(seed, 0), threads or torch.get_num_threads(), forced_isa())


def run_packed(records: np.ndarray, threads: int | None = None) -> int:
    """Run a kernel table that :func:`sff_fast.table.pack` has made; see :func:`run`."""
    return _cpu.smooth(records, threads or torch.get_num_threads(), forced_isa())
